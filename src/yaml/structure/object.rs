//! Mappings: known, unknown, missing and conflicting keys.

use serde_json::Value as Json;

use super::super::Node;
use super::Structure;
use super::shape::branches;
use super::walk::{Place, Walk};
use super::words::listed;
use crate::diagnostic::{Diagnostic, did_you_mean};
use crate::source::Spanned;

/// More problems than this are not drawn anyway.
const MANY: usize = 200;

/// What a schema says about the keys of a mapping.
pub(super) struct Object<'a> {
    properties: Vec<Property<'a>>,
    required: Vec<&'a str>,
    /// Of these exactly one must stand there.
    alternatives: Vec<Alternative<'a>>,
    /// For keys that are not properties; `None`: there may be none.
    additional: Option<&'a Json>,
}

/// A key that may stand there.
#[derive(Clone, Copy)]
struct Property<'a> {
    name: &'a str,
    schema: &'a Json,
    /// What it is for.
    purpose: Option<&'a str>,
}

/// A key that excludes others.
struct Alternative<'a> {
    key: &'a str,
    /// What may not stand beside it; without such a list, none of the others.
    forbidden: Vec<&'a str>,
}

impl<'a> Object<'a> {
    pub(super) fn of(structure: &Structure<'a>, schema: &'a Json) -> Self {
        let mut object = Self {
            properties: properties(schema).collect(),
            required: required(schema).collect(),
            alternatives: Vec::new(),
            additional: additional(schema),
        };
        if let Some(alternatives) = Self::alternatives(structure, schema) {
            for (key, branch) in alternatives {
                object.alternatives.push(Alternative { key, forbidden: forbidden(branch).collect() });
                let further: Vec<_> = properties(branch).filter(|property| !object.knows(property.name)).collect();
                object.properties.extend(further);
                object.additional = object.additional.filter(|_| additional(branch).is_some());
            }
        }
        object
    }

    /// The branches of a schema that differ by the one key each requires.
    pub(super) fn alternatives(structure: &Structure<'a>, schema: &'a Json) -> Option<Vec<(&'a str, &'a Json)>> {
        branches(schema)?
            .iter()
            .map(|branch| {
                let branch = structure.resolve(branch);
                let mut keys = required(branch);
                match (keys.next(), keys.next()) {
                    (Some(key), None) => Some((key, branch)),
                    _ => None,
                }
            })
            .collect()
    }

    pub(super) fn knows(&self, key: &str) -> bool {
        self.property(key).is_some()
    }

