//! The restore itself: one transaction that holds what is dropped, what is made, the
//! comparison with the manifest and the proof in the ledger.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde_json::json;
use tokio::sync::mpsc::{Receiver, Sender, channel, unbounded_channel};

use super::PgRestore;
use super::backup_file::{BackupFile, Contents};
use super::failure::{explained, missing_role, of_statement};
use super::safety;
use super::script::{Part, Script, ScriptError};
use super::there::{There, drop_all, missing_roles, rows};
use crate::action::StepContext;
use crate::action::backup::archive;
use crate::action::backup::client::Client;
use crate::action::backup::manifest::SequenceValue;
use crate::action::effect::{Effect, cancellable, cancelled, show};
use crate::outcome::{ErrorKind, StepError, StepResult};
use crate::sql::{Copied, Fed, Kind, classify, created, roles};
use crate::target::{Access, CopyChunk, LedgerMode, Session, SessionSettings, Statement, TargetError};
use crate::text::{count, cut};
use crate::units::ByteSize;

/// How often progress is shown.
const TICK: Duration = Duration::from_millis(500);

pub(super) async fn run(step: &PgRestore, context: &StepContext) -> Result<StepResult, StepError> {
    let connection = context.connection(step.into.as_ref().map(|name| name.value.as_str()))?;
    let ledger = context.targets.ledger_mode(connection)? == LedgerMode::Target;
    let effect = Effect { context, connection, ledger };
    let (client, _) = Client::find(context, connection).await?;
    let mut session = effect.connect(&settings(step, context)?).await?;
    let (sender, notices) = unbounded_channel();
    session.forward_notices(sender);
    let work = async {
        let mut session = session;
        if let Some(result) = effect.earlier(&mut session).await? {
            return Ok(result);
        }
        let file = BackupFile::open(step, context).await?;
        let contents = file.contents(context, &client).await?;
        let restore = Restore { step, effect: &effect, client: &client, file, contents };
        restore.run(&mut session).await
    };
    let (outcome, ()) = tokio::join!(work, show(notices, context));
    outcome
}

/// Building an index takes its time, and so does the safety dump, while this session says
/// nothing; the step's `timeout` bounds all of it.
fn settings(step: &PgRestore, context: &StepContext) -> Result<SessionSettings, StepError> {
    let lock_timeout = step.lock_timeout.as_ref().map(|timeout| context.values.setting(timeout)).transpose()?;
    let lock_timeout = lock_timeout.map(|timeout| timeout.0).or(context.session.lock_timeout);
    Ok(SessionSettings { statement_timeout: None, idle_in_transaction_timeout: None, lock_timeout })
}

/// One run of the action.
pub(super) struct Restore<'a> {
    pub(super) step: &'a PgRestore,
    pub(super) effect: &'a Effect<'a>,
    pub(super) client: &'a Client,
    pub(super) file: BackupFile,
    pub(super) contents: Contents,
}

/// What the reading thread hands over.
enum Sent {
    Statement(Fed),
    Copy { statement: Fed, copied: Copied, rows: Receiver<CopyChunk> },
}

