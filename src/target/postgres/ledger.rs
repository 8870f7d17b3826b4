//! runbook's own tables in the target: the ledger of effects and the stamp.
//!
//! A row of the ledger commits in the same transaction as the effect it stands for.
//! The stamp remembers which database it was written into, so that a copy restored
//! from a dump does not pass for the original.

use std::sync::atomic::Ordering;

use serde_json::Value;
use sqlx::postgres::PgConnection;

use super::connect::{About, code, text_rows, words};
use super::session::Session;
use super::{Database, failure};
use crate::target::error::{SqlError, TargetError};
use crate::target::identity::{Identity, Stamp};
use crate::target::literal::{identifier, literal};

const CREATE_SCHEMA: &str = "CREATE SCHEMA runbook;";

const CREATE_LEDGER: &str = "CREATE TABLE runbook.ledger (run text, step text, result json NOT NULL, \
     recorded_at timestamptz NOT NULL DEFAULT now(), recorded_by text NOT NULL DEFAULT current_user, PRIMARY KEY (run, step));";

const CREATE_STAMP: &str = "CREATE TABLE runbook.environment (single boolean PRIMARY KEY DEFAULT true CHECK (single), \
     name text NOT NULL, database_oid oid NOT NULL, system_identifier text, \
     stamped_at timestamptz NOT NULL DEFAULT now(), stamped_by text NOT NULL DEFAULT current_user);";

/// What of the schema is there, and what this role may do with it.
struct Installed {
    schema: bool,
    table: bool,
    usable: bool,
}

impl Session {
    /// Creates the ledger if it is missing.
    pub async fn ensure_ledger(&mut self) -> Result<(), TargetError> {
        if self.database.ledger_is_ready.load(Ordering::Acquire) {
            return Ok(());
        }
        // Twice, because two runs may create it at once and one of them fails.
        for attempt in 0..2 {
            let installed = self.installed("ledger", "SELECT, INSERT").await?;
            if installed.usable {
                self.database.ledger_is_ready.store(true, Ordering::Release);
                return Ok(());
            }
            if installed.table {
                return Err(self.forbidden("permission denied for table runbook.ledger", &installed));
            }
            let create = format!("{}{CREATE_LEDGER}", if installed.schema { "" } else { CREATE_SCHEMA });
            match self.say(&create).await {
                Err(TargetError::Sql(error)) if error.code == "42501" => return Err(self.forbidden(&error.message, &installed)),
                Err(TargetError::Sql(error)) if attempt == 0 && is_race(&error) => {}
                answer => _ = answer?,
            }
        }
        Ok(())
    }

    /// Whether the ledger is there; an error where it could not be made or written.
    pub async fn check_ledger(&mut self) -> Result<bool, TargetError> {
        let installed = self.installed("ledger", "SELECT, INSERT").await?;
        if installed.usable {
            return Ok(true);
        }
        if installed.table {
            return Err(self.forbidden("permission denied for table runbook.ledger", &installed));
        }
        let (query, place) = if installed.schema {
            ("SELECT has_schema_privilege('runbook', 'CREATE') AND has_schema_privilege('runbook', 'USAGE')", "schema runbook")
        } else {
            ("SELECT has_database_privilege(current_database(), 'CREATE')", "database")
        };
        let allowed = self.say(query).await?.into_iter().flatten().next().flatten().is_some_and(|answer| answer == "t");
        if allowed { Ok(false) } else { Err(self.forbidden(&format!("it may not create anything in the {place}"), &installed)) }
    }

    /// What this run has recorded for `step`.
    pub async fn ledger_find(&mut self, step: &str) -> Result<Option<Value>, TargetError> {
        let run = literal(&self.database.run);
        let query = format!("SELECT result FROM runbook.ledger WHERE run = {run} AND step = {}", literal(step));
        match self.say(&query).await {
            Ok(rows) => {
                Ok(rows.into_iter().flatten().next().flatten().map(|text| serde_json::from_str(&text).unwrap_or(Value::String(text))))
            }
            // Nobody has recorded anything yet.
            Err(TargetError::Sql(error)) if matches!(error.code.as_str(), "42P01" | "3F000") => Ok(None),
            Err(TargetError::Sql(error)) if error.code == "42501" => {
                Err(self.forbidden(&error.message, &Installed { schema: true, table: true, usable: false }))
            }
            Err(error) => Err(error),
        }
    }

    /// A condition that holds while the run lock does.
    pub fn lock_condition(&self) -> Result<String, TargetError> {
        Ok(self.database.lock_condition())
    }

    /// Records `step` in the open transaction, provided that the run lock is held.
    pub async fn ledger_record(&mut self, step: &str, result: &Value) -> Result<(), TargetError> {
        let condition = self.database.lock_condition();
        let insert = format!(
            "INSERT INTO runbook.ledger (run, step, result) SELECT {}, {}, {} WHERE {condition} RETURNING true",
            literal(&self.database.run),
            literal(step),
            literal(&result.to_string()),
        );
        if self.say(&insert).await?.is_empty() {
            return Err(self.database.lock_lost("another session may have it; nothing was committed"));
        }
        Ok(())
    }

    async fn installed(&mut self, table: &str, privileges: &str) -> Result<Installed, TargetError> {
        let rows = self.say(&installed_query(table, privileges)).await?;
        Ok(Installed::read(rows))
    }

