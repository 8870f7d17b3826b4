//! What is read of the steps of included playbooks: is there such a step, and does its
//! result have such a part. Everything else about references stands in `references`.

use std::collections::HashMap;

use super::super::load::Document;
use super::super::{Playbook, Step};
use super::references::part_of_result;
use super::{Names, Written};
use crate::action::{Action, Inspection, Use};
use crate::diagnostic::Diagnostic;

/// What a playbook reads of the playbooks it includes, by the ids of the steps that include
/// them, and that is not there.
pub fn check(playbook: &Playbook, written: &Written<'_>, included: &HashMap<String, Document>) -> Vec<Diagnostic> {
    if included.is_empty() {
        return Vec::new();
    }
    let names = Names::of(playbook, written);
    let mut diagnostics = Vec::new();
    for step in playbook.all_steps() {
        let mut inspection = Inspection::default();
        step.inspect(&mut inspection);
        for used in inspection.uses.iter().filter(|used| used.reference.path[0] == "steps") {
            if let Some(problem) = missing(&names, used, 1, included) {
                diagnostics.push(Diagnostic { span: written.place(used.span, &used.reference.range), ..problem });
            }
        }
    }
    diagnostics
}

/// The path names, at `depth`, a step that includes a playbook.
fn missing(names: &Names<'_>, used: &Use<'_>, depth: usize, included: &HashMap<String, Document>) -> Option<Diagnostic> {
    let path = &used.reference.path;
    let document = included.get(path.get(depth)?)?;
    let name = path.get(depth + 1)?;
    match document.playbook.steps.iter().find(|step| step.settings.id.value == *name) {
        Some(Step { action, .. }) if matches!(action.value, Action::Playbook(_)) => missing(names, used, depth + 1, &document.included),
        Some(step) => part_of_result(names, used, depth + 2, step),
        None if document.complete => Some(unknown(names, used, depth, document)),
        None => None,
    }
}

fn unknown(names: &Names<'_>, used: &Use<'_>, depth: usize, document: &Document) -> Diagnostic {
    let (including, name) = (used.reference.path[1..=depth].join("."), &used.reference.path[depth + 1]);
    let message = format!("the playbook `{}`, which `{including}` includes, has no step `{name}`", document.playbook.settings.name.value);
    let problem = Diagnostic::error("unknown-step", used.span, message);
    let problem = names.suggest(problem, name, "step", document.playbook.steps.iter().map(|step| step.settings.id.value.as_str()));
    problem.help(format!("results of its steps are read as `steps.{including}.STEP.value`"))
}
