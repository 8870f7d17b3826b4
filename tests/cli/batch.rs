//! Batches: every row exactly once, whatever breaks, and what a person sees of it.

use std::time::Duration;

use fastrand::Rng;
use nix::sys::signal::Signal;

use crate::crash::history::sqlite_file;
use crate::environment::{Output, TestEnv};
use crate::postgres::{Database, Server};

/// Adds one to every row: whoever is visited twice shows it.
const COUNT_UP: &str = "
version: 1
name: count-up
connections:
  main: {url: \"{{ env.DATABASE_URL }}\"}
steps:
  - id: count
    sql_batch:
      table: counters
      set: {n: n + 1}
      workers: 2
      batch_size: 100
      target_duration: 20ms
      expect: {rows_affected: ROWS}
";

const UUIDS: &str = "CREATE TABLE counters (id uuid PRIMARY KEY DEFAULT gen_random_uuid(), n int NOT NULL DEFAULT 0)";
const COMPOSITE: &str = "CREATE TABLE counters (part text, number int, n int NOT NULL DEFAULT 0, PRIMARY KEY (part, number))";

/// What breaks, and how often.
#[derive(Debug, Clone, Copy)]
enum Trouble {
    Kill,
    Connections,
    Server,
}

/// How often: a few times in an ordinary run, as often as was promised with `RUNBOOK_TEST_CRASHES=all`.
fn times(all: usize) -> usize {
    match std::env::var("RUNBOOK_TEST_CRASHES").as_deref() {
        Ok("all") => all,
        Ok(count) => count.parse().expect("RUNBOOK_TEST_CRASHES is a number or `all`"),
        Err(_) => (all / 10).max(2),
    }
}

fn rows() -> usize {
    if std::env::var("RUNBOOK_TEST_CRASHES").as_deref() == Ok("all") { 300_000 } else { 30_000 }
}

fn filled(database: &Database, table: &str) {
    let rows = rows();
    database.psql(table);
    if table == UUIDS {
        database.psql(&format!("INSERT INTO counters SELECT FROM generate_series(1, {rows})"));
    } else {
        database.psql(&format!("INSERT INTO counters SELECT 'part ' || i % 7, i FROM generate_series(1, {rows}) i"));
    }
}

/// Breaks runs until it has happened often enough; each must end with every row at one.
fn breaks(table: &str, trouble: Trouble, times: usize) {
    let seed = std::env::var("RUNBOOK_TEST_SEED").map_or_else(|_| Rng::new().u64(..), |seed| seed.parse().unwrap());
    let mut random = Rng::with_seed(seed);
    let server = Server::builder().start();
    let mut left = times;
    let mut round = 0;
    while left > 0 {
        round += 1;
        let database = server.createdb(&format!("round_{round}"));
        filled(&database, table);
        let mut env = TestEnv::new();
        env.use_database(&database);
        env.write("count.yaml", COUNT_UP.replace("ROWS", &rows().to_string()));
        let mut arguments = vec!["run", "count.yaml"];
        let mut attempts = 0;
        let ended = loop {
            attempts += 1;
            let running = env.runbook(arguments.clone()).spawn();
            std::thread::sleep(Duration::from_millis(random.u64(0..400)));
            if left > 0 {
                left -= 1;
                match trouble {
                    Trouble::Kill => {
                        // It may have ended by itself just now.
                        let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(running.pid().cast_signed()), Signal::SIGKILL);
                    }
                    Trouble::Connections => drop(server.psql(
                        "postgres",
                        &format!("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = 'round_{round}' AND application_name LIKE '%count'"),
                    )),
                    Trouble::Server => server.immediate_restart(),
                }
            }
            let output = running.wait();
            // Killed between its last event and its exit, a run has nothing left to resume.
            if matches!(output.code(), Some(0 | 64)) {
                break output;
            }
            assert!(attempts < 40 + 2 * times, "RUNBOOK_TEST_SEED={seed} (round {round}): it comes to no end\n{output}");
            if env.runbook(["list", "--json"]).run().stdout.trim().len() > 2 {
                arguments = vec!["resume"];
            }
        };
        let wrong = database.psql("SELECT n, count(*) FROM counters WHERE n <> 1 GROUP BY n");
        assert_eq!(wrong, "", "RUNBOOK_TEST_SEED={seed} (round {round}): rows that were not changed exactly once\n{ended}");
        assert_eq!(database.psql("SELECT count(*) FROM runbook.chunk"), "0", "the books are closed");
    }
}

#[test]
fn killed_runs_change_each_uuid_once() {
    breaks(UUIDS, Trouble::Kill, times(200));
}

#[test]
fn killed_runs_change_each_composite_key_once() {
    breaks(COMPOSITE, Trouble::Kill, times(200));
}

