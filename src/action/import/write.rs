//! The one transaction of an import: all staged rows and their proof, or nothing.

use serde_json::Value;

use super::catalogue::query;
use super::fields::OnDuplicate;
use super::load::{Load, Staged};
use crate::action::effect::cancellable;
use crate::outcome::{Sample, StepError, StepResult};
use crate::target::{Access, Kind, Session, Statement, TargetError};
use crate::text::count;

/// Duplicates shown with a failure.
const SHOWN: usize = 20;

/// What became of the staged rows.
#[derive(Default)]
pub(super) struct Written {
    pub(super) inserted: u64,
    pub(super) updated: u64,
    pub(super) skipped: u64,
}

impl Load<'_> {
    /// The one transaction: all rows and their proof, or nothing.
    pub(super) async fn write(&self, session: &mut Session, staged: &Staged, findings: Vec<String>) -> Result<StepResult, StepError> {
        self.create_imported(session).await?;
        self.effect.context.progress(format!("loading {}", count(staged.rows, "row")), None);
        session.begin(Access::ReadWrite, None).await?;
        let written = match self.insert(session, staged).await {
            Ok(written) => written,
            Err(error) => {
                session.rollback().await;
                return Err(self.with_duplicates(session, error).await);
            }
        };
        let mut result = self.result(staged, &written);
        result.findings = findings;
        if written.skipped > 0 {
            result.findings.push(format!("{} skipped, for their rows are there already", count(written.skipped, "record")));
        }
        if let Err(error) = self.effect.record(session, &result).await {
            session.rollback().await;
            return Err(error.into());
        }
        match session.commit().await {
            Ok(()) => Ok(result),
            Err(TargetError::CommitUnknown { pid, .. }) if self.effect.ledger => self.effect.resolve(pid, result).await,
            Err(error) => Err(self.placed(error)),
        }
    }

    async fn create_imported(&self, session: &mut Session) -> Result<(), StepError> {
        if self.statements.noted_by.is_empty() || !query(session, self.statements.find_imported(), &[]).await?.is_empty() {
            return Ok(());
        }
        for statement in self.statements.create_imported() {
            let created = self.execute(session, statement).await;
            // Another run creating it at the same moment is as good.
            created.or_else(|error| if matches!(error.code.as_deref(), Some("23505" | "42P07")) { Ok(0) } else { Err(error) })?;
        }
        Ok(())
    }

    async fn insert(&self, session: &mut Session, staged: &Staged) -> Result<Written, StepError> {
        let update = self.statements.on_duplicate == OnDuplicate::Update;
        let mut written = Written::default();
        match self.statements.kind {
            Kind::Postgres if update || !self.statements.noted_by.is_empty() => {
                let mut counts = Vec::new();
                let text = self.statements.insert_and_count();
                let mut see = |_: &[crate::outcome::Column], row: Vec<Value>| counts.extend(row.iter().filter_map(Value::as_u64));
                let canceller = session.canceller();
                let statement = Statement::change(&text);
                let done = cancellable(&canceller, &self.effect.context.cancel, session.execute(&statement, &mut see)).await;
                done.map_err(|error| self.placed(error))?;
                written.inserted = counts.first().copied().unwrap_or_default();
                written.updated = counts.get(1).copied().unwrap_or_default();
            }
            Kind::Postgres => written.inserted = self.execute(session, &self.statements.insert()).await?,
            Kind::Sqlite => {
                if update {
                    let mut present = 0;
                    let text = self.statements.count_present();
                    let mut see =
                        |_: &[crate::outcome::Column], row: Vec<Value>| present = row.first().and_then(Value::as_u64).unwrap_or(0);
                    session.execute(&Statement::query(&text), &mut see).await.map_err(|error| self.placed(error))?;
                    written.updated = present;
                }
                if !self.statements.noted_by.is_empty() {
                    self.execute(session, &self.statements.note_new()).await?;
                }
                written.inserted = self.execute(session, &self.statements.insert()).await?.saturating_sub(written.updated);
            }
        }
        written.skipped = staged.rows.saturating_sub(written.inserted + written.updated);
        Ok(written)
    }

    /// Shows which records are there twice, where that is what went wrong.
    async fn with_duplicates(&self, session: &mut Session, error: StepError) -> StepError {
        let unique = matches!(error.code.as_deref(), Some("23505" | "SQLITE_CONSTRAINT_UNIQUE" | "SQLITE_CONSTRAINT_PRIMARYKEY"));
        if !unique || self.statements.on_duplicate != OnDuplicate::Fail {
            return error;
        }
        let mut error = error.hint("say what shall happen to duplicates: `on_duplicate: skip` or `update`, with `key`");
        if !self.statements.key.is_empty()
            && let Ok(rows) = query(session, &self.statements.duplicates(SHOWN), &[]).await
            && !rows.is_empty()
        {
            let columns = ["line".to_owned()].into_iter().chain(self.statements.key.clone()).chain(["there already".to_owned()]).collect();
            error.sample = Some(Sample { columns, total: rows.len() as u64, rows });
        }
        error
    }
}
