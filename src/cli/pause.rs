//! `runbook pause`: asks a run, from another terminal, to stand still.
//!
//! It does what the first Ctrl+C does there, and waits for it. The request is an event
//! of the journal, so that `show` tells who asked.

use std::io::Write;
use std::time::Duration;

use super::journal_file::find_run;
use super::list::load;
use super::session::{Settings, operator};
use super::{Exit, Failure};
use crate::clock::Clock;
use crate::journal::{EventKind, Journal, JournalError, RunPhase};
use crate::report::{History, next_commands};
use crate::secret::Redactor;
use crate::text::{Style, draw};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The run's id, or a unique part of it
    #[arg(value_name = "RUN")]
    run: String,
}

/// How often it is looked whether the run stands still.
const LOOK: Duration = Duration::from_millis(100);

pub(super) async fn run(args: &Args, settings: &Settings) -> Result<Exit, Failure> {
    let mut journal = settings.open_journal(&Clock::real()).await?;
    let run = find_run(&mut journal, &args.run).await?;
    let asked = ask(&mut journal, &run).await?;
    say(&format!("asked run {run} to pause; {}\n", what_runs(&asked)));
    let history = stands_still(&mut journal, &run).await?;
    let mut text = format!("run {run}: {}\n", history.status().1);
    let next = next_commands(&settings.command(), &run, &history.state);
    text.push_str(&draw(&next, Style { color: settings.color_on_stdout, width: None }));
    say(&text);
    Ok(Exit::Done)
}

/// Records the request; the run may record something in the same moment.
async fn ask(journal: &mut Journal, run: &str) -> Result<History, Failure> {
    loop {
        let mut history = load(journal, run).await?;
        if history.state.phase != RunPhase::Running || history.crashed {
            return Err(nothing_runs(run, &history));
        }
        let event = EventKind::PauseAsked { by: operator() };
        match journal.append(run, &mut history.state, vec![event], &Redactor::default()).await {
            Err(JournalError::Conflict { .. }) => {}
            appended => return appended.map(|_| history).map_err(Failure::from),
        }
    }
}

fn nothing_runs(run: &str, history: &History) -> Failure {
    let message = format!("run {run} does not go on, so there is nothing to pause: {}", history.status().1);
    Failure::Message { exit: Exit::Refused, message, hints: vec![format!("`runbook show {run}` shows it")] }
}

fn what_runs(history: &History) -> String {
    match history.state.unsettled().as_slice() {
        [] => "waiting for what it does now".into(),
        steps => format!("waiting for {} (batches stop after the current one, other steps at their end)", steps.join(", ")),
    }
}

async fn stands_still(journal: &mut Journal, run: &str) -> Result<History, Failure> {
    loop {
        let history = load(journal, run).await?;
        if history.state.phase != RunPhase::Running || history.crashed {
            return Ok(history);
        }
        tokio::time::sleep(LOOK).await;
    }
}

fn say(text: &str) {
    let mut out = std::io::stdout();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}
