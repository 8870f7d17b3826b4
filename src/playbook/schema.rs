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

/// The JSON Schema (draft-07) for editors, as text.
pub fn json_schema() -> String {
    let mut schema = document().clone();
    let definitions = schema["definitions"].take();
    inline_scalars(&mut schema, &definitions);
    schema["definitions"] = definitions.clone();
    inline_scalars(&mut schema["definitions"], &definitions);
    let mut text = serde_json::to_string_pretty(&schema).unwrap_or_default();
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
    show_examples(&step, &mut definitions);
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

/// Moves the examples of actions into their descriptions, as an author would write them.
fn show_examples(step: &Json, definitions: &mut Map<String, Json>) {
    for key in Action::KEYS {
        let Some(definition) = definition_of(step, key).and_then(|name| definitions.get_mut(name)) else { continue };
        let Some(Json::Array(examples)) = definition.as_object_mut().and_then(|definition| definition.remove("examples")) else { continue };
        let written: Vec<String> = examples.iter().filter_map(|example| serde_yaml::to_string(&json!({ *key: example })).ok()).collect();
        let description = definition.get("description").and_then(Json::as_str).unwrap_or_default();
        definition["description"] = format!("{description}\n\n```yaml\n{}```", written.join("\n")).into();
    }
}

/// The name of the definition of an action.
pub(super) fn definition_of<'a>(step: &'a Json, key: &str) -> Option<&'a str> {
    step.get("properties")?.get(key)?.get("$ref")?.as_str()?.rsplit('/').next()
}

/// The common keys and exactly one action.
fn step(generator: &mut SchemaGenerator) -> Json {
    let settings = generator.root_schema_for::<StepSettings>().to_value();
    let mut properties = settings.get("properties").and_then(Json::as_object).cloned().unwrap_or_default();
    let actions = Action::schemas(generator);
    let keys: Vec<&str> = actions.iter().map(|(key, _)| *key).collect();
    let mut branches = exclusive(&keys, "a step has exactly one action");
    for branch in &mut branches {
        branch["properties"].as_object_mut().map(|others| others.remove(GATE));
    }
    properties.extend(actions.into_iter().filter(|(key, _)| *key != GATE).map(|(key, schema)| (key.to_owned(), schema.to_value())));
    json!({
        "description": "One step: the keys every step may have, and exactly one action.",
        "type": "object",
        "properties": properties,
        "required": settings.get("required").cloned().unwrap_or_default(),
        "additionalProperties": false,
        "oneOf": branches,
    })
}

/// Branches of which one holds when exactly one of the keys is there. Each forbids the
/// others by name, because an editor's own words for "several of `oneOf` match" tell
/// nobody what to do.
fn exclusive(keys: &[&str], message: &str) -> Vec<Json> {
    keys.iter()
        .map(|key| {
            let others: Map<String, Json> =
                keys.iter().filter(|other| *other != key).map(|other| ((*other).to_owned(), Json::Bool(false))).collect();
            json!({ "type": "object", "required": [key], "properties": others, "errorMessage": message })
        })
        .collect()
}

