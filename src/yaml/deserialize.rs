//! A tree as any serde type; errors carry the place of the node or key.

use serde::de::value::{MapAccessDeserializer, StrDeserializer};
use serde::de::{
    self, DeserializeOwned, DeserializeSeed, Deserializer, EnumAccess, Expected, MapAccess, SeqAccess, Unexpected, VariantAccess, Visitor,
};
use serde::forward_to_deserialize_any;

use super::either::EITHER;
use super::{Node, Value};
use crate::diagnostic::{Diagnostic, did_you_mean};
use crate::source::{Span, Spanned};

/// The name by which [`Spanned`] asks for its place. It is written as a newtype
/// struct, which every other format passes through.
const SPANNED: &str = "$runbook::Spanned";

/// Reads a tree as a type.
pub fn from_node<T: DeserializeOwned>(node: &Node) -> Result<T, Box<Diagnostic>> {
    T::deserialize(NodeDeserializer(node)).map_err(|error| Box::new(error.into_diagnostic(node.span)))
}

/// Reads some entries of a mapping at `span` as a type.
pub fn from_entries<'a, T: de::Deserialize<'a>>(
    span: Span,
    entries: impl IntoIterator<Item = &'a (Spanned<String>, Node)>,
) -> Result<T, Box<Diagnostic>> {
    let entries = Entries { entries: entries.into_iter(), value: None };
    T::deserialize(MapAccessDeserializer::new(entries)).map_err(|error| Box::new(error.into_diagnostic(span)))
}

impl<'de, T: de::Deserialize<'de>> de::Deserialize<'de> for Spanned<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct SpannedVisitor<T>(std::marker::PhantomData<T>);

        impl<'de, T: de::Deserialize<'de>> Visitor<'de> for SpannedVisitor<T> {
            type Value = Spanned<T>;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a value")
            }

            /// Any other format: there is no place.
            fn visit_newtype_struct<D: Deserializer<'de>>(self, deserializer: D) -> Result<Spanned<T>, D::Error> {
                T::deserialize(deserializer).map(|value| Spanned::new(value, Span::default()))
            }

            /// A tree: source, start, end, value.
            fn visit_seq<A: SeqAccess<'de>>(self, mut parts: A) -> Result<Spanned<T>, A::Error> {
                let missing = || de::Error::custom("a place is incomplete");
                let source = parts.next_element()?.ok_or_else(missing)?;
                let start = parts.next_element()?.ok_or_else(missing)?;
                let end = parts.next_element()?.ok_or_else(missing)?;
                let value = parts.next_element()?.ok_or_else(missing)?;
                Ok(Spanned::new(value, Span { source: crate::source::SourceId(source), start, end }))
            }
        }

        deserializer.deserialize_newtype_struct(SPANNED, SpannedVisitor(std::marker::PhantomData))
    }
}

/// What went wrong; the innermost place wins.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
struct Error {
    code: &'static str,
    message: String,
    span: Option<Span>,
    help: Vec<String>,
}

impl Error {
    fn new(code: &'static str, message: String) -> Self {
        Self { code, message, span: None, help: Vec::new() }
    }

    fn or_at(mut self, span: Span) -> Self {
        self.span.get_or_insert(span);
        self
    }

    fn into_diagnostic(self, span: Span) -> Diagnostic {
        let diagnostic = Diagnostic::error(self.code, self.span.unwrap_or(span), self.message);
        self.help.into_iter().fold(diagnostic, Diagnostic::help)
    }

    fn unknown(code: &'static str, what: &str, name: &str, allowed: &'static [&'static str]) -> Self {
        let mut error = Self::new(code, format!("unknown {what} `{name}`"));
        if let Some(meant) = did_you_mean(name, allowed.iter().copied()) {
            error.help.push(format!("did you mean `{meant}`?"));
        }
        if !allowed.is_empty() {
            error.help.push(format!("allowed: {}", allowed.join(", ")));
        }
        error
    }
}

impl de::Error for Error {
    fn custom<T: std::fmt::Display>(message: T) -> Self {
        Self::new("invalid-value", message.to_string())
    }

