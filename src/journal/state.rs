//! The state of a run: a fold over its events through one transition function.
//!
//! The engine applies each event right after it is journaled, `resume` and `show`
//! apply the stored ones: there is no second way to a state. An event that does not
//! fit the state is an error, so that a mixed-up journal is noticed.

use std::collections::{HashMap, HashSet};

use jiff::Timestamp;
use serde_json::Value;

use super::event::{Event, EventKind, Outcome, Pause, Phase, Resolution, RunHeader, RunStatus, StepRecord};
use crate::action::{Answer, Prompt};
use crate::outcome::{ErrorKind, StepError};

/// Where one step stands.
#[derive(Debug, Clone, Default, PartialEq)]
pub enum StepState {
    /// Not started, or to be started again.
    #[default]
    Pending,
    /// An attempt began and has not ended. After a crash this means: unknown.
    Started,
    /// A failed attempt will be repeated; nothing is in flight.
    Retrying,
    /// Over.
    Finished(Outcome),
}

impl StepState {
    /// Whether dependents may rely on it.
    pub fn succeeded(&self) -> bool {
        matches!(self, Self::Finished(Outcome::Done { .. } | Outcome::AlreadyDone { .. } | Outcome::Warned { .. }))
    }

    /// The word for people and for `steps.ID.status`.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Started => "running",
            Self::Retrying => "retrying",
            Self::Finished(outcome) => outcome.word(),
        }
    }
}

impl Outcome {
    /// The word for people and for `steps.ID.status`.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Done { .. } => "done",
            Self::AlreadyDone { .. } => "already done",
            Self::Warned { .. } => "warning",
            Self::Failed { .. } => "failed",
            Self::Skipped { .. } => "skipped",
        }
    }
}

/// One step's history in short.
#[derive(Debug, Clone, Default)]
pub struct StepProgress {
    /// Where it stands.
    pub state: StepState,
    /// Attempts begun so far.
    pub attempts: u32,
    /// When the last attempt began.
    pub started_at: Option<Timestamp>,
    /// When it ended.
    pub finished_at: Option<Timestamp>,
    /// Duration of the last attempt.
    pub duration_ms: u64,
    /// Errors of attempts that were repeated.
    pub errors: Vec<StepError>,
    /// The question it waits for.
    pub waiting: Option<Prompt>,
    /// Since when it waits for it.
    pub waiting_since: Option<Timestamp>,
    /// Answers given and not yet used by a finished attempt.
    pub answers: Vec<Answer>,
    /// Items of a `for_each` step.
    pub items: Option<Vec<Value>>,
    /// How an unknown end was settled, and why.
    pub resolved: Option<(Resolution, String)>,
}

/// Whether a run is going on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RunPhase {
    /// A process works on it, or died doing so.
    Running,
    /// It stands still until resumed.
    Paused(Pause),
    /// Over.
    Finished(RunStatus),
}

/// A run's whole state.
#[derive(Debug, Clone)]
pub struct RunState {
    /// As the run began.
    pub header: RunHeader,
    /// When it began.
    pub started_at: Timestamp,
    /// When the last event was recorded.
    pub last_at: Timestamp,
    /// Whether it is going on.
    pub phase: RunPhase,
    /// Steps and instances by full id; a step without an entry is pending.
    pub steps: HashMap<String, StepProgress>,
    /// How often the run ended with a failure and was resumed.
    pub failures: u32,
    /// The next event's position.
    pub next_sequence: u64,
}

/// An event that cannot follow what came before.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("event {sequence} ({event}) cannot follow: {reason}")]
pub struct IllegalEvent {
    /// Its position.
    pub sequence: u64,
    /// Its kind.
    pub event: String,
    /// Why not.
    pub reason: String,
}

impl RunState {
    /// The state after a run's first event.
    pub fn begin(event: &Event) -> Result<Self, IllegalEvent> {
        match &event.kind {
            EventKind::RunStarted(header) if event.sequence == 0 => Ok(Self {
                header: (**header).clone(),
                started_at: event.at,
                last_at: event.at,
                phase: RunPhase::Running,
                steps: HashMap::new(),
                failures: 0,
                next_sequence: 1,
            }),
            _ => Err(illegal(event, "a run begins with run_started at position 0")),
        }
    }

