//! Whether a text is a value of a type, and how the database reads it.
//!
//! What passes here is accepted by PostgreSQL's input functions, so that one bad value
//! never fails a whole COPY.

use std::borrow::Cow;
use std::cmp::Ordering;

use serde_json::Value;

use super::fields::ColumnType;

/// More digits than any amount has; PostgreSQL's own limit is higher.
const MOST_DIGITS: usize = 1000;

/// The text the database gets for a value, or what is wrong with it.
pub(super) fn normal(kind: ColumnType, text: &str) -> Result<Cow<'_, str>, &'static str> {
    if kind == ColumnType::Text {
        return Ok(Cow::Borrowed(text));
    }
    let text = text.trim();
    let fine = |is: bool, otherwise: &'static str| if is { Ok(Cow::Borrowed(text)) } else { Err(otherwise) };
    match kind {
        ColumnType::Text => Ok(Cow::Borrowed(text)),
        ColumnType::Integer => fine(text.parse::<i32>().is_ok(), whole(text, "not a whole number", "out of range for integer")),
        ColumnType::Bigint => fine(text.parse::<i64>().is_ok(), whole(text, "not a whole number", "out of range for bigint")),
        ColumnType::Numeric => fine(Number::read(text).is_some(), "not a number"),
        ColumnType::Boolean => boolean(text).map(|truth| if truth { "true" } else { "false" }.into()).ok_or("not a truth value"),
        ColumnType::Date => fine(is_date(text.as_bytes()), "not a date such as 2026-05-01"),
        ColumnType::Timestamp => fine(is_timestamp(text.as_bytes()), "not a timestamp such as 2026-05-01 13:45:00"),
        ColumnType::Timestamptz => fine(is_timestamptz(text.as_bytes()), "not a timestamp with its offset, such as 2026-05-01T13:45:00Z"),
        ColumnType::Uuid => fine(is_uuid(text.as_bytes()), "not a UUID"),
        ColumnType::Json => fine(is_json(text), "not JSON that the database can keep"),
    }
}

/// Which of the two it is that no number can be made of.
fn whole(text: &str, form: &'static str, range: &'static str) -> &'static str {
    let digits = text.strip_prefix(['-', '+']).unwrap_or(text);
    if !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit()) { range } else { form }
}

fn boolean(text: &str) -> Option<bool> {
    const TRUE: &[&str] = &["true", "t", "yes", "y", "on", "1"];
    const FALSE: &[&str] = &["false", "f", "no", "n", "off", "0"];
    let is = |words: &[&str]| words.iter().any(|word| text.eq_ignore_ascii_case(word));
    if is(TRUE) { Some(true) } else { is(FALSE).then_some(false) }
}

/// A decimal number, taken apart.
pub(super) struct Number<'a> {
    /// Digits before the point, leading zeros removed.
    whole: &'a str,
    /// Digits behind it, trailing zeros removed.
    fraction: &'a str,
    exponent: i32,
}

impl<'a> Number<'a> {
    pub(super) fn read(text: &'a str) -> Option<Self> {
        let unsigned = text.strip_prefix(['-', '+']).unwrap_or(text);
        let (mantissa, exponent) = match unsigned.split_once(['e', 'E']) {
            Some((mantissa, exponent)) => (mantissa, exponent.parse::<i32>().ok().filter(|exponent| exponent.unsigned_abs() <= 1000)?),
            None => (unsigned, 0),
        };
        let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
        let digits = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
        let length = whole.len() + fraction.len();
        if length == 0 || length > MOST_DIGITS || !digits(whole) || !digits(fraction) {
            return None;
        }
        Some(Self { whole: whole.trim_start_matches('0'), fraction: fraction.trim_end_matches('0'), exponent })
    }

    /// Whether it fits `numeric(precision, scale)` without being rounded.
    pub(super) fn fits(&self, precision: i32, scale: i32) -> bool {
        if self.whole.is_empty() && self.fraction.is_empty() {
            return true;
        }
        let before = if self.whole.is_empty() {
            let zeros = self.fraction.len() - self.fraction.trim_start_matches('0').len();
            -(zeros as i32)
        } else {
            self.whole.len() as i32
        };
        let trailing = if self.fraction.is_empty() { self.whole.len() - self.whole.trim_end_matches('0').len() } else { 0 };
        let behind = self.fraction.len() as i32 - trailing as i32 - self.exponent;
        before + self.exponent <= precision - scale && behind <= scale
    }
}

fn number(bytes: &[u8]) -> Option<u32> {
    let digits = !bytes.is_empty() && bytes.iter().all(u8::is_ascii_digit);
    digits.then(|| bytes.iter().fold(0, |number, digit| number * 10 + u32::from(digit - b'0')))
}