    fn invalid_type(found: Unexpected<'_>, expected: &dyn Expected) -> Self {
        Self::new("wrong-type", format!("expected {expected}, found {}", describe(found)))
    }

    fn invalid_value(found: Unexpected<'_>, expected: &dyn Expected) -> Self {
        Self::new("invalid-value", format!("expected {expected}, found {}", describe(found)))
    }

    fn unknown_variant(name: &str, allowed: &'static [&'static str]) -> Self {
        Self::unknown("invalid-value", "value", name, allowed)
    }

    fn unknown_field(name: &str, allowed: &'static [&'static str]) -> Self {
        Self::unknown("unknown-key", "key", name, allowed)
    }

    fn missing_field(name: &'static str) -> Self {
        Self::new("missing-key", format!("the key `{name}` is missing"))
    }

    fn duplicate_field(name: &'static str) -> Self {
        Self::new("duplicate-key", format!("the key `{name}` stands here twice"))
    }
}

fn describe(found: Unexpected<'_>) -> String {
    match found {
        Unexpected::Bool(value) => format!("`{value}`"),
        Unexpected::Unsigned(value) => format!("the number {value}"),
        Unexpected::Signed(value) => format!("the number {value}"),
        Unexpected::Float(value) => format!("the number {value}"),
        Unexpected::Str(text) => format!("the text `{}`", text.chars().take(60).collect::<String>()),
        Unexpected::Unit | Unexpected::Option => "nothing".into(),
        Unexpected::Seq => "a list".into(),
        Unexpected::Map | Unexpected::StructVariant => "a mapping".into(),
        other => other.to_string(),
    }
}

fn unexpected(node: &Node) -> Unexpected<'_> {
    match &node.value {
        Value::Null => Unexpected::Unit,
        Value::Bool(value) => Unexpected::Bool(*value),
        Value::Int(value) => Unexpected::Signed(*value),
        Value::Float(value) => Unexpected::Float(*value),
        Value::String(text) => Unexpected::Str(text),
        Value::Sequence(_) => Unexpected::Seq,
        Value::Mapping(_) => Unexpected::Map,
    }
}

struct NodeDeserializer<'de>(&'de Node);

impl<'de> NodeDeserializer<'de> {
    fn seed<T: DeserializeSeed<'de>>(node: &'de Node, seed: T) -> Result<T::Value, Error> {
        seed.deserialize(NodeDeserializer(node)).map_err(|error| error.or_at(node.span))
    }

    fn visit<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match &self.0.value {
            Value::Null => visitor.visit_unit(),
            Value::Bool(value) => visitor.visit_bool(*value),
            Value::Int(value) => visitor.visit_i64(*value),
            Value::Float(value) => visitor.visit_f64(*value),
            Value::String(text) => visitor.visit_borrowed_str(text),
            Value::Sequence(items) => visitor.visit_seq(Items { items: items.iter() }),
            Value::Mapping(entries) => visitor.visit_map(Entries { entries: entries.iter(), value: None }),
        }
    }
}

