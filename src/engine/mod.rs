//! Runs a plan: checks the target, takes the lock, then dispatches steps until nothing
//! is left to do or somebody must decide.
//!
//! Every change of state goes through the journal first. The engine does not print,
//! does not read the environment and chooses no exit codes.

mod dispatcher;
mod ending;
mod gate;
pub mod interrupt;
mod lock;
mod observer;
mod recording;
pub mod scheduler;
mod settle;
mod start;
mod starting;
mod step;
mod values;

use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::mpsc;

pub use interrupt::Signal;
pub use observer::{Observer, Prompter, Question, Reply, StepDecision, UnknownDecision};
pub use start::{check_targets, edited_steps};

use crate::action::ProcessEnvironment;
use crate::clock::Clock;
use crate::journal::{Journal, JournalError, Operator, RunState};
use crate::plan::Plan;
use crate::process::Processes;
use crate::target::{HolderDescription, TargetError, Targets};

/// Everything a run needs from outside.
pub struct Setup<'a> {
    /// What to do.
    pub plan: Arc<Plan>,
    /// Where to record it.
    pub journal: Journal,
    /// The databases.
    pub targets: Targets,
    /// For children.
    pub processes: Processes,
    /// For steps that look at the environment itself.
    pub environment: Arc<ProcessEnvironment>,
    /// Time and randomness.
    pub clock: Clock,
    /// Who runs it.
    pub operator: Operator,
    /// Directory the command was run in.
    pub directory: PathBuf,
    /// Plain confirmations are answered with yes.
    pub assume_yes: bool,
    /// Every step is asked for first.
    pub step_by_step: bool,
    /// Sees what happens.
    pub observer: &'a mut dyn Observer,
    /// Asks people.
    pub prompter: Arc<dyn Prompter>,
    /// Requests to stop.
    pub signals: mpsc::UnboundedReceiver<Signal>,
}

/// What to run: something new, or something that stands still.
#[derive(Debug)]
pub enum Start {
    /// A new run with this id.
    New(String),
    /// A run of the journal.
    Resume {
        /// Its id.
        run: String,
        /// Its state.
        state: Box<RunState>,
        /// The playbook was edited since, and that is accepted.
        accept_edit: bool,
    },
}

/// Why execution stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// Every step is done.
    Done,
    /// A step failed.
    Failed,
    /// A step's end is unknown.
    Unknown,
    /// A gate waits for a person.
    Waiting,
    /// Somebody asked to stop.
    Interrupted(Signal),
    /// The operator quit in step mode.
    Quit,
}

/// Why a run could not begin or go on.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The journal; nothing was started after it failed.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// A target can't be reached or is not the right one; nothing was changed.
    #[error(transparent)]
    Target(#[from] TargetError),
    /// Another run holds the lock.
    #[error("another run holds the lock `{name}`")]
    Locked {
        /// The lock's name.
        name: String,
        /// Who has it.
        holder: Box<HolderDescription>,
    },
    /// Something is not as it must be; nothing was changed.
    #[error("{message}")]
    Refused {
        /// What.
        message: String,
        /// What to do about it.
        hints: Vec<String>,
    },
    /// The operating system.
    #[error("{0}")]
    System(#[from] std::io::Error),
}

/// Runs a plan to its end, or to the point where it can't go on.
pub async fn execute(mut setup: Setup<'_>, start: Start) -> Result<Ending, EngineError> {
    // A server that does not answer is not waited for when somebody wants to stop.
    let (run, locks, identities) = tokio::select! {
        biased;
        Some(signal) = setup.signals.recv() => {
            setup.observer.notice(&format!("{}: stopped before anything was begun", signal.name()));
            return Ok(Ending::Interrupted(signal));
        }
        claimed = start::claim(&setup.plan, &setup.targets, &setup.operator, setup.journal.directory(), &start) => claimed?,
    };
    let mut dispatcher = start::begin(setup, start, identities).await?;
    tracing::debug!(run, "dispatching");
    let ending = dispatcher.run().await;
    locks.release().await;
    ending
}
