//! Evaluation: one strict environment for all contexts.

use std::sync::LazyLock;

use minijinja::value::{Value, ValueKind};
use minijinja::{AutoEscape, Environment, Error, ErrorKind, State, UndefinedBehavior};
use serde::de::DeserializeOwned;
use serde_json::Value as Json;

use super::parse::{Expression, Message, Part, Setting, Template};
use super::values::Values;

/// Enough for any honest expression, and an end to a runaway one.
const FUEL: u64 = 1_000_000;

/// Why an expression has no value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{expression}` has no value: {reason}")]
pub struct TemplateError {
    /// The expression's source.
    pub expression: String,
    /// What went wrong.
    pub reason: String,
}

impl Values {
    /// The value of an expression.
    pub fn evaluate(&self, expression: &Expression) -> Result<Json, TemplateError> {
        let failed = |reason: String| TemplateError { expression: expression.text.value.clone(), reason };
        let value = self.raw(expression)?;
        if value.is_undefined() {
            let name = expression.references.first().map_or(expression.text.value.clone(), |reference| reference.path.join("."));
            return Err(failed(match name.strip_prefix("env.") {
                Some(variable) => format!("environment variable {variable} is not set"),
                None => format!("{name} is not defined here"),
            }));
        }
        serde_json::to_value(&value).map_err(|error| failed(error.to_string()))
    }

    /// A decision. A comparison with NULL is an error unless the expression speaks of
    /// `none` itself, for an unknown value must never pass a check.
    pub fn test(&self, expression: &Expression) -> Result<bool, TemplateError> {
        let failed = |reason: String| TemplateError { expression: expression.text.value.clone(), reason };
        if !expression.handles_null
            && let Some(reference) = expression.references.iter().find(|reference| self.is_null(&reference.path))
        {
            return Err(failed(format!("{} is NULL; write `{0} is none` if that is meant", reference.path.join("."))));
        }
        let value = self.raw(expression)?;
        match value.kind() {
            ValueKind::Bool => Ok(value.is_true()),
            _ => Err(failed(format!("it gives {value}, not true or false"))),
        }
    }

    /// A template's value: of a single placeholder with its type, otherwise text.
    pub fn value(&self, template: &Template) -> Result<Json, TemplateError> {
        match template.parts.as_slice() {
            [Part::Placeholder(expression, _)] => self.evaluate(expression),
            _ => self.text(template).map(Json::String),
        }
    }

    /// A template as text, for an argument, a path or a URL.
    pub fn text(&self, template: &Template) -> Result<String, TemplateError> {
        let mut text = String::new();
        for part in &template.parts {
            match part {
                Part::Text(range) => text.push_str(&template.text[range.clone()]),
                Part::Placeholder(expression, _) => text.push_str(&plain(&self.evaluate(expression)?)),
            }
        }
        Ok(text)
    }

    /// A message for people, with control characters other than newline removed.
    pub fn message(&self, message: &Message) -> Result<String, TemplateError> {
        ENVIRONMENT
            .template_from_str(&message.text)
            .and_then(|template| template.render(self.context()))
            .map(|text| text.chars().filter(|c| *c == '\n' || !c.is_control()).collect())
            .map_err(|error| TemplateError { expression: message.text.value.clone(), reason: reason(&error) })
    }

    /// A setting's value.
    pub fn setting<T: DeserializeOwned + Clone>(&self, setting: &Setting<T>) -> Result<T, TemplateError> {
        match setting {
            Setting::Literal(value) => Ok(value.clone()),
            Setting::Template(template) => serde_json::from_value(self.value(template)?)
                .map_err(|error| TemplateError { expression: template.text.value.clone(), reason: error.to_string() }),
        }
    }

    fn raw(&self, expression: &Expression) -> Result<Value, TemplateError> {
        ENVIRONMENT
            .compile_expression(&expression.text)
            .and_then(|compiled| compiled.eval(self.context()))
            .map_err(|error| TemplateError { expression: expression.text.value.clone(), reason: reason(&error) })
    }

    fn is_null(&self, path: &[String]) -> bool {
        let mut value = self.get(&path[0]).cloned();
        for part in &path[1..] {
            value = value.and_then(|value| value.get_attr(part).ok());
        }
        value.is_some_and(|value| value.is_none())
    }
}

/// A JSON value as the text a person would write.
pub fn plain(value: &Json) -> String {
    match value {
        Json::Null => String::new(),
        Json::String(text) => text.clone(),
        other => other.to_string(),
    }
}

