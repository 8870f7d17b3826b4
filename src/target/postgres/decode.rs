//! PostgreSQL's text results as JSON values.
//!
//! Nothing may lose digits: numbers that JSON's usual double cannot hold stay text.

use serde_json::{Number, Value};

/// How values of one type become JSON.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decoder {
    /// As the server writes them.
    Text,
    /// `t` and `f`.
    Bool,
    /// Whole numbers of at most 64 bits.
    Integer,
    /// Binary floating point.
    Float,
    /// JSON documents.
    Json,
    /// The result of a function without one.
    Void,
    /// Arrays, perhaps of several dimensions.
    Array {
        /// What stands between elements: `;` for boxes, otherwise `,`.
        delimiter: char,
        /// For the elements.
        element: Box<Decoder>,
    },
}

/// Name and decoder of the usual built-in types, by their fixed OIDs.
pub fn built_in(oid: u32) -> Option<(String, Decoder)> {
    if let Some((name, decoder)) = scalar(oid) {
        return Some((name.to_owned(), decoder));
    }
    let element = match oid {
        199 => 114,
        1000 => 16,
        1001 => 17,
        1005 => 21,
        1007 => 23,
        1009 => 25,
        1015 => 1043,
        1016 => 20,
        1021 => 700,
        1022 => 701,
        1028 => 26,
        1115 => 1114,
        1182 => 1082,
        1185 => 1184,
        1187 => 1186,
        1231 => 1700,
        2951 => 2950,
        3807 => 3802,
        _ => return None,
    };
    let (name, decoder) = scalar(element)?;
    Some((format!("{name}[]"), Decoder::Array { delimiter: ',', element: Box::new(decoder) }))
}

fn scalar(oid: u32) -> Option<(&'static str, Decoder)> {
    Some(match oid {
        16 => ("bool", Decoder::Bool),
        17 => ("bytea", Decoder::Text),
        18 => ("\"char\"", Decoder::Text),
        19 => ("name", Decoder::Text),
        20 => ("int8", Decoder::Integer),
        21 => ("int2", Decoder::Integer),
        23 => ("int4", Decoder::Integer),
        25 => ("text", Decoder::Text),
        26 => ("oid", Decoder::Integer),
        114 => ("json", Decoder::Json),
        700 => ("float4", Decoder::Float),
        701 => ("float8", Decoder::Float),
        705 => ("unknown", Decoder::Text),
        790 => ("money", Decoder::Text),
        869 => ("inet", Decoder::Text),
        1042 => ("bpchar", Decoder::Text),
        1043 => ("varchar", Decoder::Text),
        1082 => ("date", Decoder::Text),
        1083 => ("time", Decoder::Text),
        1114 => ("timestamp", Decoder::Text),
        1184 => ("timestamptz", Decoder::Text),
        1186 => ("interval", Decoder::Text),
        1266 => ("timetz", Decoder::Text),
        1700 => ("numeric", Decoder::Text),
        2249 => ("record", Decoder::Text),
        2278 => ("void", Decoder::Void),
        2950 => ("uuid", Decoder::Text),
        3802 => ("jsonb", Decoder::Json),
        _ => return None,
    })
}

impl Decoder {
    /// Decodes one value. What does not parse as announced stays text: better the
    /// server's own words than none.
    pub fn decode(&self, text: &str) -> Value {
        let decoded = match self {
            Self::Text => None,
            Self::Bool => Some(Value::Bool(text == "t")),
            Self::Integer => text.parse::<i64>().ok().map(Value::from),
            Self::Float => text.parse().ok().and_then(Number::from_f64).map(Value::Number),
            Self::Json => json(text),
            Self::Void => Some(Value::Null),
            Self::Array { delimiter, element } => ArrayText::read(text, *delimiter, element),
        };
        decoded.unwrap_or_else(|| Value::String(text.to_owned()))
    }
}

/// A JSON document in which numbers that a double cannot hold became text.
fn json(text: &str) -> Option<Value> {
    if text.bytes().any(|byte| byte.is_ascii_digit()) && has_inexact_number(text) {
        serde_json::from_str(&quote_inexact_numbers(text)).ok()
    } else {
        serde_json::from_str(text).ok()
    }
}

fn has_inexact_number(text: &str) -> bool {
    numbers(text).any(|(_, number)| !is_exact(number))
}

fn quote_inexact_numbers(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len() + 16);
    let mut copied = 0;
    for (start, number) in numbers(text) {
        if !is_exact(number) {
            quoted.push_str(&text[copied..start]);
            quoted.push('"');
            quoted.push_str(number);
            quoted.push('"');
            copied = start + number.len();
        }
    }
    quoted.push_str(&text[copied..]);
    quoted
}

/// Every number in a JSON text with its place, strings left out.
fn numbers(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let bytes = text.as_bytes();
    let mut at = 0;
    std::iter::from_fn(move || {
        while let Some(byte) = bytes.get(at) {
            match byte {
                b'"' => {
                    at += 1;
                    while let Some(byte) = bytes.get(at).filter(|byte| **byte != b'"') {
                        at += if *byte == b'\\' { 2 } else { 1 };
                    }
                    at += 1;
                }
                b'-' | b'0'..=b'9' => {
                    let start = at;
                    while bytes.get(at).is_some_and(|byte| matches!(byte, b'-' | b'+' | b'.' | b'e' | b'E' | b'0'..=b'9')) {
                        at += 1;
                    }
                    return Some((start, &text[start..at]));
                }
                _ => at += 1,
            }
        }
        None
    })
}

