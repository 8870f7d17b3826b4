//! SQLite as a target: one file, opened by every step anew.
//!
//! The promises are PostgreSQL's, the means are not: the run lock is a locked file
//! beside the database, a statement is stopped by SQLite's progress handler, and a
//! killed process's transaction needs no looking after.

mod failure;
mod ledger;
mod lock;
mod session;

#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::Value;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use sqlx::{AssertSqlSafe, ConnectOptions, Row};

use self::lock::HeldLock;
pub use self::session::{Canceller, Session};
use super::error::TargetError;
use super::identity::{Identity, Kind, Stamp};
use super::spec::{ConnectionSpec, SessionSettings};

/// How long a statement waits for another process's lock where nothing else is said.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// How many steps of SQLite's machine may pass before it looks whether to stop.
const STEPS_BETWEEN_LOOKS: i32 = 1000;

/// One SQLite target of one run.
#[derive(Debug)]
pub struct Database {
    spec: ConnectionSpec,
    run: String,
    file: Result<File, String>,
    lock: Mutex<Option<HeldLock>>,
}

/// What an `sqlite:` URL names.
#[derive(Debug)]
struct File {
    path: PathBuf,
    read_only: bool,
    create: bool,
}

impl Database {
    /// Nothing is opened yet; an unusable URL is reported on first use.
    pub fn new(run: &str, spec: ConnectionSpec) -> Self {
        Self { run: run.to_owned(), file: File::parse(spec.url.expose()), lock: Mutex::default(), spec }
    }

    /// What the playbook says about it.
    pub fn spec(&self) -> &ConnectionSpec {
        &self.spec
    }

    /// Who it is, as expected.
    pub async fn identity(&self) -> Result<Identity, TargetError> {
        let (_, identity, _) = self.open_checked(&SessionSettings::default(), Arc::default()).await?;
        Ok(identity)
    }

    /// A session for one step.
    pub async fn session(this: &Arc<Self>, settings: &SessionSettings) -> Result<Session, TargetError> {
        let stop = Arc::new(AtomicBool::new(false));
        let (connection, identity, _) = this.open_checked(settings, stop.clone()).await?;
        Ok(Session::new(this.clone(), connection, identity, stop, settings.statement_timeout))
    }

    /// Reads the ledger: SQLite's own recovery has already decided.
    pub async fn resolve_commit(this: &Arc<Self>, step: &str) -> Result<Option<Value>, TargetError> {
        Self::session(this, &SessionSettings::default()).await?.ledger_find(step).await
    }

    async fn open_checked(
        &self,
        settings: &SessionSettings,
        stop: Arc<AtomicBool>,
    ) -> Result<(SqliteConnection, Identity, Stamp), TargetError> {
        let opened = self.open(settings, stop).await?;
        let mismatches = opened.1.mismatches(&self.spec, &opened.2);
        if mismatches.is_empty() { Ok(opened) } else { Err(TargetError::Identity { connection: self.spec.name.clone(), mismatches }) }
    }

    async fn open(&self, settings: &SessionSettings, stop: Arc<AtomicBool>) -> Result<(SqliteConnection, Identity, Stamp), TargetError> {
        let file = self.file()?;
        let refused = |error| self.refused(&error, file);
        let mut connection = SqliteConnectOptions::new()
            .filename(&file.path)
            .read_only(file.read_only)
            .create_if_missing(file.create)
            .foreign_keys(true)
            .busy_timeout(settings.lock_timeout.unwrap_or(BUSY_TIMEOUT))
            .disable_statement_logging()
            .connect()
            .await
            .map_err(refused)?;
        let mut handle = connection.lock_handle().await.map_err(refused)?;
        handle.set_progress_handler(STEPS_BETWEEN_LOOKS, move || !stop.load(Ordering::Relaxed));
        drop(handle);
        let query = "SELECT sqlite_version(), (SELECT count(*) FROM sqlite_schema WHERE name = 'runbook_environment')";
        let row = sqlx::query(query).fetch_one(&mut connection).await.map_err(refused)?;
        let version: String = row.try_get(0).map_err(refused)?;
        let stamped: i64 = row.try_get(1).map_err(refused)?;
        let stamp = if stamped > 0 { ledger::stamp(&mut connection).await.map_err(refused)? } else { Stamp::Missing };
        let identity = Identity {
            kind: Kind::Sqlite,
            major_version: version.split('.').next().and_then(|major| major.parse().ok()).unwrap_or_default(),
            version,
            database: std::fs::canonicalize(&file.path).unwrap_or_else(|_| file.path.clone()).display().to_string(),
            user: String::new(),
            host: String::new(),
            system_identifier: None,
            in_recovery: false,
            environment: stamp.environment().map(str::to_owned),
        };
        Ok((connection, identity, stamp))
    }

    fn refused(&self, error: &sqlx::Error, file: &File) -> TargetError {
        let code = failure::code(error);
        let hint = (!file.path.exists() && !file.create)
            .then(|| format!("{} does not exist. A new database is made only where the URL ends in ?mode=rwc.", file.path.display()));
        TargetError::Connect {
            connection: self.spec.name.clone(),
            message: format!("{}: {}", file.path.display(), failure::words(error)),
            // Never empty: a file that cannot be opened does not get better by waiting.
            sqlstate: Some(code.unwrap_or_else(|| "SQLITE_ERROR".to_owned())),
            hint,
        }
    }

    /// Its file, and whether it is made if it is missing.
    pub fn place(&self) -> Result<(PathBuf, bool), TargetError> {
        self.file().map(|file| (file.path.clone(), file.create))
    }

    fn file(&self) -> Result<&File, TargetError> {
        self.file.as_ref().map_err(|message| TargetError::Configuration {
            connection: self.spec.name.clone(),
            message: message.clone(),
            hint: Some("Write sqlite:path, or sqlite:path?mode=ro, or ?mode=rwc to make the file if it is missing.".into()),
        })
    }
}

impl File {
    fn parse(url: &str) -> Result<Self, String> {
        let rest = url.strip_prefix("sqlite:").unwrap_or(url);
        let rest = rest.strip_prefix("//").unwrap_or(rest);
        let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
        if path == ":memory:" || path.is_empty() {
            return Err("an SQLite database in memory is a different one for every connection; name a file".into());
        }
        let path = percent_encoding::percent_decode_str(path).decode_utf8().map_err(|_| "the path is not UTF-8 text")?;
        let mut file = Self { path: Path::new(path.as_ref()).to_owned(), read_only: false, create: false };
        for parameter in query.split('&').filter(|parameter| !parameter.is_empty()) {
            match parameter {
                "mode=ro" => file.read_only = true,
                "mode=rw" => {}
                "mode=rwc" => file.create = true,
                other => return Err(format!("`{other}` is not supported in an sqlite: URL")),
            }
        }
        Ok(file)
    }
}

/// Runs statements of our own.
async fn say(connection: &mut SqliteConnection, sql: &str) -> Result<(), sqlx::Error> {
    sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(connection).await.map(|_| ())
}
