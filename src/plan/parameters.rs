//! Typed inputs: what was given on the command line or by an including playbook,
//! checked against the declarations, with defaults filled in.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde_json::{Map, Value};

use crate::diagnostic::{Diagnostic, did_you_mean};
use crate::journal::Selection;
use crate::playbook::{Named, Parameter, ParameterType};
use crate::source::{Span, Spanned};
use crate::target::Variables;
use crate::template::{Setting, Values};
use crate::units::Duration;

/// Everything a plan depends on besides its files.
#[derive(Debug, Clone, Default)]
pub struct Inputs {
    /// Parameters as given; text from the command line, typed values from files.
    pub params: Map<String, Value>,
    /// The process's environment.
    pub variables: Variables,
    /// Whether secrets and connection URLs must have their values. A plan that is only
    /// looked at does without them.
    pub resolve: bool,
    /// `--only`, `--skip`, `--from`.
    pub selection: Selection,
    /// Where the command was run; parameters of type `path` start there.
    pub directory: PathBuf,
}

/// Splits `name=value`.
pub fn parse_assignment(text: &str) -> Result<(String, Value), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.trim().is_empty() => Ok((name.trim().to_owned(), Value::String(value.to_owned()))),
        _ => Err(format!("`{text}` is not of the form name=value")),
    }
}

/// Checks and completes the given parameters.
pub(super) fn resolve(
    declared: &Named<Parameter>,
    given: &Map<String, Value>,
    given_at: Span,
    inputs: &Inputs,
    diagnostics: &mut Vec<Diagnostic>,
) -> Map<String, Value> {
    refuse_unknown(declared, given, given_at, diagnostics);
    let mut resolved = Map::new();
    for (name, parameter) in declared {
        match value_of(name, parameter, given, inputs) {
            Ok(value) => {
                resolved.insert(name.value.clone(), value);
            }
            Err(problem) => diagnostics.push(problem),
        }
    }
    resolved
}

fn refuse_unknown(declared: &Named<Parameter>, given: &Map<String, Value>, at: Span, diagnostics: &mut Vec<Diagnostic>) {
    for name in given.keys().filter(|name| !declared.contains_key(name.as_str())) {
        let names: Vec<&str> = declared.keys().map(|name| name.value.as_str()).collect();
        let mut problem = Diagnostic::error("unknown-parameter", at, format!("the playbook declares no parameter `{name}`"));
        if let Some(similar) = did_you_mean(name, names.iter().copied()) {
            problem = problem.help(format!("did you mean `{similar}`?"));
        }
        if names.is_empty() {
            problem = problem.help("it has no parameters at all");
        } else {
            problem = problem.help(format!("declared: {}", names.join(", ")));
        }
        diagnostics.push(problem);
    }
}

fn value_of(name: &Spanned<String>, parameter: &Parameter, given: &Map<String, Value>, inputs: &Inputs) -> Result<Value, Diagnostic> {
    let wrong = |reason: String| {
        let mut problem = Diagnostic::error("parameter", name.span, format!("parameter `{}`: {reason}", name.value));
        if let Some(description) = &parameter.description {
            problem = problem.help(format!("`{}` is: {description}", name.value));
        }
        problem
    };
    if let Some(value) = given.get(&name.value) {
        return typed(parameter, value).map_err(wrong);
    }
    match &parameter.default {
        Some(default) => {
            let value = default_value(default, &inputs.variables).map_err(&wrong)?;
            typed(parameter, &value).map_err(wrong)
        }
        None if parameter.required => Err(wrong("a value is required".into()).help(format!("give it with --param {}=…", name.value))),
        None => Ok(Value::Null),
    }
}

fn default_value(default: &Setting<Value>, variables: &Variables) -> Result<Value, String> {
    let values = Values::new().with("env", minijinja::Value::from_object(Environment(variables.clone())));
    match default {
        Setting::Literal(value) => Ok(value.clone()),
        Setting::Template(template) => values.value(template).map_err(|error| error.reason),
    }
}

/// `env` in expressions: a variable that is not set has no value, and strict
/// evaluation says so.
#[derive(Debug)]
pub(super) struct Environment(pub Variables);

impl minijinja::value::Object for Environment {
    fn get_value(self: &std::sync::Arc<Self>, key: &minijinja::Value) -> Option<minijinja::Value> {
        self.0.get(key.as_str()?).map(minijinja::Value::from)
    }

