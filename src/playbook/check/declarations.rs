//! The top of a playbook, and what steps say about themselves without expressions.

use std::sync::LazyLock;

use regex::Regex;

use super::super::{Parameter, ParameterType, Playbook, Retry, Step, StepSeverity};
use super::{Names, Written, keys};
use crate::action::Action;
use crate::diagnostic::Diagnostic;
use crate::source::Spanned;
use crate::template::Setting;

/// Words expressions begin with, which nothing else may be called.
pub(super) const ROOTS: [&str; 6] = ["params", "secrets", "steps", "run", "connections", "env"];

/// Classes of errors that `retry.on` knows.
const RETRY_CLASSES: [&str; 7] = ["transient", "any", "timeout", "connection", "process", "http", "expectation"];

static IDENTIFIER: LazyLock<Regex> = LazyLock::new(|| Regex::new("^[A-Za-z_][A-Za-z0-9_]*$").expect("the pattern is fixed and valid"));
static SQLSTATE: LazyLock<Regex> = LazyLock::new(|| Regex::new("^[0-9A-Z]{2,5}$").expect("the pattern is fixed and valid"));

pub(super) fn check(playbook: &Playbook, names: &Names<'_>, written: &Written<'_>, diagnostics: &mut Vec<Diagnostic>) {
    for section in ["params", "secrets", "connections", "channels"] {
        let bad = keys(written.tree, section).filter(|name| !IDENTIFIER.is_match(name));
        diagnostics.extend(bad.map(|name| {
            Diagnostic::error("bad-name", name.span, format!("`{}` can't be used as a name in expressions", name.value))
                .help("names have letters, digits and `_`, and begin with a letter or `_`")
        }));
    }
    for (name, parameter) in &playbook.settings.params {
        diagnostics.extend(parameter_problems(name, parameter));
    }
    if let Some(channel) = keys(written.tree, "channels").find(|name| name.value == "console") {
        diagnostics.push(Diagnostic::error("bad-name", channel.span, "`console` is always there and can't be declared"));
    }
    diagnostics.extend(retry_problems(playbook.settings.defaults.retry.as_ref(), names));
    for step in playbook.all_steps() {
        diagnostics.extend(retry_problems(step.settings.retry.as_ref(), names));
        diagnostics.extend(item_problem(step));
        diagnostics.extend(inclusion_problem(step));
    }
}

fn parameter_problems(name: &Spanned<String>, parameter: &Parameter) -> Vec<Diagnostic> {
    let mut problems = Vec::new();
    let mut wrong = |message: String, help: &str| problems.push(Diagnostic::error("parameter", name.span, message).help(help));
    let is_enum = parameter.kind == ParameterType::Enum;
    let is_number = matches!(parameter.kind, ParameterType::Integer | ParameterType::Number);
    if is_enum && parameter.values.is_empty() {
        wrong(format!("the enum `{}` has no `values`", name.value), "list what it may be: `values: [staging, production]`");
    }
    if !is_enum && !parameter.values.is_empty() {
        wrong(format!("`{}` has `values`, but its type is not `enum`", name.value), "write `type: enum`, or delete `values`");
    }
    if !is_number && (parameter.min.is_some() || parameter.max.is_some()) {
        wrong(format!("`{}` has `min` or `max`, but is not a number", name.value), "they hold for `integer` and `number`");
    }
    if let (Some(min), Some(max)) = (parameter.min, parameter.max)
        && min > max
    {
        wrong(format!("the `min` of `{}` is greater than its `max`", name.value), "no value fits");
    }
    if parameter.required && parameter.default.is_some() {
        wrong(
            format!("`{}` is `required` and has a `default`", name.value),
            "a default is taken when nothing is given; delete one of the two",
        );
    }
    if let Some(error) = parameter.pattern.as_ref().and_then(|pattern| Regex::new(&format!("^(?:{pattern})$")).err()) {
        let reason = error.to_string();
        let reason = reason.lines().last().unwrap_or_default().trim_start_matches("error: ").to_owned();
        wrong(
            format!("the `pattern` of `{}` is not a regular expression: {reason}", name.value),
            "it is written as in Rust's regex and matches the whole text",
        );
    }
    if let (true, Some(Setting::Literal(serde_json::Value::String(default)))) = (is_enum, &parameter.default)
        && !parameter.values.is_empty()
        && !parameter.values.contains(default)
    {
        wrong(format!("the `default` of `{}` is not one of its `values`", name.value), &format!("values: {}", parameter.values.join(", ")));
    }
    problems
}

fn retry_problems(retry: Option<&Retry>, names: &Names<'_>) -> Vec<Diagnostic> {
    let classes = retry.into_iter().filter_map(|retry| retry.on.as_ref()).flatten();
    classes
        .filter(|class| !RETRY_CLASSES.contains(&class.value.as_str()) && !SQLSTATE.is_match(class))
        .map(|class| {
            let message = format!("`{}` is neither a class of errors nor the beginning of an SQLSTATE", class.value);
            names.suggest(Diagnostic::error("invalid-value", class.span, message), class, "class", RETRY_CLASSES)
        })
        .collect()
}

fn item_problem(step: &Step) -> Option<Diagnostic> {
    let name = step.settings.item_name.as_ref()?;
    let problem = |message: String| Some(Diagnostic::error("bad-name", name.span, message));
    if step.settings.for_each.is_none() {
        return problem("`as` names the item of `for_each`, which this step does not have".into());
    }
    if ROOTS.contains(&name.value.as_str()) || name.value == "index" {
        return problem(format!("`{}` has a meaning of its own in expressions", name.value));
    }
    if !IDENTIFIER.is_match(name) {
        return problem(format!("`{}` can't be used as a name in expressions", name.value));
    }
    None
}

/// A step that includes a playbook stands for that playbook's steps, each of which has keys of
/// its own; what can't reach them must not look as if it did.
fn inclusion_problem(step: &Step) -> Option<Diagnostic> {
    let settings = &step.settings;
    if !matches!(step.action.value, Action::Playbook(_)) {
        return None;
    }
    let keys = [
        ("for_each", settings.for_each.is_some()),
        ("max_parallel", settings.max_parallel.is_some()),
        ("timeout", settings.timeout.is_some()),
        ("retry", settings.retry.is_some()),
        ("severity", settings.severity != StepSeverity::default()),
        ("continue_on_error", settings.continue_on_error),
        ("confirm", settings.confirm.is_some()),
        ("done_when", settings.done_when.is_some()),
        ("idempotent", settings.idempotent),
        ("undo", settings.undo.is_some()),
        ("outputs", !settings.outputs.is_empty()),
    ];
    let written: Vec<String> = keys.iter().filter(|(_, is_written)| *is_written).map(|(key, _)| format!("`{key}`")).collect();
    let problem = |message: String| Diagnostic::error("key-without-effect", settings.id.span, message);
    let help = match (settings.confirm.is_some(), written.len()) {
        (_, 0) => return None,
        (true, _) => "a step of its own with `confirm` goes in front; the other keys belong to the steps of the included playbook",
        (false, _) => "write it at the steps of the included playbook; this one may have `needs`, `when` and `tags`",
    };
    let have = if written.len() == 1 { "has" } else { "have" };
    Some(problem(format!("{} {have} no effect on a step that includes a playbook", written.join(", "))).help(help))
}
