//! Double braces: minijinja expressions inside the author's text.
//!
//! One environment, four contexts (expression, SQL bind, argument, message).
//! Responsible for parsing at load time, for naming the references an expression
//! makes so that `check` can follow them, and for evaluating against [`Values`].
//! It does not know what a step does with the value.

mod evaluate;
mod parse;
mod row;
mod values;

pub use evaluate::{TemplateError, plain};
pub(crate) use parse::placeholder;
pub use parse::{Expression, Message, Part, Place, Reference, Setting, Template};
pub use row::{RowTest, RowVerdict};
pub use values::{StepResults, Values, with_result};
