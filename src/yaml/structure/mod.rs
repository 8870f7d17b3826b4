//! A tree against a JSON Schema: everything that is wrong with its shape, at once.
//!
//! serde stops at the first error, so shape is judged here, by the schema that is
//! generated from the same types; serde then only reads what is known to fit. Covers
//! the keywords schemars writes, and judges values of scalar types through the
//! caller's [`Leaf`].

mod object;
mod shape;
mod walk;
mod words;

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;

use serde_json::Value as Json;

use super::{Node, Value};
use crate::diagnostic::Diagnostic;
use shape::Shape;
use walk::{Place, Walk};

/// Judges a node against the definition of a name, beyond what a schema can say.
pub type Leaf<'a> = &'a dyn Fn(&str, &Node) -> Option<Diagnostic>;

/// A schema to check trees against.
pub struct Structure<'a> {
    root: &'a Json,
    /// What was read of the schema so far, by the place in it.
    shapes: RefCell<HashMap<*const Json, Rc<Shape<'a>>>>,
}

impl<'a> Structure<'a> {
    /// Checks against `schema`, whose definitions are under `definitions` or `$defs`.
    pub fn new(schema: &'a Json) -> Self {
        Self { root: schema, shapes: RefCell::default() }
    }

    /// Everything that is wrong with a tree, in the order of the tree; against one
    /// definition, or the whole schema. Without `leaf` only what the schema says is judged.
    pub fn check(&self, definition: Option<&str>, node: &Node, leaf: Option<Leaf<'_>>) -> Vec<Diagnostic> {
        let schema = match definition {
            None => Some(self.root),
            Some(name) => self.definition(name),
        };
        let mut walk = Walk { structure: self, leaf, problems: Vec::new() };
        if let Some(schema) = schema {
            walk.value(schema, node, Place::default());
        }
        walk.problems
    }

    /// What a schema asks for, in words.
    pub fn expected(&self, schema: &'a Json) -> String {
        words::expected(self, schema)
    }

    fn definition(&self, name: &str) -> Option<&'a Json> {
        ["definitions", "$defs"].iter().find_map(|keyword| self.root.get(keyword)?.get(name))
    }

    fn shape(&self, schema: &'a Json) -> Rc<Shape<'a>> {
        let place = std::ptr::from_ref(schema);
        if let Some(known) = self.shapes.borrow().get(&place) {
            return known.clone();
        }
        let shape = Rc::new(Shape::of(self, schema));
        self.shapes.borrow_mut().insert(place, shape.clone());
        shape
    }

    /// Follows references to the schema itself.
    fn resolve(&self, schema: &'a Json) -> &'a Json {
        match shape::reference(schema).and_then(|name| self.definition(name)) {
            Some(definition) => self.resolve(definition),
            None => schema,
        }
    }

    /// Whether a schema speaks of this kind of value at all.
    fn may_be(&self, schema: &'a Json, value: &Value) -> bool {
        let shape = self.shape(self.resolve(schema));
        match (&shape.choices, shape.branches) {
            (Some(choices), _) => choices.iter().any(|choice| choice.is_string()) && matches!(value, Value::String(_)),
            (None, Some(branches)) => branches.iter().any(|branch| self.may_be(branch, value)),
            (None, None) => shape.kinds.allow(value),
        }
    }
}

#[cfg(test)]
mod tests;
