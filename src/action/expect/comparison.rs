//! One observed value against what the author wrote: a number, a text, or operators.

use std::borrow::Cow;
use std::cmp::Ordering;
use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{Deserialize, Deserializer, Error, MapAccess, Visitor};
use serde_json::Value;

use super::number::Number;
use crate::source::{Span, Spanned};
use crate::template::{Setting, Template, TemplateError, Values};

/// `3`, `"active"`, `"{{ steps.a.value }}"` or `{ge: 1, lt: 80}`.
#[derive(Debug)]
pub struct Comparison {
    /// Where it is written.
    pub span: Span,
    terms: Vec<(Operator, Vec<Setting<Value>>)>,
}

/// Everything must hold that is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Operator {
    Eq,
    Ne,
    Lt,
    Le,
    Gt,
    Ge,
    Between,
    In,
}

const OPERATORS: &[&str] = &["eq", "ne", "lt", "le", "gt", "ge", "between", "in"];

impl Operator {
    fn named(name: &str) -> Option<Self> {
        use Operator::{Between, Eq, Ge, Gt, In, Le, Lt, Ne};
        let operators = [Eq, Ne, Lt, Le, Gt, Ge, Between, In];
        OPERATORS.iter().position(|known| *known == name).map(|index| operators[index])
    }

    fn symbol(self) -> &'static str {
        match self {
            Self::Eq => "=",
            Self::Ne => "≠",
            Self::Lt => "<",
            Self::Le => "≤",
            Self::Gt => ">",
            Self::Ge => "≥",
            Self::Between => "between",
            Self::In => "in",
        }
    }
}

/// A comparison whose values are known.
#[derive(Debug, Clone)]
pub struct Expected(Vec<(Operator, Vec<Value>)>);

impl Comparison {
    /// The templates in it.
    pub fn settings(&self) -> impl Iterator<Item = &Setting<Value>> {
        self.terms.iter().flat_map(|(_, operands)| operands)
    }

    /// Whether it can only be about a whole number, as far as that is written out.
    pub fn counts(&self) -> bool {
        self.settings().all(|operand| match operand {
            Setting::Literal(value) => value.is_u64(),
            Setting::Template(_) => true,
        })
    }

    /// With its templates evaluated.
    pub fn resolve(&self, values: &Values) -> Result<Expected, TemplateError> {
        let resolve = |(operator, operands): &(Operator, Vec<Setting<Value>>)| {
            let known = operands.iter().map(|operand| values.setting(operand)).collect::<Result<Vec<Value>, _>>()?;
            // `in: "{{ params.allowed }}"` is a list in one value.
            let known = match (operator, known.as_slice()) {
                (Operator::In, [Value::Array(items)]) => items.clone(),
                _ => known,
            };
            Ok((*operator, known))
        };
        self.terms.iter().map(resolve).collect::<Result<_, _>>().map(Expected)
    }

    /// As it stands in a plan; values that are not known yet stay expressions.
    pub(in crate::action) fn describe(&self, values: &Values) -> String {
        let shown = |operand: &Setting<Value>| match (values.setting(operand), operand) {
            (Ok(value), _) => show(&value),
            (Err(_), Setting::Template(template)) => template.text.value.clone(),
            (Err(_), Setting::Literal(value)) => show(value),
        };
        let terms = self.terms.iter().map(|(operator, operands)| term(*operator, &operands.iter().map(shown).collect::<Vec<_>>()));
        terms.collect::<Vec<_>>().join(" and ")
    }
}

impl fmt::Display for Expected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let terms = self.0.iter().map(|(operator, operands)| term(*operator, &operands.iter().map(show).collect::<Vec<_>>()));
        f.write_str(&terms.collect::<Vec<_>>().join(" and "))
    }
}

fn term(operator: Operator, operands: &[String]) -> String {
    match operator {
        Operator::Between => format!("between {}", operands.join(" and ")),
        Operator::In => format!("in ({})", operands.join(", ")),
        _ => format!("{} {}", operator.symbol(), operands.join(", ")),
    }
}

/// A value as a person writes it in SQL.
pub(super) fn show(value: &Value) -> String {
    match value {
        Value::Null => "NULL".into(),
        Value::String(text) => format!("'{text}'"),
        other => other.to_string(),
    }
}

