//! A recorded run as `show` draws it: its head, its steps, and one step's whole story.

use std::collections::HashMap;

use serde_json::{Value, json};

use super::blocks::{self, Failed, step_line};
use super::narrator::{instance, instance_title, waiting_steps};
use super::summary::{Tally, next_commands, status};
use crate::action::Answer;
use crate::journal::{Event, EventKind, IllegalEvent, Operator, Outcome, Resolution, RunPhase, RunState, StepProgress, StepState};
use crate::outcome::StepResult;
use crate::text::table::plain_value;
use crate::text::{Field, Ink, Line, Style, count, fields, moment, paragraph, took};

/// A run and its events.
pub struct History {
    /// Its id.
    pub run: String,
    /// Its state.
    pub state: RunState,
    /// Nobody works on it although nobody stopped it.
    pub crashed: bool,
    events: Vec<Event>,
    titles: HashMap<String, String>,
}

/// An answer, where and when it was given.
struct Given<'a> {
    answer: &'a Answer,
    host: &'a str,
    event: &'a Event,
}

impl History {
    /// Folds a run's events; none where there are none. `is_alive` tells whether a process
    /// still works on the run.
    pub fn new(run: &str, events: Vec<Event>, is_alive: impl Fn(&Operator) -> bool) -> Result<Option<Self>, IllegalEvent> {
        let Some(state) = RunState::replay(&events)? else { return Ok(None) };
        let crashed = state.phase == RunPhase::Running && !is_alive(last_operator(&state, &events));
        let mut titles: HashMap<String, String> =
            state.header.steps.iter().map(|step| (step.id.clone(), step.name.clone().unwrap_or_else(|| step.id.clone()))).collect();
        for (id, progress) in &state.steps {
            let title = titles.get(id).cloned().unwrap_or_else(|| id.clone());
            let items = progress.items.as_deref().unwrap_or_default().iter().enumerate();
            titles.extend(items.map(|(index, item)| (format!("{id}[{index}]"), instance_title(&title, index, item))));
        }
        Ok(Some(Self { run: run.to_owned(), state, crashed, events, titles }))
    }

    /// The last process that took the run up.
    pub fn operator(&self) -> &Operator {
        last_operator(&self.state, &self.events)
    }

    /// The word for how it stands, and its ink.
    pub fn status(&self) -> (Ink, &'static str) {
        if self.crashed { (Ink::Bad, "crashed") } else { status(self.state.phase) }
    }

    /// From its beginning to its last event, pauses included.
    pub fn duration_ms(&self) -> u64 {
        u64::try_from(self.state.last_at.duration_since(self.state.started_at).as_millis()).unwrap_or(0)
    }

    /// Every step and instance, in the order of the playbook.
    pub fn steps(&self) -> Vec<String> {
        let mut all = Vec::new();
        for step in &self.state.header.steps {
            all.push(step.id.clone());
            let items = self.state.progress(&step.id).and_then(|progress| progress.items.as_ref()).map_or(0, Vec::len);
            all.extend((0..items).map(|index| format!("{}[{index}]", step.id)));
        }
        all
    }

    /// The whole run for people.
    pub fn draw(&self, command: &str, style: Style) -> Vec<Line> {
        let mut lines = self.head(style);
        lines.push(Line::new());
        for step in self.steps() {
            lines.extend(self.step_in_run(&step, style));
        }
        for step in waiting_steps(&self.state) {
            let Some(progress) = self.state.progress(step) else { continue };
            let Some(prompt) = &progress.waiting else { continue };
            lines.push(Line::new());
            lines.push(step_line(Ink::Warn, "WAITING", None, self.title(step), ""));
            lines.extend(blocks::waiting(command, &self.run, step, prompt, &agreed(progress), style));
        }
        if !matches!(self.state.phase, RunPhase::Finished(_)) {
            lines.push(Line::new());
            lines.extend(next_commands(command, &self.run, &self.state));
        }
        lines
    }

