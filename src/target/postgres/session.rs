//! A session of one step: transactions and statements.

use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::Value;
use sqlx::{AssertSqlSafe, Executor, SqlSafeStr};
use tokio::sync::mpsc::{Receiver, UnboundedSender};
use tokio::time::sleep;

use super::answer::{answer, described};
use super::command::{self, Command};
use super::connect::{code, text_rows, words};
use super::{Database, Wire, copy, failure, guarded, settings_sql};
use crate::target::error::{SqlError, TargetError};
use crate::target::identity::Identity;
use crate::target::literal::literal;
use crate::target::notice::{self, Notice};
use crate::target::spec::{Access, CopyChunk, Executed, Isolation, RowSink, SessionSettings, Statement};
use crate::target::{Cancel, application_name};

/// A working connection in the hands of one step.
#[derive(Debug)]
pub struct Session {
    pub(super) database: Arc<Database>,
    wire: Option<Wire>,
    /// It has been idle, so the server may have closed it unnoticed.
    reused: bool,
    identity: Identity,
    application: String,
    settings: SessionSettings,
    notices: Option<UnboundedSender<Notice>>,
    transaction: Option<Transaction>,
    prepared: u32,
    canceller: Canceller,
}

/// An open transaction.
#[derive(Debug)]
struct Transaction {
    /// A statement failed, so the server commits nothing any more.
    failed: bool,
}

/// Stops what a session runs.
#[derive(Debug, Clone)]
pub struct Canceller {
    database: Arc<Database>,
    pid: Arc<AtomicI32>,
    running: Arc<AtomicBool>,
    cancelled: Arc<AtomicBool>,
}

impl Canceller {
    /// Asks the server until the statement has ended: a request that overtakes its
    /// statement has no effect.
    pub async fn cancel(&self) -> Result<(), TargetError> {
        const ATTEMPTS: u32 = 100;
        self.cancelled.store(true, Ordering::SeqCst);
        for _ in 0..ATTEMPTS {
            if !self.running.load(Ordering::SeqCst) {
                break;
            }
            let pid = self.pid.load(Ordering::SeqCst);
            self.database.ask(&format!("SELECT pg_catalog.pg_cancel_backend({pid})")).await?;
            sleep(Duration::from_millis(50)).await;
        }
        Ok(())
    }
}

impl Session {
    pub(super) fn new(database: Arc<Database>, wire: Wire, reused: bool, step: &str, settings: SessionSettings) -> Self {
        let canceller = Canceller {
            database: database.clone(),
            pid: Arc::new(AtomicI32::new(wire.pid)),
            running: Arc::default(),
            cancelled: Arc::default(),
        };
        Self {
            application: application_name(&database.run, step),
            database,
            identity: wire.identity.clone(),
            wire: Some(wire),
            reused,
            settings,
            notices: None,
            transaction: None,
            prepared: 0,
            canceller,
        }
    }

    /// Who is at the other end.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// The backend's process id.
    pub fn pid(&self) -> i32 {
        self.canceller.pid.load(Ordering::SeqCst)
    }

    /// Where notices go.
    pub fn forward_notices(&mut self, receiver: UnboundedSender<Notice>) {
        self.notices = Some(receiver);
    }

    /// Stops the running statement.
    pub fn canceller(&self) -> crate::target::Canceller {
        crate::target::Canceller(Cancel::Postgres(self.canceller.clone()))
    }

    /// One statement in a read-only transaction of its own: one round trip where it
    /// takes no arrays. The transaction is rolled back, so that settings it changed
    /// do not reach the connection's next user.
    pub async fn read(
        &mut self,
        statement: &Statement<'_>,
        isolation: Option<Isolation>,
        rows: RowSink<'_>,
    ) -> Result<Executed, TargetError> {
        command::check(statement)?;
        let mut answer = self.try_read(statement, isolation, rows).await;
        if self.should_reopen(&answer) {
            self.reopen().await?;
            answer = self.try_read(statement, isolation, rows).await;
        }
        self.rollback().await;
        let mut executed = answer?;
        executed.rows_affected = 0;
        self.add_columns(statement, &mut executed).await?;
        Ok(executed)
    }

