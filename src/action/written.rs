//! Pieces that several actions are written with: codes, patterns, conditions over
//! JSON, and how templates look in a plan.

use std::borrow::Cow;
use std::fmt;
use std::ops::RangeInclusive;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{Deserialize, DeserializeOwned, Deserializer, Error, SeqAccess, Visitor};
use serde_json::Value;

use crate::template::{Expression, Setting, Template, Values, plain};

/// A setting as a plan shows it: its value, or the expression where that is not known yet.
pub(super) fn shown_setting<T: DeserializeOwned + Clone + fmt::Display>(setting: &Setting<T>, values: &Values) -> String {
    match (values.setting(setting), setting.template()) {
        (Ok(value), _) => value.to_string(),
        (Err(_), Some(template)) => template.text.value.clone(),
        (Err(error), None) => error.to_string(),
    }
}

/// Exit codes or status codes that are fine: `0`, `2xx`, `200-299`, or a list of these.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Codes(Vec<(String, RangeInclusive<i64>)>);

impl Codes {
    /// Exactly this one.
    pub fn one(code: i64) -> Self {
        Self(vec![(code.to_string(), code..=code)])
    }

    /// 200 to 299.
    pub fn success() -> Self {
        Self(vec![("2xx".into(), 200..=299)])
    }

    /// Whether a code is among them.
    pub fn contains(&self, code: i64) -> bool {
        self.0.iter().any(|(_, range)| range.contains(&code))
    }

    fn parse(text: &str) -> Option<(String, RangeInclusive<i64>)> {
        let text = text.trim();
        let number = |digits: &str| digits.trim().parse::<u16>().ok().map(i64::from);
        let range = match (text.split_once('-'), text.strip_suffix("xx")) {
            (Some((first, last)), _) => number(first)?..=number(last)?,
            (None, Some(hundred)) => number(hundred)?.checked_mul(100).map(|first| first..=first + 99)?,
            (None, None) => number(text)?..=number(text)?,
        };
        (!range.is_empty()).then(|| (text.to_owned(), range))
    }
}

impl fmt::Display for Codes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.iter().map(|(text, _)| text.as_str()).collect::<Vec<_>>().join(" or "))
    }
}

impl<'de> Deserialize<'de> for Codes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct CodesVisitor;
        impl<'de> Visitor<'de> for CodesVisitor {
            type Value = Codes;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a code such as 200, 2xx or 200-299, or a list of codes")
            }
            fn visit_str<E: Error>(self, text: &str) -> Result<Codes, E> {
                Codes::parse(text).map(|code| Codes(vec![code])).ok_or_else(|| E::invalid_value(serde::de::Unexpected::Str(text), &self))
            }
            fn visit_i64<E: Error>(self, number: i64) -> Result<Codes, E> {
                self.visit_str(&number.to_string())
            }
            fn visit_u64<E: Error>(self, number: u64) -> Result<Codes, E> {
                self.visit_str(&number.to_string())
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Codes, A::Error> {
                let mut codes = Vec::new();
                while let Some(Codes(more)) = list.next_element()? {
                    codes.extend(more);
                }
                if codes.is_empty() { Err(A::Error::invalid_length(0, &self)) } else { Ok(Codes(codes)) }
            }
        }
        deserializer.deserialize_any(CodesVisitor)
    }
}

impl JsonSchema for Codes {
    fn schema_name() -> Cow<'static, str> {
        "Codes".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        let one = serde_json::json!({ "type": ["integer", "string"], "minimum": 0, "maximum": 65535, "pattern": r"^\s*(\d+|\dxx|\d+\s*-\s*\d+)\s*$" });
        json_schema!({
            "description": "a code such as 200, 2xx or 200-299, or a list of codes",
            "anyOf": [one, { "type": "array", "items": one, "minItems": 1 }]
        })
    }
}

/// A regular expression, found anywhere in the text unless it is anchored.
#[derive(Debug, Clone)]
pub struct Pattern(regex::Regex);

