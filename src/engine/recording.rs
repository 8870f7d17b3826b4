//! The dispatcher's journal: events are taken down, made durable together, applied and
//! shown, in this order.

use super::EngineError;
use super::dispatcher::{Dispatcher, LINGER, MOST_PENDING};
use crate::journal::{Event, EventKind, JournalError, Outcome, StepState};
use tokio::time::Instant;

impl Dispatcher<'_> {
    /// A step's outcome, also when its event is not written yet.
    pub(super) fn state_with_pending(&self, id: &str) -> Option<&Outcome> {
        let pending = self.pending.iter().rev().find_map(|kind| match kind {
            EventKind::StepFinished { step, outcome, .. } if step == id => Some(outcome),
            _ => None,
        });
        pending.or_else(|| match self.state.state_of(id) {
            StepState::Finished(outcome) => Some(outcome),
            _ => None,
        })
    }

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

    pub(super) async fn flush_if_due(&mut self) -> Result<(), EngineError> {
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
                Err(JournalError::Conflict { .. }) => self.look_into_journal().await?,
                other => break other?,
            }
        };
        self.announce(&written);
        Ok(())
    }

    /// Answers taken down and not written yet, and whether the question itself is such,
    /// so that what was written before answers another one.
    pub(super) fn pending_answers(&self, id: &str) -> (bool, Vec<crate::action::Answer>) {
        let asked = self.pending.iter().rposition(|kind| matches!(kind, EventKind::GateWaiting { step, .. } if step == id));
        let answers = self.pending.iter().skip(asked.unwrap_or(0)).filter_map(|kind| match kind {
            EventKind::GateAnswered { step, answer, .. } if step == id => Some(answer.clone()),
            _ => None,
        });
        (asked.is_some(), answers.collect())
    }

    pub(super) fn announce(&mut self, events: &[Event]) {
        for event in events {
            self.setup.observer.event(&self.setup.plan, &self.state, event);
        }
    }

    /// What `runbook approve` and `runbook pause` said from elsewhere.
    pub(super) async fn look_into_journal(&mut self) -> Result<(), EngineError> {
        let events = self.setup.journal.catch_up(&self.run, &mut self.state).await?;
        self.announce(&events);
        for event in events {
            match event.kind {
                EventKind::GateAnswered { step, .. } => self.settle_gate(&step),
                EventKind::PauseAsked { by } => self.pause_asked(&by),
                _ => {}
            }
        }
        Ok(())
    }
}
