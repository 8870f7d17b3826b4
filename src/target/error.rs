//! What can go wrong with a target, as data, and how a step reports it.
//!
//! sqlx's own texts are never shown: its `Display` of a database error names a line
//! of PostgreSQL's C source.

use std::time::Duration;

use super::identity::Mismatch;
use crate::outcome::{Aftermath, ErrorKind, StepError};

/// Why a target could not do what was asked.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum TargetError {
    /// The connection's URL, or a file it refers to, is unusable.
    #[error("connection `{connection}`: {message}")]
    Configuration {
        /// Its name.
        connection: String,
        /// What is wrong.
        message: String,
        /// What would be right.
        hint: Option<String>,
    },
    /// No session could be opened.
    #[error("cannot connect to `{connection}`: {message}")]
    Connect {
        /// Its name.
        connection: String,
        /// The reason, for several hosts one after the other.
        message: String,
        /// The server's code, if a server answered.
        sqlstate: Option<String>,
        /// What may help.
        hint: Option<String>,
    },
    /// This is not the database the playbook is for.
    #[error("connection `{connection}` is not the expected target: {}", listed(.mismatches))]
    Identity {
        /// Its name.
        connection: String,
        /// Everything that differs.
        mismatches: Vec<Mismatch>,
    },
    /// A pooler hands every transaction to another backend.
    #[error("connection `{connection}` goes through a pooler that shares backends between transactions")]
    Pooled {
        /// Its name.
        connection: String,
    },
    /// The database refused a statement.
    #[error("{}", .0.message)]
    Sql(Box<SqlError>),
    /// A value cannot be given to a statement.
    #[error("{message}")]
    Bind {
        /// Which one, from 0; `None`: the statement takes no values at all.
        index: Option<usize>,
        /// What is wrong.
        message: String,
        /// What would be right.
        hint: Option<String>,
    },
    /// The connection broke, but not in a commit.
    #[error("the connection to `{connection}` was lost: {message}")]
    Lost {
        /// Its name.
        connection: String,
        /// The server's last words or the system's reason.
        message: String,
        /// The server's code.
        sqlstate: Option<String>,
        /// A statement ran that commits by itself, and may have. Otherwise whatever was
        /// under way is rolled back.
        effect_unknown: bool,
    },
    /// The connection broke in a commit: only the ledger knows the outcome.
    #[error("the connection to `{connection}` was lost during COMMIT, so its outcome is not known yet")]
    CommitUnknown {
        /// Its name.
        connection: String,
        /// The backend that may still be committing; 0 for SQLite.
        pid: i32,
        /// The server's last words or the system's reason.
        message: String,
    },
    /// The role may not create or write the ledger.
    #[error("role `{role}` may not write runbook's tables on `{connection}`: {message}")]
    LedgerForbidden {
        /// Its name.
        connection: String,
        /// Who is connected.
        role: String,
        /// The server's reason.
        message: String,
        /// What an administrator runs once.
        statements: Vec<String>,
    },
    /// The run lock is not held any more, so another run may have started.
    #[error("the run lock on `{connection}` was lost: {message}")]
    LockLost {
        /// Its name.
        connection: String,
        /// How that was noticed.
        message: String,
    },
    /// The caller stopped the statement.
    #[error("the statement was cancelled")]
    Cancelled {
        /// The connection's name.
        connection: String,
    },
}

/// A database's refusal.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct SqlError {
    /// SQLSTATE, or SQLite's extended result code.
    pub code: String,
    /// The primary message.
    pub message: String,
    /// PostgreSQL's DETAIL.
    pub detail: Option<String>,
    /// PostgreSQL's HINT.
    pub hint: Option<String>,
    /// PostgreSQL's CONTEXT: the call stack of functions.
    pub context: Option<String>,
    /// Where in the statement's text, in characters from 0.
    pub position: Option<usize>,
    /// Which bound value was refused, from 0.
    pub bind: Option<usize>,
    /// Statement inside a function that failed.
    pub internal_query: Option<String>,
    /// Schema of the object concerned.
    pub schema: Option<String>,
    /// Table concerned.
    pub table: Option<String>,
    /// Column concerned.
    pub column: Option<String>,
    /// Constraint concerned.
    pub constraint: Option<String>,
    /// Who held the lock that was waited for.
    pub blockers: Vec<Blocker>,
    /// Trying again may help without anyone changing anything.
    pub transient: bool,
    /// A transaction was open, so nothing of it remains.
    pub in_transaction: bool,
}

/// A backend that held up a statement.
#[derive(Debug, Clone, PartialEq)]
pub struct Blocker {
    /// Its process id.
    pub pid: i32,
    /// Its `application_name`.
    pub application: String,
    /// Its role.
    pub user: String,
    /// `active`, `idle in transaction` …; empty when the role may not see it.
    pub state: String,
    /// What it runs or ran last.
    pub query: String,
    /// How long its transaction has been open.
    pub age: Option<Duration>,
}

