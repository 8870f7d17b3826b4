//! Decides what is said of a run, in lines; where they go is the observers' business.

use std::collections::HashMap;
use std::time::Duration;

use serde_json::Value;

use super::Options;
use super::blocks::{self, Failed, step_line};
use super::history::agreed;
use super::summary::{Tally, next_commands, status};
use crate::journal::{Event, EventKind, Outcome, Pause, Resolution, RunPhase, RunState, StepState};
use crate::outcome::{StepError, StepResult};
use crate::plan::Plan;
use crate::text::{Field, Ink, Line, Style, count, fields, paragraph, took};

/// After this long a step is called slow.
pub(super) const SLOW: Duration = Duration::from_secs(60);

/// Turns events into lines.
#[derive(Debug)]
pub(super) struct Narrator {
    pub(super) options: Options,
    run: String,
    titles: HashMap<String, String>,
    /// When this process took the run up, on its own clock.
    begun: Duration,
}

impl Narrator {
    pub(super) fn new(options: Options) -> Self {
        Self { options, run: String::new(), titles: HashMap::new(), begun: Duration::ZERO }
    }

    /// A run begins or goes on.
    pub(super) fn begin(&mut self, run: &str, plan: &Plan, state: &RunState, now: Duration) -> Vec<Line> {
        run.clone_into(&mut self.run);
        self.begun = now;
        self.titles = state.header.steps.iter().filter_map(|step| Some((step.id.clone(), step.name.clone()?))).collect();
        for (step, progress) in &state.steps {
            self.name_instances(step, progress.items.as_deref().unwrap_or_default());
        }
        if self.options.quiet {
            return Vec::new();
        }
        let steps = count(state.header.steps.len() as u64, "step");
        let mut line = Line::new().then(Ink::Strong, &state.header.playbook).then(Ink::Dim, format!("  {steps}, run "));
        line = line.then(Ink::Accent, run);
        if let Some(environment) = &plan.environment {
            line = line.then(Ink::Dim, ", environment ").then(Ink::Strong, environment);
        }
        let mut lines = vec![line];
        lines.extend(state.header.targets.iter().map(|(name, identity)| Line::new().then(Ink::Dim, format!("  {name}: {identity}"))));
        if state.next_sequence > 1 {
            let tally = Tally::of(state);
            lines.push(Line::plain(format!(
                "  goes on: {} of {} settled, what is done stays done",
                tally.settled(),
                count(tally.total, "step")
            )));
        }
        lines.push(Line::new());
        lines
    }

    /// Something happened.
    pub(super) fn event(&mut self, plan: &Plan, state: &RunState, event: &Event, style: Style, now: Duration) -> Vec<Line> {
        if let EventKind::StepExpanded { step, items } = &event.kind {
            self.name_instances(step, items);
        }
        match &event.kind {
            EventKind::StepFinished { step, attempt, outcome, duration_ms } => {
                let time = (*attempt > 0).then_some(*duration_ms);
                self.finished(plan, state, step, time, outcome, style)
            }
            EventKind::RunPaused { .. } | EventKind::RunFinished { .. } => self.end(state, style, now),
            _ if self.options.quiet => Vec::new(),
            EventKind::StepRetrying { step, attempt, error, delay_ms } => {
                let value = format!("{}; attempt {} in {}", error.message, attempt + 1, took(*delay_ms));
                vec![step_line(Ink::Warn, "retrying", None, self.name(step), &value)]
            }
            EventKind::StepLost { step, error, .. } => {
                let mut lines = vec![step_line(Ink::Bad, "UNKNOWN", None, self.name(step), &error.message)];
                lines.extend(blocks::details(about(plan, step), error, style));
                lines
            }
            EventKind::StepResolved { step, resolution, reason, by } => {
                let (word, meaning) = match resolution {
                    Resolution::Done => ("settled", "its effect is in place"),
                    Resolution::RunAgain => ("settled", "it is run again"),
                };
                let by = by.as_ref().map_or_else(String::new, |by| format!(", says {by}"));
                vec![step_line(Ink::Accent, word, None, self.name(step), &format!("{meaning}: {reason}{by}"))]
            }
            EventKind::GateWaiting { step, prompt } if !self.options.asks => {
                vec![step_line(Ink::Warn, "WAITING", None, self.name(step), first_line(&prompt.message))]
            }
            _ if !self.options.verbose => Vec::new(),
            EventKind::StepExpanded { step, items } => {
                vec![step_line(Ink::Dim, "expands", None, self.name(step), &count(items.len() as u64, "instance"))]
            }
            EventKind::GateAnswered { step, answer, host } => {
                let said = match (&answer.text, answer.accepted) {
                    (Some(text), true) => format!("`{text}`"),
                    (None, true) => "yes".to_owned(),
                    (Some(text), false) => format!("no: {text}"),
                    (None, false) => "no".to_owned(),
                };
                vec![step_line(Ink::Dim, "answer", None, self.name(step), &format!("{said}, by {} on {host}", answer.by))]
            }
            _ => Vec::new(),
        }
    }

