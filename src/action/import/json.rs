//! A line of NDJSON as the values of a record, every number with all its digits.

use std::borrow::Cow;

use indexmap::IndexMap;
use serde_json::value::RawValue;

use super::records::Record;

/// Unused keys that are remembered by name.
pub(super) const NAMED: usize = 20;

/// Finds the wanted keys in the line in `buffer`, and puts their values in its place.
pub(super) fn take_apart(record: &mut Record, wanted: &[String], unused: &mut Vec<String>) -> Result<(), String> {
    let line = std::mem::take(&mut record.buffer);
    let text = std::str::from_utf8(&line).map_err(|_| "not UTF-8 text".to_owned())?;
    let object: IndexMap<Cow<'_, str>, &RawValue> =
        serde_json::from_str(text.trim()).map_err(|error| format!("not a JSON object: {}", reason(&error)))?;
    for name in wanted {
        let value = object.get(name.as_str()).map(|value| plain(value)).transpose()?.flatten();
        record.values.push(value.map(|value| {
            let start = record.buffer.len();
            record.buffer.extend_from_slice(value.as_bytes());
            start..record.buffer.len()
        }));
    }
    for key in object.keys() {
        if unused.len() < NAMED && !wanted.iter().any(|name| name == key) && !unused.iter().any(|name| name == key) {
            unused.push(key.clone().into_owned());
        }
    }
    Ok(())
}

/// The text of a value: of a string what it says, of anything else what is written.
fn plain(value: &RawValue) -> Result<Option<Cow<'_, str>>, String> {
    let written = value.get();
    match written.as_bytes().first() {
        Some(b'"') => serde_json::from_str::<String>(written).map(|text| Some(text.into())).map_err(|error| reason(&error)),
        _ if written == "null" => Ok(None),
        _ => Ok(Some(written.into())),
    }
}

/// Without serde_json's place, which counts within the line.
fn reason(error: &serde_json::Error) -> String {
    let text = error.to_string();
    text.split(" at line ").next().unwrap_or_default().to_owned()
}
