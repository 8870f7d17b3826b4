//! NOTICE and WARNING texts of a session.
//!
//! sqlx gives them only to `tracing`, while it reads the answer: inside the poll of
//! the future that runs the statement. So the layer forwards them to whatever
//! receiver that task has in scope, which attributes each to its own session.

use tokio::sync::mpsc::UnboundedSender;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::filter::{LevelFilter, Targets as TargetFilter};
use tracing_subscriber::layer::{Context, Layer};
use tracing_subscriber::registry::LookupSpan;

const TARGET: &str = "sqlx::postgres::notice";

/// A message the server sent along with a result.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notice {
    /// `NOTICE`, `WARNING` …
    pub severity: &'static str,
    /// Its text.
    pub message: String,
}

impl std::fmt::Display for Notice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:  {}", self.severity, self.message)
    }
}

tokio::task_local! {
    static RECEIVER: UnboundedSender<Notice>;
}

/// Runs a future so that the notices it causes reach `receiver`.
pub(super) async fn forwarded<F: Future>(receiver: Option<UnboundedSender<Notice>>, future: F) -> F::Output {
    match receiver {
        Some(receiver) => RECEIVER.scope(receiver, future).await,
        None => future.await,
    }
}

/// The layer that makes notices visible; it must be part of the process's
/// subscriber, beside (not under) the filter of its log output.
pub fn notice_layer<S: Subscriber + for<'a> LookupSpan<'a>>() -> impl Layer<S> {
    Forward.with_filter(TargetFilter::new().with_target(TARGET, LevelFilter::TRACE))
}

struct Forward;

impl<S: Subscriber> Layer<S> for Forward {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let _ = RECEIVER.try_with(|receiver| {
            let mut text = Text(String::new());
            event.record(&mut text);
            // The receiver may have stopped listening; a notice is then of no interest.
            let _ = receiver.send(Notice { severity: severity(*event.metadata().level()), message: text.0 });
        });
    }
}

/// sqlx's mapping, backwards.
fn severity(level: Level) -> &'static str {
    match level {
        Level::ERROR => "ERROR",
        Level::WARN => "WARNING",
        Level::INFO => "NOTICE",
        Level::DEBUG => "DEBUG",
        Level::TRACE => "INFO",
    }
}

struct Text(String);

impl Visit for Text {
    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "message" {
            value.clone_into(&mut self.0);
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        if field.name() == "message" {
            self.0 = format!("{value:?}");
        }
    }
}
