//! The short way: COPY into the table itself, so that every row is written once.
//!
//! Rows are sent while the file is still read, in one transaction with the ledger, which is
//! committed only when the whole file was judged to be good: neither the transaction nor its
//! locks last longer than the COPY itself. As soon as the gate would stop the file, or ask
//! somebody, all is rolled back; then it is read once more from its beginning, only to be
//! judged, and copied after that. The first megabytes are judged before any row is sent, so
//! only a file that begins well and turns bad leaves room in the table for VACUUM to take
//! back, and the step says so. Where rows must be compared with others first (references,
//! duplicates that are no error) or noted by keys that the table gives them, and where COPY
//! would behave unlike INSERT, the rows are staged.

use super::Import;
use super::catalogue::Table;
use super::fields::OnDuplicate;
use super::load::{Load, Staged};
use super::parse::{self, Demand, Job, ParseError, Parsed, Parsing};
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

/// What became of copying a file while it is read.
enum Copied {
    /// The transaction is open, with the ledger's row in it.
    All(Box<StepResult>),
    /// It has to be judged as a whole first; rows were written before, and rolled back.
    Unfit { wrote: bool },
    /// The table refuses a row.
    Refused,
}

impl Load<'_> {
    pub(super) async fn run_directly(&mut self, session: &mut Session) -> Result<StepResult, StepError> {
        let wrote = match self.copy_while_reading(session).await? {
            Copied::All(result) => return self.commit(session, *result).await,
            // Such rows are found, and told, among staged ones.
            Copied::Refused => return self.run_staged(session).await,
            Copied::Unfit { wrote } => wrote,
        };
        let mut checked = self.read_only().await?;
        self.publish_rejects(&mut checked)?;
        let mut findings = self.findings(&checked);
        if wrote {
            let finding = "the file begins well and turns bad: rows were copied before that and rolled back; VACUUM takes their room back";
            findings.push(finding.to_owned());
        }
        let told = |error: StepError| {
            if wrote { error.fact("besides", "rows copied before were rolled back; VACUUM takes their room back") } else { error }
        };
        self.complete_enough(&checked).map_err(told)?;
        findings.extend(self.gate(&checked).await.map_err(told)?);
        match self.copy_into_table(session, &checked, &findings).await {
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

    /// Good until its end, the file is read once.
    async fn copy_while_reading(&self, session: &mut Session) -> Result<Copied, StepError> {
        let completeness = self.import.columns.values().map(|column| column.completeness.map_or(0.0, |share| share.0));
        let demand = Demand { rejected: self.import.rejects.warn_ratio.0, complete: completeness.collect() };
        let job = Job { run: Some(self.statements.run.clone()), demand: Some(demand), ..self.job.clone() };
        session.begin(Access::ReadWrite, None).await?;
        let (rows, parsed) = match self.copy_all(session, job).await {
            (Ok(Some(rows)), Ok(parsed)) => (rows, parsed),
            (copied, read) => {
                session.rollback().await;
                return match (copied, read) {
                    (Err(TargetError::Sql(_)), _) if !self.effect.context.cancel.is_cancelled() => Ok(Copied::Refused),
                    (Err(error), _) => Err(self.placed(error)),
                    (_, Err(ParseError::Unfit { sent })) => Ok(Copied::Unfit { wrote: sent }),
                    (_, Err(ParseError::Stopped) | Ok(_)) => Err(cancelled()),
                    (_, Err(error)) => Err(self.not_read(&error)),
                };
            }
        };
        let mut checked = Staged::new(parsed);
        match self.record_copied(session, &mut checked, rows).await {
            Ok(result) => Ok(Copied::All(Box::new(result))),
            Err(error) => {
                session.rollback().await;
                Err(error)
            }
        }
    }

    async fn record_copied(&self, session: &mut Session, checked: &mut Staged, rows: u64) -> Result<StepResult, StepError> {
        self.effect.context.progress(format!("committing {}", count(rows, "row")), None);
        self.publish_rejects(checked)?;
        let written = Written { inserted: rows, updated: 0, skipped: checked.rows.saturating_sub(rows) };
        let result = self.whole_result(checked, &written, self.findings(checked));
        self.effect.record(session, &result).await?;
        Ok(result)
    }

    /// What the server says of the rows, and how the file was read.
    async fn copy_all(&self, session: &mut Session, job: Job) -> (Result<Option<u64>, TargetError>, Result<Parsed, ParseError>) {
        let stop = self.effect.context.cancel.child_token();
        let _stop = stop.clone().drop_guard();
        let Parsing { mut chunks, progress, handle } = parse::start(job, stop);
        let copy = self.statements.copy_into_table();
        let canceller = session.canceller();
        let copied = {
            let work = cancellable(&canceller, &self.effect.context.cancel, session.copy(&copy, &mut chunks));
            self.watched(work, &progress, "loaded").await
        };
        drop(chunks);
        (copied, handle.await.unwrap_or_else(|lost| Err(ParseError::Io(std::io::Error::other(lost)))))
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
        let job = Job { rejects: None, run: Some(self.statements.run.clone()), ..self.job.clone() };
        session.begin(Access::ReadWrite, None).await?;
        let rows = match self.copy_all(session, job).await {
            (Ok(Some(rows)), Ok(parsed)) if checked.is_of_the_same_file(&parsed) => rows,
            (copied, read) => {
                session.rollback().await;
                return match (copied, read) {
                    (Err(error), _) => Err(error),
                    (_, Err(ParseError::Stopped)) => Ok(Err(cancelled())),
                    (_, Err(error)) => Ok(Err(self.not_read(&error))),
                    (_, Ok(_)) => Ok(Err(self.not_read(&ParseError::Changed))),
                };
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
