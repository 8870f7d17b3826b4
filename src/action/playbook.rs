//! `playbook`: another playbook's steps, in place.
//!
//! The plan replaces the step by the steps of the file, named `nested/step`, so this
//! action is never run itself.

use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::Value;

use super::{Class, Description, Inspection, Perform, StepContext};
use crate::outcome::{ErrorKind, StepError, StepResult};
use crate::source::Spanned;
use crate::template::{Setting, Values};

/// Runs another playbook's steps here, each shown as `this-step/its-step`.
///
/// Later steps read a result of them as `steps.THIS_STEP.ITS_STEP.value`.
///
/// ```yaml
/// playbook: {file: backup.yaml, params: {dir: backups}}
/// ```
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SubPlaybook {
    /// The file, relative to this playbook's directory.
    pub file: Spanned<String>,
    /// Its parameters; they may read this playbook's parameters, but no step's result.
    #[serde(default)]
    pub params: indexmap::IndexMap<Spanned<String>, Setting<Value>>,
}

impl Perform for SubPlaybook {
    fn class(&self) -> Class {
        Class::Read
    }

    fn inspect<'a>(&'a self, inspection: &mut Inspection<'a>) {
        for value in self.params.values() {
            inspection.setting(value);
        }
    }

    fn describe(&self, _values: &Values) -> Description {
        Description { summary: format!("the steps of {}", self.file.value), details: Vec::new() }
    }

    async fn run(&self, _context: &StepContext) -> Result<StepResult, StepError> {
        Err(StepError::new(ErrorKind::Io, "a sub-playbook is replaced by its steps before the run"))
    }
}
