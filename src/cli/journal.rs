//! `runbook journal`: the journal itself.

use std::io::Write;

use super::session::Settings;
use super::{Exit, Failure};
use crate::clock::Clock;
use crate::text::count;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Check that no run's history was changed, cut or reordered
    Verify,
}

pub(super) async fn run(args: &Args, settings: &Settings) -> Result<Exit, Failure> {
    match args.command {
        Command::Verify => verify(settings).await,
    }
}

async fn verify(settings: &Settings) -> Result<Exit, Failure> {
    let mut journal = settings.open_journal(&Clock::real()).await?;
    let runs = journal.run_ids().await?.len();
    let damage = journal.verify().await?;
    let mut out = std::io::stdout();
    for place in &damage {
        let _ = writeln!(out, "run {}: damaged at event {}: {}", place.run, place.sequence, place.reason);
    }
    if damage.is_empty() {
        let _ = writeln!(out, "{}: every history is as it was written", count(runs as u64, "run"));
        return Ok(Exit::Done);
    }
    let message = format!("the journal is damaged ({})", count(damage.len() as u64, "run"));
    Err(Failure::Message { exit: Exit::Engine, message, hints: vec!["what is recorded before the damage can still be trusted".into()] })
}
