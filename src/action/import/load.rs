//! Loading: staging, references and the gate. The transaction that counts is in `write`.

use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::sync::mpsc::unbounded_channel;

use super::Import;
use super::batches::wait_before_another;
use super::catalogue::{Table, query};
use super::check::{Problem, RowFormat, Rule};
use super::direct;
use super::fields::OnDuplicate;
use super::parse::{self, Again, Found, Job, ParseError, Parsed, Parsing, Progress, share};
use super::statements::Statements;
use super::write::Written;
use crate::action::effect::{Effect, cancellable, cancelled, show};
use crate::action::{Prompt, PromptKind, StepContext};
use crate::outcome::{ErrorKind, StepError, StepResult};
use crate::target::{Access, Kind, LedgerMode, Session, Statement, TargetError};
use crate::text::count;
use crate::units::{ByteSize, Percent};

/// How often progress is shown.
const TICK: Duration = Duration::from_millis(500);
/// Rows with unknown references that are looked at together.
const PAGE: usize = 5000;

/// Duplicates shown with a failure.
pub(super) const SHOWN: usize = 20;
/// How often a connection that is lost between batches is made again.
const RECONNECTS: u32 = 8;

pub(super) async fn run(import: &Import, context: &StepContext) -> Result<StepResult, StepError> {
    let connection = context.connection(import.connection.as_ref().map(|name| name.value.as_str()))?;
    let ledger = !import.check_only && context.targets.ledger_mode(connection)? == LedgerMode::Target;
    let in_batches = import.batch_size.is_some() && !import.check_only;
    if in_batches && !ledger {
        let message = format!("connection `{connection}` keeps no ledger, and batches need their place in it");
        return Err(StepError::new(ErrorKind::Connection, message)
            .hint("Remove `ledger: none` from the connection, or `batch_size` from the step to load everything in one transaction."));
    }
    let mut lost = 0;
    loop {
        match once(import, Effect { context, connection, ledger }).await {
            // Between batches the cursor knows everything, so a new session simply goes on.
            Err(error) if in_batches && error.transient && error.kind == ErrorKind::Connection && lost < RECONNECTS => {
                lost += 1;
                context.output.note(&format!("{}; going on with a new connection", error.message));
                wait_before_another(context, lost).await;
            }
            outcome => return outcome,
        }
    }
}

/// On one connection.
async fn once(import: &Import, effect: Effect<'_>) -> Result<StepResult, StepError> {
    let context = effect.context;
    let mut session = effect.connect(&import.session(context)?).await?;
    let (sender, notices) = unbounded_channel();
    session.forward_notices(sender);
    let work = async {
        let mut session = session;
        if let Some(result) = effect.earlier(&mut session).await? {
            return Ok(result);
        }
        let mut load = Load::prepare(import, effect, &mut session).await?;
        let outcome = load.run(&mut session).await;
        load.forget_staged(&mut session).await;
        outcome
    };
    let (outcome, ()) = tokio::join!(work, show(notices, context));
    outcome
}

/// One run of the action.
pub(super) struct Load<'a> {
    pub(super) import: &'a Import,
    pub(super) effect: Effect<'a>,
    pub(super) statements: Statements,
    pub(super) job: Job,
    /// Whether the rows go straight into the table.
    directly: bool,
}

/// What is staged.
pub(super) struct Staged {
    parsed: Parsed,
    /// Rows in the staging table.
    pub(super) rows: u64,
    reject_file: Option<PathBuf>,
}

impl Staged {
    pub(super) fn new(parsed: Parsed) -> Self {
        Self { rows: parsed.accepted, parsed, reject_file: None }
    }

    /// Whether another reading found the same.
    pub(super) fn is_of_the_same_file(&self, again: &Parsed) -> bool {
        (self.parsed.state, self.parsed.accepted) == (again.state, again.accepted)
    }

    /// Of the file, where it was asked for.
    pub(super) fn digest(&self) -> Option<&str> {
        self.parsed.digest.as_deref()
    }
}