/// What is sent of it.
pub(super) enum Wanted<'a> {
    /// All but what the target does not need, given what it has.
    Everything(&'a There),
    /// These tables' rows; what the backup says of sequences is only noted.
    RowsOf(&'a [String]),
}

/// What was sent.
#[derive(Default)]
pub(super) struct Written {
    /// Tables with the rows they were given.
    pub tables: Vec<(String, u64)>,
    /// Sequences with the values they had.
    pub sequences: BTreeMap<String, SequenceValue>,
}

/// What was done until now.
#[derive(Default)]
pub(super) struct Restored {
    /// Tables with the rows they were given.
    pub tables: Vec<(String, u64)>,
    pub safety_dump: Option<PathBuf>,
    pub findings: Vec<String>,
}

impl Restore<'_> {
    async fn run(&self, session: &mut Session) -> Result<StepResult, StepError> {
        session.begin(Access::ReadOnly, None).await?;
        let outcome = self.look(session).await;
        session.rollback().await;
        let there = outcome?;
        if self.step.tables.is_empty() { self.objects(session, &there).await } else { self.rows(session).await }
    }

    /// What is there, once it is certain that the server can take the backup.
    async fn look(&self, session: &mut Session) -> Result<There, StepError> {
        if self.step.tables.is_empty() && (self.step.owner || self.step.privileges) {
            let missing = missing_roles(session, &self.contents).await?;
            if !missing.is_empty() {
                let list = missing.iter().map(|role| format!("`{role}`")).collect::<Vec<_>>().join(", ");
                let roles = if missing.len() == 1 { "role" } else { "roles" };
                let error = StepError::new(ErrorKind::Sql, format!("the backup needs the {roles} {list}, which this server does not have"));
                return Err(missing_role(error, &self.file));
            }
        }
        There::look(session, &self.contents).await
    }

    /// Everything the backup holds.
    async fn objects(&self, session: &mut Session, there: &There) -> Result<StepResult, StepError> {
        if !there.is_empty() {
            session.begin(Access::ReadOnly, None).await?;
            let described = there.described(session).await;
            session.rollback().await;
            let described = described?;
            if !self.step.replace {
                return Err(not_over_data(&described));
            }
            self.confirm(session, described).await?;
        }
        session.begin(Access::ReadWrite, None).await?;
        let outcome = self.replace_objects(session, there).await;
        self.finish(session, outcome).await
    }

    async fn replace_objects(&self, session: &mut Session, seen: &There) -> Result<Restored, StepError> {
        let mut restored = Restored::default();
        if self.step.replace {
            let there = There::look(session, &self.contents).await?;
            if there.tables != seen.tables {
                return Err(StepError::new(
                    ErrorKind::Expectation,
                    "tables came or went while the restore was prepared; nothing was changed",
                ));
            }
            if !there.is_empty() {
                let part = !self.file.manifest.as_ref().is_none_or(|manifest| manifest.whole);
                restored.safety_dump = Some(self.safety_dump(session, &there.tables, part).await?);
            }
            if let Some(drop) = drop_all(&there, &self.contents) {
                self.context().progress("dropping what is replaced", None);
                self.execute(session, &drop).await.map_err(|error| not_dropped(error, &self.file))?;
            }
        }
        restored.tables = self.send(session, &Wanted::Everything(seen)).await?.tables;
        self.compare(session, &restored).await?;
        self.analyze(session, &restored).await?;
        Ok(restored)
    }

    /// Statements that the target does not need, or that the author does not want.
    fn leaves_out(&self, statement: &str, there: &There) -> bool {
        let kind = classify(statement).kind;
        let privileges = match &kind {
            Kind::Other(label) => matches!(label.as_str(), "GRANT" | "REVOKE" | "ALTER DEFAULT"),
            _ => false,
        };
        let owner = !privileges && statement.starts_with("ALTER ") && !roles(statement).is_empty();
        (privileges && !self.step.privileges) || (owner && !self.step.owner) || there.makes_needless(statement, created(statement).as_ref())
    }

    /// Gives a table its rows.
    async fn copy(
        &self,
        session: &mut Session,
        statement: &Fed,
        copied: Copied,
        mut rows: Receiver<CopyChunk>,
    ) -> Result<Option<(String, u64)>, StepError> {
        let canceller = session.canceller();
        let work = session.copy(&statement.text, &mut rows);
        let written = cancellable(&canceller, &self.context().cancel, work).await;
        // Without an answer the reader stopped, and it says why.
        Ok(written.map_err(|error| of_statement(error, statement, &self.file))?.map(|rows| (copied.table, rows)))
    }

    /// One part of the backup.
    async fn take(&self, session: &mut Session, part: Sent, wanted: &Wanted<'_>, written: &mut Written) -> Result<(), StepError> {
        match (part, wanted) {
            (Sent::Statement(statement), Wanted::Everything(there)) => {
                if !self.leaves_out(&statement.text, there) {
                    let sent = self.statement(session, &statement.text).await;
                    sent.map_err(|error| of_statement(error, &statement, &self.file))?;
                }
            }
            (Sent::Statement(statement), Wanted::RowsOf(_)) => written.sequences.extend(set_value(&statement.text)),
            (Sent::Copy { copied, .. }, Wanted::RowsOf(tables)) if !tables.contains(&copied.table) => {}
            (Sent::Copy { statement, copied, rows }, _) => {
                written.tables.extend(self.copy(session, &statement, copied, rows).await?);
            }
        }
        Ok(())
    }

    /// Reads the backup and sends what is wanted of it.
    pub(super) async fn send(&self, session: &mut Session, wanted: &Wanted<'_>) -> Result<Written, StepError> {
        let (sender, mut parts) = channel(8);
        let done = Arc::new(AtomicU64::new(0));
        let counter = done.clone();
        let reading = self.file.read(self.context(), self.client, move |input| forward(Script::new(input), &sender, &counter));
        let writing = async move {
            let mut written = Written::default();
            while let Some(part) = parts.recv().await {
                if self.context().cancel.is_cancelled() {
                    return Err(cancelled());
                }
                self.take(session, part, wanted, &mut written).await?;
            }
            Ok(written)
        };
        let both = async { tokio::join!(reading, writing) };
        tokio::pin!(both);
        let mut tick = tokio::time::interval(TICK);
        let (read, written) = loop {
            tokio::select! {
                biased;
                both = &mut both => break both,
                _ = tick.tick() => self.show(done.load(Ordering::Relaxed)),
            }
        };
        let written = written?;
        read?;
        Ok(written)
    }

    fn show(&self, done: u64) {
        let all = self.contents.bytes.max(1);
        let text = format!("{} of {} of rows restored", ByteSize(done), ByteSize(self.contents.bytes));
        self.context().progress(text, Some((done as f64 / all as f64).min(1.0)));
    }

    /// Compares with what the manifest counted, before anything of it counts.
    pub(super) async fn compare(&self, session: &mut Session, restored: &Restored) -> Result<(), StepError> {
        let known = self.file.manifest.as_ref().and_then(|manifest| manifest.tables.as_ref());
        let expected: Vec<(String, u64)> = match known {
            Some(tables) => tables.iter().map(|table| (table.table.clone(), table.rows)).collect(),
            None => self.contents.copies.iter().map(|(copied, rows)| (copied.table.clone(), *rows)).collect(),
        };
        let chosen = |table: &String| self.step.tables.is_empty() || restored.tables.iter().any(|(restored, _)| restored == table);
        let mut differences = Vec::new();
        for (table, expected) in expected.iter().filter(|(table, _)| chosen(table)) {
            self.context().progress(format!("counting {table}"), None);
            let counted = self.rows_of(session, &format!("SELECT count(*) FROM ONLY {table}")).await?;
            let counted = counted.first().and_then(|row| row.first()?.as_u64()).unwrap_or_default();
            if counted != *expected {
                differences.push((table.clone(), format!("{}, and {} when it was dumped", count(counted, "row"), count(*expected, "row"))));
            }
        }
        if differences.is_empty() {
            return Ok(());
        }
        let error = StepError::new(ErrorKind::Expectation, "the restored rows are not those of the backup; everything was rolled back");
        Err(differences.into_iter().fold(error, |error, (table, text)| error.fact(table, text)))
    }

    /// Without statistics the first queries after an emergency would be the slowest.
    pub(super) async fn analyze(&self, session: &mut Session, restored: &Restored) -> Result<(), StepError> {
        let tables: Vec<&str> = restored.tables.iter().map(|(table, _)| table.as_str()).collect();
        if !self.step.analyze || tables.is_empty() {
            return Ok(());
        }
        self.context().progress("gathering statistics for the planner", None);
        self.execute(session, &format!("ANALYZE {}", tables.join(", "))).await
    }

    /// Commits together with the proof, or takes everything back.
    pub(super) async fn finish(&self, session: &mut Session, outcome: Result<Restored, StepError>) -> Result<StepResult, StepError> {
        let recorded = match outcome {
            Ok(restored) => {
                let result = self.result(restored);
                self.effect.record(session, &result).await.map(|()| result).map_err(StepError::from)
            }
            Err(error) => Err(error),
        };
        let result = match recorded {
            Ok(result) => result,
            Err(error) => {
                session.rollback().await;
                return Err(error);
            }
        };
        match session.commit().await {
            Ok(()) => Ok(result),
            Err(TargetError::CommitUnknown { pid, .. }) if self.effect.ledger => self.effect.resolve(pid, result).await,
            Err(error) => Err(explained(error.into(), &self.file)),
        }
    }

    fn result(&self, restored: Restored) -> StepResult {
        let rows: u64 = restored.tables.iter().map(|(_, rows)| rows).sum();
        let compared = match self.file.manifest.as_ref().is_some_and(|manifest| manifest.tables.is_some()) {
            true => ", counts as when it was dumped",
            false => "",
        };
        let tables: Vec<_> = restored.tables.iter().map(|(table, rows)| json!({"table": table, "rows": rows})).collect();
        let safety_dump = restored.safety_dump.map(|path| path.display().to_string());
        StepResult {
            summary: format!("{} with {} restored{compared}", count(restored.tables.len() as u64, "table"), count(rows, "row")),
            rows_affected: Some(rows),
            json: Some(json!({"tables": tables, "safety_dump": safety_dump})),
            file: safety_dump,
            findings: restored.findings,
            ..StepResult::default()
        }
    }

    /// Dumps what will be overwritten; until the restore has committed nobody changes it.
    pub(super) async fn safety_dump(&self, session: &mut Session, tables: &[String], part: bool) -> Result<PathBuf, StepError> {
        if !tables.is_empty() {
            let lock = format!("LOCK TABLE {} IN EXCLUSIVE MODE", tables.join(", "));
            self.execute(session, &lock).await.map_err(|error| explained(error, &self.file))?;
        }
        let path = safety::free_name(self.safety_path()?);
        self.context().progress(format!("dumping what will be overwritten to {}", path.display()), None);
        safety::dump(self.context(), self.step, &path, if part { tables } else { &[] }).await?;
        Ok(path)
    }

    fn safety_path(&self) -> Result<PathBuf, StepError> {
        safety::path(self.context(), self.step, &self.file.path)
    }

    /// Asks, where the target is protected; `--yes` does not answer.
    pub(super) async fn confirm(&self, session: &Session, overwritten: Vec<String>) -> Result<(), StepError> {
        let Some(environment) = self.context().targets.environment(self.effect.connection)? else { return Ok(()) };
        let database = session.identity().database.clone();
        safety::confirm(self.context(), environment, &database, overwritten, &self.file, &self.safety_path()?).await
    }

    pub(super) fn context(&self) -> &StepContext {
        self.effect.context
    }

    /// One statement of ours.
    pub(super) async fn execute(&self, session: &mut Session, statement: &str) -> Result<(), StepError> {
        Ok(self.statement(session, statement).await?)
    }

    pub(super) async fn statement(&self, session: &mut Session, statement: &str) -> Result<(), TargetError> {
        let canceller = session.canceller();
        let statement = Statement::change(statement);
        cancellable(&canceller, &self.context().cancel, session.execute(&statement, &mut |_, _| {})).await?;
        Ok(())
    }

    pub(super) async fn rows_of(&self, session: &mut Session, query: &str) -> Result<Vec<Vec<serde_json::Value>>, StepError> {
        let canceller = session.canceller();
        cancellable(&canceller, &self.context().cancel, rows(session, query)).await
    }
}

