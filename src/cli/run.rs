//! `runbook run`: a new run of a playbook.

use std::path::PathBuf;
use std::sync::Arc;

use super::playbook_file::{InputArgs, build_plan, current_directory};
use super::session::{Settings, operator};
use super::{Exit, Failure};
use crate::action::ProcessEnvironment;
use crate::clock::Clock;
use crate::engine::{self, Observer, Setup, Signal, Start};
use crate::journal::Journal;
use crate::plan::Plan;
use crate::process::{Processes, guard};
use crate::report;
use crate::target::Targets;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The playbook
    #[arg(value_name = "FILE")]
    file: PathBuf,
    #[command(flatten)]
    inputs: InputArgs,
    #[command(flatten)]
    operating: OperatingArgs,
}

/// How a run is operated; shared with `resume`.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct OperatingArgs {
    /// Answer plain confirmations with yes; never typed ones, manual steps or approvals
    #[arg(long, short)]
    pub yes: bool,
    /// Ask before each step
    #[arg(long)]
    pub step: bool,
    /// One JSON event a line instead of text
    #[arg(long)]
    pub json: bool,
}

pub(super) async fn run(args: &Args, settings: &Settings) -> Result<Exit, Failure> {
    let plan = build_plan(&args.file, &args.inputs.inputs(settings, true)?)?;
    let clock = Clock::real();
    let journal = settings.open_journal(&clock).await?;
    let run = new_run_id(&clock);
    let directory = current_directory()?;
    operate(plan, journal, clock, Start::New(run.clone()), run, directory, &args.operating, settings).await
}

/// Names sort by time and are short enough to be typed and to fit into PostgreSQL's
/// `application_name` with a step's id.
fn new_run_id(clock: &Clock) -> String {
    let now = clock.now().to_zoned(jiff::tz::TimeZone::UTC);
    format!("{}-{}", now.strftime("%Y%m%d-%H%M%S"), clock.random_name(4))
}

#[expect(clippy::too_many_arguments, reason = "everything a run needs from outside meets here, and only here")]
pub(super) async fn operate(
    plan: Plan,
    journal: Journal,
    clock: Clock,
    start: Start,
    run: String,
    directory: PathBuf,
    operating: &OperatingArgs,
    settings: &Settings,
) -> Result<Exit, Failure> {
    settings.start_tracing(&plan.redactor);
    let prompter = report::prompter(!operating.json, settings.color_on_stderr);
    let options = report::Options {
        color: settings.color_on_stdout,
        quiet: settings.quiet,
        verbose: settings.verbose > 0,
        command: settings.command(),
        asks: prompter.interactive(),
    };
    let mut observer: Box<dyn Observer> =
        if operating.json { report::json() } else { report::for_stdout(options, settings.capable_terminal) };
    if operating.step && !prompter.interactive() {
        return Err(Failure::usage("--step needs a terminal to ask at"));
    }
    let guard = report::TerminalGuard::new();
    let restore = guard.clone();
    let signals = engine::interrupt::listen(move |signal: Signal| {
        restore.restore();
        std::process::exit(Exit::from(signal).code());
    })
    .map_err(Failure::engine)?;
    let targets = Targets::new(&run, plan.connections.clone(), &settings.variables);
    let inherited = std::env::vars_os().filter(|(name, _)| !plan.secret_variables.iter().any(|secret| name == secret.as_str()));
    let processes = Processes::new(&run, inherited, guard::Start::this_program());
    let environment =
        ProcessEnvironment { variables: settings.variables.clone(), secrets: plan.secret_variables.iter().cloned().collect() };
    let setup = Setup {
        plan: Arc::new(plan),
        journal,
        targets,
        processes,
        environment: Arc::new(environment),
        clock,
        operator: operator(),
        directory,
        assume_yes: operating.yes,
        step_by_step: operating.step,
        observer: observer.as_mut(),
        prompter,
        signals,
    };
    let outcome = engine::execute(setup, start).await;
    observer.end(&run, outcome.as_ref().ok().copied());
    guard.restore();
    Ok(outcome?.into())
}
