//! `manual`: a person does or looks at something and says what they saw.

use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::Value;

use super::{Class, Description, Inspection, Perform, Prompt, PromptKind, StepContext};
use crate::outcome::{ErrorKind, StepError, StepResult};
use crate::template::{Message, Place, Template, Values};
use crate::units::Duration;

/// Has a person do something; the answer is what they observed, never just "checked".
///
/// ```yaml
/// manual: {instruction: Fence the old primary, ask: What do you see on port 5432?, expect: refused}
/// ```
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Manual {
    /// What to do.
    pub instruction: Message,
    /// What to report.
    pub ask: Message,
    /// The answer that lets the run go on, compared without regard to case and outer spaces;
    /// without it any non-empty answer does.
    #[serde(default)]
    pub expect: Option<Template>,
    /// Declined when nobody answers in this time.
    #[serde(default)]
    pub timeout: Option<Duration>,
}

impl Perform for Manual {
    fn class(&self) -> Class {
        Class::Gate
    }

    fn inspect<'a>(&'a self, inspection: &mut Inspection<'a>) {
        inspection.message(&self.instruction);
        inspection.message(&self.ask);
        if let Some(expected) = &self.expect {
            inspection.template(expected, Place::Message);
        }
    }

    fn describe(&self, values: &Values) -> Description {
        let text = |message: &Message| values.message(message).unwrap_or_else(|_| message.text.value.clone());
        let mut details = vec![format!("asks: {}", text(&self.ask))];
        if let Some(expected) = &self.expect {
            details.push(format!(
                "goes on only when the answer is `{}`",
                values.text(expected).unwrap_or_else(|_| expected.text.value.clone())
            ));
        }
        Description { summary: text(&self.instruction), details }
    }

    async fn run(&self, context: &StepContext) -> Result<StepResult, StepError> {
        let expected = self.expect.as_ref().map(|expected| context.values.text(expected)).transpose()?;
        let prompt = Prompt {
            message: context.values.message(&self.instruction)?,
            facts: Vec::new(),
            kind: PromptKind::Observe { question: context.values.message(&self.ask)? },
            timeout_seconds: self.timeout.map(|timeout| timeout.0.as_secs().max(1)),
            approvers: 0,
        };
        let answer = context.ask(prompt).await?;
        let observed = answer.text.unwrap_or_default().trim().to_owned();
        if !answer.accepted || observed.is_empty() {
            let reason = if observed.is_empty() { String::new() } else { format!(": {observed}") };
            return Err(StepError::new(ErrorKind::Declined, format!("declined by {}{reason}", answer.by)));
        }
        let result = StepResult {
            summary: format!("{observed} (seen by {})", answer.by),
            value: Some(Value::String(observed.clone())),
            answer: Some(observed.clone()),
            ..StepResult::default()
        };
        match expected {
            Some(expected) if expected.trim().to_lowercase() != observed.to_lowercase() => {
                Err(StepError::new(ErrorKind::Expectation, "what was observed is not what is expected")
                    .fact("expected", expected)
                    .fact("observed", observed)
                    .with_result(result))
            }
            _ => Ok(result),
        }
    }
}
