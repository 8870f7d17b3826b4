//! Two operators at once, and a resume while the killed run still works on the server.

use nix::sys::signal::Signal;
use runbook::journal::{EventKind, Resolution};

use crate::crash::history::{History, sqlite_file};
use crate::crash::wait_until;
use crate::environment::{Output, Running, TestEnv};

const HOLD: &str = "
version: 1
name: deploy
connections:
  main: {url: \"{{ env.DATABASE_URL }}\"}
steps:
  - id: hold
    idempotent: true
    shell: {run: 'echo begun >> begun; while [ ! -e go ]; do sleep 0.02; done'}
  - id: mark
    sql: {exec: INSERT INTO marks VALUES ('mark')}
";

/// A run that has begun its first step and stays in it.
fn holder(env: &TestEnv) -> Running<'_> {
    let running = env.runbook(["run", "deploy.yaml"]).spawn();
    wait_for_file(env, "begun");
    running
}

fn wait_for_file(env: &TestEnv, name: &str) {
    wait_until(&format!("{name} to appear"), || env.path(name).exists());
}

/// The holder as it must be named.
fn named(run: &str, running: &Running) -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    format!("run {run} on {} (pid {})", host.trim(), running.pid())
}

#[test]
fn the_second_of_two_operators_is_told_who_holds_the_lock() {
    let mut one = TestEnv::new();
    let database = one.database();
    database.psql("CREATE TABLE marks (step text)");
    one.write("deploy.yaml", HOLD);
    let running = holder(&one);
    let run = History::only(&one).run;

    // From another account or machine: another journal.
    let mut two = TestEnv::new();
    two.use_database(&database);
    two.write("deploy.yaml", HOLD);
    for env in [&one, &two] {
        let refused = env.runbook(["run", "deploy.yaml"]).run().exits(7);
        assert!(refused.raw_stderr.contains(&named(&run, &running)), "{refused}");
        assert_eq!(refused.raw_stdout, "", "nothing was begun");
    }
    assert_eq!(History::all(&one).len(), 1, "a refused run leaves no trace");
    assert!(!two.path("begun").exists());

    one.write("go", "");
    running.wait().exits(0);
    two.write("go", "");
    two.runbook(["run", "deploy.yaml"]).run().exits(0);
    assert_eq!(database.psql("SELECT count(*) FROM marks"), "2");
}

#[test]
fn operators_who_start_in_the_same_moment_run_one_after_the_other() {
    let mut env = TestEnv::new();
    let database = env.database();
    database.psql("CREATE TABLE marks (step text)");
    env.write("deploy.yaml", HOLD);
    for round in 0..3 {
        let both = [env.runbook(["run", "deploy.yaml"]).spawn(), env.runbook(["run", "deploy.yaml"]).spawn()];
        wait_for_file(&env, "begun");
        wait_until("one of them to be refused", || both.iter().any(Running::has_ended));
        env.write("go", "");
        let both = both.map(Running::wait);
        let mut codes = both.each_ref().map(Output::code);
        codes.sort_unstable();
        assert_eq!(codes, [Some(0), Some(7)], "round {round}: {}\n{}", both[0], both[1]);
        assert_eq!(env.read("begun"), "begun\n", "one of them ran");
        std::fs::remove_file(env.path("begun")).unwrap();
        std::fs::remove_file(env.path("go")).unwrap();
    }
    assert_eq!(database.psql("SELECT count(*) FROM marks"), "3");
}

