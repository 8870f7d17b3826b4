//! What the databases say of a plan's steps before they run: each is asked, reading only.
//!
//! A step that cannot be previewed, e.g. because an earlier one makes its table, says so;
//! that is no error of the plan.

use std::collections::HashMap;
use std::time::Duration;

use super::{Plan, PlannedStep};
use crate::action::{Look, Perform};
use crate::target::{SessionSettings, Targets};

/// Nobody may have to wait for a preview.
const LOCK_TIMEOUT: Duration = Duration::from_millis(500);
/// Counting may take a while; it holds nobody up.
const STATEMENT_TIMEOUT: Duration = Duration::from_secs(60);

/// Lines by the step's full id; steps with nothing to say are left out.
pub type Previews = HashMap<String, Vec<String>>;

/// Asks for every step that is not left out.
pub async fn preview(plan: &Plan, targets: &Targets) -> Previews {
    let mut previews = Previews::new();
    for step in plan.steps.iter().filter(|step| step.excluded.is_none()) {
        let lines = preview_step(plan, step, targets).await;
        if !lines.is_empty() {
            previews.insert(step.id.clone(), lines);
        }
    }
    previews
}

async fn preview_step(plan: &Plan, step: &PlannedStep, targets: &Targets) -> Vec<String> {
    let scope = &plan.scopes[step.scope];
    let session = SessionSettings {
        statement_timeout: Some(STATEMENT_TIMEOUT),
        lock_timeout: Some(LOCK_TIMEOUT),
        idle_in_transaction_timeout: Some(STATEMENT_TIMEOUT),
    };
    let look = Look {
        step: &step.id,
        values: &scope.values,
        targets,
        connections: &scope.connections,
        default_connection: scope.default_connection.as_deref(),
        session: &session,
    };
    match step.step.action.value.preview(&look).await {
        Ok(lines) => lines,
        Err(error) => vec![format!("cannot be told beforehand: {}", error.message)],
    }
}
