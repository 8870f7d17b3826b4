//! What happened, as data: the only thing the journal stores.
//!
//! Every state of a run is a fold over these events; see [`super::state`].

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::action::{Answer, Class, Prompt, Recovery};
use crate::outcome::{StepError, StepResult};
use crate::secret::{Redactor, Structure};

/// Version of the events' form; readers refuse a higher one.
pub const FORMAT: u32 = 1;

/// One entry of a run's history.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// Position in the run's history, from 0 without gaps.
    pub sequence: u64,
    /// When it was recorded.
    pub at: Timestamp,
    /// What happened.
    #[serde(flatten)]
    pub kind: EventKind,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum EventKind {
    /// A run began; holds all that is needed to go on with it.
    RunStarted(Box<RunHeader>),
    /// Another process took the run over.
    RunResumed {
        /// Who and where.
        operator: Operator,
        /// Digest of the playbook as it is now, where it differs and was accepted.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        digest: Option<String>,
    },
    /// A `for_each` step got its items.
    StepExpanded {
        /// The step's full id.
        step: String,
        /// One instance each, `id[0]`, `id[1]` …
        items: Vec<Value>,
    },
    /// The intent: durable before any effect of the attempt.
    StepStarted {
        /// The step's full id.
        step: String,
        /// From 1.
        attempt: u32,
    },
    /// A failed attempt will be repeated.
    StepRetrying {
        /// The step's full id.
        step: String,
        /// The attempt that failed.
        attempt: u32,
        /// Why it failed.
        error: Box<StepError>,
        /// Pause before the next attempt.
        delay_ms: u64,
    },
    /// An attempt ended in a way that leaves its effect unknown; it needs settling.
    StepLost {
        /// The step's full id.
        step: String,
        /// The attempt.
        attempt: u32,
        /// What is known.
        error: Box<StepError>,
    },
    /// The end of a step.
    StepFinished {
        /// The step's full id.
        step: String,
        /// The last attempt; 0 where nothing was tried.
        attempt: u32,
        /// How it ended.
        outcome: Outcome,
        /// How long the last attempt took.
        duration_ms: u64,
    },
    /// A gate waits for a person.
    GateWaiting {
        /// The step's full id.
        step: String,
        /// The question.
        prompt: Box<Prompt>,
    },
    /// A person answered a gate.
    GateAnswered {
        /// The step's full id.
        step: String,
        /// What and who.
        answer: Answer,
        /// The machine the answer was given on.
        host: String,
    },
    /// A step whose end was unknown was settled.
    StepResolved {
        /// The step's full id.
        step: String,
        /// What is true of it.
        resolution: Resolution,
        /// On what ground: the ledger, `done_when`, `idempotent`, or a person's reason.
        reason: String,
        /// The person, where a person decided.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        by: Option<String>,
    },
    /// An operator or the system asked the run to stop.
    Interrupted {
        /// `SIGINT`, `SIGTERM`, `SIGHUP` …
        signal: String,
    },
    /// Somebody asked from elsewhere, with `runbook pause`, that the run stands still.
    PauseAsked {
        /// Who and where.
        by: Operator,
    },
    /// Nothing more happens until somebody resumes the run.
    RunPaused {
        /// Why.
        reason: Pause,
    },
    /// The run is over.
    RunFinished {
        /// How.
        status: RunStatus,
    },
}

/// What in events is the engine's own, and what is data.
const STRUCTURE: Structure = Structure {
    words: &[
        "event",
        "at",
        "step",
        "status",
        "cause",
        "kind",
        "aftermath",
        "resolution",
        "engine",
        "playbook",
        "file",
        "directory",
        "digest",
    ],
    records: &["selection", "steps", "targets"],
    data: &["value", "rows", "json", "outputs", "items", "params"],
};
/// A file that a step wrote may be named after anything; the playbook's may not.
const OF_STEPS: Structure =
    Structure { words: &["event", "at", "step", "status", "cause", "kind", "aftermath", "resolution"], records: &[], ..STRUCTURE };

impl Event {
    /// The same without secrets.
    pub fn redacted(self, redactor: &Redactor) -> Result<Self, serde_json::Error> {
        match &self.kind {
            _ if redactor.is_empty() => Ok(self),
            EventKind::Interrupted { .. } | EventKind::RunPaused { .. } | EventKind::RunFinished { .. } => Ok(self),
            EventKind::RunStarted(_) | EventKind::RunResumed { .. } => redactor.typed(&self, &STRUCTURE),
            _ => redactor.typed(&self, &OF_STEPS),
        }
    }
}

