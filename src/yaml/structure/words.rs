//! What a schema expects and what a node is, in words.

use serde_json::Value as Json;

use super::super::{Node, Value};
use super::Structure;
use super::shape::{branches, reference};

/// What a schema asks for.
pub(super) fn expected<'a>(structure: &Structure<'a>, schema: &'a Json) -> String {
    let mut phrases = Vec::new();
    collect(structure, schema, &mut phrases);
    phrases.dedup();
    join(&phrases, "or")
}

fn collect<'a>(structure: &Structure<'a>, schema: &'a Json, phrases: &mut Vec<String>) {
    if let Some(definition) = reference(schema).and_then(|name| structure.definition(name)) {
        return collect(structure, definition, phrases);
    }
    if let Some(choices) = &structure.shape(schema).choices {
        let choices: Vec<String> =
            choices.iter().map(|choice| choice.as_str().map_or_else(|| format!("`{choice}`"), |text| format!("`{text}`"))).collect();
        phrases.push(join(&choices, "or"));
        return;
    }
    if let Some(description) = scalar_description(schema) {
        phrases.push(description.to_owned());
        return;
    }
    match schema.get("type") {
        Some(Json::String(kind)) => phrases.extend(kind_phrase(kind)),
        Some(Json::Array(kinds)) => phrases.extend(kinds.iter().filter_map(Json::as_str).filter_map(kind_phrase)),
        _ => match branches(schema) {
            Some(branches) => branches.iter().for_each(|branch| collect(structure, branch, phrases)),
            None if schema.get("properties").is_some() || schema.get("required").is_some() => phrases.push("a mapping".into()),
            None => phrases.push("any value".into()),
        },
    }
}

/// Types of scalars describe themselves by a phrase such as "a duration such as 5m";
/// what starts with a capital is the documentation of a mapping or a key.
pub(super) fn scalar_description(schema: &Json) -> Option<&str> {
    let scalar = |kind: &str| !matches!(kind, "object" | "array");
    let is_scalar = match schema.get("type")? {
        Json::String(kind) => scalar(kind),
        Json::Array(kinds) => kinds.iter().filter_map(Json::as_str).all(scalar),
        _ => false,
    };
    let description = schema.get("description")?.as_str().filter(|text| is_scalar && !text.starts_with(char::is_uppercase))?;
    Some(first_paragraph(description.split(';').next().unwrap_or(description)))
}

fn kind_phrase(kind: &str) -> Option<String> {
    Some(
        match kind {
            "string" => "text",
            "integer" => "a whole number",
            "number" => "a number",
            "boolean" => "`true` or `false`",
            "array" => "a list",
            "object" => "a mapping",
            _ => return None,
        }
        .into(),
    )
}

/// What a node is.
pub(super) fn found(node: &Node) -> String {
    match &node.value {
        Value::Null => "nothing".into(),
        Value::Bool(value) => format!("`{value}`"),
        Value::Int(value) => format!("the number {value}"),
        Value::Float(value) => format!("the number {value}"),
        Value::String(text) if text.is_empty() => "empty text".into(),
        Value::String(text) => format!("the text `{}`", shortened(text)),
        Value::Sequence(_) => "a list".into(),
        Value::Mapping(_) => "a mapping".into(),
    }
}

fn shortened(text: &str) -> String {
    let line = text.lines().next().unwrap_or_default();
    match line.char_indices().nth(60) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None if line.len() < text.trim_end().len() => format!("{line}…"),
        None => line.to_owned(),
    }
}

/// The first paragraph of a documentation comment, on one line.
pub(super) fn first_paragraph(text: &str) -> &str {
    text.split("\n\n").next().unwrap_or(text).trim()
}

/// `` `a`, `b` or `c` ``.
pub(super) fn listed<'a>(names: impl IntoIterator<Item = &'a str>, last: &str) -> String {
    join(&names.into_iter().map(|name| format!("`{name}`")).collect::<Vec<_>>(), last)
}

fn join(phrases: &[String], word: &str) -> String {
    match phrases {
        [] => "another value".into(),
        [only] => only.clone(),
        [first @ .., last] => format!("{} {word} {last}", first.join(", ")),
    }
}
