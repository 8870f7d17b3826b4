//! playbooks/barcode-migration.yaml and barcode-rollback.yaml on the data they are written
//! for: every rack gets one barcode whatever breaks, bad data are refused untouched.

use std::time::{Duration, Instant};

use regex::Regex;

use crate::environment::{Invocation, Output};
use crate::stock_audit::{StockAudit, run_of, said_of, stable};

/// What a rack's barcode must be, whoever made it.
const WRONG: &str = "SELECT count(*) FROM racks r LEFT JOIN audit_sessions s ON s.id = r.audit_session_id WHERE r.barcode IS DISTINCT FROM \
     to_char(s.working_date, 'YYMMDD') || '-' || s.shortname || '-' || CASE WHEN length(r.rack_number) < 3 THEN lpad(r.rack_number, 3, '0') ELSE r.rack_number END";
/// Changes with every row version.
const VERSIONS: &str = "SELECT md5(string_agg(format('%s %s %s', xmin, ctid, barcode), ',' ORDER BY id)) FROM racks";
const GIVEN: &str = "SELECT count(barcode) FROM racks";
/// What the migration leaves in the database besides barcodes.
const TRACES: &str = "SELECT coalesce(to_regclass('racks_barcode_key')::text, 'no index'), \
     coalesce(to_regclass('barcodes_before_migration')::text, 'nothing remembered'), \
     (SELECT count(*) FROM pg_class WHERE relname LIKE 'worklist%')";

fn playbook<'a>(site: &'a StockAudit, name: &str, more: &[&str]) -> Invocation<'a> {
    let path = format!("playbooks/{name}.yaml");
    let database = format!("database={}", site.database.name());
    let told = ["run", &path, "--param", "env=staging", "--param", &database];
    site.env.runbook(told.iter().chain(more).map(ToString::to_string))
}

fn migrate(site: &StockAudit, more: &[&str]) -> Output {
    playbook(site, "barcode-migration", more).run()
}

/// Racks up to number 999 in every session.
fn with_many_racks() -> StockAudit {
    let site = StockAudit::before_deployment(&[]);
    site.database.psql("INSERT INTO racks (audit_session_id, rack_number) SELECT id, n FROM audit_sessions, generate_series(100, 999) n");
    site
}

#[test]
fn every_rack_gets_a_barcode_of_its_own_and_a_second_run_changes_nothing() {
    let site = StockAudit::before_deployment(&[]);
    let output = migrate(&site, &[]).exits(0);
    // How many there are depends on how fast the machine is.
    let batches = Regex::new(r"in \d+ batch(es)?").unwrap();
    insta::assert_snapshot!(batches.replace_all(&stable(&output.stdout), "in [BATCHES]"));
    assert_eq!(site.database.psql(WRONG), "0");
    assert_eq!(site.database.psql("SELECT count(*), count(DISTINCT barcode) FROM racks"), "200|200");
    assert_eq!(site.database.psql(TRACES), "racks_barcode_key|barcodes_before_migration|0");

    let before = site.database.psql(VERSIONS);
    let again = migrate(&site, &[]).exits(0);
    assert!(said_of(&again, "Remember the barcodes").starts_with("already done"), "{again}");
    assert!(said_of(&again, "Give every rack a barcode").contains("0 rows changed"), "{again}");
    assert!(said_of(&again, "Make barcodes unique").starts_with("already done"), "{again}");
    assert_eq!(site.database.psql(VERSIONS), before, "a row was written again");
}

#[test]
fn racks_that_came_since_get_theirs_and_the_others_keep_theirs() {
    let site = StockAudit::before_deployment(&[]);
    migrate(&site, &[]).exits(0);
    let old = "SELECT md5(string_agg(barcode, ',' ORDER BY id)) FROM racks WHERE id <= 200";
    let before = site.database.psql(old);
    // Numbers before, between and behind those there are.
    site.database.psql("INSERT INTO racks (audit_session_id, rack_number) SELECT id, unnest(ARRAY['0', '3b', '998']) FROM audit_sessions");
    let output = migrate(&site, &[]).exits(0);
    assert!(said_of(&output, "Give every rack a barcode").contains("36 rows changed"), "{output}");
    assert_eq!(site.database.psql(old), before);
    assert_eq!(site.database.psql(WRONG), "0");
}