    /// On success no transaction is open any more, unless the statement takes arrays.
    async fn try_read(
        &mut self,
        statement: &Statement<'_>,
        isolation: Option<Isolation>,
        rows: RowSink<'_>,
    ) -> Result<Executed, TargetError> {
        if statement.binds.iter().any(Value::is_array) {
            self.try_begin(Access::ReadOnly, isolation).await?;
            let command = self.compose(statement).await?;
            return self.run(&command, rows).await;
        }
        self.apply_settings().await?;
        let command = Command::after(&[&self.name_sql(), &begin_sql(Access::ReadOnly, isolation)]);
        let command = if statement.binds.is_empty() {
            command.plain(statement)
        } else {
            let prepared = self.next_name();
            command.prepare(&prepared, statement).execute(&prepared, statement.binds, &[])
        };
        self.transaction = Some(Transaction { failed: false });
        let executed = self.run(&command.then("ROLLBACK"), rows).await?;
        self.transaction = None;
        Ok(executed)
    }

    /// Opens a transaction.
    pub async fn begin(&mut self, access: Access, isolation: Option<Isolation>) -> Result<(), TargetError> {
        let mut answer = self.try_begin(access, isolation).await;
        if self.should_reopen(&answer) {
            self.reopen().await?;
            answer = self.try_begin(access, isolation).await;
        }
        answer
    }

    async fn try_begin(&mut self, access: Access, isolation: Option<Isolation>) -> Result<(), TargetError> {
        self.apply_settings().await?;
        let command = format!("{}; {}", self.name_sql(), begin_sql(access, isolation));
        self.say(&command).await?;
        self.wire()?.used |= access == Access::ReadWrite;
        self.transaction = Some(Transaction { failed: false });
        Ok(())
    }

    /// One statement, in the open transaction or on its own.
    pub async fn execute(&mut self, statement: &Statement<'_>, rows: RowSink<'_>) -> Result<Executed, TargetError> {
        command::check(statement)?;
        if self.transaction.is_none() {
            self.prepare_to_stand_alone().await?;
        }
        let command = self.compose(statement).await?;
        let mut executed = self.run(&command, rows).await?;
        if !statement.writes {
            executed.rows_affected = 0;
        }
        self.add_columns(statement, &mut executed).await?;
        Ok(executed)
    }

    /// Streams rows into a table; `None`: their source failed, and none was kept.
    pub async fn copy(&mut self, statement: &str, chunks: &mut Receiver<CopyChunk>) -> Result<Option<u64>, TargetError> {
        self.refuse_if_cancelled()?;
        let stands_alone = self.transaction.is_none();
        let Some(wire) = self.wire.as_mut() else { return Err(self.failed(&closed(), None, false)) };
        self.canceller.running.store(true, Ordering::SeqCst);
        let answer = notice::forwarded(self.notices.clone(), copy::stream(&mut wire.connection, statement, chunks)).await;
        self.canceller.running.store(false, Ordering::SeqCst);
        match answer {
            Ok(None) => {
                self.transaction.iter_mut().for_each(|transaction| transaction.failed = true);
                Ok(None)
            }
            Ok(rows) => Ok(rows),
            Err(error) => Err(self.failed(&error, None, stands_alone)),
        }
    }

    /// Commits; only the ledger knows the outcome of a commit whose answer is lost.
    pub async fn commit(&mut self) -> Result<(), TargetError> {
        let Some(Transaction { failed }) = self.transaction else { return Ok(()) };
        if failed || self.is_cancelled() {
            self.rollback().await;
            return Err(if failed { transaction_failed() } else { self.cancelled() });
        }
        let pid = self.pid();
        let answer = self.converse("COMMIT").await;
        self.transaction = None;
        match answer {
            Ok(_) => {
                let name = self.application.clone();
                self.wire()?.application = name;
                Ok(())
            }
            Err(error) if failure::ends_session(&error) => {
                self.close();
                Err(TargetError::CommitUnknown { connection: self.database.spec.name.clone(), pid, message: words(&error) })
            }
            Err(error) if code(&error) == Some("57014") && self.is_cancelled() => Err(self.cancelled()),
            Err(error) => {
                let mut refused = failure::sql_error(&error);
                refused.in_transaction = true;
                Err(TargetError::Sql(Box::new(refused)))
            }
        }
    }

    /// Rolls back; where even that fails the connection is closed.
    pub async fn rollback(&mut self) {
        if self.transaction.take().is_some() && self.wire.is_some() && self.converse("ROLLBACK").await.is_err() {
            self.close();
        }
    }

    /// Sends something of our own and gives its rows.
    pub(super) async fn say(&mut self, sql: &str) -> Result<super::connect::TextRows, TargetError> {
        self.refuse_if_cancelled()?;
        match self.converse(sql).await {
            Ok(rows) => {
                self.reused = false;
                Ok(rows)
            }
            Err(error) => Err(self.failed(&error, None, false)),
        }
    }

