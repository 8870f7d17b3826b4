//! How the engine tells what happens and asks people: it never prints.

use crate::action::{Answer, Prompt};
use crate::journal::{Event, RunState};
use crate::outcome::StepError;
use crate::plan::Plan;

/// Sees everything that happens in a run; implemented by `report`.
pub trait Observer: Send {
    /// A run begins or goes on.
    fn begin(&mut self, run: &str, plan: &Plan, state: &RunState);
    /// An attempt begins, also where no event says so: a step that only reads has no intent.
    fn started(&mut self, step: &str, attempt: u32);
    /// An event was recorded and applied.
    fn event(&mut self, plan: &Plan, state: &RunState, event: &Event);
    /// A line of a step's output, already redacted and harmless for a terminal.
    fn output(&mut self, step: &str, line: &str);
    /// How far a long step is.
    fn progress(&mut self, step: &str, text: &str, fraction: Option<f64>);
    /// A message of the playbook to people.
    fn message(&mut self, step: &str, title: Option<&str>, message: &str);
    /// Something to know about the run itself, e.g. what the next Ctrl+C does.
    fn notice(&mut self, text: &str);
    /// The display makes room for a question (`true`) or comes back (`false`).
    fn suspend(&mut self, suspended: bool);
    /// The run is over or stands still; `None`: the engine itself failed.
    fn end(&mut self, run: &str, ending: Option<super::Ending>);
    /// About ten times a second while steps run.
    fn tick(&mut self);
}

/// A decision about a step whose end is unknown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UnknownDecision {
    /// Look again (only offered with a `done_when`).
    Recheck,
    /// Its effect is in place, for this reason.
    Done(String),
    /// Run it again, for this reason.
    RunAgain(String),
    /// Leave the run as it is.
    Leave,
}

/// A decision before a step in `--step` mode.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StepDecision {
    /// Run it.
    Run,
    /// Leave it out, for this reason.
    Skip(String),
    /// Stop here.
    Quit,
}

/// A question for the person at the terminal.
#[derive(Debug, Clone)]
pub enum Question {
    /// A gate of the playbook.
    Gate {
        /// The step's full id.
        step: String,
        /// Its name, for the person to recognise; its id where it has none.
        title: String,
        /// What to ask.
        prompt: Prompt,
    },
    /// A step whose end is unknown.
    Unknown {
        /// The step's full id.
        step: String,
        /// Its name and what it does, for the person to recognise.
        description: Vec<String>,
        /// What is known of the interruption.
        error: Option<Box<StepError>>,
        /// Whether `done_when` can be asked again.
        can_recheck: bool,
    },
    /// Before a step in `--step` mode.
    Step {
        /// The step's full id.
        step: String,
        /// Its class, name and exact action, line by line; shown again by "show".
        description: Vec<String>,
        /// Whether it can change anything: Enter alone then never runs it.
        changes: bool,
    },
    /// An earlier backend of this run still works; end it?
    Backend {
        /// The step's full id.
        step: String,
        /// Pid, state, query and age.
        description: String,
    },
}

/// The person's reply.
#[derive(Debug, Clone, PartialEq)]
pub enum Reply {
    /// To [`Question::Gate`].
    Gate(Answer),
    /// To [`Question::Unknown`].
    Unknown(UnknownDecision),
    /// To [`Question::Step`].
    Step(StepDecision),
    /// To [`Question::Backend`]: end it.
    Backend(bool),
}

/// Asks people; implemented by `report` for a terminal. One question at a time.
pub trait Prompter: Send + Sync + 'static {
    /// Whether there is anybody to ask.
    fn interactive(&self) -> bool;
    /// Asks and blocks until answered; `None` when the question was withdrawn or interrupted,
    /// or the terminal went away.
    fn ask(&self, question: Question) -> Option<Reply>;
    /// Takes the open question back, from another thread: its time is up or the run stops.
    fn withdraw(&self);
}
