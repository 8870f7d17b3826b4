//! A schema read once, so that a hundred thousand steps need not look its keywords up.

use regex::Regex;
use serde_json::Value as Json;

use super::super::Value;
use super::Structure;
use super::object::Object;

/// One schema.
pub(super) struct Shape<'a> {
    /// The definition it stands for; then nothing else is of interest.
    pub reference: Option<(&'a str, &'a Json)>,
    /// The values of an enumeration.
    pub choices: Option<Vec<&'a Json>>,
    /// Of these one must fit, unless they only differ by a key; those are part of `object`.
    pub branches: Option<&'a [Json]>,
    /// All of these must fit as well.
    pub parts: &'a [Json],
    pub kinds: Kinds,
    pub object: Object<'a>,
    pub items: Option<&'a Json>,
    pub min_items: u64,
    pub pattern: Option<Regex>,
    pub min_length: u64,
    pub minimum: Option<f64>,
    pub maximum: Option<f64>,
    /// The schema itself, for words about it.
    pub json: &'a Json,
}

impl<'a> Shape<'a> {
    pub fn of(structure: &Structure<'a>, schema: &'a Json) -> Self {
        let number = |keyword: &str| schema.get(keyword).and_then(Json::as_f64);
        let count = |keyword: &str| schema.get(keyword).and_then(Json::as_u64).unwrap_or(0);
        let reference = reference(schema).and_then(|name| Some((name, structure.definition(name)?)));
        let keyed = Object::alternatives(structure, schema).is_some();
        Self {
            reference,
            choices: choices(structure, schema),
            branches: branches(schema).filter(|_| !keyed),
            parts: schema.get("allOf").and_then(Json::as_array).map_or(&[], Vec::as_slice),
            kinds: Kinds::of(schema),
            object: Object::of(structure, schema),
            items: schema.get("items"),
            min_items: count("minItems"),
            pattern: schema.get("pattern").and_then(Json::as_str).and_then(|pattern| Regex::new(pattern).ok()),
            min_length: count("minLength"),
            minimum: number("minimum"),
            maximum: number("maximum"),
            json: schema,
        }
    }
}

/// The kinds of values a schema allows.
#[derive(Debug, Clone, Copy)]
pub(super) struct Kinds {
    any: bool,
    null: bool,
    boolean: bool,
    integer: bool,
    number: bool,
    string: bool,
    array: bool,
    object: bool,
}

impl Kinds {
    fn of(schema: &Json) -> Self {
        let named: Vec<&str> = match schema.get("type") {
            Some(Json::String(kind)) => vec![kind],
            Some(Json::Array(kinds)) => kinds.iter().filter_map(Json::as_str).collect(),
            _ if schema.get("properties").is_some() || schema.get("required").is_some() => vec!["object"],
            _ => Vec::new(),
        };
        let has = |kind: &str| named.contains(&kind);
        Self {
            any: named.is_empty() && schema.as_bool().unwrap_or(true),
            null: has("null"),
            boolean: has("boolean"),
            integer: has("integer") || has("number"),
            number: has("number"),
            string: has("string"),
            array: has("array"),
            object: has("object"),
        }
    }

    pub fn allow(self, value: &Value) -> bool {
        self.any
            || match value {
                Value::Null => self.null,
                Value::Bool(_) => self.boolean,
                Value::Int(_) => self.integer,
                Value::Float(_) => self.number,
                Value::String(_) => self.string,
                Value::Sequence(_) => self.array,
                Value::Mapping(_) => self.object,
            }
    }
}

/// The definition a schema stands for, be it beside other keywords or in an `allOf` of its own.
pub(super) fn reference(schema: &Json) -> Option<&str> {
    let schema = match schema.get("allOf").and_then(Json::as_array).map(Vec::as_slice) {
        Some([only]) if only.get("$ref").is_some() => only,
        _ => schema,
    };
    schema.get("$ref")?.as_str()?.rsplit('/').next()
}

pub(super) fn branches(schema: &Json) -> Option<&[Json]> {
    ["anyOf", "oneOf"].iter().find_map(|keyword| schema.get(*keyword)?.as_array()).map(Vec::as_slice)
}

fn choices<'a>(structure: &Structure<'a>, schema: &'a Json) -> Option<Vec<&'a Json>> {
    if let Some(only) = schema.get("const") {
        return Some(vec![only]);
    }
    if let Some(Json::Array(values)) = schema.get("enum") {
        return Some(values.iter().collect());
    }
    let choices = branches(schema)?.iter().map(|branch| choices(structure, structure.resolve(branch))).collect::<Option<Vec<_>>>()?;
    Some(choices.into_iter().flatten().collect())
}
