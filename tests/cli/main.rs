//! runbook as its users meet it: one module per command or subject, all in one
//! binary, so that they link once and share one PostgreSQL server.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    missing_docs,
    reason = "tests fail by panicking and speak to people who read their output"
)]
#![allow(dead_code, reason = "the helpers offer a whole interface; not every test has come yet")]

mod backup_playbooks;
mod backups;
mod barcode_migration;
mod batch;
mod batch_neighbours;
mod batch_restore;
mod children;
mod commit;
mod crash;
mod deploy_with_counts;
mod doctor;
mod durability;
mod editor;
mod env;
mod environment;
mod every_action;
mod import;
mod interrupts;
mod locks;
mod order_import;
mod pg_restore;
mod postgres;
mod pre_deploy;
mod prompts;
mod quickstart;
mod readme;
mod report;
mod resume;
mod run;
mod scheduler;
mod secrets;
mod show;
mod smoke;
mod snapshot;
mod stock_audit;
mod structure;
mod terminal;
mod unreached;
mod validate;

use environment::TestEnv;

#[test]
fn version_is_printed() {
    let output = TestEnv::new().runbook(["--version"]).run().exits(0);
    assert_eq!(output.stdout, format!("runbook {}\n", env!("CARGO_PKG_VERSION")));
    assert_eq!(output.stderr, "");
}

#[test]
fn an_unknown_subcommand_is_a_usage_error() {
    let output = TestEnv::new().runbook(["rnu"]).run().exits(64);
    assert_eq!(output.stdout, "");
    assert!(output.stderr.contains("rnu"), "{output}");
}