pub(super) fn reason(error: &Error) -> String {
    match error.kind() {
        ErrorKind::UndefinedError => error.detail().map_or_else(|| "it reads something that is not defined here".into(), ToOwned::to_owned),
        kind => error.detail().map_or_else(|| kind.to_string(), |detail| format!("{kind}: {detail}")),
    }
}

pub(super) static ENVIRONMENT: LazyLock<Environment<'static>> = LazyLock::new(|| {
    let mut environment = Environment::new();
    environment.set_undefined_behavior(UndefinedBehavior::Strict);
    environment.set_auto_escape_callback(|_| AutoEscape::None);
    environment.set_fuel(Some(FUEL));
    // minijinja prints booleans and none the way Python does.
    environment.set_formatter(|out: &mut minijinja::Output<'_>, _: &mut State, value: &Value| {
        match value.kind() {
            ValueKind::Undefined => return Err(Error::from(ErrorKind::UndefinedError)),
            ValueKind::None => {}
            ValueKind::Bool => write!(out, "{}", value.is_true())?,
            ValueKind::Map | ValueKind::Seq => write!(out, "{}", serde_json::to_string(value).unwrap_or_default())?,
            _ => write!(out, "{value}")?,
        }
        Ok(())
    });
    environment.add_filter("date", date);
    environment
});

/// `date('%Y%m%d_%H%M%S')`: a timestamp in strftime's notation, UTC.
fn date(value: &str, format: Option<&str>) -> Result<String, Error> {
    let invalid = |error: jiff::Error| Error::new(ErrorKind::InvalidOperation, error.to_string());
    let timestamp: jiff::Timestamp = value.parse().map_err(invalid)?;
    let zoned = timestamp.to_zoned(jiff::tz::TimeZone::UTC);
    jiff::fmt::strtime::format(format.unwrap_or("%Y-%m-%d %H:%M:%S"), &zoned).map_err(invalid)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::StepResults;
    use super::*;
    use crate::outcome::{Column, StepResult};
    use crate::source::{Span, Spanned};

    fn expression(text: &str) -> Expression {
        Expression::parse(Spanned::new(text.into(), Span::default())).expect("parses")
    }

    fn template(text: &str) -> Template {
        Template::parse(Spanned::new(text.into(), Span::default())).expect("parses")
    }

    fn values() -> Values {
        Values::new().with_json("params", &json!({"n": 3, "name": "x; rm -rf /", "nothing": null, "started": "2026-02-03T04:05:06Z"}))
    }

    #[test]
    fn a_single_placeholder_keeps_its_type() {
        assert_eq!(values().value(&template("{{ params.n }}")), Ok(json!(3)));
        assert_eq!(values().value(&template("n={{ params.n }}")), Ok(json!("n=3")));
        assert_eq!(values().text(&template("{{ params.started | date('%Y%m%d') }}")), Ok("20260203".into()));
    }

    #[test]
    fn null_never_passes_a_decision() {
        let nulls = Values::new().with_json("value", &json!(null));
        assert!(nulls.test(&expression("value < 5")).is_err());
        assert!(nulls.test(&expression("value == 0")).is_err());
        assert_eq!(nulls.test(&expression("value is none")), Ok(true));
        assert!(values().test(&expression("params.n")).is_err(), "a number is not a decision");
        assert!(values().test(&expression("params.nowhere == 1")).is_err());
    }

    #[test]
    fn shortened_rows_are_not_readable() {
        let results = StepResults::default();
        let columns = vec![Column { name: "n".into(), type_name: "int8".into() }];
        results.insert(
            "a",
            "done",
            &StepResult { columns: columns.clone(), rows: vec![vec![json!(1)]], row_count: Some(2), ..StepResult::default() },
        );
        let values = Values::new().with("steps", results.value());
        assert!(values.evaluate(&expression("steps.a.rows")).is_err());
        assert_eq!(values.evaluate(&expression("steps.a.row_count")), Ok(json!(2)));
        results.insert(
            "c",
            "done",
            &StepResult { columns: columns.clone(), rows: vec![vec![json!(7)]], row_count: Some(1), ..StepResult::default() },
        );
        assert_eq!(values.evaluate(&expression("steps.c.rows[0].n")), Ok(json!(7)));
        assert!(values.evaluate(&expression("steps.b.value")).is_err());
    }

    #[test]
    fn messages_print_json_style_and_no_escapes() {
        let message =
            Message::parse(Spanned::new("{{ true }} {{ params.nothing }}|{{ '\u{1b}[31m' }}".into(), Span::default())).expect("parses");
        assert_eq!(values().message(&message), Ok("true |[31m".into()));
    }
}
