//! The playbooks that make, prove and prune backups, on FleetNest's database and the CRM's:
//! green where all is well, and stopped at the right step with the right words where it is not.

use std::fs;
use std::path::PathBuf;

use crate::environment::{Output, TestEnv};
use crate::postgres::Database;
use crate::snapshot::failure;
use crate::stock_audit::{run_of, stable};

/// FleetNest as its README sets it up.
fn fleetnest() -> (TestEnv, Database) {
    let mut env = TestEnv::new();
    let database = env.database();
    env.copy_from_project("playbooks");
    env.copy_from_project("examples");
    env.command(env.path("examples/fleetnest/generate"), [""; 0]).run().exits(0);
    env.runbook(["stamp", "staging"]).run().exits(0);
    (env, database)
}

fn run(env: &TestEnv, playbook: &str, more: &[&str]) -> Output {
    let file = format!("playbooks/{playbook}.yaml");
    env.runbook(["run", &file, "--yes"].into_iter().chain(more.iter().copied())).run()
}

fn backup(env: &TestEnv) -> Output {
    run(env, "full-backup", &["--param", "env=staging"])
}

/// What stands in the directory, a backup's time left out.
fn files(env: &TestEnv) -> String {
    let entries = fs::read_dir(env.path("backups")).unwrap();
    let mut names: Vec<String> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    stable(&env.normalise(&names.join("\n")))
}

fn dumps(env: &TestEnv) -> Vec<PathBuf> {
    let entries = fs::read_dir(env.path("backups")).unwrap().map(|entry| entry.unwrap().path());
    let mut dumps: Vec<PathBuf> = entries.filter(|path| path.extension().is_some_and(|ending| ending == "dump")).collect();
    dumps.sort();
    dumps
}

