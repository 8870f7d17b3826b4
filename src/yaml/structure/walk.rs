//! The walk through a tree that collects what does not fit.

use serde_json::Value as Json;

use super::super::{Node, Value};
use super::object::Object;
use super::shape::Shape;
use super::words::{expected, first_paragraph, found, scalar_description};
use super::{Leaf, Structure};
use crate::diagnostic::{Diagnostic, did_you_mean};

/// One walk through a tree.
pub(super) struct Walk<'w, 'a> {
    pub structure: &'w Structure<'a>,
    pub leaf: Option<Leaf<'w>>,
    pub problems: Vec<Diagnostic>,
}

/// Where in the document a value is being checked.
#[derive(Clone, Copy, Default)]
pub(super) struct Place<'a> {
    /// The key the value belongs to.
    pub key: Option<&'a str>,
    /// What the key is for.
    pub purpose: Option<&'a str>,
    /// The mapping that holds the key.
    pub outer: Option<&'a Object<'a>>,
}

impl Place<'_> {
    /// Adds what the key is for.
    pub fn explain(&self, problem: Diagnostic) -> Diagnostic {
        match (self.key, self.purpose) {
            (Some(key), Some(purpose)) => problem.help(format!("`{key}`: {}", first_paragraph(purpose))),
            _ => problem,
        }
    }
}

