//! What will happen: the only executable form of a playbook.
//!
//! A plan holds every step of a playbook and of what it includes, flattened, with its
//! dependencies, class, digest and the values known beforehand. Building it touches no
//! database; running it is the engine's business.

mod build;
pub mod doctor;
mod parameters;
mod preview;
pub mod render;
mod scope;
mod selection;

use std::path::PathBuf;
use std::sync::Arc;

use serde_json::{Map, Value};

pub use build::build;
pub use parameters::{Inputs, parse_assignment};
pub use preview::{Previews, preview};
pub use scope::Scope;

use crate::action::{Class, Description, Perform, Recovery};
use crate::journal::{Phase, Selection, StepRecord};
use crate::playbook::Step;
use crate::secret::Redactor;
use crate::source::Sources;
use crate::target::ConnectionSpec;
use crate::template::Expression;

/// An executable procedure.
#[derive(Debug)]
pub struct Plan {
    /// The playbook's name.
    pub name: String,
    /// What it is for.
    pub description: Option<String>,
    /// Its file, as given.
    pub file: PathBuf,
    /// SHA-256 over everything that decides what happens.
    pub digest: String,
    /// The environment it is for.
    pub environment: Option<String>,
    /// Parameters with defaults filled in; no secrets.
    pub params: Map<String, Value>,
    /// Every step: those of `steps` first, then the closing phases, each as written.
    pub steps: Vec<PlannedStep>,
    /// How many steps may run side by side.
    pub max_parallel: usize,
    /// How many bytes of one step's output are kept.
    pub max_output: u64,
    /// The databases, by the name used in [`Scope::connections`].
    pub connections: Vec<ConnectionSpec>,
    /// Name of the lock that keeps a second run away.
    pub lock: String,
    /// One per playbook file; the first is the main one.
    pub scopes: Vec<Scope>,
    /// Knows every declared secret.
    pub redactor: Redactor,
    /// Names of the declared secrets.
    pub secrets: Vec<String>,
    /// Environment variables that secrets are read from; children don't inherit them.
    pub secret_variables: Vec<String>,
    /// All files read.
    pub sources: Arc<Sources>,
    /// Which steps were asked for.
    pub selection: Selection,
}

/// One step, ready to be scheduled.
#[derive(Debug)]
pub struct PlannedStep {
    /// Full id: `nested/step`.
    pub id: String,
    /// Index of its playbook in [`Plan::scopes`].
    pub scope: usize,
    /// Which part of the playbook it belongs to.
    pub phase: Phase,
    /// What the author wrote.
    pub step: Arc<Step>,
    /// Steps that must be over before it starts.
    pub needs: Vec<Need>,
    /// Conditions of the steps that include its playbook, outermost first, with their scopes.
    pub outer_conditions: Vec<(usize, Expression)>,
    /// Steps whose results it reads.
    pub reads: Vec<usize>,
    /// What an interruption in its middle means.
    pub recovery: Recovery,
    /// SHA-256 over everything that decides what it does.
    pub digest: String,
    /// Left out by the selection, and why.
    pub excluded: Option<String>,
}

/// A dependency.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Need {
    /// Index of the step waited for.
    pub step: usize,
    /// Named by the author (a skip is passed on), not only the order of writing.
    pub named: bool,
}

impl PlannedStep {
    /// What it does to the world.
    pub fn class(&self) -> Class {
        self.step.action.value.class()
    }

    /// Whether its intent must be durable before it begins.
    pub fn needs_intent(&self) -> bool {
        !matches!(self.class(), Class::Read | Class::Gate)
    }

    /// The id within its own playbook, as expressions use it.
    pub fn local_id(&self) -> &str {
        &self.step.settings.id.value
    }

    /// Its name for people, or its id.
    pub fn title(&self) -> &str {
        self.step.settings.name.as_deref().unwrap_or(&self.id)
    }
}

impl Plan {
    /// Position of a step by its full id.
    pub fn position(&self, id: &str) -> Option<usize> {
        self.steps.iter().position(|step| step.id == id)
    }

    /// What a step would do, with the values known beforehand.
    pub fn describe(&self, step: &PlannedStep) -> Description {
        step.step.action.value.describe(&self.scopes[step.scope].values)
    }

    /// The steps as the journal keeps them.
    pub fn records(&self) -> Vec<StepRecord> {
        self.steps
            .iter()
            .map(|step| StepRecord {
                id: step.id.clone(),
                name: step.step.settings.name.clone(),
                digest: step.digest.clone(),
                phase: step.phase,
                class: step.class(),
                recovery: step.recovery,
                tolerated: step.step.settings.continue_on_error,
            })
            .collect()
    }
}