    fn head(&self, style: Style) -> Vec<Line> {
        let header = &self.state.header;
        let (ink, word) = self.status();
        let title = Line::new().then(Ink::Strong, &header.playbook).then(Ink::Plain, "  run ").then(Ink::Accent, &self.run);
        let mut parts =
            vec![Field::new("status", vec![Line::new().then(ink, word).then(Ink::Plain, format!(": {}", Tally::of(&self.state).words()))])];
        parts.push(Field::text("file", &header.file, style));
        parts.push(Field::text("started", &format!("{} by {}", moment(self.state.started_at), header.operator), style));
        for event in &self.events {
            match &event.kind {
                EventKind::RunResumed { operator, digest } => {
                    let edited = if digest.is_some() { ", with an edited playbook" } else { "" };
                    parts.push(Field::text("resumed", &format!("{} by {operator}{edited}", moment(event.at)), style));
                }
                EventKind::PauseAsked { by } => parts.push(Field::text("pause", &format!("{} asked for by {by}", moment(event.at)), style)),
                EventKind::Interrupted { signal } => parts.push(Field::text("signal", &format!("{} {signal}", moment(event.at)), style)),
                _ => {}
            }
        }
        parts.push(Field::text(
            "last event",
            &format!("{}, {} after the start", moment(self.state.last_at), took(self.duration_ms())),
            style,
        ));
        parts.extend(header.targets.iter().map(|(name, identity)| Field::text(format!("target {name}"), identity, style)));
        let params = header.params.iter().map(|(name, value)| Line::plain(format!("{name} = {}", plain_value(value)))).collect();
        parts.push(Field::new("params", params));
        let selection = [("only", &header.selection.only), ("skip", &header.selection.skip)];
        parts.extend(selection.iter().filter(|(_, ids)| !ids.is_empty()).map(|(label, ids)| Field::text(*label, &ids.join(", "), style)));
        parts.extend(header.selection.from.iter().map(|id| Field::text("from", id, style)));
        if header.assume_yes {
            parts.push(Field::text("--yes", "plain confirmations were answered beforehand", style));
        }
        parts.push(Field::text("engine", &header.engine, style));
        std::iter::once(title).chain(fields(&parts)).collect()
    }

    fn step_in_run(&self, step: &str, style: Style) -> Vec<Line> {
        let progress = self.state.progress(step);
        let (ink, word) = self.step_status(step);
        let time = progress
            .filter(|progress| progress.attempts > 0 && matches!(progress.state, StepState::Finished(_)))
            .map(|progress| progress.duration_ms);
        let title = match self.title(step) {
            title if title == step => step.to_owned(),
            title => format!("{step}  {title}"),
        };
        let value = match self.state.state_of(step) {
            StepState::Finished(Outcome::Done { result } | Outcome::AlreadyDone { result } | Outcome::Warned { result, .. }) => {
                result.summary.clone()
            }
            StepState::Finished(Outcome::Failed { error }) => error.message.clone(),
            StepState::Finished(Outcome::Skipped { reason, by, .. }) => by_whom(reason, by.as_deref()),
            _ => String::new(),
        };
        let mut line = step_line(ink, word, time, &title, &value);
        if let Some(attempts) = progress.map(|progress| progress.attempts).filter(|attempts| *attempts > 1) {
            line.push(Ink::Warn, format!("  ({attempts} attempts)"));
        }
        let mut lines = vec![line];
        for given in self.answers(step) {
            let text = format!("{} {}", moment(given.event.at), said(given.answer, given.host));
            lines.extend(paragraph(Ink::Dim, &text, style, 22).into_iter().map(|line| line.indented(22)));
        }
        if let Some((resolution, reason)) = progress.and_then(|progress| progress.resolved.as_ref()) {
            let text = format!("settled: {}: {reason}", resolved(*resolution));
            lines.extend(paragraph(Ink::Dim, &text, style, 22).into_iter().map(|line| line.indented(22)));
        }
        lines
    }

    fn step_status(&self, step: &str) -> (Ink, &'static str) {
        let progress = self.state.progress(step);
        match self.state.state_of(step) {
            StepState::Finished(Outcome::Done { .. } | Outcome::AlreadyDone { .. }) => (Ink::Good, self.state.state_of(step).word()),
            StepState::Finished(Outcome::Warned { .. }) => (Ink::Warn, "WARNING"),
            StepState::Finished(Outcome::Failed { .. }) => (Ink::Bad, "FAILED"),
            StepState::Finished(Outcome::Skipped { .. }) => (Ink::Dim, "skipped"),
            StepState::Started if self.crashed || self.state.phase != RunPhase::Running => (Ink::Bad, "UNKNOWN"),
            StepState::Started => (Ink::Accent, "running"),
            StepState::Retrying => (Ink::Warn, "retrying"),
            StepState::Pending if progress.is_some_and(|progress| progress.waiting.is_some()) => (Ink::Warn, "WAITING"),
            StepState::Pending => (Ink::Dim, "not run"),
        }
    }