/// Editors show what a type says of itself before what a key says of its use. So a key
/// of a scalar type gets a copy of the type without its description.
fn inline_scalars(schema: &mut Json, definitions: &Json) {
    match schema {
        Json::Object(map) => {
            let scalar = map
                .get("description")
                .and_then(|_| map.get("allOf")?.get(0)?.get("$ref")?.as_str()?.rsplit('/').next())
                .and_then(|name| definitions.get(name)?.as_object())
                .filter(|definition| {
                    ["properties", "allOf", "anyOf", "oneOf", "items"].iter().all(|keyword| !definition.contains_key(*keyword))
                });
            if let Some(scalar) = scalar {
                map.remove("allOf");
                let keywords = scalar.iter().filter(|(keyword, _)| !matches!(keyword.as_str(), "description" | "markdownDescription"));
                map.extend(keywords.map(|(keyword, value)| (keyword.clone(), value.clone())));
            }
            map.values_mut().for_each(|part| inline_scalars(part, definitions));
        }
        Json::Array(items) => items.iter_mut().for_each(|part| inline_scalars(part, definitions)),
        _ => {}
    }
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
    flatten_alternatives(map);
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

/// Mappings with one key each become one mapping with exclusive keys, which editors
/// complete and explain better.
fn flatten_alternatives(map: &mut Map<String, Json>) {
    let Some(Json::Array(branches)) = map.get("oneOf") else { return };
    let single = |branch: &Json| {
        let (key, property) = match branch.get("properties")?.as_object()?.iter().collect::<Vec<_>>().as_slice() {
            [(key, property)] => ((*key).clone(), (*property).clone()),
            _ => return None,
        };
        let closed = branch.get("required")? == &json!([key]) && branch.get("additionalProperties") == Some(&Json::Bool(false));
        closed.then(|| (key, explained(property, branch.get("description"))))
    };
    let Some(properties) = branches.iter().map(single).collect::<Option<Map<String, Json>>>() else { return };
    let keys: Vec<&str> = properties.keys().map(String::as_str).collect();
    let message = format!("exactly one of {} belongs here", keys.join(", "));
    let branches = exclusive(&keys, &message);
    map.insert("type".into(), json!("object"));
    map.insert("properties".into(), properties.into());
    map.insert("additionalProperties".into(), Json::Bool(false));
    map.insert("oneOf".into(), branches.into());
}

/// A property with the description of its branch.
fn explained(property: Json, description: Option<&Json>) -> Json {
    match (property, description) {
        (Json::Object(mut property), Some(description)) if !property.contains_key("description") => {
            if let Some(reference) = property.remove("$ref") {
                property.insert("allOf".into(), json!([{ "$ref": reference }]));
            }
            property.insert("description".into(), description.clone());
            property.into()
        }
        (property, _) => property,
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::playbook::reference::reference;

    fn checked_in(name: &str) -> String {
        std::fs::read_to_string(format!("{}/schemas/{name}", env!("CARGO_MANIFEST_DIR"))).unwrap_or_default()
    }

    #[test]
    fn the_schema_beside_the_code_is_the_one_the_types_give() {
        assert!(checked_in("playbook.schema.json") == json_schema(), "run .ci/generate");
    }

    #[test]
    fn the_reference_beside_the_code_is_the_one_the_types_give() {
        assert!(checked_in("reference.md") == reference(), "run .ci/generate");
    }

    #[test]
    fn every_action_is_explained_with_an_example() {
        let reference = reference();
        for key in Action::KEYS {
            let section = reference.split(&format!("\n### `{key}`\n")).nth(1).unwrap_or_else(|| panic!("no section for {key}"));
            let section = section.split("\n### ").next().unwrap_or_default();
            assert!(section.contains("```yaml\n"), "{key} has no example");
            assert!(section.contains("| key | value | meaning |"), "{key} has no keys");
        }
    }

    #[test]
    fn it_is_a_schema_and_editors_are_offered_no_null() {
        jsonschema::draft7::meta::validate(document()).expect("a draft-07 schema");
        assert!(
            !json_schema().replace("\"null\": {", "").contains("\"null\"") && !json_schema().contains(": null"),
            "`null` spoils completion"
        );
    }

    #[test]
    fn the_playbooks_beside_the_code_fit_it() {
        let validator = jsonschema::validator_for(document()).expect("a schema");
        for directory in ["playbooks", "examples"] {
            let directory = format!("{}/{directory}", env!("CARGO_MANIFEST_DIR"));
            for file in std::fs::read_dir(directory).expect("a directory") {
                let path = file.expect("a file").path();
                if path.extension().is_some_and(|extension| extension == "yaml") {
                    let playbook: Json = serde_yaml::from_str(&std::fs::read_to_string(&path).expect("text")).expect("YAML");
                    let errors: Vec<String> = validator.iter_errors(&playbook).map(|error| error.to_string()).collect();
                    assert!(errors.is_empty(), "{}: {}", path.display(), errors.join("\n"));
                }
            }
        }
    }

    #[test]
    fn every_key_is_explained() {
        fn unexplained(path: &str, schema: &Json, found: &mut Vec<String>) {
            let parts = ["anyOf", "oneOf"].iter().filter_map(|keyword| schema.get(*keyword)?.as_array()).flatten();
            parts.for_each(|part| unexplained(path, part, found));
            for (key, property) in schema.get("properties").and_then(Json::as_object).into_iter().flatten() {
                let told = |schema: &Json| schema.get("description").is_some();
                let reference =
                    property.get("$ref").and_then(Json::as_str).and_then(|name| document().pointer(name.trim_start_matches('#')));
                let is_variant =
                    schema.get("required").and_then(Json::as_array).is_some_and(|required| required.len() == 1) && told(schema);
                if property.is_object() && !told(property) && !reference.is_some_and(told) && !is_variant {
                    found.push(format!("{path}.{key}"));
                }
            }
        }
        let mut found = Vec::new();
        unexplained("", document(), &mut found);
        for (name, definition) in document()["definitions"].as_object().into_iter().flatten() {
            unexplained(name, definition, &mut found);
        }
        assert!(found.is_empty(), "no hover text for {}", found.join(", "));
    }
}