/// `YYYY-MM-DD`, and there is such a day.
fn is_date(text: &[u8]) -> bool {
    let [y1, y2, y3, y4, b'-', m1, m2, b'-', d1, d2] = text else { return false };
    let (Some(year), Some(month), Some(day)) = (number(&[*y1, *y2, *y3, *y4]), number(&[*m1, *m2]), number(&[*d1, *d2])) else {
        return false;
    };
    let leap = year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    let days = match month {
        2 => 28 + u32::from(leap),
        4 | 6 | 9 | 11 => 30,
        1..=12 => 31,
        _ => 0,
    };
    year >= 1 && (1..=days).contains(&day)
}

/// `HH:MM`, `HH:MM:SS` or `HH:MM:SS.ffffff`.
fn is_time(text: &[u8]) -> bool {
    let (clock, fraction) = match text.iter().position(|byte| *byte == b'.') {
        Some(point) => (&text[..point], Some(&text[point + 1..])),
        None => (text, None),
    };
    let part = |from: usize, most: u32| clock.get(from..from + 2).and_then(number).is_some_and(|number| number <= most);
    let form = match clock.len() {
        5 => fraction.is_none() && clock[2] == b':',
        8 => clock[2] == b':' && clock[5] == b':' && part(6, 59),
        _ => false,
    };
    let fine = fraction.is_none_or(|digits| (1..=9).contains(&digits.len()) && digits.iter().all(u8::is_ascii_digit));
    form && fine && part(0, 23) && part(3, 59)
}

fn is_timestamp(text: &[u8]) -> bool {
    text.len() > 11 && matches!(text[10], b' ' | b'T') && is_date(&text[..10]) && is_time(&text[11..])
}

fn is_timestamptz(text: &[u8]) -> bool {
    if let Some(utc) = text.strip_suffix(b"Z") {
        return is_timestamp(utc);
    }
    let Some(sign) = text.iter().rposition(|byte| matches!(byte, b'+' | b'-')).filter(|sign| *sign > 10) else { return false };
    let part = |bytes: &[u8], most: u32| number(bytes).is_some_and(|number| number <= most);
    let offset = match &text[sign + 1..] {
        [h1, h2] => part(&[*h1, *h2], 15),
        [h1, h2, m1, m2] | [h1, h2, b':', m1, m2] => part(&[*h1, *h2], 15) && part(&[*m1, *m2], 59),
        _ => false,
    };
    offset && is_timestamp(text[..sign].trim_ascii_end())
}

fn is_uuid(text: &[u8]) -> bool {
    let hexadecimal = |byte: &u8| byte.is_ascii_hexdigit();
    match text.len() {
        32 => text.iter().all(hexadecimal),
        36 => {
            text.iter().enumerate().all(|(index, byte)| if matches!(index, 8 | 13 | 18 | 23) { *byte == b'-' } else { hexadecimal(byte) })
        }
        _ => false,
    }
}

/// `jsonb` keeps no NUL.
fn is_json(text: &str) -> bool {
    serde_json::from_str::<Value>(text).is_ok() && !text.contains("\\u0000")
}

/// The smallest or largest value of a column.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Bound {
    Number(f64),
    /// ISO dates and times of one form compare as text.
    Moment(String),
}

impl Bound {
    /// Reads what stands in the playbook.
    pub(super) fn read(kind: ColumnType, written: &Value) -> Result<Self, String> {
        match (kind, written) {
            (ColumnType::Integer | ColumnType::Bigint | ColumnType::Numeric, Value::Number(number)) => {
                number.as_f64().map(Self::Number).ok_or_else(|| format!("`{number}` is not a number that can be compared"))
            }
            (ColumnType::Date | ColumnType::Timestamp, Value::String(text)) => match normal(kind, text) {
                Ok(_) => Ok(Self::Moment(moment(text))),
                Err(problem) => Err(format!("`{text}` is {problem}")),
            },
            (ColumnType::Integer | ColumnType::Bigint | ColumnType::Numeric, _) => Err("a number is compared with a number".into()),
            (ColumnType::Date | ColumnType::Timestamp, _) => Err("a date is compared with a date in quotes, such as '2026-05-01'".into()),
            (other, _) => Err(format!("`min` and `max` are for numbers, dates and timestamps, not for {}", other.name())),
        }
    }

    /// How a value that is one of its type stands to it.
    pub(super) fn compare(&self, text: &str) -> Option<Ordering> {
        match self {
            Self::Number(bound) => text.parse::<f64>().ok()?.partial_cmp(bound),
            Self::Moment(bound) => Some(moment(text).as_str().cmp(bound)),
        }
    }
}

impl std::fmt::Display for Bound {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Number(number) => number.fmt(f),
            Self::Moment(text) => text.fmt(f),
        }
    }
}

/// A form of dates and timestamps that sorts: `T` for a space, all seconds, no trailing zeros.
fn moment(text: &str) -> String {
    let mut text = text.trim().replace(' ', "T");
    if text.len() == 16 {
        text.push_str(":00");
    }
    if text.contains('.') {
        text.truncate(text.trim_end_matches('0').trim_end_matches('.').len());
    }
    text
}

