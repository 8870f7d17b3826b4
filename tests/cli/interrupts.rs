//! Ctrl+C once, twice, three times; SIGTERM and SIGHUP; and that a resume goes on from there.

use nix::sys::signal::Signal;
use runbook::journal::{Pause, RunPhase};

use crate::crash::history::History;
use crate::crash::{children, wait_until};
use crate::environment::{Running, TestEnv};
use crate::postgres::{Database, Session};
use crate::terminal::key;

/// A transaction that waits for the test, and a step behind it.
const SQL: &str = "
version: 1
name: long
connections:
  main: {url: \"{{ env.DATABASE_URL }}\"}
defaults: {lock_timeout: 10m, statement_timeout: 10m}
steps:
  - id: slow
    sql: {exec: INSERT INTO marks SELECT 'slow' FROM (SELECT pg_advisory_xact_lock(42)) AS waited}
  - id: after
    sql: {exec: INSERT INTO marks VALUES ('after')}
";

const WAITING: &str = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name LIKE 'runbook/%/slow' AND wait_event = 'advisory'";
const BUSY: &str =
    "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name LIKE 'runbook/%' AND state <> 'idle'";

fn with_sql() -> (TestEnv, Database, Session) {
    let mut env = TestEnv::new();
    let database = env.database();
    database.psql("CREATE TABLE marks (step text)");
    env.write("long.yaml", SQL);
    let mut other = database.session();
    other.run("SELECT pg_advisory_lock(42)");
    (env, database, other)
}

fn in_its_transaction<'a>(env: &'a TestEnv, database: &Database) -> Running<'a> {
    let running = env.runbook(["run", "long.yaml"]).spawn();
    wait_until("the statement to wait for its lock", || database.psql(WAITING) == "1");
    running
}

fn marks(database: &Database) -> String {
    database.psql("SELECT string_agg(step, ' ' ORDER BY step) FROM marks")
}

#[test]
fn the_first_interrupt_lets_the_transaction_finish() {
    for (signal, code) in [(Signal::SIGINT, 130), (Signal::SIGTERM, 143), (Signal::SIGHUP, 143)] {
        let (env, database, mut other) = with_sql();
        let running = in_its_transaction(&env, &database);
        running.signal(signal).wait_for("Once more cancels");
        assert_eq!(database.psql(WAITING), "1", "it goes on");
        other.run("SELECT pg_advisory_unlock(42)");
        let output = running.wait().exits(code);
        assert_eq!(marks(&database), "slow", "what ran has finished, nothing new was started");
        let history = History::only(&env);
        assert_eq!(history.phase(), RunPhase::Paused(Pause::Interrupted));
        assert!(output.raw_stdout.contains(&format!("runbook resume {}", history.run)), "{output}");
        env.runbook(["resume"]).run().exits(0);
        assert_eq!(marks(&database), "after slow");
    }
}

#[test]
fn the_second_interrupt_cancels_on_the_server() {
    let (env, database, mut other) = with_sql();
    let running = in_its_transaction(&env, &database);
    running.signal(Signal::SIGINT).wait_for("Once more cancels");
    running.signal(Signal::SIGINT).wait_for("once more leaves at once");
    let output = running.wait().exits(130);
    assert_eq!(database.psql(BUSY), "0", "the statement ended on the server too");
    assert_eq!(marks(&database), "");
    let history = History::only(&env);
    assert!(output.raw_stdout.contains(&format!("runbook resume {}", history.run)), "{output}");
    other.run("SELECT pg_advisory_unlock(42)");
    env.runbook(["resume"]).run().exits(0);
    assert_eq!(marks(&database), "after slow");
}

#[test]
fn the_third_interrupt_leaves_at_once() {
    let (env, database, mut other) = with_sql();
    let running = in_its_transaction(&env, &database);
    // One after the other, for equal signals that wait together count once.
    running.signal(Signal::SIGINT).wait_for("Once more cancels");
    // Stopped in the middle of cancelling: the server does not answer any more.
    let stuck = env.command("sh", ["-c", "kill -STOP $0", &database.psql(&WAITING.replace("count(*)", "pid"))]).run().exits(0);
    running.signal(Signal::SIGINT).wait_for("once more leaves at once");
    running.signal(Signal::SIGINT);
    running.wait().exits(130);
    env.command(
        "sh",
        ["-c", "kill -CONT $0", &database.psql(&WAITING.replace("count(*)", "pid").replace("wait_event = 'advisory'", "true"))],
    )
    .run();
    drop(stuck);
    other.run("SELECT pg_advisory_unlock(42)");
    env.runbook(["resume"]).run().exits(0);
    assert_eq!(marks(&database), "after slow");
}

