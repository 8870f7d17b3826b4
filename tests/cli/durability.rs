//! No journal, no progress: a failed write or sync stops the run before the next effect,
//! and damage to the journal is noticed.

use runbook::journal::{EventKind, RunPhase};

use crate::crash::history::{History, sqlite, sqlite_file};
use crate::crash::shim::{self, Access, Stop};
use crate::environment::TestEnv;

/// Each step leaves a line in `log`; the third may be run again after an interruption.
const STEPS: &str = "
version: 1
name: steps
steps:
  - id: one
    shell: {run: echo one >> log}
  - id: two
    shell: {run: echo two >> log}
  - id: three
    idempotent: true
    shell: {run: echo three >> log}
  - id: four
    shell: {run: echo four >> log}
";

/// The effects that took place are those whose intent is recorded, but for the last one, perhaps.
fn check_effects(env: &TestEnv, context: &str) {
    let effects = std::fs::read_to_string(env.path("log")).unwrap_or_default();
    let effects: Vec<&str> = effects.lines().collect();
    let intended: Vec<String> = History::last(env)
        .map(|history| history.events)
        .unwrap_or_default()
        .iter()
        .filter_map(|event| match &event.kind {
            EventKind::StepStarted { step, .. } => Some(step.clone()),
            _ => None,
        })
        .collect();
    assert!(
        effects.len() <= intended.len() && effects == intended[..effects.len()],
        "{context}: {effects:?} took place, {intended:?} are recorded"
    );
    assert!(intended.len() - effects.len() <= 1, "{context}: {intended:?} are recorded, only {effects:?} took place");
}

#[test]
fn a_refused_write_stops_the_run_before_the_next_effect() {
    let complete = TestEnv::new();
    complete.write("steps.yaml", STEPS);
    complete.runbook(["run", "steps.yaml"]).run().exits(0);
    let events = History::only(&complete).events.len();
    for refused in 0..events {
        let env = TestEnv::new();
        env.write("steps.yaml", STEPS);
        env.runbook(["list"]).run();
        // SQLite itself refuses, as it does on a full disk.
        sqlite(
            &env,
            &format!(
                "CREATE TRIGGER full BEFORE INSERT ON event WHEN NEW.sequence >= {refused} BEGIN SELECT RAISE(ABORT, 'database or disk is full'); END"
            ),
        );
        let output = env.runbook(["run", "steps.yaml"]).run().exits(1);
        assert!(output.stderr.contains("database or disk is full") && output.stderr.contains("journal"), "{output}");
        let recorded = History::last(&env).map_or(0, |history| history.events.len());
        assert!(recorded <= refused, "{recorded} events are recorded");
        check_effects(&env, &format!("event {refused} refused"));
    }
}