    /// One step for people; none where the run has no such step.
    pub fn draw_step(&self, step: &str, command: &str, style: Style) -> Option<Vec<Line>> {
        let base = instance(step).map_or(step, |(base, _)| base);
        let record = self.state.header.steps.iter().find(|record| record.id == step || record.id == base)?;
        if record.id != step && !self.titles.contains_key(step) {
            return None;
        }
        let (ink, word) = self.step_status(step);
        let mut lines = vec![Line::new().then(ink, word).then(Ink::Plain, "  ").then(Ink::Strong, step)];
        if self.title(step) != step {
            lines[0].push(Ink::Plain, format!("  {}", self.title(step)));
        }
        let mut parts = vec![Field::text("run", &format!("{} of {}", self.run, self.state.header.playbook), style)];
        parts.push(Field::text("class", &record.class.to_string(), style));
        let story: Vec<Line> = self.events.iter().filter_map(|event| self.told(step, event)).collect();
        parts.push(Field::new("history", story));
        if let Some(items) = self.state.progress(step).and_then(|progress| progress.items.as_ref()) {
            parts.push(Field::text("instances", &count(items.len() as u64, "item"), style));
        }
        match self.state.state_of(step) {
            StepState::Finished(Outcome::Done { result } | Outcome::AlreadyDone { result }) => parts.extend(result_fields(result, style)),
            StepState::Finished(Outcome::Warned { result, error }) => {
                parts.extend(result_fields(result, style));
                parts.push(Field::text("warning", &error.message, style));
            }
            StepState::Finished(Outcome::Failed { error }) => {
                parts.extend(error.result.iter().flat_map(|result| result_fields(result, style)))
            }
            _ => {}
        }
        lines.extend(fields(&parts));
        if let StepState::Finished(Outcome::Failed { error }) = self.state.state_of(step) {
            lines.push(Line::new());
            lines.extend(blocks::failure(Failed { command, run: &self.run, step, about: None, excerpt: None }, error, style));
        }
        if let Some(progress) = self.state.progress(step).filter(|progress| !matches!(progress.state, StepState::Finished(_)))
            && let Some(prompt) = &progress.waiting
        {
            lines.push(Line::new());
            lines.extend(blocks::waiting(command, &self.run, step, prompt, &agreed(progress), style));
        }
        Some(lines)
    }

    /// An event of a step in a line.
    fn told(&self, wanted: &str, event: &Event) -> Option<Line> {
        let (step, text) = match &event.kind {
            EventKind::StepExpanded { step, items } => (step, format!("expands into {}", count(items.len() as u64, "instance"))),
            EventKind::StepStarted { step, attempt } => (step, format!("attempt {attempt} begins")),
            EventKind::StepRetrying { step, attempt, error, delay_ms } => {
                (step, format!("attempt {attempt} failed, again in {}: {}", took(*delay_ms), error.message))
            }
            EventKind::StepLost { step, attempt, error } => {
                (step, format!("attempt {attempt} ended with an unknown effect: {}", error.message))
            }
            EventKind::StepFinished { step, attempt, outcome, duration_ms } => (step, finished(*attempt, outcome, *duration_ms)),
            EventKind::GateWaiting { step, prompt } => (step, format!("waits for an answer: {}", prompt.message)),
            EventKind::GateAnswered { step, answer, host } => (step, said(answer, host)),
            EventKind::StepResolved { step, resolution, reason, by } => {
                (step, format!("settled: {}: {}", resolved(*resolution), by_whom(reason, by.as_deref())))
            }
            _ => return None,
        };
        (step == wanted).then(|| Line::new().then(Ink::Dim, moment(event.at)).then(Ink::Plain, format!("  {text}")))
    }

    fn answers<'a>(&'a self, wanted: &'a str) -> impl Iterator<Item = Given<'a>> {
        self.events.iter().filter_map(move |event| match &event.kind {
            EventKind::GateAnswered { step, answer, host } if step == wanted => Some(Given { answer, host, event }),
            _ => None,
        })
    }

    fn title<'a>(&'a self, step: &'a str) -> &'a str {
        self.titles.get(step).map_or(step, String::as_str)
    }

    /// The run for programs, in a list.
    pub fn summary_json(&self) -> Value {
        json!({
            "run": self.run,
            "playbook": self.state.header.playbook,
            "file": self.state.header.file,
            "status": self.status().1,
            "started_at": self.state.started_at,
            "last_at": self.state.last_at,
            "duration_ms": self.duration_ms(),
            "operator": self.operator(),
            "steps": Tally::of(&self.state),
        })
    }

    /// The whole run for programs.
    pub fn json(&self) -> Value {
        let mut value = self.summary_json();
        value["version"] = 1.into();
        value["header"] = serde_json::to_value(&self.state.header).unwrap_or_default();
        value["steps_by_id"] =
            self.steps().into_iter().map(|step| (step.clone(), self.step_fields(&step))).collect::<serde_json::Map<_, _>>().into();
        value
    }

