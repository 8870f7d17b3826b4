//! `--only`, `--skip`, `--from`: which steps of a plan are left out, and a refusal where
//! a step that is taken reads the result of one that is not.

use super::PlannedStep;
use crate::diagnostic::{Diagnostic, did_you_mean};
use crate::journal::{Phase, Selection};
use crate::source::{SourceId, Span};

/// Marks what is left out, and says what is wrong with the choice.
pub(super) fn select(steps: &mut [PlannedStep], selection: &Selection, diagnostics: &mut Vec<Diagnostic>) {
    let at = Span { source: SourceId(0), start: 0, end: 0 };
    let matches = |step: &PlannedStep, name: &str| {
        step.id == name
            || step.id.strip_prefix(name).is_some_and(|rest| rest.starts_with('/'))
            || step.step.settings.tags.iter().any(|tag| tag == name)
    };
    for name in selection.only.iter().chain(&selection.skip).chain(&selection.from) {
        if !steps.iter().any(|step| matches(step, name)) {
            let known: Vec<&str> = steps.iter().map(|step| step.id.as_str()).collect();
            let mut problem = Diagnostic::error("selection", at, format!("no step and no tag is called `{name}`"));
            if let Some(similar) = did_you_mean(name, known) {
                problem = problem.help(format!("did you mean `{similar}`?"));
            }
            diagnostics.push(problem);
        }
    }
    let first = selection.from.as_ref().and_then(|from| steps.iter().position(|step| matches(step, from)));
    for (index, step) in steps.iter_mut().enumerate() {
        let closing = step.phase != Phase::Steps;
        step.excluded = if selection.skip.iter().any(|name| matches(step, name)) {
            Some("left out by --skip".into())
        } else if !closing && !selection.only.is_empty() && !selection.only.iter().any(|name| matches(step, name)) {
            Some("not named by --only".into())
        } else if !closing && first.is_some_and(|first| index < first) {
            Some("before --from".into())
        } else {
            None
        };
    }
    for step in steps.iter().filter(|step| step.excluded.is_none() && step.phase == Phase::Steps) {
        if let Some(missing) = step.reads.iter().map(|index| &steps[*index]).find(|read| read.excluded.is_some()) {
            diagnostics.push(
                Diagnostic::error(
                    "selection-needs",
                    step.step.settings.id.span,
                    format!(
                        "`{}` reads the result of `{}`, which is {}",
                        step.id,
                        missing.id,
                        missing.excluded.as_deref().unwrap_or_default()
                    ),
                )
                .help(format!("also select `{}`, or leave out `{}`", missing.id, step.id)),
            );
        }
    }
}
