//! What a caller says about a target before anything is opened.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value;

use super::libpq::Parameters;
use crate::outcome::Column;
use crate::secret::Secret;
use crate::sql;

/// One resolved entry of `connections:`.
#[derive(Debug, Clone)]
pub struct ConnectionSpec {
    /// Its name in the playbook.
    pub name: String,
    /// `postgres://…`, a libpq `key=value` string, or `sqlite:path`.
    pub url: Secret,
    /// What the target must be.
    pub expect: Expect,
    /// Whether effects are recorded in the target itself.
    pub ledger: LedgerMode,
    /// The environment the playbook is meant for; the target's stamp must agree.
    pub environment: Option<String>,
}

impl ConnectionSpec {
    /// Every password with which the target may be opened, wherever it comes from:
    /// secrets although nobody declared them.
    pub fn passwords(&self, variables: &Variables) -> Vec<Secret> {
        let parameters = Parameters::resolve(self.url.expose(), variables);
        parameters.into_iter().flat_map(|parameters| parameters.hosts).filter_map(|host| host.password).collect()
    }
}

/// Identity a playbook declares; checked on every connection.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Expect {
    /// Database name, or the file name of an SQLite database.
    pub database: Option<String>,
    /// Primary or standby.
    pub role: Role,
    /// Smallest major version.
    pub min_version: Option<u32>,
    /// PostgreSQL's cluster id, as `pg_control_system()` shows it.
    pub system_identifier: Option<String>,
    /// The role that is connected.
    pub user: Option<String>,
}

/// Part a server plays in replication.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Role {
    /// Takes writes.
    Primary,
    /// Is in recovery.
    Standby,
    /// Either.
    #[default]
    Any,
}

/// Where the proof of an effect is kept.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum LedgerMode {
    /// A row in the target, committed together with the effect.
    #[default]
    Target,
    /// Nowhere: an interrupted write is `unknown`.
    None,
}

/// Bounds and name of a session.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SessionSettings {
    /// The server stops a statement after this time.
    pub statement_timeout: Option<Duration>,
    /// The server stops waiting for a lock after this time.
    pub lock_timeout: Option<Duration>,
    /// The server ends a session that holds a transaction open and says nothing.
    pub idle_in_transaction_timeout: Option<Duration>,
}

/// What a transaction may do; the server enforces it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Nothing but read.
    ReadOnly,
    /// Anything the role may.
    ReadWrite,
}

/// Isolation level of a transaction; without one the server's default holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Isolation {
    /// `READ COMMITTED`
    ReadCommitted,
    /// `REPEATABLE READ`
    RepeatableRead,
    /// `SERIALIZABLE`
    Serializable,
}

impl Isolation {
    /// As SQL writes it.
    pub fn as_sql(self) -> &'static str {
        match self {
            Self::ReadCommitted => "READ COMMITTED",
            Self::RepeatableRead => "REPEATABLE READ",
            Self::Serializable => "SERIALIZABLE",
        }
    }
}

/// Exactly one SQL statement.
#[derive(Debug, Clone, Copy)]
pub struct Statement<'a> {
    /// Its text, with `$1`, `$2` … where values go.
    pub text: &'a str,
    /// The values.
    pub binds: &'a [Value],
    /// Whether its own verb writes (`INSERT`, `UPDATE`, `DELETE`, `MERGE`, `COPY`, `CREATE TABLE AS`):
    /// then the server's count is `rows_affected`, otherwise it is only a number of rows read.
    pub writes: bool,
}

impl<'a> Statement<'a> {
    /// A statement that only reads and takes no values.
    pub fn query(text: &'a str) -> Self {
        Self { text, binds: &[], writes: false }
    }

    /// A statement that writes and takes no values.
    pub fn change(text: &'a str) -> Self {
        Self { text, binds: &[], writes: true }
    }

    /// Gives it values.
    pub fn with(self, binds: &'a [Value]) -> Self {
        Self { binds, ..self }
    }

    /// Whether its result has columns even when it has no rows.
    pub(super) fn is_query(&self) -> bool {
        sql::classify(self.text).kind == sql::Kind::Select
    }
}

/// A piece of what a `COPY … FROM STDIN` is given.
#[derive(Debug)]
pub enum CopyChunk {
    /// Rows, or parts of rows.
    Data(Vec<u8>),
    /// That was all. A stream that ends without it is not kept.
    End,
}

/// Receives every row as it arrives; what is kept is the caller's business.
pub type RowSink<'a> = &'a mut (dyn FnMut(&[Column], Vec<Value>) + Send);

/// What a statement did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Executed {
    /// Columns of its result; empty for a statement without one.
    pub columns: Vec<Column>,
    /// Rows it gave.
    pub row_count: u64,
    /// Rows it wrote.
    pub rows_affected: u64,
}

/// The process's environment. Only `cli` reads the real one and hands it over.
#[derive(Clone, Default)]
pub struct Variables {
    texts: BTreeMap<String, String>,
    unreadable: BTreeSet<String>,
}

/// Names only, for values may be secret.
impl fmt::Debug for Variables {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.texts.keys()).entries(&self.unreadable).finish()
    }
}

impl Variables {
    /// The variables as the process had them.
    pub fn new(all: impl IntoIterator<Item = (String, String)>) -> Self {
        Self { texts: all.into_iter().collect(), unreadable: BTreeSet::new() }
    }

    /// The variables as the system has them; of those that are not UTF-8 only the names are kept.
    pub fn from_system(all: impl IntoIterator<Item = (OsString, OsString)>) -> Self {
        let mut variables = Self::default();
        for (name, value) in all {
            match (name.into_string(), value.into_string()) {
                (Ok(name), Ok(value)) => _ = variables.texts.insert(name, value),
                (Ok(name), Err(_)) => _ = variables.unreadable.insert(name),
                (Err(name), _) => _ = variables.unreadable.insert(name.to_string_lossy().into_owned()),
            }
        }
        variables
    }

    /// A variable that is set and not empty, which libpq treats alike.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.texts.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }

    /// Every variable that is set to a text, perhaps an empty one.
    pub fn texts(&self) -> impl Iterator<Item = (&str, &str)> {
        self.texts.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }

    /// Names of variables whose name or value is not UTF-8.
    pub fn unreadable(&self) -> impl Iterator<Item = &str> {
        self.unreadable.iter().map(String::as_str)
    }

    /// The home directory.
    pub fn home(&self) -> Option<PathBuf> {
        self.get("HOME").map(PathBuf::from)
    }
}
