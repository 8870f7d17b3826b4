//! The one loop: starts what may start, records what happened, reacts to signals.
//!
//! Alone it talks to the journal, the observer and the prompts; steps are tasks that
//! talk to it by messages. Events are collected and made durable together: at once when
//! an effect's intent or end is among them, otherwise within [`LINGER`], so that steps
//! which only read share a commit.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use minijinja::Value as TemplateValue;
use minijinja::value::Serde;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::gate::Gates;
use super::scheduler::{Scheduler, Task};
use super::step::{StepEnd, StepMessage, StepTask};
use super::{Ending, EngineError, Question, Reply, Setup, Signal, StepDecision};
use crate::action::{Request, StepContext};
use crate::journal::{Event, EventKind, JournalError, Outcome, Pause, Phase, RunState, RunStatus, SkipCause, StepState, base_id};
use crate::outcome::{ErrorKind, StepError, StepResult};
use crate::output::{LiveOutput, LiveReceiver, LiveSender, Output, OutputOptions, live_channel};
use crate::plan::PlannedStep;
use crate::target::{Identity, SessionSettings};
use crate::template::{StepResults, Values};

/// How long an event that nothing depends on may wait for company.
const LINGER: Duration = Duration::from_millis(25);
/// More than this is written at once.
const MOST_PENDING: usize = 256;
const TICK: Duration = Duration::from_millis(100);
/// How often the journal is asked for answers given elsewhere.
const POLL: Duration = Duration::from_millis(500);
/// An idle transaction of ours holds locks for nobody's benefit.
const IDLE_IN_TRANSACTION: Duration = Duration::from_secs(60);

/// Why nothing new is started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Halt {
    Failed,
    Unknown,
    Interrupted(Signal),
    Quit,
}

pub(super) struct Dispatcher<'a> {
    pub(super) setup: Setup<'a>,
    pub(super) run: String,
    pub(super) state: RunState,
    scheduler: Scheduler,
    /// What expressions of each scope see.
    values: Vec<Values>,
    results: Vec<StepResults>,
    pending: Vec<EventKind>,
    /// When the oldest pending event must be written.
    due: Option<Instant>,
    urgent: bool,
    tasks: JoinSet<(Task, StepEnd)>,
    running: HashMap<Task, String>,
    /// Steps `--step` has let through.
    let_through: Option<Task>,
    pub(super) gates: Gates,
    pub(super) cancel: CancellationToken,
    messages: (mpsc::UnboundedSender<StepMessage>, mpsc::UnboundedReceiver<StepMessage>),
    requests: (mpsc::Sender<Request>, mpsc::Receiver<Request>),
    live: (LiveSender, LiveReceiver),
    pub(super) halt: Option<Halt>,
    interrupts: u32,
    failed: bool,
}

impl<'a> Dispatcher<'a> {
    pub(super) fn new(setup: Setup<'a>, run: String, state: RunState, identities: BTreeMap<String, Identity>) -> Self {
        let results: Vec<StepResults> = setup.plan.scopes.iter().map(|_| StepResults::default()).collect();
        let values = setup
            .plan
            .scopes
            .iter()
            .zip(&results)
            .map(|(scope, results)| scope_values(scope, results, &identities, &run, &state, &setup))
            .collect();
        Self {
            scheduler: Scheduler::from_needs([], |_| true),
            values,
            results,
            pending: Vec::new(),
            due: None,
            urgent: false,
            tasks: JoinSet::new(),
            running: HashMap::new(),
            let_through: None,
            gates: Gates::default(),
            cancel: CancellationToken::new(),
            messages: mpsc::unbounded_channel(),
            requests: mpsc::channel(64),
            live: live_channel(),
            halt: None,
            interrupts: 0,
            failed: false,
            setup,
            run,
            state,
        }
    }

