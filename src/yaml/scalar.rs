//! What a plain scalar means: YAML 1.2's core schema, where `yes`, `no`, `on` and
//! `off` are text.

use super::Value;

/// More significant digits than this do not survive a 64-bit float.
const FLOAT_DIGITS: usize = 15;

/// Resolves a scalar written without quotes. Numbers that 64 bits cannot hold, and
/// the infinities no playbook means, stay text, so that no digit gets lost.
pub(super) fn resolve(text: &str) -> Value {
    match text {
        "" | "~" | "null" | "Null" | "NULL" => Value::Null,
        "true" | "True" | "TRUE" => Value::Bool(true),
        "false" | "False" | "FALSE" => Value::Bool(false),
        _ => integer(text).map(Value::Int).or_else(|| float(text).map(Value::Float)).unwrap_or_else(|| Value::String(text.to_owned())),
    }
}

fn integer(text: &str) -> Option<i64> {
    if let Some(digits) = text.strip_prefix("0o") {
        return digits.bytes().all(|b| b.is_ascii_digit()).then(|| i64::from_str_radix(digits, 8).ok()).flatten();
    }
    if let Some(digits) = text.strip_prefix("0x") {
        return digits.bytes().all(|b| b.is_ascii_hexdigit()).then(|| i64::from_str_radix(digits, 16).ok()).flatten();
    }
    text.parse().ok()
}

fn float(text: &str) -> Option<f64> {
    let unsigned = text.strip_prefix(['-', '+']).unwrap_or(text);
    let (mantissa, exponent) = match unsigned.find(['e', 'E']) {
        Some(at) => (&unsigned[..at], Some(&unsigned[at + 1..])),
        None => (unsigned, None),
    };
    let digits = mantissa.bytes().filter(u8::is_ascii_digit).count();
    let point = mantissa.matches('.').count();
    let well_formed = digits > 0
        && point <= 1
        && (point == 1 || exponent.is_some())
        && digits + point == mantissa.len()
        && exponent.is_none_or(|exponent| {
            let exponent = exponent.strip_prefix(['-', '+']).unwrap_or(exponent);
            !exponent.is_empty() && exponent.bytes().all(|b| b.is_ascii_digit())
        });
    let significant = mantissa.bytes().filter(u8::is_ascii_digit).skip_while(|b| *b == b'0').count();
    if !well_formed || significant > FLOAT_DIGITS {
        return None;
    }
    text.parse().ok().filter(|number: &f64| number.is_finite())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_core_schema() {
        let text = |text: &str| Value::String(text.into());
        for (written, meant) in [
            ("", Value::Null),
            ("~", Value::Null),
            ("null", Value::Null),
            ("true", Value::Bool(true)),
            ("False", Value::Bool(false)),
            ("yes", text("yes")),
            ("off", text("off")),
            ("12", Value::Int(12)),
            ("-7", Value::Int(-7)),
            ("+7", Value::Int(7)),
            ("0o17", Value::Int(15)),
            ("0xff", Value::Int(255)),
            ("0o8", text("0o8")),
            ("0x-1", text("0x-1")),
            ("9223372036854775808", text("9223372036854775808")),
            ("1.5", Value::Float(1.5)),
            (".5", Value::Float(0.5)),
            ("1.", Value::Float(1.0)),
            ("1e3", Value::Float(1000.0)),
            ("-1.5E-2", Value::Float(-0.015)),
            ("1e999", text("1e999")),
            ("0.1234567890123456789", text("0.1234567890123456789")),
            (".inf", text(".inf")),
            ("inf", text("inf")),
            ("nan", text("nan")),
            ("NaN", text("NaN")),
            ("1.2.3", text("1.2.3")),
            ("1_000", text("1_000")),
            (".", text(".")),
            ("e5", text("e5")),
            ("10.0.0.1", text("10.0.0.1")),
            ("12:30", text("12:30")),
            ("2026-01-02", text("2026-01-02")),
        ] {
            assert_eq!(resolve(written), meant, "{written}");
        }
    }
}
