//! Tree to types, collecting every problem: the schema judges the shape of all of it,
//! each scalar is read on its own, and what is left is read piece by piece.

use std::cell::RefCell;
use std::collections::HashSet;
use std::sync::LazyLock;

use serde_json::Value as Json;

use super::schema::{GATE, STEP, STEP_LISTS, document};
use super::{Playbook, Settings, Step, StepSettings};
use crate::action::Action;
use crate::diagnostic::Diagnostic;
use crate::source::{Span, Spanned};
use crate::template::{Expression, Message, Template};
use crate::units::{ByteSize, Duration, Percent};
use crate::yaml::{Node, Structure, Value, from_entries, from_node};

/// What could be read of a playbook.
#[derive(Debug)]
pub struct Decoded {
    /// Everything that could be read; absent when hardly anything could. It is whole
    /// only when there are no problems.
    pub playbook: Option<Playbook>,
    /// Whether every step could be read.
    pub complete: bool,
    /// What is wrong with the rest.
    pub diagnostics: Vec<Diagnostic>,
}

/// Reads a playbook.
pub fn decode(node: &Node) -> Decoded {
    let reader = Reader { structure: Structure::new(shape()), diagnostics: RefCell::default() };
    let settings = reader.settings(node);
    let mut complete = true;
    let [steps, on_failure, on_success, always] = STEP_LISTS.map(|(list, _)| {
        let Some(Node { value: Value::Sequence(items), .. }) = node.get(list) else { return Vec::new() };
        let steps: Vec<Step> = items.iter().filter_map(|item| reader.step(item)).collect();
        complete &= steps.len() == items.len();
        steps
    });
    let playbook = settings.map(|settings| Playbook { settings, steps, on_failure, on_success, always });
    Decoded { playbook, complete, diagnostics: reader.diagnostics.into_inner() }
}

struct Reader<'a> {
    structure: Structure<'a>,
    diagnostics: RefCell<Vec<Diagnostic>>,
}

impl Reader<'_> {
    fn settings(&self, node: &Node) -> Option<Settings> {
        self.read(None, node, |node| from_entries(node.span, settings(node)).map_err(|problem| vec![*problem]), with_stand_ins)
    }

    fn step(&self, node: &Node) -> Option<Step> {
        self.read(Some(STEP), node, read_step, |rest| rest)
    }

    /// Reads a value, or when it is bad, what is left of it without the bad parts.
    fn read<T>(
        &self,
        definition: Option<&str>,
        node: &Node,
        read: impl Fn(&Node) -> Result<T, Vec<Diagnostic>>,
        complete: impl Fn(Node) -> Node,
    ) -> Option<T> {
        // When all is well, every scalar is read just once.
        let failed = match self.structure.check(definition, node, None).is_empty().then(|| read(node)) {
            Some(Ok(value)) => return Some(value),
            Some(Err(problems)) => problems,
            None => Vec::new(),
        };
        let problems = self.structure.check(definition, node, Some(&scalar));
        if problems.is_empty() {
            self.diagnostics.borrow_mut().extend(failed);
            return None;
        }
        let rest = pruned(node, &problems).map(complete);
        self.diagnostics.borrow_mut().extend(problems);
        read(&rest?).ok()
    }
}

/// Reads a step whose shape is right.
fn read_step(node: &Node) -> Result<Step, Vec<Diagnostic>> {
    let is_action = |entry: &&(Spanned<String>, Node)| entry.0.value != GATE && Action::KEYS.contains(&entry.0.value.as_str());
    let is_gate = |entry: &&(Spanned<String>, Node)| entry.0.value == GATE;
    let action = entries(node).iter().find(is_action).or_else(|| entries(node).iter().find(is_gate)).ok_or_else(Vec::new)?;
    let settings = from_entries::<StepSettings>(node.span, entries(node).iter().filter(|entry| !std::ptr::eq(*entry, action)));
    match (settings, from_entries::<Action>(node.span, [action])) {
        (Ok(settings), Ok(read)) => Ok(Step { span: node.span, settings, action: Spanned::new(read, action.0.span) }),
        (settings, read) => Err(settings.err().into_iter().chain(read.err()).map(|problem| *problem).collect()),
    }
}

