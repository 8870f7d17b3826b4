//! What a plan needs, looked for before the day it is needed: connections, programs, files,
//! servers. Everything is looked at, nothing is changed, and what cannot be known before a
//! run is named.

mod connection;
mod place;
mod program;
mod step;

use std::path::PathBuf;
use std::sync::Arc;

use jiff::Timestamp;
use serde::Serialize;
use serde_json::json;

use self::connection::Servers;
use super::{Plan, Scope};
use crate::action::{ProcessEnvironment, Prospect};
use crate::outcome::StepError;
use crate::target::Targets;
use crate::template::Values;

/// What became of a check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// As it must be.
    Ok,
    /// Worth a look.
    Warning,
    /// A run would fail.
    Problem,
    /// It cannot be known before a run.
    NotCheckable,
}

/// One check.
#[derive(Debug, Clone, Serialize)]
pub struct Finding {
    /// What became of it.
    pub verdict: Verdict,
    /// What was looked at.
    pub subject: String,
    /// What was found.
    pub text: String,
    /// Details, and what to do.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub advice: Vec<String>,
}

impl Finding {
    /// A check that found this.
    pub fn new(verdict: Verdict, subject: impl Into<String>, text: impl Into<String>) -> Self {
        Self { verdict, subject: subject.into(), text: text.into(), advice: Vec::new() }
    }

    /// Says what to do.
    pub fn advise(mut self, advice: impl Into<String>) -> Self {
        self.advice.push(advice.into());
        self
    }

    /// A problem in a step's own words.
    fn problem(subject: impl Into<String>, error: StepError) -> Self {
        let mut finding = Self::new(Verdict::Problem, subject, error.message);
        finding.advice.extend(error.facts.into_iter().map(|(label, text)| format!("{label}: {text}")));
        finding.advice.extend(error.hints);
        finding
    }
}

/// Checks that belong together.
#[derive(Debug, Clone, Serialize)]
pub struct Group {
    /// `connection main`, `step backup` …
    pub title: String,
    /// In the order they were made.
    pub checks: Vec<Finding>,
}

/// What a plan is to be run in.
#[derive(Debug, Clone)]
pub struct Surroundings {
    /// The variables runbook was started with.
    pub environment: Arc<ProcessEnvironment>,
    /// Where the command is run.
    pub directory: PathBuf,
    /// The journal's file.
    pub journal: PathBuf,
    /// Who runs it.
    pub user: String,
    /// On which machine.
    pub host: String,
    /// When.
    pub now: Timestamp,
}

/// Makes every check the plan gives rise to.
pub async fn examine(plan: &Plan, targets: &Targets, surroundings: &Surroundings) -> Vec<Group> {
    let mut groups = Vec::new();
    let mut servers = Servers::default();
    for spec in &plan.connections {
        let checks = connection::examine(plan, spec, targets, &mut servers).await;
        groups.push(Group { title: format!("connection {}", spec.name), checks });
    }
    groups.extend(step::examine(plan, &servers, surroundings).await);
    groups.push(Group { title: "journal".into(), checks: vec![place::journal(&surroundings.journal)] });
    for group in &mut groups {
        redact(plan, group);
    }
    groups
}

/// The values a step would see, as if a run began now.
fn values(plan: &Plan, scope: &Scope, surroundings: &Surroundings) -> Values {
    let id = format!("{}-0000", surroundings.now.strftime("%Y%m%d-%H%M%S"));
    let run = json!({
        "id": id,
        "started_at": surroundings.now.to_string(),
        "playbook": plan.name,
        "environment": plan.environment,
        "user": surroundings.user,
        "host": surroundings.host,
    });
    scope.values.with_json("run", &run)
}

fn prospect<'a>(plan: &'a Plan, scope: &'a Scope, values: &'a Values, surroundings: &Surroundings) -> Prospect<'a> {
    Prospect {
        values,
        connections: &scope.connections,
        default_connection: scope.default_connection.as_deref(),
        channels: &scope.channels,
        environment: surroundings.environment.clone(),
        directory: surroundings.directory.clone(),
        redactor: &plan.redactor,
    }
}

/// Addresses and names may hold a secret.
fn redact(plan: &Plan, group: &mut Group) {
    let clean = |text: &mut String| *text = plan.redactor.text(text).into_owned();
    for finding in &mut group.checks {
        clean(&mut finding.subject);
        clean(&mut finding.text);
        finding.advice.iter_mut().for_each(clean);
    }
}
