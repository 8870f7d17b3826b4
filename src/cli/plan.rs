//! `runbook plan`: what a run would do, without doing anything; with `--connect` also what
//! the databases say of it now.

use std::io::Write;
use std::path::PathBuf;

use super::playbook_file::{InputArgs, build_plan};
use super::session::{Settings, block_on};
use super::{Exit, Failure};
use crate::engine::check_targets;
use crate::plan::{Plan, Previews, preview, render};
use crate::target::Targets;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The playbook
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Ask the databases, in read-only transactions: how many rows, how long, what is in the way
    #[arg(long)]
    connect: bool,
    #[command(flatten)]
    inputs: InputArgs,
}

pub(super) fn run(args: &Args, settings: &Settings) -> Result<Exit, Failure> {
    let plan = build_plan(&args.file, &args.inputs.inputs(settings, args.connect)?)?;
    let previews = if args.connect { block_on(ask(&plan, settings))? } else { Previews::new() };
    let mut out = std::io::BufWriter::new(std::io::stdout().lock());
    // A reader that has seen enough closes the pipe; that is no error.
    let _ =
        render::terminal(&plan, &previews, crate::report::style_for_stdout(settings.color_on_stdout), &mut out).and_then(|()| out.flush());
    Ok(Exit::Done)
}

/// The targets must be those that a run would accept.
async fn ask(plan: &Plan, settings: &Settings) -> Result<Previews, Failure> {
    let targets = Targets::new("plan", plan.connections.clone(), &settings.variables);
    check_targets(plan, &targets).await?;
    let previews = preview(plan, &targets).await;
    targets.close().await;
    Ok(previews)
}
