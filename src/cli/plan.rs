//! `runbook plan`: what a run would do, without doing or touching anything.

use std::io::Write;
use std::path::PathBuf;

use super::playbook_file::{InputArgs, build_plan};
use super::session::Settings;
use super::{Exit, Failure};
use crate::plan::render;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The playbook
    #[arg(value_name = "FILE")]
    file: PathBuf,
    #[command(flatten)]
    inputs: InputArgs,
}

pub(super) fn run(args: &Args, settings: &Settings) -> Result<Exit, Failure> {
    let plan = build_plan(&args.file, &args.inputs.inputs(settings, false)?)?;
    let mut out = std::io::BufWriter::new(std::io::stdout().lock());
    // A reader that has seen enough closes the pipe; that is no error.
    let _ = render::terminal(&plan, crate::report::style_for_stdout(settings.color_on_stdout), &mut out).and_then(|()| out.flush());
    Ok(Exit::Done)
}
