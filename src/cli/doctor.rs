//! `runbook doctor`: looks for everything playbooks need, before the day it is needed.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::json;

use super::playbook_file::{InputArgs, load_playbook};
use super::session::{Settings, operator};
use super::{Exit, Failure};
use crate::action::ProcessEnvironment;
use crate::clock::Clock;
use crate::diagnostic::{Diagnostic, Severity};
use crate::plan::doctor::{Finding, Group, Surroundings, Verdict, examine};
use crate::plan::{Inputs, Plan, build, render};
use crate::playbook::load::Loaded;
use crate::report::style_for_stdout;
use crate::source::Sources;
use crate::target::Targets;
use crate::text::{Ink, Line, draw};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Playbooks
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// As JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    inputs: InputArgs,
}

/// What was found for one playbook.
struct Report {
    plan: Plan,
    groups: Vec<Group>,
}

pub(super) async fn run(args: &Args, settings: &Settings) -> Result<Exit, Failure> {
    let inputs = args.inputs.inputs(settings, true)?;
    refuse_unknown_parameters(args, &inputs)?;
    let mut exit = Exit::Done;
    let mut reports = Vec::new();
    for file in &args.files {
        match look(file, &for_file(file, &inputs, args.files.len() > 1)?, settings).await {
            Ok(report) => {
                if exit == Exit::Done && has_problem(&report) {
                    exit = Exit::Refused;
                }
                if !args.json {
                    print(&report, !reports.is_empty(), settings);
                }
                reports.push(report);
            }
            // The others are looked at all the same.
            Err(failure) if failure.exit() == Exit::Invalid => {
                failure.print(settings);
                exit = Exit::Invalid;
            }
            Err(failure) => return Err(failure),
        }
    }
    if args.json {
        print_json(&reports)?;
    }
    Ok(exit)
}

async fn look(file: &Path, inputs: &Inputs, settings: &Settings) -> Result<Report, Failure> {
    let (plan, missing) = plan_in_spite_of_missing_inputs(file, inputs)?;
    let targets = Targets::new("doctor", plan.connections.clone(), &settings.variables);
    let journal = match &settings.journal {
        Some(path) => path.clone(),
        None => super::journal_file::default_path()?,
    };
    let operator = operator();
    let surroundings = Surroundings {
        environment: Arc::new(ProcessEnvironment {
            variables: settings.variables.clone(),
            secrets: plan.secret_variables.iter().cloned().collect(),
        }),
        directory: inputs.directory.clone(),
        journal,
        user: operator.user,
        host: operator.host,
        now: Clock::real().now(),
    };
    let mut groups: Vec<Group> = inputs_group(&plan, missing).into_iter().collect();
    groups.extend(examine(&plan, &targets, &surroundings).await);
    targets.close().await;
    Ok(Report { plan, groups })
}

/// The plan, although secrets and addresses have no value yet: those are findings.
fn plan_in_spite_of_missing_inputs(file: &Path, inputs: &Inputs) -> Result<(Plan, Vec<Finding>), Failure> {
    match build(file, load_playbook(file)?, inputs) {
        Ok(plan) => Ok((plan, Vec::new())),
        Err((sources, diagnostics)) if diagnostics.iter().all(is_missing_input) => {
            let findings = diagnostics.iter().filter(|found| found.severity == Severity::Error).map(|found| missing_input(&sources, found));
            let findings = findings.collect();
            let without = Inputs { resolve: false, ..inputs.clone() };
            Ok((build(file, load_playbook(file)?, &without)?, findings))
        }
        Err(invalid) => Err(invalid.into()),
    }
}

/// Found only when values are asked for.
fn is_missing_input(diagnostic: &Diagnostic) -> bool {
    diagnostic.severity == Severity::Warning || matches!(diagnostic.code, "secret" | "connection" | "channel")
}

fn missing_input(sources: &Sources, diagnostic: &Diagnostic) -> Finding {
    let place = sources.location(diagnostic.span);
    let subject = if diagnostic.code == "connection" { "address" } else { diagnostic.code };
    let finding = Finding::new(Verdict::Problem, subject, &diagnostic.message);
    let finding = diagnostic.help.iter().fold(finding, |finding, help| finding.advise(help));
    finding.advise(format!("{}:{}", place.file, place.line))
}

fn inputs_group(plan: &Plan, missing: Vec<Finding>) -> Option<Group> {
    let mut checks = missing;
    if !plan.secrets.is_empty() {
        let verb = if plan.secrets.len() == 1 { "has a value" } else { "have values" };
        checks.push(Finding::new(Verdict::Ok, "secret", format!("{} {verb}", plan.secrets.join(", "))));
    }
    (!checks.is_empty()).then(|| Group { title: "inputs".into(), checks })
}

fn has_problem(report: &Report) -> bool {
    report.groups.iter().flat_map(|group| &group.checks).any(|check| check.verdict == Verdict::Problem)
}

/// Of several playbooks each gets the parameters that it declares.
fn for_file(file: &Path, inputs: &Inputs, several: bool) -> Result<Inputs, Failure> {
    let mut inputs = inputs.clone();
    if several {
        let declared = declared(&load_playbook(file)?);
        inputs.params.retain(|name, _| declared.contains(name));
    }
    Ok(inputs)
}

/// One playbook says itself which parameters it does not know.
fn refuse_unknown_parameters(args: &Args, inputs: &Inputs) -> Result<(), Failure> {
    if args.files.len() < 2 {
        return Ok(());
    }
    let mut known = Vec::new();
    for file in &args.files {
        let loaded = load_playbook(file)?;
        if loaded.document.is_none() {
            return Ok(());
        }
        known.extend(declared(&loaded));
    }
    match inputs.params.keys().find(|name| !known.contains(name)) {
        Some(name) => Err(Failure::usage(format!("none of these playbooks declares a parameter `{name}`"))),
        None => Ok(()),
    }
}

fn declared(loaded: &Loaded) -> Vec<String> {
    loaded.document.iter().flat_map(|document| document.playbook.settings.params.keys()).map(|name| name.value.clone()).collect()
}

fn print(report: &Report, another: bool, settings: &Settings) {
    let style = style_for_stdout(settings.color_on_stdout);
    let title = Line::new().then(Ink::Strong, &report.plan.name).then(Ink::Dim, format!("  {}", report.plan.file.display()));
    let mut lines = if another { vec![Line::new(), title, Line::new()] } else { vec![title, Line::new()] };
    lines.extend(render::doctor::groups(&report.groups, style, settings.quiet));
    lines.push(render::doctor::summary(&report.groups));
    let mut out = std::io::stdout().lock();
    // A reader that has seen enough closes the pipe; that is no error.
    let _ = out.write_all(draw(&lines, style).as_bytes()).and_then(|()| out.flush());
}

fn print_json(reports: &[Report]) -> Result<(), Failure> {
    let value = |report: &Report| json!({ "playbook": report.plan.name, "file": report.plan.file, "groups": report.groups });
    let values: Vec<serde_json::Value> = reports.iter().map(value).collect();
    let text = serde_json::to_string_pretty(&values).map_err(Failure::engine)?;
    let _ = writeln!(std::io::stdout(), "{text}");
    Ok(())
}
