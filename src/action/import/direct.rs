//! The short way: COPY into the table itself, so that every row is written once.
//!
//! The file is read twice instead of being staged. The first time only judges it, so the
//! gate is passed, and whoever is asked has answered, before a transaction is open and
//! before anything is written; the second time its good rows go straight into the table,
//! in one transaction with the ledger. Where rows must be compared with others first
//! (references, duplicates that are no error) or noted by keys that the table gives them,
//! and where COPY would behave unlike INSERT, the rows are staged.

use super::Import;
use super::catalogue::Table;
use super::fields::OnDuplicate;
use super::load::{Load, Staged};
use super::parse::{self, Job, ParseError, Parsing};
use super::write::Written;
use crate::action::effect::{cancellable, cancelled};
use crate::outcome::{ErrorKind, StepError, StepResult};
use crate::target::{Access, Kind, Session, TargetError};
use crate::text::count;

/// Whether the rows of this import can go straight into the table.
pub(super) fn is_possible(import: &Import, table: &Table, kind: Kind) -> bool {
    let columns = import.columns.keys().map(|name| name.value.as_str());
    kind == Kind::Postgres && may_be_possible(import) && table.copies_as_it_inserts(columns)
}

/// Whether they can as far as the playbook tells.
pub(super) fn may_be_possible(import: &Import) -> bool {
    let at_once = !import.check_only && import.batch_size.is_none();
    at_once && import.on_duplicate == OnDuplicate::Fail && import.run_column.is_some() && import.references().is_empty()
}

impl Load<'_> {
    pub(super) async fn run_directly(&mut self, session: &mut Session) -> Result<StepResult, StepError> {
        let mut checked = self.read_only().await?;
        self.publish_rejects(&mut checked)?;
        let mut findings = self.findings(&checked);
        self.complete_enough(&checked)?;
        findings.extend(self.gate(&checked).await?);
        match self.copy_into_table(session, &checked, &findings).await {
            // Rows that the table refuses are found, and told, among staged ones.
            Err(TargetError::Sql(_)) if !self.effect.context.cancel.is_cancelled() => {
                self.job.rejects = None;
                self.stage(session).await?;
                self.write(session, &checked, findings).await
            }
            Err(error) => Err(self.placed(error)),
            Ok(Err(error)) => Err(error),
            Ok(Ok(result)) => self.commit(session, result).await,
        }
    }

    /// The file from its beginning to its end, for nothing but its faults.
    async fn read_only(&self) -> Result<Staged, StepError> {
        let stop = self.effect.context.cancel.child_token();
        let _stop = stop.clone().drop_guard();
        let Parsing { chunks, progress, handle } = parse::start(Job { sends: false, ..self.job.clone() }, stop);
        let parsed = self.watched(handle, &progress, "checked").await;
        drop(chunks);
        match parsed.map_err(|lost| StepError::new(ErrorKind::Io, lost.to_string()))? {
            Ok(parsed) => Ok(Staged::new(parsed)),
            Err(ParseError::Stopped) => Err(cancelled()),
            Err(error) => Err(self.not_read(&error)),
        }
    }

    /// All rows and their proof, in a transaction that is left open.
    async fn copy_into_table(
        &self,
        session: &mut Session,
        checked: &Staged,
        findings: &[String],
    ) -> Result<Result<StepResult, StepError>, TargetError> {
        let stop = self.effect.context.cancel.child_token();
        let _stop = stop.clone().drop_guard();
        let job = Job { rejects: None, run: Some(self.statements.run.clone()), ..self.job.clone() };
        session.begin(Access::ReadWrite, None).await?;
        let Parsing { mut chunks, progress, handle } = parse::start(job, stop);
        let copy = self.statements.copy_into_table();
        let canceller = session.canceller();
        let copied = {
            let work = cancellable(&canceller, &self.effect.context.cancel, session.copy(&copy, &mut chunks));
            self.watched(work, &progress, "loaded").await
        };
        drop(chunks);
        let parsed = handle.await;
        let rows = match (copied, parsed) {
            (Err(error), _) => {
                session.rollback().await;
                return Err(error);
            }
            (Ok(Some(rows)), Ok(Ok(parsed))) if checked.is_of_the_same_file(&parsed) => rows,
            (_, read) => {
                session.rollback().await;
                return Ok(Err(match read {
                    Ok(Err(ParseError::Stopped)) => cancelled(),
                    Ok(Err(error)) => self.not_read(&error),
                    Ok(Ok(_)) => self.not_read(&ParseError::Changed),
                    Err(lost) => StepError::new(ErrorKind::Io, lost.to_string()),
                }));
            }
        };
        self.effect.context.progress(format!("committing {}", count(rows, "row")), None);
        let written = Written { inserted: rows, updated: 0, skipped: checked.rows.saturating_sub(rows) };
        let result = self.whole_result(checked, &written, findings.to_vec());
        if let Err(error) = self.effect.record(session, &result).await {
            session.rollback().await;
            return Err(error);
        }
        Ok(Ok(result))
    }
}
