//! Before the first step: the right targets, the lock, an honest resume, and the first
//! event.

use std::collections::BTreeMap;
use std::path::Path;

use super::dispatcher::Dispatcher;
use super::lock::{Claim, Locks, claim as claim_locks};
use super::{EngineError, Setup, Start};
use crate::journal::event::FORMAT;
use crate::journal::{EventKind, Operator, Outcome, RunHeader, RunState, StepState, base_id};
use crate::plan::Plan;
use crate::target::{Identity, Targets};

/// Makes sure of every target's identity; gives a name for each that must not change
/// between start and resume.
pub async fn check_targets(plan: &Plan, targets: &Targets) -> Result<BTreeMap<String, Identity>, EngineError> {
    let mut identities = BTreeMap::new();
    for spec in &plan.connections {
        identities.insert(spec.name.clone(), targets.identity(&spec.name).await?);
    }
    Ok(identities)
}

/// Steps of a run that the plan no longer has as they were, among those that are over
/// or in doubt.
pub fn edited_steps(plan: &Plan, state: &RunState) -> Vec<String> {
    state
        .header
        .steps
        .iter()
        .filter(|record| state.steps.iter().any(|(id, progress)| base_id(id) == record.id && is_settled_or_in_doubt(&progress.state)))
        .filter(|record| plan.steps.iter().all(|step| step.id != record.id || step.digest != record.digest))
        .map(|record| record.id.clone())
        .collect()
}

/// A failed step runs again, so mending it is what editing is for.
fn is_settled_or_in_doubt(state: &StepState) -> bool {
    !matches!(state, StepState::Pending | StepState::Retrying | StepState::Finished(Outcome::Failed { .. }))
}

/// Takes the locks and looks at every target; nothing is recorded yet.
pub(super) async fn claim(
    plan: &Plan,
    targets: &Targets,
    operator: &Operator,
    journal_directory: &Path,
    start: &Start,
) -> Result<(String, Locks, BTreeMap<String, Identity>), EngineError> {
    let (run, resuming) = match start {
        Start::New(run) => (run.clone(), false),
        Start::Resume { run, .. } => (run.clone(), true),
    };
    let claim = Claim { run: &run, lock: &plan.lock, operator, journal_directory, targets, connections: one_per_database(plan), resuming };
    let locks = claim_locks(&claim).await?;
    let identities = check_targets(plan, targets).await?;
    Ok((run, locks, identities))
}

/// Two connections to one database, perhaps as different roles, need one lock: a
/// second one would wait for the first.
fn one_per_database(plan: &Plan) -> Vec<String> {
    let mut seen = Vec::new();
    let mut names = Vec::new();
    for spec in &plan.connections {
        if !seen.contains(&spec.url.expose()) {
            seen.push(spec.url.expose());
            names.push(spec.name.clone());
        }
    }
    names
}

/// Records that the run begins or goes on.
pub(super) async fn begin<'a>(
    mut setup: Setup<'a>,
    start: Start,
    identities: BTreeMap<String, Identity>,
) -> Result<Dispatcher<'a>, EngineError> {
    let targets: BTreeMap<String, String> = identities.iter().map(|(name, identity)| (name.clone(), fingerprint(identity))).collect();
    let redactor = setup.plan.redactor.clone();
    match start {
        Start::New(run) => {
            let header = header(&setup, targets);
            let state = setup.journal.begin(&run, EventKind::RunStarted(Box::new(header)), &redactor).await?;
            Ok(Dispatcher::new(setup, run, state, identities))
        }
        Start::Resume { run, state: _, accept_edit } => {
            // Read again now that the run's lock is ours: another process may have gone on with it.
            let mut state = setup.journal.load(&run).await?.ok_or_else(|| refused(format!("there is no run {run}"), vec![]))?;
            check_resumable(&setup.plan, &state, accept_edit)?;
            check_same_targets(&state, &targets)?;
            let digest = (setup.plan.digest != state.header.digest).then(|| setup.plan.digest.clone());
            let resumed = EventKind::RunResumed { operator: setup.operator.clone(), digest };
            setup.journal.append(&run, &mut state, vec![resumed], &redactor).await?;
            Ok(Dispatcher::new(setup, run, state, identities))
        }
    }
}

fn header(setup: &Setup<'_>, targets: BTreeMap<String, String>) -> RunHeader {
    let plan = &setup.plan;
    RunHeader {
        format: FORMAT,
        engine: env!("CARGO_PKG_VERSION").to_owned(),
        playbook: plan.name.clone(),
        file: std::path::absolute(&plan.file).unwrap_or_else(|_| plan.file.clone()).display().to_string(),
        directory: setup.directory.display().to_string(),
        digest: plan.digest.clone(),
        params: plan.params.clone(),
        selection: plan.selection.clone(),
        steps: plan.records(),
        targets,
        operator: setup.operator.clone(),
        assume_yes: setup.assume_yes,
    }
}

fn check_resumable(plan: &Plan, state: &RunState, accept_edit: bool) -> Result<(), EngineError> {
    let edited = edited_steps(plan, state);
    if !edited.is_empty() {
        return Err(refused(
            format!(
                "the playbook was edited: {} changed after {} begun",
                edited.join(", "),
                if edited.len() == 1 { "it had" } else { "they had" }
            ),
            vec!["put these steps back as they were and resume, or start a new run".into()],
        ));
    }
    if plan.digest != state.header.digest && !accept_edit {
        return Err(refused(
            "the playbook was edited since the run began; the steps that are done are unchanged".into(),
            vec!["resume with --accept-edit to go on with the edited playbook".into()],
        ));
    }
    Ok(())
}

fn check_same_targets(state: &RunState, now: &BTreeMap<String, String>) -> Result<(), EngineError> {
    for (name, before) in &state.header.targets {
        if let Some(now) = now.get(name).filter(|now| *now != before) {
            return Err(refused(
                format!("connection `{name}` points at another database now: it was {before}, it is {now}"),
                vec!["set the connection's address to what it was when the run began".into()],
            ));
        }
    }
    Ok(())
}

/// The cluster and the database in it; a host name may change, these may not.
fn fingerprint(identity: &Identity) -> String {
    match &identity.system_identifier {
        Some(system) => format!("{} (system {system})", identity.database_name()),
        None => identity.database_name(),
    }
}

pub(super) fn refused(message: String, hints: Vec<String>) -> EngineError {
    EngineError::Refused { message, hints }
}
