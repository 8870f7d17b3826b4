//! Goes on with a run until it is over, as a person would: resumes, decides about
//! steps whose end is unknown after looking, answers gates.

use std::time::{Duration, Instant};

use runbook::journal::{Pause, RunPhase, RunStatus};

use super::history::History;
use super::story::{Place, Story};
use super::{Crash, children, launch};
use crate::environment::PATIENCE;
use crate::terminal::Terminal;

/// A run that gets nowhere is a failure too.
const MOST_ROUNDS: usize = 25;

/// Resumes until the run is done; each of `crashes` hits one of the resumes.
pub fn carry_on(place: &Place, story: &dyn Story, crashes: &mut Vec<Crash>) {
    for _ in 0..MOST_ROUNDS {
        let Some(history) = History::last(&place.env) else {
            // Killed before the first event: nothing has happened, and nothing can be resumed.
            assert!(story.traces(place).is_empty(), "something was done before the run was recorded");
            place.env.runbook(["resume"]).run().exits(64);
            launch(place, &story.arguments(place), crashes.pop().unwrap_or(Crash::Never));
            continue;
        };
        match history.phase() {
            RunPhase::Finished(RunStatus::Done) => return,
            RunPhase::Finished(RunStatus::Aborted) => panic!("nobody aborted it"),
            RunPhase::Paused(Pause::Waiting) => answer_gates(place, story, &history),
            RunPhase::Paused(Pause::Unknown) => decide(place, story, &history),
            RunPhase::Running | RunPhase::Paused(Pause::Interrupted | Pause::Failed) => {
                let crash = crashes.pop().unwrap_or(Crash::Never);
                let output = launch(place, &["resume".into()], crash);
                check_ending(place, &output);
            }
        }
    }
    panic!("the run does not end:\n{}", History::last(&place.env).map(|history| history.listing()).unwrap_or_default());
}

/// The exit code is the one that the journal says, and what is unknown is named.
fn check_ending(place: &Place, output: &crate::environment::Output) {
    let Some(code) = output.code() else { return };
    let history = History::last(&place.env).expect("a run that ended in order has a journal");
    let expected = match history.phase() {
        RunPhase::Finished(_) => 0,
        RunPhase::Paused(Pause::Failed) => 3,
        RunPhase::Paused(Pause::Unknown) => 4,
        RunPhase::Paused(Pause::Waiting) => 5,
        // The target could not be reached, so nothing was begun.
        RunPhase::Paused(Pause::Interrupted) | RunPhase::Running => 6,
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

fn answer_gates(place: &Place, story: &dyn Story, history: &History) {
    let state = history.state();
    let waiting: Vec<&String> =
        state.steps.iter().filter(|(_, progress)| progress.waiting.is_some() && progress.answers.is_empty()).map(|(id, _)| id).collect();
    for (step, text) in story.answers(place) {
        if waiting.iter().any(|id| *id == step) {
            place.env.runbook(["approve", &history.run, step, "--text", &text]).run().exits(0);
        }
    }
    check_ending(place, &launch(place, &["resume".into()], Crash::Never));
}

/// Without a terminal nothing is decided; at one, the person looks and says what is true.
fn decide(place: &Place, story: &dyn Story, history: &History) {
    let before = story.traces(place);
    let again = place.env.runbook(["resume"]).run().exits(4);
    check_ending(place, &again);
    children::are_gone(&history.run);
    assert_eq!(before, story.traces(place), "an undecided step was run:\n{again}");
    let mut terminal = place.env.runbook(["resume"]).terminal();
    Attention { terminal: &mut terminal, place, story, read: 0 }.until_it_ends();
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
        let keys = if new.ends_with("/r/l] ") {
            if self.story.is_in_place(self.place, &step()) { "d\r".into() } else { "r\r".to_owned() }
        } else if new.contains("Enter alone goes back.") && new.ends_with("> ") {
            "looked\r".into()
        } else if new.contains("To go on, type") && new.ends_with("> ") || new.contains("Type what you see") && new.ends_with("> ") {
            let step = step();
            let answers = self.story.answers(self.place);
            let (_, text) = answers.iter().find(|(gate, _)| *gate == step).unwrap_or_else(|| panic!("no answer for {step:?} in {new}"));
            format!("{text}\r")
        } else if new.ends_with("[y/n] ") {
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
