//! What happens before a step runs: skipped, expanded into instances, asked for, or
//! given its context and spawned with its intent on record.

use super::dispatcher::{Dispatcher, IDLE_IN_TRANSACTION};
use super::scheduler::Task;
use super::step::StepTask;
use super::values::item_name;
use super::{EngineError, Question};
use crate::action::StepContext;
use crate::journal::{EventKind, Outcome, Phase, SkipCause, StepState, base_id};
use crate::outcome::StepError;
use crate::output::{Output, OutputOptions};
use crate::plan::PlannedStep;
use crate::target::SessionSettings;
use crate::template::Values;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

impl Dispatcher<'_> {
    pub(super) async fn start_ready(&mut self) -> Result<(), EngineError> {
        let limit = if self.setup.step_by_step { 1 } else { self.setup.plan.max_parallel };
        let mut starting: Vec<(Task, StepTask)> = Vec::new();
        while self.halt.is_none() && !self.gates.asking_step() && self.running.len() < limit {
            let Some(task) = self.scheduler.next_task() else { break };
            match self.prepare(task) {
                Ok(Some(step_task)) => {
                    self.running.insert(task, step_task.id.clone());
                    starting.push((task, step_task));
                }
                Ok(None) => {}
                Err(error) => self.finish(task, 0, Outcome::Failed { error: Box::new(error) }, Duration::ZERO),
            }
        }
        if starting.iter().any(|(_, step_task)| step_task.begun) {
            self.flush().await?;
        }
        for (task, step_task) in starting {
            self.setup.observer.started(&step_task.id, step_task.first);
            self.tasks.spawn(async move { (task, step_task.run().await) });
        }
        Ok(())
    }

    /// Decides about one task: skipped, expanded, asked for, or ready to be spawned.
    pub(super) fn prepare(&mut self, task: Task) -> Result<Option<StepTask>, StepError> {
        let plan = self.setup.plan.clone();
        let step = &plan.steps[task.step];
        let values = self.values_for(step, task);
        if let Some((cause, reason)) = self.skip_reason(step, task, &values)? {
            self.finish(task, 0, Outcome::Skipped { cause, reason, by: None }, Duration::ZERO);
            return Ok(None);
        }
        if task.instance.is_none() && step.step.settings.for_each.is_some() {
            self.expand(step, task, &values)?;
            return Ok(None);
        }
        if self.setup.step_by_step && self.let_through != Some(task) {
            self.ask_step(step, task);
            return Ok(None);
        }
        self.let_through = None;
        self.step_task(step, task, values).map(Some)
    }

    pub(super) fn skip_reason(&self, step: &PlannedStep, task: Task, values: &Values) -> Result<Option<(SkipCause, String)>, StepError> {
        if let Some(reason) = &step.excluded {
            return Ok(Some((SkipCause::Selection, reason.clone())));
        }
        for (scope, condition) in &step.outer_conditions {
            if !self.values[*scope].test(condition)? {
                return Ok(Some((SkipCause::Condition, format!("`when: {}` of the including step is false", condition.text.value))));
            }
        }
        let Some(when) = &step.step.settings.when else {
            let skipped = step.needs.iter().filter(|need| need.named).map(|need| &self.setup.plan.steps[need.step].id).find(|id| {
                matches!(
                    self.state_with_pending(id),
                    Some(Outcome::Skipped { cause: SkipCause::Condition | SkipCause::Need | SkipCause::Operator, .. })
                )
            });
            return Ok(skipped.map(|id| (SkipCause::Need, format!("it needs `{id}`, which was skipped"))));
        };
        let item_name = item_name(step);
        let reads_item = when.references.iter().any(|reference| reference.path[0] == item_name);
        if task.instance.is_none() && step.step.settings.for_each.is_some() && reads_item {
            return Ok(None);
        }
        Ok((!values.test(when)?).then(|| (SkipCause::Condition, format!("`when: {}` is false", when.text.value))))
    }

    pub(super) fn expand(&mut self, step: &PlannedStep, task: Task, values: &Values) -> Result<(), StepError> {
        let known = self.state.progress(&step.id).and_then(|progress| progress.items.clone());
        let items = match known {
            Some(items) => items,
            None => {
                let Some(list) = &step.step.settings.for_each else { return Ok(()) };
                let items = values.setting(list)?;
                self.record(EventKind::StepExpanded { step: step.id.clone(), items: items.clone() });
                items
            }
        };
        let open: Vec<usize> = (0..items.len())
            .filter(|index| !matches!(self.state.state_of(&format!("{}[{index}]", step.id)), StepState::Finished(_)))
            .collect();
        let limit = step.step.settings.max_parallel.map_or(self.setup.plan.max_parallel, |limit| limit as usize);
        if open.is_empty() {
            self.finish_group(task.step);
        } else {
            self.scheduler.expand(task.step, open, limit);
        }
        Ok(())
    }

    pub(super) fn step_task(&mut self, step: &PlannedStep, task: Task, values: Values) -> Result<StepTask, StepError> {
        let id = task_id(step, task);
        let plan = self.setup.plan.clone();
        let scope = &plan.scopes[step.scope];
        let settings = &step.step.settings;
        let timeout = settings.timeout.as_ref().map(|timeout| values.setting(timeout)).transpose()?.or(scope.timeout);
        let progress = self.state.progress(&id);
        let before = progress.map_or(0, |progress| progress.attempts);
        let uncertain = before > 0 && progress.is_some_and(|progress| progress.resolved.is_some());
        let first = before + 1;
        let begun = step.needs_intent() && settings.confirm.is_none() && settings.done_when.is_none();
        if begun {
            self.record(EventKind::StepStarted { step: id.clone(), attempt: first });
        }
        let stop = self.cancel.child_token();
        let context = self.context(step, &id, values, first, uncertain, &stop);
        Ok(StepTask {
            step: step.step.clone(),
            context,
            stop,
            first,
            class: step.class(),
            retry: settings.retry.clone().or_else(|| scope.retry.clone()),
            timeout,
            begun,
            messages: self.messages.0.clone(),
            next_output: self.outputs(&id),
            id,
        })
    }

    pub(super) fn context(
        &self,
        step: &PlannedStep,
        id: &str,
        values: Values,
        attempt: u32,
        uncertain: bool,
        stop: &CancellationToken,
    ) -> StepContext {
        let scope = &self.setup.plan.scopes[step.scope];
        StepContext {
            run: self.run.clone(),
            step: id.to_owned(),
            ledger_key: self.ledger_key(step, id),
            attempt,
            values,
            targets: self.setup.targets.clone(),
            connections: scope.connections.clone(),
            default_connection: scope.default_connection.clone(),
            session: SessionSettings {
                statement_timeout: scope.statement_timeout.map(|limit| limit.0),
                lock_timeout: scope.lock_timeout.map(|limit| limit.0),
                idle_in_transaction_timeout: Some(IDLE_IN_TRANSACTION),
            },
            directory: self.setup.directory.clone(),
            processes: self.setup.processes.clone(),
            environment: self.setup.environment.clone(),
            output: self.outputs(id)(attempt),
            finish_up: self.finish_up.clone(),
            cancel: stop.child_token(),
            clock: self.setup.clock.clone(),
            redactor: self.setup.plan.redactor.clone(),
            channels: scope.channels.clone(),
            sources: self.setup.plan.sources.clone(),
            uncertain,
            requests: self.requests.0.clone(),
        }
    }

    /// Closing steps run again each time the run ends, and each time counts.
    pub(super) fn ledger_key(&self, step: &PlannedStep, id: &str) -> String {
        match (step.phase, self.state.failures) {
            (Phase::Steps, _) | (_, 0) => id.to_owned(),
            (_, failures) => format!("{id}#{failures}"),
        }
    }

    /// For a look at a step outside of an attempt.
    pub(super) fn check_context(&mut self, id: &str, step: &PlannedStep) -> Result<StepContext, StepError> {
        let task = task_of(&self.setup.plan, id).unwrap_or(Task { step: 0, instance: None });
        let values = self.values_for(step, task);
        Ok(self.context(step, id, values, 0, false, &self.cancel))
    }

    pub(super) fn outputs(&self, id: &str) -> Box<dyn Fn(u32) -> Output + Send + Sync> {
        let directory = self.setup.journal.directory().join("output").join(&self.run);
        let (step, live) = (id.to_owned(), self.live.0.clone());
        let (max_bytes, redactor) = (self.setup.plan.max_output, self.setup.plan.redactor.clone());
        Box::new(move |attempt| {
            Output::new(OutputOptions {
                directory: directory.clone(),
                step: step.clone(),
                attempt,
                max_bytes,
                redactor: redactor.clone(),
                live: Some(live.clone()),
            })
        })
    }

    pub(super) fn ask_step(&mut self, step: &PlannedStep, task: Task) {
        let description = describe(&self.setup.plan, step, &task_id(step, task));
        let question = Question::Step { step: task_id(step, task), description, changes: step.needs_intent() };
        self.scheduler.put_back(task);
        self.gates.ask_step(task, question);
    }
}

