//! `confirm`: a person decides whether to go on.

use schemars::JsonSchema;
use serde::Deserialize;

use super::{Class, Description, Inspection, Perform, Prompt, PromptKind, StepContext};
use crate::outcome::{ErrorKind, StepError, StepResult};
use crate::template::{Message, Place, Template, Values};
use crate::units::Duration;
use crate::yaml::Either;

/// Asks a person and goes on only if they agree.
///
/// ```yaml
/// confirm: {message: "Deploy {{ params.version }}?", type_to_confirm: "{{ params.version }}", timeout: 15m}
/// ```
#[derive(Debug, Deserialize)]
#[serde(from = "Either<Message, Fields>")]
pub struct Confirm {
    /// What is to be decided.
    pub message: Message,
    /// Text that must be typed exactly.
    pub type_to_confirm: Option<Template>,
    /// Declined when nobody answers in this time.
    pub timeout: Option<Duration>,
    /// How many different people must agree.
    pub approvers: Option<u32>,
}

const DESCRIPTION: &str = "Asks a person and goes on only if they agree: a message, or the keys below. Without a \
terminal the run waits until `runbook approve` answers.\n\n```yaml\n\
confirm: {message: \"Deploy {{ params.version }}?\", type_to_confirm: \"{{ params.version }}\", timeout: 15m}\n```";

/// The long form.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Fields {
    /// What is to be decided.
    message: Message,
    /// Text that must be typed exactly; `--yes` never answers this.
    #[serde(default)]
    type_to_confirm: Option<Template>,
    /// Declined when nobody answers in this time.
    #[serde(default)]
    timeout: Option<Duration>,
    /// How many different people must agree; `--yes` never answers this.
    #[serde(default)]
    #[schemars(range(min = 1, max = 20))]
    approvers: Option<u32>,
}

impl From<Either<Message, Fields>> for Confirm {
    fn from(written: Either<Message, Fields>) -> Self {
        match written {
            Either::Scalar(message) => Self { message, type_to_confirm: None, timeout: None, approvers: None },
            Either::Fields(Fields { message, type_to_confirm, timeout, approvers }) => {
                Self { message, type_to_confirm, timeout, approvers }
            }
        }
    }
}

impl JsonSchema for Confirm {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Confirm".into()
    }
    fn json_schema(generator: &mut schemars::SchemaGenerator) -> schemars::Schema {
        let mut schema = Either::<Message, Fields>::json_schema(generator);
        schema.insert("description".into(), DESCRIPTION.into());
        schema
    }
}

impl Perform for Confirm {
    fn class(&self) -> Class {
        Class::Gate
    }

    fn inspect<'a>(&'a self, inspection: &mut Inspection<'a>) {
        inspection.message(&self.message);
        if let Some(expected) = &self.type_to_confirm {
            inspection.template(expected, Place::Message);
        }
    }

    fn describe(&self, values: &Values) -> Description {
        let message = values.message(&self.message).unwrap_or_else(|_| self.message.text.value.clone());
        let mut details: Vec<String> = message.lines().skip(1).map(ToOwned::to_owned).collect();
        if let Some(expected) = &self.type_to_confirm {
            let expected = values.text(expected).unwrap_or_else(|_| expected.text.value.clone());
            details.push(format!("goes on only when `{expected}` is typed"));
        }
        if let Some(approvers) = self.approvers {
            details.push(format!("{approvers} approvals by different people"));
        }
        if let Some(timeout) = self.timeout {
            details.push(format!("declined after {timeout} without an answer"));
        }
        Description { summary: message.lines().next().unwrap_or_default().to_owned(), details }
    }

    async fn run(&self, context: &StepContext) -> Result<StepResult, StepError> {
        let kind = match &self.type_to_confirm {
            Some(expected) => PromptKind::Type(context.values.text(expected)?),
            None => PromptKind::Confirm,
        };
        let prompt = Prompt {
            message: context.values.message(&self.message)?,
            facts: Vec::new(),
            kind,
            timeout_seconds: self.timeout.map(|timeout| timeout.0.as_secs().max(1)),
            approvers: self.approvers.unwrap_or(0),
        };
        let answer = context.ask(prompt).await?;
        if !answer.accepted {
            let reason = answer.text.map_or_else(String::new, |text| format!(": {text}"));
            return Err(StepError::new(ErrorKind::Declined, format!("declined by {}{reason}", answer.by)));
        }
        Ok(StepResult { summary: format!("confirmed by {}", answer.by), answer: Some("yes".into()), ..StepResult::default() })
    }
}
