//! What a dump leaves behind, shown on a real server.

use std::path::Path;
use std::process::{Child, Command as Process, Stdio};
use std::sync::Arc;

use serde_json::json;

use super::super::testing::{World, action, problems};
use super::*;
use crate::output::Captured;
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
    insta::assert_snapshot!(error.message, @"`main` is an SQLite database, and pg_dump is PostgreSQL's");
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
    assert_eq!(bench.names(), ["a.dump", "a.dump.manifest.json", "b.dump"]);
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

    let partial = Partial::create(&world.context.directory.join("b.dump"), Shape::File).unwrap();
    assert!(!format!("{:?}", dump.argv(&partial, &world.context.values)).contains("pa:ss"));
    let wrong = super::tests::world(&server.url("app", "postgres").replace("user=app", "user=app&password=wrong"));
    let error = dump.run(&wrong.context).await.unwrap_err();
    assert_eq!((error.kind, error.transient), (ErrorKind::Connection, false));
}

#[test]
fn mistakes_are_found_before_anything_runs() {
    assert_eq!(problems(&action::<PgDump>("{file: a, jobs: 4}")), ["`jobs` is a number from 1 to 64, and only for `format: directory`"]);
    assert_eq!(problems(&action::<PgDump>("{file: a, format: directory, jobs: 4}")), [""; 0]);
}

#[test]
fn the_plan_shows_what_is_dumped_where() {
    let world = World::new(&json!({"name": "a"}), &[]);
    let dump: PgDump = action("{connection: main, file: '{{ params.name }}.dump', tables: [users, racks], verify: archive}");
    let description = dump.describe(&world.context.values);
    insta::assert_snapshot!([vec![description.summary], description.details].concat().join("\n"), @r"
    dump main to a.dump
    format custom
    tables users, racks
    read to its end afterwards
    ");
}

fn said(stderr: &str) -> StepError {
    let captured = Captured { stderr: stderr.into(), ..Captured::default() };
    succeeded("pg_dump", &Ended { exit: Exit::Code(1), captured, stopped: false, left_behind: false }).unwrap_err()
}

#[test]
fn an_old_pg_dump_is_told_in_plain_words() {
    let error =
        said("pg_dump: error: aborting because of server version mismatch\npg_dump: detail: server version: 16.2; pg_dump version: 15.4\n");
    assert_eq!(error.message, "pg_dump is older than the server and can't dump it");
    assert_eq!(error.facts, [("versions".into(), "server version: 16.2; pg_dump version: 15.4".into())]);
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

#[test]
fn warnings_become_findings() {
    let stderr = "pg_dump: warning: there are circular foreign-key constraints on this table:\npg_dump: detail: employees\n";
    assert_eq!(warnings(stderr), ["there are circular foreign-key constraints on this table:"]);
}

#[test]
fn sql_text_that_was_cut_off_is_noticed() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("a.sql");
    std::fs::write(&file, format!("{}--\n-- PostgreSQL database dump complete\n--\n\n", "x\n".repeat(1000))).unwrap();
    assert!(ends_as_dump(&file).is_ok());
    std::fs::write(&file, "CREATE TABLE a (").unwrap();
    assert!(ends_as_dump(&file).is_err());
}

#[test]
fn the_password_file_is_private_and_has_no_name_of_its_own() {
    let environment = LibpqEnvironment { set: Vec::new(), remove: Vec::new(), passfile: Some(Secret::new("*:*:*:me:pw\n")) };
    let access = Access::new(environment).unwrap();
    let path = access.variable("PGPASSFILE").unwrap();
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "*:*:*:me:pw\n");
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    drop(access);
    assert!(std::fs::metadata(&path).is_err());
}
