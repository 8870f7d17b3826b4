//! What expressions see while a run goes on: parameters, connections, items, and the
//! results of the steps so far, the same before and after a resume.

use super::Setup;
use super::dispatcher::Dispatcher;
use super::scheduler::Task;
use crate::journal::{EventKind, Outcome, RunState, StepState};
use crate::outcome::StepResult;
use crate::plan::{PlannedStep, Scope};
use crate::target::Identity;
use crate::template::{StepResults, Values};
use minijinja::Value as TemplateValue;
use minijinja::value::Serde;
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashMap};

impl Dispatcher<'_> {
    pub(super) fn values_for(&self, step: &PlannedStep, task: Task) -> Values {
        let values = &self.values[step.scope];
        let Some(instance) = task.instance else { return values.clone() };
        let items = self.state.progress(&step.id).and_then(|progress| progress.items.as_ref());
        let item =
            items.and_then(|items| items.get(instance)).cloned().or_else(|| self.pending_item(&step.id, instance)).unwrap_or(Value::Null);
        values.with_json(item_name(step), &item).with("index", instance)
    }

    pub(super) fn pending_item(&self, id: &str, instance: usize) -> Option<Value> {
        self.pending.iter().find_map(|kind| match kind {
            EventKind::StepExpanded { step, items } if step == id => items.get(instance).cloned(),
            _ => None,
        })
    }

    /// Makes the results of an earlier process's steps readable.
    pub(super) fn remember_results(&mut self) {
        let plan = self.setup.plan.clone();
        for step in &plan.steps {
            if let StepState::Finished(outcome) = self.state.state_of(&step.id).clone() {
                self.remember(step, &outcome);
            }
        }
    }

    pub(super) fn remember(&self, step: &PlannedStep, outcome: &Outcome) {
        let nothing = StepResult::default();
        let result = match outcome {
            Outcome::Done { result } | Outcome::AlreadyDone { result } | Outcome::Warned { result, .. } => result,
            Outcome::Failed { error } => error.result.as_deref().unwrap_or(&nothing),
            Outcome::Skipped { .. } => &nothing,
        };
        self.results[step.scope].insert(step.local_id(), outcome.word(), result);
    }

    /// Closing steps may ask how a step stands that was never reached.
    pub(super) fn name_unstarted(&self) {
        for step in &self.setup.plan.steps {
            if self.state.state_of(&step.id) == &StepState::Pending {
                self.results[step.scope].insert(step.local_id(), "pending", &StepResult::default());
            }
        }
    }
}

/// Where the results of each playbook's steps are kept: those of an included one are
/// read as `steps.INCLUDING.STEP`.
pub(super) fn nested_results(scopes: &[Scope]) -> Vec<StepResults> {
    let results: Vec<StepResults> = scopes.iter().map(|_| StepResults::default()).collect();
    let by_prefix: HashMap<&str, &StepResults> = scopes.iter().map(|scope| scope.prefix.as_str()).zip(&results).collect();
    for (scope, included) in scopes.iter().zip(&results) {
        if let Some((prefix, step)) = scope.includer()
            && let Some(outer) = by_prefix.get(prefix)
        {
            outer.nest(step, included);
        }
    }
    results
}

pub(super) fn scope_values(
    scope: &Scope,
    results: &StepResults,
    identities: &BTreeMap<String, Identity>,
    run: &str,
    state: &RunState,
    setup: &Setup<'_>,
) -> Values {
    let connections: BTreeMap<&str, Value> = scope
        .connections
        .iter()
        .filter_map(|(name, full)| identities.get(full).map(|identity| (name.as_str(), connection_value(identity))))
        .collect();
    let run = json!({
        "id": run,
        "started_at": state.started_at.to_string(),
        "playbook": setup.plan.name,
        "environment": setup.plan.environment,
        "user": state.header.operator.user,
        "host": state.header.operator.host,
    });
    scope.values.with("steps", results.value()).with("connections", TemplateValue::from(Serde(connections))).with_json("run", &run)
}

fn connection_value(identity: &Identity) -> Value {
    json!({
        "database": identity.database_name(),
        "user": identity.user,
        "host": identity.host,
        "version": identity.version,
        "major_version": identity.major_version,
        "in_recovery": identity.in_recovery,
        "environment": identity.environment,
    })
}

pub(super) fn item_name(step: &PlannedStep) -> &str {
    step.step.settings.item_name.as_ref().map_or("item", |name| name.value.as_str())
}
