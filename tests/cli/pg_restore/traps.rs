//! Backups that are damaged, cut off or made to do harm: refused before anything is changed.

use super::{Fleet, database, playbook, says};
use crate::environment::Output;

/// Restoring a changed plain dump of the example into an empty database.
fn refused(change: impl Fn(String) -> String) -> Output {
    let fleet = Fleet::new(&[]);
    fleet.env.command("pg_dump", ["--dbname", fleet.database.url(), "--file", "good.sql"]).run().exits(0);
    fleet.env.write("a.sql", change(fleet.env.read("good.sql")));
    let empty = database();
    let output = fleet.restore(&empty, "file: a.sql, unverified: true").exits(3);
    assert_eq!(empty.psql("SELECT count(*) FROM pg_class WHERE relnamespace = 'public'::regnamespace"), "0");
    output
}

#[test]
fn a_plain_dump_that_was_cut_off_is_not_restored() {
    let within_rows = refused(|text| text[..text.find("L-000200").unwrap()].to_owned());
    says(&within_rows, &["it ends in the middle of the rows of public.loads", "a.sql:"]);
    let behind_rows = refused(|text| text[..text.rfind("ALTER TABLE ONLY").unwrap()].to_owned());
    says(&behind_rows, &["does not end as pg_dump ends a dump", "psql would restore what there is and report success"]);
}

#[test]
fn commands_of_psql_reach_no_shell() {
    let shell = refused(|text| text.replacen("CREATE TYPE", "\\! touch /tmp/reached\nCREATE TYPE", 1));
    says(&shell, &["`\\!` is a command of psql, not SQL", "a.sql:", "look who put it there"]);
    let program = refused(|text| text.replacen("CREATE TYPE", "COPY public.companies FROM PROGRAM 'touch /tmp/reached';\nCREATE TYPE", 1));
    says(&program, &["COPY … PROGRAM runs a shell command on the database server"]);
    assert!(!std::path::Path::new("/tmp/reached").exists());
}

#[test]
fn damage_is_found_by_the_manifest_and_without_one_by_reading() {
    let fleet = Fleet::new(&[]);
    fleet.backup("a.dump", ", compression: 0");
    let good = std::fs::read(fleet.env.path("a.dump")).unwrap();
    let empty = database();
    let mut flipped = good.clone();
    let place = flipped.windows(8).position(|bytes| bytes == b"L-000200").unwrap();
    flipped[place] ^= 1;
    fleet.env.write("a.dump", &flipped);
    let changed = fleet.restore(&empty, "file: a.dump").exits(3);
    says(&changed, &["is not as it was written", "by its manifest", "nothing was restored"]);
    fleet.env.write("a.dump", &good[..good.len() * 2 / 3]);
    says(&fleet.restore(&empty, "file: a.dump").exits(3), &["is not as it was written", "and by its manifest"]);

    std::fs::remove_file(fleet.env.path("a.dump.manifest.json")).unwrap();
    let unknown = fleet.restore(&empty, "file: a.dump").exits(3);
    says(&unknown, &["it has no manifest", "`unverified: true` restores it all the same"]);
    let cut = fleet.restore(&empty, "file: a.dump, unverified: true").exits(3);
    says(&cut, &["pg_restore failed", "it is damaged or not whole; nothing was changed"]);
    assert_eq!(empty.psql("SELECT count(*) FROM pg_class WHERE relnamespace = 'public'::regnamespace"), "0");
    fleet.env.write("a.dump", &good);
    fleet.restore(&empty, "file: a.dump, unverified: true").exits(0);
    assert_eq!(super::state(&empty), fleet.state());
}

#[test]
fn rows_fewer_than_the_manifest_counted_are_rolled_back() {
    let fleet = Fleet::new(&[]);
    fleet.backup("a.sql", ", format: plain");
    // Somebody has taken out a row that nothing refers to, and made the checksum fit.
    let text = fleet.env.read("a.sql");
    let (before, rows) = text.split_once("COPY public.driver_period_calculations").unwrap();
    let first = rows.lines().nth(1).unwrap();
    let shorter = format!("{before}COPY public.driver_period_calculations{}", rows.replacen(&format!("{first}\n"), "", 1));
    fleet.env.write("a.sql", &shorter);
    let sum = fleet.env.command("sha256sum", ["a.sql"]).run().exits(0).raw_stdout[..64].to_owned();
    let mut manifest: serde_json::Value = serde_json::from_str(&fleet.env.read("a.sql.manifest.json")).unwrap();
    manifest["sha256"] = sum.into();
    manifest["size"] = shorter.len().into();
    fleet.env.write("a.sql.manifest.json", manifest.to_string());
    let empty = database();
    let refused = fleet.restore(&empty, "file: a.sql").exits(3);
    says(
        &refused,
        &["the restored rows are not those of the backup; everything was rolled back", "267 rows, and 268 rows when it was dumped"],
    );
    assert_eq!(empty.psql("SELECT count(*) FROM pg_class WHERE relnamespace = 'public'::regnamespace"), "0");
}

#[test]
fn a_missing_role_is_named_with_what_to_do() {
    let fleet = Fleet::new(&[]);
    let role = format!("keeper_of_{}", std::process::id());
    fleet.database.psql(&format!("CREATE ROLE {role}; ALTER TABLE loads OWNER TO {role}; GRANT SELECT ON companies TO {role}"));
    fleet.backup("a.dump", "");
    fleet.database.psql(&format!("ALTER TABLE loads OWNER TO postgres; DROP OWNED BY {role}; DROP ROLE {role}"));
    let empty = database();
    let refused = fleet.restore(&empty, "file: a.dump").exits(3);
    says(&refused, &[&format!("the backup needs the role `{role}`"), "a.dump.globals.sql", "`owner: false` and `privileges: false`"]);
    fleet.restore(&empty, "file: a.dump, owner: false, privileges: false").exits(0);
    assert_eq!(super::state(&empty), fleet.state());
    assert_eq!(empty.psql("SELECT pg_get_userbyid(relowner) FROM pg_class WHERE relname = 'loads'"), "postgres");
}

#[test]
fn somebodys_lock_is_waited_for_no_longer_than_said() {
    let fleet = Fleet::new(&[]);
    fleet.backup("a.dump", "");
    let before = fleet.state();
    let holder = fleet
        .env
        .command(
            "psql",
            [
                "-X",
                "-q",
                "-d",
                fleet.database.url(),
                "-c",
                "BEGIN",
                "-c",
                "LOCK TABLE loads IN ROW EXCLUSIVE MODE",
                "-c",
                "SELECT 'held'",
                "-c",
                "SELECT pg_sleep(60)",
            ],
        )
        .spawn();
    holder.wait_for("held");
    fleet.env.write("restore.yaml", playbook("pg_restore: {file: a.dump, replace: true, lock_timeout: 200ms}"));
    let refused = fleet.env.runbook(["run", "restore.yaml"]).run().exits(3);
    says(&refused, &["lock timeout", "somebody uses what shall be replaced", "pid"]);
    assert_eq!(fleet.state(), before);
}
