//! Goes on with a run until it is over, as a person would: resumes, decides about
//! steps whose end is unknown after looking, answers gates.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use runbook::journal::{Pause, RunPhase, RunStatus};

use super::history::History;
use super::story::{Place, Story};
use super::{Crash, children, shim};
use crate::environment::{Output, PATIENCE};
use crate::terminal::Terminal;

/// A run that gets nowhere is a failure too.
const MOST_ROUNDS: usize = 30;

/// What one process of an uninterrupted run does, up to the next gate.
#[derive(Debug)]
pub struct Stretch {
    pub writes: usize,
    pub syncs: usize,
    pub duration: Duration,
}

/// Starts a run and brings it to its end.
pub struct Operator<'a> {
    place: &'a Place<'a>,
    story: &'a dyn Story,
    /// Which stretch of the run each crash hits.
    crashes: Vec<(usize, Crash)>,
    /// Gates passed so far.
    stretch: usize,
    measured: Vec<Stretch>,
    /// The traces of the steps that the journal called done after a crash.
    done: BTreeMap<String, String>,
}

impl<'a> Operator<'a> {
    /// One who meets with these crashes, each in a stretch between two gates.
    pub fn new(place: &'a Place<'a>, story: &'a dyn Story, crashes: Vec<(usize, Crash)>) -> Self {
        Self { place, story, crashes, stretch: 0, measured: Vec::new(), done: BTreeMap::new() }
    }

    /// Brings the run to its end without any crash and says what each stretch did.
    pub fn measure(mut self) -> Vec<Stretch> {
        self.run_to_its_end();
        self.measured
    }

    /// Starts it and goes on until it is done.
    pub fn run_to_its_end(&mut self) {
        for _ in 0..MOST_ROUNDS {
            let Some(history) = History::last(&self.place.env) else {
                // Not begun, or killed before the first event: nothing has happened, and nothing can be resumed.
                assert!(self.story.traces(self.place).is_empty(), "something was done before the run was recorded");
                self.place.env.runbook(["resume"]).run().exits(64);
                self.launch(self.story.arguments(self.place));
                continue;
            };
            match history.phase() {
                RunPhase::Finished(RunStatus::Done) => return,
                RunPhase::Finished(RunStatus::Aborted) => panic!("nobody aborted it"),
                RunPhase::Paused(Pause::Waiting) => self.answer_gates(&history),
                RunPhase::Paused(Pause::Unknown) => self.decide(&history),
                RunPhase::Running | RunPhase::Paused(Pause::Interrupted | Pause::Failed) => self.launch(vec!["resume".into()]),
            }
        }
        panic!("the run does not end:\n{}", History::last(&self.place.env).map(|history| history.listing()).unwrap_or_default());
    }

    fn launch(&mut self, arguments: Vec<String>) {
        let before = self.events();
        let crash = self.crashes.iter().position(|(stretch, _)| *stretch == self.stretch).map(|index| self.crashes.remove(index).1);
        let begun = Instant::now();
        let output = match crash {
            Some(crash) => crash.launch(self.place, &arguments),
            None => shim::counted(self.place.env.runbook(&arguments), &self.place.env).run(),
        };
        let (writes, syncs) = shim::take_tally(&self.place.env);
        self.measured.push(Stretch { writes, syncs, duration: begun.elapsed() });
        self.check_ending(&output, before);
        if crash.is_some() {
            self.remember_what_is_done();
        }
    }

    fn remember_what_is_done(&mut self) {
        let done = History::last(&self.place.env).map(|history| history.done()).unwrap_or_default();
        let traces = self.story.traces(self.place);
        for (step, trace) in traces.into_iter().filter(|(step, _)| done.contains(step)) {
            self.done.entry(step).or_insert(trace);
        }
    }

    /// What was recorded as done after any of the crashes was not done again.
    pub fn check_what_was_done(&self) {
        let traces = self.story.traces(self.place);
        for (step, trace) in &self.done {
            assert_eq!(traces.get(step), Some(trace), "{step} was recorded done, and was done again");
        }
    }

    fn events(&self) -> usize {
        History::last(&self.place.env).map_or(0, |history| history.events.len())
    }