    /// One step for programs, with its events; none where the run has no such step.
    pub fn step_json(&self, step: &str) -> Option<Value> {
        self.titles.contains_key(step).then(|| {
            let events: Vec<&Event> = self.events.iter().filter(|event| self.told(step, event).is_some()).collect();
            let mut value = self.step_fields(step);
            value["version"] = 1.into();
            value["run"] = self.run.clone().into();
            value["step"] = step.into();
            value["events"] = json!(events);
            value
        })
    }

    fn step_fields(&self, step: &str) -> Value {
        let progress = self.state.progress(step);
        let answers: Vec<Value> = self
            .answers(step)
            .map(|given| json!({ "at": given.event.at, "accepted": given.answer.accepted, "text": given.answer.text, "by": given.answer.by, "host": given.host }))
            .collect();
        let outcome = match self.state.state_of(step) {
            StepState::Finished(outcome) => json!(outcome),
            _ => Value::Null,
        };
        json!({
            "status": self.step_status(step).1.to_lowercase(),
            "name": self.title(step),
            "attempts": progress.map_or(0, |progress| progress.attempts),
            "started_at": progress.and_then(|progress| progress.started_at),
            "finished_at": progress.and_then(|progress| progress.finished_at),
            "duration_ms": progress.map_or(0, |progress| progress.duration_ms),
            "answers": answers,
            "waiting": progress.and_then(|progress| progress.waiting.as_ref()),
            "outcome": outcome,
        })
    }
}

fn last_operator<'a>(state: &'a RunState, events: &'a [Event]) -> &'a Operator {
    let resumed = events.iter().rev().find_map(|event| match &event.kind {
        EventKind::RunResumed { operator, .. } => Some(operator),
        _ => None,
    });
    resumed.unwrap_or(&state.header.operator)
}

/// Who has agreed so far.
pub(super) fn agreed(progress: &StepProgress) -> Vec<String> {
    progress.answers.iter().filter(|answer| answer.accepted).map(|answer| answer.by.clone()).collect()
}

fn said(answer: &Answer, host: &str) -> String {
    let words = match (&answer.text, answer.accepted) {
        (Some(text), true) => format!("answered `{text}`"),
        (None, true) => "said yes".to_owned(),
        (Some(text), false) => format!("said no: {text}"),
        (None, false) => "said no".to_owned(),
    };
    format!("{} on {host} {words}", answer.by)
}

fn resolved(resolution: Resolution) -> &'static str {
    match resolution {
        Resolution::Done => "its effect is in place",
        Resolution::RunAgain => "it is run again",
    }
}

fn by_whom(reason: &str, by: Option<&str>) -> String {
    by.map_or_else(|| reason.to_owned(), |by| format!("{reason}, says {by}"))
}

fn finished(attempt: u32, outcome: &Outcome, duration_ms: u64) -> String {
    let when = if attempt > 0 { format!(" after {} (attempt {attempt})", took(duration_ms)) } else { String::new() };
    let value = match outcome {
        Outcome::Done { result } | Outcome::AlreadyDone { result } => result.summary.clone(),
        Outcome::Warned { error, .. } | Outcome::Failed { error } => error.message.clone(),
        Outcome::Skipped { reason, by, .. } => by_whom(reason, by.as_deref()),
    };
    if value.is_empty() { format!("{}{when}", outcome.word()) } else { format!("{}{when}: {value}", outcome.word()) }
}

fn result_fields(result: &StepResult, style: Style) -> Vec<Field> {
    let mut parts = Vec::new();
    let mut add = |label: &str, text: Option<String>| parts.extend(text.map(|text| Field::text(label, &text, style)));
    add("observed", (!result.summary.is_empty()).then(|| result.summary.clone()));
    add("value", result.value.as_ref().map(plain_value));
    add("row count", result.row_count.map(|rows| rows.to_string()));
    add("affected", result.rows_affected.map(|rows| count(rows, "row")));
    add("exit code", result.exit_code.map(|code| code.to_string()));
    add("status", result.http_status.map(|status| status.to_string()));
    add("answer", result.answer.clone());
    add("file", result.file.clone());
    if !result.rows.is_empty() {
        parts.push(blocks::rows(result, style));
    }
    let outputs: Vec<Line> = result.outputs.iter().map(|(name, value)| Line::plain(format!("{name} = {}", plain_value(value)))).collect();
    parts.push(Field::new("outputs", outputs));
    parts.extend(result.findings.iter().map(|finding| Field::text("finding", finding, style)));
    parts
}
