//! Batches among others: whom they wait for, who waits for them, and who may stop them.

use crate::crash::history::History;
use crate::crash::wait_until;
use crate::environment::{Output, TestEnv};
use crate::postgres::{Database, Server};

const PLAYBOOK: &str = "
version: 1
name: barcodes
connections:
  main: {url: \"{{ env.DATABASE_URL }}\"}
steps:
  - id: assign
    sql_batch:
      table: racks
      where: barcode IS NULL
      set: {barcode: \"'R-' || id\"}
      order: key
      batch_size: 100
      target_duration: 1ms
      lock_timeout: 50s
      expect: {remaining: 0}
      throttle: THROTTLE
";

fn with_racks(mut env: TestEnv, database: &Database, throttle: &str) -> TestEnv {
    env.use_database(database);
    database.psql("CREATE TABLE racks (id int PRIMARY KEY, barcode text, note text)");
    database.psql("INSERT INTO racks SELECT i FROM generate_series(1, 5000) i; ANALYZE racks");
    env.write("barcodes.yaml", PLAYBOOK.replace("THROTTLE", throttle));
    env
}

fn racks(throttle: &str) -> (TestEnv, Database) {
    let mut env = TestEnv::new();
    let database = env.database();
    (with_racks(env, &database, throttle), database)
}

/// Batches that a table of the test's holds back.
fn held() -> (TestEnv, Database) {
    let (env, database) = racks("{query: SELECT EXISTS (SELECT FROM held)}");
    database.psql("CREATE TABLE held (n int); INSERT INTO held VALUES (1)");
    (env, database)
}

fn run(env: &TestEnv) -> Output {
    env.runbook(["run", "barcodes.yaml"]).run()
}

#[test]
fn sessions_that_wait_for_a_batch_hold_the_next_one_back() {
    let (env, database) = racks("{max_blocked: 0}");
    // A writer in the way of the first batch, which has changed other rows by then.
    let mut writer = database.session();
    writer.run("BEGIN; UPDATE racks SET note = 'mine' WHERE id = 40");
    let running = env.runbook(["run", "barcodes.yaml"]).spawn();
    wait_until("the batch to wait for the writer", || {
        database.psql("SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'") == "1"
    });
    let mut victim = database.session();
    victim.tell("UPDATE racks SET note = 'waits' WHERE id <= 39;");
    running.wait_for("paused: 1 session waits for locks of ours (max_blocked 0)");
    writer.run("COMMIT");
    let output = running.wait().exits(0);
    assert!(output.stdout.contains("5000 rows changed"), "{output}");
    assert_eq!(database.psql("SELECT count(*) FROM racks WHERE note = 'waits'"), "39", "the victim went on");
}

#[test]
fn a_replica_that_is_behind_holds_the_batches_back() {
    let primary = Server::builder().start();
    let standby = primary.standby();
    let database = primary.createdb("app");
    let env = with_racks(TestEnv::new(), &database, "{max_lag_bytes: 1MiB}");
    wait_until("the standby to have it all", || {
        primary.psql("postgres", "SELECT count(*) FROM pg_stat_replication WHERE replay_lsn = pg_current_wal_lsn()") == "1"
    });
    standby.psql("postgres", "SELECT pg_wal_replay_pause()");
    database.psql("CREATE TABLE filler AS SELECT repeat('x', 1000) FROM generate_series(1, 3000)");
    let running = env.runbook(["run", "barcodes.yaml"]).spawn();
    running.wait_for("MiB behind (max_lag_bytes 1 MiB)");
    assert_eq!(database.psql("SELECT count(*) FROM racks WHERE barcode IS NOT NULL"), "0");
    standby.psql("postgres", "SELECT pg_wal_replay_resume()");
    running.wait().exits(0);
}

#[test]
fn a_role_that_may_not_see_replicas_is_told_so() {
    let (mut env, database) = racks("{max_lag: 5s}");
    database.psql(
        "CREATE ROLE blind LOGIN; GRANT ALL ON racks TO blind; GRANT CREATE ON DATABASE \"DB\" TO blind"
            .replace("DB", database.name())
            .as_str(),
    );
    env.set("DATABASE_URL", &database.url_as("blind"));
    let output = run(&env).exits(3);
    insta::assert_snapshot!(output.stdout.lines().skip_while(|line| !line.starts_with("FAILED")).take(7).collect::<Vec<_>>().join("\n"), @"
    FAILED         [DURATION]  assign
      role blind may not see what the throttle watches, so it would never pause
      step      assign
      state     this step changed nothing, or what it changed was rolled back
      hint      GRANT pg_monitor TO blind;  as a superuser; or leave max_lag, max_lag_bytes, max_archive_backlog and vacuum out.
      next      runbook show [RUN] assign  its attempts and output
                runbook resume [RUN]  tries again from here; what is done stays done
    ");
    database.psql("GRANT pg_monitor TO blind");
    env.runbook(["resume"]).run().exits(0);
    database.psql("REASSIGN OWNED BY blind TO postgres; DROP OWNED BY blind; DROP ROLE blind");
}

#[test]
fn a_pause_from_another_terminal_stops_between_two_batches() {
    let (env, database) = held();
    let running = env.runbook(["run", "barcodes.yaml"]).spawn();
    running.wait_for("paused: the throttle's query gives true");
    let run = History::only(&env).run;
    let paused = env.runbook(["pause", &run]).run().exits(0);
    assert!(paused.stdout.contains("waiting for assign"), "{paused}");
    assert!(paused.stdout.contains("run [RUN]: interrupted\nrunbook resume [RUN]"), "{paused}");
    let stopped = running.wait().exits(130);
    assert!(stopped.stderr.contains("asked for a pause: nothing new is started; assign may finish"), "{stopped}");
    assert!(stopped.stdout.contains("stopped between two batches"), "{stopped}");
    let shown = env.runbook(["show", &run]).run().exits(0);
    assert!(shown.stdout.contains("asked for by "), "{shown}");
    let again = env.runbook(["pause", &run]).run().exits(6);
    assert!(again.stderr.contains("nothing to pause: interrupted"), "{again}");
    database.psql("DELETE FROM held");
    env.runbook(["resume", &run]).run().exits(0);
    assert_eq!(database.psql("SELECT count(*) FROM racks WHERE barcode IS NULL"), "0");
    env.runbook(["pause", &run]).run().exits(6);
    env.runbook(["journal", "verify"]).run().exits(0);
}