    /// The exit code is the one that the journal says, and what is unknown is named.
    fn check_ending(&self, output: &Output, before: usize) {
        let Some(code) = output.code() else { return };
        if self.events() == before {
            assert_eq!(code, 6, "nothing was begun, because the target could not be reached: {output}");
            return;
        }
        let history = History::last(&self.place.env).expect("a run with events");
        let expected = match history.phase() {
            RunPhase::Finished(_) => 0,
            RunPhase::Paused(Pause::Failed) => 3,
            RunPhase::Paused(Pause::Unknown) => 4,
            RunPhase::Paused(Pause::Waiting) => 5,
            RunPhase::Paused(Pause::Interrupted) | RunPhase::Running => panic!("nobody interrupted it: {output}"),
        };
        assert_eq!(code, expected, "{output}\n{}", history.listing());
        if code == 4 {
            for step in history.unsettled() {
                assert!(
                    output.raw_stdout.contains(&step) || output.raw_stderr.contains(&step),
                    "{step} is unknown, but that is not said:\n{output}"
                );
            }
        }
    }

    fn answer_gates(&mut self, history: &History) {
        let state = history.state();
        let waits = |step: &str| state.progress(step).is_some_and(|progress| progress.waiting.is_some() && progress.answers.is_empty());
        for (step, text) in self.story.answers(self.place) {
            if waits(step) {
                self.place.env.runbook(["approve", &history.run, step, "--text", &text]).run().exits(0);
                self.stretch += 1;
            }
        }
        self.launch(vec!["resume".into()]);
    }

    /// Without a terminal nothing is decided; at one, the person looks and says what is true.
    fn decide(&mut self, history: &History) {
        let before = self.story.traces(self.place);
        let events = self.events();
        let again = self.place.env.runbook(["resume"]).run();
        self.check_ending(&again, events);
        if again.code() != Some(4) {
            return;
        }
        children::are_gone(&history.run);
        assert_eq!(before, self.story.traces(self.place), "an undecided step was run:\n{again}");
        let mut terminal = self.place.env.runbook(["resume"]).terminal();
        Attention { terminal: &mut terminal, place: self.place, story: self.story, read: 0 }.until_it_ends();
    }
}

/// A person in front of the screen.
struct Attention<'a, 'b> {
    terminal: &'a mut Terminal<'b>,
    place: &'a Place<'a>,
    story: &'a dyn Story,
    /// How much of the output was dealt with.
    read: usize,
}

impl Attention<'_, '_> {
    fn until_it_ends(&mut self) {
        let deadline = Instant::now() + PATIENCE;
        while !children::has_ended(self.terminal.pid()) {
            assert!(Instant::now() < deadline, "the run does not end; the screen:\n{}", self.terminal.screen());
            if !self.answer_next() {
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        self.terminal.wait();
    }

    fn answer_next(&mut self) -> bool {
        let all = self.terminal.raw();
        let new = plain(&all[self.read..]);
        let step = || {
            new.rsplit_once("\n? ")
                .map(|(_, rest)| rest.split(['\r', '\n', ':']).next().unwrap_or_default().trim().to_owned())
                .unwrap_or_default()
        };
        // A line that is drawn again is no new question.
        let asks = |prompt: &str| new.ends_with(prompt) && !step().is_empty();
        let keys = if asks("/r/l] ") {
            if self.story.is_in_place(self.place, &step()) { "d\r".into() } else { "r\r".to_owned() }
        } else if new.contains("Enter alone goes back.") && new.ends_with("> ") {
            "looked\r".into()
        } else if new.contains("To go on, type") && new.ends_with("> ") || new.contains("Type what you see") && new.ends_with("> ") {
            let step = step();
            let answers = self.story.answers(self.place);
            let (_, text) = answers.iter().find(|(gate, _)| *gate == step).unwrap_or_else(|| panic!("no answer for {step:?} in {new}"));
            format!("{text}\r")
        } else if asks("[y/n] ") {
            "y\r".into()
        } else {
            return false;
        };
        self.read = all.len();
        self.terminal.send(&keys);
        true
    }
}

/// Without escape sequences.
fn plain(text: &str) -> String {
    let escapes = regex::Regex::new(r"\x1b\[[0-9;?]*[A-Za-z]|\r").unwrap();
    escapes.replace_all(text, "").into_owned()
}
