//! Findings about files: what is wrong, where, and what would be right.
//!
//! Every stage that reads the author's text collects these instead of stopping at
//! the first. Drawing them (source excerpt, underline, colour) happens here too;
//! deciding what is wrong does not.

mod render;

pub use render::{Counts, did_you_mean, render, visible};

use crate::source::Span;

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Severity {
    /// Nothing runs.
    Error,
    /// Worth a look.
    Warning,
}

/// One finding.
#[derive(Debug, Clone)]
pub struct Diagnostic {
    /// Stable, kebab-case, e.g. `unknown-key`.
    pub code: &'static str,
    /// Error or warning.
    pub severity: Severity,
    /// One sentence: what is wrong.
    pub message: String,
    /// The place of the finding.
    pub span: Span,
    /// Said at the underline; may be empty.
    pub label: String,
    /// Further places, e.g. the first use of a duplicate id.
    pub related: Vec<(Span, String)>,
    /// What is allowed, what to do next.
    pub help: Vec<String>,
}

impl Diagnostic {
    /// An error at a place.
    pub fn error(code: &'static str, span: Span, message: impl Into<String>) -> Self {
        Self { code, severity: Severity::Error, message: message.into(), span, label: String::new(), related: Vec::new(), help: Vec::new() }
    }

    /// A warning at a place.
    pub fn warning(code: &'static str, span: Span, message: impl Into<String>) -> Self {
        Self { severity: Severity::Warning, ..Self::error(code, span, message) }
    }

    /// Says something at the underline.
    pub fn label(mut self, label: impl Into<String>) -> Self {
        self.label = label.into();
        self
    }

    /// Points at a second place.
    pub fn related(mut self, span: Span, label: impl Into<String>) -> Self {
        self.related.push((span, label.into()));
        self
    }

    /// Says what would be right.
    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.help.push(help.into());
        self
    }
}
