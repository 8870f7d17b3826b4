//! How a run ended, in numbers and in the next commands.

use crate::journal::{Outcome, Pause, Phase, RunPhase, RunState, RunStatus, StepState};
use crate::text::{Ink, Line, count, shell_word};

/// How many steps ended how.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct Tally {
    /// Their effect is in place.
    pub done: u64,
    /// Their effect was in place beforehand.
    pub already_done: u64,
    /// An expectation failed that does not stop the run.
    pub warnings: u64,
    /// They failed.
    pub failed: u64,
    /// They began and nobody knows how they ended.
    pub unknown: u64,
    /// They wait for a person.
    pub waiting: u64,
    /// They were not to be run.
    pub skipped: u64,
    /// Their turn has not come.
    pub not_run: u64,
    /// All of them.
    pub total: u64,
}

impl Tally {
    /// Counts the playbook's steps; instances of a `for_each` count as their step. A closing
    /// phase that did not take place is not missed.
    pub fn of(state: &RunState) -> Self {
        let mut tally = Self::default();
        for step in &state.header.steps {
            let progress = state.progress(&step.id);
            tally.total += 1;
            match state.state_of(&step.id) {
                StepState::Finished(Outcome::Done { .. }) => tally.done += 1,
                StepState::Finished(Outcome::AlreadyDone { .. }) => tally.already_done += 1,
                StepState::Finished(Outcome::Warned { .. }) => tally.warnings += 1,
                StepState::Finished(Outcome::Failed { .. }) => tally.failed += 1,
                StepState::Finished(Outcome::Skipped { .. }) => tally.skipped += 1,
                StepState::Started => tally.unknown += 1,
                StepState::Pending | StepState::Retrying if progress.is_some_and(|progress| progress.waiting.is_some()) => {
                    tally.waiting += 1
                }
                StepState::Pending | StepState::Retrying if matches!(step.phase, Phase::OnFailure | Phase::OnSuccess) => tally.total -= 1,
                StepState::Pending | StepState::Retrying => tally.not_run += 1,
            }
        }
        tally
    }

    /// Steps that are over and need not be run again.
    pub fn settled(&self) -> u64 {
        self.done + self.already_done + self.warnings + self.skipped
    }

    /// In words, without what is zero.
    pub fn words(&self) -> String {
        let warnings = count(self.warnings, "warning");
        let parts = [
            (self.done, format!("{} done", self.done)),
            (self.already_done, format!("{} already done", self.already_done)),
            (self.warnings, warnings),
            (self.failed, format!("{} failed", self.failed)),
            (self.unknown, format!("{} unknown", self.unknown)),
            (self.waiting, format!("{} waiting", self.waiting)),
            (self.skipped, format!("{} skipped", self.skipped)),
            (self.not_run, format!("{} not run", self.not_run)),
        ];
        let said: Vec<String> = parts.into_iter().filter(|(number, _)| *number > 0).map(|(_, words)| words).collect();
        if said.is_empty() { "no steps".into() } else { said.join(", ") }
    }
}

/// The word for how a run stands, and its ink.
pub(super) fn status(phase: RunPhase) -> (Ink, &'static str) {
    match phase {
        RunPhase::Running => (Ink::Accent, "running"),
        RunPhase::Paused(Pause::Waiting) => (Ink::Warn, "waiting"),
        RunPhase::Paused(Pause::Unknown) => (Ink::Bad, "unknown"),
        RunPhase::Paused(Pause::Interrupted) => (Ink::Warn, "interrupted"),
        RunPhase::Paused(Pause::Failed) => (Ink::Bad, "failed"),
        RunPhase::Finished(RunStatus::Done) => (Ink::Good, "done"),
        RunPhase::Finished(RunStatus::Aborted) => (Ink::Warn, "aborted"),
    }
}

/// How to go on with a run that stands still.
pub fn next_commands(command: &str, run: &str, state: &RunState) -> Vec<Line> {
    let resume = Line::new().then(Ink::Accent, format!("{command} resume {run}"));
    let show = |step: &str| Line::new().then(Ink::Accent, format!("{command} show {run} {}", shell_word(step)));
    match state.phase {
        RunPhase::Running | RunPhase::Paused(Pause::Interrupted) => vec![resume.then(Ink::Plain, "  goes on where it stopped")],
        RunPhase::Paused(Pause::Unknown) => {
            let mut lines: Vec<Line> = state.unsettled().into_iter().map(show).collect();
            lines.push(resume.then(Ink::Plain, "  asks what is true of it: look again, mark as done, run again, leave"));
            lines
        }
        RunPhase::Paused(Pause::Failed) => vec![resume.then(Ink::Plain, "  tries again; what is done stays done")],
        // The waiting gates say it themselves.
        RunPhase::Paused(Pause::Waiting) => Vec::new(),
        RunPhase::Finished(_) => {
            vec![Line::new().then(Ink::Accent, format!("{command} show {run}")).then(Ink::Plain, "  every step, who confirmed what")]
        }
    }
}