/// The block that drops is nobody's but ours.
fn not_dropped(mut error: StepError, file: &BackupFile) -> StepError {
    error.facts.retain(|(label, _)| label != "CONTEXT");
    explained(error, file)
}

fn not_over_data(there: &[String]) -> StepError {
    let error = StepError::new(ErrorKind::Expectation, "what the backup holds is in the target already; nothing was changed");
    there
        .iter()
        .fold(error, |error, line| error.fact("there is", cut(line, 200)))
        .hint("`replace: true` overwrites it, after a safety dump of what is there")
        .hint("or restore into another, empty database: `into` names its connection")
}

/// On the reading thread.
fn forward(mut script: Script<Box<dyn std::io::BufRead + Send>>, sender: &Sender<Sent>, done: &AtomicU64) -> Result<(), ScriptError> {
    let send = |sent| sender.blocking_send(sent).map_err(|_| ScriptError::Stopped);
    while let Some(part) = script.next()? {
        match part {
            Part::Statement(statement) => send(Sent::Statement(statement))?,
            Part::Copy(statement, copied) => {
                let (rows, receiver) = channel(4);
                send(Sent::Copy { statement, copied, rows: receiver })?;
                forward_rows(&mut script, &rows, sender, done)?;
            }
        }
    }
    Ok(())
}

fn forward_rows(
    script: &mut Script<Box<dyn std::io::BufRead + Send>>,
    rows: &Sender<CopyChunk>,
    sender: &Sender<Sent>,
    done: &AtomicU64,
) -> Result<(), ScriptError> {
    loop {
        let mut chunk = Vec::new();
        let more = script.rows(&mut chunk)?;
        done.fetch_add(chunk.len() as u64, Ordering::Relaxed);
        if sender.is_closed() {
            return Err(ScriptError::Stopped);
        }
        // Rows that nobody takes are not wanted.
        if !chunk.is_empty() && !rows.is_closed() {
            let _ = rows.blocking_send(CopyChunk::Data(chunk));
        }
        if !more {
            let _ = rows.blocking_send(CopyChunk::End);
            return Ok(());
        }
    }
}

/// `SELECT pg_catalog.setval('public.racks_id_seq', 42, true)`
fn set_value(statement: &str) -> BTreeMap<String, SequenceValue> {
    archive::sequences([format!("{statement};")].iter())
}
