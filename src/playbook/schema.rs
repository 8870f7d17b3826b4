//! The language as data: JSON Schema for editors and for the decoder, generated from
//! the types.

use std::sync::LazyLock;

use schemars::SchemaGenerator;
use schemars::generate::SchemaSettings;
use serde_json::{Map, Value as Json, json};

use super::{Settings, StepSettings};
use crate::action::Action;

pub use super::reference::reference;

/// Where the schema is found once it is published beside the playbooks.
const DRAFT: &str = "http://json-schema.org/draft-07/schema#";
/// The name of a step's definition.
pub(super) const STEP: &str = "Step";

/// An action that beside another action is a gate in front of it.
pub(super) const GATE: &str = "confirm";

/// The lists of steps, with what they are for.
pub(super) const STEP_LISTS: [(&str, &str); 4] = [
    ("steps", "The procedure. A step without `needs` waits for the step above it; steps that do not wait for each other run side by side."),
    ("on_failure", "Steps run when the run failed, before `always`."),
    ("on_success", "Steps run when every step succeeded."),
    ("always", "Steps run at the end in any case."),
];

/// The JSON Schema (draft-07), as text.
pub fn json_schema() -> String {
    let mut text = serde_json::to_string_pretty(document()).unwrap_or_default();
    text.push('\n');
    text
}

/// The JSON Schema.
pub(super) fn document() -> &'static Json {
    static DOCUMENT: LazyLock<Json> = LazyLock::new(build);
    &DOCUMENT
}

fn build() -> Json {
    let mut generator = SchemaSettings::draft07().into_generator();
    let settings = generator.root_schema_for::<Settings>().to_value();
    let step = step(&mut generator);
    let mut definitions = generator.take_definitions(true);
    definitions.insert(STEP.into(), step);
    definitions.sort_keys();
    let mut properties = settings.get("properties").and_then(Json::as_object).cloned().unwrap_or_default();
    for (name, purpose) in STEP_LISTS {
        let mut list = json!({ "description": purpose, "type": "array", "items": { "$ref": format!("#/definitions/{STEP}") } });
        if name == "steps" {
            list["minItems"] = json!(1);
        }
        properties.insert(name.into(), list);
    }
    let mut document = json!({
        "$schema": DRAFT,
        "title": "runbook playbook",
        "description": "A procedure for people who operate databases.",
        "type": "object",
        "properties": properties,
        "required": ["version", "name", "steps"],
        "additionalProperties": false,
        "definitions": definitions,
    });
    tidy(&mut document);
    document
}

/// The common keys and exactly one action.
fn step(generator: &mut SchemaGenerator) -> Json {
    let settings = generator.root_schema_for::<StepSettings>().to_value();
    let mut properties = settings.get("properties").and_then(Json::as_object).cloned().unwrap_or_default();
    let actions = Action::schemas(generator);
    let keys: Vec<&str> = actions.iter().map(|(key, _)| *key).collect();
    // `false` for all other actions, because an editor's own words for "several of
    // `oneOf` match" tell nobody what to do.
    let branches: Vec<Json> = keys
        .iter()
        .map(|key| {
            let others = keys.iter().filter(|other| *other != key && **other != GATE);
            let others: Map<String, Json> = others.map(|other| ((*other).to_owned(), Json::Bool(false))).collect();
            json!({ "required": [key], "properties": others, "errorMessage": "a step has exactly one action" })
        })
        .collect();
    let gate = properties.get(GATE).cloned();
    properties.extend(actions.into_iter().map(|(key, schema)| (key.to_owned(), schema.to_value())));
    properties.extend(gate.map(|gate| (GATE.to_owned(), gate)));
    json!({
        "description": "One step: the keys every step may have, and exactly one action.",
        "type": "object",
        "properties": properties,
        "required": settings.get("required").cloned().unwrap_or_default(),
        "additionalProperties": false,
        "oneOf": branches,
    })
}

/// Makes what schemars writes fit for editors: `null` would be completed, defaults
/// inserted, and only `markdownDescription` is shown with its formatting.
fn tidy(schema: &mut Json) {
    match schema {
        Json::Object(map) => {
            tidy_keywords(map);
            map.values_mut().for_each(tidy);
        }
        Json::Array(items) => items.iter_mut().for_each(tidy),
        _ => {}
    }
}

fn tidy_keywords(map: &mut Map<String, Json>) {
    // A mapping of properties has the same shape as a schema, but its values are objects.
    if map.get("format").is_some_and(Json::is_string) {
        map.remove("format");
    }
    if map.get("default").is_some_and(|default| !matches!(default, Json::String(_) | Json::Bool(_) | Json::Number(_))) && is_schema(map) {
        map.remove("default");
    }
    if let Some(Json::Array(kinds)) = map.get_mut("type") {
        kinds.retain(|kind| kind != "null");
        if let [only] = kinds.as_slice() {
            let only = only.clone();
            map.insert("type".into(), only);
        }
    }
    for keyword in ["anyOf", "oneOf"] {
        if let Some(Json::Array(branches)) = map.get_mut(keyword) {
            branches.retain(|branch| branch.get("type").is_none_or(|kind| kind != "null"));
            if let [_] = branches.as_slice() {
                let only = map.remove(keyword).unwrap_or_default();
                map.insert("allOf".into(), only);
            }
        }
    }
    if let Some(Json::Array(values)) = map.get_mut("enum") {
        values.retain(|value| !value.is_null());
    }
    enumerate(map);
    if let Some(Json::String(text)) = map.get("description").cloned() {
        map.insert("markdownDescription".into(), Json::String(text.clone()));
        map.insert("description".into(), Json::String(text.split("\n\n").next().unwrap_or_default().replace('\n', " ")));
    }
}

/// Whether an object is a schema rather than a mapping of properties by name.
fn is_schema(map: &Map<String, Json>) -> bool {
    ["type", "$ref", "allOf", "anyOf", "oneOf", "description", "const", "enum"].iter().any(|keyword| match map.get(*keyword) {
        Some(Json::Object(_)) | None => false,
        Some(_) => true,
    })
}

/// Alternatives that are constants become an enumeration, whose error message lists the values.
fn enumerate(map: &mut Map<String, Json>) {
    let Some(Json::Array(branches)) = map.get("oneOf") else { return };
    let constants: Option<Vec<(Json, Json)>> = branches
        .iter()
        .map(|branch| Some((branch.get("const")?.clone(), branch.get("description").cloned().unwrap_or_default())))
        .collect();
    if let Some(constants) = constants {
        map.remove("oneOf");
        map.insert("type".into(), json!("string"));
        let (values, descriptions): (Vec<_>, Vec<_>) = constants.into_iter().unzip();
        map.insert("enum".into(), Json::Array(values));
        map.insert("markdownEnumDescriptions".into(), Json::Array(descriptions));
    }
}