    fn enumerate(self: &std::sync::Arc<Self>) -> minijinja::value::Enumerator {
        minijinja::value::Enumerator::NonEnumerable
    }
}

fn typed(parameter: &Parameter, value: &Value) -> Result<Value, String> {
    let text = match value {
        Value::String(text) => Some(text.as_str()),
        _ => None,
    };
    let shown = crate::template::plain(value);
    let typed = match parameter.kind {
        ParameterType::String | ParameterType::Path => match value {
            Value::String(_) => value.clone(),
            Value::Number(_) | Value::Bool(_) => Value::String(shown.clone()),
            _ => return Err(format!("`{shown}` is not text")),
        },
        ParameterType::Integer => {
            let number = value.as_i64().or_else(|| text.and_then(|text| text.trim().parse().ok()));
            Value::from(number.ok_or_else(|| format!("`{shown}` is not a whole number"))?)
        }
        ParameterType::Number => match (value, text.and_then(|text| text.trim().parse::<f64>().ok())) {
            (Value::Number(_), _) => value.clone(),
            (_, Some(number)) if number.is_finite() => Value::from(number),
            _ => return Err(format!("`{shown}` is not a number")),
        },
        ParameterType::Boolean => match (value, text) {
            (Value::Bool(_), _) => value.clone(),
            (_, Some("true" | "yes")) => Value::Bool(true),
            (_, Some("false" | "no")) => Value::Bool(false),
            _ => return Err(format!("`{shown}` is neither true nor false")),
        },
        ParameterType::Duration => {
            shown.parse::<Duration>()?;
            Value::String(shown.clone())
        }
        ParameterType::Enum => {
            if !parameter.values.contains(&shown) {
                return Err(format!("`{shown}` is not one of {}", parameter.values.join(", ")));
            }
            Value::String(shown.clone())
        }
        ParameterType::List => match (value, text) {
            (Value::Array(_), _) => value.clone(),
            (_, Some("")) => Value::Array(Vec::new()),
            (_, Some(text)) => text.split(',').map(|item| Value::String(item.trim().to_owned())).collect(),
            _ => return Err(format!("`{shown}` is not a list")),
        },
    };
    within_limits(parameter, &typed)?;
    Ok(typed)
}

fn within_limits(parameter: &Parameter, value: &Value) -> Result<(), String> {
    if let Some(number) = value.as_f64() {
        match (parameter.min, parameter.max) {
            (Some(min), _) if number < min => return Err(format!("{number} is less than {min}")),
            (_, Some(max)) if number > max => return Err(format!("{number} is more than {max}")),
            _ => {}
        }
    }
    if let (Some(pattern), Value::String(text)) = (&parameter.pattern, value) {
        let whole = regex::Regex::new(&format!("^(?:{pattern})$")).map_err(|error| format!("its pattern is not valid: {error}"))?;
        if !whole.is_match(text) {
            return Err(format!("`{text}` does not match {pattern}"));
        }
    }
    Ok(())
}

/// Secrets by name; empty text where they need not be resolved.
pub(super) fn secrets(
    declared: &Named<crate::playbook::SecretSource>,
    inputs: &Inputs,
    diagnostics: &mut Vec<Diagnostic>,
) -> BTreeMap<String, crate::secret::Secret> {
    use crate::playbook::SecretSource;
    let mut secrets = BTreeMap::new();
    for (name, source) in declared {
        let value = match source {
            SecretSource::Env(variable) => {
                inputs.variables.get(variable).map(ToOwned::to_owned).ok_or_else(|| format!("environment variable {variable} is not set"))
            }
            SecretSource::File(path) => std::fs::read_to_string(path)
                .map(|text| text.strip_suffix('\n').unwrap_or(&text).to_owned())
                .map_err(|error| format!("cannot read {path}: {error}")),
        };
        match value {
            Ok(value) => {
                secrets.insert(name.value.clone(), crate::secret::Secret::new(value));
            }
            Err(reason) if inputs.resolve => {
                diagnostics.push(Diagnostic::error("secret", name.span, format!("secret `{}` has no value: {reason}", name.value)))
            }
            Err(_) => {}
        }
    }
    secrets
}
