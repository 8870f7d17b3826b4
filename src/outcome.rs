//! What a step gives back: a result or an error, both as data.
//!
//! These are journaled, shown, and read by later steps' expressions, so they are
//! plain serialisable values. How they come about is the actions' business.

use indexmap::IndexMap;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::secret::{Redactor, Structure};
use crate::source::Location;

/// A column of a result.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Column {
    /// As the query names it.
    pub name: String,
    /// The database's name of its type, e.g. `numeric`, `timestamptz`, `int8[]`.
    #[serde(rename = "type")]
    pub type_name: String,
}

/// What a step found or did; read as `steps.ID.…`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct StepResult {
    /// The observed value in a few words, for the step's line on the terminal.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub summary: String,
    /// The one value: first column of the first row, an expression's value …
    #[serde(skip_serializing_if = "Option::is_none")]
    pub value: Option<Value>,
    /// Columns of the last statement that gave rows.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub columns: Vec<Column>,
    /// The first rows (`sample` bounds them), one list of values a row.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub rows: Vec<Vec<Value>>,
    /// All rows, also those not kept.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub row_count: Option<u64>,
    /// Rows written, summed over the statements.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rows_affected: Option<u64>,
    /// A process's exit code.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// The end of standard output (at most 64 KiB), trailing newline removed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stdout: Option<String>,
    /// The end of standard error, likewise.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stderr: Option<String>,
    /// Standard output or a response body that is JSON.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub json: Option<Value>,
    /// An HTTP status code.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub http_status: Option<u16>,
    /// What a person answered.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub answer: Option<String>,
    /// A file the step wrote.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
    /// The author's `outputs`.
    #[serde(skip_serializing_if = "IndexMap::is_empty")]
    pub outputs: IndexMap<String, Value>,
    /// What is not as it should be but did not stop the step.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub findings: Vec<String>,
}

/// What in results and errors is the program's own, and what is data.
pub const STRUCTURE: Structure = Structure { words: &["kind", "aftermath"], records: &[], data: &["value", "rows", "json", "outputs"] };

impl StepResult {
    /// The same without secrets.
    pub fn redacted(&self, redactor: &Redactor) -> Self {
        if redactor.is_empty() { self.clone() } else { redactor.typed(self, &STRUCTURE).unwrap_or_default() }
    }
}

/// The class of an error; decides retry, exit code and hints.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorKind {
    /// Something observed is not what the author expects.
    Expectation,
    /// The database refused a statement.
    Sql,
    /// No connection, or it broke outside of a commit.
    Connection,
    /// The wrong database, role, version or environment.
    Identity,
    /// A process failed.
    Process,
    /// An HTTP exchange failed.
    Http,
    /// An expression has no value.
    Template,
    /// The step's time was up.
    Timeout,
    /// An operator's second interrupt stopped it.
    Cancelled,
    /// A person said no.
    Declined,
    /// A file or the operating system.
    Io,
}

/// What the failed step left behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Aftermath {
    /// It changed nothing, or what it changed was rolled back.
    Unchanged,
    /// Part of its effect may be in place.
    Partial,
    /// Whether its effect is in place cannot be known from here.
    Unknown,
}

/// A table shown with an error, e.g. the rows that break an expectation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// Column names.
    pub columns: Vec<String>,
    /// Rows, at most the step's `sample`.
    pub rows: Vec<Vec<Value>>,
    /// How many rows there are in all.
    pub total: u64,
}

/// Why a step failed, as data.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct StepError {
    /// Its class.
    pub kind: ErrorKind,
    /// One sentence.
    pub message: String,
    /// Further facts, label and text: `DETAIL`, `HINT`, `blocked by`, `expected`, `found` …
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub facts: Vec<(String, String)>,
    /// What the operator can do, each a sentence or a command.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hints: Vec<String>,
    /// Where in the author's files.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub location: Option<Location>,
    /// PostgreSQL's or SQLite's code.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<String>,
    /// Rows that show it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sample: Option<Sample>,
    /// What is left behind.
    pub aftermath: Aftermath,
    /// Whether trying again may help without anyone changing anything.
    #[serde(default)]
    pub transient: bool,
    /// What the step had found or done until then, for the report (a failed
    /// expectation keeps the observed result here).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result: Option<Box<StepResult>>,
}

impl StepError {
    /// The same without secrets.
    pub fn redacted(&self, redactor: &Redactor) -> Self {
        if redactor.is_empty() {
            return self.clone();
        }
        redactor.typed(self, &STRUCTURE).unwrap_or_else(|_| Self::new(self.kind, "an error that cannot be shown").aftermath(self.aftermath))
    }

    /// An error after which nothing is changed.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
            facts: Vec::new(),
            hints: Vec::new(),
            location: None,
            code: None,
            sample: None,
            aftermath: Aftermath::Unchanged,
            transient: false,
            result: None,
        }
    }

    /// Adds a labelled fact.
    pub fn fact(mut self, label: impl Into<String>, text: impl Into<String>) -> Self {
        self.facts.push((label.into(), text.into()));
        self
    }

    /// Adds a hint.
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hints.push(hint.into());
        self
    }

    /// Says where in the author's files.
    pub fn at(mut self, location: Location) -> Self {
        self.location.get_or_insert(location);
        self
    }

    /// Says what is left behind.
    pub fn aftermath(mut self, aftermath: Aftermath) -> Self {
        self.aftermath = aftermath;
        self
    }

    /// Keeps what had been observed.
    pub fn with_result(mut self, result: StepResult) -> Self {
        self.result = Some(Box::new(result));
        self
    }
}