impl<'de> Deserializer<'de> for NodeDeserializer<'de> {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        let span = self.0.span;
        self.visit(visitor).map_err(|error| error.or_at(span))
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        let span = self.0.span;
        match self.0.value {
            Value::Null => visitor.visit_none(),
            _ => visitor.visit_some(self),
        }
        .map_err(|error: Error| error.or_at(span))
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, name: &'static str, visitor: V) -> Result<V::Value, Error> {
        let span = self.0.span;
        match name {
            SPANNED => visitor.visit_seq(Place { span, value: Placed::Node(self.0), part: 0 }),
            EITHER => match &self.0.value {
                Value::Mapping(_) => self.visit(visitor),
                _ => visitor.visit_seq(Items { items: std::slice::from_ref(self.0).iter() }),
            },
            _ => visitor.visit_newtype_struct(self),
        }
        .map_err(|error: Error| error.or_at(span))
    }

    fn deserialize_enum<V: Visitor<'de>>(self, _: &'static str, variants: &'static [&'static str], visitor: V) -> Result<V::Value, Error> {
        let node = self.0;
        match &node.value {
            Value::String(name) => visitor.visit_enum(Variant { name, name_span: node.span, content: None }),
            Value::Mapping(entries) => match entries.as_slice() {
                [(name, content)] => visitor.visit_enum(Variant { name, name_span: name.span, content: Some(content) }),
                _ => Err(de::Error::custom(format!("exactly one of {} is expected", variants.join(", ")))),
            },
            _ => Err(de::Error::invalid_type(unexpected(node), &format!("one of {}", variants.join(", ")).as_str())),
        }
        .map_err(|error: Error| error.or_at(node.span))
    }

    /// serde would also fill a struct from a list, field by field.
    fn deserialize_struct<V: Visitor<'de>>(self, _: &'static str, fields: &'static [&'static str], visitor: V) -> Result<V::Value, Error> {
        match self.0.value {
            Value::Mapping(_) => self.deserialize_any(visitor),
            _ => Err(<Error as de::Error>::invalid_type(unexpected(self.0), &format!("a mapping with {}", fields.join(", ")).as_str())
                .or_at(self.0.span)),
        }
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_unit()
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf
        unit unit_struct seq tuple tuple_struct map identifier
    }
}

struct Items<'de> {
    items: std::slice::Iter<'de, Node>,
}

impl<'de> SeqAccess<'de> for Items<'de> {
    type Error = Error;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Error> {
        self.items.next().map(|item| NodeDeserializer::seed(item, seed)).transpose()
    }

    fn size_hint(&self) -> Option<usize> {
        Some(self.items.len())
    }
}

struct Entries<'de, I> {
    entries: I,
    value: Option<&'de Node>,
}

impl<'de, I: Iterator<Item = &'de (Spanned<String>, Node)>> MapAccess<'de> for Entries<'de, I> {
    type Error = Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Error> {
        let Some((key, value)) = self.entries.next() else { return Ok(None) };
        self.value = Some(value);
        seed.deserialize(KeyDeserializer(key)).map(Some).map_err(|error| error.or_at(key.span))
    }

    fn next_value_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<T::Value, Error> {
        let value = self.value.take().ok_or_else(|| <Error as de::Error>::custom("a value was asked for before its key"))?;
        NodeDeserializer::seed(value, seed)
    }
}

struct KeyDeserializer<'de>(&'de Spanned<String>);

impl<'de> Deserializer<'de> for KeyDeserializer<'de> {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_borrowed_str(self.0)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, name: &'static str, visitor: V) -> Result<V::Value, Error> {
        match name {
            SPANNED => visitor.visit_seq(Place { span: self.0.span, value: Placed::Key(self.0), part: 0 }),
            _ => visitor.visit_newtype_struct(self),
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        visitor.visit_some(self)
    }

    fn deserialize_enum<V: Visitor<'de>>(self, _: &'static str, _: &'static [&'static str], visitor: V) -> Result<V::Value, Error> {
        visitor.visit_enum(Variant { name: self.0, name_span: self.0.span, content: None })
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf
        unit unit_struct seq tuple tuple_struct map struct identifier ignored_any
    }
}

/// The four parts a [`Spanned`] is made of.
struct Place<'de> {
    span: Span,
    value: Placed<'de>,
    part: u8,
}

enum Placed<'de> {
    Node(&'de Node),
    Key(&'de Spanned<String>),
}

impl<'de> SeqAccess<'de> for Place<'de> {
    type Error = Error;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, Error> {
        use serde::de::IntoDeserializer;
        self.part += 1;
        match self.part {
            1 => seed.deserialize(self.span.source.0.into_deserializer()),
            2 => seed.deserialize(self.span.start.into_deserializer()),
            3 => seed.deserialize(self.span.end.into_deserializer()),
            4 => match self.value {
                Placed::Node(node) => NodeDeserializer::seed(node, seed),
                Placed::Key(key) => seed.deserialize(KeyDeserializer(key)).map_err(|error| error.or_at(key.span)),
            },
            _ => return Ok(None),
        }
        .map(Some)
    }
}

