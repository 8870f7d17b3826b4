//! Saying something of our own on a session, and what errors mean for a batch.

use serde_json::Value;
use tokio_util::sync::CancellationToken;

use crate::action::StepContext;
use crate::action::effect::cancellable;
use crate::outcome::{Aftermath, Column, ErrorKind, StepError};
use crate::target::{Access, Isolation, Session, SessionSettings, Statement, TargetError};

pub(super) type Rows = Vec<Vec<Value>>;

/// A session of the step, and the token that stops what it says.
pub(super) struct Talk {
    pub session: Session,
    cancel: CancellationToken,
}

impl Talk {
    pub(super) async fn open(context: &StepContext, connection: &str, settings: &SessionSettings) -> Result<Self, TargetError> {
        let session = context.targets.session(connection, &context.step, settings).await?;
        Ok(Self { session, cancel: context.cancel.clone() })
    }

    /// On a session that nobody stops.
    pub(super) fn on(session: Session) -> Self {
        Self { session, cancel: CancellationToken::new() }
    }

    pub(super) async fn begin(&mut self, isolation: Option<Isolation>) -> Result<(), TargetError> {
        self.session.begin(Access::ReadWrite, isolation).await
    }

    /// Rows of a query in the open transaction.
    pub(super) async fn rows(&mut self, sql: &str) -> Result<Rows, TargetError> {
        let mut rows = Vec::new();
        let mut sink = |_: &[Column], row: Vec<Value>| rows.push(row);
        let canceller = self.session.canceller();
        let statement = Statement { text: sql, binds: &[], writes: false };
        let work = self.session.execute(&statement, &mut sink);
        cancellable(&canceller, &self.cancel, work).await?;
        Ok(rows)
    }

    /// A change; gives the number of rows it wrote.
    pub(super) async fn change(&mut self, sql: &str) -> Result<u64, TargetError> {
        let mut sink = |_: &[Column], _: Vec<Value>| {};
        let canceller = self.session.canceller();
        let statement = Statement::change(sql);
        let work = self.session.execute(&statement, &mut sink);
        Ok(cancellable(&canceller, &self.cancel, work).await?.rows_affected)
    }

    /// Rows of a query in a read-only transaction of its own.
    pub(super) async fn look(&mut self, sql: &str) -> Result<Rows, TargetError> {
        self.look_with_columns(sql).await.map(|(_, rows)| rows)
    }

    pub(super) async fn look_with_columns(&mut self, sql: &str) -> Result<(Vec<String>, Rows), TargetError> {
        let mut rows = Vec::new();
        let mut sink = |_: &[Column], row: Vec<Value>| rows.push(row);
        let canceller = self.session.canceller();
        let statement = Statement::query(sql);
        let work = self.session.read(&statement, None, &mut sink);
        let executed = cancellable(&canceller, &self.cancel, work).await?;
        Ok((executed.columns.into_iter().map(|column| column.name).collect(), rows))
    }
}

/// The first value as a number.
pub(super) fn number(rows: &Rows) -> u64 {
    rows.first().and_then(|row| row.first()).map_or(0, whole)
}

pub(super) fn whole(value: &Value) -> u64 {
    value.as_u64().or_else(|| value.as_str()?.parse().ok()).unwrap_or_default()
}

pub(super) fn text(value: Option<&Value>) -> Option<String> {
    match value? {
        Value::Null => None,
        Value::String(text) => Some(text.clone()),
        other => Some(other.to_string()),
    }
}

/// What to do about a batch that failed; it changed nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Remedy {
    /// It was too large.
    Halve,
    /// Somebody was in the way.
    Again,
    /// The connection is gone.
    Reconnect,
    /// It will not get better.
    GiveUp,
}

pub(super) fn remedy(error: &TargetError) -> Remedy {
    match error {
        TargetError::Sql(error) => match error.code.as_str() {
            // A statement timeout; a stop by the operator is an error of its own.
            "57014" => Remedy::Halve,
            "55P03" | "40P01" | "40001" | "SQLITE_BUSY" | "SQLITE_LOCKED" => Remedy::Again,
            _ => Remedy::GiveUp,
        },
        // The cursor tells how a COMMIT ended whose answer was lost.
        TargetError::Lost { .. } | TargetError::CommitUnknown { .. } => Remedy::Reconnect,
        TargetError::Connect { .. } if error.is_transient() => Remedy::Reconnect,
        _ => Remedy::GiveUp,
    }
}

/// An error of the whole step: what earlier batches did stays.
pub(super) fn failed(error: TargetError) -> StepError {
    StepError::from(error).aftermath(Aftermath::Partial)
}

pub(super) fn unusable(message: impl Into<String>) -> StepError {
    StepError::new(ErrorKind::Sql, message)
}