#[test]
fn killed_in_the_middle_it_goes_on_to_the_same_end() {
    let site = with_many_racks();
    let racks: u32 = site.database.psql("SELECT count(*) FROM racks").parse().unwrap();
    // One rack in somebody's hands: the batches can't come to their end.
    let mut somebody = site.database.session();
    somebody.run("BEGIN; SELECT id FROM racks ORDER BY id DESC LIMIT 1 FOR UPDATE");
    let running = playbook(&site, "barcode-migration", &["--param", "target_duration=5ms"]).spawn();
    let begun = Instant::now();
    while site.database.psql(GIVEN) == "0" {
        assert!(begun.elapsed() < Duration::from_secs(120) && !running.has_ended(), "no batch was done: {}", running.kill());
        std::thread::sleep(Duration::from_millis(5));
    }
    let killed = running.kill();
    somebody.run("ROLLBACK");
    let given: u32 = site.database.psql(GIVEN).parse().unwrap();
    assert!(0 < given && given < racks, "{given} of {racks}");

    let resumed = site.resume(&killed).exits(0);
    assert!(said_of(&resumed, "Give every rack a barcode").contains(&format!("{racks} rows changed")), "{resumed}");
    assert_eq!(site.database.psql(WRONG), "0");
    assert_eq!(site.database.psql(TRACES), "racks_barcode_key|barcodes_before_migration|0");
}

#[test]
fn racks_that_come_while_it_runs_get_theirs_too() {
    let site = with_many_racks();
    let mut report = site.database.session();
    report.run("SET application_name = 'nightly-report'");
    let running = playbook(&site, "barcode-migration", &["--param", "make_way_for=nightly-report"]).spawn();
    running.wait_for("paused: ");
    site.database.psql("INSERT INTO racks (audit_session_id, rack_number) SELECT id, '0' FROM audit_sessions");
    report.run("RESET application_name");
    let output = running.wait().exits(0);
    assert!(said_of(&output, "Give every rack a barcode").contains("11000 rows changed"), "{output}");
    assert!(said_of(&output, "Racks that came meanwhile").contains("12 rows changed"), "{output}");
    assert_eq!(site.database.psql(WRONG), "0");
}

// ---- what is refused ------------------------------------------------------------

/// What is said of the step that refuses; the data are as they were and nothing was begun.
#[track_caller]
fn refused(site: &StockAudit, title: &str, more: &[&str]) -> String {
    let before = site.database.psql(VERSIONS);
    let output = migrate(site, more).exits(3);
    assert_eq!(site.database.psql(VERSIONS), before, "{output}");
    assert_eq!(site.database.psql(TRACES), "no index|nothing remembered|0", "{output}");
    assert!(!site.env.path("backups").exists(), "{output}");
    said_of(&output, title)
}

#[test]
fn a_collision_with_an_existing_barcode() {
    let site = StockAudit::before_deployment(&["barcode-collision"]);
    insta::assert_snapshot!(refused(&site, "No barcode would stand for two racks", &["--param", "keep_existing=true"]));
}

#[test]
fn a_collision_of_numbers_that_differ_in_leading_zeros() {
    let site = StockAudit::before_deployment(&[]);
    site.database.psql("INSERT INTO racks (audit_session_id, rack_number) SELECT id, '007' FROM audit_sessions WHERE shortname = 'LDN-1'");
    insta::assert_snapshot!(refused(&site, "No barcode would stand for two racks", &[]));
}

#[test]
fn numbers_that_the_label_has_no_room_for_unless_it_has() {
    let site = StockAudit::before_deployment(&["long-rack-numbers"]);
    insta::assert_snapshot!(refused(&site, "Rack numbers fit the label", &[]));
    // The guide's barcodes of racks 100 and 1000 to 1004 would all have ended in 100.
    site.database.psql("INSERT INTO racks (audit_session_id, rack_number) SELECT id, '100' FROM audit_sessions WHERE status = 'planned'");
    migrate(&site, &["--param", "label_digits=4"]).exits(0);
    assert_eq!(site.database.psql(WRONG), "0");
    assert_eq!(site.database.psql("SELECT count(DISTINCT barcode) FROM racks WHERE barcode ~ '-100[0-4]?$'"), "6");
}

