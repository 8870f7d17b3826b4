//! SQL text: where its statements are, what they are, and which values they take.
//!
//! Responsible for splitting a text exactly (dollar quotes, nested comments, `BEGIN
//! ATOMIC` bodies), for saying of a statement what can be said without a server, and
//! for turning `{{ }}` placeholders into bind parameters. Works on tokens rather than
//! a syntax tree, so that SQLite's dialect and statements newer than any grammar are
//! read just as well. It never talks to a database.

mod classify;
mod cursor;
mod dumped;
mod feed;
mod lexer;
mod placement;
mod problem;
mod split;
mod tables;
mod text;

pub use classify::{Kind, Statement, classify};
pub use dumped::{Copied, Created, copied, created, roles};
pub use feed::{Fed, Feed, FeedError};
pub use problem::SqlProblem;
pub use split::{Split, StatementSpan, split};
pub use text::{BoundStatement, SqlText};
