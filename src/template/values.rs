//! What expressions can see: parameters, secrets, earlier steps, the run.

use std::collections::HashMap;
use std::sync::{Arc, RwLock};

use minijinja::value::{Object, Serde, Value};
use serde_json::Value as Json;

use crate::outcome::{Column, StepResult};

/// The named values of one playbook scope. Cheap to clone; [`Values::with`] adds to
/// a copy.
#[derive(Debug, Clone, Default)]
pub struct Values {
    globals: Arc<HashMap<String, Value>>,
}

impl Values {
    /// No values at all.
    pub fn new() -> Self {
        Self::default()
    }

    /// A copy that also knows `name`.
    pub fn with(&self, name: &str, value: impl Into<Value>) -> Self {
        let mut globals = (*self.globals).clone();
        globals.insert(name.to_owned(), value.into());
        Self { globals: Arc::new(globals) }
    }

    /// A copy that also knows a JSON value.
    pub fn with_json(&self, name: &str, value: &Json) -> Self {
        self.with(name, Value::from(Serde(value)))
    }

    pub(super) fn context(&self) -> Value {
        Value::from_dyn_object(self.globals.clone() as Arc<_>)
    }

    pub(super) fn get(&self, name: &str) -> Option<&Value> {
        self.globals.get(name)
    }
}

/// The results of the steps of one scope, growing as the run goes on; shared by all
/// [`Values`] that were given it.
#[derive(Debug, Clone, Default)]
pub struct StepResults(Arc<RwLock<HashMap<String, Value>>>);

impl StepResults {
    /// Records a step's end: `status` and everything in its result.
    pub fn insert(&self, step: &str, status: &str, result: &StepResult) {
        self.0.write().unwrap_or_else(std::sync::PoisonError::into_inner).insert(step.to_owned(), step_value(status, result));
    }

    /// Makes the results of an included playbook readable below the step that includes it.
    pub fn nest(&self, step: &str, included: &Self) {
        self.0.write().unwrap_or_else(std::sync::PoisonError::into_inner).insert(step.to_owned(), included.value());
    }

    /// As the value of `steps`.
    pub fn value(&self) -> Value {
        Value::from_object(self.clone())
    }
}

impl Object for StepResults {
    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        self.0.read().unwrap_or_else(std::sync::PoisonError::into_inner).get(key.as_str()?).cloned()
    }
}

/// A copy that also knows the fields of a step's own result, by their bare names.
pub fn with_result(values: &Values, result: &StepResult) -> Values {
    let mut globals = (*values.globals).clone();
    globals.extend(step_fields("done", result));
    Values { globals: Arc::new(globals) }
}

fn step_value(status: &str, result: &StepResult) -> Value {
    Value::from(step_fields(status, result))
}

fn step_fields(status: &str, result: &StepResult) -> HashMap<String, Value> {
    let mut fields: HashMap<String, Value> = HashMap::new();
    if let Ok(Json::Object(map)) = serde_json::to_value(result) {
        for (name, value) in map {
            fields.insert(name, Value::from(Serde(value)));
        }
    }
    fields.insert("status".into(), Value::from(status));
    let first_type = result.columns.first().map(|column| column.type_name.as_str());
    if let (Some(value), Some(type_name)) = (&result.value, first_type) {
        fields.insert("value".into(), cell(value, type_name));
    }
    // A shortened list must not pass for the whole one: `rows` is then undefined,
    // and strict evaluation says so.
    fields.remove("rows");
    if result.row_count == Some(result.rows.len() as u64) {
        fields.insert("rows".into(), result.rows.iter().map(|row| row_value(&result.columns, row)).collect());
    }
    fields
}

/// A row as a map from column name to value.
pub(super) fn row_value(columns: &[Column], row: &[Json]) -> Value {
    let cells = columns.iter().zip(row).map(|(column, value)| (column.name.clone(), cell(value, &column.type_name)));
    // Collected into a `Value` directly, it would become a list of pairs.
    Value::from(cells.collect::<HashMap<String, Value>>())
}

/// Numbers with many digits travel as text; expressions compare them as numbers.
pub(super) fn cell(value: &Json, type_name: &str) -> Value {
    match value {
        Json::String(digits) if matches!(type_name, "numeric" | "decimal" | "money") => digits
            .parse::<i128>()
            .map(Value::from)
            .or_else(|_| digits.parse::<f64>().map(Value::from))
            .unwrap_or_else(|_| Value::from(digits.as_str())),
        other => Value::from(Serde(other)),
    }
}
