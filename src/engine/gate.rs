//! Gates: questions to people, asked one at a time, answered here or from elsewhere.
//!
//! Bookkeeping of who asked what, who agreed and until when; and the dispatcher's part
//! of settling them. A gate is never skipped: only an accepted answer opens it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::dispatcher::Dispatcher;
use super::scheduler::Task;
use super::starting::task_of;
use super::{EngineError, Prompter, Question, Reply};
use crate::action::{Answer, Prompt, PromptKind};
use crate::journal::EventKind;

/// An answer from the terminal.
#[derive(Debug)]
pub(super) enum Replied {
    Gate { step: String, reply: Option<Reply> },
    Step { task: Task, reply: Option<Reply> },
}

struct Waiting {
    title: String,
    prompt: Prompt,
    reply: oneshot::Sender<Answer>,
    deadline: Option<Instant>,
    /// This terminal has said its word.
    answered_here: bool,
}

/// The open questions of a run.
pub(super) struct Gates {
    waiting: BTreeMap<String, Waiting>,
    /// A question stands on the terminal.
    asking: bool,
    asking_step: bool,
    /// A question of `--step`, not put yet.
    step: Option<(Task, Question)>,
    /// Whose question it is, where it is a gate's.
    asked: Option<String>,
    silent: bool,
    replies: (mpsc::UnboundedSender<Replied>, mpsc::UnboundedReceiver<Replied>),
}

impl Default for Gates {
    fn default() -> Self {
        Self {
            waiting: BTreeMap::new(),
            asking: false,
            asking_step: false,
            step: None,
            asked: None,
            silent: false,
            replies: mpsc::unbounded_channel(),
        }
    }
}

impl Gates {
    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    pub(super) fn waits(&self, step: &str) -> bool {
        self.waiting.contains_key(step)
    }

    pub(super) fn waiting_steps(&self) -> Vec<String> {
        self.waiting.keys().cloned().collect()
    }

    pub(super) fn asking(&self) -> bool {
        self.asking
    }

    pub(super) fn asking_step(&self) -> bool {
        self.asking_step
    }

    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.waiting.values().filter_map(|waiting| waiting.deadline).min()
    }

    /// Asks nothing more; `forget` also drops the open questions.
    pub(super) fn stop_asking(&mut self, forget: bool) {
        self.silent = true;
        self.step = None;
        self.asking = false;
        self.asking_step = false;
        if forget {
            self.waiting.clear();
        }
    }

    pub(super) fn ask_again(&mut self) {
        self.silent = false;
    }

    pub(super) async fn reply(&mut self) -> Replied {
        match self.replies.1.recv().await {
            Some(reply) => {
                self.asking = false;
                self.asking_step = false;
                self.asked = None;
                reply
            }
            None => std::future::pending().await,
        }
    }

    pub(super) fn ask_step(&mut self, task: Task, question: Question) {
        self.asking = true;
        self.asking_step = true;
        self.step = Some((task, question));
    }

    /// What to ask next, if the terminal is free for it.
    fn next_question(&mut self) -> Option<(Asker, Question)> {
        if let Some((task, question)) = self.step.take() {
            return Some((Asker::Step(task), question));
        }
        if self.asking || self.silent {
            return None;
        }
        let (step, waiting) = self.waiting.iter().find(|(_, waiting)| !waiting.answered_here)?;
        self.asking = true;
        self.asked = Some(step.clone());
        Some((
            Asker::Gate(step.clone()),
            Question::Gate { step: step.clone(), title: waiting.title.clone(), prompt: waiting.prompt.clone() },
        ))
    }

    fn put(&self, asker: Asker, question: Question, prompter: Arc<dyn Prompter>) {
        let replies = self.replies.0.clone();
        tokio::task::spawn_blocking(move || {
            let reply = prompter.ask(question);
            let _ = replies.send(match asker {
                Asker::Gate(step) => Replied::Gate { step, reply },
                Asker::Step(task) => Replied::Step { task, reply },
            });
        });
    }
}

/// Who wants to know.
enum Asker {
    Gate(String),
    Step(Task),
}