/// Whether a JSON number survives being read and written again.
fn is_exact(number: &str) -> bool {
    if number.len() <= 15 && !number.contains(['e', 'E']) {
        return true;
    }
    if number.parse::<i64>().is_ok() || number.parse::<u64>().is_ok() {
        return true;
    }
    let Ok(double) = number.parse::<f64>() else { return false };
    // A double has one shortest decimal form; the digits must be the same ones.
    double.is_finite() && significant(number) == significant(&format!("{double:e}"))
}

/// Sign, digits without zeros at either end, and the power of ten of the first one.
fn significant(number: &str) -> (bool, String, i64) {
    let (mantissa, exponent) = number.split_once(['e', 'E']).unwrap_or((number, "0"));
    let negative = mantissa.starts_with('-');
    let mantissa = mantissa.trim_start_matches('-');
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let all = format!("{whole}{fraction}");
    let leading = all.len() - all.trim_start_matches('0').len();
    let digits = all.trim_matches('0').to_owned();
    let magnitude = |exponent: i64| exponent + i64::try_from(whole.len()).unwrap_or(0) - i64::try_from(leading).unwrap_or(0);
    match exponent.parse().ok().filter(|_| !digits.is_empty()) {
        Some(exponent) => (negative, digits, magnitude(exponent)),
        None => (negative, digits, 0),
    }
}

/// PostgreSQL's text form of an array: `[2:3]={1,NULL,"a b"}`.
struct ArrayText<'a> {
    rest: &'a str,
    delimiter: char,
    element: &'a Decoder,
}

impl<'a> ArrayText<'a> {
    fn read(text: &'a str, delimiter: char, element: &'a Decoder) -> Option<Value> {
        // Bounds other than 1 are not told: JSON's arrays have none.
        let body = if text.starts_with('[') { text.split_once('=')?.1 } else { text };
        let mut reader = Self { rest: body, delimiter, element };
        let array = reader.array()?;
        reader.rest.is_empty().then_some(array)
    }

    fn array(&mut self) -> Option<Value> {
        let mut items = Vec::new();
        self.rest = self.rest.strip_prefix('{')?;
        if let Some(rest) = self.rest.strip_prefix('}') {
            self.rest = rest;
            return Some(Value::Array(items));
        }
        loop {
            items.push(self.item()?);
            let mut letters = self.rest.chars();
            let next = letters.next()?;
            self.rest = letters.as_str();
            match next {
                '}' => return Some(Value::Array(items)),
                _ if next == self.delimiter => {}
                _ => return None,
            }
        }
    }

    fn item(&mut self) -> Option<Value> {
        if self.rest.starts_with('{') {
            return self.array();
        }
        if let Some(quoted) = self.rest.strip_prefix('"') {
            let mut text = String::new();
            let mut letters = quoted.chars();
            loop {
                match letters.next()? {
                    '"' => break,
                    '\\' => text.push(letters.next()?),
                    letter => text.push(letter),
                }
            }
            self.rest = letters.as_str();
            return Some(self.element.decode(&text));
        }
        let end = self.rest.find([self.delimiter, '}'])?;
        let (text, rest) = self.rest.split_at(end);
        self.rest = rest;
        Some(if text == "NULL" { Value::Null } else { self.element.decode(text) })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn array(text: &str, element: Decoder) -> Value {
        Decoder::Array { delimiter: ',', element: Box::new(element) }.decode(text)
    }

    #[test]
    fn arrays_keep_nesting_nulls_and_quoted_text() {
        assert_eq!(array("{}", Decoder::Text), json!([]));
        assert_eq!(array("{1,NULL,-3}", Decoder::Integer), json!([1, null, -3]));
        assert_eq!(array("{{1,2},{3,4}}", Decoder::Integer), json!([[1, 2], [3, 4]]));
        assert_eq!(array("[0:1][-1:0]={{1,2},{3,4}}", Decoder::Integer), json!([[1, 2], [3, 4]]));
        assert_eq!(array(r#"{"a,b","NULL",NULL,"q\"\\",""}"#, Decoder::Text), json!(["a,b", "NULL", null, "q\"\\", ""]));
        assert_eq!(array(r#"{"{\"a\": [1]}"}"#, Decoder::Json), json!([{"a": [1]}]));
        assert_eq!(array("{t,f}", Decoder::Bool), json!([true, false]));
        assert_eq!(array("{1,2", Decoder::Integer), json!("{1,2"));
    }

    #[test]
    fn json_numbers_keep_their_digits() {
        let cases = [
            ("1.5", json!(1.5)),
            ("1.10", json!(1.1)),
            ("9223372036854775807", json!(i64::MAX)),
            ("12345678901234567890123", json!("12345678901234567890123")),
            ("0.1000000000000000055511151231257827", json!("0.1000000000000000055511151231257827")),
            ("1e400", json!("1e400")),
            ("-0.00000000000000000025", json!(-2.5e-19)),
            ("100000000000000000000000", json!(1e23)),
            (
                r#"{"a": "12345678901234567890123", "b": [12345678901234567890123]}"#,
                json!({"a": "12345678901234567890123", "b": ["12345678901234567890123"]}),
            ),
        ];
        for (text, expected) in cases {
            assert_eq!(Decoder::Json.decode(text), expected, "{text}");
        }
    }

    #[test]
    fn what_json_has_no_number_for_stays_text() {
        assert_eq!(Decoder::Float.decode("NaN"), json!("NaN"));
        assert_eq!(Decoder::Float.decode("-Infinity"), json!("-Infinity"));
        assert_eq!(Decoder::Float.decode("1e+20"), json!(1e20));
        assert_eq!(Decoder::Void.decode(""), json!(null));
    }
}
