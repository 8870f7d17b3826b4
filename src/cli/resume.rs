//! `runbook resume`: goes on with a run exactly where it stopped.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::journal_file::find_run;
use super::playbook_file::build_plan;
use super::run::{OperatingArgs, operate};
use super::session::Settings;
use super::{Exit, Failure};
use crate::clock::Clock;
use crate::engine::Start;
use crate::journal::{Journal, RunPhase, RunState};
use crate::plan::Inputs;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The run's id, or a unique part of it [default: the last one that can go on]
    #[arg(value_name = "RUN")]
    run: Option<String>,
    /// Go on although the playbook was edited; the steps that are done must be unchanged
    #[arg(long)]
    accept_edit: bool,
    #[command(flatten)]
    operating: OperatingArgs,
}

pub(super) async fn run(args: &Args, settings: &Settings) -> Result<Exit, Failure> {
    let clock = Clock::real();
    let mut journal = settings.open_journal(&clock).await?;
    let run = match &args.run {
        Some(wanted) => find_run(&mut journal, wanted).await?,
        None => last_open(&mut journal).await?,
    };
    let state = journal.load(&run).await?.ok_or_else(|| Failure::usage(format!("there is no run {run}")))?;
    if let RunPhase::Finished(_) = state.phase {
        return Err(
            Failure::usage(format!("run {run} is over; there is nothing to go on with")).hint(format!("`runbook show {run}` shows it"))
        );
    }
    let plan = build_plan(&shown_path(&state), &inputs(&state, settings))?;
    let directory = PathBuf::from(&state.header.directory);
    let mut operating = args.operating.clone();
    operating.yes |= state.header.assume_yes;
    let start = Start::Resume { run: run.clone(), state: Box::new(state), accept_edit: args.accept_edit };
    operate(plan, journal, clock, start, run, directory, &operating, settings).await
}

async fn last_open(journal: &mut Journal) -> Result<String, Failure> {
    for run in journal.run_ids().await? {
        if let Some(state) = journal.load(&run).await?
            && !matches!(state.phase, RunPhase::Finished(_))
        {
            return Ok(run);
        }
    }
    Err(Failure::usage("no run can be resumed").hint("`runbook list` shows all runs"))
}

/// The same parameters, selection and directory as when the run began.
fn inputs(state: &RunState, settings: &Settings) -> Inputs {
    let given: Map<String, Value> =
        state.header.params.iter().filter(|(_, value)| !value.is_null()).map(|(name, value)| (name.clone(), value.clone())).collect();
    Inputs {
        params: given,
        variables: settings.variables.clone(),
        resolve: true,
        selection: state.header.selection.clone(),
        directory: PathBuf::from(&state.header.directory),
    }
}

/// The playbook's file as short as it can be named from here.
fn shown_path(state: &RunState) -> PathBuf {
    let file = Path::new(&state.header.file);
    let here = std::env::current_dir().ok();
    here.and_then(|here| file.strip_prefix(here).ok()).map_or_else(|| file.to_path_buf(), Path::to_path_buf)
}