/// `name` or `name: content`.
struct Variant<'de> {
    name: &'de str,
    name_span: Span,
    content: Option<&'de Node>,
}

impl<'de> Variant<'de> {
    fn content(&self) -> Result<&'de Node, Error> {
        self.content.ok_or_else(|| {
            let message = format!("`{}` needs a value: `{}: …`", self.name, self.name);
            Error::new("wrong-type", message).or_at(self.name_span)
        })
    }
}

impl<'de> EnumAccess<'de> for Variant<'de> {
    type Error = Error;
    type Variant = Self;

    fn variant_seed<T: DeserializeSeed<'de>>(self, seed: T) -> Result<(T::Value, Self), Error> {
        let name: StrDeserializer<'de, Error> = serde::de::IntoDeserializer::into_deserializer(self.name);
        let variant = seed.deserialize(name).map_err(|error| error.or_at(self.name_span))?;
        Ok((variant, self))
    }
}

impl<'de> VariantAccess<'de> for Variant<'de> {
    type Error = Error;

    fn unit_variant(self) -> Result<(), Error> {
        match self.content {
            None => Ok(()),
            Some(content) if content.value == Value::Null => Ok(()),
            Some(content) => Err(Error::new("wrong-type", format!("`{}` takes no value", self.name)).or_at(content.span)),
        }
    }

    fn newtype_variant_seed<T: DeserializeSeed<'de>>(self, seed: T) -> Result<T::Value, Error> {
        NodeDeserializer::seed(self.content()?, seed)
    }

    fn tuple_variant<V: Visitor<'de>>(self, _: usize, visitor: V) -> Result<V::Value, Error> {
        NodeDeserializer(self.content()?).deserialize_any(visitor)
    }

    fn struct_variant<V: Visitor<'de>>(self, _: &'static [&'static str], visitor: V) -> Result<V::Value, Error> {
        NodeDeserializer(self.content()?).deserialize_any(visitor)
    }
}

#[cfg(test)]
mod tests {
    use indexmap::IndexMap;
    use serde::Deserialize;
    use serde_json::json;

    use super::super::{Either, parse};
    use super::*;
    use crate::source::{SourceFile, Sources};

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    #[allow(dead_code, reason = "read through Debug")]
    struct Sample {
        name: Spanned<String>,
        #[serde(default)]
        size: Option<Spanned<u32>>,
        #[serde(default)]
        kinds: Vec<Kind>,
        #[serde(default)]
        more: IndexMap<Spanned<String>, Spanned<serde_json::Value>>,
        #[serde(default)]
        inner: Option<Box<Sample>>,
        #[serde(default)]
        form: Option<Either<Spanned<String>, Fields>>,
    }