    fn forbidden(&self, message: &str, installed: &Installed) -> TargetError {
        let user = identifier(&self.identity().user);
        let mut statements = Vec::new();
        if !installed.schema {
            statements.push(CREATE_SCHEMA.to_owned());
        }
        if !installed.table {
            statements.push(CREATE_LEDGER.to_owned());
        }
        statements.push(format!("GRANT USAGE ON SCHEMA runbook TO {user};"));
        statements.push(format!("GRANT SELECT, INSERT ON runbook.ledger TO {user};"));
        TargetError::LedgerForbidden {
            connection: self.database.spec.name.clone(),
            role: self.identity().user.clone(),
            message: message.to_owned(),
            statements,
        }
    }
}

impl Installed {
    fn read(rows: super::connect::TextRows) -> Self {
        let mut row = rows.into_iter().flatten();
        let mut next = || row.next().flatten().is_some_and(|text| text == "t");
        Self { schema: next(), table: next(), usable: next() }
    }
}

fn installed_query(table: &str, privileges: &str) -> String {
    let usable = privileges.split(", ").map(|privilege| format!("has_table_privilege(c.oid, '{privilege}')")).collect::<Vec<_>>();
    format!(
        "SELECT n.oid IS NOT NULL, c.oid IS NOT NULL, coalesce(has_schema_privilege(n.oid, 'USAGE') AND {}, false) \
         FROM (SELECT 1) one LEFT JOIN pg_catalog.pg_namespace n ON n.nspname = 'runbook' \
         LEFT JOIN pg_catalog.pg_class c ON c.relnamespace = n.oid AND c.relname = '{table}'",
        usable.join(" AND ")
    )
}

/// Somebody else created the same at the same moment.
fn is_race(error: &SqlError) -> bool {
    matches!(error.code.as_str(), "23505" | "42P06" | "42P07" | "42710")
}

impl Database {
    /// The stamp, whatever environment the playbook expects.
    pub async fn read_stamp(&self) -> Result<Stamp, TargetError> {
        Ok(self.open("runbook/stamp").await?.2)
    }

    /// Stamps the target. Everybody may read the stamp: every run checks it.
    pub async fn stamp(&self, environment: &str) -> Result<(), TargetError> {
        let (mut connected, identity, stamp) = self.open("runbook/stamp").await?;
        let unstamped = crate::target::ConnectionSpec { environment: None, ..self.spec.clone() };
        let mismatches = identity.mismatches(&unstamped, &stamp);
        if !mismatches.is_empty() {
            return Err(TargetError::Identity { connection: self.spec.name.clone(), mismatches });
        }
        let connection = &mut connected.connection;
        let rows =
            text_rows(connection, &installed_query("environment", "SELECT")).await.map_err(|error| self.refused(&error, &identity))?;
        let installed = Installed::read(rows);
        let mut sql = String::new();
        if !installed.schema {
            sql.push_str(CREATE_SCHEMA);
        }
        if !installed.table {
            sql.push_str(CREATE_STAMP);
            sql.push_str("GRANT USAGE ON SCHEMA runbook TO PUBLIC; GRANT SELECT ON runbook.environment TO PUBLIC;");
        }
        let cluster = connected.about.system_identifier.as_deref().map_or_else(|| "NULL".to_owned(), literal);
        sql.push_str(&format!(
            "INSERT INTO runbook.environment (name, database_oid, system_identifier) VALUES ({}, {}, {cluster}) \
             ON CONFLICT (single) DO UPDATE SET name = excluded.name, database_oid = excluded.database_oid, \
             system_identifier = excluded.system_identifier, stamped_at = now(), stamped_by = current_user",
            literal(environment),
            connected.about.database_oid,
        ));
        text_rows(connection, &sql).await.map_err(|error| self.refused(&error, &identity))?;
        Ok(())
    }

    fn refused(&self, error: &sqlx::Error, identity: &Identity) -> TargetError {
        if failure::ends_session(error) {
            return self.lost(&words(error), code(error));
        }
        let mut refused = failure::sql_error(error);
        if refused.code == "42501" {
            let (database, user) = (identifier(&identity.database), identifier(&identity.user));
            refused.hint = Some(format!(
                "Let the owner of the database stamp it, or an administrator run: GRANT CREATE ON DATABASE {database} TO {user};"
            ));
        }
        TargetError::Sql(Box::new(refused))
    }
}

/// Reads the stamp on a connection that has just been opened.
pub async fn stamp(connection: &mut PgConnection, about: &About) -> Result<Stamp, sqlx::Error> {
    match about.stamp_readable {
        None => return Ok(Stamp::Missing),
        Some(false) => return Ok(Stamp::Unreadable),
        Some(true) => {}
    }
    let rows = text_rows(connection, "SELECT name, database_oid, system_identifier FROM runbook.environment").await?;
    let Some([Some(name), oid, identifier]) = rows.first().map(Vec::as_slice) else { return Ok(Stamp::Missing) };
    let same_database = oid.as_ref() == Some(&about.database_oid);
    let same_cluster = identifier.is_none() || about.system_identifier.is_none() || *identifier == about.system_identifier;
    Ok(if same_database && same_cluster { Stamp::Environment(name.clone()) } else { Stamp::Foreign(name.clone()) })
}
