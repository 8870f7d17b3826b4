//! A value that has a short form and a long one.

use std::borrow::Cow;
use std::marker::PhantomData;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::value::MapAccessDeserializer;
use serde::de::{self, Deserialize, DeserializeOwned, Deserializer, MapAccess, SeqAccess, Visitor};

/// The name by which [`Either`] asks whether a mapping stands there.
pub(super) const EITHER: &str = "$runbook::Either";

/// A mapping, or anything shorter than one. Unlike serde's untagged enums it keeps
/// places and reports what is wrong with the form that was chosen.
#[derive(Debug, Clone, PartialEq)]
pub enum Either<S, F> {
    /// Not a mapping.
    Scalar(S),
    /// A mapping.
    Fields(F),
}

impl<'de, S: DeserializeOwned, F: DeserializeOwned> Deserialize<'de> for Either<S, F> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_newtype_struct(EITHER, EitherVisitor(PhantomData))
    }
}

struct EitherVisitor<S, F>(PhantomData<(S, F)>);

impl<'de, S: DeserializeOwned, F: DeserializeOwned> Visitor<'de> for EitherVisitor<S, F> {
    type Value = Either<S, F>;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a value or a mapping")
    }

    /// Any other format: the form is seen only by reading it.
    fn visit_newtype_struct<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        let value = serde_json::Value::deserialize(deserializer)?;
        match value.is_object() {
            true => serde_json::from_value(value).map(Either::Fields),
            false => serde_json::from_value(value).map(Either::Scalar),
        }
        .map_err(de::Error::custom)
    }

    /// A tree's mapping.
    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
        F::deserialize(MapAccessDeserializer::new(map)).map(Either::Fields)
    }

    /// Anything else in a tree, as a list of one so that it keeps its place.
    fn visit_seq<A: SeqAccess<'de>>(self, mut single: A) -> Result<Self::Value, A::Error> {
        single.next_element()?.map(Either::Scalar).ok_or_else(|| de::Error::custom("a value is missing"))
    }
}

impl<S: JsonSchema, F: JsonSchema> JsonSchema for Either<S, F> {
    fn inline_schema() -> bool {
        true
    }
    fn schema_name() -> Cow<'static, str> {
        format!("{}Or{}", S::schema_name(), F::schema_name()).into()
    }
    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let (short, long) = (generator.subschema_for::<S>(), generator.subschema_for::<F>());
        json_schema!({ "anyOf": [short, long] })
    }
}
