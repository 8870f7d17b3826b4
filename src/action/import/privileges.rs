//! What the step needs in the target beside the table: runbook's own tables, and a
//! temporary one. Found out before the file is read, with the GRANTs that are missing.

use super::catalogue::query;
use super::load::Load;
use super::statements::table_name;
use crate::outcome::StepError;
use crate::target::{Kind, Session, identifier};

/// A table of runbook's own in a schema `runbook`, and what is done with it there.
struct Own {
    name: &'static str,
    create: &'static [&'static str],
    privileges: &'static str,
}

impl Load<'_> {
    /// Creates what is missing of runbook's tables, or says who must.
    pub(super) async fn ensure_own_tables(&self, session: &mut Session) -> Result<(), StepError> {
        let imported = Own { name: "imported", create: self.statements.create_imported(), privileges: "INSERT" };
        let importing = Own { name: "importing", create: self.statements.create_importing(), privileges: "SELECT, INSERT, UPDATE, DELETE" };
        if !self.statements.noted_by.is_empty() {
            self.ensure(session, &imported).await?;
        }
        if self.import.batch_size.is_some() {
            self.ensure(session, &importing).await?;
        }
        Ok(())
    }

    async fn ensure(&self, session: &mut Session, own: &Own) -> Result<(), StepError> {
        match self.is_usable(session, own).await? {
            Some(true) => return Ok(()),
            Some(false) => {
                let refused = StepError::new(crate::outcome::ErrorKind::Sql, format!("permission denied for table runbook.{}", own.name));
                return Err(self.allowing(session, refused, own, &[]));
            }
            None => {}
        }
        for statement in own.create {
            match self.execute(session, statement).await {
                // Another run creating it at the same moment is as good.
                Err(error) if matches!(error.code.as_deref(), Some("23505" | "42P07")) => {}
                Err(error) if error.code.as_deref() == Some("42501") => return Err(self.allowing(session, error, own, own.create)),
                created => _ = created?,
            }
        }
        Ok(())
    }

    /// `None`: there is no such table.
    async fn is_usable(&self, session: &mut Session, own: &Own) -> Result<Option<bool>, StepError> {
        let look = match self.statements.kind {
            Kind::Postgres => {
                let allowed: Vec<String> =
                    own.privileges.split(", ").map(|privilege| format!("has_table_privilege(c.oid, '{privilege}')")).collect();
                format!(
                    "SELECT {} FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
                     WHERE n.nspname = 'runbook' AND c.relname = '{}'",
                    allowed.join(" AND "),
                    own.name
                )
            }
            Kind::Sqlite => format!("SELECT 1 FROM sqlite_schema WHERE name = 'runbook_{}'", own.name),
        };
        let rows = query(session, &look, &[]).await?;
        Ok(rows.first().map(|row| row.first() != Some(&serde_json::Value::Bool(false))))
    }

    fn allowing(&self, session: &Session, error: StepError, own: &Own, create: &[&str]) -> StepError {
        let role = identifier(&session.identity().user);
        let create: String = create.iter().map(|statement| format!("{statement}; ")).collect();
        error
            .hint(format!("Let an administrator run once: {create}GRANT {} ON runbook.{} TO {role};", own.privileges, own.name))
            .at(self.place())
    }

    /// A staging table that the role may not create: which of the two privileges is missing.
    pub(super) fn staging_allowed(&self, session: &Session, error: StepError) -> StepError {
        if error.code.as_deref() != Some("42501") {
            return error;
        }
        let identity = session.identity();
        let (role, database) = (identifier(&identity.user), identifier(&identity.database));
        let table = table_name(&self.statements.table);
        error.hint(format!(
            "Records are staged in a temporary table like `{table}`. Let an administrator run once: \
             GRANT TEMPORARY ON DATABASE {database} TO {role}; GRANT SELECT, INSERT ON {table} TO {role};"
        ))
    }
}