    async fn converse(&mut self, sql: &str) -> Result<super::connect::TextRows, sqlx::Error> {
        let Some(wire) = self.wire.as_mut() else { return Err(closed()) };
        self.canceller.running.store(true, Ordering::SeqCst);
        let answer = notice::forwarded(self.notices.clone(), text_rows(&mut wire.connection, sql)).await;
        self.canceller.running.store(false, Ordering::SeqCst);
        answer
    }

    /// Runs an author's statement while someone looks out for who blocks it.
    async fn run(&mut self, command: &Command, rows: RowSink<'_>) -> Result<Executed, TargetError> {
        self.refuse_if_cancelled()?;
        let stands_alone = self.transaction.is_none();
        let database = self.database.clone();
        let blockers = Mutex::default();
        let mut heard = false;
        let bound = self.settings.lock_timeout.or(self.settings.statement_timeout);
        let Some(wire) = self.wire.as_mut() else { return Err(self.failed(&closed(), None, false)) };
        let watch = database.watch_blockers(wire.pid, bound, &blockers);
        let work = answer(&mut wire.connection, &database, command, rows, &mut heard);
        self.canceller.running.store(true, Ordering::SeqCst);
        let answer = notice::forwarded(self.notices.clone(), async {
            tokio::select! {
                biased;
                answer = work => answer,
                never = watch => match never {},
            }
        })
        .await;
        self.canceller.running.store(false, Ordering::SeqCst);
        self.reused &= !heard;
        answer.map_err(|error| {
            let mut error = self.failed(&error, Some(command), stands_alone);
            if let TargetError::Sql(error) = &mut error
                && matches!(error.code.as_str(), "55P03" | "57014")
            {
                error.blockers = std::mem::take(&mut *guarded(&blockers));
            }
            error
        })
    }

    /// What to send for a statement; one with arrays needs to be prepared first,
    /// because only its parameters' types tell arrays from JSON.
    async fn compose(&mut self, statement: &Statement<'_>) -> Result<Command, TargetError> {
        if statement.binds.is_empty() {
            return Ok(Command::after(&[]).plain(statement));
        }
        let name = self.next_name();
        if !statement.binds.iter().any(Value::is_array) {
            return Ok(Command::after(&[]).prepare(&name, statement).execute(&name, statement.binds, &[]));
        }
        self.run(&Command::after(&[]).prepare(&name, statement), &mut |_, _| {}).await?;
        let types = format!(
            "SELECT t.typcategory = 'A' FROM pg_catalog.pg_prepared_statements p, \
             pg_catalog.unnest(p.parameter_types) WITH ORDINALITY u(type, n) JOIN pg_catalog.pg_type t ON t.oid = u.type \
             WHERE p.name = {} ORDER BY u.n",
            literal(&name)
        );
        let arrays: Vec<bool> = self.say(&types).await?.into_iter().map(|row| row.first() == Some(&Some("t".to_owned()))).collect();
        Ok(Command::after(&[]).execute(&name, statement.binds, &arrays))
    }

    /// A result without rows came without its columns; the server is asked for them.
    async fn add_columns(&mut self, statement: &Statement<'_>, executed: &mut Executed) -> Result<(), TargetError> {
        if executed.row_count > 0 || !statement.is_query() {
            return Ok(());
        }
        let Some(wire) = self.wire.as_mut() else { return Ok(()) };
        match wire.connection.prepare(AssertSqlSafe(statement.text.to_owned()).into_sql_str()).await {
            Ok(prepared) => {
                let columns = sqlx::Statement::columns(&prepared);
                executed.columns = described(&self.database, columns).await.into_iter().map(|(column, _)| column).collect();
                Ok(())
            }
            Err(error) => Err(self.failed(&error, None, false)),
        }
    }

    /// Brings the settings in force that the step asks for.
    async fn apply_settings(&mut self) -> Result<(), TargetError> {
        let wanted = self.settings.clone();
        let wire = self.wire()?;
        if wire.settings.as_ref() != Some(&wanted) {
            // What the last step bounded and this one does not goes back to the server's own.
            let reset = if wire.settings.is_some() {
                "RESET statement_timeout; RESET lock_timeout; RESET idle_in_transaction_session_timeout; "
            } else {
                ""
            };
            let sql = format!("{reset}{}", settings_sql(&wanted, wire.version_number));
            self.say(&sql).await?;
            self.wire()?.settings = Some(wanted);
        }
        Ok(())
    }

