//! From the tree to the types, step by step.
use super::*;
use crate::diagnostic::Diagnostic;
use crate::yaml::{Node, Value, from_node};
/// x
pub fn decode(node: &Node) -> (Option<Playbook>, Vec<Diagnostic>) {
    let mut problems = vec![];
    let Value::Mapping(entries) = &node.value else { return (None, vec![Diagnostic::error("shape", node.span, "not a mapping")]) };
    let lists = ["steps", "on_failure", "on_success", "always"];
    let rest: Vec<_> = entries.iter().filter(|(k, _)| !lists.contains(&k.value.as_str())).cloned().collect();
    let settings = from_node::<Settings>(&Node { span: node.span, value: Value::Mapping(rest) }).map_err(|e| problems.push(*e)).ok();
    let mut parts: Vec<Vec<Step>> = lists.iter().map(|l| steps(node.get(l), &mut problems)).collect();
    let always = parts.pop().unwrap_or_default(); let on_success = parts.pop().unwrap_or_default(); let on_failure = parts.pop().unwrap_or_default(); let steps = parts.pop().unwrap_or_default();
    (settings.map(|settings| Playbook { settings, steps, on_failure, on_success, always }), problems)
}
fn steps(list: Option<&Node>, problems: &mut Vec<Diagnostic>) -> Vec<Step> {
    let Some(Node { value: Value::Sequence(items), .. }) = list else { return vec![] };
    items.iter().filter_map(|n| step(n).map_err(|e| problems.push(e)).ok()).collect()
}
fn step(node: &Node) -> Result<Step, Diagnostic> {
    let Value::Mapping(entries) = &node.value else { return Err(Diagnostic::error("shape", node.span, "not a mapping")) };
    let is_action = |k: &str| Action::KEYS.contains(&k);
    let (actions, common): (Vec<_>, Vec<_>) = entries.iter().cloned().partition(|(k, _)| is_action(&k.value) && k.value != "confirm");
    let mut common = common; let mut actions = actions;
    if actions.is_empty() { if let Some(i) = common.iter().position(|(k, _)| k.value == "confirm") { actions.push(common.remove(i)); } }
    let span = actions.first().map_or(node.span, |(k, _)| k.span);
    let settings = from_node::<StepSettings>(&Node { span: node.span, value: Value::Mapping(common) }).map_err(|e| *e)?;
    let action = from_node::<Action>(&Node { span: node.span, value: Value::Mapping(actions) }).map_err(|e| *e)?;
    Ok(Step { span: node.span, settings, action: Spanned::new(action, span) })
}