/// The schema as far as it concerns everything but the lists of steps; steps are judged
/// one by one.
fn shape() -> &'static Json {
    static SHAPE: LazyLock<Json> = LazyLock::new(|| {
        let mut shape = document().clone();
        for (list, _) in STEP_LISTS {
            if let Some(list) = shape["properties"][list].as_object_mut() {
                list.remove("items");
            }
        }
        shape
    });
    &SHAPE
}

/// Scalar types that are read on their own, so that each is judged whatever stands beside it.
fn scalar(definition: &str, node: &Node) -> Option<Diagnostic> {
    let (code, result) = match (definition, &node.value) {
        ("Expression", Value::String(_)) => ("expression-syntax", from_node::<Expression>(node).err()),
        ("Template", Value::String(_)) => ("template-syntax", from_node::<Template>(node).err()),
        ("Message", Value::String(_)) => ("template-syntax", from_node::<Message>(node).err()),
        ("Duration", Value::String(_) | Value::Int(_) | Value::Float(_)) => ("invalid-value", from_node::<Duration>(node).err()),
        ("Percent", Value::String(_) | Value::Int(_) | Value::Float(_)) => ("invalid-value", from_node::<Percent>(node).err()),
        ("ByteSize", Value::String(_) | Value::Int(_) | Value::Float(_)) => ("invalid-value", from_node::<ByteSize>(node).err()),
        (other, Value::String(text)) if other.ends_with("OrTemplate") && text.contains("{{") => {
            ("template-syntax", from_node::<Template>(node).err())
        }
        _ => return None,
    };
    result.map(|problem| Diagnostic { code, ..*problem })
}

fn entries(node: &Node) -> &[(Spanned<String>, Node)] {
    match &node.value {
        Value::Mapping(entries) => entries,
        _ => &[],
    }
}

/// The top of a playbook without its lists of steps.
fn settings(node: &Node) -> impl Iterator<Item = &(Spanned<String>, Node)> {
    entries(node).iter().filter(|(key, _)| !STEP_LISTS.iter().any(|(list, _)| *list == key.value))
}

/// Stand-ins for what must be there, so that the rest of a bad file can be judged.
fn with_stand_ins(mut node: Node) -> Node {
    stand_in(&mut node, "version", &Value::Int(1));
    stand_in(&mut node, "name", &Value::String("unnamed".into()));
    for (declarations, key, value) in [("params", "type", "string"), ("connections", "url", "")] {
        for (_, declaration) in
            mapping(&mut node).iter_mut().filter(|(name, _)| name.value == declarations).flat_map(|(_, all)| mapping(all))
        {
            stand_in(declaration, key, &Value::String(value.into()));
        }
    }
    node
}

fn stand_in(node: &mut Node, key: &str, value: &Value) {
    let span = node.span;
    if node.get(key).is_none() {
        mapping(node).push((Spanned::new(key.to_owned(), span), Node { span, value: value.clone() }));
    }
}

/// A mapping's entries; what should be one and is not becomes one.
fn mapping(node: &mut Node) -> &mut Vec<(Spanned<String>, Node)> {
    if !matches!(node.value, Value::Mapping(_)) {
        node.value = Value::Mapping(Vec::new());
    }
    match &mut node.value {
        Value::Mapping(entries) => entries,
        _ => unreachable!("the line above made it a mapping"),
    }
}

/// The tree without the entries and items that have problems.
fn pruned(node: &Node, problems: &[Diagnostic]) -> Option<Node> {
    let bad: HashSet<Span> = problems.iter().map(|problem| problem.span).collect();
    prune(node, &bad)
}

fn prune(node: &Node, bad: &HashSet<Span>) -> Option<Node> {
    if bad.contains(&node.span) && !matches!(node.value, Value::Mapping(_)) {
        return None;
    }
    let value = match &node.value {
        Value::Mapping(entries) => Value::Mapping(
            entries
                .iter()
                .filter(|(key, _)| !bad.contains(&key.span))
                .filter_map(|(key, value)| Some((key.clone(), prune(value, bad)?)))
                .collect(),
        ),
        Value::Sequence(items) => Value::Sequence(items.iter().filter_map(|item| prune(item, bad)).collect()),
        other => other.clone(),
    };
    Some(Node { span: node.span, value })
}
