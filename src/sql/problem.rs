//! What is wrong with an author's SQL text.

use std::ops::Range;

/// One finding.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct SqlProblem {
    /// Stable, kebab-case.
    pub code: &'static str,
    /// One sentence: what is wrong.
    pub message: String,
    /// What to write instead.
    pub help: String,
    /// Bytes in the author's text.
    pub range: Range<usize>,
}
