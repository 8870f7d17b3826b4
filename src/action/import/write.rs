//! The one transaction of an import: all staged rows and their proof, or nothing.

use serde_json::Value;

use super::catalogue::query;
use super::fields::OnDuplicate;
use super::load::{Load, SHOWN, Staged};
use super::statements::Statements;
use crate::action::effect::cancellable;
use crate::outcome::{Sample, StepError, StepResult};
use crate::target::{Access, Kind, Session, Statement, TargetError};
use crate::text::count;

/// What became of the staged rows.
#[derive(Debug, Default)]
pub(super) struct Written {
    pub(super) inserted: u64,
    pub(super) updated: u64,
    pub(super) skipped: u64,
}

impl Written {
    pub(super) fn all(&self) -> u64 {
        self.inserted + self.updated + self.skipped
    }

    pub(super) fn add(&mut self, more: &Self) {
        self.inserted += more.inserted;
        self.updated += more.updated;
        self.skipped += more.skipped;
    }
}

impl Load<'_> {
    /// The one transaction: all rows and their proof, or nothing.
    pub(super) async fn write(&self, session: &mut Session, staged: &Staged, findings: Vec<String>) -> Result<StepResult, StepError> {
        self.effect.context.progress(format!("loading {}", count(staged.rows, "row")), None);
        session.begin(Access::ReadWrite, None).await?;
        let written = match self.insert(session, &self.statements, staged.rows).await {
            Ok(written) => written,
            Err(error) => {
                session.rollback().await;
                return Err(self.with_duplicates(session, error, 0).await);
            }
        };
        let result = self.whole_result(staged, &written, findings);
        if let Err(error) = self.effect.record(session, &result).await {
            session.rollback().await;
            return Err(error.into());
        }
        self.commit(session, result).await
    }

    pub(super) fn whole_result(&self, staged: &Staged, written: &Written, findings: Vec<String>) -> StepResult {
        let mut result = StepResult { findings, ..self.result(staged, written) };
        if written.skipped > 0 {
            result.findings.push(format!("{} skipped, for their rows are there already", count(written.skipped, "record")));
        }
        result
    }

    /// Commits the transaction that holds the ledger's row.
    pub(super) async fn commit(&self, session: &mut Session, result: StepResult) -> Result<StepResult, StepError> {
        match session.commit().await {
            Ok(()) => Ok(result),
            Err(TargetError::CommitUnknown { pid, .. }) if self.effect.ledger => self.effect.resolve(pid, result).await,
            Err(error) => Err(self.placed(error)),
        }
    }

    /// What the statements are limited to, `rows` in all.
    pub(super) async fn insert(&self, session: &mut Session, statements: &Statements, rows: u64) -> Result<Written, StepError> {
        let update = statements.on_duplicate == OnDuplicate::Update;
        let mut written = Written::default();
        match statements.kind {
            Kind::Postgres if update || !statements.noted_by.is_empty() => {
                let mut counts = Vec::new();
                let text = statements.insert_and_count();
                let mut see = |_: &[crate::outcome::Column], row: Vec<Value>| counts.extend(row.iter().filter_map(Value::as_u64));
                let canceller = session.canceller();
                let statement = Statement::change(&text);
                let done = cancellable(&canceller, &self.effect.context.cancel, session.execute(&statement, &mut see)).await;
                done.map_err(|error| self.placed(error))?;
                written.inserted = counts.first().copied().unwrap_or_default();
                written.updated = counts.get(1).copied().unwrap_or_default();
            }
            Kind::Postgres => written.inserted = self.execute(session, &statements.insert()).await?,
            Kind::Sqlite => {
                if update {
                    let mut present = 0;
                    let text = statements.count_present();
                    let mut see =
                        |_: &[crate::outcome::Column], row: Vec<Value>| present = row.first().and_then(Value::as_u64).unwrap_or(0);
                    session.execute(&Statement::query(&text), &mut see).await.map_err(|error| self.placed(error))?;
                    written.updated = present;
                }
                if !statements.noted_by.is_empty() {
                    self.execute(session, &statements.note_new()).await?;
                }
                written.inserted = self.execute(session, &statements.insert()).await?.saturating_sub(written.updated);
            }
        }
        written.skipped = rows.saturating_sub(written.inserted + written.updated);
        Ok(written)
    }

    /// Shows which records are there twice, where that is what went wrong.
    pub(super) async fn with_duplicates(&self, session: &mut Session, error: StepError, after: u64) -> StepError {
        let unique = matches!(error.code.as_deref(), Some("23505" | "SQLITE_CONSTRAINT_UNIQUE" | "SQLITE_CONSTRAINT_PRIMARYKEY"));
        if !unique || self.statements.on_duplicate != OnDuplicate::Fail {
            return error;
        }
        let mut error = error.hint("say what shall happen to duplicates: `on_duplicate: skip` or `update`, with `key`");
        if !self.statements.key.is_empty()
            && let Ok(rows) = query(session, &self.statements.duplicates(after, SHOWN), &[]).await
            && !rows.is_empty()
        {
            error.sample = Some(Sample { columns: self.columns_of_duplicates(), total: rows.len() as u64, rows });
        }
        error
    }

    pub(super) fn columns_of_duplicates(&self) -> Vec<String> {
        ["line".to_owned()].into_iter().chain(self.statements.key.clone()).chain(["there already".to_owned()]).collect()
    }
}
