//! What must be true of one variable, and what is wrong with it, without its value.

use std::borrow::Cow;
use std::fmt;

use regex::Regex;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, de::Error};

use crate::action::environment::Value;
use crate::action::environment::baseline::Change;
use crate::diagnostic::Diagnostic;
use crate::source::Spanned;

/// What must be true of a variable.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct VariableRule {
    /// Whether it must be set and not empty. Default: true.
    pub required: bool,
    /// A secret: what looks like a placeholder (`your_anon_key`, `changeme`) is refused, its
    /// length is not told, and a file with it that others can read is a finding.
    pub secret: bool,
    /// Must be as it was when the baseline was recorded, also if that was not at all.
    pub fixed: bool,
    /// What kind of value it is.
    pub format: Option<VariableFormat>,
    /// The values that are allowed.
    pub one_of: Option<Vec<String>>,
    /// A regular expression, found anywhere in the value unless it is anchored.
    pub pattern: Option<ValuePattern>,
    /// Another variable of this list that must have the same value.
    #[schemars(with = "Option<String>")]
    pub same_as: Option<Spanned<String>>,
    /// The fewest characters.
    pub min_length: Option<u32>,
    /// The most characters.
    pub max_length: Option<u32>,
}

impl Default for VariableRule {
    fn default() -> Self {
        Self {
            required: true,
            secret: false,
            fixed: false,
            format: None,
            one_of: None,
            pattern: None,
            same_as: None,
            min_length: None,
            max_length: None,
        }
    }
}

/// Kinds of values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum VariableFormat {
    /// A scheme and a host, such as `postgres://db.example.com/stock`.
    Url,
    /// A URL that begins with `https://`.
    Https,
    /// A whole number.
    Integer,
    /// A number from 1 to 65535.
    Port,
    /// `true` or `false`, `1` or `0`, `yes` or `no`, `on` or `off`.
    Boolean,
    /// Such as `123e4567-e89b-12d3-a456-426614174000`.
    Uuid,
    /// A signed token of three parts, as Supabase's keys are.
    Jwt,
    /// A JSON document.
    Json,
}

/// A regular expression over a whole value; `^` and `$` are its ends, not those of lines.
#[derive(Debug, Clone)]
pub struct ValuePattern(Regex);

impl<'de> Deserialize<'de> for ValuePattern {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Regex::new(&text).map(Self).map_err(|error| {
            let reason = error.to_string();
            let reason = reason.lines().last().unwrap_or_default().trim_start_matches("error: ").to_owned();
            D::Error::custom(format!("`{text}` is not a regular expression: {reason}"))
        })
    }
}

impl JsonSchema for ValuePattern {
    fn schema_name() -> Cow<'static, str> {
        "ValuePattern".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "description": "a regular expression, found anywhere in the value; ^ and $ are the value's ends" })
    }
}

/// In a plan.
impl fmt::Display for VariableRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut parts = vec![if self.required { "required".to_owned() } else { "may be missing".to_owned() }];
        parts.extend(self.secret.then(|| "secret".into()));
        parts.extend(self.format.map(|format| format.noun().into()));
        parts.extend(self.one_of.as_ref().map(|values| format!("one of {}", values.join(", "))));
        parts.extend(self.pattern.as_ref().map(|pattern| format!("matches {}", pattern.0.as_str())));
        parts.extend(self.same_as.as_ref().map(|other| format!("the same as {}", other.value)));
        parts.extend(self.min_length.map(|length| format!("at least {length} characters")));
        parts.extend(self.max_length.map(|length| format!("at most {length} characters")));
        parts.extend(self.fixed.then(|| "fixed".into()));
        f.write_str(&parts.join(", "))
    }
}

impl VariableRule {
    /// What cannot be meant.
    pub(super) fn mistakes(&self, name: &Spanned<String>) -> Option<Diagnostic> {
        let wrong = |message: String, help: &str| Some(Diagnostic::error("env-check", name.span, message).help(help));
        if self.one_of.as_ref().is_some_and(Vec::is_empty) {
            return wrong(format!("`one_of` of `{}` is empty, so no value is allowed", name.value), "list what it may be");
        }
        if let (Some(min), Some(max)) = (self.min_length, self.max_length)
            && min > max
        {
            return wrong(format!("the `min_length` of `{}` is greater than its `max_length`", name.value), "no value fits");
        }
        None
    }

    /// What is wrong with a value, but for its change.
    pub(super) fn problems(&self, value: Option<&Value>) -> Vec<String> {
        let text = match value {
            None if self.required => return vec!["is not set".into()],
            None => return Vec::new(),
            Some(Value::NotText) => return vec!["is not UTF-8 text".into()],
            Some(Value::Text(text)) => text.expose(),
        };
        if text.is_empty() {
            return if self.required { vec!["is empty".into()] } else { Vec::new() };
        }
        self.problems_of(text)
    }

