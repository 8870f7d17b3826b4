//! Snapshots of tables, and what is said when two of them differ.

use nix::sys::signal::Signal;

use crate::crash::wait_until;
use crate::environment::{Output, TestEnv};
use crate::postgres::Database;
use crate::stock_audit::{run_of, said_of, stable};

const TABLES: &str = "
CREATE TABLE users (id int PRIMARY KEY, name text);
CREATE TABLE racks (id int PRIMARY KEY, racks text);
CREATE TABLE scans (id int PRIMARY KEY, at date);
INSERT INTO users SELECT n, 'user ' || n FROM generate_series(1, 40) n;
INSERT INTO racks SELECT n, 'rack ' || n FROM generate_series(1, 7) n;
INSERT INTO scans SELECT n, DATE '2026-01-01' + n FROM generate_series(1, 1000) n;
";

/// A snapshot, something that may change the tables, and a comparison.
const COMPARE: &str = r#"
version: 1
name: compare
connections: {main: {url: "{{ env.DATABASE_URL }}"}}
steps:
  - id: before
    snapshot: {tables: [users, racks, scans], with: [count, fingerprint]}
  - id: change
    idempotent: true
    shell: {run: 'test ! -e change.sql || psql -X -q -v ON_ERROR_STOP=1 -f change.sql "$DATABASE_URL"'}
  - id: after
    name: Nothing is lost
    snapshot:
      tables: [users, racks, scans]
      with: [count, fingerprint]
      expect: {unchanged_from: before, tolerance: {default: exact, users: may_grow, scans: 5%}}
  - id: last
    shell: {run: touch last}
"#;

fn compare(change: &str) -> (TestEnv, Database, Output) {
    let mut env = TestEnv::new();
    let database = env.database();
    database.psql(TABLES);
    env.write("compare.yaml", COMPARE);
    env.write("change.sql", change);
    let output = env.runbook(["run", "compare.yaml"]).run();
    (env, database, output)
}

/// All that is said of the step that failed last, hints included.
pub fn failure(output: &Output) -> String {
    let lines: Vec<&str> = output.stdout.lines().collect();
    let start = lines.iter().rposition(|line| line.starts_with("FAILED")).unwrap_or_else(|| panic!("nothing failed:\n{output}"));
    let below = lines[start + 1..].iter().take_while(|line| line.starts_with(' ') && !line.starts_with("  next "));
    stable(&[&lines[start]].into_iter().chain(below).copied().collect::<Vec<_>>().join("\n"))
}

/// A run of one snapshot.
fn snapshot_of(env: &TestEnv, fields: &str) -> Output {
    env.write(
        "playbook.yaml",
        format!(
            "version: 1\nname: one\nconnections: {{main: {{url: \"{{{{ env.DATABASE_URL }}}}\"}}}}\nsteps:\n  - id: counts\n    snapshot: {{{fields}}}\n"
        ),
    );
    env.runbook(["run", "playbook.yaml"]).run()
}

/// The table that `runbook show` prints.
fn shown(env: &TestEnv, output: &Output) -> String {
    let shown = env.runbook(["show", &run_of(output), "counts"]).run().exits(0).stdout;
    shown.lines().skip_while(|line| !line.starts_with("  rows ")).collect::<Vec<_>>().join("\n")
}

// ---- one snapshot ---------------------------------------------------------------------