    fn property(&self, key: &str) -> Option<Property<'a>> {
        self.properties.iter().find(|property| property.name == key).copied()
    }

    pub(super) fn check(&self, walk: &mut Walk<'_, 'a>, node: &Node, entries: &[(Spanned<String>, Node)], place: Place<'_>) {
        let mut meant = Vec::new();
        for (key, value) in entries {
            let further = || self.additional.map(|schema| Property { name: "", schema, purpose: None });
            match self.property(key).or_else(further) {
                Some(Property { schema, purpose, .. }) => {
                    walk.value(schema, value, Place { key: Some(key), purpose, outer: Some(self) });
                }
                // What was meant is not worth finding out when so much is wrong.
                None if walk.problems.len() > MANY => {
                    walk.problems.push(Diagnostic::error("unknown-key", key.span, format!("unknown key `{}`", key.value)));
                }
                None => {
                    meant.extend(self.similar(key));
                    let problem = self.unknown(walk.structure, key, entries, place);
                    walk.problems.push(problem);
                }
            }
        }
        self.missing(node, entries, place, &meant, &mut walk.problems);
        self.conflicting(entries, &mut walk.problems);
    }

    fn similar(&self, key: &str) -> Option<&'a str> {
        did_you_mean(key, self.properties.iter().map(|property| property.name))
    }

    fn unknown(
        &self,
        structure: &Structure<'a>,
        key: &Spanned<String>,
        entries: &[(Spanned<String>, Node)],
        place: Place<'_>,
    ) -> Diagnostic {
        let mut problem = Diagnostic::error("unknown-key", key.span, format!("unknown key `{}`", key.value));
        let absent = |name: &str| !entries.iter().any(|(key, _)| key.value == name);
        if let Some(similar) = self.similar(key).filter(|name| absent(name)) {
            problem = problem.help(format!("did you mean `{similar}`?"));
        } else if let Some(holders) = self.holders(structure, key, entries) {
            problem = problem.help(format!("`{}` belongs under {holders}", key.value));
        } else if let (Some(outer), Some(inner)) = (place.outer.filter(|outer| outer.knows(key)), place.key) {
            let _ = outer;
            problem = problem.help(format!("`{}` belongs one level up, beside `{inner}`", key.value));
        }
        if self.properties.is_empty() {
            return problem.help("no key is allowed here");
        }
        problem.help(format!("allowed: {}", self.properties.iter().map(|property| property.name).collect::<Vec<_>>().join(", ")))
    }

    /// The keys beside this one whose mappings know it.
    fn holders(&self, structure: &Structure<'a>, key: &str, entries: &[(Spanned<String>, Node)]) -> Option<String> {
        let all: Vec<&str> =
            self.properties.iter().filter(|property| knows(structure, property.schema, key)).map(|property| property.name).collect();
        let present: Vec<&str> = all.iter().copied().filter(|name| entries.iter().any(|(key, _)| key.value == *name)).collect();
        let holders = if present.is_empty() { all } else { present };
        (!holders.is_empty() && holders.len() <= 3).then(|| listed(holders, "or"))
    }

    fn missing(&self, node: &Node, entries: &[(Spanned<String>, Node)], place: Place<'_>, meant: &[&str], problems: &mut Vec<Diagnostic>) {
        let present = |name: &str| entries.iter().any(|(key, _)| key.value == name) || meant.contains(&name);
        for name in self.required.iter().filter(|name| !present(name)) {
            let mut problem = Diagnostic::error("missing-key", node.span, format!("the key `{name}` is missing"));
            if let Some(inner) = place.key {
                problem = problem.label(format!("in `{inner}`"));
            }
            let purpose = self.property(name).and_then(|property| property.purpose);
            problems.push(Place { key: Some(name), purpose, outer: None }.explain(problem));
        }
        if !self.alternatives.is_empty() && !self.alternatives.iter().any(|alternative| present(alternative.key)) {
            let message = format!("one of {} is missing", listed(self.alternatives.iter().map(|alternative| alternative.key), "or"));
            problems.push(Diagnostic::error("missing-key", node.span, message));
        }
    }

    fn conflicting(&self, entries: &[(Spanned<String>, Node)], problems: &mut Vec<Diagnostic>) {
        let alternative = |key: &str| self.alternatives.iter().find(|alternative| alternative.key == key);
        let given: Vec<(&Spanned<String>, &Alternative<'_>)> =
            entries.iter().filter_map(|(key, _)| Some((key, alternative(key)?))).collect();
        for (index, (second, theirs)) in given.iter().enumerate() {
            let Some((first, _)) = given[..index].iter().find(|(_, ours)| ours.excludes(theirs.key) && theirs.excludes(ours.key)) else {
                continue;
            };
            let message = format!("`{}` and `{}` cannot stand together", first.value, second.value);
            problems.push(
                Diagnostic::error("conflicting-keys", second.span, message).related(first.span, "the other one").help(format!(
                    "exactly one of {} is allowed",
                    listed(self.alternatives.iter().map(|alternative| alternative.key), "and")
                )),
            );
        }
    }
}

impl Alternative<'_> {
    fn excludes(&self, other: &str) -> bool {
        self.forbidden.is_empty() || self.forbidden.contains(&other)
    }
}

/// The keys a schema forbids by name.
fn forbidden(schema: &Json) -> impl Iterator<Item = &str> {
    let properties = schema.get("properties").and_then(Json::as_object).into_iter().flatten();
    properties.filter(|(_, schema)| **schema == Json::Bool(false)).map(|(name, _)| name.as_str())
}

/// Whether any form of a value has this key.
fn knows<'a>(structure: &Structure<'a>, schema: &'a Json, key: &str) -> bool {
    let schema = structure.resolve(schema);
    Object::of(structure, schema).knows(key)
        || branches(schema).into_iter().flatten().any(|branch| Object::of(structure, structure.resolve(branch)).knows(key))
}

/// The keys a schema describes; `false` forbids one, for editors.
fn properties(schema: &Json) -> impl Iterator<Item = Property<'_>> {
    let properties = schema.get("properties").and_then(Json::as_object).into_iter().flatten();
    properties.filter(|(_, schema)| **schema != Json::Bool(false)).map(|(name, schema)| Property {
        name,
        schema,
        purpose: schema.get("description").and_then(Json::as_str),
    })
}

fn required(schema: &Json) -> impl Iterator<Item = &str> {
    schema.get("required").and_then(Json::as_array).into_iter().flatten().filter_map(Json::as_str)
}

/// Anything goes unless the schema says otherwise.
fn additional(schema: &Json) -> Option<&Json> {
    match schema.get("additionalProperties") {
        Some(Json::Bool(false)) => None,
        Some(schema) => Some(schema),
        None => Some(&Json::Bool(true)),
    }
}
