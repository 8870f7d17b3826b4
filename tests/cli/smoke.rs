//! playbooks/post-deploy-smoke.yaml against a database and an application: green after a
//! good deployment, and stopped by each thing that may have gone wrong.

use crate::environment::Output;
use crate::stock_audit::{Application, StockAudit, said_of, stable};

// ---- a good deployment ------------------------------------------------------------

#[test]
fn a_good_deployment_is_green_once_people_have_looked() {
    let site = StockAudit::after_deployment(&[]);
    let application = Application::healthy();
    let mut output = site.smoke(&application, &[]).run().exits(5);
    insta::assert_snapshot!(stable(&output.stdout), @"
    post-deploy-smoke  23 steps, run [RUN], environment staging
      main: [DATABASE] (system [ID])

      health │ GET 200 in [DURATION]
    done           [DURATION]  The health endpoint reports database and sign-in → 200 in [DURATION]
      pages[0] │ GET 200 in [DURATION]
    done           [DURATION]  Pages load within 3 seconds [/] → 200 in [DURATION]
      pages[1] │ GET 200 in [DURATION]
    done           [DURATION]  Pages load within 3 seconds [/dashboard] → 200 in [DURATION]
      pages[2] │ GET 200 in [DURATION]
    done           [DURATION]  Pages load within 3 seconds [/scanner] → 200 in [DURATION]
    done                  Pages load within 3 seconds → 3 instances
    done           [DURATION]  Fewer than 80 % of the connections are in use → [SHARE]
    done           [DURATION]  System metrics → users_logged_in 22, active_sessions 1, racks_in_progress 1, recent_scans 1, pending_approvals 5, re…
    done           [DURATION]  The state before the deployment was recorded → 5
    done           [DURATION]  No row is lost → 5 rows
    done           [DURATION]  Every rack still belongs to its scanner → 0 rows
    done           [DURATION]  A session is active again → 1
    done           [DURATION]  Users log in → 22
    done           [DURATION]  Scans are being recorded → 1
    done           [DURATION]  Scans are being synced → 0
    done           [DURATION]  No entry of the sync queue has failed → 0 rows
    done           [DURATION]  Every rack of an active session has a barcode → session BRS-11, racks 16, without_barcode 0
    done           [DURATION]  No barcode stands for two racks → 0 rows
    done           [DURATION]  Every scanner and supervisor is in the Scanner Status widget → 0 rows
    done           [DURATION]  Every pending approval is visible to a supervisor → 0 rows
    done           [DURATION]  Personal stats show the current session's scans only → 5 rows
    done           [DURATION]  Personal stats are up to date → made 14, shown 14
    done           [DURATION]  What people should see → 1 row
    WAITING               A supervisor can sign in → Open http://127.0.0.1:[PORT] in a private window and sign in as a supervisor.

    WAITING               A supervisor can sign in
      question  Open http://127.0.0.1:[PORT] in a private window and sign in as a supervisor.
      report    Which role does the page show next to your name?
      answer    runbook approve [RUN] sign_in --text TEXT  TEXT being what you see
                runbook approve [RUN] sign_in --decline  to say no
      next      runbook resume [RUN]  goes on after the answer

    waiting after [DURATION]: 19 done, 1 waiting, 2 not run
    ");
    for (step, answer) in [("sign_in", "supervisor"), ("widget_count", "21"), ("barcode_scans", "1")] {
        site.approve(&output, step, &["--text", answer, "--as", "ada"]).exits(0);
        output = site.resume(&output);
    }
    insta::assert_snapshot!(stable(&output.exits(0).stdout), @"
    post-deploy-smoke  23 steps, run [RUN], environment staging
      main: [DATABASE] (system [ID])
      goes on: 21 of 22 steps settled, what is done stays done

    done           [DURATION]  A rack's barcode scans and selects the rack → 1 (seen by ada)
      ┃ Stock Audit System - Update Complete
      ┃ Release 2.4.0 is in operation; every smoke test and every item of the checklist passed.
    done           [DURATION]  Update complete → told console

    done after [DURATION]: 23 done
      runbook show [RUN]  every step, who confirmed what
    ");
}

#[test]
fn what_a_person_sees_must_be_right() {
    let site = StockAudit::after_deployment(&[]);
    let application = Application::healthy();
    let waiting = site.smoke(&application, &[]).run().exits(5);
    site.approve(&waiting, "sign_in", &["--text", "guest"]).exits(0);
    let output = site.resume(&waiting).exits(3);
    insta::assert_snapshot!(said_of(&output, "A supervisor can sign in"), @"
    FAILED         [DURATION]  A supervisor can sign in → guest (seen by [USER])
      what was observed is not what is expected
      step      sign_in
      expected  supervisor
      observed  guest
    ");
}

// ---- the application -----------------------------------------------------------------

const HEALTH: &str = "The health endpoint reports database and sign-in";

/// Waits milliseconds instead of seconds between two tries, which are counted.
#[track_caller]
fn with_application(application: &Application) -> Output {
    let site = StockAudit::after_deployment(&[]);
    let playbook = site.env.read("playbooks/post-deploy-smoke.yaml");
    let patient = "retry: {max: 3, delay: 2s,";
    assert!(playbook.contains(patient));
    site.env.write("playbooks/post-deploy-smoke.yaml", playbook.replace(patient, "retry: {max: 3, delay: 1ms,"));
    site.smoke(application, &[]).run().exits(3)
}

#[test]
fn an_application_that_reports_trouble() {
    let application = Application::with(("/api/health", "200 OK", r#"{"database": true, "auth": false}"#));
    let output = with_application(&application);
    insta::assert_snapshot!(said_of(&output, HEALTH), @r#"
    FAILED         [DURATION]  The health endpoint reports database and sign-in → 200 in [DURATION]
      `database == true and auth == true` does not hold
      step      health
      where     playbooks/post-deploy-smoke.yaml:[PLACE]
                [LINE] |       url: "{{ params.app_url }}/api/health"
      database  true
      auth      false
      body      {"database": true, "auth": false}
    "#);
    assert_eq!(application.asked_for("/api/health"), 4);
    assert_eq!(application.asked_for("/"), 0);
}

#[test]
fn an_application_that_is_down() {
    let application = Application::with(("/api/health", "503 Service Unavailable", "starting"));
    insta::assert_snapshot!(said_of(&with_application(&application), HEALTH), @r#"
    FAILED         [DURATION]  The health endpoint reports database and sign-in → 503 in [DURATION]
      status 503, expected 200
      step      health
      where     playbooks/post-deploy-smoke.yaml:[PLACE]
                [LINE] |       url: "{{ params.app_url }}/api/health"
      body      starting
    "#);
}

#[test]
fn a_health_endpoint_that_is_no_json() {
    let application = Application::with(("/api/health", "200 OK", "<html>Log in</html>"));
    insta::assert_snapshot!(said_of(&with_application(&application), HEALTH), @r#"
    FAILED         [DURATION]  The health endpoint reports database and sign-in → 200 in [DURATION]
      the body is not JSON
      step      health
      where     playbooks/post-deploy-smoke.yaml:[PLACE]
                [LINE] |       url: "{{ params.app_url }}/api/health"
      body      <html>Log in</html>
    "#);
}

#[test]
fn an_application_that_is_not_there() {
    let mut application = Application::healthy();
    application.stop();
    insta::assert_snapshot!(said_of(&with_application(&application), HEALTH), @r#"
    FAILED         [DURATION]  The health endpoint reports database and sign-in
      no connection to 127.0.0.1:[PORT]: connection refused
      step      health
      where     playbooks/post-deploy-smoke.yaml:[PLACE]
                [LINE] |       url: "{{ params.app_url }}/api/health"
    "#);
}

#[test]
fn a_page_that_does_not_load() {
    let application = Application::with(("/scanner", "500 Internal Server Error", "oops"));
    insta::assert_snapshot!(said_of(&with_application(&application), "[/scanner]"), @r#"
    FAILED         [DURATION]  Pages load within 3 seconds [/scanner] → 500 in [DURATION]
      status 500, expected 200
      step      pages[2]
      where     playbooks/post-deploy-smoke.yaml:[PLACE]
                [LINE] |       url: "{{ params.app_url }}{{ page }}"
      body      oops
    "#);
}

// ---- the database ----------------------------------------------------------------------

#[track_caller]
fn found(problem: &str, title: &str) -> String {
    let site = StockAudit::after_deployment(&[problem]);
    let output = site.smoke(&Application::healthy(), &["--yes"]).run().exits(3);
    said_of(&output, title)
}

#[test]
fn no_record_of_the_state_before() {
    let site = StockAudit::after_deployment(&[]);
    site.database.psql("DELETE FROM deployment_counts WHERE table_name = 'racks'");
    let output = site.smoke(&Application::healthy(), &[]).run().exits(3);
    insta::assert_snapshot!(said_of(&output, "The state before the deployment was recorded"), @"
    FAILED         [DURATION]  The state before the deployment was recorded → 4
      expected value = 5, found 4
      step      recorded_before
      about     Without it nothing can be compared. Run pre-deploy.yaml with the same release first.
      where     playbooks/post-deploy-smoke.yaml:[PLACE]
                [LINE] |       expect: {value: 5}
      rows      tables
                ------
                     4
    ");
}

#[test]
fn lost_rows() {
    insta::assert_snapshot!(found("lost-rows", "No row is lost"), @r#"
    FAILED         [DURATION]  No row is lost → 5 rows
      expected each row: still_there >= before, found 1 of 5 rows for which it does not hold
      step      no_rows_lost
      where     playbooks/post-deploy-smoke.yaml:[PLACE]
                [LINE] |       expect: {each_row: "still_there >= before"}
      rows      table_name | before | still_there
                -----------+--------+------------
                scans      |    200 |         190
    "#);
}

#[test]
fn lost_assignments() {
    insta::assert_snapshot!(found("lost-assignments", "Every rack still belongs to its scanner"), @"
    FAILED         [DURATION]  Every rack still belongs to its scanner → 2 rows
      expected no rows, found 2 rows
      step      assignments_kept
      where     playbooks/post-deploy-smoke.yaml:[PLACE]
                [LINE] |       expect: {empty: true}
      rows      rack_id | rack_number | session | scanner_before | scanner_now
                --------+-------------+---------+----------------+------------
                     23 |           2 | BRS-11  | user24         | NULL
                     47 |           4 | BRS-11  | user8          | NULL
    ");
}

#[test]
fn no_active_session() {
    insta::assert_snapshot!(found("no-active-session", "A session is active again"), @"
    FAILED         [DURATION]  A session is active again → 0
      expected value ≥ 1, found 0
      step      active_session
      where     playbooks/post-deploy-smoke.yaml:[PLACE]
                [LINE] |       expect: {value: {ge: 1}}
      rows      active_sessions
                ---------------
                              0
    ");
}

#[test]
fn no_logins() {
    insta::assert_snapshot!(found("no-logins", "Users log in"), @"
    FAILED         [DURATION]  Users log in → 0
      expected value ≥ 1, found 0
      step      users_log_in
      where     playbooks/post-deploy-smoke.yaml:[PLACE]
                [LINE] |       expect: {value: {ge: 1}}
      rows      recent_logins
                -------------
                            0
    ");
}

#[test]
fn no_recent_scans() {
    insta::assert_snapshot!(found("no-recent-scans", "Scans are being recorded"), @"
    FAILED         [DURATION]  Scans are being recorded → 0
      expected value ≥ 1, found 0
      step      scans_recorded
      where     playbooks/post-deploy-smoke.yaml:[PLACE]
                [LINE] |       expect: {value: {ge: 1}}
      rows      recent_scans
                ------------
                           0
    ");
}

#[test]
fn pending_scans() {
    insta::assert_snapshot!(found("pending-scans", "Scans are being synced"), @"
    FAILED         [DURATION]  Scans are being synced → 6
      expected value = 0, found 6
      step      scans_synced
      where     playbooks/post-deploy-smoke.yaml:[PLACE]
                [LINE] |       expect: {value: 0}
      rows      stuck_scans | oldest                 | newest
                ------------+------------------------+-----------------------
                          6 | [TIMESTAMP] | [TIMESTAMP]
    ");
}

#[test]
fn failed_syncs() {
    insta::assert_snapshot!(found("failed-sync", "No entry of the sync queue has failed"), @r#"
    FAILED         [DURATION]  No entry of the sync queue has failed → 2 rows
      expected no rows, found 2 rows
      step      failed_syncs
      where     playbooks/post-deploy-smoke.yaml:[PLACE]
                [LINE] |       expect: {empty: true}
      rows      id | retry_count | last_error       | created_at             | payload
                ---+-------------+------------------+------------------------+----------------------------------
                51 |           4 | connection reset | [TIMESTAMP] | {"rack":1,"article":"ART-000001"}
                52 |           5 | connection reset | [TIMESTAMP] | {"rack":2,"article":"ART-000001"}
    "#);
}

#[test]
fn missing_barcodes() {
    insta::assert_snapshot!(found("missing-barcodes", "Every rack of an active session has a barcode"), @r#"
    FAILED         [DURATION]  Every rack of an active session has a barcode → session BRS-11, racks 16, without_barcode 3
      expected each row: racks > 0 and without_barcode == 0, found 1 of 1 row for which it does not hold
      step      racks_have_barcodes
      where     playbooks/post-deploy-smoke.yaml:[PLACE]
                [LINE] |       expect: {each_row: "racks > 0 and without_barcode == 0"}
      rows      session | racks | without_barcode
                --------+-------+----------------
                BRS-11  |    16 |               3
    "#);
}

#[test]
fn duplicate_barcodes() {
    insta::assert_snapshot!(found("duplicate-barcodes", "No barcode stands for two racks"), @"
    FAILED         [DURATION]  No barcode stands for two racks → 1 row
      expected no rows, found 1 row
      step      barcodes_unique
      where     playbooks/post-deploy-smoke.yaml:[PLACE]
                [LINE] |       expect: {empty: true}
      rows      barcode           | racks | rack_ids
                ------------------+-------+---------
                [DAY]-BRS-11-001 |     2 | [11,23]
    ");
}

#[test]
fn hidden_users() {
    insta::assert_snapshot!(found("hidden-users", "Every scanner and supervisor is in the Scanner Status widget"), @"
    FAILED         [DURATION]  Every scanner and supervisor is in the Scanner Status widget → 2 rows
      expected no rows, found 2 rows
      step      nobody_hidden
      where     playbooks/post-deploy-smoke.yaml:[PLACE]
                [LINE] |       expect: {empty: true}
      rows      username | role    | location_ids
                ---------+---------+-------------
                user6    | scanner | []
                user7    | scanner | []
    ");
}

#[test]
fn unseen_approvals() {
    insta::assert_snapshot!(found("unseen-approvals", "Every pending approval is visible to a supervisor"), @"
    FAILED         [DURATION]  Every pending approval is visible to a supervisor → 5 rows
      expected no rows, found 5 rows
      step      approvals_seen
      where     playbooks/post-deploy-smoke.yaml:[PLACE]
                [LINE] |       expect: {empty: true}
      rows      session | rack_number | ready_at
                --------+-------------+-----------------------
                BRS-11  |           2 | [TIMESTAMP]
                BRS-11  |           4 | [TIMESTAMP]
                BRS-11  |          10 | [TIMESTAMP]
                BRS-11  |          12 | [TIMESTAMP]
                BRS-11  |          15 | [TIMESTAMP]
    ");
}

#[test]
fn mixed_stats() {
    insta::assert_snapshot!(found("mixed-stats", "Personal stats show the current session's scans only"), @r#"
    FAILED         [DURATION]  Personal stats show the current session's scans only → 5 rows
      expected each row: shown <= made, found 1 of 5 rows for which it does not hold
      step      stats_of_this_session
      where     playbooks/post-deploy-smoke.yaml:[PLACE]
                [LINE] |       expect: {each_row: "shown <= made"}
      rows      scanner | session | shown | made
                --------+---------+-------+-----
                user12  | BRS-11  |     1 |    0
    "#);
}

#[test]
fn stale_stats_are_a_finding() {
    let site = StockAudit::after_deployment(&["stale-stats"]);
    let output = site.smoke(&Application::healthy(), &["--yes"]).run().exits(5);
    insta::assert_snapshot!(said_of(&output, "Personal stats are up to date"), @"
    WARNING        [DURATION]  Personal stats are up to date → made 15, shown 14
      expected each row: shown == made, found 1 of 1 row for which it does not hold
      about     If not, run REFRESH MATERIALIZED VIEW CONCURRENTLY user_personal_stats.
      rows      made | shown
                -----+------
                  15 |    14
    ");
    assert!(said_of(&output, "A supervisor can sign in").starts_with("WAITING"), "{output}");
}
