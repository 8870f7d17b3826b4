//! Values and names as SQL text.
//!
//! Every value becomes a quoted literal of unknown type, so that the server gives it
//! the type the statement needs, and rejects it where it does not fit.

use serde_json::Value;

/// Text as a literal, whatever `standard_conforming_strings` says.
pub fn literal(text: &str) -> String {
    let quoted = text.replace('\'', "''");
    if quoted.contains('\\') { format!(" E'{}'", quoted.replace('\\', "\\\\")) } else { format!("'{quoted}'") }
}

/// A name, quoted where SQL needs it.
pub fn identifier(name: &str) -> String {
    let plain = name.starts_with(|first: char| first.is_ascii_lowercase() || first == '_')
        && name.chars().all(|letter| letter.is_ascii_lowercase() || letter.is_ascii_digit() || letter == '_');
    if plain { name.to_owned() } else { format!("\"{}\"", name.replace('"', "\"\"")) }
}

/// A bound value as a literal; `as_array` says that the statement wants an array there.
pub fn bound(value: &Value, as_array: bool) -> String {
    match value {
        Value::Null => "NULL".to_owned(),
        Value::Bool(_) | Value::Number(_) => literal(&value.to_string()),
        Value::String(text) => literal(text),
        Value::Array(items) if as_array => literal(&array(items)),
        Value::Array(_) | Value::Object(_) => literal(&value.to_string()),
    }
}

/// PostgreSQL's text form of an array.
fn array(items: &[Value]) -> String {
    let parts: Vec<String> = items
        .iter()
        .map(|item| match item {
            Value::Null => "NULL".to_owned(),
            Value::Bool(_) | Value::Number(_) => item.to_string(),
            Value::Array(nested) => array(nested),
            Value::String(text) => quoted(text),
            Value::Object(_) => quoted(&item.to_string()),
        })
        .collect();
    format!("{{{}}}", parts.join(","))
}

fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn values_become_literals_nothing_can_escape_from() {
        assert_eq!(bound(&json!("it's"), false), "'it''s'");
        assert_eq!(bound(&json!(r"a\' OR 1=1 --"), false), r" E'a\\'' OR 1=1 --'");
        assert_eq!(bound(&json!(null), false), "NULL");
        assert_eq!(bound(&json!(true), false), "'true'");
        assert_eq!(bound(&json!(1.5), false), "'1.5'");
        assert_eq!(bound(&json!([1, [null, "a\"b"]]), true), r#" E'{1,{NULL,"a\\"b"}}'"#);
        assert_eq!(bound(&json!([1, "x"]), false), r#"'[1,"x"]'"#);
        assert_eq!(identifier("Odd\"name"), "\"Odd\"\"name\"");
    }
}