pub(super) fn task_id(step: &PlannedStep, task: Task) -> String {
    match task.instance {
        None => step.id.clone(),
        Some(instance) => format!("{}[{instance}]", step.id),
    }
}

/// What a person must know to decide about a step.
pub(super) fn describe(plan: &crate::plan::Plan, step: &PlannedStep, id: &str) -> Vec<String> {
    let description = plan.describe(step);
    let mut lines = vec![format!("{id}: {} [{}]", step.title(), step.class()), description.summary];
    lines.extend(description.details);
    if step.needs_intent() {
        lines.push(match &step.step.settings.undo {
            Some(crate::playbook::Undo::Action(action)) => {
                format!("undo: {}", crate::action::Perform::describe(action, &plan.scopes[step.scope].values).summary)
            }
            Some(crate::playbook::Undo::Irreversible(reason)) => {
                format!("undo: irreversible{}", reason.as_ref().map_or(String::new(), |reason| format!(" ({reason})")))
            }
            None => "undo: none".into(),
        });
    }
    lines.iter().map(|line| plan.redactor.text(line).into_owned()).collect()
}

/// The plan's position of a step or instance.
pub(super) fn task_of(plan: &crate::plan::Plan, id: &str) -> Option<Task> {
    let base = base_id(id);
    let instance = id.strip_prefix(base).and_then(|rest| rest.strip_prefix('[')?.strip_suffix(']')?.parse().ok());
    Some(Task { step: plan.position(base)?, instance })
}