#[test]
fn barcodes_of_another_form_unless_they_are_to_be_kept() {
    let site = StockAudit::before_deployment(&[]);
    site.database.psql("UPDATE racks SET barcode = '0101-00' || id WHERE id <= 2");
    insta::assert_snapshot!(refused(&site, "Barcodes that exist are of this form", &[]));
    migrate(&site, &["--param", "keep_existing=true"]).exits(0);
    assert_eq!(site.database.psql("SELECT string_agg(barcode, ' ' ORDER BY id) FROM racks WHERE id <= 2"), "0101-001 0101-002");
    assert_eq!(site.database.psql(WRONG), "2");
}

#[test]
fn racks_without_a_session() {
    let site = StockAudit::before_deployment(&["orphaned-racks"]);
    assert!(refused(&site, "Every rack belongs to a session", &[]).contains("found 3 rows"));
}

#[test]
fn another_index_of_that_name() {
    let site = StockAudit::before_deployment(&[]);
    site.database.psql("CREATE INDEX racks_barcode_key ON racks (created_at)");
    let output = migrate(&site, &[]).exits(3);
    insta::assert_snapshot!(said_of(&output, "No other index has the name"));
    assert_eq!(site.database.psql(TRACES), "racks_barcode_key|nothing remembered|0");
}

#[test]
fn an_index_that_a_failed_build_left_is_built_anew() {
    let site = StockAudit::before_deployment(&[]);
    site.database.psql("CREATE UNIQUE INDEX racks_barcode_key ON racks (barcode)");
    site.database.psql("UPDATE pg_index SET indisvalid = false WHERE indexrelid = 'racks_barcode_key'::regclass");
    migrate(&site, &[]).exits(0);
    assert_eq!(site.database.psql("SELECT indisvalid FROM pg_index WHERE indexrelid = 'racks_barcode_key'::regclass"), "t");
    assert_eq!(site.database.psql(WRONG), "0");
}

// ---- the way back ---------------------------------------------------------------

#[test]
fn a_rollback_drops_what_the_migration_gave_after_a_typed_word() {
    let site = StockAudit::before_deployment(&[]);
    site.database.psql("UPDATE racks SET barcode = '0101-001' WHERE id = 1");
    migrate(&site, &["--param", "keep_existing=true"]).exits(0);
    let migrated = site.database.psql("SELECT md5(string_agg(barcode, ',' ORDER BY id)) FROM racks");

    let waiting = playbook(&site, "barcode-rollback", &["--yes"]).run().exits(5);
    insta::assert_snapshot!(stable(&waiting.stdout));
    assert_eq!(site.database.psql(GIVEN), "200", "asked first");
    site.approve(&waiting, "sure", &["--text", "drop barcodes"]).exits(0);
    site.resume(&waiting).exits(0);
    assert_eq!(site.database.psql("SELECT string_agg(id || ' ' || barcode, ',') FROM racks WHERE barcode IS NOT NULL"), "1 0101-001");
    assert_eq!(site.database.psql(TRACES), "no index|nothing remembered|0");
    let dump = site.env.path(format!("backups/{}_racks_with_barcodes.dump", run_of(&waiting)));
    assert!(dump.exists());

    migrate(&site, &["--param", "keep_existing=true"]).exits(0);
    assert_eq!(site.database.psql("SELECT md5(string_agg(barcode, ',' ORDER BY id)) FROM racks"), migrated);
}

#[test]
fn a_rollback_without_a_migration_is_refused_and_a_no_changes_nothing() {
    let site = StockAudit::before_deployment(&[]);
    site.database.psql("UPDATE racks SET barcode = '0101-001' WHERE id = 1");
    playbook(&site, "barcode-rollback", &["--yes"]).run().exits(3);
    assert_eq!(site.database.psql(GIVEN), "1");

    migrate(&site, &["--param", "keep_existing=true"]).exits(0);
    let before = site.database.psql(VERSIONS);
    let waiting = playbook(&site, "barcode-rollback", &[]).run().exits(5);
    site.approve(&waiting, "sure", &["--decline"]).exits(0);
    let declined = site.resume(&waiting);
    assert_ne!(declined.code(), Some(0), "{declined}");
    assert_eq!(site.database.psql(VERSIONS), before);
    assert_eq!(site.database.psql(TRACES), "racks_barcode_key|barcodes_before_migration|0");
}
