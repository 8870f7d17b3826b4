//! What a running action may use: values, databases, output, prompts, cancellation.

use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use crate::clock::Clock;
use crate::outcome::{ErrorKind, StepError};
use crate::output::Output;
use crate::process::Processes;
use crate::secret::Redactor;
use crate::source::Sources;
use crate::target::{SessionSettings, Targets};
use crate::template::{TemplateError, Values};

/// The world as one attempt of one step sees it.
#[derive(Debug, Clone)]
pub struct StepContext {
    /// The run's id.
    pub run: String,
    /// The step's full id, e.g. `nested/step` or `step[3]`.
    pub step: String,
    /// What the ledger in the target knows this step by.
    pub ledger_key: String,
    /// From 1.
    pub attempt: u32,
    /// What expressions see.
    pub values: Values,
    /// The databases.
    pub targets: Targets,
    /// What each connection of the step's playbook is called in `targets`.
    pub connections: Arc<std::collections::BTreeMap<String, String>>,
    /// Name of the connection a step uses when it names none.
    pub default_connection: Option<String>,
    /// Timeouts for sessions.
    pub session: SessionSettings,
    /// Where the command was run; relative names of files that a step reads or writes start here.
    pub directory: PathBuf,
    /// Child processes of this run.
    pub processes: Processes,
    /// The variables runbook was started with.
    pub environment: Arc<super::ProcessEnvironment>,
    /// Where the step's output goes.
    pub output: Output,
    /// Fires at the first interrupt: work in batches ends after the current one.
    pub finish_up: CancellationToken,
    /// Fires at the second interrupt and at the step's timeout.
    pub cancel: CancellationToken,
    /// Time and randomness.
    pub clock: Clock,
    /// Before every sink.
    pub redactor: Redactor,
    /// Notification channels, resolved.
    pub channels: Arc<Channels>,
    /// For places in error messages.
    pub sources: Arc<Sources>,
    /// An earlier attempt started and its end is not known: look for its effect first.
    pub uncertain: bool,
    /// To the dispatcher.
    pub requests: mpsc::Sender<Request>,
}

/// Notification channels by name.
pub type Channels = std::collections::BTreeMap<String, super::notify::ResolvedChannel>;

/// What a step asks of the dispatcher.
#[derive(Debug)]
pub enum Request {
    /// Ask a person.
    Ask {
        /// The step's full id.
        step: String,
        /// What to ask.
        prompt: Prompt,
        /// Where the answer goes; dropped when the run pauses.
        reply: oneshot::Sender<Answer>,
    },
    /// Show how far a long step is.
    Progress {
        /// The step's full id.
        step: String,
        /// In a few words.
        text: String,
        /// Share done, where known.
        fraction: Option<f64>,
    },
    /// Show a message to people.
    Console {
        /// The step's full id.
        step: String,
        /// First line.
        title: Option<String>,
        /// The text.
        message: String,
    },
}

/// A question to a person.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Prompt {
    /// What to decide or do.
    pub message: String,
    /// What the decision depends on: label and text.
    #[serde(default)]
    pub facts: Vec<(String, String)>,
    /// How it is answered.
    pub kind: PromptKind,
    /// Declined when nobody answers in this time, in seconds.
    #[serde(default)]
    pub timeout_seconds: Option<u64>,
    /// How many different people must agree; 0 where it does not matter who.
    #[serde(default)]
    pub approvers: u32,
}

/// How a question is answered.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PromptKind {
    /// Yes or no; the only kind `--yes` answers.
    Confirm,
    /// By typing exactly this text.
    Type(String),
    /// In words: what was seen.
    Observe {
        /// The question.
        question: String,
    },
}

/// What a person said, and who.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Answer {
    /// Agreed, or answered.
    pub accepted: bool,
    /// The words, where words were asked for.
    #[serde(default)]
    pub text: Option<String>,
    /// Login name; several are joined by commas.
    pub by: String,
}

impl StepContext {
    /// Asks a person. Never returns when the run pauses instead: the step is then
    /// dropped and asked again after `resume`.
    pub async fn ask(&self, prompt: Prompt) -> Result<Answer, StepError> {
        let (reply, answer) = oneshot::channel();
        let request = Request::Ask { step: self.step.clone(), prompt, reply };
        if self.requests.send(request).await.is_err() {
            return std::future::pending().await;
        }
        tokio::select! {
            biased;
            () = self.cancel.cancelled() => Err(StepError::new(ErrorKind::Cancelled, "the question was withdrawn")),
            answer = answer => match answer {
                Ok(answer) => Ok(answer),
                Err(_) => std::future::pending().await,
            }
        }
    }

    /// Shows how far a long step is; dropped when the display is busy.
    pub fn progress(&self, text: impl Into<String>, fraction: Option<f64>) {
        let _ = self.requests.try_send(Request::Progress { step: self.step.clone(), text: text.into(), fraction });
    }

    /// Shows a message to people.
    pub async fn console(&self, title: Option<String>, message: String) {
        let _ = self.requests.send(Request::Console { step: self.step.clone(), title, message }).await;
    }

    /// The name in [`StepContext::targets`] of the connection a step works on: the one it
    /// names, the only one, or `main`.
    pub fn connection(&self, named: Option<&str>) -> Result<&str, StepError> {
        connection(&self.connections, self.default_connection.as_deref(), named)
    }
}

/// The world as a step's preview sees it: the databases, to be read.
#[derive(Debug)]
pub struct Look<'a> {
    /// The step's full id.
    pub step: &'a str,
    /// What is known before a run.
    pub values: &'a Values,
    /// The databases.
    pub targets: &'a Targets,
    /// What each connection of the step's playbook is called in `targets`.
    pub connections: &'a std::collections::BTreeMap<String, String>,
    /// Name of the connection a step uses when it names none.
    pub default_connection: Option<&'a str>,
    /// Short timeouts: nobody may wait for a preview.
    pub session: &'a SessionSettings,
}

impl Look<'_> {
    /// As [`StepContext::connection`].
    pub fn connection(&self, named: Option<&str>) -> Result<&str, StepError> {
        connection(self.connections, self.default_connection, named)
    }
}

pub(super) fn connection<'a>(
    connections: &'a std::collections::BTreeMap<String, String>,
    default: Option<&str>,
    named: Option<&str>,
) -> Result<&'a str, StepError> {
    let name = named
        .or(default)
        .ok_or_else(|| StepError::new(ErrorKind::Connection, "the step names no connection and the playbook has no default one"))?;
    connections
        .get(name)
        .map(String::as_str)
        .ok_or_else(|| StepError::new(ErrorKind::Connection, format!("the playbook declares no connection `{name}`")))
}

impl From<TemplateError> for StepError {
    fn from(error: TemplateError) -> Self {
        Self::new(ErrorKind::Template, error.to_string())
    }
}
