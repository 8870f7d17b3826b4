//! The one loop: starts what may start, records what happened, reacts to signals.
//!
//! Alone it talks to the journal, the observer and the prompts; steps are tasks that
//! talk to it by messages. Events are collected and made durable together: at once when
//! an effect's intent or end is among them, otherwise within [`LINGER`], so that steps
//! which only read share a commit.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::gate::Gates;
use super::scheduler::{Scheduler, Task};
use super::step::{StepEnd, StepMessage};
use super::values::{nested_results, scope_values};
use super::{Ending, EngineError, Reply, Setup, Signal, StepDecision};
use crate::action::Request;
use crate::journal::{EventKind, Operator, Outcome, Pause, Phase, RunState, RunStatus, SkipCause, StepState};
use crate::output::{LiveOutput, LiveReceiver, LiveSender, live_channel};
use crate::target::Identity;
use crate::template::{StepResults, Values};

/// How long an event that nothing depends on may wait for company.
pub(super) const LINGER: Duration = Duration::from_millis(25);
/// More than this is written at once.
pub(super) const MOST_PENDING: usize = 256;
pub(super) const TICK: Duration = Duration::from_millis(100);
/// How often the journal is asked for what people said elsewhere.
pub(super) const POLL: Duration = Duration::from_millis(500);
/// An idle transaction of ours holds locks for nobody's benefit.
pub(super) const IDLE_IN_TRANSACTION: Duration = Duration::from_secs(60);

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
    pub(super) scheduler: Scheduler,
    /// What expressions of each scope see.
    pub(super) values: Vec<Values>,
    pub(super) results: Vec<StepResults>,
    pub(super) pending: Vec<EventKind>,
    /// When the oldest pending event must be written.
    pub(super) due: Option<Instant>,
    pub(super) urgent: bool,
    pub(super) tasks: JoinSet<(Task, StepEnd)>,
    pub(super) running: HashMap<Task, String>,
    /// Steps `--step` has let through.
    pub(super) let_through: Option<Task>,
    pub(super) gates: Gates,
    /// Fires at the first interrupt.
    pub(super) finish_up: CancellationToken,
    pub(super) cancel: CancellationToken,
    pub(super) messages: (mpsc::UnboundedSender<StepMessage>, mpsc::UnboundedReceiver<StepMessage>),
    pub(super) requests: (mpsc::Sender<Request>, mpsc::Receiver<Request>),
    pub(super) live: (LiveSender, LiveReceiver),
    pub(super) halt: Option<Halt>,
    pub(super) interrupts: u32,
    pub(super) failed: bool,
}

impl<'a> Dispatcher<'a> {
    pub(super) fn new(setup: Setup<'a>, run: String, state: RunState, identities: BTreeMap<String, Identity>) -> Self {
        let results = nested_results(&setup.plan.scopes);
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
            finish_up: CancellationToken::new(),
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
            _ = poll.tick() => self.look_into_journal().await?,
            _ = tick.tick() => self.setup.observer.tick(),
        }
        Ok(())
    }

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
            self.request(request).await?;
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

    fn interrupted(&mut self, signal: Signal) {
        self.interrupts += 1;
        self.record_urgent(EventKind::Interrupted { signal: signal.name().to_owned() });
        self.wind_down(Halt::Interrupted(signal));
        if self.interrupts == 1 {
            let last = if self.running.is_empty() { "" } else { ". Once more cancels what runs" };
            self.setup.observer.notice(&format!("{}: {}{last}", signal.name(), self.what_may_finish()));
        } else {
            self.setup.observer.notice("cancelling what runs; once more leaves at once (resume still works)");
            self.cancel.cancel();
        }
    }

    /// `runbook pause` asked for what the first interrupt does.
    pub(super) fn pause_asked(&mut self, by: &Operator) {
        if self.halt.is_none() || self.halt == Some(Halt::Failed) {
            self.wind_down(Halt::Quit);
        }
        self.setup.observer.notice(&format!("{by} asked for a pause: {}", self.what_may_finish()));
    }

    /// Nothing new begins; what runs may finish, batches after the current one.
    fn wind_down(&mut self, halt: Halt) {
        self.halt = Some(halt);
        self.finish_up.cancel();
        self.withdraw_gates();
        self.abandon_retries();
    }

    fn what_may_finish(&self) -> String {
        let names: Vec<_> = self.running.values().map(String::as_str).collect();
        if names.is_empty() { "stopping".into() } else { format!("nothing new is started; {} may finish", names.join(", ")) }
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
    pub(super) fn abandon(&mut self, id: &str) {
        self.running.retain(|_, running| running != id);
    }

    /// Once stopping was asked for, nothing waits for another attempt: nothing is in flight.
    pub(super) fn abandon_retries(&mut self) {
        if !self.finish_up.is_cancelled() {
            return;
        }
        let retrying: Vec<String> = self.running.values().filter(|id| self.is_retrying(id)).cloned().collect();
        retrying.iter().for_each(|id| self.abandon(id));
    }

    pub(super) fn is_retrying(&self, id: &str) -> bool {
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
}