    fn problems_of(&self, text: &str) -> Vec<String> {
        const BLANKS: [char; 3] = [' ', '\t', '\r'];
        let mut problems = Vec::new();
        let mut wrong = |problem: String| problems.push(problem);
        if text.starts_with(BLANKS) || text.trim_end_matches('\n').ends_with(BLANKS) {
            wrong("begins or ends with a blank or a carriage return".into());
        }
        if self.format != Some(VariableFormat::Json)
            && text.len() > 1
            && ['"', '\''].iter().any(|quote| text.starts_with(*quote) && text.ends_with(*quote))
        {
            wrong("stands in quotes, which are part of its value".into());
        }
        if let Some(format) = self.format.filter(|format| !format.fits(text)) {
            wrong(format!("is not {}", format.noun()));
        }
        if let Some(values) = self.one_of.as_ref().filter(|values| !values.iter().any(|value| value == text)) {
            wrong(format!("is none of {}", values.join(", ")));
        }
        if let Some(pattern) = self.pattern.as_ref().filter(|pattern| !pattern.0.is_match(text)) {
            wrong(format!("does not match {}", pattern.0.as_str()));
        }
        let length = text.chars().count();
        let told = if self.secret { String::new() } else { format!(" ({length})") };
        if let Some(min) = self.min_length.filter(|min| length < *min as usize) {
            wrong(format!("has fewer than {min} characters{told}"));
        }
        if let Some(max) = self.max_length.filter(|max| length > *max as usize) {
            wrong(format!("has more than {max} characters{told}"));
        }
        if self.secret && is_placeholder(text) {
            wrong("looks like a placeholder, not like a secret".into());
        }
        problems
    }
}

/// What a change since the baseline means.
pub(super) fn problem_of(change: Change, moment: &str, required: bool) -> Option<String> {
    match change {
        Change::None => None,
        Change::Other => Some(format!("has changed since {moment}")),
        Change::Appeared => Some(format!("was not set at {moment}, and is now")),
        Change::Vanished if required => Some(format!("was set at {moment}")),
        Change::Vanished => Some(format!("was set at {moment}, and is not now")),
        Change::Unknown => Some("is not in the baseline; record it anew".into()),
    }
}

impl VariableFormat {
    fn noun(self) -> &'static str {
        match self {
            Self::Url => "a URL",
            Self::Https => "an https:// URL",
            Self::Integer => "a whole number",
            Self::Port => "a port",
            Self::Boolean => "true or false",
            Self::Uuid => "a UUID",
            Self::Jwt => "a JSON web token",
            Self::Json => "JSON",
        }
    }

    fn fits(self, text: &str) -> bool {
        let url = || reqwest::Url::parse(text).ok().filter(|url| url.has_host() && !text.contains(char::is_whitespace));
        match self {
            Self::Url => url().is_some(),
            Self::Https => url().is_some_and(|url| url.scheme() == "https"),
            Self::Integer => text.parse::<i128>().is_ok(),
            Self::Port => text.parse::<u16>().is_ok_and(|port| port > 0) && !text.starts_with('+'),
            Self::Boolean => ["true", "false", "1", "0", "yes", "no", "on", "off"].iter().any(|word| text.eq_ignore_ascii_case(word)),
            Self::Uuid => is_uuid(text),
            Self::Jwt => is_token(text),
            Self::Json => serde_json::from_str::<serde::de::IgnoredAny>(text).is_ok(),
        }
    }
}

fn is_uuid(text: &str) -> bool {
    let lengths: Vec<usize> = text.split('-').map(str::len).collect();
    lengths == [8, 4, 4, 4, 12] && text.chars().all(|letter| letter == '-' || letter.is_ascii_hexdigit())
}

/// Three parts in base64url, of which the first two are JSON objects.
fn is_token(text: &str) -> bool {
    use base64::Engine;
    let engine = base64::engine::general_purpose::URL_SAFE_NO_PAD;
    let parts: Vec<&str> = text.split('.').collect();
    let is_object = |part: &str| {
        engine.decode(part).is_ok_and(|bytes| serde_json::from_slice::<serde_json::Map<String, serde_json::Value>>(&bytes).is_ok())
    };
    parts.len() == 3 && is_object(parts[0]) && is_object(parts[1]) && !parts[2].is_empty() && engine.decode(parts[2]).is_ok()
}

/// What stands in guides and templates in a secret's place.
fn is_placeholder(text: &str) -> bool {
    let lower = text.to_ascii_lowercase();
    let one_letter = lower.chars().all(|letter| lower.starts_with(letter));
    let brackets = (lower.starts_with('<') && lower.ends_with('>')) || lower.starts_with("${") || lower.starts_with("{{");
    let begins = ["your_", "your-", "my_secret", "placeholder", "example"].iter().any(|word| lower.starts_with(word));
    let is = ["changeme", "change_me", "change-me", "todo", "secret", "password", "test", "none", "null", "undefined"];
    one_letter || brackets || begins || is.contains(&lower.as_str())
}
