//! What a dump leaves behind, shown on a real server.

use std::path::Path;
use std::process::{Child, Command as Process, Stdio};
use std::sync::Arc;

use serde_json::json;

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use super::super::backup::client::succeeded;
use super::super::backup::manifest::Manifest;
use super::super::testing::{World, action, problems};
use super::*;
use crate::outcome::ErrorKind;
use crate::output::Captured;
use crate::process::{Ended, Exit};
use crate::target::testing::{Server, programs, server, spec, start, targets};

/// A database with something in it, and a step that may use it.
struct Bench {
    world: World,
    database: String,
}

impl Bench {
    fn new() -> Self {
        let database = server().database();
        server().psql(
            &database,
            "CREATE TABLE racks AS SELECT n, repeat('x', 100) AS pad FROM generate_series(1, 1000) n; CREATE TABLE users (id int)",
        );
        let url = server().url("postgres", &database);
        Self { world: world(&url), database }
    }

    async fn dump(&self, yaml: &str) -> Result<StepResult, StepError> {
        action::<PgDump>(yaml).run(&self.world.context).await
    }

    fn path(&self, name: &str) -> PathBuf {
        self.world.context.directory.join(name)
    }

    fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = std::fs::read_dir(&self.world.context.directory)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
            .filter(|name| name != "output")
            .collect();
        names.sort();
        names
    }
}

fn world(url: &str) -> World {
    let mut world = World::new(&json!({"name": "a"}), &[]);
    world.context.targets = targets(spec(url));
    world.context.connections = Arc::new([("main".to_owned(), "main".to_owned())].into());
    world.context.default_connection = Some("main".into());
    let path = format!("{}:/usr/bin:/bin", programs().display());
    world.set_path(&path);
    world
}

fn restored(file: &Path) -> String {
    let sql = Process::new(programs().join("pg_restore")).args(["--file=-"]).arg(file).output().unwrap();
    assert!(sql.status.success());
    String::from_utf8(sql.stdout).unwrap()
}

#[tokio::test]
async fn a_dump_in_each_format_can_be_restored() {
    let bench = Bench::new();
    let custom = bench.dump("{file: 'new/{{ params.name }}.dump', verify: archive}").await.unwrap();
    let file = bench.path("new/a.dump");
    assert_eq!(custom.file.as_deref(), file.to_str());
    assert!(restored(&file).contains("CREATE TABLE public.racks"));
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    let facts = custom.json.unwrap();
    assert_eq!(facts["size"], json!(std::fs::metadata(&file).unwrap().len()));
    let sum = Process::new("sha256sum").arg(&file).output().unwrap();
    assert!(String::from_utf8(sum.stdout).unwrap().starts_with(facts["sha256"].as_str().unwrap()));
    assert!(bench.path("new/a.dump.manifest.json").exists());

    bench.dump("{file: tree, format: directory, jobs: 2, verify: archive, manifest: false}").await.unwrap();
    assert!(restored(&bench.path("tree")).contains("CREATE TABLE public.racks"));
    assert!(bench.path("tree").read_dir().unwrap().all(|file| file.unwrap().metadata().unwrap().permissions().mode() & 0o777 == 0o600));

    bench.dump("{file: users.sql, format: plain, tables: [users], manifest: false}").await.unwrap();
    let text = std::fs::read_to_string(bench.path("users.sql")).unwrap();
    assert!(text.contains("CREATE TABLE public.users") && !text.contains("racks"));
    assert_eq!(bench.names(), ["new", "tree", "users.sql"]);
}

#[tokio::test]
async fn an_existing_file_is_never_touched() {
    let bench = Bench::new();
    std::fs::write(bench.path("a.dump"), "yesterday's").unwrap();
    let error = bench.dump("{file: a.dump}").await.unwrap_err();
    let message = error.message.replace(bench.world.context.directory.to_str().unwrap(), "[DIR]");
    insta::assert_snapshot!(message, @"`[DIR]/a.dump` exists already; nothing was overwritten");
    assert_eq!(std::fs::read_to_string(bench.path("a.dump")).unwrap(), "yesterday's");
    assert_eq!(bench.names(), ["a.dump"]);
}

