//! What a resume does, and what it leaves alone.

use nix::sys::signal::Signal;
use runbook::journal::{Pause, RunPhase};

use crate::crash::history::History;
use crate::crash::wait_until;
use crate::environment::TestEnv;

fn lines(env: &TestEnv, name: &str) -> usize {
    std::fs::read_to_string(env.path(name)).unwrap_or_default().lines().count()
}

const CLOSING: &str = "
version: 1
name: closing
steps:
  - id: before
    shell: {run: echo done >> before}
  - id: fails
    shell: {run: echo tried >> tried; test -e fixed}
on_failure:
  - id: mourn
    idempotent: true
    shell: {run: 'echo mourned >> mourned; while [ ! -e go ]; do sleep 0.02; done'}
on_success:
  - id: celebrate
    shell: {run: echo celebrated >> celebrated}
always:
  - id: tidy
    shell: {run: echo tidied >> tidied}
";

/// The closing steps belong to the end that they follow: they come to their own end before
/// anything is tried again.
#[test]
fn closing_steps_that_were_cut_off_are_brought_to_their_end_first() {
    for stop in [Signal::SIGKILL, Signal::SIGTERM] {
        let env = TestEnv::new();
        env.write("closing.yaml", CLOSING);
        let running = env.runbook(["run", "closing.yaml"]).spawn();
        wait_until("the closing steps to begin", || env.path("mourned").exists());
        running.signal(stop);
        env.write("go", "");
        running.wait();
        assert_eq!((lines(&env, "tried"), lines(&env, "tidied")), (1, 0), "{stop}");

        env.runbook(["resume"]).run().exits(3);
        assert_eq!((lines(&env, "tried"), lines(&env, "tidied")), (1, 1), "{stop}: nothing is tried again before everything is tidied up");

        env.write("fixed", "");
        env.runbook(["resume"]).run().exits(0);
        let counts = ["before", "tried", "celebrated", "tidied"].map(|name| lines(&env, name));
        assert_eq!(counts, [1, 2, 1, 2], "{stop}");
    }
}

#[test]
fn a_gate_among_the_closing_steps_does_not_bring_the_failed_step_back() {
    let env = TestEnv::new();
    env.write(
        "closing.yaml",
        CLOSING.replace(
            "  - id: mourn\n",
            "  - id: page\n    confirm: {message: Shall somebody be woken?, type_to_confirm: \"yes\"}\n  - id: mourn\n",
        ),
    );
    env.write("go", "");
    env.runbook(["run", "closing.yaml"]).run().exits(5);
    env.runbook(["resume"]).run().exits(5);
    let run = History::only(&env).run;
    env.runbook(["approve", &run, "page", "--text", "yes"]).run().exits(0);
    env.runbook(["resume"]).run().exits(3);
    assert_eq!(["tried", "mourned", "tidied"].map(|name| lines(&env, name)), [1, 1, 1]);
}

#[test]
fn a_run_that_failed_tries_again_and_closes_again() {
    let env = TestEnv::new();
    env.write("closing.yaml", CLOSING);
    env.write("go", "");
    for round in 1..=3 {
        let command = if round == 1 { vec!["run", "closing.yaml"] } else { vec!["resume"] };
        env.runbook(command).run().exits(3);
        assert_eq!(["before", "tried", "mourned", "tidied"].map(|name| lines(&env, name)), [1, round, round, round]);
        assert_eq!(History::only(&env).phase(), RunPhase::Paused(Pause::Failed));
    }
    env.write("fixed", "");
    env.runbook(["resume"]).run().exits(0);
    assert_eq!(["before", "tried", "mourned", "celebrated", "tidied"].map(|name| lines(&env, name)), [1, 4, 3, 1, 4]);
    env.runbook(["resume"]).run().exits(64);
}

/// A failure that stops nothing is over; only a run that failed as a whole tries it again.
#[test]
fn a_tolerated_failure_is_not_repeated_after_a_gate() {
    let env = TestEnv::new();
    env.write(
        "tolerated.yaml",
        "version: 1\nname: tolerated\nsteps:\n  - id: tolerated\n    continue_on_error: true\n    shell: {run: echo tried >> tried; false}\n  \
         - id: go\n    confirm: {message: Go?, type_to_confirm: go}\n  - id: last\n    shell: {run: echo done >> last; test -e fixed}\n",
    );
    env.runbook(["run", "tolerated.yaml"]).run().exits(5);
    env.runbook(["resume"]).run().exits(5);
    let run = History::only(&env).run;
    env.runbook(["approve", &run, "go", "--text", "go"]).run().exits(0);
    env.runbook(["resume"]).run().exits(3);
    assert_eq!((lines(&env, "tried"), lines(&env, "last")), (1, 1));
    env.write("fixed", "");
    env.runbook(["resume"]).run().exits(0);
    assert_eq!((lines(&env, "tried"), lines(&env, "last")), (2, 2));
}

const MARKS: &str = "
version: 1
name: marks
connections:
  main: {url: \"{{ env.DATABASE_URL }}\"}
steps:
  - id: one
    sql: {exec: INSERT INTO marks VALUES ('one')}
  - id: two
    shell: {run: echo tried >> tried; test -e fixed}
  - id: three
    sql: {exec: INSERT INTO marks VALUES ('three')}
";

fn failed_in_two() -> (TestEnv, crate::postgres::Database) {
    let mut env = TestEnv::new();
    let database = env.database();
    database.psql("CREATE TABLE marks (step text)");
    env.write("marks.yaml", MARKS);
    env.runbook(["run", "marks.yaml"]).run().exits(3);
    env.write("fixed", "");
    (env, database)
}

#[test]
fn another_database_is_not_gone_on_with() {
    let (mut env, database) = failed_in_two();
    let other = env.database();
    other.psql("CREATE TABLE marks (step text)");
    let refused = env.runbook(["resume"]).run().exits(6);
    assert!(refused.stderr.contains("another database"), "{refused}");
    assert_eq!(other.psql("SELECT count(*) FROM marks"), "0");
    env.use_database(&database);
    env.runbook(["resume"]).run().exits(0);
    assert_eq!(database.psql("SELECT step FROM marks ORDER BY step"), "one\nthree");
}
