//! The journal as the tests read it: by another program, folded by the engine's own
//! transition function.

use std::process::Command;

use runbook::journal::{Event, EventKind, Outcome, Phase, RunPhase, RunState, StepState};

use crate::environment::TestEnv;

/// One run's events.
#[derive(Debug, Clone)]
pub struct History {
    pub run: String,
    pub events: Vec<Event>,
}

impl History {
    /// The youngest run of the default journal, if there is one.
    pub fn last(env: &TestEnv) -> Option<Self> {
        Self::all(env).pop()
    }

    /// The only run.
    pub fn only(env: &TestEnv) -> Self {
        let mut all = Self::all(env);
        assert_eq!(all.len(), 1, "exactly one run is expected");
        all.remove(0)
    }

    /// Every run, oldest first.
    pub fn all(env: &TestEnv) -> Vec<Self> {
        if !env.state("runbook/journal.db").exists() {
            return Vec::new();
        }
        let mut histories: Vec<Self> = Vec::new();
        // A process that was killed early has not made the table yet.
        if sqlite(env, "SELECT count(*) FROM sqlite_schema WHERE name = 'event'") != "1" {
            return histories;
        }
        for line in sqlite(env, "SELECT run, body FROM event ORDER BY run, sequence").lines() {
            let (run, body) = line.split_once('|').unwrap();
            let event: Event = serde_json::from_str(body).unwrap_or_else(|error| panic!("{error} in {body}"));
            match histories.last_mut().filter(|history| history.run == run) {
                Some(history) => history.events.push(event),
                None => histories.push(Self { run: run.into(), events: vec![event] }),
            }
        }
        histories
    }

    /// What the events fold to; that they do is part of every test.
    pub fn state(&self) -> RunState {
        let folded = RunState::replay(&self.events).unwrap_or_else(|error| panic!("{error}\n{}", self.listing()));
        folded.unwrap_or_else(|| panic!("a run without events"))
    }

    pub fn phase(&self) -> RunPhase {
        self.state().phase
    }

    /// Steps and instances of the procedure itself that are recorded as having their effect.
    pub fn done(&self) -> Vec<String> {
        let state = self.state();
        let closing: Vec<&str> = state.header.steps.iter().filter(|step| step.phase != Phase::Steps).map(|step| step.id.as_str()).collect();
        let done = state.steps.iter().filter(|(id, progress)| {
            !closing.contains(&id.as_str())
                && matches!(
                    progress.state,
                    StepState::Finished(Outcome::Done { .. } | Outcome::AlreadyDone { .. } | Outcome::Warned { .. })
                )
        });
        done.map(|(id, _)| id.clone()).collect()
    }

    /// Steps that began and have no end.
    pub fn unsettled(&self) -> Vec<String> {
        self.state().unsettled().into_iter().map(Into::into).collect()
    }

    /// How often a step failed in a way that ended the run, or nearly did before a crash.
    pub fn failures(&self) -> usize {
        self.events.iter().filter(|event| matches!(event.kind, EventKind::StepFinished { outcome: Outcome::Failed { .. }, .. })).count()
    }

    pub fn has(&self, wanted: impl Fn(&EventKind) -> bool) -> bool {
        self.events.iter().any(|event| wanted(&event.kind))
    }

    pub fn started(&self, id: &str) -> bool {
        self.has(|kind| matches!(kind, EventKind::StepStarted { step, .. } if step == id))
    }

    /// One line an event, for messages of failed tests.
    pub fn listing(&self) -> String {
        self.events
            .iter()
            .map(|event| {
                format!(
                    "  {} {}\n",
                    event.sequence,
                    serde_json::to_string(&event.kind).unwrap_or_default().chars().take(300).collect::<String>()
                )
            })
            .collect()
    }
}

/// Runs SQL on the journal with the `sqlite3` program.
pub fn sqlite(env: &TestEnv, sql: &str) -> String {
    sqlite_file(&env.state("runbook/journal.db"), sql)
}

/// Runs SQL on a SQLite file.
pub fn sqlite_file(file: &std::path::Path, sql: &str) -> String {
    let output =
        Command::new("sqlite3").args(["-batch", "-init", "/dev/null", "-cmd", ".timeout 30000"]).arg(file).arg(sql).output().unwrap();
    assert!(output.status.success(), "{sql}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim_end().to_owned()
}
