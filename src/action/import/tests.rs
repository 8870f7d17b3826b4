//! Imports as they are written, and how hostile files are read.
