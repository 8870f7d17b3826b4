//! playbooks/pre-deploy.yaml on the data it is written for: green where nothing is
//! wrong, and with each problem stopped at the step that looks for it.

use crate::environment::Output;
use crate::postgres::{self, Server};
use crate::stock_audit::{StockAudit, run_of, said_of, stable};
use crate::terminal::key;

// ---- nothing is wrong -----------------------------------------------------------

#[test]
fn sound_data_are_green_up_to_the_last_question_and_beyond() {
    let site = StockAudit::before_deployment(&[]);
    let waiting = site.pre_deploy(&[]).run().exits(5);
    insta::assert_snapshot!(stable(&waiting.stdout), @"
    pre-deploy  33 steps, run [RUN], environment staging
      main: [DATABASE] (system [ID])

    done           [DURATION]  Sizes of the tables → 8 rows
    done           [DURATION]  Every rack belongs to a session → 0 rows
    done           [DURATION]  Every scan belongs to a rack → 0 rows
    done           [DURATION]  At most one active session in a location → 0 rows
    done           [DURATION]  No scan is waiting to be synced → 0
    done           [DURATION]  No entry of the sync queue has failed → 0 rows
    done           [DURATION]  Barcodes that unfinished sessions will get → 2 rows
    done           [DURATION]  Rack numbers fit the three digits of the old labels → 0 rows
    done           [DURATION]  No barcode would stand for two racks → 0 rows
    done           [DURATION]  Are statement statistics there? → false
    skipped               No query is slow already → `when: steps.statement_statistics.value` is false
    done           [DURATION]  Scanners and supervisors have a location → 0 rows
    done           [DURATION]  Locations they could get → 0 rows
    done           [DURATION]  No session is active → 0 rows
    done           [DURATION]  Nobody has a rack in hand → 0 rows
    skipped               May the work be interrupted? → `when: steps.active_sessions.row_count + steps.active_scanners.row_count > 0` is false
    done           [DURATION]  Dump the whole database → [SIZE], 6 tables with 490 rows, sha256 [SUM]
    done           [DURATION]  The dump can be read to its end → exit code 0
    done           [DURATION]  Dump the critical tables → [SIZE], 5 tables with 440 rows, sha256 [SUM]
    done           [DURATION]  Tables that remember the state before a deployment → CREATE TABLE
    done           [DURATION]  Record how many rows there are → 5 rows affected
    done           [DURATION]  Record who has which rack → 9 rows affected
    skipped               Give users without a location the ones proposed → `when: steps.proposed_locations.row_count > 0` is false
    done           [DURATION]  Every scanner and supervisor has a location now → 0 rows
    already done          Index scans by session and scanner → the effect is in place
    already done          Index scans by time → the effect is in place
    already done          Index racks by session and scanner → the effect is in place
    already done          Index racks by status → the effect is in place
    already done          Index users by location → the effect is in place
    done           [DURATION]  The five indexes are what their names say → 0 rows
      ┃ Stock Audit System - Scheduled Maintenance
      ┃ The Stock Audit Scanner System will undergo maintenance at 22:00 UTC.
      ┃
      ┃ What to expect:
      ┃ - 15m of service interruption
      ┃ - All pending scans will be saved
      ┃ - You may need to log in again after the update
      ┃
      ┃ Action required:
      ┃ - Complete and submit any racks in progress
      ┃ - Save your work before 22:00 UTC
      ┃
      ┃ Questions: support@example.com. Thank you for your patience.
    done           [DURATION]  Maintenance notice → told console
    skipped               Maintenance notice to the chat → `when: params.webhook != ''` is false
    WAITING               Go or no-go → Deploy 2.4.0 to staging at 22:00 UTC?

    WAITING               Go or no-go
      question  Deploy 2.4.0 to staging at 22:00 UTC?
                  full dump            [DIR]/backups/[RUN]_2.4.0_full.dump
                  critical tables      [DIR]/backups/[RUN]_2.4.0_critical_tables.sql
                  active sessions      0
                  long rack numbers    in 0 sessions
                Also settle: was the migration tried on a copy of production, and is the way back ready?
      answer    runbook approve [RUN] go --text TEXT  TEXT being exactly [DATABASE]
                runbook approve [RUN] go --decline  to say no
      next      runbook resume [RUN]  goes on after the answer

    waiting after [DURATION]: 23 done, 5 already done, 1 waiting, 4 skipped
    ");
    assert_eq!(waiting.stderr, "");

    site.approve(&waiting, "go", &["--text", "yes"]).exits(6);
    site.approve(&waiting, "go", &["--text", site.database.name(), "--as", "ada"]).exits(0);
    let done = site.resume(&waiting).exits(0);
    insta::assert_snapshot!(stable(&done.stdout), @"
    pre-deploy  33 steps, run [RUN], environment staging
      main: [DATABASE] (system [ID])
      goes on: 32 of 33 steps settled, what is done stays done

    done           [DURATION]  Go or no-go → confirmed by ada

    done after [DURATION]: 24 done, 5 already done, 4 skipped
      runbook show [RUN]  every step, who confirmed what
    ");
}

#[test]
fn the_dumps_hold_what_the_database_holds() {
    let site = StockAudit::before_deployment(&[]);
    let waiting = site.pre_deploy(&[]).run().exits(5);
    let counts = "SELECT (SELECT count(*) FROM locations), (SELECT count(*) FROM users), (SELECT count(*) FROM audit_sessions),
                         (SELECT count(*) FROM racks), (SELECT count(*) FROM scans)";
    let counted = site.database.psql(counts);
    let dump = |kind: &str| site.env.path(format!("backups/{}_2.4.0_{kind}", run_of(&waiting))).display().to_string();

    let from_full = postgres::database();
    site.env.command("pg_restore", ["--exit-on-error", "--no-owner", "--dbname", from_full.url(), &dump("full.dump")]).run().exits(0);
    assert_eq!(from_full.psql(counts), counted);
    assert_eq!(from_full.psql("SELECT count(*) FROM sync_queue"), "50");

    let from_tables = postgres::database();
    let script = dump("critical_tables.sql");
    site.env.command("psql", ["-X", "-q", "-v", "ON_ERROR_STOP=1", "-f", &script, from_tables.url()]).run().exits(0);
    assert_eq!(from_tables.psql(counts), counted);
}

#[test]
fn what_must_still_be_there_afterwards_is_recorded() {
    let site = StockAudit::before_deployment(&[]);
    site.pre_deploy(&[]).run().exits(5);
    insta::assert_snapshot!(site.database.psql("SELECT release, table_name, row_count, highest_id FROM deployment_counts ORDER BY 2"), @"
    2.4.0|audit_sessions|12|
    2.4.0|locations|4|
    2.4.0|racks|200|200
    2.4.0|scans|200|200
    2.4.0|users|24|
    ");
    let assigned = "SELECT count(*) FROM racks r JOIN audit_sessions s ON s.id = r.audit_session_id
                     WHERE r.scanner_id IS NOT NULL AND s.status NOT IN ('completed', 'cancelled')";
    assert_eq!(site.database.psql("SELECT count(*) FROM deployment_assignments"), site.database.psql(assigned));

    // The second time it is the later state that counts.
    site.database.psql("DELETE FROM sync_queue; DELETE FROM scans WHERE id = 200");
    site.pre_deploy(&[]).run().exits(5);
    assert_eq!(site.database.psql("SELECT row_count FROM deployment_counts WHERE table_name = 'scans'"), "199");
}

#[test]
fn a_pipeline_can_not_say_yes_to_the_deployment() {
    let site = StockAudit::before_deployment(&[]);
    let waiting = site.pre_deploy(&["--yes"]).run().exits(5);
    assert!(said_of(&waiting, "Go or no-go").starts_with("WAITING"), "{waiting}");
}

#[test]
fn the_deployment_is_decided_at_a_terminal() {
    let site = StockAudit::before_deployment(&[]);
    let mut terminal = site.pre_deploy(&[]).terminal();
    let typed = format!("type {}", site.database.name());
    terminal.wait_for(&typed).send("yes").send(key::ENTER).wait_for("that is not it");
    terminal.send(site.database.name()).send(key::ENTER);
    assert_eq!(terminal.wait().code(), Some(0), "{}", terminal.screen());
}

#[test]
fn a_no_ends_it() {
    let site = StockAudit::before_deployment(&[]);
    let waiting = site.pre_deploy(&[]).run().exits(5);
    site.approve(&waiting, "go", &["--decline", "--text", "the copy of production failed", "--as", "ada"]).exits(0);
    let declined = site.resume(&waiting).exits(3);
    insta::assert_snapshot!(said_of(&declined, "Go or no-go"), @"
    FAILED         [DURATION]  Go or no-go
      declined by ada: the copy of production failed
      step      go
    ");
}

// ---- the wrong place, the wrong words ----------------------------------------------

#[test]
fn another_environment_or_database_is_refused_before_anything() {
    let site = StockAudit::before_deployment(&[]);
    site.stamp("production");
    let refused = site.pre_deploy(&[]).run().exits(6);
    insta::assert_snapshot!(refused.stderr, @"
    error: connection `main` is not the expected target
      environment: expected `staging`, found `production`
      nothing was changed
    ");
    site.stamp("staging");
    let refused = site.pre_deploy(&["--param", "database=stock_audit"]).run().exits(6);
    insta::assert_snapshot!(refused.stderr, @"
    error: connection `main` is not the expected target
      database: expected stock_audit, found [DATABASE]
      nothing was changed
    ");
    assert!(!site.env.path("backups").exists());
}

#[test]
fn what_it_must_be_told_is_said_together() {
    let site = StockAudit::before_deployment(&[]);
    let refused = site.env.runbook(["run", "playbooks/pre-deploy.yaml", "--param", "env=qa", "--param", "release=2.4/0"]).run().exits(65);
    insta::assert_snapshot!(refused.stderr, @r#"
    error[parameter]: parameter `env`: `qa` is not one of staging, production
      --> playbooks/pre-deploy.yaml:15:3
       |
    15 |   env: {type: enum, values: [staging, production], required: true, description: Where this is run; compared with the stamp in the da...
       |   ^^^
       |
       = help: `env` is: Where this is run; compared with the stamp in the database

    error[parameter]: parameter `release`: `2.4/0` does not match [A-Za-z0-9][A-Za-z0-9._-]*
      --> playbooks/pre-deploy.yaml:16:3
       |
    16 |   release: {type: string, required: true, pattern: "[A-Za-z0-9][A-Za-z0-9._-]*", description: "Version that will be deployed, such a...
       |   ^^^^^^^
       |
       = help: `release` is: Version that will be deployed, such as 2.4.0; post-deploy-smoke finds the recorded counts by it

    error[parameter]: parameter `maintenance_at`: a value is required
      --> playbooks/pre-deploy.yaml:17:3
       |
    17 |   maintenance_at: {type: string, required: true, description: "When the interruption begins, as people should read it, such as 22:00...
       |   ^^^^^^^^^^^^^^
       |
       = help: `maintenance_at` is: When the interruption begins, as people should read it, such as 22:00 UTC on Sunday
       = help: give it with --param maintenance_at=…

    3 errors
    "#);
}

// ---- problems that stop it ----------------------------------------------------------

/// What is said of the step that finds the problem; nothing has been saved or changed then.
#[track_caller]
fn found_at_once(problem: &str, title: &str) -> String {
    let site = StockAudit::before_deployment(&[problem]);
    let output = site.pre_deploy(&["--yes"]).run().exits(3);
    assert!(!site.env.path("backups").exists(), "{output}");
    assert_eq!(site.database.psql("SELECT to_regclass('deployment_counts') IS NULL"), "t", "{output}");
    said_of(&output, title)
}

#[test]
fn orphaned_racks() {
    insta::assert_snapshot!(found_at_once("orphaned-racks", "Every rack belongs to a session"), @"
    FAILED         [DURATION]  Every rack belongs to a session → 3 rows
      expected no rows, found 3 rows
      step      orphaned_racks
      where     playbooks/pre-deploy.yaml:[PLACE]
                [LINE] |       expect: {empty: true}
      rows      id  | rack_number | audit_session_id
                ----+-------------+-------------------------------------
                201 |           1 | [UUID]
                202 |           2 | [UUID]
                203 |           3 | [UUID]
    ");
}

#[test]
fn orphaned_scans() {
    insta::assert_snapshot!(found_at_once("orphaned-scans", "Every scan belongs to a rack"), @"
    FAILED         [DURATION]  Every scan belongs to a rack → 5 rows
      expected no rows, found 5 rows
      step      orphaned_scans
      where     playbooks/pre-deploy.yaml:[PLACE]
                [LINE] |       expect: {empty: true}
      rows      id  | rack_id | audit_session_id                     | created_at
                ----+---------+--------------------------------------+-----------------------
                201 |      -1 | [UUID] | [TIMESTAMP]
                202 |      -2 | [UUID] | [TIMESTAMP]
                203 |      -3 | [UUID] | [TIMESTAMP]
                204 |      -4 | [UUID] | [TIMESTAMP]
                205 |      -5 | [UUID] | [TIMESTAMP]
    ");
}

#[test]
fn duplicate_active_sessions() {
    insta::assert_snapshot!(found_at_once("duplicate-active-sessions", "At most one active session in a location"), @"
    FAILED         [DURATION]  At most one active session in a location → 1 row
      expected no rows, found 1 row
      step      duplicate_active_sessions
      where     playbooks/pre-deploy.yaml:[PLACE]
                [LINE] |       expect: {empty: true}
      rows      location | active_sessions | sessions
                ---------+-----------------+-------------------
                Bristol  |               2 | BRS-11, BRS-11-BIS
    ");
}

#[test]
fn pending_scans() {
    insta::assert_snapshot!(found_at_once("pending-scans", "No scan is waiting to be synced"), @"
    FAILED         [DURATION]  No scan is waiting to be synced → 7
      expected value = 0, found 7
      step      pending_scans
      where     playbooks/pre-deploy.yaml:[PLACE]
                [LINE] |       expect: {value: 0}
      rows      pending_scans | oldest                 | newest
                --------------+------------------------+-----------------------
                            7 | [TIMESTAMP] | [TIMESTAMP]
    ");
}

#[test]
fn failed_syncs() {
    insta::assert_snapshot!(found_at_once("failed-sync", "No entry of the sync queue has failed"), @r#"
    FAILED         [DURATION]  No entry of the sync queue has failed → 2 rows
      expected no rows, found 2 rows
      step      failed_syncs
      where     playbooks/pre-deploy.yaml:[PLACE]
                [LINE] |       expect: {empty: true}
      rows      id | retry_count | last_error       | created_at             | payload
                ---+-------------+------------------+------------------------+----------------------------------
                51 |           4 | connection reset | [TIMESTAMP] | {"rack":1,"article":"ART-000001"}
                52 |           5 | connection reset | [TIMESTAMP] | {"rack":2,"article":"ART-000001"}
    "#);
}

#[test]
fn barcode_collisions() {
    insta::assert_snapshot!(found_at_once("barcode-collision", "No barcode would stand for two racks"), @r#"
    FAILED         [DURATION]  No barcode would stand for two racks → 1 row
      expected no rows, found 1 row
      step      barcode_collisions
      where     playbooks/pre-deploy.yaml:[PLACE]
                [LINE] |       expect: {empty: true}
      rows      barcode           | racks | for_example
                ------------------+-------+---------------------------------
                [DAY]-GLA-12-001 |     2 | ["GLA-12 rack 1","LDN-1 rack 1"]
    "#);
}

#[test]
fn a_wrong_index() {
    let site = StockAudit::before_deployment(&["wrong-index"]);
    let output = site.pre_deploy(&[]).run().exits(3);
    insta::assert_snapshot!(said_of(&output, "The five indexes are what their names say"), @"
    FAILED         [DURATION]  The five indexes are what their names say → 1 row
      expected no rows, found 1 row
      step      indexes_as_required
      where     playbooks/pre-deploy.yaml:[PLACE]
                [LINE] |       expect: {empty: true}
      rows      name             | required       | found              | valid
                -----------------+----------------+--------------------+------
                idx_racks_status | btree (status) | btree (created_at) | true
    ");
    assert_eq!(site.database.psql("SELECT count(*) FROM pg_indexes WHERE indexdef LIKE '%idx_racks_status%(created_at)'"), "1");
}

// ---- problems that people hear of ------------------------------------------------------

#[test]
fn long_rack_numbers() {
    let site = StockAudit::before_deployment(&["long-rack-numbers"]);
    let output = site.pre_deploy(&[]).run().exits(5);
    insta::assert_snapshot!(said_of(&output, "Rack numbers fit the three digits"), @"
    WARNING        [DURATION]  Rack numbers fit the three digits of the old labels → 1 row
      expected no rows, found 1 row
      about     Longer numbers get longer barcodes. Check that the label has room for them.
      rows      session | long_numbers | longest | repeated_if_cut_to_three
                --------+--------------+---------+-------------------------
                GLA-12  |            5 |       4 |                        4
    ");
    assert!(output.stdout.contains("long rack numbers    in 1 sessions"), "{output}");
}

#[test]
fn slow_queries() {
    if postgres::database().psql("SELECT count(*) FROM pg_available_extensions WHERE name = 'pg_stat_statements'") == "0" {
        assert!(postgres::is_chosen(), "pg_stat_statements is missing: `bash .ci/setup` installs postgresql-contrib");
        println!("skipped: {} comes without pg_stat_statements", postgres::bin_dir().display());
        return;
    }
    let server = Server::builder().setting("shared_preload_libraries", "pg_stat_statements").start();
    let database = server.createdb("stock_audit");
    database.psql("CREATE EXTENSION pg_stat_statements");
    let site = StockAudit::generated_in(database, &["slow-query"]);
    let output = site.pre_deploy(&[]).run().exits(5);
    let milliseconds = regex::Regex::new(r"\b\d+\.\d\b").unwrap();
    let said = said_of(&output, "No query is slow already");
    insta::assert_snapshot!(milliseconds.replace_all(&said, "[MS]"), @"
    WARNING        [DURATION]  No query is slow already → 1 row
      expected no rows, found 1 row
      rows      query                                            | calls | mean_ms | max_ms
                -------------------------------------------------+-------+---------+-------
                SELECT count(*) FROM racks, pg_sleep($1) WHERE … |     5 |   [MS] |  [MS]
    ");
}

#[test]
fn an_active_session_is_interrupted_by_nobody_but_a_person() {
    let site = StockAudit::before_deployment(&["active-session"]);
    let waiting = site.pre_deploy(&["--yes"]).run().exits(5);
    insta::assert_snapshot!(said_of(&waiting, "No session is active"), @"
    WARNING        [DURATION]  No session is active → 1 row
      expected no rows, found 1 row
      rows      session | location | started_at             | scans
                --------+----------+------------------------+------
                BRS-11  | Bristol  | [TIMESTAMP] |    13
    ");
    insta::assert_snapshot!(question_of(&waiting, "May the work be interrupted?"), @"
    WAITING               May the work be interrupted?
      question  People are working. Active sessions: 1, racks in hand: 0.
                  session BRS-11 in Bristol, 13 scans so far
                Have them submitted and the sessions paused, or interrupt them for 15m.
      answer    runbook approve [RUN] interrupt_work --text TEXT  TEXT being exactly interrupt
                runbook approve [RUN] interrupt_work --decline  to say no
      next      runbook resume [RUN]  goes on after the answer
    ");
    assert!(!site.env.path("backups").exists());
    site.approve(&waiting, "interrupt_work", &["--text", "interrupt"]).exits(0);
    let later = site.resume(&waiting).exits(5);
    assert!(said_of(&later, "Go or no-go").starts_with("WAITING"), "{later}");
    assert!(later.stdout.contains("active sessions      1\n"), "{later}");
}

#[test]
fn active_scanners_are_left_alone_when_a_person_says_no() {
    let site = StockAudit::before_deployment(&["active-scanners"]);
    let mut terminal = site.pre_deploy(&[]).terminal();
    terminal.wait_until("the end of the question", |screen| screen.contents().trim_end().ends_with('>'));
    insta::assert_snapshot!(stable(&terminal.screen()), @"
    pre-deploy  33 steps, run [RUN], environment staging
      main: [DATABASE] (system [ID])

    done           [DURATION]  Sizes of the tables → 8 rows
    done           [DURATION]  Every rack belongs to a session → 0 rows
    done           [DURATION]  Every scan belongs to a rack → 0 rows
    done           [DURATION]  At most one active session in a location → 0 rows
    done           [DURATION]  No scan is waiting to be synced → 0
    done           [DURATION]  No entry of the sync queue has failed → 0 rows
    done           [DURATION]  Barcodes that unfinished sessions will get → 2 rows
    done           [DURATION]  Rack numbers fit the three digits of the old labels → 0 rows
    done           [DURATION]  No barcode would stand for two racks → 0 rows
    done           [DURATION]  Are statement statistics there? → false
    skipped               No query is slow already → `when: steps.statement_statistics.value` is false
    done           [DURATION]  Scanners and supervisors have a location → 0 rows
    done           [DURATION]  Locations they could get → 0 rows
    done           [DURATION]  No session is active → 0 rows
    WARNING        [DURATION]  Nobody has a rack in hand → 2 rows
      expected no rows, found 2 rows
      rows      scanner | session | rack_number | assigned_at            | scans
                --------+---------+-------------+------------------------+------
                user24  | BRS-11  |           2 | [TIMESTAMP] |     1
                user8   | BRS-11  |           4 | [TIMESTAMP] |     3

    ? May the work be interrupted?
      People are working. Active sessions: 0, racks in hand: 2.
        rack 2 of BRS-11: user24
        rack 4 of BRS-11: user8
      Have them submitted and the sessions paused, or interrupt them for 15m.
      time      without an answer within 30m it counts as no
      To go on, type interrupt  (no: stops here; the step counts as failed)
      >
    ");
    terminal.send("no").send(key::ENTER);
    assert_eq!(terminal.wait().code(), Some(3), "{}", terminal.screen());
    assert!(!site.env.path("backups").exists());
}

fn question_of(waiting: &Output, title: &str) -> String {
    let (_, end) = waiting.stdout.rsplit_once("\nWAITING").expect("it waits");
    let question = format!("WAITING{end}");
    assert!(question.contains(title), "{waiting}");
    stable(question.split("\n\n").next().unwrap_or_default())
}

// ---- problems that it repairs -----------------------------------------------------------

const LOST: &str = "SELECT string_agg(username, ' ' ORDER BY username) FROM users u WHERE active AND role IN ('scanner', 'supervisor')
                       AND NOT EXISTS (SELECT 1 FROM locations l WHERE l.id = ANY (u.location_ids))";

#[test]
fn users_without_locations_get_them_when_a_person_agrees() {
    let site = StockAudit::before_deployment(&["users-without-locations"]);
    let waiting = site.pre_deploy(&["--param", "default_location=LDN"]).run().exits(5);
    insta::assert_snapshot!(said_of(&waiting, "Scanners and supervisors have a location"), @"
    WARNING        [DURATION]  Scanners and supervisors have a location → 3 rows
      expected no rows, found 3 rows
      rows      username | role    | location_ids | last_login_at
                ---------+---------+--------------+-----------------------
                newcomer | scanner | []           | NULL
                user6    | scanner | NULL         | [TIMESTAMP]
                user7    | scanner | []           | [TIMESTAMP]
    ");
    insta::assert_snapshot!(question_of(&waiting, "Give users without a location"), @"
    WAITING               Give users without a location the ones proposed
      question  Give these users (3) their locations?
                  newcomer (scanner): London
                  user6 (scanner): London
                  user7 (scanner): Leeds
      answer    runbook approve [RUN] give_locations
                runbook approve [RUN] give_locations --decline  to say no
      next      runbook resume [RUN]  goes on after the answer
    ");
    assert_eq!(site.database.psql(LOST), "newcomer user6 user7");
    site.approve(&waiting, "give_locations", &[]).exits(0);
    let later = site.resume(&waiting).exits(5);
    insta::assert_snapshot!(said_of(&later, "Give users without a location"), @"done           [DURATION]  Give users without a location the ones proposed → 3 rows affected");
    insta::assert_snapshot!(site.database.psql(
        "SELECT u.username, array_to_json(f.old_location_ids),
                (SELECT string_agg(l.code, ' ') FROM locations l WHERE l.id = ANY (f.new_location_ids)), u.location_ids = f.new_location_ids
           FROM deployment_location_fixes f JOIN users u ON u.id = f.user_id ORDER BY 1"), @"
           newcomer|[]|LDN|t
           user6||LDN|t
           user7|[]|LEE|t
           ");
    assert_eq!(site.database.psql(LOST), "");
}

#[test]
fn users_without_locations_keep_none_when_a_person_disagrees() {
    let site = StockAudit::before_deployment(&["users-without-locations"]);
    let waiting = site.pre_deploy(&["--param", "default_location=LDN"]).run().exits(5);
    site.approve(&waiting, "give_locations", &["--decline"]).exits(0);
    site.resume(&waiting).exits(3);
    assert_eq!(site.database.psql(LOST), "newcomer user6 user7");
}

/// The newcomer has scanned nowhere, and no location is given for such people.
#[test]
fn somebody_left_without_a_location_stops_it() {
    let site = StockAudit::before_deployment(&["users-without-locations"]);
    let output = site.pre_deploy(&["--yes"]).run().exits(3);
    insta::assert_snapshot!(said_of(&output, "Every scanner and supervisor has a location now"), @"
    FAILED         [DURATION]  Every scanner and supervisor has a location now → 1 row
      expected no rows, found 1 row
      step      everybody_has_a_location
      where     playbooks/pre-deploy.yaml:[PLACE]
                [LINE] |       expect: {empty: true}
      rows      username | role    | location_ids
                ---------+---------+-------------
                newcomer | scanner | []
    ");
    assert_eq!(site.database.psql(LOST), "newcomer");
}

#[test]
fn null_locations_are_repaired_too() {
    let site = StockAudit::before_deployment(&["null-locations"]);
    let output = site.pre_deploy(&["--yes"]).run().exits(5);
    insta::assert_snapshot!(said_of(&output, "Scanners and supervisors have a location"), @"
    WARNING        [DURATION]  Scanners and supervisors have a location → 2 rows
      expected no rows, found 2 rows
      rows      username | role    | location_ids | last_login_at
                ---------+---------+--------------+-----------------------
                user6    | scanner | [null]       | [TIMESTAMP]
                user7    | scanner | [null]       | [TIMESTAMP]
    ");
    insta::assert_snapshot!(said_of(&output, "Give users without a location"), @"done           [DURATION]  Give users without a location the ones proposed → 2 rows affected");
    assert_eq!(site.database.psql(LOST), "");
}

const INDEXES: &str =
    "SELECT relname, indisvalid FROM pg_index JOIN pg_class ON oid = indexrelid WHERE relname LIKE 'idx_%' ORDER BY relname";

#[test]
fn missing_indexes_are_built() {
    let site = StockAudit::before_deployment(&["missing-indexes"]);
    assert_eq!(site.database.psql(INDEXES), "");
    let output = site.pre_deploy(&[]).run().exits(5);
    insta::assert_snapshot!(said_of(&output, "Index scans by time"), @"done           [DURATION]  Index scans by time → CREATE INDEX CONCURRENTLY");
    insta::assert_snapshot!(site.database.psql(INDEXES), @"
    idx_racks_session_scanner|t
    idx_racks_status|t
    idx_scans_created|t
    idx_scans_session_scanner|t
    idx_users_location_ids|t
    ");
}

#[test]
fn an_invalid_index_is_built_anew_and_the_others_are_left() {
    let site = StockAudit::before_deployment(&["invalid-index"]);
    let oids = "SELECT oid FROM pg_class WHERE relname LIKE 'idx_%' AND relname <> 'idx_racks_status' ORDER BY oid";
    let before = site.database.psql(oids);
    let output = site.pre_deploy(&[]).run().exits(5);
    insta::assert_snapshot!(said_of(&output, "Index racks by status"), @"done           [DURATION]  Index racks by status → CREATE INDEX CONCURRENTLY");
    assert_eq!(site.database.psql("SELECT indisvalid FROM pg_index WHERE indexrelid = 'idx_racks_status'::regclass"), "t");
    assert_eq!(site.database.psql(oids), before);
}
