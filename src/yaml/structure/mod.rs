//! A tree against a JSON Schema: everything that is wrong with its shape, at once.
//!
//! serde stops at the first error, so shape is judged here, by the schema that is
//! generated from the same types; serde then only reads what is known to fit. Covers
//! the keywords schemars writes, and judges values of scalar types through the
//! caller's [`Leaf`].

mod object;
mod words;

use std::cell::RefCell;
use std::collections::HashMap;

use regex::Regex;
use serde_json::Value as Json;

use super::{Node, Value};
use crate::diagnostic::{Diagnostic, did_you_mean};
use object::Object;
use words::{expected, found, listed};

/// Judges a node against the definition of a name, beyond what a schema can say.
pub type Leaf<'a> = &'a dyn Fn(&str, &Node) -> Option<Diagnostic>;

/// A schema to check trees against.
pub struct Structure<'a> {
    root: &'a Json,
    leaf: Leaf<'a>,
    patterns: RefCell<HashMap<&'a str, Option<Regex>>>,
}

/// Where in the document a value is being checked.
#[derive(Clone, Copy, Default)]
struct Place<'a> {
    /// The key the value belongs to.
    key: Option<&'a str>,
    /// What the key is for.
    purpose: Option<&'a str>,
    /// The mapping that holds the key.
    outer: Option<&'a Object<'a>>,
}

impl<'a> Structure<'a> {
    /// Checks against `schema`, whose definitions are under `definitions` or `$defs`.
    pub fn new(schema: &'a Json, leaf: Leaf<'a>) -> Self {
        Self { root: schema, leaf, patterns: RefCell::default() }
    }

    /// Everything that is wrong with a tree, in the order of the tree; against one
    /// definition, or the whole schema.
    pub fn check(&self, definition: Option<&str>, node: &Node) -> Vec<Diagnostic> {
        let mut problems = Vec::new();
        match definition {
            None => self.value(self.root, node, Place::default(), &mut problems),
            Some(name) => {
                if let Some(schema) = self.definition(name) {
                    self.value(schema, node, Place::default(), &mut problems);
                }
            }
        }
        problems
    }

    /// What a schema asks for, in words.
    pub fn expected(&self, schema: &'a Json) -> String {
        expected(self, schema)
    }