#[test]
fn at_a_terminal_each_line_says_what_the_next_press_does() {
    let (env, database, mut other) = with_sql();
    let mut terminal = env.runbook(["run", "long.yaml"]).terminal();
    wait_until("the statement to wait for its lock", || database.psql(WAITING) == "1");
    terminal.send(key::CTRL_C).wait_for("Once more cancels");
    terminal.send(key::CTRL_C).wait_for("once more leaves at once");
    assert_eq!(terminal.wait().code(), Some(130), "{}", terminal.screen());
    assert!(terminal.shows_cursor() && terminal.is_sane());
    assert!(terminal.screen().contains("runbook resume"), "{}", terminal.screen());
    other.run("SELECT pg_advisory_unlock(42)");
    env.runbook(["resume"]).run().exits(0);
    assert_eq!(marks(&database), "after slow");
}

/// Without a transaction nobody can say what a cancelled script has done, except its `done_when`.
const SHELL: &str = "
version: 1
name: long
steps:
  - id: script
    shell: {run: 'echo begun >> begun; while [ ! -e go ]; do sleep 0.02; done; echo done >> ended'}
  - id: after
    shell: {run: echo done >> after}
";

fn in_its_script(env: &TestEnv) -> Running<'_> {
    let running = env.runbook(["run", "long.yaml"]).spawn();
    wait_until("the script to begin", || env.path("begun").exists());
    running
}

#[test]
fn the_first_interrupt_lets_a_script_finish() {
    let env = TestEnv::new();
    env.write("long.yaml", SHELL);
    let running = in_its_script(&env);
    running.signal(Signal::SIGINT).wait_for("Once more cancels");
    env.write("go", "");
    running.wait().exits(130);
    assert_eq!(env.read("ended"), "done\n");
    assert!(!env.path("after").exists());
    env.runbook(["resume"]).run().exits(0);
    assert_eq!((env.read("begun"), env.read("after")), ("begun\n".into(), "done\n".into()));
}

#[test]
fn a_cancelled_script_is_unknown_and_not_run_again_by_itself() {
    let env = TestEnv::new();
    env.write("long.yaml", SHELL);
    let running = in_its_script(&env);
    running.signal(Signal::SIGTERM).wait_for("Once more cancels");
    running.signal(Signal::SIGTERM).wait_for("once more leaves at once");
    let output = running.wait().exits(143);
    let history = History::only(&env);
    assert_eq!(history.phase(), RunPhase::Paused(Pause::Unknown), "{output}");
    assert_eq!(history.unsettled(), ["script"]);
    children::are_gone(&history.run);
    env.write("go", "");
    env.runbook(["resume"]).run().exits(4);
    assert_eq!(env.read("begun"), "begun\n");
}

#[test]
fn an_interrupt_does_not_wait_for_the_next_attempt() {
    for step in ["shell: {run: echo begun >> begun; false}", "http: {url: \"http://127.0.0.1:1/\"}"] {
        let env = TestEnv::new();
        env.write(
            "retry.yaml",
            format!(
                "version: 1\nname: retry\nsteps:\n  - id: flaky\n    retry: {{max: 5, delay: 1h, max_delay: 1h, on: [any]}}\n    {step}\n"
            ),
        );
        let running = env.runbook(["run", "retry.yaml"]).spawn();
        wait_until("the first attempt to fail", || {
            History::last(&env).is_some_and(|history| history.has(|kind| matches!(kind, runbook::journal::EventKind::StepRetrying { .. })))
        });
        running.signal(Signal::SIGINT);
        let output = running.wait().exits(130);
        let history = History::only(&env);
        assert_eq!(history.phase(), RunPhase::Paused(Pause::Interrupted), "{output}");
        assert_eq!(history.unsettled(), Vec::<String>::new(), "nothing is in flight between two attempts");
    }
}

/// What hangs before the first step is not waited for either: nothing has begun.
#[test]
fn an_interrupt_while_connecting_ends_the_run_at_once() {
    let mut env = TestEnv::new();
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    env.set("DATABASE_URL", &format!("postgres://nobody@{}/nothing?sslmode=disable&connect_timeout=50", silent.local_addr().unwrap()));
    env.write("long.yaml", SQL);
    let running = env.runbook(["run", "long.yaml"]).spawn();
    let (connection, _) = silent.accept().unwrap();
    running.signal(Signal::SIGINT);
    running.wait().exits(130);
    drop(connection);
    assert!(History::all(&env).is_empty(), "nothing was begun");
}

#[test]
fn an_interrupt_of_parallel_steps_lets_all_of_them_finish() {
    let env = TestEnv::new();
    let steps: String = ["a", "b", "c"].map(|id| format!("  - id: {id}\n    needs: []\n    shell: {{run: 'echo begun > begun-{id}; while [ ! -e go ]; do sleep 0.02; done; echo done > ended-{id}'}}\n")).concat();
    env.write("side.yaml", format!("version: 1\nname: side\nmax_parallel: 2\nsteps:\n{steps}"));
    let running = env.runbook(["run", "side.yaml"]).spawn();
    wait_until("two to begin", || env.path("begun-a").exists() && env.path("begun-b").exists());
    running.signal(Signal::SIGINT).wait_for("Once more cancels");
    env.write("go", "");
    running.wait().exits(130);
    assert!(env.path("ended-a").exists() && env.path("ended-b").exists() && !env.path("begun-c").exists());
    env.runbook(["resume"]).run().exits(0);
    assert!(env.path("ended-c").exists());
}
