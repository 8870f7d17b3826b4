//! The report on a terminal: lines that stay, and below them a live area with what runs.

use std::time::Duration;

use indexmap::IndexMap;
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::narrator::{Narrator, SLOW};
use super::screen::Screen;
use super::{Options, Stopwatch};
use crate::engine::{Ending, Observer};
use crate::journal::{Event, EventKind, RunState};
use crate::plan::Plan;
use crate::text::{Ink, Line, Style, cut, draw, took};

/// Shorter steps never enter the live area: it would only flicker.
const WORTH_SHOWING: Duration = Duration::from_millis(300);
/// More steps than this are not shown one by one.
const MOST_BARS: usize = 12;
const REFRESH_RATE: u8 = 20;
const BAR_STEPS: u64 = 1000;
/// Lines kept while a question stands; the rest is in the steps' logs.
const MOST_HELD: usize = 1000;

/// Lines and a live area.
pub struct Terminal {
    narrator: Narrator,
    screen: Screen,
    clock: Stopwatch,
    bars: MultiProgress,
    draw_target: fn(&Screen) -> ProgressDrawTarget,
    running: IndexMap<String, Running>,
    suspended: bool,
    /// Lines that wait for the question to be answered, and for the next moment to draw.
    held: Vec<Line>,
    left_out: u64,
}

/// A step in flight.
struct Running {
    title: String,
    since: Duration,
    waits: bool,
    text: String,
    fraction: Option<f64>,
    bar: Option<ProgressBar>,
}

impl Terminal {
    pub(super) fn new(options: Options, screen: Screen) -> Self {
        let draw_target = |screen: &Screen| ProgressDrawTarget::term_like_with_hz(Box::new(screen.clone()), REFRESH_RATE);
        Self::with_clock(options, screen, Stopwatch::start(), draw_target)
    }

    pub(super) fn with_clock(options: Options, screen: Screen, clock: Stopwatch, draw_target: fn(&Screen) -> ProgressDrawTarget) -> Self {
        Self {
            narrator: Narrator::new(options),
            bars: MultiProgress::with_draw_target(draw_target(&screen)),
            draw_target,
            screen,
            clock,
            running: IndexMap::new(),
            suspended: false,
            held: Vec::new(),
            left_out: 0,
        }
    }

    fn style(&self) -> Style {
        Style { color: self.narrator.options.color, width: Some(self.screen.columns()) }
    }

    /// Takes lines that need not be on the screen before the next tick.
    fn hold(&mut self, line: Line) {
        if self.suspended && self.held.len() >= MOST_HELD {
            self.left_out += 1;
        } else {
            self.held.push(line);
        }
    }

    fn say(&mut self, lines: Vec<Line>) {
        for line in lines {
            self.hold(line);
        }
        self.put_held();
    }

    fn put_held(&mut self) {
        if self.suspended || self.held.is_empty() {
            return;
        }
        let mut text = draw(&std::mem::take(&mut self.held), self.style());
        if std::mem::take(&mut self.left_out) > 0 {
            text.push_str("  … more, kept in the steps' logs\n");
        }
        let screen = &self.screen;
        if self.running.values().any(|running| running.bar.is_some()) {
            self.bars.suspend(|| screen.put(&text));
        } else {
            screen.put(&text);
        }
        let _ = indicatif::TermLike::flush(screen);
    }

    fn running(&mut self, step: &str) -> &mut Running {
        let since = self.clock.elapsed();
        let title = self.narrator.name(step).to_owned();
        self.running.entry(step.to_owned()).or_insert_with(|| Running {
            title,
            since,
            waits: false,
            text: String::new(),
            fraction: None,
            bar: None,
        })
    }

    fn ended(&mut self, step: &str) {
        if let Some(bar) = self.running.shift_remove(step).and_then(|running| running.bar) {
            self.bars.remove(&bar);
            if self.running.values().all(|running| running.bar.is_none()) {
                // Without bars nothing is drawn any more, so the last one would stay.
                let _ = self.bars.clear();
            }
        }
    }

    fn refresh(&mut self) {
        let now = self.clock.elapsed();
        let style = self.style();
        let mut shown = self.running.values().filter(|running| running.bar.is_some()).count();
        for running in self.running.values_mut() {
            let elapsed = now.saturating_sub(running.since);
            if running.bar.is_none() && shown < MOST_BARS && elapsed >= WORTH_SHOWING && !running.waits {
                shown += 1;
                running.bar = Some(self.bars.add(ProgressBar::new(BAR_STEPS)));
            }
            if let Some(bar) = &running.bar {
                running.draw(bar, elapsed, style);
            }
        }
    }
}

