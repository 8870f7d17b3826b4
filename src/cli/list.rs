//! `runbook list`: the runs of the journal, the newest first.

use std::io::Write;

use nix::sys::signal::kill;
use nix::unistd::Pid;

use super::session::Settings;
use super::{Exit, Failure};
use crate::clock::Clock;
use crate::journal::{Journal, JournalError, Operator};
use crate::report::{History, Tally};
use crate::text::table::{Cell, columns};
use crate::text::{Ink, Line, Style, count, draw, moment, took};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// How many runs to show at most
    #[arg(long, short = 'n', default_value_t = 20, value_name = "NUMBER")]
    limit: usize,
    /// As JSON
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(args: &Args, settings: &Settings) -> Result<Exit, Failure> {
    let mut journal = settings.open_journal(&Clock::real()).await?;
    let ids = journal.run_ids().await?;
    let mut runs = Vec::new();
    for run in ids.iter().take(args.limit) {
        runs.push((run, load(&mut journal, run).await));
    }
    let text = if args.json { json(&runs)? } else { table(&runs, ids.len(), settings)? };
    let _ = write!(std::io::stdout(), "{text}");
    Ok(Exit::Done)
}

/// A run's history.
pub(super) async fn load(journal: &mut Journal, run: &str) -> Result<History, JournalError> {
    let history = load_once(journal, run).await?;
    // Its process may have recorded the end between the reading and the look for it.
    if history.crashed { load_once(journal, run).await } else { Ok(history) }
}

async fn load_once(journal: &mut Journal, run: &str) -> Result<History, JournalError> {
    let events = journal.events(run, 0).await?;
    let missing = || JournalError::Damaged { run: run.to_owned(), sequence: 0, reason: "it is missing".into() };
    History::new(run, events, is_alive)?.ok_or_else(missing)
}

/// Whether the process that last took a run up still exists. On another machine that can't be seen.
fn is_alive(operator: &Operator) -> bool {
    let here = gethostname::gethostname().to_string_lossy() == operator.host;
    let exists = || match i32::try_from(operator.pid) {
        Ok(pid) => kill(Pid::from_raw(pid), None) != Err(nix::errno::Errno::ESRCH),
        Err(_) => false,
    };
    !here || exists()
}

type Runs<'a> = [(&'a String, Result<History, JournalError>)];

fn json(runs: &Runs<'_>) -> Result<String, Failure> {
    let values: Vec<serde_json::Value> = runs
        .iter()
        .map(|(run, history)| match history {
            Ok(history) => history.summary_json(),
            Err(error) => serde_json::json!({ "run": run, "status": "damaged", "reason": error.to_string() }),
        })
        .collect();
    serde_json::to_string_pretty(&values).map(|text| text + "\n").map_err(Failure::engine)
}

fn table(runs: &Runs<'_>, all: usize, settings: &Settings) -> Result<String, Failure> {
    let style = Style { color: settings.color_on_stdout, width: None };
    if runs.is_empty() {
        return Ok("no runs yet\n".into());
    }
    let rows: Vec<Vec<Cell>> = runs.iter().map(|(run, history)| row(run, history)).collect();
    let mut lines = columns(&["RUN", "PLAYBOOK", "STATUS", "STARTED", "TIME", "SETTLED", "BY"], &rows);
    if all > runs.len() {
        lines.push(Line::new().then(Ink::Dim, format!("… and {} before; --limit shows more", count((all - runs.len()) as u64, "run"))));
    }
    Ok(draw(&lines, style))
}

fn row(run: &str, history: &Result<History, JournalError>) -> Vec<Cell> {
    let history = match history {
        Ok(history) => history,
        Err(error) => {
            let cells = [Cell::text(Ink::Accent, run), Cell::text(Ink::Plain, ""), Cell::text(Ink::Bad, "damaged")];
            let rest = [
                Cell::text(Ink::Plain, ""),
                Cell::text(Ink::Plain, ""),
                Cell::text(Ink::Plain, ""),
                Cell::text(Ink::Plain, error.to_string()),
            ];
            return cells.into_iter().chain(rest).collect();
        }
    };
    let (ink, status) = history.status();
    let tally = Tally::of(&history.state);
    let operator = history.operator();
    vec![
        Cell::text(Ink::Accent, run),
        Cell::text(Ink::Plain, &history.state.header.playbook),
        Cell::text(ink, status),
        Cell::text(Ink::Plain, moment(history.state.started_at)),
        Cell::number(took(history.duration_ms())),
        Cell::text(Ink::Plain, format!("{} of {}", tally.settled(), count(tally.total, "step"))),
        Cell::text(Ink::Plain, format!("{}@{}", operator.user, operator.host)),
    ]
}