    /// Folds a whole history.
    pub fn replay<'a>(events: impl IntoIterator<Item = &'a Event>) -> Result<Option<Self>, IllegalEvent> {
        let mut state: Option<Self> = None;
        for event in events {
            match &mut state {
                None => state = Some(Self::begin(event)?),
                Some(state) => state.apply(event)?,
            }
        }
        Ok(state)
    }

    /// The one transition function.
    pub fn apply(&mut self, event: &Event) -> Result<(), IllegalEvent> {
        if event.sequence != self.next_sequence {
            return Err(illegal(event, &format!("position {} was expected", self.next_sequence)));
        }
        if let RunPhase::Finished(_) = self.phase {
            return Err(illegal(event, "the run is over"));
        }
        match &event.kind {
            EventKind::RunStarted(_) => return Err(illegal(event, "the run has begun already")),
            EventKind::RunResumed { digest, .. } => self.resume(digest.as_deref()),
            EventKind::StepExpanded { step, items } => self.step(step).items = Some(items.clone()),
            EventKind::StepStarted { step, attempt } => self.start(event, step, *attempt)?,
            EventKind::StepRetrying { step, attempt, error, .. } => self.retry(event, step, *attempt, error)?,
            EventKind::StepLost { step, error, .. } => {
                let progress = self.step(step);
                if progress.state != StepState::Started {
                    return Err(illegal(event, "the step does not run"));
                }
                progress.errors.push((**error).clone());
            }
            EventKind::StepFinished { step, attempt, outcome, duration_ms } => self.finish(event, step, *attempt, outcome, *duration_ms)?,
            EventKind::GateWaiting { step, prompt } => {
                let progress = self.step(step);
                progress.waiting = Some((**prompt).clone());
                progress.waiting_since = Some(event.at);
                progress.answers.clear();
            }
            EventKind::GateAnswered { step, answer, .. } => {
                let progress = self.step(step);
                if matches!(progress.state, StepState::Finished(_)) {
                    return Err(illegal(event, "the step is over"));
                }
                progress.answers.push(answer.clone());
            }
            EventKind::StepResolved { step, resolution, reason, .. } => self.resolve(event, step, *resolution, reason)?,
            EventKind::Interrupted { .. } => {}
            EventKind::PauseAsked { .. } if self.phase != RunPhase::Running => return Err(illegal(event, "the run stands still already")),
            EventKind::PauseAsked { .. } => {}
            EventKind::RunPaused { reason } => self.phase = RunPhase::Paused(*reason),
            EventKind::RunFinished { status } => self.phase = RunPhase::Finished(*status),
        }
        self.next_sequence += 1;
        self.last_at = event.at;
        Ok(())
    }

    /// A step's progress; pending where nothing is known of it.
    pub fn progress(&self, step: &str) -> Option<&StepProgress> {
        self.steps.get(step)
    }

    /// Where a step stands.
    pub fn state_of(&self, step: &str) -> &StepState {
        self.steps.get(step).map_or(&StepState::Pending, |progress| &progress.state)
    }

    /// Steps that began and whose end nobody recorded, in the order of the playbook where
    /// known. Only meaningful when no process works on the run.
    pub fn unsettled(&self) -> Vec<&str> {
        let mut steps: Vec<_> = self
            .steps
            .iter()
            .filter(|(_, progress)| progress.state == StepState::Started)
            .map(|(id, progress)| (progress.started_at, id.as_str()))
            .collect();
        steps.sort_unstable();
        steps.into_iter().map(|(_, id)| id).collect()
    }

    fn step(&mut self, id: &str) -> &mut StepProgress {
        if !self.steps.contains_key(id) {
            self.steps.insert(id.to_owned(), StepProgress::default());
        }
        self.steps.entry(id.to_owned()).or_default()
    }

    fn start(&mut self, event: &Event, id: &str, attempt: u32) -> Result<(), IllegalEvent> {
        let at = event.at;
        let progress = self.step(id);
        match progress.state {
            StepState::Pending | StepState::Retrying if attempt == progress.attempts + 1 => {
                progress.state = StepState::Started;
                progress.attempts = attempt;
                progress.started_at = Some(at);
                Ok(())
            }
            StepState::Pending | StepState::Retrying => Err(illegal(event, &format!("attempt {} comes next", progress.attempts + 1))),
            StepState::Started => Err(illegal(event, "the step runs already")),
            StepState::Finished(_) => Err(illegal(event, "the step is over")),
        }
    }

    fn retry(&mut self, event: &Event, id: &str, attempt: u32, error: &StepError) -> Result<(), IllegalEvent> {
        let progress = self.step(id);
        match progress.state {
            // A step that only reads needs no intent: its attempt is known from its end.
            StepState::Started | StepState::Pending | StepState::Retrying => {
                progress.state = StepState::Retrying;
                progress.attempts = attempt;
                progress.errors.push(error.clone());
                Ok(())
            }
            StepState::Finished(_) => Err(illegal(event, "the step is over")),
        }
    }

    fn finish(&mut self, event: &Event, id: &str, attempt: u32, outcome: &Outcome, duration_ms: u64) -> Result<(), IllegalEvent> {
        let at = event.at;
        let progress = self.step(id);
        if let StepState::Finished(_) = progress.state {
            return Err(illegal(event, "the step is over"));
        }
        progress.state = StepState::Finished(outcome.clone());
        progress.attempts = progress.attempts.max(attempt);
        progress.finished_at = Some(at);
        progress.duration_ms = duration_ms;
        progress.waiting = None;
        progress.answers.clear();
        Ok(())
    }

    fn resolve(&mut self, event: &Event, id: &str, resolution: Resolution, reason: &str) -> Result<(), IllegalEvent> {
        let progress = self.step(id);
        if progress.state != StepState::Started {
            return Err(illegal(event, "only a step whose end is unknown can be settled"));
        }
        progress.resolved = Some((resolution, reason.to_owned()));
        // `Done` is followed by the step's end, which carries the result.
        if resolution == Resolution::RunAgain {
            progress.state = StepState::Pending;
        }
        Ok(())
    }

    /// Gives the failed steps of a run that ended another go; what succeeded or was skipped
    /// stays as it is. The closing phases belong to the attempt that ended, so they run again
    /// at the next end. Where they were cut off themselves, they are brought to their end first.
    fn resume(&mut self, digest: Option<&str>) {
        let ended = self.phase == RunPhase::Paused(Pause::Failed);
        let closing_first = !ended && self.closing_has_begun() && self.has_failed();
        self.phase = RunPhase::Running;
        self.failures += u32::from(ended);
        if let Some(digest) = digest {
            self.header.digest = digest.to_owned();
        }
        let records: HashMap<&str, &StepRecord> = self.header.steps.iter().map(|step| (step.id.as_str(), step)).collect();
        for (id, progress) in &mut self.steps {
            let record = records.get(base_id(id));
            let closing = record.is_some_and(|record| record.phase != Phase::Steps);
            let tolerated = record.is_some_and(|record| record.tolerated);
            match &progress.state {
                StepState::Finished(_) if ended && closing => progress.state = StepState::Pending,
                StepState::Finished(Outcome::Failed { .. }) if closing_first && !closing => {}
                StepState::Finished(Outcome::Failed { error }) if !ended && tolerated && error.kind != ErrorKind::Cancelled => {}
                StepState::Finished(Outcome::Failed { error }) => {
                    progress.errors.push((**error).clone());
                    progress.state = StepState::Pending;
                }
                StepState::Retrying => progress.state = StepState::Pending,
                _ => {}
            }
        }
    }

    /// Whether a step of the procedure failed in a way that stops the run.
    pub fn has_failed(&self) -> bool {
        let mut steps = self.header.steps.iter().filter(|step| step.phase == Phase::Steps && !step.tolerated);
        steps.any(|step| matches!(self.state_of(&step.id), StepState::Finished(Outcome::Failed { .. })))
    }

    fn closing_has_begun(&self) -> bool {
        let closing: HashSet<&str> =
            self.header.steps.iter().filter(|step| step.phase != Phase::Steps).map(|step| step.id.as_str()).collect();
        self.steps
            .iter()
            .any(|(id, progress)| (progress.state != StepState::Pending || progress.waiting.is_some()) && closing.contains(base_id(id)))
    }
}

/// `step` of `step[3]`.
pub fn base_id(id: &str) -> &str {
    id.strip_suffix(']').and_then(|id| id.rsplit_once('[')).map_or(id, |(base, _)| base)
}

fn illegal(event: &Event, reason: &str) -> IllegalEvent {
    let name = serde_json::to_value(&event.kind).ok().and_then(|value| value.get("event").and_then(Value::as_str).map(ToOwned::to_owned));
    IllegalEvent { sequence: event.sequence, event: name.unwrap_or_default(), reason: reason.to_owned() }
}
