//! Redaction of values that are read back as types.
//!
//! In what people and databases say, everything is redacted. What the program itself
//! wrote around it (names of events, positions, counts, ids of steps) must stay as it
//! is, or a password that is also a word, such as `postgres` or `done`, would make the
//! record unreadable.

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::Redactor;

/// Which fields of a type hold what.
#[derive(Debug, Clone, Copy)]
pub struct Structure {
    /// Words of the program: a text under these keys stays.
    pub words: &'static [&'static str],
    /// Records of the program: everything under these keys stays.
    pub records: &'static [&'static str],
    /// Data of any shape: everything under these keys is redacted, numbers and keys too.
    pub data: &'static [&'static str],
}

impl Redactor {
    /// The same value without secrets.
    pub fn typed<T: Serialize + DeserializeOwned>(&self, value: &T, structure: &Structure) -> Result<T, serde_json::Error> {
        serde_json::from_value(self.structured(serde_json::to_value(value)?, structure))
    }

    fn structured(&self, value: Value, structure: &Structure) -> Value {
        match value {
            Value::String(text) => Value::String(self.text(&text).into_owned()),
            Value::Array(items) => items.into_iter().map(|item| self.structured(item, structure)).collect(),
            Value::Object(fields) => Value::Object(
                fields
                    .into_iter()
                    .map(|(key, value)| {
                        let value = self.field(&key, value, structure);
                        (key, value)
                    })
                    .collect(),
            ),
            other => other,
        }
    }

    fn field(&self, key: &str, value: Value, structure: &Structure) -> Value {
        match value {
            value if structure.records.contains(&key) => value,
            value if structure.data.contains(&key) => self.json(value),
            value @ Value::String(_) if structure.words.contains(&key) => value,
            value => self.structured(value, structure),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::secret::Secret;

    #[test]
    fn data_is_redacted_and_structure_is_not() {
        const STRUCTURE: Structure = Structure { words: &["status"], records: &["header"], data: &["value"] };
        let redactor = Redactor::new([&Secret::new("done"), &Secret::new("12")]);
        let value = json!({
            "status": "done", "count": 12, "text": "all done", "header": {"id": "done"},
            "value": {"status": "done", "count": 12, "done": [true, 7]}, "kind": {"status": {"text": "12 done"}},
        });
        let redacted: Value = redactor.typed(&value, &STRUCTURE).expect("any value is one");
        assert_eq!(
            redacted,
            json!({
                "status": "done", "count": 12, "text": "all ***", "header": {"id": "done"},
                "value": {"status": "***", "count": "***", "***": [true, 7]}, "kind": {"status": {"text": "*** ***"}},
            })
        );
    }
}
