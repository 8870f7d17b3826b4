//! YAML text to a tree that remembers places, and from there to types.
//!
//! Responsible for parsing within limits (depth, size, duplicate keys, no merge
//! keys, no alias bombs), for holding a tree against a schema, for deserialising it
//! into any serde type with [`Spanned`] fields receiving their place, and for mapping
//! bytes of a scalar's value back to the file. It does not know what a playbook is.

mod deserialize;
mod either;
mod parse;
mod scalar;
mod structure;
mod within;

pub use deserialize::{from_entries, from_node};
pub use either::Either;
pub use parse::parse;
pub use structure::{Leaf, Structure};
pub use within::span_within;

use crate::source::{Span, Spanned};

/// A value and where it stands.
#[derive(Debug, Clone, PartialEq)]
pub struct Node {
    /// The whole value: a block scalar from its `|` or `>`, a quoted one with its quotes.
    pub span: Span,
    /// What it is.
    pub value: Value,
}

/// YAML's core schema.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// `null`, `~` or nothing.
    Null,
    /// `true` or `false`.
    Bool(bool),
    /// A whole number.
    Int(i64),
    /// Any other number that 64 bits hold without losing a digit.
    Float(f64),
    /// Text.
    String(String),
    /// A list.
    Sequence(Vec<Node>),
    /// Keys in the order written; keys are text.
    Mapping(Vec<(Spanned<String>, Node)>),
}

impl Node {
    /// The value of a key, if this is a mapping that has it.
    pub fn get(&self, key: &str) -> Option<&Node> {
        self.entry(key).map(|(_, value)| value)
    }

    /// A key with its value, if this is a mapping that has it.
    pub fn entry(&self, key: &str) -> Option<(&Spanned<String>, &Node)> {
        match &self.value {
            Value::Mapping(entries) => entries.iter().find(|(name, _)| name.value == key).map(|(name, value)| (name, value)),
            _ => None,
        }
    }

    /// The text, if it is one.
    pub fn as_str(&self) -> Option<&str> {
        match &self.value {
            Value::String(text) => Some(text),
            _ => None,
        }
    }
}

impl<T: schemars::JsonSchema> schemars::JsonSchema for Spanned<T> {
    fn inline_schema() -> bool {
        T::inline_schema()
    }
    fn schema_name() -> std::borrow::Cow<'static, str> {
        T::schema_name()
    }
    fn schema_id() -> std::borrow::Cow<'static, str> {
        T::schema_id()
    }
    fn json_schema(generator: &mut schemars::SchemaGenerator) -> schemars::Schema {
        T::json_schema(generator)
    }
}
