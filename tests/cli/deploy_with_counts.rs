//! playbooks/deploy-with-counts.yaml with deployments that keep, lose and break things.

use crate::environment::{Output, TestEnv};
use crate::postgres::Database;
use crate::snapshot::failure;
use crate::stock_audit::{said_of, stable};

/// The example as its README sets it up, with another deployment.
fn crm(deployment: Option<&str>) -> (TestEnv, Database) {
    let mut env = TestEnv::new();
    let database = env.database();
    env.copy_from_project("playbooks");
    env.copy_from_project("examples");
    database.psql(&env.read("examples/deploy-with-counts/schema.sql"));
    env.runbook(["stamp", "staging"]).run().exits(0);
    if let Some(script) = deployment {
        env.write("examples/deploy-with-counts/deploy", format!("#!/bin/sh\nset -eu\n{script}\n"));
    }
    (env, database)
}

fn deploy(env: &TestEnv) -> Output {
    let parameters = ["--param", "env=staging", "--param", "deploy=examples/deploy-with-counts/deploy"];
    env.runbook(["run", "playbooks/deploy-with-counts.yaml"].into_iter().chain(parameters)).run()
}

#[test]
fn a_deployment_that_adds_is_fine() {
    let (env, database) = crm(None);
    insta::assert_snapshot!(stable(&deploy(&env).exits(0).stdout), @"
    deploy-with-counts  8 steps, run [RUN], environment staging
      main: [DATABASE] (system [ID])

    done           [DURATION]  Back up the database → [SIZE], 3 tables with 1060 rows, sha256 [SUM]
    done           [DURATION]  Only rows that exist now count → [TIMESTAMP]
    done           [DURATION]  Record counts before the deployment → 1060 rows in 3 tables
    done           [DURATION]  Deploy → exit code 0
    done           [DURATION]  No record is lost → 1060 rows in 3 tables, as in counts_before
      ┃ Deployed, and no record is lost
      ┃ clients: 40 before, 40 of them now
      ┃ tasks: 120 before, 120 of them now
      ┃ chat_messages: 900 before, 900 of them now
    done           [DURATION]  Deployed → told console

    done after [DURATION]: 6 done
      runbook show [RUN]  every step, who confirmed what
    ");
    assert_eq!(database.psql("SELECT count(*) FROM chat_messages"), "901", "people went on writing");
}

#[test]
fn a_deployment_that_loses_records_is_stopped_although_as_many_are_new() {
    let (env, _) = crm(Some(
        "psql -X -q \"$DATABASE_URL\" -c \"DELETE FROM clients WHERE id = 7\" -c \"INSERT INTO clients (email) VALUES ('new@example.com')\"",
    ));
    insta::assert_snapshot!(stable(&deploy(&env).exits(3).stdout), @"
    deploy-with-counts  8 steps, run [RUN], environment staging
      main: [DATABASE] (system [ID])

    done           [DURATION]  Back up the database → [SIZE], 3 tables with 1060 rows, sha256 [SUM]
    done           [DURATION]  Only rows that exist now count → [TIMESTAMP]
    done           [DURATION]  Record counts before the deployment → 1060 rows in 3 tables
    done           [DURATION]  Deploy → exit code 0
    FAILED         [DURATION]  No record is lost → 1033 rows in 3 tables
      3 of 3 tables are not as in `counts_before`: clients lost 1 row, tasks lost 3 rows, chat_messages lost 23 rows
      step      counts_after
      where     playbooks/deploy-with-counts.yaml:[PLACE]
                [LINE] |       expect: &none_lost {unchanged_from: counts_before, tolerance: {default: may_grow}}
      rows      table         | before | after | difference | allowed
                --------------+--------+-------+------------+---------
                clients       |     40 |    39 |         -1 | may grow
                tasks         |    120 |   117 |         -3 | may grow
                chat_messages |    900 |   877 |        -23 | may grow
      state     this step changed nothing, or what it changed was rolled back
      next      runbook show [RUN] counts_after  its attempts and output
                runbook resume [RUN]  tries again from here; what is done stays done
    skipped               No record is lost by the failed deployment → `when: steps.deploy.status == 'failed'` is false
      ┃ The deployment did not go well
      ┃ Records are missing. Stop the application before anything else is written.
      ┃ Roll the deployment back (railway rollback, vercel rollback).
      ┃ The state before it is in [DIR]/backups/crm-[RUN].dump.
    done           [DURATION]  Somebody has to decide → told console

    failed after [DURATION]: 5 done, 1 failed, 1 skipped
      runbook resume [RUN]  tries again; what is done stays done
    ");
}

#[test]
fn a_deployment_that_fails_is_looked_at_as_well() {
    let (env, _) = crm(Some("exit 9"));
    let output = deploy(&env).exits(3);
    insta::assert_snapshot!(said_of(&output, "No record is lost by the failed deployment"), @"
    done           [DURATION]  No record is lost by the failed deployment → 1060 rows in 3 tables, as in counts_before
      ┃ The deployment did not go well
      ┃ No record is missing.
      ┃ Roll the deployment back (railway rollback, vercel rollback).
      ┃ The state before it is in [DIR]/backups/crm-[RUN].dump.
    ");
    assert!(output.stdout.contains("No record is missing."), "{output}");
    let (env, _) = crm(Some("psql -X -q \"$DATABASE_URL\" -c 'TRUNCATE chat_messages'; exit 9"));
    let output = deploy(&env).exits(3);
    insta::assert_snapshot!(stable(&output.stdout), @r#"
    deploy-with-counts  8 steps, run [RUN], environment staging
      main: [DATABASE] (system [ID])

    done           [DURATION]  Back up the database → [SIZE], 3 tables with 1060 rows, sha256 [SUM]
    done           [DURATION]  Only rows that exist now count → [TIMESTAMP]
    done           [DURATION]  Record counts before the deployment → 1060 rows in 3 tables
    FAILED         [DURATION]  Deploy → exit code 9
      exit code 9, expected 0
      step      deploy
      where     playbooks/deploy-with-counts.yaml:[PLACE]
                [LINE] |     shell: {argv: ["{{ params.deploy }}", "{{ params.env }}"]}
      state     part of this step's effect may be in place
      next      runbook show [RUN] deploy  its attempts and output
                runbook resume [RUN]  tries again from here; what is done stays done
    FAILED         [DURATION]  No record is lost by the failed deployment → 160 rows in 3 tables
      1 of 3 tables is not as in `counts_before`: chat_messages lost 900 rows
      step      counts_now
      where     playbooks/deploy-with-counts.yaml:[PLACE]
                [LINE] |       expect: &none_lost {unchanged_from: counts_before, tolerance: {default: may_grow}}
      rows      table         | before | after | difference | allowed
                --------------+--------+-------+------------+---------
                chat_messages |    900 |     0 |       -900 | may grow
      state     this step changed nothing, or what it changed was rolled back
      next      runbook show [RUN] counts_now  its attempts and output
                runbook resume [RUN]  tries again from here; what is done stays done
      ┃ The deployment did not go well
      ┃ Records are missing. Stop the application before anything else is written.
      ┃ Roll the deployment back (railway rollback, vercel rollback).
      ┃ The state before it is in [DIR]/backups/crm-[RUN].dump.
    done           [DURATION]  Somebody has to decide → told console

    failed after [DURATION]: 4 done, 2 failed, 1 not run
      runbook resume [RUN]  tries again; what is done stays done
    "#);
}

#[test]
fn a_comparison_that_cannot_be_made_is_not_called_a_loss() {
    let (env, _) = crm(Some("psql -X -q \"$DATABASE_URL\" -c 'ALTER TABLE tasks RENAME TO todos'"));
    let output = deploy(&env).exits(3);
    insta::assert_snapshot!(failure(&output), @"
    FAILED         [DURATION]  No record is lost
      there is no table `tasks`
      step      counts_after
      where     playbooks/deploy-with-counts.yaml:[PLACE]
                [LINE] |       tables: &tables [clients, tasks, chat_messages]
      state     this step changed nothing, or what it changed was rolled back
      hint      the tables are chat_messages, clients, todos
    ");
    assert!(output.stdout.contains("Whether records are missing could not be found out"), "{output}");
}