#[test]
fn a_plan_shows_the_statements_and_the_comparison() {
    let mut env = TestEnv::new();
    env.database();
    env.write("compare.yaml", COMPARE);
    insta::assert_snapshot!(env.runbook(["plan", "compare.yaml"]).run().exits(0).stdout, @r#"
    compare
      file         compare.yaml
      connections  main
      steps        4: read 2, not previewable 2; at most 4 side by side

        1  read             before
            snapshot of users, racks, scans
              BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY
              SELECT count(*) AS count, coalesce(sum(hashtextextended(("users".*)::text, 0)::numeric), 0)::text AS fingerprint FROM "users"
              SELECT count(*) AS count, coalesce(sum(hashtextextended(("racks".*)::text, 0)::numeric), 0)::text AS fingerprint FROM "racks"
              SELECT count(*) AS count, coalesce(sum(hashtextextended(("scans".*)::text, 0)::numeric), 0)::text AS fingerprint FROM "scans"
              (on SQLite the rows are read and hashed by runbook)
        2  not previewable  change
            test ! -e change.sql || psql -X -q -v ON_ERROR_STOP=1 -f change.sql "$DATABASE_URL"
            undo      NONE
        3  read             after  Nothing is lost
            snapshot of users, racks, scans, compared with before
              BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY
              SELECT count(*) AS count, coalesce(sum(hashtextextended(("users".*)::text, 0)::numeric), 0)::text AS fingerprint FROM "users"
              SELECT count(*) AS count, coalesce(sum(hashtextextended(("racks".*)::text, 0)::numeric), 0)::text AS fingerprint FROM "racks"
              SELECT count(*) AS count, coalesce(sum(hashtextextended(("scans".*)::text, 0)::numeric), 0)::text AS fingerprint FROM "scans"
              (on SQLite the rows are read and hashed by runbook)
              expects unchanged from before: users may grow, racks exact, scans ± 5%
        4  not previewable  last
            touch last
            undo      NONE
    "#);
}

#[test]
fn what_was_found_is_kept_and_can_be_read_by_later_steps() {
    let mut env = TestEnv::new();
    let database = env.database();
    database.psql(TABLES);
    env.write(
        "playbook.yaml",
        r#"
version: 1
name: kept
params: {until: {type: string, default: "2026-02-01"}}
connections: {main: {url: "{{ env.DATABASE_URL }}"}}
steps:
  - id: counts
    snapshot: {tables: [users, Scans], with: [count, fingerprint], where: {scans: "at < {{ params.until }} -- January"}}
  - id: enough
    assert: {that: "steps.counts.row_count == 2 and steps.counts.rows[0].table == 'users' and steps.counts.rows[1].count == 30"}
"#,
    );
    let output = env.runbook(["run", "playbook.yaml"]).run().exits(0);
    insta::assert_snapshot!(said_of(&output, " counts → "), @"done           [DURATION]  counts → 70 rows in 2 tables");
    let users = database.psql("SELECT sum(hashtextextended(t::text, 0)::numeric) FROM users t");
    let scans = database.psql("SELECT sum(hashtextextended(t::text, 0)::numeric) FROM scans t WHERE at < '2026-02-01'");
    env.replace(&users, "[USERS]").replace(&scans, "[SCANS]");
    insta::assert_snapshot!(shown(&env, &output), @"
    rows       table | count | fingerprint
               ------+-------+----------------------
               users |    40 |   [USERS]
               scans |    30 | [SCANS]
    ");
}

/// The snapshot has read one table and waits for the other, which is locked, while both change.
#[test]
fn all_tables_are_of_one_moment() {
    let mut env = TestEnv::new();
    let database = env.database();
    database.psql(TABLES);
    env.write("compare.yaml", COMPARE);
    let before = database.psql("SELECT sum(hashtextextended(t::text, 0)::numeric) FROM racks t");
    let mut writer = database.session();
    writer.run("BEGIN; LOCK TABLE racks IN ACCESS EXCLUSIVE MODE");
    let running = env.runbook(["run", "compare.yaml", "--only", "before"]).spawn();
    let waiting = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'";
    wait_until("the snapshot to wait for the lock", || database.psql(waiting) == "1");
    writer.run("INSERT INTO users VALUES (100, 'new'); INSERT INTO racks VALUES (100, 'new'); UPDATE racks SET racks = 'x'; COMMIT");
    let output = running.wait().exits(0);
    let shown = env.runbook(["show", &run_of(&output), "before", "--json"]).run().exits(0);
    let value: serde_json::Value = serde_json::from_str(&shown.raw_stdout).unwrap();
    let rows = &value["outcome"]["result"]["rows"];
    assert_eq!((&rows[0][1], &rows[1][1], &rows[1][2]), (&40.into(), &7.into(), &before.into()), "{shown}");
}

#[test]
fn a_snapshot_that_waits_is_stopped_by_the_second_interrupt() {
    let mut env = TestEnv::new();
    let database = env.database();
    database.psql(TABLES);
    env.write("compare.yaml", COMPARE.replace("steps:", "defaults: {lock_timeout: 50s}\nsteps:"));
    let mut writer = database.session();
    writer.run("BEGIN; LOCK TABLE racks IN ACCESS EXCLUSIVE MODE");
    let running = env.runbook(["run", "compare.yaml"]).spawn();
    let waiting = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'";
    wait_until("the snapshot to wait for the lock", || database.psql(waiting) == "1");
    running.signal(Signal::SIGINT).wait_for("again");
    running.signal(Signal::SIGINT);
    running.wait().exits(130);
    writer.run("COMMIT");
    env.runbook(["resume"]).run().exits(0);
}

#[test]
fn names_are_those_of_sql() {
    let mut env = TestEnv::new();
    let database = env.database();
    database.psql(
        "CREATE TABLE users (users int); CREATE TABLE \"Users\" (x int); CREATE SCHEMA \"App\"; CREATE TABLE \"App\".\"odd \"\"name\"\".\" (x int); \
         CREATE TABLE \"order\" (\"order\" text); CREATE VIEW seen AS SELECT 1 AS n; \
         INSERT INTO users VALUES (1); INSERT INTO \"Users\" VALUES (1), (2); INSERT INTO \"App\".\"odd \"\"name\"\".\" VALUES (1), (2), (3)",
    );
    let output = snapshot_of(
        &env,
        r#"tables: [USERS, '"Users"', '"App"."odd ""name""."', public.order, seen], with: [fingerprint], where: {seen: "seen.n = 1"}"#,
    );
    let counts = shown(&env, &output.exits(0));
    let counts: Vec<&str> = counts.lines().filter_map(|line| Some(line.rsplit_once(['|', '+'])?.0.trim_end())).collect();
    insta::assert_snapshot!(counts.join("\n"), @r#"
    rows       table                 | count
               ----------------------+-------
               users                 |     1
               "Users"               |     2
               "App"."odd ""name""." |     3
               public.order          |     0
               seen                  |     1
    "#);
}

#[test]
fn tables_that_are_not_there_are_named_at_once() {
    let mut env = TestEnv::new();
    let database = env.database();
    database.psql("CREATE TABLE users (x int); CREATE TABLE \"Racks\" (x int); CREATE SCHEMA app; CREATE TABLE app.invoices (x int)");
    let failed = |fields: &str| failure(&snapshot_of(&env, fields).exits(3));
    insta::assert_snapshot!(failed("tables: [users, usres, racks, invoices]"), @r#"
    FAILED         [DURATION]  counts
      there are no tables `usres`, `racks`, `invoices`
      step      counts
      where     playbook.yaml:[PLACE]
                [LINE] |     snapshot: {tables: [users, usres, racks, invoices]}
      state     this step changed nothing, or what it changed was rolled back
      hint      `usres`: did you mean `users`?
      hint      `racks`: did you mean `"Racks"`?
      hint      `invoices`: did you mean `app.invoices`?
    "#);
    insta::assert_snapshot!(failed("tables: [warehouse]"), @r#"
    FAILED         [DURATION]  counts
      there is no table `warehouse`
      step      counts
      where     playbook.yaml:[PLACE]
                [LINE] |     snapshot: {tables: [warehouse]}
      state     this step changed nothing, or what it changed was rolled back
      hint      the tables are app.invoices, "Racks", users
    "#);
    insta::assert_snapshot!(failed("tables: [users], where: {users: y > 1}"), @r#"
    FAILED         [DURATION]  counts
      column "y" does not exist
      step      counts
      where     playbook.yaml:[PLACE]
                [LINE] |     snapshot: {tables: [users], where: {users: y > 1}}
      code      42703
      table     users
      state     this step changed nothing, or what it changed was rolled back
    "#);
}

// ---- two snapshots ----------------------------------------------------------------------

#[test]
fn tables_that_stay_within_their_tolerance_pass() {
    let (env, _, output) = compare(
        "INSERT INTO users VALUES (100, 'new'); DELETE FROM scans WHERE id <= 50; UPDATE scans SET at = at + 1; \
         UPDATE racks SET racks = racks; CLUSTER racks USING racks_pkey; VACUUM FULL racks;",
    );
    insta::assert_snapshot!(said_of(&output.exits(0), "Nothing is lost"), @"done           [DURATION]  Nothing is lost → 998 rows in 3 tables, within tolerance of before: users +1, scans -50");
    assert!(env.path("last").exists());
}

#[test]
fn tables_that_changed_more_than_they_may_fail_with_a_table() {
    let (env, database, output) =
        compare("DELETE FROM users WHERE id <= 2; INSERT INTO racks VALUES (100, 'new'); DELETE FROM scans WHERE id <= 51");
    insta::assert_snapshot!(stable(&output.exits(3).stdout), @"
    compare  4 steps, run [RUN]
      main: [DATABASE] (system [ID])

    done           [DURATION]  before → 1047 rows in 3 tables
    done           [DURATION]  change → exit code 0
    FAILED         [DURATION]  Nothing is lost → 995 rows in 3 tables
      3 of 3 tables are not as in `before`: users lost 2 rows, racks grew by 1 row, scans lost 51 rows
      step      after
      where     compare.yaml:[PLACE]
                [LINE] |       expect: {unchanged_from: before, tolerance: {default: exact, users: may_grow, scans: 5%}}
      rows      table | before | after | difference | allowed
                ------+--------+-------+------------+----------
                users |     40 |    38 |         -2 | may grow
                racks |      7 |     8 |         +1 | exact
                scans |   1000 |   949 |        -51 | ± 5% (50)
      state     this step changed nothing, or what it changed was rolled back
      next      runbook show [RUN] after  its attempts and output
                runbook resume [RUN]  tries again from here; what is done stays done

    failed after [DURATION]: 2 done, 1 failed, 1 not run
      runbook resume [RUN]  tries again; what is done stays done
    ");
    assert!(!env.path("last").exists());

    // What was found before stays found: only the comparison is made again.
    database.psql("INSERT INTO users SELECT n, 'user ' || n FROM generate_series(1, 2) n; DELETE FROM racks WHERE id = 100");
    database.psql("INSERT INTO scans SELECT n, DATE '2026-01-01' + n FROM generate_series(1, 51) n");
    insta::assert_snapshot!(stable(&env.runbook(["resume"]).run().exits(0).stdout), @"
    compare  4 steps, run [RUN]
      main: [DATABASE] (system [ID])
      goes on: 2 of 4 steps settled, what is done stays done

    done           [DURATION]  Nothing is lost → 1047 rows in 3 tables, as in before
    done           [DURATION]  last → exit code 0

    done after [DURATION]: 4 done
      runbook show [RUN]  every step, who confirmed what
    ");
}

#[test]
fn other_contents_are_a_difference_where_nothing_may_change() {
    let (_, _, output) =
        compare("UPDATE racks SET racks = 'moved' WHERE id = 3; UPDATE users SET name = 'renamed'; UPDATE scans SET at = at + 1");
    insta::assert_snapshot!(failure(&output.exits(3)), @"
    FAILED         [DURATION]  Nothing is lost → 1047 rows in 3 tables
      1 of 3 tables is not as in `before`: racks has as many rows but other contents
      step      after
      where     compare.yaml:[PLACE]
                [LINE] |       expect: {unchanged_from: before, tolerance: {default: exact, users: may_grow, scans: 5%}}
      rows      table | before | after | difference     | allowed
                ------+--------+-------+----------------+--------
                racks |      7 |     7 | other contents | exact
      state     this step changed nothing, or what it changed was rolled back
      hint      A fingerprint also changes when a column is added, removed or changes its type. A tolerance of 0% compares the count of a table alone.
    ");
    let (_, _, output) = compare("UPDATE racks SET racks = (SELECT racks FROM racks r WHERE r.id = 8 - racks.id)");
    assert!(output.exits(3).stdout.contains("racks has as many rows but other contents"), "values that change their rows");
}

#[test]
fn a_warning_lets_the_run_go_on_but_no_comparison_is_no_pass() {
    let mut env = TestEnv::new();
    env.database().psql(TABLES);
    let playbook = COMPARE.replace("    name: Nothing is lost\n", "    name: Nothing is lost\n    severity: warning\n");
    env.write("change.sql", "DELETE FROM users WHERE id <= 2");
    env.write("playbook.yaml", &playbook);
    let output = env.runbook(["run", "playbook.yaml"]).run().exits(0);
    insta::assert_snapshot!(said_of(&output, "Nothing is lost"), @"
    WARNING        [DURATION]  Nothing is lost → 1045 rows in 3 tables
      1 of 3 tables is not as in `before`: users lost 2 rows
      rows      table | before | after | difference | allowed
                ------+--------+-------+------------+---------
                users |     40 |    38 |         -2 | may grow
    ");
    let playbook = playbook.replace("  - id: before\n", "  - id: before\n    when: \"1 > 2\"\n");
    env.write("playbook.yaml", playbook.replace("  - id: after\n", "  - id: after\n    when: steps.before.status != 'x'\n"));
    let output = env.runbook(["run", "playbook.yaml"]).run().exits(3);
    insta::assert_snapshot!(failure(&output), @"
    FAILED         [DURATION]  Nothing is lost
      there is no snapshot of `before` to compare with: the step is skipped
      step      after
      where     playbook.yaml:[PLACE]
                [LINE] |       expect: {unchanged_from: before, tolerance: {default: exact, users: may_grow, scans: 5%}}
      state     this step changed nothing, or what it changed was rolled back
    ");
}

#[test]
fn sqlite_has_counts_and_fingerprints_too() {
    let env = TestEnv::new();
    let playbook = |change: &str| {
        format!(
            r#"
version: 1
name: sqlite
connections: {{main: {{url: "sqlite:warehouse.db?mode=rwc"}}}}
steps:
  - id: make
    sql: {{exec: "CREATE TABLE users (id INTEGER PRIMARY KEY, name TEXT); INSERT INTO users VALUES (1, 'a'), (2, NULL); CREATE TABLE \"odd name\" (x); INSERT INTO \"odd name\" VALUES (1.5), (1.5), (x'00')"}}
  - id: before
    snapshot: {{tables: [Users, '"odd name"'], with: [fingerprint], where: {{'"odd name"': "x IS NOT {{{{ run.id }}}}"}}}}
  - id: change
    sql: {{exec: "{change}"}}
  - id: after
    snapshot: {{tables: [users, '"odd name"'], with: [fingerprint], where: {{'"odd name"': "x IS NOT {{{{ run.id }}}}"}}, expect: {{unchanged_from: before}}}}
"#
        )
    };
    env.write("playbook.yaml", playbook("DELETE FROM users; INSERT INTO users VALUES (2, NULL), (1, 'a')"));
    let output = env.runbook(["run", "playbook.yaml"]).run().exits(0);
    insta::assert_snapshot!(env.runbook(["show", &run_of(&output), "after"]).run().exits(0).stdout, @r#"
    done  after
      run        [RUN] of sqlite
      class      read
      history    [TIMESTAMP]  done after [DURATION] (attempt 1): 5 rows in 2 tables, as in before
      observed   5 rows in 2 tables, as in before
      row count  2
      rows       table      | before | count | fingerprint
                 -----------+--------+-------+--------------------
                 users      |      2 |     2 | 9809837720506233669
                 "odd name" |      3 |     3 | 5948229660282811550
    "#);
    for change in ["UPDATE users SET name = '' WHERE id = 2", "UPDATE \\\"odd name\\\" SET x = 1.25 WHERE rowid = 1"] {
        std::fs::remove_file(env.path("warehouse.db")).unwrap();
        env.write("playbook.yaml", playbook(change));
        let output = env.runbook(["run", "playbook.yaml"]).run().exits(3);
        assert!(output.stdout.contains("has as many rows but other contents"), "{output}");
    }
    let mut env = env;
    env.set("DATABASE_URL", "sqlite:warehouse.db");
    insta::assert_snapshot!(failure(&snapshot_of(&env, "tables: [user, main.users, app.users]").exits(3)), @"
    FAILED         [DURATION]  counts
      there are no tables `user`, `app.users`
      step      counts
      where     playbook.yaml:[PLACE]
                [LINE] |     snapshot: {tables: [user, main.users, app.users]}
      state     this step changed nothing, or what it changed was rolled back
      hint      `user`: did you mean `users`?
      hint      `app.users`: did you mean `users`?
    ");
}