    fn finished(&self, plan: &Plan, state: &RunState, step: &str, time: Option<u64>, outcome: &Outcome, style: Style) -> Vec<Line> {
        let title = self.name(step);
        let group = state.progress(step).is_some_and(|progress| progress.items.is_some());
        if self.options.quiet && !matches!(outcome, Outcome::Failed { .. }) {
            return Vec::new();
        }
        match outcome {
            Outcome::Done { result } => self.with_result(step_line(Ink::Good, "done", time, title, &result.summary), result, group, style),
            Outcome::AlreadyDone { result } => {
                self.with_result(step_line(Ink::Good, "already done", time, title, &result.summary), result, group, style)
            }
            Outcome::Warned { result, error } => {
                let mut lines = vec![step_line(Ink::Warn, "WARNING", time, title, &result.summary)];
                lines.extend(paragraph(Ink::Plain, &error.message, style, 2).into_iter().map(|line| line.indented(2)));
                lines.extend(blocks::details(about(plan, step), error, style));
                lines
            }
            Outcome::Skipped { reason, by, .. } => {
                let by = by.as_ref().map_or_else(String::new, |by| format!(", says {by}"));
                vec![step_line(Ink::Dim, "skipped", None, title, &format!("{reason}{by}"))]
            }
            // Each instance has had its own block.
            Outcome::Failed { error } if group => vec![step_line(Ink::Bad, "FAILED", time, title, &error.message)],
            Outcome::Failed { error } => {
                let observed = error.result.as_ref().map_or("", |result| result.summary.as_str());
                let mut lines = vec![step_line(Ink::Bad, "FAILED", time, title, observed)];
                let failed = Failed {
                    command: &self.options.command,
                    run: &self.run,
                    step,
                    about: about(plan, step),
                    excerpt: excerpt(plan, error),
                };
                lines.extend(blocks::failure(failed, error, style));
                lines
            }
        }
    }

    /// What a step that went well has found, below its line; the rows only for who asks for more.
    fn with_result(&self, line: Line, result: &StepResult, group: bool, style: Style) -> Vec<Line> {
        let mut lines = vec![line];
        if group {
            return lines;
        }
        let mut parts: Vec<Field> = result.findings.iter().map(|finding| Field::text("finding", finding, style)).collect();
        if self.options.verbose && !result.rows.is_empty() && (result.rows.len() > 1 || result.columns.len() > 1) {
            parts.push(blocks::rows(result, style));
        }
        lines.extend(fields(&parts));
        lines
    }

    /// The closing summary.
    fn end(&self, state: &RunState, style: Style, now: Duration) -> Vec<Line> {
        let mut lines = if self.options.quiet { Vec::new() } else { vec![Line::new()] };
        if state.phase == RunPhase::Paused(Pause::Waiting) {
            for step in waiting_steps(state) {
                lines.extend(self.gate(state, step, style));
                lines.push(Line::new());
            }
        }
        let (ink, word) = status(state.phase);
        let elapsed = u64::try_from(now.saturating_sub(self.begun).as_millis()).unwrap_or(u64::MAX);
        let mut line = Line::new().then(ink, word).then(Ink::Plain, format!(" after {}: {}", took(elapsed), Tally::of(state).words()));
        if self.options.quiet {
            line = line.then(Ink::Dim, format!(" ({}, run {})", state.header.playbook, self.run));
        }
        lines.push(line);
        let findings = findings(state);
        if !self.options.quiet && !findings.is_empty() {
            lines.push(Line::new().then(Ink::Warn, format!("  {}:", count(findings.len() as u64, "finding"))));
            lines.extend(findings.iter().map(|(step, finding)| Line::plain(format!("    {}: {finding}", self.name(step)))));
        }
        if !(self.options.quiet && matches!(state.phase, RunPhase::Finished(_))) {
            lines.extend(next_commands(&self.options.command, &self.run, state).into_iter().map(|line| line.indented(2)));
        }
        lines
    }

    fn gate(&self, state: &RunState, step: &str, style: Style) -> Vec<Line> {
        let Some(progress) = state.progress(step) else { return Vec::new() };
        let Some(prompt) = &progress.waiting else { return Vec::new() };
        let mut lines = vec![step_line(Ink::Warn, "WAITING", None, self.name(step), "")];
        lines.extend(blocks::waiting(&self.options.command, &self.run, step, prompt, &agreed(progress), style));
        lines
    }