#[test]
fn lost_connections_change_each_row_once() {
    breaks(COMPOSITE, Trouble::Connections, times(50));
}

#[test]
fn restarted_servers_change_each_row_once() {
    breaks(UUIDS, Trouble::Server, times(10));
}

const BARCODES: &str = "
version: 1
name: barcodes
connections:
  main: {url: \"{{ env.DATABASE_URL }}\"}
steps:
  - id: assign
    sql_batch:
      table: racks
      where: barcode IS NULL
      set: {barcode: \"'R-' || lpad(id::text, 9, '0')\"}
      EXTRA
";

fn racks(database: &Database, rows: usize) {
    database.psql("CREATE TABLE racks (id int PRIMARY KEY, session int NOT NULL, barcode text)");
    database.psql(&format!("INSERT INTO racks SELECT i, i % 20 FROM generate_series(1, {rows}) i; ANALYZE racks"));
}

fn barcodes(extra: &str, rows: usize) -> (TestEnv, Database) {
    let mut env = TestEnv::new();
    let database = env.database();
    racks(&database, rows);
    env.write("barcodes.yaml", BARCODES.replace("EXTRA", extra));
    (env, database)
}

fn run(env: &TestEnv) -> Output {
    env.runbook(["run", "barcodes.yaml"]).run()
}

/// The step's line without its time.
fn line(output: &Output) -> String {
    let line = output.stdout.lines().find(|line| line.contains(" assign ")).unwrap_or_default();
    line.split_whitespace().filter(|word| *word != "[DURATION]").collect::<Vec<_>>().join(" ")
}

#[test]
fn the_order_is_chosen_where_it_is_sound_and_said() {
    let (env, database) = barcodes("expect: {remaining: 0, unique: [barcode], not_null: [barcode]}", 3_000);
    let output = run(&env).exits(0);
    assert!(line(&output).contains("3000 rows changed in"), "{output}");
    assert!(line(&output).contains("physical order: rows stay on their pages"), "{output}");
    assert_eq!(database.psql("SELECT count(DISTINCT barcode) FROM racks"), "3000");

    let (env, database) = barcodes("workers: 2", 3_000);
    database.psql("CREATE INDEX racks_barcode ON racks (barcode)");
    let output = run(&env).exits(0);
    assert!(line(&output).contains("key order: indexes cover what is set (racks_barcode)"), "{output}");
    assert_eq!(database.psql("SELECT count(*) FROM racks WHERE barcode IS NULL"), "0");

    // The index of a constraint counts like any other.
    let (env, database) = barcodes("", 300);
    database.psql("ALTER TABLE racks ADD UNIQUE (barcode)");
    let output = run(&env).exits(0);
    assert!(line(&output).contains("key order: indexes cover what is set (racks_barcode_key)"), "{output}");

    let (env, database) = barcodes("order: physical", 10);
    database.psql("CREATE INDEX racks_barcode ON racks (barcode)");
    let output = run(&env).exits(3);
    assert!(output.stdout.contains("`order: physical` cannot be used on racks: indexes cover what is set"), "{output}");
}

#[test]
fn rows_that_come_and_move_meanwhile_converge() {
    let (env, database) = barcodes("target_duration: 20ms\n      batch_size: 100\n      expect: {remaining: 0}", 40_000);
    database.psql("ALTER TABLE racks ADD COLUMN note text");
    let running = env.runbook(["run", "barcodes.yaml"]).spawn();
    let mut writer = database.session();
    for round in 0..40 {
        let at = 100_000 + round;
        writer.run(&format!("INSERT INTO racks (id, session) VALUES ({at}, 1)"));
        writer.run(&format!("UPDATE racks SET note = repeat('moved ', 200) WHERE id % 997 = {round}"));
        writer.run(&format!("DELETE FROM racks WHERE id = {}", 7 + round * 500));
    }
    let output = running.wait();
    // What came after the last sweep is told, and found by the next one.
    if output.code() != Some(0) {
        assert!(output.stdout.contains("rows that `where` still finds"), "{output}");
        env.runbook(["resume"]).run().exits(0);
    }
    assert_eq!(database.psql("SELECT count(*) FROM racks WHERE barcode IS DISTINCT FROM 'R-' || lpad(id::text, 9, '0')"), "0");
}

#[test]
fn a_worklist_is_computed_once_and_gives_the_values() {
    let (env, database) = barcodes(
        "expect: {remaining: 0, unique: [session, barcode]}\n      \
         worklist: |\n        \
           SELECT id, 'S' || session || '-' || row_number() OVER (PARTITION BY session ORDER BY id) AS barcode FROM racks WHERE session < {{ 5 }}",
        2_000,
    );
    let playbook = env.read("barcodes.yaml").replace("\"'R-' || lpad(id::text, 9, '0')\"", "worklist.barcode");
    env.write("barcodes.yaml", playbook.replace("barcode IS NULL", "barcode IS NULL AND session < 5"));
    run(&env).exits(0);
    assert_eq!(database.psql("SELECT count(*), min(barcode), max(length(barcode)) FROM racks WHERE barcode IS NOT NULL"), "500|S0-1|6");
    assert_eq!(database.psql("SELECT count(*) FROM pg_class WHERE relname LIKE 'worklist%'"), "0", "it is gone");
}

#[test]
fn a_whole_statement_deletes_in_batches() {
    let (env, database) = barcodes("", 5_000);
    let playbook = "version: 1\nname: purge\nconnections: {main: {url: \"{{ env.DATABASE_URL }}\"}}\nparams: {from: {type: integer, default: 7}}\nsteps:\n  - id: assign\n    \
                    sql_batch: {table: racks, update: \"DELETE FROM racks WHERE {{ batch }} AND session >= {{ params.from }}\", expect: {rows_affected: 3250}}\n";
    env.write("barcodes.yaml", playbook);
    run(&env).exits(0);
    assert_eq!(database.psql("SELECT count(*), max(session) FROM racks"), "1750|6");
}

#[test]
fn sqlite_has_the_same_step() {
    let env = TestEnv::new();
    sqlite_file(&env.path("app.db"), "CREATE TABLE racks (id INTEGER PRIMARY KEY, session INTEGER, barcode TEXT)");
    sqlite_file(
        &env.path("app.db"),
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 2500) INSERT INTO racks SELECT i, i % 9, NULL FROM n",
    );
    let playbook = BARCODES.replace("{{ env.DATABASE_URL }}", "sqlite:app.db").replace("lpad(id::text, 9, '0')", "id");
    env.write("barcodes.yaml", playbook.replace("EXTRA", "workers: 4\n      expect: {remaining: 0, unique: [barcode]}"));
    let output = run(&env).exits(0);
    assert!(line(&output).contains("2500 rows changed in") && line(&output).contains("key order: SQLite's rows have no place"), "{output}");
    assert_eq!(sqlite_file(&env.path("app.db"), "SELECT count(DISTINCT barcode) FROM racks"), "2500");
}

#[test]
fn a_table_without_a_key_is_refused() {
    let (env, database) = barcodes("", 10);
    database.psql("ALTER TABLE racks DROP CONSTRAINT racks_pkey, ADD COLUMN code text; CREATE UNIQUE INDEX ON racks (id, code)");
    let output = run(&env).exits(3);
    insta::assert_snapshot!(output.stdout.lines().skip_while(|line| !line.starts_with("FAILED")).take(6).collect::<Vec<_>>().join("\n"));
}

#[test]
fn a_value_that_stays_null_is_left_and_shown() {
    let (env, database) = barcodes("expect: {remaining: 0}", 300);
    let playbook = env.read("barcodes.yaml").replace("\"'R-' || lpad(id::text, 9, '0')\"", "\"CASE WHEN id > 2 THEN 'R-' || id END\"");
    env.write("barcodes.yaml", playbook);
    let output = run(&env).exits(3);
    insta::assert_snapshot!(output.stdout.lines().skip_while(|line| !line.starts_with("FAILED")).take(16).collect::<Vec<_>>().join("\n"));
    database.psql("DELETE FROM racks WHERE id <= 2");
    env.runbook(["resume"]).run().exits(0);
}

#[test]
fn an_interrupt_stops_between_two_batches_and_a_resume_goes_on() {
    let (env, database) =
        barcodes("batch_size: 100\n      target_duration: 1ms\n      throttle: {query: SELECT EXISTS (SELECT FROM held)}", 5_000);
    database.psql("CREATE TABLE held (n int); INSERT INTO held VALUES (1)");
    let running = env.runbook(["run", "barcodes.yaml"]).spawn();
    running.wait_for("paused: the throttle's query gives true");
    running.signal(Signal::SIGINT).wait_for("Once more cancels");
    let stopped = running.wait().exits(130);
    assert!(stopped.stdout.contains("stopped between two batches"), "{stopped}");
    let before = database.psql("SELECT count(*) FROM racks WHERE barcode IS NOT NULL");
    assert!(before.parse::<u32>().unwrap() < 5_000);
    database.psql("DELETE FROM held");
    let resumed = env.runbook(["resume"]).run().exits(0);
    assert!(line(&resumed).contains("5000 rows changed"), "{resumed}");
}

#[test]
fn other_rows_are_not_gone_on_with() {
    let (env, database) = barcodes("throttle: {query: SELECT EXISTS (SELECT FROM held)}", 1_000);
    database.psql("CREATE TABLE held (n int); INSERT INTO held VALUES (1)");
    let running = env.runbook(["run", "barcodes.yaml"]).spawn();
    running.wait_for("paused: ");
    running.signal(Signal::SIGINT);
    running.wait().exits(130);
    let first = env.read("barcodes.yaml");
    env.write("barcodes.yaml", first.replace("barcode IS NULL", "barcode IS NULL AND session < 3"));
    env.runbook(["resume"]).run().exits(6);
    let refused = env.runbook(["resume", "--accept-edit"]).run().exits(3);
    assert!(refused.stdout.contains("not the one whose batches were begun"), "{refused}");
    // What is done to the rows may be mended on the way.
    database.psql("DELETE FROM held");
    env.write("barcodes.yaml", first.replace("'R-'", "'X-'"));
    env.runbook(["resume", "--accept-edit"]).run().exits(0);
    assert_eq!(database.psql("SELECT count(*) FROM racks WHERE barcode IS NULL"), "0");
}

#[test]
fn mistakes_are_found_before_anything_runs() {
    let env = TestEnv::new();
    env.write(
        "wrong.yaml",
        "version: 1\nname: wrong\nconnections: {main: {url: \"sqlite:a.db\"}}\nsteps:\n  \
         - {id: none, sql_batch: {table: t}}\n  \
         - {id: select, sql_batch: {table: t, update: SELECT 1}}\n  \
         - {id: unbound, sql_batch: {table: t, update: DELETE FROM t}}\n  \
         - {id: counted, sql_batch: {table: t, set: {a: '1'}, expect: {remaining: 0}}}\n  \
         - {id: place, sql_batch: {table: t, where: a = 1, set: {a: '2'}, order: physical}}\n",
    );
    insta::assert_snapshot!(env.runbook(["validate", "wrong.yaml"]).run().exits(65).stderr);
}

#[test]
fn the_plan_shows_what_is_changed_and_how() {
    let (env, _) = barcodes("workers: 2\n      expect: {remaining: 0, unique: [barcode]}", 1);
    insta::assert_snapshot!(env.runbook(["plan", "barcodes.yaml"]).run().exits(0).stdout);
}

#[test]
fn a_connected_plan_says_how_much_there_is_to_do() {
    let (env, database) = barcodes("workers: 2", 20_000);
    database.psql("CREATE INDEX racks_barcode ON racks (barcode); CREATE INDEX racks_session ON racks (session)");
    database.psql("CREATE FUNCTION noted() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END'");
    database.psql("CREATE TRIGGER racks_noted BEFORE UPDATE ON racks FOR EACH ROW EXECUTE FUNCTION noted()");
    database.psql("CREATE TRIGGER racks_gone AFTER DELETE ON racks FOR EACH ROW EXECUTE FUNCTION noted()");
    let now = |env: &TestEnv| {
        let plan = env.runbook(["plan", "--connect", "barcodes.yaml"]).run().exits(0).stdout;
        let told: Vec<_> = plan.lines().skip_while(|line| !line.trim_start().starts_with("now ")).collect();
        // Pages differ a little between the server's versions.
        regex::Regex::new(r"[\d.]+ [KM]iB").unwrap().replace_all(&told.join("\n"), "[SIZE]").into_owned()
    };
    insta::assert_snapshot!(now(&env), @"
    now       20000 rows to change, in key order: indexes cover what is set (racks_barcode), so rows move
              estimated: 1 to 4 batches, 1s
              estimated from 1000 rows: [SIZE] to [SIZE] of WAL
              indexes that cover what is set: racks_barcode
              triggers that each change fires: racks_noted (before)
    undo      NONE
    ");
    database.psql("DROP INDEX racks_barcode");
    insta::assert_snapshot!(now(&env), @"
    now       20000 rows to change, in physical order: rows stay on their pages, as no index covers what is set
              estimated: 1 to 2 batches, 1s
              estimated from 1000 rows: [SIZE] to [SIZE] of WAL
              triggers that each change fires: racks_noted (before)
    undo      NONE
    ");
    assert_eq!(database.psql("SELECT count(*) FROM racks WHERE barcode IS NOT NULL"), "0", "it only looks");
    database.psql("DROP TABLE racks");
    insta::assert_snapshot!(now(&env), @r#"
    now       cannot be told beforehand: relation "racks" does not exist
    undo      NONE
    "#);

    env.runbook(["plan", "--connect", "barcodes.yaml"]).env("DATABASE_URL", "postgres:///nowhere?host=/nonexistent").run().exits(6);
}