impl<'a> Load<'a> {
    /// Resolves everything that can be wrong before the file is read.
    async fn prepare(import: &'a Import, effect: Effect<'a>, session: &mut Session) -> Result<Self, StepError> {
        let context = effect.context;
        let file = import.path(&import.file, context)?;
        let rejects = import.rejects.file.as_ref().map(|template| import.path(template, context)).transpose()?;
        let kind = session.identity().kind;
        let table = Table::read(session, &import.table.value).await?;
        let mut rules: Vec<Rule> = import.columns.iter().map(|(name, column)| Rule::new(&name.value, column)).collect();
        table.narrow(&mut rules)?;
        let mut statements = import.statements(kind, &context.run, &context.ledger_key);
        match &statements.run_column {
            Some(column) => table.must_have(column)?,
            None if import.check_only => {}
            None => statements.noted_by = noted_by(&statements, &table, effect.ledger)?,
        }
        if statements.key.is_empty() && kind == Kind::Postgres && contains_all(&statements.columns, &table.primary_key) {
            statements.key.clone_from(&table.primary_key);
        }
        let rows = if kind == Kind::Postgres { RowFormat::Copy } else { RowFormat::Json };
        let job = Job {
            layout: import.layout(&file)?,
            file,
            rules,
            null: import.null.clone(),
            rows,
            rejects,
            redactor: context.redactor.clone(),
            digest: import.batch_size.is_some(),
            sends: true,
            run: None,
            demand: None,
        };
        let directly = direct::is_possible(import, &table, kind);
        let load = Self { import, effect, statements, job, directly };
        if !import.check_only {
            load.ensure_own_tables(session).await?;
        }
        Ok(load)
    }

    async fn run(&mut self, session: &mut Session) -> Result<StepResult, StepError> {
        if self.directly { self.run_directly(session).await } else { self.run_staged(session).await }
    }

    pub(super) async fn run_staged(&mut self, session: &mut Session) -> Result<StepResult, StepError> {
        let mut staged = self.stage(session).await?;
        self.reject_unknown(session, &mut staged).await?;
        self.publish_rejects(&mut staged)?;
        let mut findings = self.findings(&staged);
        let in_batches = self.import.batch_size.is_some() && !self.import.check_only;
        let standing = if in_batches { self.standing(session, &staged).await? } else { None };
        // Judged before the first batch, the file has passed.
        if standing.is_none() {
            self.complete_enough(&staged)?;
            findings.extend(self.gate(&staged).await?);
        }
        if self.import.check_only {
            return Ok(StepResult { rows_affected: None, value: None, findings, ..self.result(&staged, &Written::default()) });
        }
        if in_batches {
            return self.write_in_batches(session, &staged, standing, findings).await;
        }
        self.write(session, &staged, findings).await
    }

    pub(super) fn publish_rejects(&self, staged: &mut Staged) -> Result<(), StepError> {
        staged.reject_file = staged.parsed.rejects.publish().map_err(|error| self.not_read(&ParseError::Rejects(error)))?;
        Ok(())
    }

    /// Reads the file and fills the staging table at the same time.
    pub(super) async fn stage(&self, session: &mut Session) -> Result<Staged, StepError> {
        let stop = self.effect.context.cancel.child_token();
        // Whatever ends this attempt also ends the reading.
        let _stop = stop.clone().drop_guard();
        let Parsing { mut chunks, progress, handle } = parse::start(self.job.clone(), stop);
        let filled = {
            let fill = async {
                match self.statements.kind {
                    Kind::Postgres => self.copy(session, &mut chunks).await,
                    Kind::Sqlite => self.fill(session, &mut chunks).await,
                }
            };
            self.watched(fill, &progress, "staged").await
        };
        drop(chunks);
        let parsed = handle.await.map_err(|lost| StepError::new(ErrorKind::Io, lost.to_string()))?;
        match (parsed, filled) {
            (Err(ParseError::Stopped), Err(error)) => Err(error),
            (Err(ParseError::Stopped), Ok(_)) => Err(cancelled()),
            (Err(error), _) => Err(self.not_read(&error)),
            (Ok(_), Err(error)) => Err(error),
            (Ok(parsed), Ok(())) => Ok(Staged::new(parsed)),
        }
    }

    /// PostgreSQL: everything by one COPY. The server's bound on statements is for work on
    /// the author's tables; this one waits for the file, and the step's `timeout` bounds it.
    async fn copy(
        &self,
        session: &mut Session,
        chunks: &mut tokio::sync::mpsc::Receiver<crate::target::CopyChunk>,
    ) -> Result<(), StepError> {
        session.begin(Access::ReadWrite, None).await?;
        self.execute(session, "SET LOCAL statement_timeout = 0").await?;
        if let Err(error) = self.execute(session, &self.statements.create_staging()).await {
            session.rollback().await;
            return Err(self.staging_allowed(session, error));
        }
        let canceller = session.canceller();
        let copy = self.statements.copy();
        let copied = cancellable(&canceller, &self.effect.context.cancel, session.copy(&copy, chunks)).await;
        match copied {
            Ok(Some(_)) => {}
            Ok(None) => {
                session.rollback().await;
                return Ok(());
            }
            Err(error) => {
                session.rollback().await;
                return Err(self.placed(error));
            }
        }
        session.commit().await.map_err(|error| match error {
            // Only a temporary table is at stake, and it is gone with the connection.
            TargetError::CommitUnknown { connection, message, .. } => {
                TargetError::Lost { connection, message, sqlstate: None, effect_unknown: false }.into()
            }
            other => StepError::from(other),
        })
    }

