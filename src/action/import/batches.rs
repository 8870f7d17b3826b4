//! Loading in batches, each a transaction that also moves the step's cursor in the target.
//!
//! What survives a crash is the file: it is staged again, its digest shows that it is the
//! same, and rows up to the line of the cursor are in the table already. So nothing that is
//! staged has to outlive its session, and nothing is left behind by one that was killed.

use std::time::Duration;

use super::catalogue::query;
use super::fields::OnDuplicate;
use super::load::{Load, SHOWN, Staged};
use super::write::Written;
use crate::outcome::{Aftermath, ErrorKind, Sample, StepError, StepResult};
use crate::target::{Access, Kind, Session, TargetError, text_literal};
use crate::text::count;

/// How often in a row a batch may fail before the step does.
const PATIENCE: u32 = 30;
/// The longest wait before another attempt.
const LONGEST_WAIT: f64 = 3.0;

/// How far the batches are.
#[derive(Debug)]
pub(super) struct Standing {
    fingerprint: String,
    /// The rows of all lines up to this one are loaded.
    pub(super) line: u64,
    written: Written,
}

/// The rows of one batch: up to and with a line.
struct Next {
    last: u64,
    rows: u64,
}

impl Load<'_> {
    /// What earlier batches of this step have left, if any was committed.
    pub(super) async fn standing(&self, session: &mut Session, staged: &Staged) -> Result<Option<Standing>, StepError> {
        let select = format!("SELECT fingerprint, line, inserted, updated, skipped FROM {} WHERE {}", self.importing(), self.this_step());
        let rows = query(session, &select, &[]).await?;
        let Some(row) = rows.first() else { return Ok(None) };
        let number = |index: usize| row.get(index).and_then(serde_json::Value::as_u64).unwrap_or_default();
        let standing = Standing {
            fingerprint: row.first().and_then(|value| value.as_str()).unwrap_or_default().to_owned(),
            line: number(1),
            written: Written { inserted: number(2), updated: number(3), skipped: number(4) },
        };
        if standing.fingerprint == self.fingerprint(staged) {
            return Ok(Some(standing));
        }
        let message = "the file or the table is not the one whose batches were begun";
        Err(StepError::new(ErrorKind::Sql, message)
            .fact("so far", format!("the rows up to line {} are loaded", standing.line))
            .hint("put the file back as it was and resume, or take the run's rows back and load the new file in a new run")
            .at(self.place())
            .aftermath(Aftermath::Partial))
    }

    /// All batches from the cursor on, and the proof that they are done.
    pub(super) async fn write_in_batches(
        &self,
        session: &mut Session,
        staged: &Staged,
        standing: Option<Standing>,
        findings: Vec<String>,
    ) -> Result<StepResult, StepError> {
        if self.statements.kind == Kind::Postgres {
            self.execute(session, &format!("ANALYZE {}", self.statements.staging())).await?;
        }
        let mut standing = match standing {
            Some(standing) => standing,
            None => {
                self.refuse_duplicates(session).await?;
                Standing { fingerprint: self.fingerprint(staged), line: 0, written: Written::default() }
            }
        };
        self.execute(session, self.statements.index_staging()).await?;
        let mut size = self.import.batch_size.map_or(u64::MAX, std::num::NonZeroU64::get);
        let mut failures = 0;
        while let Some(next) = self.next_batch(session, standing.line, size).await? {
            self.stop_between(&standing, staged)?;
            let Err(error) = self.batch(session, &mut standing, &next).await else {
                failures = 0;
                self.show_batches(&standing, staged);
                continue;
            };
            failures += 1;
            let too_long = error.code.as_deref() == Some("57014") && size > 1;
            if failures > PATIENCE || !(too_long || in_the_way(&error)) || self.effect.context.cancel.is_cancelled() {
                let error = self.with_duplicates(session, error, standing.line).await;
                return Err(so_far(error, &standing));
            }
            if too_long {
                size = size.min(next.rows).div_ceil(2);
            }
            self.wait_after(&error, failures).await;
        }
        self.finish_batches(session, staged, &standing, findings).await
    }

    /// Duplicates that are there already are found before the first batch, while nothing is loaded.
    async fn refuse_duplicates(&self, session: &mut Session) -> Result<(), StepError> {
        if self.statements.on_duplicate != OnDuplicate::Fail || self.statements.key.is_empty() {
            return Ok(());
        }
        let rows = query(session, &self.statements.duplicates(0, SHOWN), &[]).await?;
        if rows.is_empty() {
            return Ok(());
        }
        let mut error = StepError::new(ErrorKind::Expectation, "rows of the file would be there twice; nothing was loaded")
            .hint("say what shall happen to duplicates: `on_duplicate: skip` or `update`, with `key`")
            .at(self.place());
        error.sample = Some(Sample { columns: self.columns_of_duplicates(), total: rows.len() as u64, rows });
        Err(error)
    }

    async fn next_batch(&self, session: &mut Session, after: u64, size: u64) -> Result<Option<Next>, StepError> {
        let rows = query(session, &self.statements.next_lines(after, size.min(i64::MAX as u64)), &[]).await?;
        Ok(rows.first().map(|row| {
            let number = |index: usize| row.get(index).and_then(serde_json::Value::as_u64).unwrap_or_default();
            Next { last: number(0), rows: number(1) }
        }))
    }

    /// One transaction: the rows, what attributes them, and the cursor.
    async fn batch(&self, session: &mut Session, standing: &mut Standing, next: &Next) -> Result<(), StepError> {
        session.begin(Access::ReadWrite, None).await?;
        let statements = super::statements::Statements { lines: Some((standing.line, next.last)), ..self.statements.clone() };
        let moved = async {
            let written = self.insert(session, &statements, next.rows).await?;
            self.move_cursor(session, standing, next, &written).await?;
            Ok(written)
        };
        let written: Written = match moved.await {
            Ok(written) => written,
            Err(error) => {
                session.rollback().await;
                return Err(error);
            }
        };
        session.commit().await.map_err(|error| match error {
            // The cursor tells how it ended, to whoever goes on.
            TargetError::CommitUnknown { connection, message, .. } => {
                self.placed(TargetError::Lost { connection, message, sqlstate: None, effect_unknown: false })
            }
            other => self.placed(other),
        })?;
        standing.line = next.last;
        standing.written.add(&written);
        Ok(())
    }

    /// Only from where this batch began, and provided that the run lock is held: whatever an
    /// earlier session may still have committed, no row is loaded twice.
    async fn move_cursor(&self, session: &mut Session, standing: &Standing, next: &Next, written: &Written) -> Result<(), StepError> {
        let (table, line, lock) = (self.importing(), next.last, session.lock_condition()?);
        let Written { inserted, updated, skipped } = written;
        let statement = if standing.line == 0 {
            let (run, step, fingerprint) = (self.run_text(), self.step_text(), text_literal(&standing.fingerprint));
            format!(
                "INSERT INTO {table} (run, step, fingerprint, line, inserted, updated, skipped) \
                 SELECT {run}, {step}, {fingerprint}, {line}, {inserted}, {updated}, {skipped} WHERE {lock}"
            )
        } else {
            format!(
                "UPDATE {table} SET line = {line}, inserted = inserted + {inserted}, updated = updated + {updated}, \
                 skipped = skipped + {skipped} WHERE {} AND line = {} AND {lock}",
                self.this_step(),
                standing.line
            )
        };
        if self.execute(session, &statement).await? == 1 {
            return Ok(());
        }
        Err(self.placed(TargetError::LockLost {
            connection: self.effect.connection.to_owned(),
            message: "another session may have it; the batch was rolled back".into(),
        }))
    }

    /// Everything is loaded: the ledger says so from now on, and the cursor is gone.
    async fn finish_batches(
        &self,
        session: &mut Session,
        staged: &Staged,
        standing: &Standing,
        findings: Vec<String>,
    ) -> Result<StepResult, StepError> {
        let result = self.whole_result(staged, &standing.written, findings);
        let recorded = async {
            session.begin(Access::ReadWrite, None).await?;
            self.execute(session, &format!("DELETE FROM {} WHERE {}", self.importing(), self.this_step())).await?;
            Ok::<_, StepError>(self.effect.record(session, &result).await?)
        };
        if let Err(error) = recorded.await {
            session.rollback().await;
            return Err(so_far(error, standing));
        }
        self.commit(session, result).await.map_err(|error| match error.aftermath {
            Aftermath::Unchanged => so_far(error, standing),
            _ => error,
        })
    }

    /// At the first interrupt: what is loaded stays, and a resume goes on.
    fn stop_between(&self, standing: &Standing, staged: &Staged) -> Result<(), StepError> {
        let context = self.effect.context;
        if !context.finish_up.is_cancelled() && !context.cancel.is_cancelled() {
            return Ok(());
        }
        let message = format!("stopped between two batches, {} of {} loaded", standing.written.all(), count(staged.rows, "row"));
        let error = StepError::new(ErrorKind::Cancelled, message).hint("`runbook resume` goes on with the next batch.");
        Err(so_far(error, standing))
    }

    fn show_batches(&self, standing: &Standing, staged: &Staged) {
        let done = standing.written.all();
        let text = format!("{done} of {} loaded", count(staged.rows, "row"));
        self.effect.context.progress(text, (staged.rows > 0).then(|| (done as f64 / staged.rows as f64).min(1.0)));
    }

    async fn wait_after(&self, error: &StepError, failures: u32) {
        let context = self.effect.context;
        context.output.note(&format!("{}; the batch is tried again", error.message));
        wait_before_another(context, failures).await;
    }

    fn fingerprint(&self, staged: &Staged) -> String {
        format!("{} {}", staged.digest().unwrap_or_default(), self.import.table.value)
    }

    fn importing(&self) -> &'static str {
        match self.statements.kind {
            Kind::Postgres => "runbook.importing",
            Kind::Sqlite => "runbook_importing",
        }
    }

    fn run_text(&self) -> String {
        text_literal(&self.statements.run)
    }

    fn step_text(&self) -> String {
        text_literal(&self.statements.step)
    }

    fn this_step(&self) -> String {
        format!("run = {} AND step = {}", self.run_text(), self.step_text())
    }
}

/// Waits longer with each failure; less if the step is cancelled.
pub(super) async fn wait_before_another(context: &crate::action::StepContext, failures: u32) {
    let wait = (0.05 * f64::from(1_u32 << failures.min(6))).min(LONGEST_WAIT) * (0.5 + context.clock.random() / 2.0);
    tokio::select! {
        () = tokio::time::sleep(Duration::from_secs_f64(wait)) => {}
        () = context.cancel.cancelled() => {}
    }
}

/// Somebody else was: the same batch may pass later.
fn in_the_way(error: &StepError) -> bool {
    matches!(error.code.as_deref(), Some("55P03" | "40P01" | "40001" | "SQLITE_BUSY" | "SQLITE_LOCKED"))
}

/// What earlier batches did stays.
fn so_far(error: StepError, standing: &Standing) -> StepError {
    if standing.line == 0 {
        return error;
    }
    error.fact("so far", format!("the rows up to line {} are loaded", standing.line)).aftermath(Aftermath::Partial)
}
