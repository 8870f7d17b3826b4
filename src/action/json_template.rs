//! JSON with templates in it, for request bodies.

use indexmap::IndexMap;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::Value;

use super::Inspection;
use super::written::shown;
use crate::source::{Span, Spanned};
use crate::template::{Place, Template, TemplateError, Values};

/// JSON in which each text may be a template; one that is a single placeholder keeps its type.
#[derive(Debug)]
pub enum JsonTemplate {
    /// Anything without placeholders.
    Literal(Value),
    /// A text with placeholders.
    Template(Template),
    /// A list.
    List(Vec<JsonTemplate>),
    /// An object.
    Object(IndexMap<String, JsonTemplate>),
}

impl JsonTemplate {
    fn parse(written: Written, span: Span) -> Result<Self, String> {
        Ok(match written {
            Written::Scalar(Value::String(text)) if text.contains("{{") => Self::Template(Template::parse(Spanned::new(text, span))?),
            Written::Scalar(value) => Self::Literal(value),
            Written::List(items) => Self::List(items.into_iter().map(|item| Self::parse(item.value, item.span)).collect::<Result<_, _>>()?),
            Written::Object(fields) => Self::Object(
                fields.into_iter().map(|(name, field)| Ok((name, Self::parse(field.value, field.span)?))).collect::<Result<_, String>>()?,
            ),
        })
    }

    pub(super) fn inspect<'a>(&'a self, inspection: &mut Inspection<'a>) {
        match self {
            Self::Literal(_) => {}
            Self::Template(template) => inspection.template(template, Place::Private),
            Self::List(items) => items.iter().for_each(|item| item.inspect(inspection)),
            Self::Object(fields) => fields.values().for_each(|field| field.inspect(inspection)),
        }
    }

    pub(super) fn value(&self, values: &Values) -> Result<Value, TemplateError> {
        self.build(&mut |template| values.value(template))
    }

    pub(super) fn shown(&self, values: &Values) -> Value {
        self.build(&mut |template| Ok::<_, std::convert::Infallible>(Value::String(shown(template, values))))
            .unwrap_or_else(|never| match never {})
    }

    fn build<E>(&self, fill: &mut impl FnMut(&Template) -> Result<Value, E>) -> Result<Value, E> {
        Ok(match self {
            Self::Literal(value) => value.clone(),
            Self::Template(template) => fill(template)?,
            Self::List(items) => Value::Array(items.iter().map(|item| item.build(fill)).collect::<Result<_, _>>()?),
            Self::Object(fields) => {
                Value::Object(fields.iter().map(|(name, field)| Ok((name.clone(), field.build(fill)?))).collect::<Result<_, E>>()?)
            }
        })
    }
}

/// As it stands in the file, each value with its place.
enum Written {
    Scalar(Value),
    List(Vec<Spanned<Written>>),
    Object(IndexMap<String, Spanned<Written>>),
}

impl<'de> Deserialize<'de> for Written {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct WrittenVisitor;
        impl<'de> serde::de::Visitor<'de> for WrittenVisitor {
            type Value = Written;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("JSON")
            }
            fn visit_unit<E>(self) -> Result<Written, E> {
                Ok(Written::Scalar(Value::Null))
            }
            fn visit_bool<E>(self, value: bool) -> Result<Written, E> {
                Ok(Written::Scalar(value.into()))
            }
            fn visit_i64<E>(self, value: i64) -> Result<Written, E> {
                Ok(Written::Scalar(value.into()))
            }
            fn visit_u64<E>(self, value: u64) -> Result<Written, E> {
                Ok(Written::Scalar(value.into()))
            }
            fn visit_f64<E>(self, value: f64) -> Result<Written, E> {
                Ok(Written::Scalar(value.into()))
            }
            fn visit_str<E>(self, value: &str) -> Result<Written, E> {
                Ok(Written::Scalar(value.into()))
            }
            fn visit_seq<A: serde::de::SeqAccess<'de>>(self, mut list: A) -> Result<Written, A::Error> {
                let mut items = Vec::new();
                while let Some(item) = list.next_element()? {
                    items.push(item);
                }
                Ok(Written::List(items))
            }
            fn visit_map<A: serde::de::MapAccess<'de>>(self, mut map: A) -> Result<Written, A::Error> {
                let mut fields = IndexMap::new();
                while let Some((name, field)) = map.next_entry()? {
                    fields.insert(name, field);
                }
                Ok(Written::Object(fields))
            }
        }
        deserializer.deserialize_any(WrittenVisitor)
    }
}

impl<'de> Deserialize<'de> for JsonTemplate {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let written = Spanned::<Written>::deserialize(deserializer)?;
        Self::parse(written.value, written.span).map_err(serde::de::Error::custom)
    }
}

impl JsonSchema for JsonTemplate {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "JsonTemplate".into()
    }
    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({ "description": "any JSON; texts in it may be templates, and one that is a single placeholder keeps its type" })
    }
}