/// A run that lost its lock with its connection, while another one got it, changes nothing any more.
#[test]
fn a_lock_that_was_lost_to_another_run_stops_the_first() {
    let mut one = TestEnv::new();
    let database = one.database();
    database.psql("CREATE TABLE marks (step text)");
    // The first attempt finds its connection broken, the second its lock gone.
    one.write("deploy.yaml", HOLD.replace("  - id: mark\n", "  - id: mark\n    retry: {max: 3, delay: 1ms, on: [any]}\n"));
    let first = holder(&one);
    database.psql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND application_name LIKE 'runbook/%/@%'");

    let mut two = TestEnv::new();
    two.use_database(&database);
    two.write("deploy.yaml", HOLD.replace("'mark')", "'mark of the second')"));
    let second = holder(&two);
    one.write("go", "");
    let stopped = first.wait().exits(3);
    assert!(stopped.stdout.contains("the run lock on `main` was lost"), "{stopped}");
    assert_eq!(database.psql("SELECT count(*) FROM marks"), "0");
    one.runbook(["resume"]).run().exits(7);

    two.write("go", "");
    second.wait().exits(0);
    one.runbook(["resume"]).run().exits(0);
    assert_eq!(database.psql("SELECT step FROM marks ORDER BY step"), "mark\nmark of the second");
}

#[test]
fn without_a_database_the_lock_is_the_machines() {
    let env = TestEnv::new();
    env.write(
        "deploy.yaml",
        "version: 1\nname: deploy\nsteps:\n  - id: hold\n    shell: {run: 'echo begun >> begun; while [ ! -e go ]; do sleep 0.02; done'}\n",
    );
    let running = holder(&env);
    let refused = env.runbook(["run", "deploy.yaml"]).run().exits(7);
    assert!(refused.raw_stderr.contains(&named(&History::only(&env).run, &running)), "{refused}");
    env.write("go", "");
    running.wait().exits(0);
}

#[test]
fn a_sqlite_target_is_locked_too() {
    let one = TestEnv::new();
    let database = one.path("app.db");
    sqlite_file(&database, "CREATE TABLE marks (step TEXT)");
    let playbook = HOLD.replace("{{ env.DATABASE_URL }}", &format!("sqlite:{}", database.display()));
    one.write("deploy.yaml", &playbook);
    let running = holder(&one);
    let two = TestEnv::new();
    two.write("deploy.yaml", &playbook);
    let refused = two.runbook(["run", "deploy.yaml"]).run().exits(7);
    assert!(refused.raw_stderr.contains(&named(&History::only(&one).run, &running)), "{refused}");
    one.write("go", "");
    running.wait().exits(0);
    assert_eq!(sqlite_file(&database, "SELECT count(*) FROM marks"), "1");
}

#[test]
fn a_run_is_not_resumed_while_it_runs() {
    let mut env = TestEnv::new();
    env.database().psql("CREATE TABLE marks (step text)");
    env.write("deploy.yaml", HOLD);
    let running = holder(&env);
    let refused = env.runbook(["resume"]).run().exits(7);
    assert!(refused.raw_stderr.contains(&named(&History::only(&env).run, &running)), "{refused}");
    env.write("go", "");
    running.wait().exits(0);
}

#[test]
fn a_killed_holder_frees_its_lock() {
    let mut env = TestEnv::new();
    let database = env.database();
    database.psql("CREATE TABLE marks (step text)");
    env.write("deploy.yaml", HOLD);
    holder(&env).kill();
    env.write("go", "");
    env.runbook(["run", "deploy.yaml"]).run().exits(0);
    assert_eq!(database.psql("SELECT count(*) FROM marks"), "1");
}

