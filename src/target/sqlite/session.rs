//! A session of one step: transactions and statements.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::StreamExt;
use serde_json::{Number, Value};
use sqlx::sqlite::{SqliteArguments, SqliteConnection, SqliteRow};
use sqlx::{Arguments, AssertSqlSafe, Column as _, Decode, Either, Executor, Row, SqlSafeStr, Sqlite, TypeInfo, ValueRef};
use tokio::sync::mpsc::{Receiver, UnboundedSender};

use super::{Database, failure, say};
use crate::outcome::Column;
use crate::target::Cancel;
use crate::target::error::{SqlError, TargetError};
use crate::target::identity::Identity;
use crate::target::notice::Notice;
use crate::target::spec::{Access, CopyChunk, Executed, Isolation, RowSink, Statement};

/// A connection in the hands of one step.
#[derive(Debug)]
pub struct Session {
    pub(super) database: Arc<Database>,
    pub(super) connection: SqliteConnection,
    identity: Identity,
    statement_timeout: Option<Duration>,
    in_transaction: bool,
    failed: bool,
    /// Tells SQLite to stop; set by a canceller, a timeout, or when the session is dropped.
    stop: Arc<AtomicBool>,
    cancelled: Arc<AtomicBool>,
}

/// Stops what a session runs.
#[derive(Debug, Clone)]
pub struct Canceller {
    stop: Arc<AtomicBool>,
    cancelled: Arc<AtomicBool>,
}

impl Canceller {
    /// The statement ends within a few thousand steps of SQLite's machine.
    pub fn cancel(&self) {
        self.cancelled.store(true, Ordering::SeqCst);
        self.stop.store(true, Ordering::SeqCst);
    }
}

impl Session {
    pub(super) fn new(
        database: Arc<Database>,
        connection: SqliteConnection,
        identity: Identity,
        stop: Arc<AtomicBool>,
        statement_timeout: Option<Duration>,
    ) -> Self {
        Self { database, connection, identity, statement_timeout, in_transaction: false, failed: false, stop, cancelled: Arc::default() }
    }

    /// Who is at the other end.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// There is no backend.
    pub fn pid(&self) -> i32 {
        0
    }

    /// SQLite sends no notices.
    pub fn forward_notices(&mut self, receiver: UnboundedSender<Notice>) {
        drop(receiver);
    }

    /// Stops the running statement.
    pub fn canceller(&self) -> crate::target::Canceller {
        crate::target::Canceller(Cancel::Sqlite(Canceller { stop: self.stop.clone(), cancelled: self.cancelled.clone() }))
    }

    /// One statement in a read-only transaction of its own.
    pub async fn read(
        &mut self,
        statement: &Statement<'_>,
        isolation: Option<Isolation>,
        rows: RowSink<'_>,
    ) -> Result<Executed, TargetError> {
        self.begin(Access::ReadOnly, isolation).await?;
        let executed = self.execute(statement, rows).await;
        self.rollback().await;
        executed.map(|executed| Executed { rows_affected: 0, ..executed })
    }

    /// Opens a transaction. SQLite knows one isolation level only, the strictest.
    pub async fn begin(&mut self, access: Access, _: Option<Isolation>) -> Result<(), TargetError> {
        self.refuse_if_cancelled()?;
        let sql = match access {
            Access::ReadOnly => "PRAGMA query_only = 1; BEGIN",
            // At once, so that it cannot fail for want of a lock halfway.
            Access::ReadWrite => "PRAGMA query_only = 0; BEGIN IMMEDIATE",
        };
        self.say(sql).await?;
        self.in_transaction = true;
        self.failed = false;
        Ok(())
    }

