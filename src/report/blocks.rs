//! The parts of a report: a step's line, a failure, a gate that waits, a message.
//!
//! Shared by the live report and by `show`, so that both say the same.

use crate::action::{Prompt, PromptKind};
use crate::outcome::{Aftermath, Sample, StepError, StepResult};
use crate::text::table::sample;
use crate::text::{Field, Ink, Line, Style, fields, paragraph, shell_word, took};

/// The longest status word.
const WORD: usize = 12;
const TIME: usize = 7;

/// A step's line: status word, time, name, observed value.
pub(super) fn step_line(ink: Ink, word: &str, duration_ms: Option<u64>, title: &str, value: &str) -> Line {
    let time = duration_ms.map_or_else(String::new, took);
    let name = if ink == Ink::Dim { Ink::Dim } else { Ink::Plain };
    let mut line = Line::new().then(ink, format!("{word:<WORD$}")).then(Ink::Dim, format!(" {time:>TIME$}  ")).then(name, title);
    if !value.is_empty() {
        line = line.then(Ink::Dim, " → ").then(name, value);
    }
    line
}

/// What a failed step's block needs besides its error.
#[derive(Debug, Clone, Copy)]
pub struct Failed<'a> {
    /// How runbook is called.
    pub command: &'a str,
    /// The run.
    pub run: &'a str,
    /// The step's full id.
    pub step: &'a str,
    /// What its author says about the step.
    pub about: Option<&'a str>,
    /// The author's line the error is about, if it can be had.
    pub excerpt: Option<&'a str>,
}

/// What failed, where in the file, why, the state of the world, and the next commands.
pub fn failure(failed: Failed<'_>, error: &StepError, style: Style) -> Vec<Line> {
    let mut lines: Vec<Line> = paragraph(Ink::Strong, &error.message, style, 2).into_iter().map(|line| line.indented(2)).collect();
    let mut parts = vec![Field::text("step", failed.step, style)];
    parts.extend(about(failed.about, style));
    parts.extend(place(error, failed.excerpt));
    parts.extend(cause(error, style));
    parts.push(Field::text("state", state_of_the_world(error), style));
    parts.extend(error.hints.iter().map(|hint| Field::text("hint", hint, style)));
    parts.push(Field::new("next", next(failed)));
    lines.extend(fields(&parts));
    lines
}

/// The same without the next commands: an attempt that was repeated, a finding.
pub(super) fn details(about_step: Option<&str>, error: &StepError, style: Style) -> Vec<Line> {
    let mut parts: Vec<Field> = about(about_step, style).into_iter().collect();
    parts.extend(cause(error, style));
    parts.extend(error.hints.iter().map(|hint| Field::text("hint", hint, style)));
    fields(&parts)
}

/// The author's words are what the reader of a failure needs most: what it means, what to do.
fn about(description: Option<&str>, style: Style) -> Option<Field> {
    description.map(|text| Field::text("about", text, style))
}

fn place(error: &StepError, excerpt: Option<&str>) -> Option<Field> {
    let location = error.location.as_ref()?;
    let mut lines = vec![Line::plain(location.to_string())];
    if let Some(text) = excerpt.map(str::trim_end).filter(|text| !text.is_empty()) {
        lines.push(Line::new().then(Ink::Dim, format!("{} | ", location.line)).then(Ink::Plain, text));
    }
    Some(Field::new("where", lines))
}

fn cause(error: &StepError, style: Style) -> Vec<Field> {
    let mut parts = Vec::new();
    if let Some(code) = &error.code {
        parts.push(Field::text("code", code, style));
    }
    parts.extend(error.facts.iter().map(|(label, text)| Field::text(label, text, style)));
    if let Some(Sample { columns, rows, total }) = &error.sample
        && !rows.is_empty()
    {
        parts.push(Field::new("rows", sample(columns, rows, *total, style, 14)));
    }
    parts
}

/// The rows of a result that were kept.
pub(super) fn rows(result: &StepResult, style: Style) -> Field {
    let columns: Vec<String> = result.columns.iter().map(|column| column.name.clone()).collect();
    let total = result.row_count.unwrap_or(result.rows.len() as u64);
    Field::new("rows", sample(&columns, &result.rows, total, style, 14))
}

/// What is left behind, in words.
fn state_of_the_world(error: &StepError) -> &'static str {
    match error.aftermath {
        Aftermath::Unchanged => "this step changed nothing, or what it changed was rolled back",
        Aftermath::Partial => "part of this step's effect may be in place",
        Aftermath::Unknown => "whether this step's effect is in place is not known",
    }
}

fn next(failed: Failed<'_>) -> Vec<Line> {
    let Failed { command, run, step, .. } = failed;
    vec![
        Line::new().then(Ink::Accent, format!("{command} show {run} {}", shell_word(step))).then(Ink::Plain, "  its attempts and output"),
        Line::new()
            .then(Ink::Accent, format!("{command} resume {run}"))
            .then(Ink::Plain, "  tries again from here; what is done stays done"),
    ]
}

/// A gate that waits: the question, what it depends on, and how to answer from anywhere.
pub fn waiting(command: &str, run: &str, step: &str, prompt: &Prompt, agreed: &[String], style: Style) -> Vec<Line> {
    let mut parts = vec![Field::text("question", &prompt.message, style)];
    if let PromptKind::Observe { question } = &prompt.kind {
        parts.push(Field::text("report", question, style));
    }
    parts.extend(prompt.facts.iter().map(|(label, text)| Field::text(label, text, style)));
    if prompt.approvers > 1 || !agreed.is_empty() {
        let so_far = if agreed.is_empty() { "nobody so far".to_owned() } else { format!("so far {}", agreed.join(", ")) };
        parts.push(Field::text("approvals", &format!("{} of {}: {so_far}", agreed.len(), prompt.approvers.max(1)), style));
    }
    let approve = format!("{command} approve {run} {}", shell_word(step));
    let yes = match &prompt.kind {
        PromptKind::Confirm => Line::new().then(Ink::Accent, &approve),
        PromptKind::Type(text) => {
            Line::new().then(Ink::Accent, format!("{approve} --text TEXT")).then(Ink::Plain, format!("  TEXT being exactly {text}"))
        }
        PromptKind::Observe { .. } => {
            Line::new().then(Ink::Accent, format!("{approve} --text TEXT")).then(Ink::Plain, "  TEXT being what you see")
        }
    };
    let no = Line::new().then(Ink::Accent, format!("{approve} --decline")).then(Ink::Plain, "  to say no");
    let go_on = Line::new().then(Ink::Accent, format!("{command} resume {run}")).then(Ink::Plain, "  goes on after the answer");
    parts.push(Field::new("answer", vec![yes, no]));
    parts.push(Field::new("next", vec![go_on]));
    fields(&parts)
}

/// A message of the playbook, set off from the steps' lines.
pub(super) fn message(title: Option<&str>, text: &str, style: Style) -> Vec<Line> {
    let mut lines: Vec<Line> = title.map(|title| Line::new().then(Ink::Strong, title)).into_iter().collect();
    lines.extend(paragraph(Ink::Plain, text, style, 4));
    lines
        .into_iter()
        .map(|line| {
            let mut barred = Line::new().then(Ink::Accent, "  ┃ ");
            barred.append(line);
            barred
        })
        .collect()
}