impl Outcome {
    /// The same without secrets.
    pub fn redacted(self, redactor: &Redactor) -> Result<Self, serde_json::Error> {
        if redactor.is_empty() { Ok(self) } else { redactor.typed(&self, &OF_STEPS) }
    }
}

/// How a step ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "status", rename_all = "snake_case")]
pub enum Outcome {
    /// Its effect is in place.
    Done {
        /// What it found or did.
        result: Box<StepResult>,
    },
    /// `done_when` found its effect in place beforehand.
    AlreadyDone {
        /// What was found.
        result: Box<StepResult>,
    },
    /// An expectation failed and the step's severity is `warning`.
    Warned {
        /// What it found.
        result: Box<StepResult>,
        /// The expectation that failed.
        error: Box<StepError>,
    },
    /// It failed.
    Failed {
        /// Why.
        error: Box<StepError>,
    },
    /// It was not run.
    Skipped {
        /// The class of reason.
        cause: SkipCause,
        /// In words.
        reason: String,
        /// The person, where a person decided.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        by: Option<String>,
    },
}

/// Why a step was not run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SkipCause {
    /// Its `when` was false.
    Condition,
    /// A step it needs was skipped.
    Need,
    /// `--only`, `--skip` or `--from` left it out.
    Selection,
    /// A person decided so.
    Operator,
}

/// What is true of a step whose end was unknown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Resolution {
    /// Its effect is in place.
    Done,
    /// It has no effect, or may be run again.
    RunAgain,
}

/// Why a run stands still.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Pause {
    /// A gate needs a person.
    Waiting,
    /// A step's end is unknown and needs a decision.
    Unknown,
    /// An operator interrupted it.
    Interrupted,
    /// A step failed; `resume` tries it again.
    Failed,
}

/// How a run ended for good.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RunStatus {
    /// Every step succeeded.
    Done,
    /// Given up by an operator.
    Aborted,
}

/// Who runs it, and where.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Operator {
    /// Login name.
    pub user: String,
    /// Machine.
    pub host: String,
    /// Process.
    pub pid: u32,
}

impl std::fmt::Display for Operator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}@{} (pid {})", self.user, self.host, self.pid)
    }
}

/// All that is needed to show a run and to go on with it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunHeader {
    /// [`FORMAT`].
    pub format: u32,
    /// The engine's version.
    pub engine: String,
    /// Name of the playbook.
    pub playbook: String,
    /// Absolute path of its file.
    pub file: String,
    /// Directory the command was run in; parameters of type `path` start there.
    pub directory: String,
    /// Digest of the plan.
    pub digest: String,
    /// Parameters as given, without secrets.
    pub params: serde_json::Map<String, Value>,
    /// `--only`, `--skip`, `--from` as given.
    #[serde(default)]
    pub selection: Selection,
    /// Every step in order: enough to tell whether an edited playbook still fits.
    pub steps: Vec<StepRecord>,
    /// What each connection pointed at: identity by connection name.
    #[serde(default)]
    pub targets: BTreeMap<String, String>,
    /// Who started it.
    pub operator: Operator,
    /// Whether plain confirmations were answered beforehand.
    #[serde(default)]
    pub assume_yes: bool,
}

/// Which steps were asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Selection {
    /// Only these ids or tags.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub only: Vec<String>,
    /// All but these ids or tags.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub skip: Vec<String>,
    /// From this step on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
}

/// The parts of a playbook, in the order they run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// `steps`.
    Steps,
    /// `on_failure`.
    OnFailure,
    /// `on_success`.
    OnSuccess,
    /// `always`.
    Always,
}

/// A step as it was when the run began.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepRecord {
    /// Full id.
    pub id: String,
    /// For people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Digest of everything that decides what the step does.
    pub digest: String,
    /// Which part of the playbook it belongs to.
    pub phase: Phase,
    /// What it does to the world.
    pub class: Class,
    /// What an interruption means.
    pub recovery: Recovery,
    /// Its failure does not stop the run (`continue_on_error`).
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub tolerated: bool,
}
