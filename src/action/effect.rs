//! What the actions share that write to a database in one transaction: its proof in the
//! ledger, a COMMIT whose answer is lost, cancellation, and the server's notices.

use std::time::Duration;

use tokio::sync::mpsc::UnboundedReceiver;
use tokio_util::sync::CancellationToken;

use super::StepContext;
use crate::outcome::{Aftermath, ErrorKind, StepError, StepResult};
use crate::target::{Canceller, Notice, Session, SessionSettings, TargetError};

/// How often a cancel request is repeated: one that comes just before a statement
/// begins has no effect.
const CANCEL_AGAIN: Duration = Duration::from_secs(1);
/// How long the backend of a lost COMMIT may take to end.
const RESOLVE_PATIENCE: Duration = Duration::from_secs(60);

/// One step's effect on one connection.
pub(super) struct Effect<'a> {
    pub(super) context: &'a StepContext,
    pub(super) connection: &'a str,
    /// Whether a row in the target proves it.
    pub(super) ledger: bool,
}

impl Effect<'_> {
    pub(super) async fn connect(&self, settings: &SessionSettings) -> Result<Session, StepError> {
        tokio::select! {
            biased;
            () = self.context.cancel.cancelled() => Err(cancelled()),
            session = self.context.targets.session(self.connection, &self.context.step, settings) => Ok(session?),
        }
    }

    /// Makes sure of the ledger, and finds what an earlier attempt whose end is not known
    /// has already committed.
    pub(super) async fn earlier(&self, session: &mut Session) -> Result<Option<StepResult>, StepError> {
        if !self.ledger {
            return Ok(None);
        }
        session.ensure_ledger().await?;
        if !self.context.uncertain && self.context.attempt <= 1 {
            return Ok(None);
        }
        let found = session.ledger_find(&self.context.ledger_key).await?;
        Ok(found.map(|stored| {
            let mut result: StepResult = serde_json::from_value(stored).unwrap_or_default();
            result.summary = if result.summary.is_empty() {
                "committed by an earlier attempt".into()
            } else {
                format!("{} (committed by an earlier attempt)", result.summary)
            };
            result
        }))
    }

    /// Writes the proof into the open transaction.
    pub(super) async fn record(&self, session: &mut Session, result: &StepResult) -> Result<(), TargetError> {
        if !self.ledger {
            return Ok(());
        }
        let stored = serde_json::to_value(result.redacted(&self.context.redactor)).unwrap_or_default();
        session.ledger_record(&self.context.ledger_key, &stored).await
    }

    /// The connection broke in COMMIT: the ledger knows how that ended.
    pub(super) async fn resolve(&self, pid: i32, result: StepResult) -> Result<StepResult, StepError> {
        self.context.output.note("the connection was lost during COMMIT; asking the ledger how it ended");
        let asked = self.context.targets.resolve_commit(self.connection, &self.context.ledger_key, pid, RESOLVE_PATIENCE);
        let found = tokio::select! {
            biased;
            found = asked => found.map_err(StepError::from),
            () = self.context.cancel.cancelled() => Err(cancelled()),
        };
        match found {
            Ok(Some(_)) => Ok(result),
            Ok(None) => {
                let mut error = StepError::new(
                    ErrorKind::Connection,
                    "the connection was lost during COMMIT, and the ledger shows that it was rolled back",
                );
                error.transient = true;
                Err(error)
            }
            Err(error) => {
                Err(StepError::new(ErrorKind::Connection, "the connection was lost during COMMIT, and how it ended could not be found out")
                    .fact("because", error.message)
                    .aftermath(Aftermath::Unknown))
            }
        }
    }
}

/// NOTICEs become output as they come, until the session is given back.
pub(super) async fn show(mut notices: UnboundedReceiver<Notice>, context: &StepContext) {
    while let Some(notice) = notices.recv().await {
        context.output.note(&notice.to_string());
    }
}

/// Waits for a statement; when the step is cancelled, asks the server to stop it and
/// then waits for its answer, which alone tells what became of it.
pub(super) async fn cancellable<T>(canceller: &Canceller, cancel: &CancellationToken, work: impl Future<Output = T>) -> T {
    tokio::pin!(work);
    tokio::select! {
        biased;
        answer = &mut work => return answer,
        () = cancel.cancelled() => {}
    }
    loop {
        let request = async {
            // A request that fails is made again.
            let _ = canceller.cancel().await;
            tokio::time::sleep(CANCEL_AGAIN).await;
        };
        tokio::select! {
            biased;
            answer = &mut work => return answer,
            () = request => {}
        }
    }
}

pub(super) fn cancelled() -> StepError {
    StepError::new(ErrorKind::Cancelled, "stopped before the next statement")
}