    /// An attempt begins.
    pub(super) fn started(&self, step: &str, attempt: u32) -> Vec<Line> {
        if !self.options.verbose {
            return Vec::new();
        }
        let again = if attempt > 1 { format!("attempt {attempt}") } else { String::new() };
        vec![step_line(Ink::Dim, "begins", None, self.name(step), &again)]
    }

    /// A line of a step's output; the step is named where several run.
    pub(super) fn output(&self, step: &str, text: &str, named: bool) -> Line {
        let prefix = if named { format!("  {step} │ ") } else { "  │ ".into() };
        Line::new().then(Ink::Dim, prefix).then(Ink::Plain, text)
    }

    /// A message of the playbook.
    pub(super) fn message(&self, title: Option<&str>, text: &str, style: Style) -> Vec<Line> {
        blocks::message(title, text, style)
    }

    /// A step takes long.
    pub(super) fn slow(&self, state_title: &str, running: Duration) -> Line {
        let milliseconds = u64::try_from(running.as_millis()).unwrap_or(u64::MAX);
        step_line(Ink::Warn, "SLOW", Some(milliseconds), state_title, "still running")
    }

    /// How far a long step is, where there is no live area.
    pub(super) fn progress(&self, step: &str, running: Duration, text: &str) -> Line {
        let milliseconds = u64::try_from(running.as_millis()).unwrap_or(u64::MAX);
        step_line(Ink::Accent, "running", Some(milliseconds), self.name(step), text)
    }

    /// A step's name, or its id; an instance's with its item.
    pub(super) fn name<'a>(&'a self, step: &'a str) -> &'a str {
        self.titles.get(step).map_or(step, String::as_str)
    }

    fn name_instances(&mut self, step: &str, items: &[Value]) {
        for (index, item) in items.iter().enumerate() {
            let title = instance_title(self.name(step), index, item);
            self.titles.insert(format!("{step}[{index}]"), title);
        }
    }
}

/// The name of one instance of a `for_each` step.
pub(super) fn instance_title(title: &str, index: usize, item: &Value) -> String {
    match item {
        Value::String(text) => format!("{title} [{text}]"),
        Value::Number(_) | Value::Bool(_) => format!("{title} [{item}]"),
        _ => format!("{title} [{index}]"),
    }
}

/// Step and index of `step[3]`.
pub(super) fn instance(id: &str) -> Option<(&str, usize)> {
    let (base, index) = id.strip_suffix(']')?.rsplit_once('[')?;
    Some((base, index.parse().ok()?))
}

/// What is not as it should be but stopped nothing.
fn findings(state: &RunState) -> Vec<(&str, &str)> {
    let mut found = Vec::new();
    for step in &state.header.steps {
        if let StepState::Finished(Outcome::Done { result } | Outcome::AlreadyDone { result } | Outcome::Warned { result, .. }) =
            state.state_of(&step.id)
        {
            found.extend(result.findings.iter().map(|finding| (step.id.as_str(), finding.as_str())));
        }
    }
    found
}

/// Steps and instances with an open question, in the order of the playbook.
pub fn waiting_steps(state: &RunState) -> Vec<&str> {
    let mut waiting: Vec<&str> = state
        .steps
        .iter()
        .filter(|(_, progress)| progress.waiting.is_some() && !matches!(progress.state, StepState::Finished(_)))
        .map(|(id, _)| id.as_str())
        .collect();
    let position = |id: &str| {
        let base = instance(id).map_or(id, |(base, _)| base);
        state.header.steps.iter().position(|step| step.id == base)
    };
    waiting.sort_by_key(|id| (position(id), instance(id).map(|(_, index)| index)));
    waiting
}

/// What the author says about a step.
fn about<'a>(plan: &'a Plan, step: &str) -> Option<&'a str> {
    let base = instance(step).map_or(step, |(base, _)| base);
    plan.steps.iter().find(|planned| planned.id == base)?.step.settings.description.as_deref()
}

/// The author's line an error is about, from what was read when the run began.
fn excerpt<'a>(plan: &'a Plan, error: &StepError) -> Option<&'a str> {
    let location = error.location.as_ref()?;
    let file = plan.sources.iter().find(|file| file.path.display().to_string() == location.file)?;
    file.text.lines().nth(location.line.checked_sub(1)?)
}

fn first_line(text: &str) -> &str {
    text.lines().next().unwrap_or_default()
}
