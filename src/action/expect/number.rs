//! Numbers of any length, compared digit by digit: a count or an amount must not be
//! equal only because both were rounded to 64 bits.

use std::cmp::Ordering;

use serde_json::Value;

/// A decimal number: its sign, and `0.digits × 10^exponent`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Number {
    negative: bool,
    /// Without zeros at either end; empty for zero.
    digits: String,
    exponent: i64,
}

impl Number {
    /// A JSON number, or text that is one.
    pub fn from_json(value: &Value) -> Option<Self> {
        match value {
            Value::Number(number) => Self::parse(&number.to_string()),
            Value::String(text) => Self::parse(text.trim()),
            _ => None,
        }
    }

    fn parse(text: &str) -> Option<Self> {
        let (negative, unsigned) = match text.strip_prefix('-') {
            Some(rest) => (true, rest),
            None => (false, text.strip_prefix('+').unwrap_or(text)),
        };
        let (mantissa, exponent) = match unsigned.split_once(['e', 'E']) {
            Some((mantissa, exponent)) => (mantissa, exponent.parse::<i32>().ok()?),
            None => (unsigned, 0),
        };
        let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
        let all_digits = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
        if (whole.is_empty() && fraction.is_empty()) || !all_digits(whole) || !all_digits(fraction) {
            return None;
        }
        let written = format!("{whole}{fraction}");
        let significant = written.trim_start_matches('0');
        let leading = written.len() - significant.len();
        let digits = significant.trim_end_matches('0').to_owned();
        if digits.is_empty() {
            return Some(Self { negative: false, digits, exponent: 0 });
        }
        Some(Self { negative, exponent: i64::from(exponent) + whole.len() as i64 - leading as i64, digits })
    }

    /// The nearest number a machine calculates with.
    pub fn approximate(&self) -> f64 {
        let text = format!("{}0.{}e{}", if self.negative { "-" } else { "" }, self.digits, self.exponent);
        text.parse().unwrap_or(f64::NAN)
    }
}

impl Ord for Number {
    fn cmp(&self, other: &Self) -> Ordering {
        let magnitude = || match (self.digits.is_empty(), other.digits.is_empty()) {
            (false, false) => self.exponent.cmp(&other.exponent).then_with(|| self.digits.cmp(&other.digits)),
            (self_zero, other_zero) => other_zero.cmp(&self_zero),
        };
        match (self.negative, other.negative) {
            (false, true) => Ordering::Greater,
            (true, false) => Ordering::Less,
            (false, false) => magnitude(),
            (true, true) => magnitude().reverse(),
        }
    }
}

impl PartialOrd for Number {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn number(text: &str) -> Number {
        Number::parse(text).unwrap_or_else(|| panic!("{text} is a number"))
    }

    #[test]
    fn digits_beyond_64_bits_count() {
        assert!(number("123456789012345678901234567890.1") > number("123456789012345678901234567890.09"));
        assert!(number("9007199254740993") > number("9007199254740992"));
        assert!(number("0.1000") == number("1e-1") && number("-0") == number("0.00") && number("+5") == number("05."));
        assert!(number("-2") < number("-1.5") && number("-1") < number("0") && number("0") < number("1e-30"));
        assert!(number("100") > number("99.9") && number("1e3") > number("999"));
        for text in ["", ".", "-", "1.2.3", "NaN", "Infinity", "1e", "0x10", "1 000", "$5"] {
            assert_eq!(Number::parse(text), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn order_is_that_of_whole_numbers(a in any::<i64>(), b in any::<i64>()) {
            prop_assert_eq!(number(&a.to_string()).cmp(&number(&b.to_string())), a.cmp(&b));
            prop_assert_eq!(number(&format!("{a}e-3")).cmp(&number(&format!("{b}e-3"))), a.cmp(&b));
        }
    }
}