    #[derive(Debug, PartialEq, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Fields {
        text: Spanned<String>,
    }

    #[derive(Debug, PartialEq, Deserialize)]
    #[serde(rename_all = "lowercase")]
    enum Kind {
        Plain,
        With(Spanned<String>),
        Fields { n: u8 },
    }

    fn read(yaml: &str) -> Result<Sample, String> {
        let mut sources = Sources::default();
        let source = sources.add(SourceFile::new("x.yaml", yaml));
        let node = parse(&sources, source).expect("parses");
        from_node(&node).map_err(|diagnostic| {
            let span = diagnostic.span;
            let mut text = format!("[{}] {} at `{}`", diagnostic.code, diagnostic.message, &yaml[span.start as usize..span.end as usize]);
            for help in diagnostic.help {
                text.push_str(&format!("; {help}"));
            }
            text
        })
    }

    #[test]
    fn places_reach_every_depth() {
        let yaml =
            "name: a\ninner:\n  name: b\n  size: 3\n  kinds: [plain, {with: x}, {fields: {n: 1}}]\n  more: {k: [1, null], l: true}\n";
        let sample = read(yaml).expect("reads");
        let inner = sample.inner.expect("inner");
        let written = |span: Span| &yaml[span.start as usize..span.end as usize];
        assert_eq!(written(inner.name.span), "b");
        assert_eq!(inner.size.as_ref().map(|size| (size.value, written(size.span))), Some((3, "3")));
        assert_eq!(inner.kinds, [Kind::Plain, Kind::With(Spanned::new("x".into(), Span::default())), Kind::Fields { n: 1 }]);
        assert_eq!(inner.more["k"].value, json!([1, null]));
        let places: Vec<_> = inner.more.iter().map(|(key, value)| (written(key.span), written(value.span))).collect();
        assert_eq!(places, [("k", "[1, null]"), ("l", "true")]);
    }

    #[test]
    fn errors_point_to_the_node_or_key() {
        let error = |yaml: &str| read(yaml).expect_err("refused");
        insta::assert_snapshot!(error("name: 5"), @"[wrong-type] expected a string, found the number 5 at `5`");
        insta::assert_snapshot!(error("name: a\nsiez: 5"), @"[unknown-key] unknown key `siez` at `siez`; did you mean `size`?; allowed: name, size, kinds, more, inner, form");
        insta::assert_snapshot!(error("name: a\ninner: {size: 1}"), @"[missing-key] the key `name` is missing at `{size: 1}`");
        insta::assert_snapshot!(error("name: a\nsize: -1"), @"[invalid-value] expected u32, found the number -1 at `-1`");
        insta::assert_snapshot!(error("name: a\nkinds: [plian]"), @"[invalid-value] unknown value `plian` at `plian`; did you mean `plain`?; allowed: plain, with, fields");
        insta::assert_snapshot!(error("name: a\nkinds: [with]"), @"[wrong-type] `with` needs a value: `with: …` at `with`");
        insta::assert_snapshot!(error("name: a\nkinds: [{fields: {n: x}}]"), @"[wrong-type] expected u8, found the text `x` at `x`");
        insta::assert_snapshot!(error("name: a\nkinds: [{plain: 1}]"), @"[wrong-type] `plain` takes no value at `1`");
        insta::assert_snapshot!(error("name: a\nkinds: [{plain: , with: 1}]"), @"[invalid-value] exactly one of plain, with, fields is expected at `{plain: , with: 1}`");
        insta::assert_snapshot!(error("[a]"), @"[wrong-type] expected a mapping with name, size, kinds, more, inner, form, found a list at `[a]`");
    }

    #[test]
    fn a_short_form_keeps_its_place_and_a_long_one_its_errors() {
        let place = |yaml: &str| match read(yaml).map(|sample| sample.form) {
            Ok(Some(Either::Scalar(text) | Either::Fields(Fields { text }))) => {
                yaml[text.span.start as usize..text.span.end as usize].to_owned()
            }
            Ok(None) => "nothing".into(),
            Err(error) => error,
        };
        assert_eq!(place("name: a\nform: short"), "short");
        assert_eq!(place("name: a\nform: {text: long}"), "long");
        insta::assert_snapshot!(place("name: a\nform: {txet: long}"), @"[unknown-key] unknown key `txet` at `txet`; did you mean `text`?; allowed: text");
        insta::assert_snapshot!(place("name: a\nform: 5"), @"[wrong-type] expected a string, found the number 5 at `5`");
        assert_eq!(serde_json::from_value::<Either<String, Fields>>(json!("x")).ok(), Some(Either::Scalar("x".into())));
        assert!(matches!(serde_json::from_value::<Either<String, Fields>>(json!({"text": "x"})), Ok(Either::Fields(_))));
    }

    #[test]
    fn other_formats_give_no_place() {
        let sample: Sample = serde_json::from_value(json!({"name": "a", "size": 2, "more": {"k": "v"}})).expect("reads");
        assert_eq!(sample.name.value, "a");
        assert_eq!(sample.name.span, Span::default());
        assert_eq!(sample.more["k"].value, json!("v"));
    }
}
