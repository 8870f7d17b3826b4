//! The report in plain lines, for pipes, files and CI.

use std::io::Write;
use std::time::Duration;

use indexmap::IndexMap;

use super::narrator::{Narrator, SLOW};
use super::{Options, Stopwatch};
use crate::engine::{Ending, Observer};
use crate::journal::{Event, EventKind, RunState};
use crate::plan::Plan;
use crate::text::{Line, Style, draw};

/// Lines without a live area; nothing is wrapped or cut.
pub struct Plain {
    narrator: Narrator,
    style: Style,
    out: Box<dyn Write + Send>,
    /// Where what must be known at once goes too.
    urgent: Box<dyn Write + Send>,
    running: IndexMap<String, Running>,
    pub(super) clock: Stopwatch,
}

struct Running {
    since: Duration,
    called_slow: bool,
    /// How far it is, and when that was last said.
    progress: String,
    said: Duration,
}

/// How often a long step says how far it is.
const PROGRESS: Duration = Duration::from_secs(10);

impl Plain {
    /// The report goes to `out`, notices to `urgent`.
    pub fn new(options: Options, out: Box<dyn Write + Send>, urgent: Box<dyn Write + Send>) -> Self {
        let style = Style { color: options.color, width: None };
        Self { narrator: Narrator::new(options), style, out, urgent, running: IndexMap::new(), clock: Stopwatch::start() }
    }

    fn say(&mut self, lines: &[Line]) {
        if !lines.is_empty() {
            let _ = self.out.write_all(draw(lines, self.style).as_bytes());
            let _ = self.out.flush();
        }
    }
}

impl Observer for Plain {
    fn begin(&mut self, run: &str, plan: &Plan, state: &RunState) {
        let lines = self.narrator.begin(run, plan, state, self.clock.elapsed());
        self.say(&lines);
    }

    fn started(&mut self, step: &str, attempt: u32) {
        let lines = self.narrator.started(step, attempt);
        self.say(&lines);
        let since = self.clock.elapsed();
        self.running.insert(step.to_owned(), Running { since, called_slow: false, progress: String::new(), said: since });
    }

    fn event(&mut self, plan: &Plan, state: &RunState, event: &Event) {
        match &event.kind {
            EventKind::StepFinished { step, .. } | EventKind::StepLost { step, .. } | EventKind::GateWaiting { step, .. } => {
                self.running.shift_remove(step);
            }
            _ => {}
        }
        let lines = self.narrator.event(plan, state, event, self.style, self.clock.elapsed());
        self.say(&lines);
    }

    fn output(&mut self, step: &str, line: &str) {
        if !self.narrator.options.quiet {
            // Always named, so that one step's lines can be searched for.
            let line = self.narrator.output(step, line, true);
            self.say(&[line]);
        }
    }

    fn progress(&mut self, step: &str, text: &str, fraction: Option<f64>) {
        let Some(running) = self.running.get_mut(step) else { return };
        running.progress = match fraction {
            Some(fraction) => format!("{:.0} %: {text}", (fraction.clamp(0.0, 1.0) * 100.0).floor()),
            None => text.to_owned(),
        };
    }

    fn message(&mut self, _step: &str, title: Option<&str>, message: &str) {
        if !self.narrator.options.quiet {
            let lines = self.narrator.message(title, message, self.style);
            self.say(&lines);
        }
    }

    fn notice(&mut self, text: &str) {
        let _ = self.urgent.write_all(draw(&[Line::plain(format!("runbook: {text}"))], Style::PLAIN).as_bytes());
        let _ = self.urgent.flush();
    }

    fn suspend(&mut self, _suspended: bool) {}

    fn end(&mut self, _run: &str, _ending: Option<Ending>) {
        let _ = self.out.flush();
    }

    fn tick(&mut self) {
        if self.narrator.options.quiet {
            return;
        }
        let now = self.clock.elapsed();
        let mut lines = Vec::new();
        for (step, running) in &mut self.running {
            let elapsed = now.saturating_sub(running.since);
            if !running.called_slow && elapsed >= SLOW {
                running.called_slow = true;
                lines.push(self.narrator.slow(self.narrator.name(step), elapsed));
            }
            if !running.progress.is_empty() && now.saturating_sub(running.said) >= PROGRESS {
                running.said = now;
                lines.push(self.narrator.progress(step, elapsed, &std::mem::take(&mut running.progress)));
            }
        }
        self.say(&lines);
    }
}
