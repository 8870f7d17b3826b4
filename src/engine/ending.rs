//! What the end of a step or of the last instance means for those that wait for it.

use super::dispatcher::{Dispatcher, Halt};
use super::scheduler::Task;
use super::starting::task_id;
use crate::journal::{EventKind, Outcome};
use crate::outcome::{ErrorKind, StepError, StepResult};
use serde_json::Value;
use std::time::Duration;

impl Dispatcher<'_> {
    /// Records a task's end and lets what depends on it go on.
    pub(super) fn finish(&mut self, task: Task, attempt: u32, outcome: Outcome, duration: Duration) {
        let plan = self.setup.plan.clone();
        let step = &plan.steps[task.step];
        // What a later step reads must be the same before and after a resume, which sees only
        // what the journal holds.
        let outcome = outcome.redacted(&plan.redactor).unwrap_or_else(|error| unreadable(&error));
        let failed = matches!(outcome, Outcome::Failed { .. });
        if failed && !step.step.settings.continue_on_error {
            self.fail();
        }
        if task.instance.is_none() {
            self.remember(step, &outcome);
        }
        let duration_ms = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        let event = EventKind::StepFinished { step: task_id(step, task), attempt, outcome, duration_ms };
        if step.needs_intent() || failed {
            self.record_urgent(event)
        } else {
            self.record(event)
        }
        match task.instance {
            None => self.scheduler.finished(task.step),
            Some(_) if self.scheduler.instance_finished(task.step) => self.finish_group(task.step),
            Some(_) => {}
        }
    }

    pub(super) fn fail(&mut self) {
        if self.halt.is_none() {
            self.halt = Some(Halt::Failed);
        }
    }

    /// The end of a `for_each` step: the worst end of its instances.
    pub(super) fn finish_group(&mut self, index: usize) {
        let plan = self.setup.plan.clone();
        let step = &plan.steps[index];
        let count = self.instance_count(&step.id);
        let ends: Vec<Option<Outcome>> =
            (0..count).map(|index| self.state_with_pending(&format!("{}[{index}]", step.id)).cloned()).collect();
        let outcome = group_outcome(&ends);
        self.remember(step, &outcome);
        self.record_urgent(EventKind::StepFinished { step: step.id.clone(), attempt: 0, outcome, duration_ms: 0 });
        self.scheduler.finished(index);
    }

    pub(super) fn instance_count(&self, id: &str) -> usize {
        let known = self.state.progress(id).and_then(|progress| progress.items.as_ref()).map(Vec::len);
        known.unwrap_or_else(|| {
            self.pending
                .iter()
                .find_map(|kind| match kind {
                    EventKind::StepExpanded { step, items } if step == id => Some(items.len()),
                    _ => None,
                })
                .unwrap_or(0)
        })
    }
}

fn group_outcome(ends: &[Option<Outcome>]) -> Outcome {
    let failed = ends.iter().flatten().filter(|end| matches!(end, Outcome::Failed { .. })).count();
    if let Some(Some(Outcome::Failed { error })) = ends.iter().find(|end| matches!(end, Some(Outcome::Failed { .. }))) {
        let mut error = (**error).clone();
        error.message = format!("{failed} of {} instances failed; the first: {}", ends.len(), error.message);
        error.result = None;
        return Outcome::Failed { error: Box::new(error) };
    }
    let values: Vec<Value> = ends.iter().map(|end| end.as_ref().and_then(outcome_value).unwrap_or(Value::Null)).collect();
    let done = ends.iter().flatten().filter(|end| !matches!(end, Outcome::Skipped { .. })).count();
    let rows_affected = ends.iter().flatten().filter_map(|end| outcome_result(end)?.rows_affected).reduce(|sum, rows| sum + rows);
    let findings = ends.iter().flatten().filter_map(outcome_result).flat_map(|result| result.findings.clone()).collect();
    let summary =
        if done == ends.len() { format!("{done} instances") } else { format!("{done} of {} instances, the rest skipped", ends.len()) };
    let result = StepResult { summary, value: Some(Value::Array(values)), rows_affected, findings, ..StepResult::default() };
    Outcome::Done { result: Box::new(result) }
}

fn outcome_result(outcome: &Outcome) -> Option<&StepResult> {
    match outcome {
        Outcome::Done { result } | Outcome::AlreadyDone { result } | Outcome::Warned { result, .. } => Some(result),
        Outcome::Failed { .. } | Outcome::Skipped { .. } => None,
    }
}

fn outcome_value(outcome: &Outcome) -> Option<Value> {
    outcome_result(outcome)?.value.clone()
}

fn unreadable(error: &serde_json::Error) -> Outcome {
    Outcome::Failed { error: Box::new(StepError::new(ErrorKind::Io, format!("its result cannot be recorded: {error}"))) }
}