impl Pattern {
    /// Whether it occurs in the text; `^` and `$` match at lines.
    pub fn occurs_in(&self, text: &str) -> bool {
        self.0.is_match(text)
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.as_str())
    }
}

impl<'de> Deserialize<'de> for Pattern {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let compiled = regex::RegexBuilder::new(&text).multi_line(true).build();
        compiled.map(Self).map_err(|error| {
            let reason = error.to_string();
            let reason = reason.lines().last().unwrap_or_default().trim_start_matches("error: ").to_owned();
            D::Error::custom(format!("`{text}` is not a regular expression: {reason}"))
        })
    }
}

impl JsonSchema for Pattern {
    fn schema_name() -> Cow<'static, str> {
        "Pattern".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "description": "a regular expression, found anywhere in the text; ^ and $ match at lines" })
    }
}

/// Why a condition over a JSON document does not hold, with what was found; `None` if it
/// does. The document's keys are names of the expression, the whole of it is `json`.
pub(super) fn unmet(condition: &Expression, json: &Value, values: &Values) -> Option<(String, Vec<(String, String)>)> {
    let mut scope = values.with_json("json", json);
    let names: Vec<&str> = condition.references.iter().filter_map(|reference| reference.path.first()).map(String::as_str).collect();
    if let Value::Object(fields) = json {
        for name in &names {
            if let Some(value) = fields.get(*name) {
                scope = scope.with_json(name, value);
            }
        }
    }
    let reason = match scope.test(condition) {
        Ok(true) => return None,
        Ok(false) => format!("`{}` does not hold", condition.text.value),
        Err(error) => error.to_string(),
    };
    let found = match json {
        Value::Object(fields) => fields
            .iter()
            .filter(|(name, _)| names.contains(&name.as_str()))
            .map(|(name, value)| (name.clone(), short(&plain(value))))
            .collect(),
        other => vec![("json".to_owned(), short(&plain(other)))],
    };
    Some((reason, found))
}

/// Enough of a text to recognise it.
pub(super) fn short(text: &str) -> String {
    const LONGEST: usize = 500;
    match text.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

/// A template as a plan shows it: its value where that is known and no secret is in it,
/// otherwise as written.
pub(super) fn shown(template: &Template, values: &Values) -> String {
    let secret = template.references().any(|reference| reference.path.first().is_some_and(|name| name == "secrets" || name == "env"));
    if secret {
        return template.text.value.clone();
    }
    values.text(template).unwrap_or_else(|_| template.text.value.clone())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::source::{Span, Spanned};

    #[test]
    fn codes_are_numbers_classes_ranges_and_lists() {
        let codes: Codes = serde_json::from_value(json!([200, "3xx", "400-403"])).unwrap();
        let fine: Vec<i64> = [199, 200, 201, 300, 399, 400, 403, 404].into_iter().filter(|code| codes.contains(*code)).collect();
        assert_eq!(fine, [200, 300, 399, 400, 403]);
        assert_eq!(codes.to_string(), "200 or 3xx or 400-403");
        for wrong in [json!("abc"), json!(-1), json!([]), json!("300-200"), json!("9999999xx")] {
            assert!(serde_json::from_value::<Codes>(wrong.clone()).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_condition_over_json_says_what_was_found() {
        let condition = |text: &str| Expression::parse(Spanned::new(text.into(), Span::default())).unwrap();
        let body = json!({"database": true, "queue": 12, "note": null});
        assert_eq!(unmet(&condition("database and queue == 12"), &body, &Values::new()), None);
        assert_eq!(unmet(&condition("json.queue == 12"), &body, &Values::new()), None);
        assert_eq!(
            unmet(&condition("database == (queue < 10)"), &body, &Values::new()),
            Some((
                "`database == (queue < 10)` does not hold".into(),
                vec![("database".into(), "true".into()), ("queue".into(), "12".into())]
            ))
        );
        let (missing, _) = unmet(&condition("cache == true"), &body, &Values::new()).unwrap();
        assert!(missing.contains("cache"), "{missing}");
        assert!(unmet(&condition("note == 1"), &body, &Values::new()).is_some(), "null never passes");
    }
}
