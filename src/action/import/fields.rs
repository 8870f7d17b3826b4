//! The fields of `import` that are more than a word: columns, the gate, duplicates.
//!
//! What is wrong with them that types can't say is found here; how a record is judged by
//! them is `check`'s.

use indexmap::IndexMap;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::Error;
use serde::{Deserialize, Deserializer};
use serde_json::Value;

use super::value;
use crate::diagnostic::Diagnostic;
use crate::source::Spanned;
use crate::template::Template;
use crate::units::Percent;

/// The columns that are loaded, each with what its values must be.
pub(super) type Columns = IndexMap<Spanned<String>, Column>;

/// What a column's values must be. A record with a value that is not is rejected.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Column {
    /// The type of the values as the file writes them.
    #[serde(rename = "type")]
    pub(super) kind: Spanned<ColumnType>,
    /// Whether every record has a value. A column that the table declares NOT NULL needs one anyway.
    #[serde(default)]
    pub(super) required: bool,
    /// A regular expression that the value matches as a whole.
    #[serde(default)]
    pub(super) pattern: Option<WholePattern>,
    /// The smallest value: a number, or an ISO date or timestamp in quotes.
    #[serde(default)]
    #[schemars(schema_with = "bound_schema")]
    pub(super) min: Option<Spanned<Value>>,
    /// The largest value, likewise.
    #[serde(default)]
    #[schemars(schema_with = "bound_schema")]
    pub(super) max: Option<Spanned<Value>>,
    /// The only values there are.
    #[serde(default, rename = "enum")]
    pub(super) values: Vec<String>,
    /// The name in the file's header, or the key in NDJSON. Default: the column's name.
    #[serde(default)]
    pub(super) from: Option<Spanned<String>>,
    /// `table.column` that must have the value. Looked up for all rows at once.
    #[serde(default)]
    pub(super) references: Option<Spanned<String>>,
    /// The share of the accepted records that must have a value, such as `90%`. Below it nothing is loaded.
    #[serde(default)]
    pub(super) completeness: Option<Percent>,
}

/// How the values of a column are written in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ColumnType {
    /// Anything, kept as it is.
    Text,
    /// A whole number of 32 bits.
    Integer,
    /// A whole number of 64 bits.
    Bigint,
    /// A number with all its digits, such as `12.50` or `1e3`.
    Numeric,
    /// `true`, `false`, `yes`, `no`, `t`, `f`, `y`, `n`, `on`, `off`, `1`, `0`.
    Boolean,
    /// `2026-05-01`.
    Date,
    /// `2026-05-01 13:45:00`, also with `T`; seconds and their fraction may be missing.
    Timestamp,
    /// A timestamp with its offset: `2026-05-01T13:45:00Z`, `… +02:00`.
    Timestamptz,
    /// 32 hexadecimal digits, with or without hyphens.
    Uuid,
    /// A JSON document.
    Json,
}

impl ColumnType {
    /// As it is written.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Integer => "integer",
            Self::Bigint => "bigint",
            Self::Numeric => "numeric",
            Self::Boolean => "boolean",
            Self::Date => "date",
            Self::Timestamp => "timestamp",
            Self::Timestamptz => "timestamptz",
            Self::Uuid => "uuid",
            Self::Json => "json",
        }
    }
}

/// How many records may be rejected, and where they go.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Rejects {
    /// Above this share of rejected records nothing reaches the table and the step fails. Default: 10%.
    #[serde(default = "ten_percent")]
    pub(super) max_ratio: Percent,
    /// Above this share the step has a finding, which somebody must confirm where the
    /// playbook declares an `environment`. Default: 5%.
    #[serde(default = "five_percent")]
    pub(super) warn_ratio: Percent,
    /// A CSV file that gets line, columns, reasons and text of every rejected record. It is
    /// readable by its owner alone, and replaces the one of an earlier run.
    #[serde(default)]
    pub(super) file: Option<Template>,
}

fn ten_percent() -> Percent {
    Percent(0.10)
}

fn five_percent() -> Percent {
    Percent(0.05)
}

impl Default for Rejects {
    fn default() -> Self {
        Self { max_ratio: ten_percent(), warn_ratio: five_percent(), file: None }
    }
}

/// The format of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// Fields between delimiters, as in RFC 4180.
    Csv,
    /// A JSON object on each line.
    Ndjson,
}

/// What happens to a record whose row is there already.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum OnDuplicate {
    /// Nothing is loaded and the step fails.
    #[default]
    Fail,
    /// The row stays as it is; of two records in the file the first counts.
    Skip,
    /// The row gets the record's values; of two records in the file the last counts.
    Update,
}

/// One ASCII character; the empty text stands for none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Character(pub(super) Option<u8>);

impl<'de> Deserialize<'de> for Character {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        match text.as_bytes() {
            [] => Ok(Self(None)),
            b"\\t" => Ok(Self(Some(b'\t'))),
            [one] if one.is_ascii() && !matches!(one, b'\n' | b'\r' | 0) => Ok(Self(Some(*one))),
            _ => Err(D::Error::custom(format!("`{text}` is not one character, such as , or ; or \\t"))),
        }
    }
}

impl JsonSchema for Character {
    fn inline_schema() -> bool {
        true
    }
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Character".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "maxLength": 2 })
    }
}

/// A regular expression for the whole of a value.
#[derive(Debug, Clone)]
pub struct WholePattern {
    pub(super) text: String,
    pub(super) compiled: regex::Regex,
}

impl<'de> Deserialize<'de> for WholePattern {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        match regex::Regex::new(&format!("^(?:{text})$")) {
            Ok(compiled) => Ok(Self { text, compiled }),
            Err(error) => {
                let reason = error.to_string();
                let reason = reason.lines().last().unwrap_or_default().trim_start_matches("error: ").to_owned();
                Err(D::Error::custom(format!("`{text}` is not a regular expression: {reason}")))
            }
        }
    }
}

impl JsonSchema for WholePattern {
    fn inline_schema() -> bool {
        true
    }
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "WholePattern".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string" })
    }
}

fn bound_schema(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": ["number", "string"] })
}

impl Column {
    /// What cannot be meant.
    pub(super) fn problems(&self, name: &Spanned<String>) -> Vec<Diagnostic> {
        let mut found = Vec::new();
        for bound in [&self.min, &self.max].into_iter().flatten() {
            if let Err(problem) = value::Bound::read(self.kind.value, &bound.value) {
                found.push(Diagnostic::error("import-bound", bound.span, problem));
            }
        }
        if let Some(references) = &self.references
            && reference(&references.value).is_none()
        {
            found.push(Diagnostic::error("import-reference", references.span, "a reference is written `table.column`"));
        }
        if let Some(listed) = self.values.iter().find(|listed| value::normal(self.kind.value, listed).is_err()) {
            let message = format!("`{listed}` is not {}, so no value can be it", self.kind.value.name());
            found.push(Diagnostic::error("import-enum", name.span, message));
        }
        found
    }
}

/// The table and the column of `table.column` or `schema.table.column`.
pub(super) fn reference(text: &str) -> Option<(&str, &str)> {
    text.rsplit_once('.').filter(|(table, column)| !table.is_empty() && !column.is_empty())
}