    /// One statement, in the open transaction or on its own.
    pub async fn execute(&mut self, statement: &Statement<'_>, rows: RowSink<'_>) -> Result<Executed, TargetError> {
        self.refuse_if_cancelled()?;
        if !self.in_transaction {
            self.say("PRAGMA query_only = 0").await?;
        }
        let arguments = arguments(statement.binds)?;
        let timeout = self.statement_timeout;
        let stop = self.stop.clone();
        let mut timed_out = false;
        let answer = {
            let work = answer(&mut self.connection, statement, arguments, rows);
            tokio::pin!(work);
            tokio::select! {
                biased;
                answer = &mut work => answer,
                () = elapsed(timeout) => {
                    timed_out = true;
                    stop.store(true, Ordering::SeqCst);
                    work.await
                }
            }
        };
        // What a canceller set stays set.
        stop.store(self.cancelled.load(Ordering::SeqCst), Ordering::SeqCst);
        answer.map_err(|error| {
            self.failed = true;
            let mut refused = failure::sql_error(&error, statement.text);
            if refused.code == "SQLITE_INTERRUPT" {
                match timeout {
                    Some(timeout) if timed_out => {
                        refused.message =
                            format!("the statement took longer than {} (statement_timeout)", humantime::format_duration(timeout));
                    }
                    _ => return self.cancelled(),
                }
            }
            refused.in_transaction = self.in_transaction;
            TargetError::Sql(Box::new(refused))
        })
    }

    /// SQLite has no COPY.
    pub async fn copy(&mut self, statement: &str, _: &mut Receiver<CopyChunk>) -> Result<Option<u64>, TargetError> {
        let message = format!("SQLite has no such statement: {statement}");
        Err(TargetError::Sql(Box::new(SqlError { code: "SQLITE_ERROR".to_owned(), message, ..SqlError::default() })))
    }

    /// Commits.
    pub async fn commit(&mut self) -> Result<(), TargetError> {
        if !self.in_transaction {
            return Ok(());
        }
        if self.failed || self.is_cancelled() {
            self.rollback().await;
            let refused = SqlError {
                code: "SQLITE_ABORT".to_owned(),
                message: "a statement of the transaction had failed, so it was rolled back".to_owned(),
                in_transaction: true,
                ..SqlError::default()
            };
            return Err(if self.is_cancelled() { self.cancelled() } else { TargetError::Sql(Box::new(refused)) });
        }
        match say(&mut self.connection, "COMMIT").await {
            Ok(()) => {
                self.in_transaction = false;
                Ok(())
            }
            Err(error) if failure::leaves_commit_open(&error) => {
                self.in_transaction = false;
                let connection = self.database.spec().name.clone();
                Err(TargetError::CommitUnknown { connection, pid: 0, message: failure::words(&error) })
            }
            Err(error) => {
                self.rollback().await;
                let mut refused = failure::sql_error(&error, "");
                refused.in_transaction = true;
                Err(TargetError::Sql(Box::new(refused)))
            }
        }
    }

    /// Rolls back; what even that cannot undo ends with the connection.
    pub async fn rollback(&mut self) {
        if std::mem::take(&mut self.in_transaction) {
            // It must get through, whatever was cancelled.
            self.stop.store(false, Ordering::SeqCst);
            let _ = say(&mut self.connection, "ROLLBACK").await;
            self.stop.store(self.is_cancelled(), Ordering::SeqCst);
        }
    }

    pub(super) async fn say(&mut self, sql: &str) -> Result<(), TargetError> {
        say(&mut self.connection, sql).await.map_err(|error| {
            let mut refused = failure::sql_error(&error, "");
            if refused.code == "SQLITE_INTERRUPT" {
                return self.cancelled();
            }
            refused.in_transaction = self.in_transaction;
            TargetError::Sql(Box::new(refused))
        })
    }

    fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::SeqCst)
    }

    fn refuse_if_cancelled(&self) -> Result<(), TargetError> {
        if self.is_cancelled() { Err(self.cancelled()) } else { Ok(()) }
    }

    fn cancelled(&self) -> TargetError {
        TargetError::Cancelled { connection: self.database.spec().name.clone() }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // A statement nobody waits for any more must not go on in sqlx's thread.
        self.stop.store(true, Ordering::SeqCst);
    }
}

async fn elapsed(timeout: Option<Duration>) {
    match timeout {
        Some(timeout) => tokio::time::sleep(timeout).await,
        None => std::future::pending().await,
    }
}