    /// SQLite: a statement for each chunk, outside of a transaction, which would keep
    /// everybody else from writing.
    async fn fill(
        &self,
        session: &mut Session,
        chunks: &mut tokio::sync::mpsc::Receiver<crate::target::CopyChunk>,
    ) -> Result<(), StepError> {
        self.execute(session, &self.statements.create_staging()).await?;
        let fill = self.statements.fill();
        while let Some(crate::target::CopyChunk::Data(rows)) = chunks.recv().await {
            let text = String::from_utf8(rows).map_err(|error| StepError::new(ErrorKind::Io, error.to_string()))?;
            self.execute_with(session, &fill, &[Value::String(text)]).await?;
        }
        Ok(())
    }

    /// Shows how far the reading is while something else is waited for.
    pub(super) async fn watched<T>(&self, work: impl Future<Output = T>, progress: &Progress, done: &str) -> T {
        tokio::pin!(work);
        let begun = Instant::now();
        let mut tick = tokio::time::interval(TICK);
        loop {
            tokio::select! {
                biased;
                done = &mut work => return done,
                _ = tick.tick() => self.show_progress(progress, begun.elapsed(), done),
            }
        }
    }

    fn show_progress(&self, progress: &Progress, elapsed: Duration, done: &str) {
        let size = progress.size.load(Ordering::Relaxed);
        let bytes = progress.bytes.load(Ordering::Relaxed).min(size);
        let (accepted, rejected) = (progress.accepted.load(Ordering::Relaxed), progress.rejected.load(Ordering::Relaxed));
        if size == 0 || elapsed.is_zero() || bytes == 0 {
            return;
        }
        let fraction = bytes as f64 / size as f64;
        let rate = (accepted + rejected) as f64 / elapsed.as_secs_f64();
        let left = Duration::from_secs((elapsed.as_secs_f64() * (1.0 - fraction) / fraction).ceil() as u64);
        let text = format!(
            "{} {done}, {rejected} rejected, {} of {}, {rate:.0} records/s, {} left",
            count(accepted, "row"),
            ByteSize(bytes),
            ByteSize(size),
            humantime::format_duration(left)
        );
        self.effect.context.progress(text, Some(fraction));
    }

    /// Rows that refer to nothing are rejects like any other.
    async fn reject_unknown(&self, session: &mut Session, staged: &mut Staged) -> Result<(), StepError> {
        let references = self.import.references();
        if staged.rows == 0 || (references.is_empty() && self.statements.on_duplicate != OnDuplicate::Update) {
            return Ok(());
        }
        if self.statements.kind == Kind::Postgres {
            self.execute(session, &format!("ANALYZE {}", self.statements.staging())).await?;
        }
        if references.is_empty() {
            return Ok(());
        }
        self.effect.context.progress("looking up references", None);
        self.execute(session, &self.statements.find_unknown(&references)).await?;
        self.execute(session, self.statements.index_unknown()).await?;
        let mut found = self.unknown_after(session, 0).await?;
        if found.is_empty() {
            return Ok(());
        }
        // Read here and not on another thread: it is a page of found rows at a time, and an
        // operator's signals do not wait for it.
        let mut again = Again::open(&self.job).map_err(|error| self.not_read(&error))?;
        while let Some(last) = found.last().map(|one| one.line) {
            let rejects = &mut staged.parsed.rejects;
            again.reject(&found, rejects).map_err(|error| self.not_read(&error))?;
            staged.rows -= found.len() as u64;
            staged.parsed.rejected += found.len() as u64;
            found = self.unknown_after(session, last).await?;
        }
        self.execute(session, &self.statements.drop_unknown_rows()).await?;
        self.count_again(session, staged).await
    }

