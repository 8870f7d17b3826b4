//! `assert`: a condition over what earlier steps found.

use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::Value;

use super::{Class, Description, Inspection, Perform, StepContext};
use crate::outcome::{ErrorKind, StepError, StepResult};
use crate::source::Spanned;
use crate::template::{Expression, Message, Values, plain};

/// Stops the run unless a condition holds.
///
/// ```yaml
/// assert: {that: "steps.after.value >= steps.before.value", message: Rows were lost}
/// ```
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Assert {
    /// What must be true.
    pub that: Expression,
    /// What to say when it is not.
    #[serde(default)]
    pub message: Option<Message>,
}

impl Perform for Assert {
    fn class(&self) -> Class {
        Class::Read
    }

    fn inspect<'a>(&'a self, inspection: &mut Inspection<'a>) {
        inspection.expression(&self.that);
        if let Some(message) = &self.message {
            inspection.message(message);
        }
    }

    fn describe(&self, _values: &Values) -> Description {
        Description { summary: self.that.text.value.clone(), details: Vec::new() }
    }

    async fn run(&self, context: &StepContext) -> Result<StepResult, StepError> {
        let holds = context.values.test(&self.that)?;
        let result = StepResult { summary: self.that.text.value.clone(), value: Some(Value::Bool(holds)), ..StepResult::default() };
        if holds {
            return Ok(result);
        }
        let message = match &self.message {
            Some(message) => context.values.message(message)?,
            None => format!("`{}` does not hold", self.that.text.value),
        };
        let mut error = StepError::new(ErrorKind::Expectation, message).fact("condition", &self.that.text.value).with_result(result);
        for (name, value) in self.observed(&context.values) {
            error = error.fact(name, value);
        }
        Err(error)
    }
}

impl Assert {
    /// What the condition's names stand for.
    fn observed(&self, values: &Values) -> Vec<(String, String)> {
        self.that
            .references
            .iter()
            .filter_map(|reference| {
                let name = reference.path.join(".");
                let expression = Expression::parse(Spanned::new(name.clone(), self.that.text.span)).ok()?;
                Some((name, plain(&values.evaluate(&expression).ok()?)))
            })
            .collect()
    }
}
