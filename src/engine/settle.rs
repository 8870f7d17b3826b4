//! After a crash: what is true of the steps that began and never ended?
//!
//! First the earlier backend and children must be gone, for they may still act. Then the ledger,
//! `done_when`, `idempotent` or a person decides, in this order; nothing is guessed.

use std::time::{Duration, Instant};

use super::dispatcher::{Dispatcher, Halt};
use super::starting::{describe, task_of};
use super::{EngineError, Question, Reply, UnknownDecision};
use crate::action::{Inspection, Perform, Recovery};
use crate::journal::{EventKind, Outcome, Resolution, base_id};
use crate::outcome::{StepError, StepResult};
use crate::plan::PlannedStep;
use crate::target::Backend;

/// How often an earlier backend is looked for again.
const LOOK_AGAIN: Duration = Duration::from_millis(500);
/// A guard ends what a killed run has left in less.
const TIME_OF_THE_GUARD: Duration = Duration::from_secs(1);
/// How long ending a backend may take.
const PATIENCE: Duration = Duration::from_secs(30);

impl Dispatcher<'_> {
    pub(super) async fn settle_unknown(&mut self) -> Result<(), EngineError> {
        let unsettled: Vec<String> = self.state.unsettled().into_iter().map(ToOwned::to_owned).collect();
        if !unsettled.is_empty() && !self.wait_for_earlier_children().await? {
            return Ok(());
        }
        for id in unsettled {
            let plan = self.setup.plan.clone();
            let Some(step) = plan.position(base_id(&id)).map(|index| &plan.steps[index]) else { continue };
            if !self.wait_for_earlier_backend(&id, step).await? {
                return Ok(());
            }
            self.settle(&id, step).await?;
            if self.halt.is_some() {
                return Ok(());
            }
        }
        Ok(())
    }

    /// `false` when the operator interrupted the wait. Mostly the killed run's guard is just
    /// ending them; without it they go on, and nothing may race them.
    async fn wait_for_earlier_children(&mut self) -> Result<bool, EngineError> {
        let begun = Instant::now();
        let mut said = false;
        loop {
            let left = self.setup.processes.left_by_earlier()?;
            if left.is_empty() {
                return Ok(true);
            }
            if !said && begun.elapsed() > TIME_OF_THE_GUARD {
                said = true;
                let ids: Vec<String> = left.iter().map(i32::to_string).collect();
                self.setup
                    .observer
                    .notice(&format!("processes of the earlier attempt still run (pid {}); waiting for them", ids.join(", ")));
            }
            tokio::select! {
                () = tokio::time::sleep(TIME_OF_THE_GUARD / 50) => {}
                Some(signal) = self.setup.signals.recv() => {
                    self.halt = Some(Halt::Interrupted(signal));
                    return Ok(false);
                }
            }
        }
    }

    /// `false` when the operator interrupted the wait.
    async fn wait_for_earlier_backend(&mut self, id: &str, step: &PlannedStep) -> Result<bool, EngineError> {
        let mut inspection = Inspection::default();
        step.step.action.value.inspect(&mut inspection);
        let scope = &self.setup.plan.scopes[step.scope];
        let names: Vec<String> = inspection
            .connections
            .iter()
            .filter_map(|name| name.map(|name| name.value.clone()).or_else(|| scope.default_connection.clone()))
            .filter_map(|name| scope.connections.get(&name).cloned())
            .collect();
        for connection in names {
            let mut asked = false;
            while let Some(backend) = self.setup.targets.earlier_backend(&connection, id).await? {
                if !asked {
                    asked = true;
                    let text = self.setup.plan.redactor.text(&describe_backend(id, &backend)).into_owned();
                    self.setup.observer.notice(&format!("{text}; waiting for it"));
                    if self.ends_backend(id, text).await {
                        self.setup.targets.terminate(&connection, backend.pid, PATIENCE).await?;
                        continue;
                    }
                }
                tokio::select! {
                    () = tokio::time::sleep(LOOK_AGAIN) => {}
                    Some(signal) = self.setup.signals.recv() => {
                        self.halt = Some(Halt::Interrupted(signal));
                        return Ok(false);
                    }
                }
            }
        }
        Ok(true)
    }

    async fn ends_backend(&mut self, id: &str, description: String) -> bool {
        let question = Question::Backend { step: id.to_owned(), description };
        matches!(self.ask_now(question).await, Some(Reply::Backend(true)))
    }

    async fn settle(&mut self, id: &str, step: &PlannedStep) -> Result<(), EngineError> {
        match step.recovery {
            Recovery::Ledger => self.resolved(id, Resolution::RunAgain, "the ledger in the target decides", None),
            Recovery::Repeat if step.step.settings.done_when.is_none() => {
                let reason = if step.needs_intent() { "it is idempotent" } else { "it only reads" };
                self.resolved(id, Resolution::RunAgain, reason, None);
            }
            _ => self.settle_by_looking(id, step).await?,
        }
        self.flush().await
    }

    async fn settle_by_looking(&mut self, id: &str, step: &PlannedStep) -> Result<(), EngineError> {
        let mut recheck = step.step.settings.done_when.is_some();
        loop {
            let mut trouble = None;
            if recheck {
                match self.look(id, step).await {
                    Ok(true) => {
                        self.done(id, "done_when holds", None);
                        return Ok(());
                    }
                    Ok(false) => {
                        self.resolved(id, Resolution::RunAgain, "done_when does not hold", None);
                        return Ok(());
                    }
                    Err(error) => trouble = Some(error),
                }
            }
            match self.ask_about(id, step, trouble).await {
                Some(UnknownDecision::Recheck) => recheck = true,
                Some(UnknownDecision::Done(reason)) => {
                    self.done(id, &reason, Some(self.setup.operator.user.clone()));
                    return Ok(());
                }
                Some(UnknownDecision::RunAgain(reason)) => {
                    self.resolved(id, Resolution::RunAgain, &reason, Some(self.setup.operator.user.clone()));
                    return Ok(());
                }
                Some(UnknownDecision::Leave) | None => {
                    self.halt = Some(Halt::Unknown);
                    return Ok(());
                }
            }
        }
    }

    async fn look(&mut self, id: &str, step: &PlannedStep) -> Result<bool, StepError> {
        let Some(check) = &step.step.settings.done_when else { return Ok(false) };
        let context = self.check_context(id, step)?;
        check.holds(&context).await
    }

    async fn ask_about(&mut self, id: &str, step: &PlannedStep, trouble: Option<StepError>) -> Option<UnknownDecision> {
        let last = self.state.progress(id).and_then(|progress| progress.errors.last().cloned());
        let question = Question::Unknown {
            step: id.to_owned(),
            description: describe(&self.setup.plan, step, id),
            error: trouble.map(|error| error.redacted(&self.setup.plan.redactor)).or(last).map(Box::new),
            can_recheck: step.step.settings.done_when.is_some(),
        };
        match self.ask_now(question).await {
            Some(Reply::Unknown(decision)) => Some(decision),
            _ => None,
        }
    }

    /// Asks while nothing else goes on.
    async fn ask_now(&mut self, question: Question) -> Option<Reply> {
        if !self.setup.prompter.interactive() {
            return None;
        }
        self.setup.observer.suspend(true);
        let prompter = self.setup.prompter.clone();
        let asked = tokio::task::spawn_blocking(move || prompter.ask(question));
        let reply = tokio::select! {
            reply = asked => reply.ok().flatten(),
            Some(signal) = self.setup.signals.recv() => {
                self.halt = Some(Halt::Interrupted(signal));
                None
            }
        };
        self.setup.observer.suspend(false);
        reply
    }

    fn resolved(&mut self, id: &str, resolution: Resolution, reason: &str, by: Option<String>) {
        self.record_urgent(EventKind::StepResolved { step: id.to_owned(), resolution, reason: reason.to_owned(), by });
    }

    /// The effect is in place: settled and over.
    fn done(&mut self, id: &str, reason: &str, by: Option<String>) {
        self.resolved(id, Resolution::Done, reason, by);
        let attempt = self.state.progress(id).map_or(0, |progress| progress.attempts);
        let result = StepResult { summary: format!("settled: {reason}"), ..StepResult::default() };
        let outcome = Outcome::Done { result: Box::new(result) };
        if let Some(task) = task_of(&self.setup.plan, id) {
            self.finish(task, attempt, outcome, Duration::ZERO);
        }
    }
}

fn describe_backend(id: &str, backend: &Backend) -> String {
    let age = humantime::format_duration(Duration::from_secs(backend.age.as_secs()));
    format!(
        "an earlier attempt of `{id}` still works on the server: pid {}, {}, since {age}: {}",
        backend.pid, backend.state, backend.query
    )
}