    fn definition(&self, name: &str) -> Option<&'a Json> {
        ["definitions", "$defs"].iter().find_map(|keyword| self.root.get(keyword)?.get(name))
    }

    /// Follows references to the schema itself.
    fn resolve(&self, schema: &'a Json) -> &'a Json {
        match reference(schema).and_then(|name| self.definition(name)) {
            Some(definition) => self.resolve(definition),
            None => schema,
        }
    }

    fn value(&self, schema: &'a Json, node: &Node, place: Place<'_>, problems: &mut Vec<Diagnostic>) {
        if let Some(name) = reference(schema) {
            if let Some(problem) = (self.leaf)(name, node) {
                problems.push(place.explain(problem));
            } else if let Some(definition) = self.definition(name) {
                self.value(definition, node, place, problems);
            }
            return;
        }
        if let Some(choices) = self.choices(schema) {
            return self.choice(&choices, schema, node, place, problems);
        }
        if Object::alternatives(self, schema).is_none()
            && let Some(branches) = branches(schema)
        {
            return self.best_branch(schema, branches, node, place, problems);
        }
        for part in schema.get("allOf").and_then(Json::as_array).into_iter().flatten() {
            self.value(part, node, place, problems);
        }
        if !self.fits_kind(schema, node) {
            problems.push(self.wrong_type(schema, node, place));
            return;
        }
        match &node.value {
            Value::Mapping(entries) => Object::of(self, schema).check(self, node, entries, place, problems),
            Value::Sequence(items) => self.sequence(schema, node, items, place, problems),
            Value::String(text) => self.text(schema, text, node, place, problems),
            Value::Int(number) => number_bounds(schema, *number as f64, node, place, problems),
            Value::Float(number) => number_bounds(schema, *number, node, place, problems),
            Value::Null | Value::Bool(_) => {}
        }
    }

    /// The values of an enumeration with what each means.
    fn choices(&self, schema: &'a Json) -> Option<Vec<&'a Json>> {
        if let Some(only) = schema.get("const") {
            return Some(vec![only]);
        }
        if let Some(Json::Array(values)) = schema.get("enum") {
            return Some(values.iter().collect());
        }
        let branches = branches(schema)?;
        let choices = branches.iter().map(|branch| self.choices(self.resolve(branch))).collect::<Option<Vec<_>>>()?;
        Some(choices.into_iter().flatten().collect())
    }

    fn choice(&self, choices: &[&Json], schema: &'a Json, node: &Node, place: Place<'_>, problems: &mut Vec<Diagnostic>) {
        if choices.iter().any(|choice| equals(node, choice)) {
            return;
        }
        let mut problem = match node.value {
            Value::String(_) => {
                Diagnostic::error("invalid-value", node.span, format!("expected {}, found {}", expected(self, schema), found(node)))
            }
            _ => return problems.push(self.wrong_type(schema, node, place)),
        };
        let names = choices.iter().filter_map(|choice| choice.as_str());
        if let Some(similar) = node.as_str().and_then(|text| did_you_mean(text, names)) {
            problem = problem.help(format!("did you mean `{similar}`?"));
        }
        problems.push(place.explain(problem));
    }

    /// The branch that fits, or the one the author most likely meant.
    fn best_branch(&self, schema: &'a Json, branches: &'a [Json], node: &Node, place: Place<'_>, problems: &mut Vec<Diagnostic>) {
        let of_kind: Vec<&'a Json> = branches.iter().filter(|branch| self.may_be(branch, node)).collect();
        let mut results = Vec::new();
        for branch in &of_kind {
            let mut found = Vec::new();
            self.value(branch, node, place, &mut found);
            if found.is_empty() {
                return;
            }
            results.push(found);
        }
        let scalar = !matches!(node.value, Value::Mapping(_) | Value::Sequence(_));
        if results.is_empty() || (scalar && results.len() > 1) {
            return problems.push(self.wrong_type(schema, node, place));
        }
        let best = of_kind.iter().zip(results).max_by_key(|(branch, found)| (self.shared_keys(branch, node), usize::MAX - found.len()));
        problems.extend(best.map(|(_, found)| found).unwrap_or_default());
    }

    fn shared_keys(&self, branch: &'a Json, node: &Node) -> usize {
        match &node.value {
            Value::Mapping(entries) => {
                let object = Object::of(self, self.resolve(branch));
                entries.iter().filter(|(key, _)| object.knows(key)).count()
            }
            _ => 0,
        }
    }

    /// Whether a schema speaks of this kind of node at all.
    fn may_be(&self, schema: &'a Json, node: &Node) -> bool {
        let schema = self.resolve(schema);
        if let Some(choices) = self.choices(schema) {
            return choices.iter().any(|choice| choice.is_string()) && matches!(node.value, Value::String(_));
        }
        match branches(schema) {
            Some(branches) if schema.get("type").is_none() => branches.iter().any(|branch| self.may_be(branch, node)),
            _ => self.fits_kind(schema, node),
        }
    }

    fn fits_kind(&self, schema: &Json, node: &Node) -> bool {
        let mut kinds = match schema.get("type") {
            Some(Json::String(kind)) => vec![kind.as_str()].into_iter(),
            Some(Json::Array(kinds)) => kinds.iter().filter_map(Json::as_str).collect::<Vec<_>>().into_iter(),
            _ if schema.get("properties").is_some() || schema.get("required").is_some() => vec!["object"].into_iter(),
            _ => return schema.as_bool().unwrap_or(true),
        };
        kinds.any(|kind| match &node.value {
            Value::Null => kind == "null",
            Value::Bool(_) => kind == "boolean",
            Value::Int(_) => matches!(kind, "integer" | "number"),
            Value::Float(_) => kind == "number",
            Value::String(_) => kind == "string",
            Value::Sequence(_) => kind == "array",
            Value::Mapping(_) => kind == "object",
        })
    }

    fn wrong_type(&self, schema: &'a Json, node: &Node, place: Place<'_>) -> Diagnostic {
        let message = format!("expected {}, found {}", expected(self, schema), found(node));
        let mut problem = Diagnostic::error("wrong-type", node.span, message);
        let takes = |sample: Value| self.may_be(schema, &Node { span: node.span, value: sample });
        let hint = match &node.value {
            Value::Null => Some("give it a value, or delete the key".to_owned()),
            Value::Bool(_) | Value::Int(_) | Value::Float(_) if takes(Value::String(String::new())) => {
                Some("put it in quotes if text is meant".into())
            }
            Value::String(text) if text.parse::<f64>().is_ok() && takes(Value::Int(0)) => Some("take the quotes away".into()),
            Value::String(_) | Value::Int(_) if takes(Value::Sequence(Vec::new())) => {
                Some("write a list: `[…]`, or one `- …` a line".into())
            }
            Value::Mapping(entries) if entries.len() == 1 && takes(Value::String(String::new())) => {
                Some("text that holds `: ` needs quotes".into())
            }
            _ => None,
        };
        if let Some(hint) = hint {
            problem = problem.help(hint);
        }
        place.explain(problem)
    }

    fn sequence(&self, schema: &'a Json, node: &Node, items: &[Node], place: Place<'_>, problems: &mut Vec<Diagnostic>) {
        let least = schema.get("minItems").and_then(Json::as_u64).unwrap_or(0);
        if (items.len() as u64) < least {
            let message =
                if least == 1 { "the list must not be empty".into() } else { format!("at least {least} entries are expected here") };
            problems.push(place.explain(Diagnostic::error("invalid-value", node.span, message)));
        }
        if let Some(item) = schema.get("items") {
            for node in items {
                self.value(item, node, place, problems);
            }
        }
    }

    fn text(&self, schema: &'a Json, text: &str, node: &Node, place: Place<'_>, problems: &mut Vec<Diagnostic>) {
        if let Some(pattern) = schema.get("pattern").and_then(Json::as_str)
            && !self.matches(pattern, text)
        {
            let message = match words::scalar_description(schema) {
                Some(description) => format!("expected {description}, found {}", found(node)),
                None => format!("{} is not allowed here; it must match {pattern}", found(node)),
            };
            problems.push(place.explain(Diagnostic::error("invalid-value", node.span, message)));
        } else if schema.get("minLength").and_then(Json::as_u64).is_some_and(|least| (text.chars().count() as u64) < least) {
            problems.push(place.explain(Diagnostic::error("invalid-value", node.span, "the text must not be empty")));
        }
    }

    fn matches(&self, pattern: &'a str, text: &str) -> bool {
        let mut patterns = self.patterns.borrow_mut();
        let compiled = patterns.entry(pattern).or_insert_with(|| Regex::new(pattern).ok());
        compiled.as_ref().is_none_or(|compiled| compiled.is_match(text))
    }
}

impl Place<'_> {
    /// Adds what the key is for.
    fn explain(&self, problem: Diagnostic) -> Diagnostic {
        match (self.key, self.purpose) {
            (Some(key), Some(purpose)) => problem.help(format!("`{key}`: {}", words::first_sentence(purpose))),
            _ => problem,
        }
    }
}

