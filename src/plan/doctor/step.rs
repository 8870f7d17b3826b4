//! What each step needs: first collected from all of them, for one may read what another
//! writes, then looked for.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use super::connection::Servers;
use super::{Finding, Group, Surroundings, Verdict, place, program, prospect, values};
use crate::action::{Class, Need, Perform};
use crate::plan::{Plan, PlannedStep};
use crate::playbook::Undo;
use crate::target::Kind;

/// A group for each step that needs something besides its connections.
pub(super) async fn examine(plan: &Plan, servers: &Servers, surroundings: &Surroundings) -> Vec<Group> {
    let mut needed: Vec<(&PlannedStep, Vec<Need>)> = Vec::new();
    for step in plan.steps.iter().filter(|step| step.excluded.is_none()) {
        needed.push((step, needs_of(plan, step, surroundings).await));
    }
    let mut earlier = Earlier { written: written(&needed), may_write: None };
    let mut groups = Vec::new();
    for (step, needs) in needed {
        let mut checks = Vec::new();
        for need in needs {
            checks.extend(look_for(need, &earlier, servers, surroundings).await);
        }
        if step.class() == Class::NotPreviewable {
            earlier.may_write = Some(step.id.clone());
        }
        // An undo often needs what the step itself needs.
        checks.dedup_by(|a, b| (&a.subject, &a.text) == (&b.subject, &b.text));
        if !checks.is_empty() {
            groups.push(Group { title: format!("step {}", step.id), checks });
        }
    }
    groups
}

/// Of its action, of the check that tells whether it is done, and of its undo.
async fn needs_of(plan: &Plan, step: &PlannedStep, surroundings: &Surroundings) -> Vec<Need> {
    let scope = &plan.scopes[step.scope];
    let values = values(plan, scope, surroundings);
    let prospect = prospect(plan, scope, &values, surroundings);
    let mut found = step.step.action.value.needs(&prospect).await;
    if let Some(check) = &step.step.settings.done_when {
        found.extend(check.needs(&prospect).await);
    }
    if let Some(Undo::Action(undo)) = &step.step.settings.undo {
        found.extend(undo.needs(&prospect).await);
    }
    found
}

/// Which step writes which file.
fn written(needed: &[(&PlannedStep, Vec<Need>)]) -> HashMap<PathBuf, String> {
    let mut written = HashMap::new();
    for (step, needs) in needed {
        for need in needs {
            if let Need::Writable { path, .. } = need {
                written.entry(place::absolute(path)).or_insert_with(|| step.id.clone());
            }
        }
    }
    written
}

/// What steps before this one write.
struct Earlier {
    written: HashMap<PathBuf, String>,
    /// The last step that may do anything.
    may_write: Option<String>,
}

async fn look_for(need: Need, earlier: &Earlier, servers: &Servers, surroundings: &Surroundings) -> Vec<Finding> {
    let finding = match need {
        Need::Program { name, directory, path, runs_script } => {
            program::program(&name, &directory, path.as_deref(), runs_script, surroundings)
        }
        // A copy of an SQLite database is proven without any program.
        Need::ClientProgram { connection, .. } if servers.get(&connection).is_some_and(|server| server.kind == Kind::Sqlite) => {
            return Vec::new();
        }
        Need::ClientProgram { name, connection } => program::client_program(name, servers.get(&connection), surroundings).await,
        Need::Directory(path) => place::directory(&path),
        Need::Readable { what, path, of_run } => readable(what, &path, of_run, earlier),
        Need::Writable { what, path, replaces, as_large_as } => {
            let size = as_large_as.and_then(|connection| servers.get(&connection)?.size);
            place::writable(what, &path, replaces, size)
        }
        Need::Endpoint { what, url } => program::endpoint(&what, url.expose(), surroundings).await,
        Need::Seen { what, outcome: Err(error) } => Finding::problem(what, *error),
        Need::Seen { what, outcome: Ok(result) } => {
            let warnings = result.findings.iter().map(|finding| Finding::new(Verdict::Warning, what, finding.clone()));
            return std::iter::once(Finding::new(Verdict::Ok, what, result.summary.clone())).chain(warnings).collect();
        }
        Need::Unknown { what, reason } => Finding::new(Verdict::NotCheckable, what, reason),
    };
    vec![finding]
}

/// A file that is not there may still come from an earlier step.
fn readable(what: &str, path: &Path, of_run: bool, earlier: &Earlier) -> Finding {
    if path.exists() {
        return place::readable(what, path);
    }
    let shown = path.display();
    if let Some(step) = earlier.written.get(&place::absolute(path)) {
        return Finding::new(Verdict::NotCheckable, what, format!("{shown} is written by `{step}`"));
    }
    match &earlier.may_write {
        Some(step) if of_run => {
            Finding::new(Verdict::NotCheckable, what, format!("{shown} has its name from the run; `{step}` may write it"))
        }
        Some(step) => Finding::new(Verdict::Warning, what, format!("{shown} is not there yet"))
            .advise(format!("it must come from a step before this one, such as `{step}`")),
        None => place::readable(what, path),
    }
}
