//! Rows per second, of runbook and of the plain way, taking turns (A B A B …), so that a
//! slow minute of the machine hits both. Medians and their ratio are printed. A missed goal
//! is shown, not an error: timings are for people to judge.

use std::process::Command;
use std::time::Duration;

use crate::programs::{median, peak_megabytes, run, time, verdict};

/// The columns of what [`Race::hold`] gives.
pub const HEADING: &str = "scenario               runbook     plain way   ratio  (range)         goal    memory     goal";

/// runbook and the plain way to do the same.
pub struct Race {
    /// How often each is run.
    pub rounds: usize,
    /// Rows that each of them writes.
    pub rows: u64,
    /// Puts everything back to where both begin; not timed.
    pub prepare: Box<dyn Fn()>,
    /// runbook's own command, made anew for each round.
    pub subject: Box<dyn Fn() -> Command>,
    /// The plain way.
    pub baseline: Box<dyn Fn() -> Command>,
    /// Panics if what is to be there is not; after each run, not timed.
    pub verify: Box<dyn Fn()>,
    /// At least this many times the plain way's rows per second.
    pub at_least: f64,
    /// At most this much memory.
    pub megabytes: Option<u64>,
}

impl Race {
    /// Runs both sides in turn and tells the outcome in one line.
    pub fn hold(self, name: &str) -> String {
        let (mut subject, mut baseline) = (Vec::new(), Vec::new());
        for _ in 0..self.rounds {
            subject.push(self.timed(&self.subject));
            baseline.push(self.timed(&self.baseline));
        }
        let each = subject.iter().zip(&baseline).map(|(one, other)| other.as_secs_f64() / one.as_secs_f64());
        let (low, high) = each.fold((f64::INFINITY, 0_f64), |(low, high), ratio| (low.min(ratio), high.max(ratio)));
        let ratio = median(&baseline).as_secs_f64() / median(&subject).as_secs_f64();
        let goal = verdict(ratio >= self.at_least, &format!("{:.1}", self.at_least));
        (self.prepare)();
        let memory = peak_megabytes(&(self.subject)());
        let memory_goal = self.megabytes.map(|limit| verdict(memory <= limit, &format!("{limit} MB"))).unwrap_or_default();
        let rate = |times: &[Duration]| format!("{:.0}/s", self.rows as f64 / median(times).as_secs_f64());
        format!(
            "{name:<20} {:>10}  {:>10} {ratio:>7.2}  ({low:.2}-{high:.2}) {goal:>12} {memory:>6} MB {memory_goal:>12}",
            rate(&subject),
            rate(&baseline)
        )
    }

    fn timed(&self, command: &dyn Fn() -> Command) -> Duration {
        (self.prepare)();
        let mut command = command();
        let taken = time(|| run(&mut command));
        (self.verify)();
        taken
    }
}
