//! A table's name, read as SQL reads it and always sent in quotes.

use std::borrow::Cow;
use std::fmt;
use std::iter::Peekable;
use std::str::{Chars, FromStr};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, de::Error};

/// `users`, `app.users`, `"Users"`: letters outside of quotes are small ones, as in SQL.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct TableName {
    schema: Option<String>,
    name: String,
}

impl TableName {
    /// The schema, where one is named.
    pub(super) fn schema(&self) -> Option<&str> {
        self.schema.as_deref()
    }

    /// The name without its schema.
    pub(super) fn bare(&self) -> &str {
        &self.name
    }

    /// In quotes, for a statement.
    pub(super) fn sql(&self) -> String {
        let parts = self.schema.iter().chain([&self.name]);
        parts.map(|part| quoted(part)).collect::<Vec<_>>().join(".")
    }

    /// The name without its schema in quotes, by which a statement's own columns are meant.
    pub(super) fn bare_sql(&self) -> String {
        quoted(&self.name)
    }
}

impl FromStr for TableName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.contains("{{") {
            return Err("the name of a table is written out: what is read must be known before the run".into());
        }
        let malformed = || format!("`{text}` is not a table's name; write for example users, app.users, or with capitals '\"Users\"'");
        let mut letters = text.trim().chars().peekable();
        let mut parts = vec![part(&mut letters).ok_or_else(malformed)?];
        while let Some(letter) = letters.next() {
            if letter != '.' {
                return Err(malformed());
            }
            parts.push(part(&mut letters).ok_or_else(malformed)?);
        }
        match (parts.pop(), parts.pop(), parts.pop()) {
            (Some(name), schema, None) => Ok(Self { schema, name }),
            _ => Err(malformed()),
        }
    }
}

/// One part of a name: up to a dot, or everything between double quotes.
fn part(letters: &mut Peekable<Chars<'_>>) -> Option<String> {
    let mut name = String::new();
    if letters.next_if_eq(&'"').is_some() {
        loop {
            match letters.next()? {
                '"' if letters.next_if_eq(&'"').is_none() => break,
                '\0' => return None,
                letter => name.push(letter),
            }
        }
    } else {
        let may_begin = |letter: &char| letter.is_alphabetic() || *letter == '_';
        letters.peek().filter(|letter| may_begin(letter))?;
        while let Some(letter) = letters.next_if(|letter| may_begin(letter) || letter.is_alphanumeric() || *letter == '$') {
            name.push(letter.to_ascii_lowercase());
        }
    }
    (!name.is_empty()).then_some(name)
}

fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// As a person would write it.
impl fmt::Display for TableName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let written = |name: &str| {
            let plain = !name.starts_with(|first: char| first.is_ascii_digit())
                && name.chars().all(|letter| letter.is_ascii_lowercase() || letter.is_ascii_digit() || letter == '_');
            if plain { name.to_owned() } else { quoted(name) }
        };
        let parts: Vec<String> = self.schema.iter().chain([&self.name]).map(|part| written(part)).collect();
        f.pad(&parts.join("."))
    }
}

impl<'de> Deserialize<'de> for TableName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}

impl JsonSchema for TableName {
    fn schema_name() -> Cow<'static, str> {
        "TableName".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "minLength": 1, "description": "a table's name as in SQL: users, app.users, or with capitals '\"Users\"'" })
    }
}
