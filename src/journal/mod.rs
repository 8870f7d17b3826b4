//! The durable history of every run.
//!
//! `event` is what can happen, `state` folds it, `store` keeps it in SQLite. Nothing
//! here decides what to do next.

pub mod event;
pub mod state;
mod store;
#[cfg(test)]
mod tests;

pub use event::{Event, EventKind, Operator, Outcome, Pause, Phase, Resolution, RunHeader, RunStatus, Selection, SkipCause, StepRecord};
pub use state::{IllegalEvent, RunPhase, RunState, StepProgress, StepState, base_id};
pub use store::{Damage, Journal, JournalError};