    /// From the first step to the last event.
    pub(super) async fn run(&mut self) -> Result<Ending, EngineError> {
        self.setup.observer.begin(&self.run, &self.setup.plan, &self.state);
        let outcome = self.run_phases().await;
        // Nothing may outlive the run, and no effect may begin after a journal that failed.
        self.cancel.cancel();
        if outcome.is_err() {
            self.wind_up().await;
        }
        self.tasks.shutdown().await;
        outcome
    }

    async fn run_phases(&mut self) -> Result<Ending, EngineError> {
        self.remember_results();
        self.settle_unknown().await?;
        if self.halt.is_none() && self.state.has_failed() {
            // An earlier process was stopped while it closed: that is brought to its end.
            self.halt = Some(Halt::Failed);
        }
        if self.halt.is_none() {
            self.run_phase(Phase::Steps).await?;
        }
        if self.halt.is_none() || self.halt == Some(Halt::Failed) {
            self.close().await?;
        }
        self.end().await
    }

    /// The closing phases: first the one that fits, then `always`.
    async fn close(&mut self) -> Result<(), EngineError> {
        self.failed = self.halt == Some(Halt::Failed);
        let fitting = if self.failed { Phase::OnFailure } else { Phase::OnSuccess };
        for phase in [fitting, Phase::Always] {
            if matches!(self.halt, Some(Halt::Interrupted(_) | Halt::Unknown | Halt::Quit)) || !self.gates.is_empty() {
                break;
            }
            self.halt = None;
            self.name_unstarted();
            self.run_phase(phase).await?;
            self.failed |= self.halt == Some(Halt::Failed);
        }
        // A gate among the closing steps waits like any other; the failure is the run's end only after it.
        if self.failed && self.halt.is_none() && self.gates.is_empty() {
            self.halt = Some(Halt::Failed);
        }
        Ok(())
    }

    async fn end(&mut self) -> Result<Ending, EngineError> {
        let (event, ending) = match self.halt {
            None if !self.gates.is_empty() => (EventKind::RunPaused { reason: Pause::Waiting }, Ending::Waiting),
            None => (EventKind::RunFinished { status: RunStatus::Done }, Ending::Done),
            Some(Halt::Failed) => (EventKind::RunPaused { reason: Pause::Failed }, Ending::Failed),
            Some(Halt::Unknown) => (EventKind::RunPaused { reason: Pause::Unknown }, Ending::Unknown),
            Some(Halt::Quit) => (EventKind::RunPaused { reason: Pause::Interrupted }, Ending::Quit),
            Some(Halt::Interrupted(signal)) if self.state.unsettled().is_empty() => {
                (EventKind::RunPaused { reason: Pause::Interrupted }, Ending::Interrupted(signal))
            }
            Some(Halt::Interrupted(signal)) => (EventKind::RunPaused { reason: Pause::Unknown }, Ending::Interrupted(signal)),
        };
        self.record(event);
        self.flush().await?;
        Ok(ending)
    }

    async fn run_phase(&mut self, phase: Phase) -> Result<(), EngineError> {
        self.gates.ask_again();
        let over: Vec<bool> =
            self.setup.plan.steps.iter().map(|step| matches!(self.state.state_of(&step.id), StepState::Finished(_))).collect();
        self.scheduler = Scheduler::new(&self.setup.plan, phase, |step| over[step]);
        let mut tick = tokio::time::interval(TICK);
        let mut poll = tokio::time::interval(POLL);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
        poll.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
        loop {
            self.start_ready().await?;
            self.flush_if_due().await?;
            self.ask_next().await?;
            if self.running.is_empty() && !self.gates.asking() {
                break;
            }
            if self.only_gates_left() {
                self.withdraw_gates();
                break;
            }
            self.react(&mut tick, &mut poll).await?;
        }
        self.drain_live().await?;
        self.flush().await
    }