    /// Settings and name for a statement outside of a transaction, which must be
    /// sent alone: a string of several is one transaction.
    async fn prepare_to_stand_alone(&mut self) -> Result<(), TargetError> {
        let mut answer = self.apply_settings().await;
        if self.should_reopen(&answer) {
            self.reopen().await?;
            answer = self.apply_settings().await;
        }
        answer?;
        let name = self.application.clone();
        if self.wire()?.application != name {
            let sql = self.name_sql();
            self.say(&sql).await?;
        }
        let wire = self.wire()?;
        wire.application = name;
        wire.used = true;
        Ok(())
    }

    /// A connection that lay idle may have died unnoticed; nothing has been done on
    /// it for this step, so a new one serves as well.
    fn should_reopen<T>(&self, answer: &Result<T, TargetError>) -> bool {
        self.reused && matches!(answer, Err(TargetError::Lost { .. }))
    }

    async fn reopen(&mut self) -> Result<(), TargetError> {
        let wire = self.database.new_wire().await?;
        self.canceller.pid.store(wire.pid, Ordering::SeqCst);
        self.identity = wire.identity.clone();
        self.wire = Some(wire);
        self.transaction = None;
        self.reused = false;
        Ok(())
    }

    fn name_sql(&self) -> String {
        format!("SET application_name = {}", literal(&self.application))
    }

    fn next_name(&mut self) -> String {
        self.prepared += 1;
        format!("runbook_{}", self.prepared)
    }

    fn wire(&mut self) -> Result<&mut Wire, TargetError> {
        let lost = self.database.lost("it was closed after an earlier error", None);
        self.wire.as_mut().ok_or(lost)
    }

    fn is_cancelled(&self) -> bool {
        self.canceller.cancelled.load(Ordering::SeqCst)
    }

    fn cancelled(&self) -> TargetError {
        TargetError::Cancelled { connection: self.database.spec.name.clone() }
    }

    fn refuse_if_cancelled(&self) -> Result<(), TargetError> {
        if self.is_cancelled() { Err(self.cancelled()) } else { Ok(()) }
    }

    fn close(&mut self) {
        if let Some(wire) = self.wire.take() {
            self.database.forget(wire.pid);
        }
    }

    /// Takes note of a failure and says what it is.
    fn failed(&mut self, error: &sqlx::Error, command: Option<&Command>, stands_alone: bool) -> TargetError {
        if failure::ends_session(error) {
            self.close();
            return match self.database.lost(&words(error), code(error)) {
                TargetError::Lost { connection, message, sqlstate, .. } => {
                    TargetError::Lost { connection, message, sqlstate, effect_unknown: stands_alone }
                }
                other => other,
            };
        }
        if let Some(transaction) = &mut self.transaction {
            transaction.failed = true;
        }
        let mut refused = failure::sql_error(error);
        if refused.code == "57014" && self.is_cancelled() {
            return self.cancelled();
        }
        refused.in_transaction = self.transaction.is_some();
        match command {
            Some(command) => command.locate(&mut refused),
            None => refused.position = None,
        }
        TargetError::Sql(Box::new(refused))
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let Some(wire) = self.wire.take() else { return };
        if self.canceller.running.load(Ordering::SeqCst) {
            // Whoever waited for the statement has gone; the server must hear of it.
            let (database, pid) = (self.database.clone(), wire.pid);
            if let Ok(runtime) = tokio::runtime::Handle::try_current() {
                runtime.spawn(async move {
                    let _ = database.ask(&format!("SELECT pg_catalog.pg_cancel_backend({pid})")).await;
                    drop(wire);
                    database.forget(pid);
                });
            }
        } else if self.transaction.is_some() {
            self.database.forget(wire.pid);
        } else {
            guarded(&self.database.idle).push(wire);
        }
    }
}

fn begin_sql(access: Access, isolation: Option<Isolation>) -> String {
    let access = match access {
        Access::ReadOnly => "READ ONLY",
        Access::ReadWrite => "READ WRITE",
    };
    match isolation {
        Some(isolation) => format!("BEGIN ISOLATION LEVEL {} {access}", isolation.as_sql()),
        None => format!("BEGIN {access}"),
    }
}

fn closed() -> sqlx::Error {
    sqlx::Error::Protocol("it was closed after an earlier error".to_owned())
}

fn transaction_failed() -> TargetError {
    TargetError::Sql(Box::new(SqlError {
        code: "25P02".to_owned(),
        message: "a statement of the transaction had failed, so it was rolled back".to_owned(),
        in_transaction: true,
        ..SqlError::default()
    }))
}
