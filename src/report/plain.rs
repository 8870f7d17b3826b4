//! The report in plain lines, for pipes, files and CI.

use std::collections::HashMap;
use std::io::Write;
use std::time::Duration;

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
    running: HashMap<String, Running>,
    pub(super) clock: Stopwatch,
}

struct Running {
    since: Duration,
    called_slow: bool,
}

impl Plain {
    /// The report goes to `out`, notices to `urgent`.
    pub fn new(options: Options, out: Box<dyn Write + Send>, urgent: Box<dyn Write + Send>) -> Self {
        let style = Style { color: options.color, width: None };
        Self { narrator: Narrator::new(options), style, out, urgent, running: HashMap::new(), clock: Stopwatch::start() }
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
        self.running.insert(step.to_owned(), Running { since: self.clock.elapsed(), called_slow: false });
    }

    fn event(&mut self, plan: &Plan, state: &RunState, event: &Event) {
        match &event.kind {
            EventKind::StepFinished { step, .. } | EventKind::StepLost { step, .. } | EventKind::GateWaiting { step, .. } => {
                self.running.remove(step);
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

    fn progress(&mut self, _step: &str, _text: &str, _fraction: Option<f64>) {}

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
        let slow: Vec<(String, Duration)> = self
            .running
            .iter_mut()
            .filter(|(_, running)| !running.called_slow && now.saturating_sub(running.since) >= SLOW)
            .map(|(step, running)| {
                running.called_slow = true;
                (step.clone(), now.saturating_sub(running.since))
            })
            .collect();
        for (step, elapsed) in slow {
            let line = self.narrator.slow(self.narrator.name(&step), elapsed);
            self.say(&[line]);
        }
    }
}