/// The definition a schema stands for, be it beside other keywords or in an `allOf` of its own.
fn reference(schema: &Json) -> Option<&str> {
    let direct = |schema: &'_ Json| schema.get("$ref").is_some();
    let schema = match schema.get("allOf").and_then(Json::as_array).map(Vec::as_slice) {
        Some([only]) if direct(only) => only,
        _ => schema,
    };
    schema.get("$ref")?.as_str()?.rsplit('/').next()
}

fn branches(schema: &Json) -> Option<&[Json]> {
    ["anyOf", "oneOf"].iter().find_map(|keyword| schema.get(*keyword)?.as_array()).map(Vec::as_slice)
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

fn number_bounds(schema: &Json, number: f64, node: &Node, place: Place<'_>, problems: &mut Vec<Diagnostic>) {
    let bound = |keyword: &str| schema.get(keyword).and_then(Json::as_f64);
    let message = match (bound("minimum"), bound("maximum")) {
        (Some(least), Some(most)) if least == most && number != least => format!("expected {least}, found {}", found(node)),
        (Some(least), Some(most)) if number < least || number > most => format!("{number} is not between {least} and {most}"),
        (Some(least), None) if number < least => format!("{number} is less than {least}"),
        (None, Some(most)) if number > most => format!("{number} is more than {most}"),
        _ => return,
    };
    problems.push(place.explain(Diagnostic::error("invalid-value", node.span, message)));
}

#[cfg(test)]
mod tests;