    async fn unknown_after(&self, session: &mut Session, line: u64) -> Result<Vec<Found>, StepError> {
        let rows = query(session, &self.statements.page_of_unknown(line, PAGE), &[]).await?;
        let found = rows.into_iter().map(|row| {
            let problems = row.get(1).and_then(Value::as_str).and_then(|text| serde_json::from_str::<Vec<[String; 3]>>(text).ok());
            let problem = |[column, value, target]: [String; 3]| Problem { column, reason: format!("there is no {target} {value}") };
            Found {
                line: row.first().and_then(Value::as_u64).unwrap_or_default(),
                problems: problems.unwrap_or_default().into_iter().map(problem).collect(),
            }
        });
        Ok(found.collect())
    }

    async fn count_again(&self, session: &mut Session, staged: &mut Staged) -> Result<(), StepError> {
        let counts = query(session, &self.statements.count_staged(), &[]).await?;
        let mut counts = counts.into_iter().flatten().map(|value| value.as_u64().unwrap_or_default());
        staged.rows = counts.next().unwrap_or_default();
        staged.parsed.present = counts.collect();
        Ok(())
    }

    /// What is worth knowing and stops nothing.
    pub(super) fn findings(&self, staged: &Staged) -> Vec<String> {
        let mut findings = Vec::new();
        if staged.rows + staged.parsed.rejected == 0 {
            findings.push("the file holds no records".to_owned());
        }
        if !staged.parsed.unused.is_empty() {
            findings.push(format!("in the file but not imported: {}", staged.parsed.unused.join(", ")));
        }
        let columns = self.import.columns.keys().zip(&staged.parsed.formulas).filter(|(_, formulas)| **formulas > 0);
        findings.extend(columns.map(|(column, formulas)| {
            format!("column `{}`: {} that a spreadsheet would take for a formula, kept as text", column.value, count(*formulas, "text"))
        }));
        findings
    }

    pub(super) fn complete_enough(&self, staged: &Staged) -> Result<(), StepError> {
        let shares = self.import.columns.iter().zip(&staged.parsed.present);
        let low = shares.filter_map(|((name, column), present)| {
            let share = share(*present, staged.rows);
            column.completeness.filter(|wanted| staged.rows > 0 && share < wanted.0).map(|wanted| (name, share, wanted))
        });
        let low: Vec<_> = low.collect();
        if low.is_empty() {
            return Ok(());
        }
        let mut error = StepError::new(ErrorKind::Expectation, "the file is not complete enough; nothing was loaded");
        for (name, share, wanted) in low {
            error = error
                .fact(name.value.clone(), format!("{} of the accepted records have a value, expected at least {wanted}", Percent(share)));
        }
        Err(error.at(self.place()))
    }

    /// Stops where too much is rejected; asks where it is much and the target is protected.
    pub(super) async fn gate(&self, staged: &Staged) -> Result<Option<String>, StepError> {
        let (rejected, records) = (staged.parsed.rejected, staged.rows + staged.parsed.rejected);
        let ratio = share(rejected, records);
        let limits = &self.import.rejects;
        let context = self.effect.context;
        let said = format!("{} of {} ({}) were rejected", rejected, count(records, "record"), Percent(ratio));
        let file = staged.reject_file.as_ref().map(|file| file.display().to_string());
        if rejected > 0 && ratio > limits.max_ratio.0 {
            let mut error = StepError::new(ErrorKind::Expectation, format!("{said}, more than {}; nothing was loaded", limits.max_ratio));
            error.sample = staged.parsed.rejects.sample();
            error = match file {
                Some(file) => error.fact("all of them", file),
                None => error.hint("name a file in `rejects: {file: …}` to get all of them"),
            };
            let mut result = self.result(staged, &Written::default());
            result.summary = said;
            return Err(error.hint("correct the file, or the rules in `columns`, and run again").at(self.place()).with_result(result));
        }
        if rejected == 0 || ratio <= limits.warn_ratio.0 {
            return Ok(None);
        }
        let finding =
            format!("{said}, more than {}{}", limits.warn_ratio, file.as_ref().map_or_else(String::new, |file| format!("; see {file}")));
        // Who only looks is not asked: the step that loads the file will ask.
        let protected = context.targets.environment(self.effect.connection)?.filter(|_| !self.import.check_only);
        let Some(environment) = protected else { return Ok(Some(finding)) };
        let mut facts = vec![
            ("file".to_owned(), format!("{}, {}", self.job.file.display(), ByteSize(staged.parsed.size))),
            ("environment".to_owned(), environment.to_owned()),
        ];
        facts.extend(file.map(|file| ("rejected".to_owned(), file)));
        let message = format!("{said}. Load the other {} into {}?", staged.rows, self.import.table.value);
        let prompt = Prompt { message, facts, kind: PromptKind::Confirm, timeout_seconds: None, approvers: 0 };
        let answer = context.ask(prompt).await?;
        if answer.accepted {
            return Ok(Some(format!("{finding}; confirmed by {}", answer.by)));
        }
        let reason = answer.text.map_or_else(String::new, |text| format!(": {text}"));
        let mut error = StepError::new(ErrorKind::Declined, format!("{said}, and loading the rest was declined by {}{reason}", answer.by));
        error.sample = staged.parsed.rejects.sample();
        Err(error)
    }

