//! The journal against a real file: durable, private, chained, redacted.

use std::os::unix::fs::PermissionsExt;

use sqlx::{ConnectOptions, Executor};

use super::*;
use crate::action::{Class, Recovery};
use crate::clock::Clock;
use crate::outcome::{ErrorKind, StepError, StepResult};
use crate::secret::{Redactor, Secret};

fn clock() -> Clock {
    Clock::fixed("2026-02-03T04:05:06Z".parse().expect("a timestamp"), 1)
}

fn header() -> RunHeader {
    let record = |id: &str, phase| StepRecord {
        id: id.into(),
        name: None,
        digest: "d".into(),
        phase,
        class: Class::Change,
        recovery: Recovery::Unknown,
        tolerated: false,
    };
    RunHeader {
        format: event::FORMAT,
        engine: "0".into(),
        playbook: "p".into(),
        file: "p.yaml".into(),
        directory: "/".into(),
        digest: "d".into(),
        params: serde_json::Map::new(),
        selection: Selection::default(),
        steps: vec![record("a", Phase::Steps), record("b", Phase::Steps), record("tell", Phase::OnFailure)],
        targets: std::collections::BTreeMap::new(),
        operator: Operator { user: "ada".into(), host: "h".into(), pid: 1 },
        assume_yes: false,
    }
}

fn started(step: &str, attempt: u32) -> EventKind {
    EventKind::StepStarted { step: step.into(), attempt }
}

fn finished(step: &str, outcome: Outcome) -> EventKind {
    EventKind::StepFinished { step: step.into(), attempt: 1, outcome, duration_ms: 1 }
}

fn done() -> Outcome {
    Outcome::Done { result: Box::new(StepResult::default()) }
}

fn failed() -> Outcome {
    Outcome::Failed { error: Box::new(StepError::new(ErrorKind::Process, "exit code 1")) }
}

async fn journal_with(kinds: Vec<EventKind>) -> (tempfile::TempDir, Journal, RunState) {
    let directory = tempfile::tempdir().expect("a directory");
    let mut journal = Journal::open(&directory.path().join("state/journal.db"), clock()).await.expect("opens");
    let none = Redactor::default();
    let mut state = journal.begin("r1", EventKind::RunStarted(Box::new(header())), &none).await.expect("begins");
    journal.append("r1", &mut state, kinds, &none).await.expect("appends");
    (directory, journal, state)
}

#[tokio::test]
async fn the_stored_state_is_the_live_state() {
    let (_directory, mut journal, live) = journal_with(vec![started("a", 1), finished("a", done()), started("b", 1)]).await;
    let stored = journal.load("r1").await.expect("loads").expect("is there");
    assert_eq!(stored.next_sequence, live.next_sequence);
    assert!(stored.state_of("a").succeeded());
    assert_eq!(stored.unsettled(), ["b"]);
    assert!(journal.load("r2").await.expect("loads").is_none());
}

#[tokio::test]
async fn the_file_is_the_owners_alone() {
    let (directory, _journal, _) = journal_with(vec![]).await;
    let mode = |path: &str| std::fs::metadata(directory.path().join(path)).expect("exists").permissions().mode() & 0o777;
    assert_eq!(mode("state"), 0o700);
    assert_eq!(mode("state/journal.db"), 0o600);
}

#[tokio::test]
async fn a_changed_or_missing_event_is_noticed() {
    for (statement, sequence) in [
        ("UPDATE event SET body = replace(body, '\"attempt\":1', '\"attempt\":2') WHERE sequence = 1", 1),
        ("DELETE FROM event WHERE sequence = 2", 2),
        ("UPDATE event SET run = 'r9' WHERE sequence = 0", 0),
    ] {
        let (directory, mut journal, _) = journal_with(vec![started("a", 1), finished("a", done()), started("b", 1)]).await;
        let options = sqlx::sqlite::SqliteConnectOptions::new().filename(directory.path().join("state/journal.db"));
        options.connect().await.expect("connects").execute(statement).await.expect("changes");
        let damage = journal.verify().await.expect("reads");
        assert!(damage.iter().any(|damage| damage.sequence == sequence), "{statement}: {damage:?}");
    }
}

#[tokio::test]
async fn a_second_writer_is_noticed_and_caught_up_with() {
    let (directory, mut journal, mut state) = journal_with(vec![started("a", 1)]).await;
    let mut other = Journal::open(&directory.path().join("state/journal.db"), clock()).await.expect("opens");
    let mut behind = other.load("r1").await.expect("loads").expect("is there");
    let none = Redactor::default();
    journal.append("r1", &mut state, vec![finished("a", done())], &none).await.expect("appends");
    let conflict = other.append("r1", &mut behind, vec![finished("a", done())], &none).await;
    assert!(matches!(conflict, Err(JournalError::Conflict { .. })), "{conflict:?}");
    other.catch_up("r1", &mut behind).await.expect("catches up");
    other.append("r1", &mut behind, vec![started("b", 1)], &none).await.expect("goes on");
    assert!(journal.verify().await.expect("reads").is_empty());
}

#[tokio::test]
async fn secrets_are_not_stored() {
    let (directory, mut journal, mut state) = journal_with(vec![started("a", 1)]).await;
    let redactor = Redactor::new([&Secret::new("hunter2!")]);
    let result = StepResult { stdout: Some("password hunter2! accepted".into()), ..StepResult::default() };
    let outcome = Outcome::Done { result: Box::new(result) };
    let events = journal.append("r1", &mut state, vec![finished("a", outcome)], &redactor).await.expect("appends");
    assert!(format!("{events:?}").contains("password *** accepted"));
    // Looked at while it is open: once closed, its log and index vanish at a moment of their own.
    let mut stored = Vec::new();
    for entry in std::fs::read_dir(directory.path().join("state")).expect("lists") {
        stored.extend(std::fs::read(entry.expect("an entry").path()).expect("reads"));
    }
    let holds = |text: &str| stored.windows(text.len()).any(|window| window == text.as_bytes());
    assert!(holds("*** accepted"), "the files hold the event");
    assert!(!holds("hunter2!"));
    drop(journal);
}

#[tokio::test]
async fn resuming_gives_failed_steps_another_go_and_keeps_done_ones() {
    let kinds = vec![
        started("a", 1),
        finished("a", done()),
        started("b", 1),
        finished("b", failed()),
        started("tell", 1),
        finished("tell", done()),
        EventKind::RunPaused { reason: Pause::Failed },
        EventKind::RunResumed { operator: header().operator, digest: None },
    ];
    let (_directory, _journal, state) = journal_with(kinds).await;
    assert!(state.state_of("a").succeeded());
    assert_eq!(*state.state_of("b"), StepState::Pending);
    assert_eq!(*state.state_of("tell"), StepState::Pending, "closing steps belong to the end that was");
    assert_eq!(state.failures, 1);
}

#[tokio::test]
async fn events_that_cannot_follow_are_refused() {
    for kinds in [
        vec![started("a", 2)],
        vec![started("a", 1), started("a", 2)],
        vec![started("a", 1), finished("a", done()), started("a", 2)],
        vec![EventKind::StepResolved { step: "a".into(), resolution: Resolution::Done, reason: "x".into(), by: None }],
        vec![EventKind::RunFinished { status: RunStatus::Done }, started("a", 1)],
    ] {
        let (_directory, mut journal, mut state) = journal_with(vec![]).await;
        let refused = journal.append("r1", &mut state, kinds.clone(), &Redactor::default()).await;
        assert!(matches!(refused, Err(JournalError::Illegal(_))), "{kinds:?}");
    }
}