#[test]
fn a_full_backup_is_made_and_proven() {
    let (env, database) = fleetnest();
    let made = backup(&env).exits(0);
    insta::assert_snapshot!(stable(&made.stdout), @r"
    full-backup  6 steps, run [RUN], environment staging
      main: [DATABASE] (system [ID])

    done           [DURATION]  Every table that must be saved is there → 0 rows
    done           [DURATION]  Dump the whole database → [SIZE], 6 tables with 1058 rows, sha256 [SUM]
    done           [DURATION]  It holds records of every one of them → 0 rows
    done           [DURATION]  The dump can be restored, and holds every row → restored in [DURATION], 6 tables with 1058 rows, [AGE] old
      ┃ staging is backed up and proven
      ┃ [DIR]/backups/[RUN]_full.dump: 6 tables with 1058 rows
      ┃ Restored in [DURATION].
      ┃ Copy it, with the files beside it, to another place. To restore it: playbooks/restore.yaml
    done           [DURATION]  Backed up → told console

    done after [DURATION]: 5 done
      runbook show [RUN]  every step, who confirmed what
    ");
    insta::assert_snapshot!(files(&env), @r"
    [RUN]_full.dump
    [RUN]_full.dump.globals.sql
    [RUN]_full.dump.manifest.json
    [RUN]_full.dump.sha256
    [RUN]_full.dump.verified.json
    ");
    let left = format!("SELECT count(*) FROM pg_database WHERE shobj_description(oid, 'pg_database') LIKE '%{}%'", run_of(&made));
    assert_eq!(database.psql(&left), "0", "the scratch database is gone");
    insta::assert_snapshot!(stable(&run(&env, "verify-latest-backup", &[]).exits(0).stdout), @r"
    verify-latest-backup  2 steps, run [RUN]
      main: [DATABASE] (system [ID])

    done           [DURATION]  The newest backup can be restored → restored in [DURATION], 6 tables with 1058 rows, [AGE] old

    done after [DURATION]: 1 done
      runbook show [RUN]  every step, who confirmed what
    ");
}

#[test]
fn the_crm_is_backed_up_by_the_same_playbook() {
    let mut env = TestEnv::new();
    let database = env.database();
    env.copy_from_project("playbooks");
    env.copy_from_project("examples");
    database.psql(&env.read("examples/deploy-with-counts/schema.sql"));
    env.runbook(["stamp", "staging"]).run().exits(0);
    let tables = "tables=clients,tasks,chat_messages";
    run(&env, "full-backup", &["--param", "env=staging", "--param", tables]).exits(0);
    database.psql("TRUNCATE chat_messages");
    let empty = run(&env, "full-backup", &["--param", "env=staging", "--param", tables]).exits(3);
    assert!(failure(&empty).contains("chat_messages"), "{}", empty.stdout);
    database.psql("DROP TABLE chat_messages");
    let gone = run(&env, "full-backup", &["--param", "env=staging", "--param", tables]).exits(3);
    insta::assert_snapshot!(stable(&failure(&gone)), @r"
    FAILED         [DURATION]  Every table that must be saved is there → chat_messages
      expected no rows, found 1 row
      step      tables_there
      where     playbooks/full-backup.yaml:[PLACE]
                [LINE] |       expect: {empty: true}
      rows      missing
                -------------
                chat_messages
      state     this step changed nothing, or what it changed was rolled back
    ");
}

#[test]
fn the_critical_tables_are_dumped_with_what_they_need() {
    let (env, database) = fleetnest();
    insta::assert_snapshot!(stable(&run(&env, "critical-tables-backup", &["--param", "env=staging"]).exits(0).stdout), @r"
    critical-tables-backup  6 steps, run [RUN], environment staging
      main: [DATABASE] (system [ID])

    done           [DURATION]  Records of the critical tables → 1058 rows in 6 tables
    done           [DURATION]  Dump the critical tables → [SIZE], 6 tables with 1058 rows, sha256 [SUM]
    done           [DURATION]  Dump the definitions of everything → [SIZE], sha256 [SUM]
    done           [DURATION]  The rows can be read to their end → readable to its end, 6 tables with 1058 rows, [AGE] old
    done           [DURATION]  The definitions can be read to their end → readable to its end, [AGE] old
    done           [DURATION]  The dump holds what was counted → steps.rows.json.tables | sum(attribute='rows') * 10 >= steps.before.row_count * 9

    done after [DURATION]: 6 done
      runbook show [RUN]  every step, who confirmed what
    ");
    insta::assert_snapshot!(files(&env), @r"
    [RUN]_critical.dump
    [RUN]_critical.dump.manifest.json
    [RUN]_critical.dump.sha256
    [RUN]_critical.dump.verified.json
    [RUN]_definitions.dump
    [RUN]_definitions.dump.manifest.json
    [RUN]_definitions.dump.sha256
    [RUN]_definitions.dump.verified.json
    ");
    database.psql("ALTER TABLE loads RENAME TO freight");
    let renamed = run(&env, "critical-tables-backup", &["--param", "env=staging"]).exits(3);
    assert!(renamed.stdout.contains("there is no table `loads`"), "{}", renamed.stdout);
}

#[test]
fn a_latest_backup_that_is_missing_old_or_damaged_is_told() {
    let (env, _) = fleetnest();
    fs::create_dir(env.path("backups")).unwrap();
    let none = run(&env, "verify-latest-backup", &[]).exits(3);
    assert!(none.stdout.contains("there is no backup in"), "{}", none.stdout);
    backup(&env).exits(0);
    let old = run(&env, "verify-latest-backup", &["--param", "max_age=1ms"]).exits(3);
    assert!(old.stdout.contains("[AGE] old, more than [DURATION]"), "{}", old.stdout);
    let dump = dumps(&env).remove(0);
    let length = fs::metadata(&dump).unwrap().len();
    fs::OpenOptions::new().write(true).open(&dump).unwrap().set_len(length - 100).unwrap();
    let cut = run(&env, "verify-latest-backup", &[]).exits(3);
    assert!(cut.stdout.contains("its checksum differs from the manifest's"), "{}", cut.stdout);
}

#[test]
fn old_backups_go_when_the_newest_is_proven() {
    let (env, _) = fleetnest();
    for _ in 0..3 {
        backup(&env).exits(0);
    }
    age(&env, &[0, 40, 50]);
    let kept = run(&env, "retention", &[]).exits(0);
    let sizes = regex::Regex::new(r"\d+(\.\d+)? KiB; ").unwrap();
    insta::assert_snapshot!(sizes.replace_all(&stable(&kept.stdout), "[SIZE]; "), @r"
    retention  4 steps, run [RUN]
      main: [DATABASE] (system [ID])

    done           [DURATION]  The newest backup can be restored → restored in [DURATION], 6 tables with 1058 rows, [AGE] old
    done           [DURATION]  What would go → 1 backup would go, [SIZE]; 2 stay
    done           [DURATION]  Remove them? → confirmed by [USER] (--yes)
      prune │ removed [DIR]/backups/[RUN]_full.dump
    done           [DURATION]  Remove old backups → 1 backup removed, [SIZE]; 2 stay

    done after [DURATION]: 4 done
      runbook show [RUN]  every step, who confirmed what
    ");
    assert_eq!(dumps(&env).len(), 2);
}

/// Makes the dumps, the newest first, so many days old.
fn age(env: &TestEnv, days: &[i64]) {
    for (dump, days) in dumps(env).iter().rev().zip(days) {
        let manifest = PathBuf::from(format!("{}.manifest.json", dump.display()));
        let mut content: serde_json::Value = serde_json::from_str(&fs::read_to_string(&manifest).unwrap()).unwrap();
        content["created_at"] = (jiff::Timestamp::now() - jiff::SignedDuration::from_hours(24 * days)).to_string().into();
        fs::write(manifest, content.to_string()).unwrap();
    }
}
