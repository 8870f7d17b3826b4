//! How a plan looks before it is carried out. Only what is known beforehand is shown as
//! a value; the rest stays the author's expression.

pub mod doctor;
mod terminal;

pub use terminal::terminal;