#[tokio::test]
async fn what_cannot_be_dumped_leaves_nothing_and_says_why() {
    let bench = Bench::new();
    let missing = bench.dump("{file: a.dump, tables: [racks, no_such_table]}").await.unwrap_err();
    insta::assert_snapshot!(missing.message, @"pg_dump failed: no matching tables were found for pattern \"no_such_table\"");
    let nowhere = world("postgres:///x?host=/nowhere");
    let error = action::<PgDump>("{file: a.dump}").run(&nowhere.context).await.unwrap_err();
    assert_eq!((error.kind, error.transient), (ErrorKind::Connection, true));
    let sqlite = world("sqlite:some.db");
    let error = action::<PgDump>("{file: a.dump}").run(&sqlite.context).await.unwrap_err();
    insta::assert_snapshot!(error.message, @"`main` is an SQLite database, and this step is for PostgreSQL");
    assert_eq!(bench.names(), [""; 0]);
}

#[tokio::test]
async fn a_stopped_dump_leaves_nothing() {
    let bench = Bench::new();
    let mut holder = hold_lock(&bench.database);
    until(
        &bench.database,
        "SELECT EXISTS (SELECT FROM pg_locks WHERE relation = 'racks'::regclass AND mode = 'AccessExclusiveLock' AND granted)",
    )
    .await;
    let stopped = async {
        until(
            &bench.database,
            "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock')",
        )
        .await;
        assert_eq!(bench.names(), ["a.dump.partial"]);
        bench.world.context.cancel.cancel();
    };
    let (ended, ()) = tokio::join!(bench.dump("{file: a.dump}"), stopped);
    let error = ended.unwrap_err();
    assert_eq!((error.kind, error.aftermath), (ErrorKind::Cancelled, crate::outcome::Aftermath::Unchanged));
    assert_eq!(bench.names(), [""; 0]);
    holder.kill().unwrap();
    holder.wait().unwrap();
}

fn hold_lock(database: &str) -> Child {
    Process::new(programs().join("psql"))
        .args(["-X", "-q", "-U", "postgres", "-d", database, "-h"])
        .arg(&server().socket)
        .args(["-c", "BEGIN", "-c", "LOCK TABLE racks", "-c", "SELECT pg_sleep(1000)"])
        .stdout(Stdio::null())
        .spawn()
        .unwrap()
}