/// Whether a spreadsheet would take the text for a formula that does something. Numbers, and
/// digits as people write those of telephones, do nothing.
pub(super) fn is_formula(text: &str) -> bool {
    match text.as_bytes().first() {
        Some(b'=' | b'@') => true,
        Some(b'+' | b'-') => text.contains(|letter: char| letter.is_alphabetic() || matches!(letter, '=' | '|' | '!' | '@')),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn accepted<'a>(kind: ColumnType, texts: &[&'a str]) -> Vec<&'a str> {
        texts.iter().copied().filter(|text| normal(kind, text).is_ok()).collect()
    }

    #[test]
    fn values_are_what_their_type_says() {
        let cases: &[(ColumnType, &[&str], &[&str])] = &[
            (ColumnType::Integer, &["0", "-5", "+5", " 7 ", "2147483647"], &["", "1.0", "2147483648", "1e3", "٣", "0x1"]),
            (ColumnType::Bigint, &["9223372036854775807"], &["9223372036854775808", "-"]),
            (
                ColumnType::Numeric,
                &["1", "-.5", "5.", "1e3", "12345678901234567890.123"],
                &["", ".", "NaN", "Infinity", "1,5", "1e9999", "--1"],
            ),
            (ColumnType::Boolean, &["true", "F", "YES", "0"], &["2", "maybe", ""]),
            (ColumnType::Date, &["2024-02-29", "0001-01-01"], &["2023-02-29", "0000-01-01", "2024-13-01", "01.05.2024", "2024-1-1"]),
            (
                ColumnType::Timestamp,
                &["2024-05-01 10:00", "2024-05-01T10:00:00.123456"],
                &["2024-05-01", "2024-05-01 24:00", "2024-05-01 10:60", "2024-05-01T10:00Z", "2024-05-01 10:00:00."],
            ),
            (
                ColumnType::Timestamptz,
                &["2024-05-01T10:00:00Z", "2024-05-01 10:00+02", "2024-05-01 10:00:00.5 -0330", "2024-05-01 10:00+05:30"],
                &["2024-05-01T10:00:00", "2024-05-01T10:00:00+99", "2024-05-01Z"],
            ),
            (
                ColumnType::Uuid,
                &["0b0f9f3e-2f8e-4c6f-9c2b-4e9d5a1c7f00", "0b0f9f3e2f8e4c6f9c2b4e9d5a1c7f00"],
                &["0b0f9f3e", "0b0f9f3e-2f8e-4c6f-9c2b-4e9d5a1c7f0g"],
            ),
            (ColumnType::Json, &["{\"a\": [1, null]}", "1"], &["{a: 1}", "\"\\u0000\"", "\"\\ud800\""]),
        ];
        for (kind, good, bad) in cases {
            assert_eq!(accepted(*kind, good), *good, "{}", kind.name());
            assert_eq!(accepted(*kind, bad), Vec::<&str>::new(), "{}", kind.name());
        }
        assert_eq!(normal(ColumnType::Integer, "3000000000"), Err("out of range for integer"));
    }

    #[test]
    fn a_number_that_would_be_rounded_does_not_fit() {
        let fits = |text: &str| Number::read(text).unwrap().fits(5, 2);
        let texts = ["999.99", "1000", "1.234", "1.230", "0.001", "000123.4", "1e2", "1e3", "12345e-2", "0.00", "100000e-3"];
        let fitting: Vec<&str> = texts.into_iter().filter(|text| fits(text)).collect();
        assert_eq!(fitting, ["999.99", "1.230", "000123.4", "1e2", "12345e-2", "0.00", "100000e-3"]);
    }

    #[test]
    fn bounds_compare_as_their_type_does() {
        let number = Bound::read(ColumnType::Numeric, &json!(0.1)).unwrap();
        assert_eq!(number.compare("0.10"), Some(Ordering::Equal));
        assert_eq!(number.compare("9"), Some(Ordering::Greater));
        let moment = Bound::read(ColumnType::Timestamp, &json!("2024-05-01 10:00")).unwrap();
        assert_eq!(moment.compare("2024-05-01T10:00:00.000"), Some(Ordering::Equal));
        assert_eq!(moment.compare("2024-05-01 09:59:59"), Some(Ordering::Less));
        assert!(Bound::read(ColumnType::Text, &json!(1)).is_err());
        assert!(Bound::read(ColumnType::Date, &json!(2024)).is_err());
    }

    #[test]
    fn formulas_are_told_from_numbers() {
        let texts = ["=1+1", "@SUM(A1)", "+cmd|x", "-5", "+49 (0)123-4", "-x", "plain", ""];
        let formulas: Vec<&str> = texts.into_iter().filter(|text| is_formula(text)).collect();
        assert_eq!(formulas, ["=1+1", "@SUM(A1)", "+cmd|x", "-x"]);
    }
}
