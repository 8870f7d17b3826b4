//! YAML text to a tree that remembers places, and from there to types.
//!
//! Responsible for parsing within limits (depth, size, duplicate keys, no merge
//! keys, no alias bombs) and for deserialising a tree into any serde type, with
//! [`Spanned`] fields receiving their place. It does not know what a playbook is.

use serde::de::DeserializeOwned;

use crate::diagnostic::Diagnostic;
use crate::source::{SourceId, Sources, Span, Spanned};

/// A value and where it stands.
#[derive(Debug, Clone, PartialEq)]
pub struct Node {
    /// The whole value.
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
    /// Any other number.
    Float(f64),
    /// Text.
    String(String),
    /// A list.
    Sequence(Vec<Node>),
    /// Keys in the order written; keys are text.
    Mapping(Vec<(Spanned<String>, Node)>),
}

/// Parses one document; every problem found is returned.
pub fn parse(_sources: &Sources, _source: SourceId) -> Result<Node, Vec<Diagnostic>> {
    unimplemented!()
}

/// Reads a tree as a type.
pub fn from_node<T: DeserializeOwned>(_node: &Node) -> Result<T, Diagnostic> {
    unimplemented!()
}

impl<'de, T: serde::Deserialize<'de>> serde::Deserialize<'de> for Spanned<T> {
    fn deserialize<D: serde::Deserializer<'de>>(_deserializer: D) -> Result<Self, D::Error> {
        unimplemented!()
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