impl Running {
    fn draw(&self, bar: &ProgressBar, elapsed: Duration, style: Style) {
        let template = match self.fraction {
            Some(_) => "{spinner} {prefix}  {bar:20} {percent}% {wide_msg}",
            None => "{spinner} {prefix}  {wide_msg}",
        };
        // Both templates are constants; the default serves as well.
        bar.set_style(ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()).progress_chars("=> "));
        let (ink, word) = if elapsed >= SLOW { (Ink::Warn, "SLOW") } else { (Ink::Accent, "running") };
        let time = took(u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX));
        let width = style.width.unwrap_or(80);
        let title = cut(&self.title, if self.fraction.is_some() { width / 4 } else { width / 2 });
        let prefix = Line::new().then(ink, format!("{word:<10}")).then(Ink::Dim, format!(" {time:>7}  ")).then(Ink::Plain, title);
        bar.set_prefix(prefix.draw(style));
        if let Some(fraction) = self.fraction {
            bar.set_position((fraction.clamp(0.0, 1.0) * BAR_STEPS as f64) as u64);
        }
        bar.set_message(Line::new().then(Ink::Dim, &self.text).draw(style));
        bar.tick();
    }
}

impl Observer for Terminal {
    fn begin(&mut self, run: &str, plan: &Plan, state: &RunState) {
        let lines = self.narrator.begin(run, plan, state, self.clock.elapsed());
        self.say(lines);
    }

    fn started(&mut self, step: &str, attempt: u32) {
        if attempt > 1 {
            self.ended(step);
        }
        self.running(step);
        let lines = self.narrator.started(step, attempt);
        self.say(lines);
    }

    fn event(&mut self, plan: &Plan, state: &RunState, event: &Event) {
        match &event.kind {
            EventKind::StepStarted { step, .. } => self.running(step).waits = false,
            EventKind::StepRetrying { step, .. } => {
                let running = self.running(step);
                running.text = "waits before it tries again".into();
                running.fraction = None;
            }
            EventKind::GateWaiting { step, .. } => {
                self.ended(step);
                self.running(step).waits = true;
            }
            EventKind::GateAnswered { step, .. } => self.running(step).waits = false,
            EventKind::StepFinished { step, .. } | EventKind::StepLost { step, .. } => self.ended(step),
            _ => {}
        }
        let style = self.style();
        let mut lines = self.narrator.event(plan, state, event, style, self.clock.elapsed());
        if matches!(event.kind, EventKind::StepFinished { .. }) && !lines.is_empty() {
            // One line a step; `show` has what is cut.
            lines[0] = std::mem::take(&mut lines[0]).cut(self.screen.columns());
        }
        self.say(lines);
    }

    fn output(&mut self, step: &str, line: &str) {
        line.clone_into(&mut self.running(step).text);
        if !self.narrator.options.quiet {
            let several = self.running.values().filter(|running| !running.waits).count() > 1;
            let line = self.narrator.output(step, line, several);
            self.hold(line);
        }
    }

    fn progress(&mut self, step: &str, text: &str, fraction: Option<f64>) {
        let running = self.running(step);
        text.clone_into(&mut running.text);
        running.fraction = fraction;
    }

    fn message(&mut self, _step: &str, title: Option<&str>, message: &str) {
        if !self.narrator.options.quiet {
            let lines = self.narrator.message(title, message, self.style());
            self.say(lines);
        }
    }

    fn notice(&mut self, text: &str) {
        let line = Line::new().then(Ink::Warn, "runbook: ").then(Ink::Plain, text);
        if self.suspended {
            // A question stands there and may never be answered; this must be seen now.
            self.screen.put(&format!("\n{}", draw(&[line], self.style())));
            let _ = indicatif::TermLike::flush(&self.screen);
        } else {
            self.say(vec![line]);
        }
    }

    fn suspend(&mut self, suspended: bool) {
        if suspended == self.suspended {
            return;
        }
        if suspended {
            self.put_held();
            let _ = self.bars.clear();
            self.bars.set_draw_target(ProgressDrawTarget::hidden());
        } else {
            self.bars.set_draw_target((self.draw_target)(&self.screen));
        }
        self.suspended = suspended;
        self.put_held();
    }

    fn end(&mut self, _run: &str, _ending: Option<Ending>) {
        self.suspend(false);
        let steps: Vec<String> = self.running.keys().cloned().collect();
        for step in steps {
            self.ended(&step);
        }
        let _ = self.bars.clear();
        self.put_held();
    }

    fn tick(&mut self) {
        if !self.suspended {
            self.put_held();
            self.refresh();
        }
    }
}