/// A statement that waits for somebody else, and whose backend lives on after its client was killed.
fn long(statement: &str) -> String {
    format!(
        "
version: 1
name: long
connections:
  main: {{url: \"{{{{ env.DATABASE_URL }}}}\"}}
defaults: {{lock_timeout: 10m, statement_timeout: 10m}}
steps:
{statement}
  - id: after
    sql: {{exec: INSERT INTO marks VALUES ('after')}}
"
    )
}

/// Kills the run in its statement, resumes it, and lets the statement go on once the resume waits.
fn resumed_while_the_backend_works(playbook: &str) -> (TestEnv, crate::postgres::Database) {
    let mut env = TestEnv::new();
    let database = env.database();
    database.psql("CREATE TABLE marks (step text)");
    env.write("long.yaml", playbook);
    let mut other = database.session();
    other.run("SELECT pg_advisory_lock(42)");
    let running = env.runbook(["run", "long.yaml"]).spawn();
    wait_for_backend(&database);
    running.kill();
    let resumed = env.runbook(["resume"]).spawn();
    resumed.wait_for("still works on the server");
    assert_eq!(database.psql("SELECT count(*) FROM marks"), "0");
    assert!(!resumed.has_ended());
    other.run("SELECT pg_advisory_unlock(42)");
    resumed.wait().exits(0);
    (env, database)
}

fn wait_for_backend(database: &crate::postgres::Database) {
    let waiting = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name LIKE 'runbook/%/slow' AND wait_event = 'advisory'";
    wait_until("the statement to wait for its lock", || database.psql(waiting) == "1");
}

fn resolution(env: &TestEnv) -> Resolution {
    let events = History::only(env).events;
    let resolved = events.iter().find_map(|event| match &event.kind {
        EventKind::StepResolved { step, resolution, .. } if step == "slow" => Some(*resolution),
        _ => None,
    });
    resolved.expect("the interrupted step was settled")
}

/// What the killed client's backend commits on its own counts, once it has ended.
#[test]
fn a_resume_waits_for_a_statement_that_commits_by_itself() {
    let playbook = long(
        "  - id: slow
    done_when: {sql: {query: \"SELECT count(*) FROM marks WHERE step = 'slow'\", expect: {value: 1}}}
    sql:
      transaction: none
      exec: |
        SET client_connection_check_interval = 0;
        INSERT INTO marks SELECT 'slow' FROM (SELECT pg_advisory_lock(42)) AS waited;
",
    );
    let (env, database) = resumed_while_the_backend_works(&playbook);
    assert_eq!(database.psql("SELECT step FROM marks ORDER BY step"), "after\nslow");
    assert_eq!(resolution(&env), Resolution::Done);
}

/// A transaction whose client is gone never commits, so it is run again: once, after the first has ended.
#[test]
fn a_resume_waits_for_a_transaction_that_will_roll_back() {
    let playbook = long(
        "  - id: slow
    sql:
      exec: |
        SET LOCAL client_connection_check_interval = 0;
        INSERT INTO marks SELECT 'slow' FROM (SELECT pg_advisory_xact_lock(42)) AS waited;
",
    );
    let (env, database) = resumed_while_the_backend_works(&playbook);
    assert_eq!(database.psql("SELECT step FROM marks ORDER BY step"), "after\nslow");
    assert_eq!(resolution(&env), Resolution::RunAgain);
}

/// The interval that runbook sets on its connections makes the server notice by itself.
#[test]
fn a_statement_of_a_killed_run_is_cancelled_by_the_server() {
    let mut env = TestEnv::new();
    let database = env.database();
    database.psql("CREATE TABLE marks (step text)");
    let step = "  - id: slow\n    sql: {exec: INSERT INTO marks SELECT 'slow' FROM (SELECT pg_advisory_xact_lock(42)) AS waited}\n";
    env.write("long.yaml", long(step));
    let mut other = database.session();
    other.run("SELECT pg_advisory_lock(42)");
    let running = env.runbook(["run", "long.yaml"]).spawn();
    wait_for_backend(&database);
    running.kill();
    // Nobody lets the statement go on: that its backend goes away is the interval's doing.
    let backends = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name LIKE 'runbook/%'";
    wait_until("the killed run's backend to go", || database.psql(backends) == "0");
    other.run("SELECT pg_advisory_unlock(42)");
    env.runbook(["resume"]).run().exits(0);
    assert_eq!(database.psql("SELECT step FROM marks ORDER BY step"), "after\nslow");
}

/// At a terminal the operator may end the earlier backend instead of waiting for it.
#[test]
fn an_operator_may_end_the_earlier_backend() {
    let mut env = TestEnv::new();
    let database = env.database();
    database.psql("CREATE TABLE marks (step text)");
    let step = "  - id: slow
    sql:
      exec: |
        SET LOCAL client_connection_check_interval = 0;
        INSERT INTO marks SELECT 'slow' FROM pg_sleep(CASE WHEN (SELECT count(*) FROM attempts) = 0 THEN 1000 ELSE 0 END);
";
    env.write("long.yaml", long(step));
    database.psql("CREATE TABLE attempts (number int)");
    let running = env.runbook(["run", "long.yaml"]).spawn();
    let asleep = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name LIKE 'runbook/%/slow' AND wait_event = 'PgSleep'";
    wait_until("the statement to sleep", || database.psql(asleep) == "1");
    running.kill();
    database.psql("INSERT INTO attempts VALUES (1)");
    let mut terminal = env.runbook(["resume"]).terminal();
    terminal.wait_for("[w/t]").send("t\r");
    assert_eq!(terminal.wait().code(), Some(0), "{}", terminal.screen());
    assert_eq!(database.psql("SELECT step FROM marks ORDER BY step"), "after\nslow");
}

/// A resume that waits can be interrupted; the run stays as it was.
#[test]
fn waiting_for_a_backend_can_be_interrupted() {
    let mut env = TestEnv::new();
    let database = env.database();
    database.psql("CREATE TABLE marks (step text)");
    let step = "  - id: slow
    sql:
      exec: |
        SET LOCAL client_connection_check_interval = 0;
        INSERT INTO marks SELECT 'slow' FROM (SELECT pg_advisory_xact_lock(42)) AS waited;
";
    env.write("long.yaml", long(step));
    let mut other = database.session();
    other.run("SELECT pg_advisory_lock(42)");
    let running = env.runbook(["run", "long.yaml"]).spawn();
    wait_for_backend(&database);
    running.kill();
    let resumed = env.runbook(["resume"]).spawn();
    resumed.wait_for("still works on the server");
    resumed.signal(Signal::SIGINT);
    resumed.wait().exits(130);
    other.run("SELECT pg_advisory_unlock(42)");
    env.runbook(["resume"]).run().exits(0);
    assert_eq!(database.psql("SELECT step FROM marks ORDER BY step"), "after\nslow");
}

/// The guard ends what a killed run leaves; where it was killed too, the resume waits.
#[test]
fn a_resume_waits_for_the_children_of_the_killed_run() {
    let env = TestEnv::new();
    let script = "echo begun >> begun; while [ ! -e go ]; do sleep 0.02; done; echo ended >> ended";
    env.write(
        "child.yaml",
        format!("version: 1\nname: child\nsteps:\n  - id: slow\n    idempotent: true\n    shell: {{run: '{script}'}}\n"),
    );
    let running = env.runbook(["run", "child.yaml"]).spawn();
    wait_for_file(&env, "begun");
    let run = History::only(&env).run;
    for guard in guards_of(running.pid()) {
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(guard), Signal::SIGKILL).unwrap();
    }
    running.kill();
    assert!(!crate::crash::children::of(&run).is_empty());
    let resumed = env.runbook(["resume"]).spawn();
    resumed.wait_for("still run (pid");
    assert_eq!(env.read("begun"), "begun\n", "the step is not begun a second time beside the first");
    env.write("go", "");
    resumed.wait().exits(0);
    assert_eq!((env.read("begun"), env.read("ended")), ("begun\nbegun\n".into(), "ended\nended\n".into()));
}

fn guards_of(parent: u32) -> Vec<i32> {
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    let theirs = processes.filter(|entry| {
        let read = |name| std::fs::read_to_string(entry.path().join(name)).unwrap_or_default();
        let is_child = read("stat").rsplit_once(") ").is_some_and(|(_, rest)| rest.split(' ').nth(1) == Some(&parent.to_string()));
        is_child && read("cmdline").starts_with("runbook-guard")
    });
    theirs.map(|entry| entry.file_name().to_string_lossy().parse().unwrap()).collect()
}