    /// Waits for one thing to happen and deals with it.
    async fn react(&mut self, tick: &mut tokio::time::Interval, poll: &mut tokio::time::Interval) -> Result<(), EngineError> {
        let due = self.due.unwrap_or_else(|| Instant::now() + Duration::from_secs(3600));
        let gate_deadline = self.gates.next_deadline().unwrap_or_else(|| Instant::now() + Duration::from_secs(3600));
        tokio::select! {
            biased;
            Some(signal) = self.setup.signals.recv() => self.interrupted(signal),
            Some(ended) = self.tasks.join_next() => self.task_ended(ended).await?,
            Some(message) = self.messages.1.recv() => self.message(message).await?,
            Some(request) = self.requests.1.recv() => self.request(request).await?,
            reply = self.gates.reply() => self.replied(reply),
            Some(output) = self.live.1.recv() => self.show(&output).await?,
            () = tokio::time::sleep_until(gate_deadline) => self.expire_gates(),
            () = tokio::time::sleep_until(due) => self.flush().await?,
            _ = poll.tick(), if !self.gates.is_empty() => self.look_for_answers().await?,
            _ = tick.tick() => self.setup.observer.tick(),
        }
        Ok(())
    }

    // ---- starting -------------------------------------------------------------

    async fn start_ready(&mut self) -> Result<(), EngineError> {
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
    fn prepare(&mut self, task: Task) -> Result<Option<StepTask>, StepError> {
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

    fn skip_reason(&self, step: &PlannedStep, task: Task, values: &Values) -> Result<Option<(SkipCause, String)>, StepError> {
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

    /// A step's outcome, also when its event is not written yet.
    fn state_with_pending(&self, id: &str) -> Option<&Outcome> {
        let pending = self.pending.iter().rev().find_map(|kind| match kind {
            EventKind::StepFinished { step, outcome, .. } if step == id => Some(outcome),
            _ => None,
        });
        pending.or_else(|| match self.state.state_of(id) {
            StepState::Finished(outcome) => Some(outcome),
            _ => None,
        })
    }

    fn expand(&mut self, step: &PlannedStep, task: Task, values: &Values) -> Result<(), StepError> {
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

    fn step_task(&mut self, step: &PlannedStep, task: Task, values: Values) -> Result<StepTask, StepError> {
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

    fn context(
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
            output: self.outputs(id)(attempt),
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
    fn ledger_key(&self, step: &PlannedStep, id: &str) -> String {
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

    fn outputs(&self, id: &str) -> Box<dyn Fn(u32) -> Output + Send + Sync> {
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

    // ---- values ---------------------------------------------------------------

    fn values_for(&self, step: &PlannedStep, task: Task) -> Values {
        let values = &self.values[step.scope];
        let Some(instance) = task.instance else { return values.clone() };
        let items = self.state.progress(&step.id).and_then(|progress| progress.items.as_ref());
        let item =
            items.and_then(|items| items.get(instance)).cloned().or_else(|| self.pending_item(&step.id, instance)).unwrap_or(Value::Null);
        values.with_json(item_name(step), &item).with("index", instance)
    }

    fn pending_item(&self, id: &str, instance: usize) -> Option<Value> {
        self.pending.iter().find_map(|kind| match kind {
            EventKind::StepExpanded { step, items } if step == id => items.get(instance).cloned(),
            _ => None,
        })
    }

    /// Makes the results of an earlier process's steps readable.
    fn remember_results(&mut self) {
        let plan = self.setup.plan.clone();
        for step in &plan.steps {
            if let StepState::Finished(outcome) = self.state.state_of(&step.id).clone() {
                self.remember(step, &outcome);
            }
        }
    }

    fn remember(&self, step: &PlannedStep, outcome: &Outcome) {
        let nothing = StepResult::default();
        let result = match outcome {
            Outcome::Done { result } | Outcome::AlreadyDone { result } | Outcome::Warned { result, .. } => result,
            Outcome::Failed { error } => error.result.as_deref().unwrap_or(&nothing),
            Outcome::Skipped { .. } => &nothing,
        };
        self.results[step.scope].insert(step.local_id(), outcome.word(), result);
    }

    /// Closing steps may ask how a step stands that was never reached.
    fn name_unstarted(&self) {
        for step in &self.setup.plan.steps {
            if self.state.state_of(&step.id) == &StepState::Pending {
                self.results[step.scope].insert(step.local_id(), "pending", &StepResult::default());
            }
        }
    }

    // ---- what steps say -------------------------------------------------------

    async fn message(&mut self, message: StepMessage) -> Result<(), EngineError> {
        match message {
            StepMessage::Begin { step, attempt, durable } => {
                if self.halt.is_none() {
                    self.record(EventKind::StepStarted { step, attempt });
                    self.flush().await?;
                    let _ = durable.send(());
                } else {
                    self.abandon(&step);
                }
            }
            StepMessage::Retrying { step, attempt, error, delay } => {
                let delay_ms = u64::try_from(delay.as_millis()).unwrap_or(u64::MAX);
                self.record_urgent(EventKind::StepRetrying { step, attempt, error, delay_ms });
                self.abandon_retries();
            }
        }
        Ok(())
    }

    async fn request(&mut self, request: Request) -> Result<(), EngineError> {
        match request {
            Request::Ask { step, prompt, reply } => self.gate_asked(step, prompt, reply),
            Request::Progress { step, text, fraction } => {
                self.setup.observer.progress(&step, &self.setup.plan.redactor.text(&text), fraction)
            }
            Request::Console { step, title, message } => {
                // People read it below the steps that came before it.
                self.flush().await?;
                let redactor = &self.setup.plan.redactor;
                let title = title.map(|title| redactor.text(&title).into_owned());
                self.setup.observer.message(&step, title.as_deref(), &redactor.text(&message));
            }
        }
        Ok(())
    }

    /// A step's output is read below the ends of the steps before it.
    async fn show(&mut self, output: &LiveOutput) -> Result<(), EngineError> {
        self.flush().await?;
        if output.skipped > 0 {
            self.setup.observer.output(&output.step, &format!("… {} lines not shown; `runbook show` has them", output.skipped));
        }
        for line in &output.lines {
            if line.passing {
                self.setup.observer.progress(&output.step, &line.text, None);
            } else {
                self.setup.observer.output(&output.step, &line.text);
            }
        }
        Ok(())
    }

    async fn drain_live(&mut self) -> Result<(), EngineError> {
        while let Ok(output) = self.live.1.try_recv() {
            self.show(&output).await?;
        }
        while let Ok(request) = self.requests.1.try_recv() {
            if !matches!(request, Request::Ask { .. }) {
                self.request(request).await?;
            }
        }
        Ok(())
    }

    async fn task_ended(&mut self, ended: Result<(Task, StepEnd), tokio::task::JoinError>) -> Result<(), EngineError> {
        // What the step said before it ended belongs before its end.
        self.drain_live().await?;
        match ended {
            Ok((task, StepEnd::Finished { attempt, outcome, duration })) => {
                self.running.remove(&task);
                self.finish(task, attempt, outcome, duration);
            }
            Ok((task, StepEnd::Lost { attempt, error })) => {
                let step = self.running.remove(&task).unwrap_or_default();
                self.record_urgent(EventKind::StepLost { step, attempt, error });
                if !matches!(self.halt, Some(Halt::Interrupted(_))) {
                    self.halt = Some(Halt::Unknown);
                }
            }
            // A task we aborted ourselves: a gate that was withdrawn.
            Err(error) if error.is_cancelled() => {}
            Err(error) => return Err(EngineError::System(std::io::Error::other(error))),
        }
        Ok(())
    }

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

    fn fail(&mut self) {
        if self.halt.is_none() {
            self.halt = Some(Halt::Failed);
        }
    }

    /// The end of a `for_each` step: the worst end of its instances.
    fn finish_group(&mut self, index: usize) {
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

    fn instance_count(&self, id: &str) -> usize {
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

    // ---- stopping -------------------------------------------------------------

    fn interrupted(&mut self, signal: Signal) {
        self.interrupts += 1;
        self.halt = Some(Halt::Interrupted(signal));
        self.record_urgent(EventKind::Interrupted { signal: signal.name().to_owned() });
        self.withdraw_gates();
        self.abandon_retries();
        if self.interrupts == 1 {
            let names: Vec<_> = self.running.values().map(String::as_str).collect();
            let text = if names.is_empty() {
                format!("{}: stopping", signal.name())
            } else {
                format!("{}: nothing new is started; {} may finish. Once more cancels what runs", signal.name(), names.join(", "))
            };
            self.setup.observer.notice(&text);
        } else {
            self.setup.observer.notice("cancelling what runs; once more leaves at once (resume still works)");
            self.cancel.cancel();
        }
    }

    /// Nothing can go on without a person, and there is none at this terminal.
    fn only_gates_left(&self) -> bool {
        (!self.setup.prompter.interactive() || self.halt.is_some())
            && !self.running.is_empty()
            && self.running.values().all(|id| self.gates.waits(id))
    }

    /// Lets go of steps that only wait for a person: they have not begun.
    fn withdraw_gates(&mut self) {
        for id in self.gates.waiting_steps() {
            self.abandon(&id);
        }
        if self.gates.asking() {
            self.setup.prompter.withdraw();
        }
        self.gates.stop_asking(self.halt.is_some());
    }

    /// Forgets a step that has not begun; it stays pending.
    fn abandon(&mut self, id: &str) {
        self.running.retain(|_, running| running != id);
    }

    /// Once stopping was asked for, nothing waits for another attempt: nothing is in flight.
    fn abandon_retries(&mut self) {
        if self.interrupts == 0 {
            return;
        }
        let retrying: Vec<String> = self.running.values().filter(|id| self.is_retrying(id)).cloned().collect();
        retrying.iter().for_each(|id| self.abandon(id));
    }

    fn is_retrying(&self, id: &str) -> bool {
        let last = self.pending.iter().rev().find_map(|kind| match kind {
            EventKind::StepRetrying { step, .. } if step == id => Some(true),
            EventKind::StepStarted { step, .. } if step == id => Some(false),
            _ => None,
        });
        last.unwrap_or_else(|| self.state.state_of(id) == &StepState::Retrying)
    }

    /// After a failed journal: running actions are cancelled and get a moment to end.
    async fn wind_up(&mut self) {
        let _ = tokio::time::timeout(Duration::from_secs(10), async { while self.tasks.join_next().await.is_some() {} }).await;
    }

    // ---- step by step ---------------------------------------------------------

    fn ask_step(&mut self, step: &PlannedStep, task: Task) {
        let description = describe(&self.setup.plan, step, &task_id(step, task));
        let question = Question::Step { step: task_id(step, task), description, changes: step.needs_intent() };
        self.scheduler.put_back(task);
        self.gates.ask_step(task, question);
    }

    fn replied(&mut self, reply: super::gate::Replied) {
        self.setup.observer.suspend(false);
        match reply {
            super::gate::Replied::Gate { step, reply } => self.gate_replied(&step, reply),
            super::gate::Replied::Step { task, reply } => match reply {
                Some(Reply::Step(StepDecision::Run)) => self.let_through = Some(task),
                Some(Reply::Step(StepDecision::Skip(reason))) => {
                    if self.scheduler.take(task) {
                        let by = Some(self.setup.operator.user.clone());
                        self.finish(task, 0, Outcome::Skipped { cause: SkipCause::Operator, reason, by }, Duration::ZERO);
                    }
                }
                _ => self.halt = self.halt.or(Some(Halt::Quit)),
            },
        }
    }

    // ---- the journal ----------------------------------------------------------

    /// Takes an event down; it is written soon.
    pub(super) fn record(&mut self, kind: EventKind) {
        self.pending.push(kind);
        self.due.get_or_insert_with(|| Instant::now() + LINGER);
    }

    /// Takes an event down that must be durable before anything else happens.
    pub(super) fn record_urgent(&mut self, kind: EventKind) {
        self.record(kind);
        self.urgent = true;
    }

    async fn flush_if_due(&mut self) -> Result<(), EngineError> {
        let due = self.due.is_some_and(|due| due <= Instant::now());
        if self.urgent || due || self.pending.len() >= MOST_PENDING { self.flush().await } else { Ok(()) }
    }

    /// Makes what was taken down durable, applies it, and shows it.
    pub(super) async fn flush(&mut self) -> Result<(), EngineError> {
        self.urgent = false;
        self.due = None;
        if self.pending.is_empty() {
            return Ok(());
        }
        let kinds = std::mem::take(&mut self.pending);
        let redactor = self.setup.plan.redactor.clone();
        let written = loop {
            match self.setup.journal.append(&self.run, &mut self.state, kinds.clone(), &redactor).await {
                Err(JournalError::Conflict { .. }) => self.look_for_answers().await?,
                other => break other?,
            }
        };
        self.announce(&written);
        Ok(())
    }

    /// Answers taken down and not written yet.
    pub(super) fn pending_answers(&self, id: &str) -> Vec<crate::action::Answer> {
        let answers = self.pending.iter().filter_map(|kind| match kind {
            EventKind::GateAnswered { step, answer, .. } if step == id => Some(answer.clone()),
            _ => None,
        });
        answers.collect()
    }

    pub(super) fn announce(&mut self, events: &[Event]) {
        for event in events {
            self.setup.observer.event(&self.setup.plan, &self.state, event);
        }
    }

    /// Answers that `runbook approve` gave from elsewhere.
    async fn look_for_answers(&mut self) -> Result<(), EngineError> {
        let events = self.setup.journal.catch_up(&self.run, &mut self.state).await?;
        self.announce(&events);
        for event in events {
            if let EventKind::GateAnswered { step, .. } = event.kind {
                self.settle_gate(&step);
            }
        }
        Ok(())
    }
}

fn scope_values(
    scope: &crate::plan::Scope,
    results: &StepResults,
    identities: &BTreeMap<String, Identity>,
    run: &str,
    state: &RunState,
    setup: &Setup<'_>,
) -> Values {
    let connections: BTreeMap<&str, Value> = scope
        .connections
        .iter()
        .filter_map(|(name, full)| identities.get(full).map(|identity| (name.as_str(), connection_value(identity))))
        .collect();
    let run = json!({
        "id": run,
        "started_at": state.started_at.to_string(),
        "playbook": setup.plan.name,
        "environment": setup.plan.environment,
        "user": state.header.operator.user,
        "host": state.header.operator.host,
    });
    scope.values.with("steps", results.value()).with("connections", TemplateValue::from(Serde(connections))).with_json("run", &run)
}

fn connection_value(identity: &Identity) -> Value {
    json!({
        "database": identity.database_name(),
        "user": identity.user,
        "host": identity.host,
        "version": identity.version,
        "major_version": identity.major_version,
        "in_recovery": identity.in_recovery,
        "environment": identity.environment,
    })
}

fn item_name(step: &PlannedStep) -> &str {
    step.step.settings.item_name.as_ref().map_or("item", |name| name.value.as_str())
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

fn unreadable(error: &serde_json::Error) -> Outcome {
    Outcome::Failed { error: Box::new(StepError::new(ErrorKind::Io, format!("its result cannot be recorded: {error}"))) }
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

/// The plan's position of a step or instance.
pub(super) fn task_of(plan: &crate::plan::Plan, id: &str) -> Option<Task> {
    let base = base_id(id);
    let instance = id.strip_prefix(base).and_then(|rest| rest.strip_prefix('[')?.strip_suffix(']')?.parse().ok());
    Some(Task { step: plan.position(base)?, instance })
}