#[test]
fn a_run_goes_on_once_the_journal_can_be_written() {
    let env = TestEnv::new();
    env.write("steps.yaml", STEPS);
    env.runbook(["list"]).run();
    // The end of `two` can't be recorded, so its end is unknown.
    sqlite(
        &env,
        "CREATE TRIGGER full BEFORE INSERT ON event WHEN NEW.body LIKE '%step_finished%two%' BEGIN SELECT RAISE(ABORT, 'database or disk is full'); END",
    );
    let output = env.runbook(["run", "steps.yaml"]).run().exits(1);
    insta::assert_snapshot!(output.stderr, @"
    error: cannot write to the journal [ROOT]/state/runbook/journal.db: database or disk is full
      nothing more was started; free some space or repair the journal's file, then `runbook resume`
    ");
    assert_eq!(env.read("log"), "one\ntwo\n");
    sqlite(&env, "DROP TRIGGER full");
    env.runbook(["resume"]).run().exits(4);
    assert_eq!(env.read("log"), "one\ntwo\n");
    let mut terminal = env.runbook(["resume"]).terminal();
    terminal.wait_for("[d/r/l]").send("d\r").wait_for("goes back").send("the log shows it\r");
    assert_eq!(terminal.wait().code(), Some(0), "{}", terminal.screen());
    assert_eq!(env.read("log"), "one\ntwo\nthree\nfour\n");
}

/// What a failed fsync has lost is not known, so it is not tried again by this process.
#[test]
fn a_failed_sync_or_write_stops_the_run() {
    let complete = TestEnv::new();
    complete.write("steps.yaml", STEPS);
    shim::counted(complete.runbook(["run", "steps.yaml"]), &complete).run().exits(0);
    let (writes, syncs) = shim::take_tally(&complete);
    assert!(writes > 0 && syncs > 0, "the journal is written by other calls than the shim knows");
    let cases = (1..=syncs).map(|number| (Access::Sync, number)).chain((1..=writes).map(|number| (Access::Write, number)));
    for (access, number) in cases {
        let env = TestEnv::new();
        env.write("steps.yaml", STEPS);
        let context = format!("{access:?} {number}");
        let stopped = shim::stopped_at(env.runbook(["run", "steps.yaml"]), access, number, Stop::Fails);
        let stopped = shim::counted(stopped, &env).run();
        // What fails after the last event only tidies up: everything is recorded, and nothing follows.
        let over = number == syncs && stopped.code() == Some(0);
        assert!(over || stopped.code() == Some(1), "{context}: {stopped}");
        check_effects(&env, &context);
        env.runbook(["journal", "verify"]).run().exits(0);
        if History::last(&env).is_some_and(|history| !matches!(history.phase(), RunPhase::Finished(_))) {
            let resumed = env.runbook(["resume"]).run();
            assert!(matches!(resumed.code(), Some(0 | 4)), "{context}: {resumed}");
        }
    }
}

/// One step that takes effect in the same transaction as its proof.
#[test]
fn an_effect_in_a_transaction_survives_the_loss_of_its_record() {
    let mut env = TestEnv::new();
    let database = env.database();
    database.psql("CREATE TABLE marks (step text)");
    env.write(
        "steps.yaml",
        "version: 1\nname: steps\nconnections:\n  main: {url: \"{{ env.DATABASE_URL }}\"}\nsteps:\n  - id: mark\n    sql: {exec: \"INSERT INTO marks VALUES ('mark')\", expect: {rows_affected: 1}}\n    outputs: {rows: rows_affected}\n  - id: read\n    assert: {that: steps.mark.outputs.rows == 1}\n",
    );
    env.runbook(["list"]).run();
    sqlite(
        &env,
        "CREATE TRIGGER full BEFORE INSERT ON event WHEN NEW.body LIKE '%step_finished%mark%' BEGIN SELECT RAISE(ABORT, 'full'); END",
    );
    env.runbook(["run", "steps.yaml"]).run().exits(1);
    sqlite(&env, "DROP TRIGGER full");
    env.runbook(["resume"]).run().exits(0);
    assert_eq!(database.psql("SELECT count(*) FROM marks"), "1");
}

#[test]
fn damage_is_noticed() {
    for damage in [
        "UPDATE event SET body = replace(body, 'exit code 0', 'exit code 1') WHERE body LIKE '%two%' AND body LIKE '%step_finished%'",
        "UPDATE event SET body = replace(body, 'steps', 'stops') WHERE sequence = 0",
        "UPDATE event SET body = replace(body, '\"step\":\"two\"', '\"step\":\"four\"')",
        "DELETE FROM event WHERE sequence = 2",
        "DELETE FROM event WHERE sequence = 0",
        "UPDATE event SET hash = zeroblob(32) WHERE sequence = 3",
        "UPDATE event SET sequence = sequence + 100 WHERE sequence > 2",
        "UPDATE event SET body = 'nonsense' WHERE sequence = 1",
    ] {
        let env = TestEnv::new();
        env.write("steps.yaml", STEPS.replace("echo four", "false; echo four"));
        env.runbook(["run", "steps.yaml"]).run().exits(3);
        let intact = env.runbook(["journal", "verify"]).run().exits(0);
        assert!(intact.stdout.contains("every history is as it was written"), "{intact}");
        let changed = sqlite(&env, &format!("{damage}; SELECT changes()"));
        assert_ne!(changed, "0", "nothing was damaged by {damage}");
        let found = env.runbook(["journal", "verify"]).run().exits(1);
        assert!(found.stdout.contains("damaged at event"), "{damage}: {found}");
        let log = env.read("log");
        let resumed = env.runbook(["resume"]).run();
        assert!(!matches!(resumed.code(), Some(0 | 3 | 4)), "{damage}: {resumed}");
        assert_eq!(env.read("log"), log, "a damaged run is not gone on with");
    }
}

/// Bytes that a bad disk turned, not rows that somebody changed.
#[test]
fn a_file_that_is_no_journal_is_refused() {
    let env = TestEnv::new();
    env.write("steps.yaml", STEPS);
    env.write("journal.db", "this is not a database, whatever its name says, and nothing of it may be lost");
    let output = env.runbook(["run", "steps.yaml", "--journal", "journal.db"]).run().exits(1);
    assert!(output.stderr.contains("journal.db"), "{output}");
    assert!(!env.path("log").exists());
    assert!(env.read("journal.db").starts_with("this is not"));
}

#[test]
fn the_journal_is_its_owners_alone() {
    use std::os::unix::fs::PermissionsExt as _;
    let env = TestEnv::new();
    env.write("steps.yaml", STEPS);
    env.runbook(["run", "steps.yaml"]).run().exits(0);
    let mode = |path: std::path::PathBuf| path.metadata().unwrap().permissions().mode() & 0o7777;
    assert_eq!(mode(env.state("runbook")), 0o700);
    assert_eq!(mode(env.state("runbook/journal.db")), 0o600);
    let mut open = vec![env.state("runbook")];
    while let Some(directory) = open.pop() {
        for entry in std::fs::read_dir(directory).unwrap().flatten() {
            assert_eq!(mode(entry.path()) & 0o077, 0, "{}", entry.path().display());
            if entry.path().is_dir() {
                open.push(entry.path());
            }
        }
    }
    assert_eq!(sqlite_file(&env.state("runbook/journal.db"), "PRAGMA journal_mode"), "wal");
}

#[test]
fn runs_that_begin_together_share_a_new_journal_and_no_id() {
    for _ in 0..60 {
        let env = TestEnv::new();
        let names = ["one", "two"];
        for name in names {
            env.write(&format!("{name}.yaml"), format!("version: 1\nname: {name}\nsteps:\n  - {{id: look, assert: {{that: '1 == 1'}}}}\n"));
        }
        let running = names.map(|name| env.runbook(["run", &format!("{name}.yaml")]).spawn());
        for run in running {
            run.wait().exits(0);
        }
        assert_eq!(History::all(&env).len(), names.len());
    }
}