impl<'a> Walk<'_, 'a> {
    pub fn value(&mut self, schema: &'a Json, node: &Node, place: Place<'_>) {
        let shape = self.structure.shape(schema);
        if let Some((name, definition)) = shape.reference {
            match self.leaf.and_then(|leaf| leaf(name, node)) {
                Some(problem) => self.problems.push(place.explain(problem)),
                None => self.value(definition, node, place),
            }
        } else if let Some(choices) = &shape.choices {
            self.choice(choices, schema, node, place);
        } else if let Some(branches) = shape.branches {
            self.best_branch(schema, branches, node, place);
        } else {
            self.plain(&shape, node, place);
        }
    }

    fn plain(&mut self, shape: &Shape<'a>, node: &Node, place: Place<'_>) {
        for part in shape.parts {
            self.value(part, node, place);
        }
        if !shape.kinds.allow(&node.value) {
            let problem = self.wrong_type(shape.json, node, place);
            return self.problems.push(problem);
        }
        match &node.value {
            Value::Mapping(entries) => shape.object.check(self, node, entries, place),
            Value::Sequence(items) => self.sequence(shape, node, items, place),
            Value::String(text) => self.text(shape, text, node, place),
            Value::Int(number) => self.number(shape, *number as f64, node, place),
            Value::Float(number) => self.number(shape, *number, node, place),
            Value::Null | Value::Bool(_) => {}
        }
    }

    fn choice(&mut self, choices: &[&Json], schema: &'a Json, node: &Node, place: Place<'_>) {
        if choices.iter().any(|choice| equals(node, choice)) {
            return;
        }
        let Some(text) = node.as_str() else {
            let problem = self.wrong_type(schema, node, place);
            return self.problems.push(problem);
        };
        let message = format!("expected {}, found {}", expected(self.structure, schema), found(node));
        let mut problem = Diagnostic::error("invalid-value", node.span, message);
        if let Some(similar) = did_you_mean(text, choices.iter().filter_map(|choice| choice.as_str())) {
            problem = problem.help(format!("did you mean `{similar}`?"));
        }
        self.problems.push(place.explain(problem));
    }

    /// The branch that fits, or the one the author most likely meant.
    fn best_branch(&mut self, schema: &'a Json, branches: &'a [Json], node: &Node, place: Place<'_>) {
        let earlier = self.problems.len();
        let mut results = Vec::new();
        for branch in branches.iter().filter(|branch| self.structure.may_be(branch, &node.value)).collect::<Vec<_>>() {
            self.value(branch, node, place);
            let found = self.problems.split_off(earlier);
            if found.is_empty() {
                return;
            }
            results.push((branch, found));
        }
        let scalar = !matches!(node.value, Value::Mapping(_) | Value::Sequence(_));
        if results.is_empty() || (scalar && results.len() > 1) {
            let problem = self.wrong_type(schema, node, place);
            return self.problems.push(problem);
        }
        let best = results.into_iter().max_by_key(|(branch, found)| (self.shared_keys(branch, node), usize::MAX - found.len()));
        self.problems.extend(best.map(|(_, found)| found).unwrap_or_default());
    }

    fn shared_keys(&self, branch: &'a Json, node: &Node) -> usize {
        let Value::Mapping(entries) = &node.value else { return 0 };
        let shape = self.structure.shape(self.structure.resolve(branch));
        entries.iter().filter(|(key, _)| shape.object.knows(key)).count()
    }

    fn wrong_type(&self, schema: &'a Json, node: &Node, place: Place<'_>) -> Diagnostic {
        let message = format!("expected {}, found {}", expected(self.structure, schema), found(node));
        let problem = Diagnostic::error("wrong-type", node.span, message);
        place.explain(match self.way_out(schema, &node.value) {
            Some(hint) => problem.help(hint),
            None => problem,
        })
    }

    fn way_out(&self, schema: &'a Json, value: &Value) -> Option<&'static str> {
        let takes = |sample: Value| self.structure.may_be(schema, &sample);
        let is_choice = || self.structure.shape(self.structure.resolve(schema)).choices.is_some();
        match value {
            Value::Null => Some("give it a value, or delete the key"),
            Value::Bool(_) | Value::Int(_) | Value::Float(_) if takes(Value::String(String::new())) && !is_choice() => {
                Some("put it in quotes if text is meant")
            }
            Value::String(text) if text.parse::<f64>().is_ok() && takes(Value::Int(0)) => Some("take the quotes away"),
            Value::String(_) | Value::Int(_) if takes(Value::Sequence(Vec::new())) => Some("write a list: `[…]`, or one `- …` a line"),
            Value::Mapping(entries) if entries.len() == 1 && takes(Value::String(String::new())) => {
                Some("text that holds `: ` needs quotes")
            }
            _ => None,
        }
    }

    fn sequence(&mut self, shape: &Shape<'a>, node: &Node, items: &[Node], place: Place<'_>) {
        if (items.len() as u64) < shape.min_items {
            let message = match shape.min_items {
                1 => "the list must not be empty".into(),
                least => format!("at least {least} entries are expected here"),
            };
            self.problems.push(place.explain(Diagnostic::error("invalid-value", node.span, message)));
        }
        if let Some(item) = shape.items {
            for node in items {
                self.value(item, node, place);
            }
        }
    }

    fn text(&mut self, shape: &Shape<'a>, text: &str, node: &Node, place: Place<'_>) {
        let message = if shape.pattern.as_ref().is_some_and(|pattern| !pattern.is_match(text)) {
            match scalar_description(shape.json) {
                Some(description) => format!("expected {description}, found {}", found(node)),
                None => format!(
                    "{} is not allowed here; it must match {}",
                    found(node),
                    shape.pattern.as_ref().map_or("", |pattern| pattern.as_str())
                ),
            }
        } else if (text.chars().count() as u64) < shape.min_length {
            "the text must not be empty".into()
        } else {
            return;
        };
        self.problems.push(place.explain(Diagnostic::error("invalid-value", node.span, message)));
    }

    fn number(&mut self, shape: &Shape<'a>, number: f64, node: &Node, place: Place<'_>) {
        let message = match (shape.minimum, shape.maximum) {
            (Some(least), Some(most)) if least == most && number != least => format!("expected {least}, found {}", found(node)),
            (Some(least), Some(most)) if number < least || number > most => format!("{number} is not between {least} and {most}"),
            (Some(least), None) if number < least => format!("{number} is less than {least}"),
            (None, Some(most)) if number > most => format!("{number} is more than {most}"),
            _ => return,
        };
        self.problems.push(place.explain(Diagnostic::error("invalid-value", node.span, message)));
    }
}

fn equals(node: &Node, choice: &Json) -> bool {
    match (&node.value, choice) {
        (Value::String(text), Json::String(choice)) => text == choice,
        (Value::Bool(value), Json::Bool(choice)) => value == choice,
        (Value::Int(number), Json::Number(choice)) => choice.as_i64() == Some(*number),
        (Value::Float(number), Json::Number(choice)) => choice.as_f64() == Some(*number),
        _ => false,
    }
}
