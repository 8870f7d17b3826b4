//! runbook's own tables in an SQLite file: the ledger of effects and the stamp.

use std::sync::Arc;

use serde_json::Value;
use sqlx::sqlite::SqliteConnection;
use sqlx::{Row, SqliteConnection as Connection};

use super::session::Session;
use super::{Database, failure, say};
use crate::target::error::TargetError;
use crate::target::identity::Stamp;
use crate::target::spec::SessionSettings;

const CREATE_LEDGER: &str = "CREATE TABLE IF NOT EXISTS runbook_ledger (run TEXT, step TEXT, result TEXT NOT NULL, \
     recorded_at TEXT NOT NULL DEFAULT CURRENT_TIMESTAMP, PRIMARY KEY (run, step));";

const CREATE_STAMP: &str = "CREATE TABLE IF NOT EXISTS runbook_environment (single INTEGER PRIMARY KEY CHECK (single = 1), \
     name TEXT NOT NULL, stamped_at TEXT NOT NULL DEFAULT CURRENT_TIMESTAMP);";

impl Session {
    /// Creates the ledger if it is missing.
    pub async fn ensure_ledger(&mut self) -> Result<(), TargetError> {
        if has_ledger(&mut self.connection).await.unwrap_or(false) {
            return Ok(());
        }
        match self.say(&format!("PRAGMA query_only = 0; {CREATE_LEDGER}")).await {
            Err(TargetError::Sql(error)) if error.code == "SQLITE_READONLY" => Err(self.database.forbidden(error.message)),
            answer => answer,
        }
    }

    /// Whether the ledger is there; an error where it could not be written.
    pub async fn check_ledger(&mut self) -> Result<bool, TargetError> {
        let (path, _) = self.database.place()?;
        if self.database.file()?.read_only {
            return Err(self.database.forbidden("its URL says mode=ro".into()));
        }
        // SQLite makes its journal beside the file.
        let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or_else(|| std::path::Path::new("."));
        for place in [path.as_path(), directory] {
            if let Err(error) = nix::unistd::eaccess(place, nix::unistd::AccessFlags::W_OK) {
                return Err(self.database.forbidden(format!("{} cannot be written: {}", place.display(), error.desc())));
            }
        }
        let found = has_ledger(&mut self.connection).await;
        found.map_err(|error| TargetError::Sql(Box::new(failure::sql_error(&error, ""))))
    }

    /// What this run has recorded for `step`.
    pub async fn ledger_find(&mut self, step: &str) -> Result<Option<Value>, TargetError> {
        let found = find(&mut self.connection, &self.database.run, step).await;
        found.map_err(|error| TargetError::Sql(Box::new(failure::sql_error(&error, ""))))
    }

    /// A condition that holds while the run lock does.
    pub fn lock_condition(&self) -> Result<String, TargetError> {
        self.database.check_lock_if_taken().map(|()| "1".to_owned())
    }

    /// Records `step` in the open transaction, provided that the run lock is held.
    pub async fn ledger_record(&mut self, step: &str, result: &Value) -> Result<(), TargetError> {
        self.database.check_lock_if_taken()?;
        let insert = sqlx::query("INSERT INTO runbook_ledger (run, step, result) VALUES ($1, $2, $3)");
        let insert = insert.bind(&self.database.run).bind(step).bind(result.to_string());
        insert.execute(&mut self.connection).await.map_err(|error| TargetError::Sql(Box::new(failure::sql_error(&error, ""))))?;
        Ok(())
    }
}

async fn has_ledger(connection: &mut Connection) -> Result<bool, sqlx::Error> {
    let row = sqlx::query("SELECT count(*) FROM sqlite_schema WHERE name = 'runbook_ledger'").fetch_one(connection).await?;
    Ok(row.try_get::<i64, _>(0)? > 0)
}

async fn find(connection: &mut Connection, run: &str, step: &str) -> Result<Option<Value>, sqlx::Error> {
    if !has_ledger(connection).await? {
        return Ok(None);
    }
    let query = sqlx::query("SELECT result FROM runbook_ledger WHERE run = $1 AND step = $2").bind(run).bind(step);
    let Some(row) = query.fetch_optional(connection).await? else { return Ok(None) };
    let text: String = row.try_get(0)?;
    Ok(Some(serde_json::from_str(&text).unwrap_or(Value::String(text))))
}

impl Database {
    /// The stamp, whatever environment the playbook expects.
    pub async fn read_stamp(&self) -> Result<Stamp, TargetError> {
        Ok(self.open(&SessionSettings::default(), Arc::default()).await?.2)
    }

    /// Stamps the file.
    pub async fn stamp(&self, environment: &str) -> Result<(), TargetError> {
        let (mut connection, identity, stamp) = self.open(&SessionSettings::default(), Arc::default()).await?;
        let unstamped = crate::target::ConnectionSpec { environment: None, ..self.spec.clone() };
        let mismatches = identity.mismatches(&unstamped, &stamp);
        if !mismatches.is_empty() {
            return Err(TargetError::Identity { connection: self.spec.name.clone(), mismatches });
        }
        let written = write_stamp(&mut connection, environment).await;
        written.map_err(|error| TargetError::Sql(Box::new(failure::sql_error(&error, ""))))
    }

    fn forbidden(&self, message: String) -> TargetError {
        TargetError::LedgerForbidden {
            connection: self.spec.name.clone(),
            role: nix::unistd::User::from_uid(nix::unistd::geteuid()).ok().flatten().map(|user| user.name).unwrap_or_default(),
            message,
            statements: vec![CREATE_LEDGER.to_owned()],
        }
    }
}

async fn write_stamp(connection: &mut Connection, environment: &str) -> Result<(), sqlx::Error> {
    say(connection, CREATE_STAMP).await?;
    let insert = sqlx::query("INSERT OR REPLACE INTO runbook_environment (single, name) VALUES (1, $1)").bind(environment);
    insert.execute(connection).await.map(|_| ())
}

/// Reads the stamp where its table exists.
pub async fn stamp(connection: &mut SqliteConnection) -> Result<Stamp, sqlx::Error> {
    let row = sqlx::query("SELECT name FROM runbook_environment").fetch_optional(connection).await?;
    row.map_or(Ok(Stamp::Missing), |row| row.try_get(0).map(Stamp::Environment))
}