async fn answer(
    connection: &mut SqliteConnection,
    statement: &Statement<'_>,
    arguments: SqliteArguments,
    rows: RowSink<'_>,
) -> Result<Executed, sqlx::Error> {
    let mut executed = Executed::default();
    let text = || AssertSqlSafe(statement.text.to_owned());
    {
        let mut stream = connection.fetch_many(sqlx::query_with(text(), arguments).persistent(false));
        while let Some(item) = stream.next().await {
            match item? {
                Either::Left(done) if statement.writes => executed.rows_affected = done.rows_affected(),
                Either::Left(_) => {}
                Either::Right(row) => {
                    if executed.row_count == 0 {
                        executed.columns = described(&row);
                    }
                    executed.row_count += 1;
                    rows(&executed.columns, decoded(&row)?);
                }
            }
        }
    }
    if executed.row_count == 0 && statement.is_query() {
        // Preparing is all it takes to learn the columns of an empty result.
        let prepared = connection.prepare(text().into_sql_str()).await?;
        let column = |column: &sqlx::sqlite::SqliteColumn| Column {
            name: column.name().to_owned(),
            type_name: type_name(column.type_info().name()),
        };
        executed.columns = sqlx::Statement::columns(&prepared).iter().map(column).collect();
    }
    Ok(executed)
}

fn arguments(binds: &[Value]) -> Result<SqliteArguments, TargetError> {
    let mut arguments = SqliteArguments::default();
    for (index, value) in binds.iter().enumerate() {
        let added = match value {
            Value::Null => arguments.add(None::<String>),
            Value::Bool(value) => arguments.add(*value),
            Value::Number(number) => match number.as_i64() {
                Some(number) => arguments.add(number),
                None => arguments.add(number.as_f64()),
            },
            Value::String(text) => arguments.add(text.clone()),
            Value::Array(_) | Value::Object(_) => arguments.add(value.to_string()),
        };
        added.map_err(|error| TargetError::Bind { index: Some(index), message: error.to_string(), hint: None })?;
    }
    Ok(arguments)
}

fn described(row: &SqliteRow) -> Vec<Column> {
    let describe = |(index, column): (usize, &sqlx::sqlite::SqliteColumn)| {
        let declared = column.type_info().name();
        let actual = row.try_get_raw(index).map_or_else(|_| declared.to_owned(), |value| value.type_info().name().to_owned());
        Column { name: column.name().to_owned(), type_name: type_name(if declared == "NULL" { &actual } else { declared }) }
    };
    row.columns().iter().enumerate().map(describe).collect()
}

fn type_name(name: &str) -> String {
    name.to_lowercase()
}

/// By storage class; what is declared decides only whether 0 and 1 are truth values.
fn decoded(row: &SqliteRow) -> Result<Vec<Value>, sqlx::Error> {
    (0..row.len())
        .map(|index| {
            let value = row.try_get_raw(index)?;
            if value.is_null() {
                return Ok(Value::Null);
            }
            let class = value.type_info().name().to_owned();
            let declared_boolean = row.column(index).type_info().name() == "BOOLEAN";
            Ok(match class.as_str() {
                "INTEGER" | "BOOLEAN" => match decode::<i64>(value)? {
                    number @ (0 | 1) if declared_boolean => Value::Bool(number == 1),
                    number => Value::from(number),
                },
                "REAL" => {
                    let number = decode::<f64>(value)?;
                    Number::from_f64(number).map_or_else(|| Value::String(number.to_string()), Value::Number)
                }
                "BLOB" => Value::String(hexadecimal(decode::<&[u8]>(value)?)),
                _ => Value::String(String::from_utf8_lossy(decode::<&[u8]>(value)?).into_owned()),
            })
        })
        .collect()
}

fn decode<'row, T: Decode<'row, Sqlite>>(value: sqlx::sqlite::SqliteValueRef<'row>) -> Result<T, sqlx::Error> {
    T::decode(value).map_err(sqlx::Error::Decode)
}

/// As PostgreSQL writes a `bytea`.
fn hexadecimal(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::from("\\x"), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}
