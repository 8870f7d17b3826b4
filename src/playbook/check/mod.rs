//! What types can't say: ids, dependencies, parameters, and what expressions refer to.

mod declarations;
mod graph;
mod included;
mod references;

use std::cell::Cell;
use std::collections::HashMap;
use std::ops::Range;

use super::{Playbook, Step};
use crate::diagnostic::{Diagnostic, did_you_mean};
use crate::source::{Sources, Span, Spanned};
use crate::yaml::{Node, Value, span_within};
use graph::Graph;
pub use included::check as included;

/// The file a playbook was read from.
#[derive(Debug, Clone, Copy)]
pub struct Written<'a> {
    /// Its tree.
    pub tree: &'a Node,
    /// All files read.
    pub sources: &'a Sources,
    /// Whether every step could be read.
    pub complete: bool,
    /// Whether another playbook includes it, and so lends it its connections and channels.
    pub included: bool,
}

/// More names than this are not listed.
const LISTED: usize = 20;
const COMPARISONS: usize = 300_000;

/// Everything that is wrong with a playbook whose shape is right, or with what could be
/// read of one.
pub fn check(playbook: &Playbook, written: &Written<'_>) -> Vec<Diagnostic> {
    let names = Names::of(playbook, written);
    let mut diagnostics = Vec::new();
    names.duplicates(written, &mut diagnostics);
    declarations::check(playbook, &names, written, &mut diagnostics);
    let graphs = Part::ALL.map(|part| Graph::of(part.steps(playbook), &names, &mut diagnostics));
    references::check(playbook, &names, &graphs, written, &mut diagnostics);
    diagnostics
}

/// A list of steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Steps,
    OnFailure,
    OnSuccess,
    Always,
}

impl Part {
    const ALL: [Self; 4] = [Self::Steps, Self::OnFailure, Self::OnSuccess, Self::Always];

    fn key(self) -> &'static str {
        match self {
            Self::Steps => "steps",
            Self::OnFailure => "on_failure",
            Self::OnSuccess => "on_success",
            Self::Always => "always",
        }
    }

    fn steps(self, playbook: &Playbook) -> &[Step] {
        match self {
            Self::Steps => &playbook.steps,
            Self::OnFailure => &playbook.on_failure,
            Self::OnSuccess => &playbook.on_success,
            Self::Always => &playbook.always,
        }
    }
}

/// A step that could be read, by its place.
#[derive(Debug, Clone, Copy)]
struct Position {
    part: Part,
    index: usize,
}

/// Every name of the file, also of what could not be read: a broken step is no unknown step.
struct Names<'a> {
    /// Ids; those of steps that could be read with their position.
    steps: HashMap<&'a str, Option<Position>>,
    params: Vec<&'a str>,
    secrets: Vec<&'a str>,
    connections: Vec<&'a str>,
    channels: Vec<&'a str>,
    /// How many names may still be compared with misspelt ones: thousands of mistakes in
    /// thousands of steps are no reason to think for minutes.
    comparisons: Cell<usize>,
}

impl<'a> Names<'a> {
    fn of(playbook: &'a Playbook, written: &Written<'a>) -> Self {
        let mut steps: HashMap<&str, Option<Position>> = ids(written.tree).map(|id| (id.value, None)).collect();
        for part in Part::ALL {
            for (index, step) in part.steps(playbook).iter().enumerate() {
                let slot = steps.entry(step.settings.id.value.as_str()).or_default();
                slot.get_or_insert(Position { part, index });
            }
        }
        let declared = |section: &str| keys(written.tree, section).map(|key| key.value.as_str()).collect();
        Self {
            steps,
            params: declared("params"),
            secrets: declared("secrets"),
            connections: declared("connections"),
            channels: declared("channels"),
            comparisons: Cell::new(COMPARISONS),
        }
    }

    /// Adds what was probably meant, and what there is.
    fn suggest<'n>(&self, diagnostic: Diagnostic, name: &str, what: &str, known: impl IntoIterator<Item = &'n str>) -> Diagnostic {
        let Some(left) = self.comparisons.get().checked_sub(1) else { return diagnostic };
        let mut known: Vec<&str> = known.into_iter().collect();
        self.comparisons.set(left.saturating_sub(known.len()));
        let diagnostic = match did_you_mean(name, known.iter().copied()) {
            Some(similar) => diagnostic.help(format!("did you mean `{similar}`?")),
            None => diagnostic,
        };
        match known.len() {
            0 => diagnostic.help(format!("no {what} is declared")),
            1..=LISTED => {
                known.sort_unstable();
                diagnostic.help(format!("known: {}", known.join(", ")))
            }
            _ => diagnostic,
        }
    }

    fn duplicates(&self, written: &Written<'_>, diagnostics: &mut Vec<Diagnostic>) {
        let mut first: HashMap<&str, Span> = HashMap::new();
        for id in ids(written.tree) {
            match first.get(id.value) {
                None => {
                    first.insert(id.value, id.span);
                }
                Some(earlier) => diagnostics.push(
                    Diagnostic::error("duplicate-id", id.span, format!("two steps have the id `{}`", id.value))
                        .label("again")
                        .related(*earlier, "first here"),
                ),
            }
        }
    }
}

/// The ids of all steps, as written.
fn ids(tree: &Node) -> impl Iterator<Item = Spanned<&str>> {
    Part::ALL.into_iter().flat_map(move |part| {
        let items = match tree.get(part.key()).map(|list| &list.value) {
            Some(Value::Sequence(items)) => items.as_slice(),
            _ => &[],
        };
        items.iter().filter_map(|step| step.get("id")).filter_map(|id| Some(Spanned::new(id.as_str()?, id.span)))
    })
}

fn keys<'a>(tree: &'a Node, section: &str) -> impl Iterator<Item = &'a Spanned<String>> {
    let entries = match tree.get(section).map(|section| &section.value) {
        Some(Value::Mapping(entries)) => entries.as_slice(),
        _ => &[],
    };
    entries.iter().map(|(key, _)| key)
}

impl Written<'_> {
    /// Where the bytes `range` of the text of the scalar at `span` stand.
    fn place(&self, span: Span, range: &Range<usize>) -> Span {
        if span.source != self.tree.span.source {
            let length = self.sources.get(span.source).text.len() as u32;
            let at = |offset: usize| (span.start + offset as u32).min(length);
            return Span { start: at(range.start), end: at(range.end), ..span };
        }
        match scalar(self.tree, span, false).or_else(|| scalar(self.tree, span, true)) {
            Some(text) => span_within(self.sources, span, text, range.clone()),
            None => span,
        }
    }
}

/// The text of the scalar at a place. What an alias stands for is written elsewhere, so
/// the search looks outside of the place only if nothing is found inside.
fn scalar(node: &Node, span: Span, everywhere: bool) -> Option<&str> {
    let inside = |node: &&Node| everywhere || (node.span.start <= span.start && span.end <= node.span.end);
    match &node.value {
        Value::String(text) => (node.span == span).then_some(text),
        Value::Sequence(items) => items.iter().filter(inside).find_map(|item| scalar(item, span, everywhere)),
        Value::Mapping(entries) => entries.iter().map(|(_, value)| value).filter(inside).find_map(|value| scalar(value, span, everywhere)),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