impl Expected {
    /// Whether a value is as expected; an error says why that cannot be told, which is
    /// never a pass.
    pub fn accepts(&self, actual: &Value, type_name: &str) -> Result<bool, String> {
        let compare = |expected: &Value| compare(actual, expected, type_name);
        for (operator, operands) in &self.0 {
            let holds = match (operator, operands.as_slice()) {
                (Operator::Between, [low, high]) => ordered(compare(low)?)?.is_ge() && ordered(compare(high)?)?.is_le(),
                (Operator::In, items) => {
                    let found = items.iter().map(compare).collect::<Result<Vec<_>, _>>()?;
                    found.iter().any(|relation| matches!(relation, Relation::Equal | Relation::Ordered(Ordering::Equal)))
                }
                (operator, [expected]) => {
                    let relation = compare(expected)?;
                    let equal = matches!(relation, Relation::Equal | Relation::Ordered(Ordering::Equal));
                    match operator {
                        Operator::Eq => equal,
                        Operator::Ne => !equal,
                        Operator::Lt => ordered(relation)?.is_lt(),
                        Operator::Le => ordered(relation)?.is_le(),
                        Operator::Gt => ordered(relation)?.is_gt(),
                        _ => ordered(relation)?.is_ge(),
                    }
                }
                _ => return Err("it is not written with as many values as it takes".into()),
            };
            if !holds {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

enum Relation {
    Equal,
    Different,
    Ordered(Ordering),
}

fn ordered(relation: Relation) -> Result<Ordering, String> {
    match relation {
        Relation::Ordered(ordering) => Ok(ordering),
        _ => Err("only numbers, dates and times have an order here; compare in SQL and expect `true`".into()),
    }
}

fn compare(actual: &Value, expected: &Value, type_name: &str) -> Result<Relation, String> {
    if expected.is_null() {
        return Err("what it is compared with is NULL".into());
    }
    // Two texts are numbers only if the column says so: '007' is not '7'.
    if (is_number(type_name) || actual.is_number() || expected.is_number())
        && let (Some(actual), Some(expected)) = (Number::from_json(actual), Number::from_json(expected))
    {
        return Ok(Relation::Ordered(actual.cmp(&expected)));
    }
    match (actual, expected) {
        (Value::String(actual), Value::String(expected)) => Ok(match moment(actual, type_name).zip(moment(expected, type_name)) {
            Some((actual, expected)) => {
                Relation::Ordered(actual.partial_cmp(&expected).ok_or("one of them has a time zone, the other has none")?)
            }
            None if actual == expected => Relation::Equal,
            None => Relation::Different,
        }),
        (Value::Bool(_), Value::Bool(_)) | (Value::Array(_), Value::Array(_)) | (Value::Object(_), Value::Object(_)) => {
            Ok(if actual == expected { Relation::Equal } else { Relation::Different })
        }
        _ => Err(format!("{} cannot be compared with {}", kind(actual), kind(expected))),
    }
}

fn is_number(type_name: &str) -> bool {
    matches!(
        type_name.to_ascii_lowercase().as_str(),
        "int2" | "int4" | "int8" | "numeric" | "float4" | "float8" | "integer" | "real" | "money"
    )
}

#[derive(PartialEq)]
enum Moment {
    Instant(jiff::Timestamp),
    Local(jiff::civil::DateTime),
}

impl PartialOrd for Moment {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        match (self, other) {
            (Self::Instant(a), Self::Instant(b)) => Some(a.cmp(b)),
            (Self::Local(a), Self::Local(b)) => Some(a.cmp(b)),
            _ => None,
        }
    }
}

fn moment(text: &str, type_name: &str) -> Option<Moment> {
    if !type_name.starts_with("date") && !type_name.starts_with("timestamp") {
        return None;
    }
    text.parse().map(Moment::Instant).or_else(|_| text.parse().map(Moment::Local)).ok()
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "NULL",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

impl<'de> Deserialize<'de> for Comparison {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let written = Spanned::<Written>::deserialize(deserializer)?;
        let span = written.span;
        let terms = match written.value {
            Written::Value(value) => vec![(Operator::Eq, vec![setting(value, span).map_err(D::Error::custom)?])],
            Written::Terms(terms) => terms,
        };
        Ok(Self { span, terms })
    }
}

enum Written {
    Value(Value),
    Terms(Vec<(Operator, Vec<Setting<Value>>)>),
}

impl<'de> Deserialize<'de> for Written {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct WrittenVisitor;

        impl<'de> Visitor<'de> for WrittenVisitor {
            type Value = Written;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "a number, a text, or operators such as `{{ge: 1, lt: 80}}` ({})", OPERATORS.join(", "))
            }
            fn visit_bool<E: Error>(self, value: bool) -> Result<Written, E> {
                Ok(Written::Value(value.into()))
            }
            fn visit_i64<E: Error>(self, value: i64) -> Result<Written, E> {
                Ok(Written::Value(value.into()))
            }
            fn visit_u64<E: Error>(self, value: u64) -> Result<Written, E> {
                Ok(Written::Value(value.into()))
            }
            fn visit_f64<E: Error>(self, value: f64) -> Result<Written, E> {
                Ok(Written::Value(value.into()))
            }
            fn visit_str<E: Error>(self, value: &str) -> Result<Written, E> {
                Ok(Written::Value(value.into()))
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Written, A::Error> {
                let mut terms = Vec::new();
                while let Some(name) = map.next_key::<String>()? {
                    let operator = Operator::named(&name).ok_or_else(|| A::Error::unknown_field(&name, OPERATORS))?;
                    terms.push((operator, operands(operator, map.next_value()?).map_err(A::Error::custom)?));
                }
                if terms.is_empty() {
                    return Err(A::Error::custom(format!("an operator is missing: one of {}", OPERATORS.join(", "))));
                }
                Ok(Written::Terms(terms))
            }
        }

        deserializer.deserialize_any(WrittenVisitor)
    }
}

fn operands(operator: Operator, written: Spanned<Value>) -> Result<Vec<Setting<Value>>, String> {
    let one_by_one = |items: Vec<Value>| items.into_iter().map(|item| setting(item, written.span)).collect::<Result<Vec<_>, _>>();
    match (operator, written.value) {
        (Operator::Between, Value::Array(items)) if items.len() == 2 => one_by_one(items),
        (Operator::Between, _) => Err("`between` takes two values, both included: `between: [1, 5]`".into()),
        (Operator::In, Value::Array(items)) if !items.is_empty() => one_by_one(items),
        (_, value) => match (operator, setting(value, written.span)?) {
            (Operator::In, Setting::Literal(_)) => Err("`in` takes a list: `in: [active, completed]`".into()),
            (_, operand) => Ok(vec![operand]),
        },
    }
}

fn setting(value: Value, span: Span) -> Result<Setting<Value>, String> {
    match value {
        Value::Null => Err("nothing equals NULL; write `any_row: \"column is none\"` if NULL is expected".into()),
        Value::String(text) if text.contains("{{") => Template::parse(Spanned::new(text, span)).map(Setting::Template),
        other => Ok(Setting::Literal(other)),
    }
}

impl JsonSchema for Comparison {
    fn schema_name() -> Cow<'static, str> {
        "Comparison".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        let value = serde_json::json!({ "type": ["number", "string", "boolean"] });
        let list = serde_json::json!({ "type": "array", "items": value, "minItems": 1 });
        let described = |text: &str| serde_json::json!({ "type": ["number", "string", "boolean"], "description": text });
        json_schema!({
            "description": "a value, or operators that must all hold",
            "examples": [0, "active", { "ge": 1, "lt": 80 }, { "between": [1, 5] }],
            "anyOf": [
                value,
                {
                    "type": "object",
                    "properties": {
                        "eq": described("equal to"),
                        "ne": described("not equal to"),
                        "lt": described("less than"),
                        "le": described("less than or equal to"),
                        "gt": described("greater than"),
                        "ge": described("greater than or equal to"),
                        "between": { "type": "array", "items": value, "minItems": 2, "maxItems": 2, "description": "from the first to the second, both included" },
                        "in": { "anyOf": [list, { "type": "string", "pattern": r"\{\{" }], "description": "one of these" }
                    },
                    "additionalProperties": false,
                    "minProperties": 1
                }
            ]
        })
    }
}