/// Waits for what the database says to become true.
async fn until(database: &str, condition: &str) {
    while server().psql(database, condition) != "t" {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn after_an_interruption_a_complete_dump_of_the_same_step_counts() {
    let mut bench = Bench::new();
    let first = bench.dump("{file: a.dump}").await.unwrap();
    bench.world.context.uncertain = true;
    assert_eq!(bench.dump("{file: a.dump}").await.unwrap(), first);
    std::fs::write(bench.path("a.dump"), "damaged").unwrap();
    assert!(bench.dump("{file: a.dump}").await.unwrap_err().message.ends_with("exists already; nothing was overwritten"));

    std::fs::write(bench.path("b.dump.partial"), "half").unwrap();
    bench.dump("{file: b.dump, manifest: false}").await.unwrap();
    assert_eq!(bench.names(), ["a.dump", "a.dump.globals.sql", "a.dump.manifest.json", "a.dump.sha256", "b.dump"]);
}

#[tokio::test]
async fn the_password_reaches_pg_dump_and_no_command_line() {
    let access = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(access.path(), "local all postgres trust\nlocal all all scram-sha-256\n").unwrap();
    access.as_file().set_permissions(std::fs::Permissions::from_mode(0o644)).unwrap();
    let server: Server = start(&[&format!("hba_file={}", access.path().display())]);
    server.psql("postgres", "CREATE ROLE app LOGIN SUPERUSER PASSWORD 'pa:ss\\word'");
    let world = world(&server.url("app", "postgres").replace("user=app", "user=app&password=pa%3Ass%5Cword"));
    let dump: PgDump = action("{file: a.dump}");
    assert!(dump.run(&world.context).await.is_ok());

    let wrong = super::tests::world(&server.url("app", "postgres").replace("user=app", "user=app&password=wrong"));
    let error = dump.run(&wrong.context).await.unwrap_err();
    assert_eq!((error.kind, error.transient), (ErrorKind::Connection, false));
}

#[test]
fn mistakes_are_found_before_anything_runs() {
    assert_eq!(problems(&action::<PgDump>("{file: a, jobs: 4}")), ["`jobs` is a number from 1 to 64, and only for `format: directory`"]);
    assert_eq!(problems(&action::<PgDump>("{file: a, format: directory, jobs: 4}")), [""; 0]);
    assert_eq!(
        problems(&action::<PgDump>("{file: a, format: tar, compression: 3}")),
        ["`compression` is for `format: custom` and `directory`"]
    );
    for known in ["0", "9", "zstd", "zstd:19", "lz4:1", "none", "gzip:6"] {
        action::<PgDump>(&format!("{{file: a, compression: '{known}'}}"));
    }
    insta::assert_snapshot!(
        super::super::testing::try_action::<PgDump>("{file: a, compression: brotli}").unwrap_err(),
        @"`brotli` is not 0 to 9, none, gzip, lz4 or zstd, or such a method with its level, as zstd:3"
    );
}

#[test]
fn the_plan_shows_what_is_dumped_where() {
    let world = World::new(&json!({"name": "a"}), &[]);
    let dump: PgDump = action("{connection: main, file: '{{ params.name }}.dump', tables: [users, racks], verify: archive}");
    let description = dump.describe(&world.context.values);
    insta::assert_snapshot!([vec![description.summary], description.details].concat().join("\n"), @r"
    dump main to a.dump
    format custom, compression 1
    tables users, racks
    read to its end afterwards
    beside it rows of each table
    ");
}

fn said(stderr: &str) -> StepError {
    let captured = Captured { stderr: stderr.into(), ..Captured::default() };
    succeeded("pg_dump", &Ended { exit: Exit::Code(1), captured, stopped: false, left_behind: false }).unwrap_err()
}

#[test]
fn an_unreachable_server_is_worth_another_attempt_a_wrong_password_is_not() {
    let refused = said("pg_dump: error: connection to server at \"db\", port 5432 failed: Connection refused");
    assert_eq!((refused.kind, refused.transient), (ErrorKind::Connection, true));
    let password = said("pg_dump: error: connection to server at \"db\" failed: FATAL:  password authentication failed for user \"x\"");
    assert_eq!((password.kind, password.transient), (ErrorKind::Connection, false));
    let other = said("pg_dump: error: query failed: ERROR:  permission denied for table users\npg_dump: detail: Query was: LOCK TABLE");
    assert_eq!(other.message, "pg_dump failed: query failed: ERROR:  permission denied for table users");
    assert_eq!(other.facts, [("it also said".into(), "pg_dump: detail: Query was: LOCK TABLE".into())]);
}

/// Everything there is to be told of a database in one manifest.
#[tokio::test]
async fn the_manifest_tells_what_is_in_the_dump() {
    let bench = Bench::new();
    server().psql(
        &bench.database,
        "CREATE SCHEMA \"Odd schema\"; CREATE TABLE \"Odd schema\".\"it's\" (id serial PRIMARY KEY, t timestamptz DEFAULT '2026-01-01 12:00+02'); \
         INSERT INTO \"Odd schema\".\"it's\" DEFAULT VALUES; CREATE VIEW few AS SELECT * FROM racks LIMIT 1; \
         CREATE TABLE parts (n int) PARTITION BY LIST (n); CREATE TABLE one PARTITION OF parts FOR VALUES IN (1); INSERT INTO parts VALUES (1)",
    );
    let expected = [("\"Odd schema\".\"it's\"", 1), ("public.one", 1), ("public.racks", 1000), ("public.users", 0)];
    for format in ["custom", "directory", "tar", "plain"] {
        bench.dump(&format!("{{file: {format}, format: {format}, with: [count, fingerprint]}}")).await.unwrap();
        let manifest = Manifest::read(&bench.path(format)).unwrap().unwrap();
        let tables = manifest.tables.clone().unwrap();
        assert_eq!(tables.iter().map(|table| (table.table.as_str(), table.rows)).collect::<Vec<_>>(), expected, "{format}");
        assert!(tables.iter().all(|table| table.fingerprint.is_some()));
        let sequences: Vec<&str> = manifest.sequences.keys().map(String::as_str).collect();
        assert_eq!(sequences, ["\"Odd schema\".\"it's_id_seq\""], "{format}");
        assert_eq!((manifest.objects["TABLE"], manifest.objects["VIEW"], manifest.objects["CONSTRAINT"]), (5, 1, 1), "{format}");
        assert!(manifest.whole && manifest.roles.contains("postgres") && manifest.extensions.contains_key("plpgsql"));
        assert_eq!(manifest.source.locale["ENCODING"], "UTF8");
        assert_eq!(manifest.source.snapshot.as_deref().map(str::is_empty), Some(false));
        // Another tool agrees.
        let checked = Process::new("sha256sum")
            .args(["-c", "--strict", &format!("{format}.sha256")])
            .current_dir(&bench.world.context.directory)
            .output()
            .unwrap();
        assert!(checked.status.success(), "{format}: {}", String::from_utf8_lossy(&checked.stdout));
    }
    let globals = std::fs::read_to_string(bench.path("plain.globals.sql")).unwrap();
    assert!(globals.contains("CREATE ROLE postgres;") && !globals.contains("PASSWORD 'SCRAM"));
}

#[tokio::test]
async fn what_a_part_leaves_out_is_told() {
    let bench = Bench::new();
    server().psql(
        &bench.database,
        "ALTER TABLE users ADD PRIMARY KEY (id); CREATE TABLE scans (user_id int REFERENCES users); SELECT lo_create(0)",
    );
    let part = bench.dump("{file: part, tables: [scans]}").await.unwrap();
    insta::assert_snapshot!(part.findings.join("\n"), @r"
    1 large object of the database is not in this dump; `large_objects: true` takes it along
    public.scans refers to public.users, which is not in this dump: restored alone, its foreign key scans_user_id_fkey is left out
    ");
    let with = bench.dump("{file: with, tables: [scans, users], large_objects: true}").await.unwrap();
    assert_eq!(with.findings, [""; 0]);
    assert_eq!(Manifest::read(&bench.path("with")).unwrap().unwrap().large_objects, Some(1));
    let whole = bench.dump("{file: whole}").await.unwrap();
    assert_eq!(whole.findings, [""; 0]);
}

#[tokio::test]
async fn a_role_that_sees_only_some_rows_makes_no_backup() {
    let bench = Bench::new();
    server().psql(
        &bench.database,
        "ALTER TABLE racks ENABLE ROW LEVEL SECURITY; CREATE POLICY own_racks ON racks USING (n < 10); \
         DO $$ BEGIN CREATE ROLE seer LOGIN; EXCEPTION WHEN duplicate_object THEN NULL; END $$; \
         GRANT SELECT ON ALL TABLES IN SCHEMA public TO seer",
    );
    let world = world(&server().url("seer", &bench.database));
    let error = action::<PgDump>("{file: a.dump}").run(&world.context).await.unwrap_err();
    insta::assert_snapshot!(format!("{}\n{}", error.message, error.hints.join("\n")), @r#"
    pg_dump failed: query failed: ERROR:  query would be affected by row-level security policy for table "racks"
    dump with the tables' owner, a superuser, or a role with BYPASSRLS: a dump of the rows one role sees is no backup
    "#);
    assert!(!world.context.directory.join("a.dump").exists());
}