impl Dispatcher<'_> {
    pub(super) fn gate_asked(&mut self, step: String, prompt: Prompt, reply: oneshot::Sender<Answer>) {
        let prompt = Prompt { message: self.setup.plan.redactor.text(&prompt.message).into_owned(), ..prompt };
        let asked_before = self.state.progress(&step).filter(|progress| progress.waiting.as_ref() == Some(&prompt));
        let since = asked_before.and_then(|progress| progress.waiting_since);
        let by_option = self.setup.assume_yes && prompt.kind == PromptKind::Confirm && prompt.approvers == 0;
        if since.is_none() && !by_option {
            self.record_urgent(EventKind::GateWaiting { step: step.clone(), prompt: Box::new(prompt.clone()) });
        }
        let waited = since.map_or(Duration::ZERO, |since| self.setup.clock.now().duration_since(since).try_into().unwrap_or_default());
        let deadline = prompt.timeout_seconds.map(|seconds| Instant::now() + Duration::from_secs(seconds).saturating_sub(waited));
        let title = self.title_of(&step);
        self.gates.waiting.insert(step.clone(), Waiting { title, prompt: prompt.clone(), reply, deadline, answered_here: false });
        if by_option {
            let by = format!("{} (--yes)", self.setup.operator.user);
            self.answer(&step, Answer { accepted: true, text: None, by });
        }
        self.settle_gate(&step);
    }

    fn title_of(&self, id: &str) -> String {
        let plan = &self.setup.plan;
        match task_of(plan, id) {
            Some(Task { step, instance: Some(instance) }) => format!("{} [{instance}]", plan.steps[step].title()),
            Some(Task { step, instance: None }) => plan.steps[step].title().to_owned(),
            None => id.to_owned(),
        }
    }

    pub(super) fn gate_replied(&mut self, step: &str, reply: Option<Reply>) {
        if let Some(waiting) = self.gates.waiting.get_mut(step) {
            waiting.answered_here = true;
            if let Some(Reply::Gate(answer)) = reply {
                self.answer(step, answer);
                self.settle_gate(step);
            }
        }
    }

    pub(super) fn expire_gates(&mut self) {
        let now = Instant::now();
        let expired: Vec<String> = self
            .gates
            .waiting
            .iter()
            .filter(|(_, waiting)| waiting.deadline.is_some_and(|deadline| deadline <= now))
            .map(|(step, _)| step.clone())
            .collect();
        for step in expired {
            self.answer(&step, Answer { accepted: false, text: Some("nobody answered in time".into()), by: "the timeout".into() });
            self.settle_gate(&step);
        }
    }

    /// Opens or closes a gate for which enough has been said.
    pub(super) fn settle_gate(&mut self, step: &str) {
        let Some(waiting) = self.gates.waiting.get(step) else { return };
        let given = self.answers(step);
        if let Some(answer) = verdict(&given, waiting.prompt.approvers)
            && let Some(waiting) = self.gates.waiting.remove(step)
        {
            let _ = waiting.reply.send(answer);
            if self.gates.asked.as_deref() == Some(step) {
                self.setup.prompter.withdraw();
            }
        }
    }

    fn answer(&mut self, step: &str, answer: Answer) {
        let host = self.setup.operator.host.clone();
        self.record_urgent(EventKind::GateAnswered { step: step.to_owned(), answer, host });
    }

    /// Answers recorded, and those about to be.
    fn answers(&self, step: &str) -> Vec<Answer> {
        let (asked_anew, pending) = self.pending_answers(step);
        let recorded = self.state.progress(step).filter(|_| !asked_anew).map(|progress| progress.answers.clone());
        recorded.unwrap_or_default().into_iter().chain(pending).collect()
    }

    /// Puts the next question, after everything that happened before it was shown.
    pub(super) async fn ask_next(&mut self) -> Result<(), EngineError> {
        if !self.setup.prompter.interactive() {
            return Ok(());
        }
        if let Some((asker, question)) = self.gates.next_question() {
            self.flush().await?;
            self.setup.observer.suspend(true);
            self.gates.put(asker, question, self.setup.prompter.clone());
        }
        Ok(())
    }
}

/// One decline closes a gate; enough different people open it.
fn verdict(answers: &[Answer], approvers: u32) -> Option<Answer> {
    if let Some(decline) = answers.iter().find(|answer| !answer.accepted) {
        return Some(decline.clone());
    }
    let mut people: Vec<&str> = answers.iter().map(|answer| answer.by.as_str()).collect();
    people.sort_unstable();
    people.dedup();
    let last = answers.last()?;
    (people.len() >= approvers.max(1) as usize).then(|| Answer { accepted: true, text: last.text.clone(), by: people.join(", ") })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(by: &str, accepted: bool) -> Answer {
        Answer { accepted, text: None, by: by.into() }
    }

    #[test]
    fn a_gate_opens_for_enough_different_people_only() {
        assert_eq!(verdict(&[], 0), None);
        assert_eq!(verdict(&[answer("ada", true)], 2), None);
        assert_eq!(verdict(&[answer("ada", true), answer("ada", true)], 2), None);
        assert_eq!(verdict(&[answer("ada", true), answer("bob", true)], 2), Some(answer("ada, bob", true)));
        assert_eq!(verdict(&[answer("ada", true), answer("bob", false)], 2), Some(answer("bob", false)));
    }
}
