//! What a run looks like to people and programs: events in, pictures out.
//!
//! On a terminal there is a live area below the report (`terminal`); in a pipe or in CI
//! the same report in plain lines (`plain`); for programs one JSON event a line (`json`).
//! What is said is decided once, by the narrator. The report goes to standard output;
//! questions, and what the next Ctrl+C does, go to standard error, so that
//! `runbook run … | tee log` keeps the whole report and still asks. Where the report is on
//! a terminal itself, such a notice stands in it.
//!
//! A reader that goes away never stops a run: every failed write is ignored.

mod blocks;
mod guard;
mod history;
mod json;
mod narrator;
mod plain;
mod prompt;
mod screen;
mod summary;
mod terminal;
#[cfg(test)]
mod tests;

use std::io::IsTerminal;
use std::sync::Arc;
use std::time::{Duration, Instant};

pub use blocks::{Failed, failure, waiting};
pub use guard::TerminalGuard;
pub use history::History;
pub use json::Json;
pub use narrator::waiting_steps;
pub use plain::Plain;
pub use prompt::{TerminalPrompter, login_name};
pub use summary::{Tally, next_commands};
pub use terminal::Terminal;

use crate::engine::{Observer, Prompter};
use crate::text::Style;

/// How a run is reported.
#[derive(Debug, Clone)]
pub struct Options {
    /// Whether colours are used.
    pub color: bool,
    /// Only failures and the end.
    pub quiet: bool,
    /// Also attempts, answers and expansions.
    pub verbose: bool,
    /// How the program must be called to mean the same journal, e.g. `runbook --journal x.db`.
    pub command: String,
    /// Whether gates can be asked for here; otherwise the report says how to answer them.
    pub asks: bool,
}

/// The report on standard output: with a live area on a terminal that can do it.
pub fn for_stdout(options: Options, live: bool) -> Box<dyn Observer> {
    let out = std::io::stdout();
    if live && out.is_terminal() {
        Box::new(Terminal::new(options, screen::Screen::stdout()))
    } else {
        Box::new(Plain::new(options, Box::new(out), Box::new(std::io::stderr())))
    }
}

/// One JSON event a line on standard output; what people must know at once also on standard error.
pub fn json() -> Box<dyn Observer> {
    Box::new(Json::new(Box::new(std::io::stdout()), Box::new(std::io::stderr())))
}

/// Asks at the terminal, unless nobody is to be asked.
pub fn prompter(enabled: bool, color: bool) -> Arc<dyn Prompter> {
    Arc::new(TerminalPrompter::new(enabled, color))
}

/// The style of something that is read in one piece, such as `show`: as wide as the terminal.
pub fn style_for_stdout(color: bool) -> Style {
    let width = std::io::stdout().is_terminal().then(|| usize::from(console::Term::stdout().size().1));
    Style { color, width }
}

/// How long a report has been going on.
#[derive(Clone)]
struct Stopwatch(Arc<dyn Fn() -> Duration + Send + Sync>);

impl Stopwatch {
    fn start() -> Self {
        let begun = Instant::now();
        Self(Arc::new(move || begun.elapsed()))
    }

    fn elapsed(&self) -> Duration {
        (self.0)()
    }
}