impl std::fmt::Display for Blocker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "pid {}", self.pid)?;
        if !self.application.is_empty() {
            write!(f, ", application {}", self.application)?;
        }
        if !self.user.is_empty() {
            write!(f, ", user {}", self.user)?;
        }
        if !self.state.is_empty() {
            write!(f, ", {}", self.state)?;
        }
        if let Some(age) = self.age {
            write!(f, ", transaction open for {}", humantime::format_duration(Duration::from_secs(age.as_secs())))?;
        }
        if !self.query.is_empty() {
            write!(f, ": {}", one_line(&self.query))?;
        }
        Ok(())
    }
}

/// A query as one short line.
fn one_line(query: &str) -> String {
    const WIDTH: usize = 120;
    let words: Vec<&str> = query.split_whitespace().collect();
    let line = words.join(" ");
    match line.char_indices().nth(WIDTH) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line,
    }
}

fn listed(mismatches: &[Mismatch]) -> String {
    mismatches.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

/// Whether a failure of this class can pass by itself.
pub(super) fn is_transient(sqlstate: &str) -> bool {
    matches!(sqlstate, "40001" | "40P01" | "55P03") || sqlstate.starts_with("57P0") || sqlstate.starts_with("08") || sqlstate == "53300"
}

impl TargetError {
    /// Whether trying again may help without anyone changing anything.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Sql(error) => error.transient,
            Self::Connect { sqlstate, .. } => sqlstate.as_deref().is_none_or(is_transient),
            Self::Lost { effect_unknown, .. } => !effect_unknown,
            _ => false,
        }
    }

    /// The database's code.
    pub fn code(&self) -> Option<&str> {
        match self {
            Self::Sql(error) => Some(&error.code),
            Self::Connect { sqlstate, .. } | Self::Lost { sqlstate, .. } => sqlstate.as_deref(),
            _ => None,
        }
    }

    fn kind(&self) -> ErrorKind {
        match self {
            Self::Identity { .. } | Self::Pooled { .. } | Self::Configuration { .. } => ErrorKind::Identity,
            Self::Connect { .. } | Self::Lost { .. } | Self::CommitUnknown { .. } | Self::LockLost { .. } => ErrorKind::Connection,
            Self::Sql(error) if matches!(error.code.as_str(), "57014" | "SQLITE_INTERRUPT") => ErrorKind::Timeout,
            Self::Sql(_) | Self::Bind { .. } | Self::LedgerForbidden { .. } => ErrorKind::Sql,
            Self::Cancelled { .. } => ErrorKind::Cancelled,
        }
    }

    fn aftermath(&self) -> Aftermath {
        match self {
            Self::CommitUnknown { .. } | Self::Lost { effect_unknown: true, .. } => Aftermath::Unknown,
            _ => Aftermath::Unchanged,
        }
    }
}

impl From<TargetError> for StepError {
    fn from(error: TargetError) -> Self {
        let mut step = StepError::new(error.kind(), error.to_string()).aftermath(error.aftermath());
        step.transient = error.is_transient();
        step.code = error.code().map(str::to_owned);
        match error {
            TargetError::Configuration { hint, .. } | TargetError::Connect { hint, .. } | TargetError::Bind { hint, .. } => {
                step.hints.extend(hint);
            }
            TargetError::Identity { connection, mismatches } => {
                step.message = format!("connection `{connection}` is not the expected target");
                for mismatch in mismatches {
                    step.facts.push((mismatch.what.to_owned(), format!("expected {}, found {}", mismatch.expected, mismatch.found)));
                    step.hints.extend(mismatch.hint);
                }
            }
            TargetError::Pooled { .. } => step.hints.push(
                "Transaction pooling (PgBouncer's `pool_mode = transaction`) loses locks and settings between statements. \
                 Point the connection at the server itself, or at a pool in session mode."
                    .into(),
            ),
            TargetError::Sql(error) => describe(&mut step, *error),
            TargetError::CommitUnknown { pid, message, .. } => {
                step.facts.push(("cause".into(), message));
                if pid != 0 {
                    step.facts.push(("backend".into(), format!("pid {pid}")));
                }
            }
            TargetError::LedgerForbidden { statements, .. } => {
                step.hints.push(format!("Let an administrator run once: {}", statements.join(" ")));
                step.hints.push("Or set `ledger: none` on the connection; an interrupted write is then reported `unknown`.".into());
            }
            TargetError::LockLost { .. } => {
                step.hints.push("Make sure no other run is active, then resume: nothing was committed without the lock.".into());
            }
            TargetError::Lost { .. } | TargetError::Cancelled { .. } => {}
        }
        step
    }
}

/// The server's words as facts, in psql's order.
fn describe(step: &mut StepError, error: SqlError) {
    let mut fact = |label: &str, text: Option<String>| step.facts.extend(text.map(|text| (label.to_owned(), text)));
    fact("DETAIL", error.detail);
    fact("HINT", error.hint);
    fact("value", error.bind.map(|index| format!("${}", index + 1)));
    fact("in", error.internal_query);
    fact("CONTEXT", error.context);
    fact("constraint", error.constraint);
    for blocker in &error.blockers {
        fact("blocked by", Some(blocker.to_string()));
    }
}