    pub(super) fn result(&self, staged: &Staged, written: &Written) -> StepResult {
        let records = staged.rows + staged.parsed.rejected;
        let names = self.import.columns.keys().map(|name| name.value.clone());
        let shares = names.zip(staged.parsed.present.iter().map(|present| json!(share(*present, staged.rows))));
        let verb = if self.import.check_only { "checked, nothing loaded" } else { "imported" };
        let rows = if self.import.check_only { staged.rows } else { written.inserted };
        let mut parts = vec![format!("{} {verb}", count(rows, "row"))];
        if written.updated > 0 {
            parts.push(format!("{} updated", written.updated));
        }
        if written.skipped > 0 {
            parts.push(format!("{} skipped", written.skipped));
        }
        parts.push(format!(
            "{} of {} rejected ({})",
            staged.parsed.rejected,
            count(records, "record"),
            Percent(share(staged.parsed.rejected, records))
        ));
        StepResult {
            summary: parts.join(", "),
            value: Some(json!(written.inserted)),
            rows_affected: Some(written.inserted + written.updated),
            file: staged.reject_file.as_ref().map(|file| file.display().to_string()),
            json: Some(json!({
                "records": records,
                "inserted": written.inserted,
                "updated": written.updated,
                "skipped": written.skipped,
                "rejected": staged.parsed.rejected,
                "reject_ratio": share(staged.parsed.rejected, records),
                "completeness": shares.collect::<serde_json::Map<String, Value>>(),
            })),
            ..StepResult::default()
        }
    }

    /// A PostgreSQL session is used again, and what was staged may be large. One that can't
    /// do this any more is closed, and its temporary tables with it.
    async fn forget_staged(&self, session: &mut Session) {
        if self.statements.kind == Kind::Postgres {
            let _ = session.execute(&Statement::query("DISCARD TEMP"), &mut |_, _| {}).await;
        }
    }

    pub(super) async fn execute(&self, session: &mut Session, text: &str) -> Result<u64, StepError> {
        self.execute_with(session, text, &[]).await
    }

    async fn execute_with(&self, session: &mut Session, text: &str, binds: &[Value]) -> Result<u64, StepError> {
        let canceller = session.canceller();
        let statement = Statement::change(text).with(binds);
        let done = cancellable(&canceller, &self.effect.context.cancel, session.execute(&statement, &mut |_, _| {})).await;
        Ok(done.map_err(|error| self.placed(error))?.rows_affected)
    }

    pub(super) fn placed(&self, error: TargetError) -> StepError {
        StepError::from(error).at(self.place())
    }

    pub(super) fn place(&self) -> crate::source::Location {
        self.effect.context.sources.location(self.import.table.span)
    }

    pub(super) fn not_read(&self, error: &ParseError) -> StepError {
        let file = self.job.file.display();
        let message = match error {
            ParseError::Rejects(_) => error.to_string(),
            other => format!("cannot import {file}: {other}"),
        };
        StepError::new(ErrorKind::Io, message).at(self.effect.context.sources.location(self.import.file.text.span))
    }
}

fn contains_all(columns: &[String], wanted: &[String]) -> bool {
    !wanted.is_empty() && wanted.iter().all(|name| columns.contains(name))
}

/// The columns by which a row can be found again.
fn noted_by(statements: &Statements, table: &Table, ledger: bool) -> Result<Vec<String>, StepError> {
    let unattributable = |message: String| {
        Err(StepError::new(ErrorKind::Sql, message).hint(
            "give the table a text column for the run's id and name it in `run_column`, so that imported rows can be told from others",
        ))
    };
    if !ledger {
        return unattributable("the connection keeps no ledger, so nothing would say which rows this run has imported".into());
    }
    if table.primary_key.is_empty() {
        return unattributable(format!("`{}` has no primary key, so nothing would say which rows this run has imported", statements.table));
    }
    if statements.kind == Kind::Sqlite && !contains_all(&statements.columns, &table.primary_key) {
        return unattributable(format!(
            "the primary key of `{}` is not in the file, so nothing would say which rows this run has imported",
            statements.table
        ));
    }
    Ok(table.primary_key.clone())
}
