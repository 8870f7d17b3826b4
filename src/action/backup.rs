//! What the steps that write, prove, restore and prune backups have in common.
//!
//! Responsible for the files of a backup, for what is known of them, and for the way to
//! PostgreSQL's client programs. What a step does with them is the step's business.

pub mod archive;
pub mod catalogue;
pub mod checksum;
pub mod client;
pub mod contents;
pub mod manifest;
pub mod partial;
pub mod sqlite;
