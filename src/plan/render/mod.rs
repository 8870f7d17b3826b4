//! How a plan looks before it is carried out. Only what is known beforehand is shown as
//! a value; the rest stays the author's expression.

mod terminal;

pub use terminal::terminal;
