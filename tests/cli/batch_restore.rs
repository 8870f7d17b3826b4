//! What batches overwrite can be kept and put back, and nobody's later work is lost by it.

use nix::sys::signal::Signal;

use crate::crash::history::{History, sqlite_file};
use crate::environment::{Output, TestEnv};
use crate::postgres::Database;

const ASSIGN: &str = "
version: 1
name: assign
connections:
  main: {url: \"{{ env.DATABASE_URL }}\"}
steps:
  - id: assign
    sql_batch:
      table: racks
      where: number > 10
      set: {label: \"'R-' || number\", state: \"'labelled'\"}
      keep_old: true
      batch_size: 100
      target_duration: 1ms
    undo: {sql_batch: {table: racks, restore: {step: assign}}}
";

const RESTORE: &str = "
version: 1
name: put-back
connections:
  main: {url: \"{{ env.DATABASE_URL }}\"}
params:
  run: {type: string, required: true}
steps:
  - id: put_back
    sql_batch: {table: racks, restore: {step: assign, run: \"{{ params.run }}\"}, batch_size: 100, target_duration: 1ms}
";

const TABLE: &str =
    "CREATE TABLE racks (part text NOT NULL, number int NOT NULL, label text, state text NOT NULL, PRIMARY KEY (part, number))";
const WORLD: &str = "SELECT md5(string_agg(racks::text, ' ' ORDER BY part, number)) FROM racks";

fn racks() -> (TestEnv, Database) {
    let mut env = TestEnv::new();
    let database = env.database();
    database.psql(TABLE);
    database.psql(
        "INSERT INTO racks SELECT 'part ' || i % 3, i, CASE WHEN i % 2 = 0 THEN 'old ' || i END, 'new' FROM generate_series(1, 3000) i",
    );
    env.write("assign.yaml", ASSIGN);
    env.write("restore.yaml", RESTORE);
    (env, database)
}

fn restore(env: &TestEnv, run: &str) -> Output {
    env.runbook(["run", "restore.yaml", "--param", &format!("run={run}")]).run()
}

#[test]
fn old_values_come_back() {
    let (env, database) = racks();
    let before = database.psql(WORLD);
    env.runbook(["run", "assign.yaml"]).run().exits(0);
    assert_eq!(database.psql("SELECT count(*) FROM racks WHERE label = 'R-' || number AND state = 'labelled'"), "2990");
    let run = History::last(&env).unwrap().run;
    let plan = env.runbook(["plan", "--connect", "restore.yaml", "--param", &format!("run={run}")]).run().exits(0);
    assert!(plan.stdout.contains("puts the values of racks back that step `assign` of run [RUN] has overwritten"), "{plan}");
    assert!(plan.stdout.contains("now       2990 rows to change"), "{plan}");
    let output = restore(&env, &run).exits(0);
    assert!(output.stdout.contains("2990 rows changed"), "{output}");
    assert_eq!(database.psql(WORLD), before);
    assert_eq!(database.psql("SELECT count(*) FROM pg_class WHERE relname LIKE 'old\\_%'"), "0", "nothing is left to put back");
    let again = restore(&env, &run).exits(3);
    assert!(again.stdout.contains("has no old values of step `assign` here"), "{again}");
}

#[test]
fn what_was_changed_since_is_left_and_counted() {
    let (env, database) = racks();
    env.runbook(["run", "assign.yaml"]).run().exits(0);
    database.psql("UPDATE racks SET label = 'by hand' WHERE number IN (20, 21); DELETE FROM racks WHERE number = 22");
    let run = History::last(&env).unwrap().run;
    let output = restore(&env, &run).exits(0);
    assert!(output.stdout.contains("3 rows changed since or gone: left as they are; their old values stay in runbook.old_"), "{output}");
    assert_eq!(
        database.psql("SELECT string_agg(label, ' ' ORDER BY number) FROM racks WHERE number IN (20, 21, 24)"),
        "by hand by hand old 24"
    );
}

#[test]
fn old_values_survive_kills_and_both_ways_resume() {
    let (env, database) = racks();
    let before = database.psql(WORLD);
    let held = "throttle: {query: SELECT EXISTS (SELECT FROM held)}";
    env.write("assign.yaml", ASSIGN.replace("keep_old: true", &format!("keep_old: true\n      {held}")));
    database.psql("CREATE TABLE held (n int)");
    for _ in 0..2 {
        // Held back somewhere on the way; where does not matter.
        let running = match History::last(&env) {
            None => env.runbook(["run", "assign.yaml"]).spawn(),
            Some(_) => env.runbook(["resume"]).spawn(),
        };
        crate::crash::wait_until("some batches to be done", || {
            database.psql("SELECT to_regclass('runbook.chunk') IS NOT NULL") == "t"
                && database.psql("SELECT sum(changed) > 0 FROM runbook.chunk") == "t"
        });
        database.psql("INSERT INTO held VALUES (1)");
        let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(running.pid().cast_signed()), Signal::SIGKILL);
        running.wait();
        database.psql("DELETE FROM held");
    }
    let resumed = env.runbook(["resume"]).run();
    assert!(matches!(resumed.code(), Some(0 | 64)), "{resumed}");
    assert_eq!(database.psql("SELECT count(*) FROM racks WHERE label = 'R-' || number"), "2990");
    let run = History::last(&env).unwrap().run;
    restore(&env, &run).exits(0);
    assert_eq!(database.psql(WORLD), before);
}

#[test]
fn sqlite_keeps_old_values_too() {
    let env = TestEnv::new();
    sqlite_file(&env.path("app.db"), TABLE);
    sqlite_file(
        &env.path("app.db"),
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 900) INSERT INTO racks SELECT 'p', i, CASE WHEN i % 2 THEN 'old ' || i END, 'new' FROM n",
    );
    let world = || sqlite_file(&env.path("app.db"), "SELECT group_concat(part || number || coalesce(label, '-') || state) FROM racks");
    let before = world();
    for (name, text) in [("assign.yaml", ASSIGN), ("restore.yaml", RESTORE)] {
        env.write(name, text.replace("{{ env.DATABASE_URL }}", "sqlite:app.db"));
    }
    env.runbook(["run", "assign.yaml"]).run().exits(0);
    assert_ne!(world(), before);
    sqlite_file(&env.path("app.db"), "UPDATE racks SET label = 'by hand' WHERE number = 11");
    let run = History::last(&env).unwrap().run;
    let output = restore(&env, &run).exits(0);
    assert!(output.stdout.contains("1 row changed since or gone"), "{output}");
    assert_eq!(world(), before.replace("p11old 11new", "p11by handlabelled"));
}

#[test]
fn a_restore_that_cannot_be_is_refused() {
    let env = TestEnv::new();
    env.write(
        "wrong.yaml",
        "version: 1\nname: wrong\nconnections: {main: {url: \"sqlite:a.db\"}}\nsteps:\n  \
         - {id: both, sql_batch: {table: t, set: {a: '1'}, restore: {step: x}}}\n  \
         - {id: rows, sql_batch: {table: t, where: a = 1, restore: {step: x}}}\n  \
         - {id: kept, sql_batch: {table: t, update: \"DELETE FROM t WHERE {{ batch }}\", keep_old: true}}\n",
    );
    let output = env.runbook(["validate", "wrong.yaml"]).run().exits(65);
    insta::assert_snapshot!(output.stderr.lines().filter(|line| line.starts_with("error")).collect::<Vec<_>>().join("\n"), @"
    error[conflicting-keys]: `set` and `restore` cannot stand together
    error[batch-change]: `restore` takes the rows that were kept; leave `where` out
    error[batch-change]: `keep_old` keeps what `set` overwrites, and there is no `set`
    ");
}
