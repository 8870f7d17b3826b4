//! Backups with every fault that is known to pass unnoticed elsewhere, shown to be refused.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;

use serde_json::json;

use super::super::backup::checksum::Shape;
use super::super::backup::manifest::{MANIFEST, Manifest, beside};
use super::super::pg_dump::PgDump;
use super::super::testing::{World, action, problems, try_action};
use super::*;
use crate::target::testing::{Server, programs, server, spec, start, targets};

/// A database with something of everything, and a step that may use it.
struct Bench {
    world: World,
    database: String,
}

const CONTENT: &str = "\
    CREATE TABLE users (id int PRIMARY KEY, name text NOT NULL); \
    CREATE TABLE racks (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, user_id int REFERENCES users, pad text, at timestamptz DEFAULT now()); \
    INSERT INTO users SELECT n, 'user ' || n FROM generate_series(1, 50) n; \
    INSERT INTO racks (user_id, pad) SELECT 1 + n % 50, md5(n::text) FROM generate_series(1, 2000) n; \
    CREATE INDEX racks_pad ON racks (pad); CREATE VIEW pads AS SELECT pad FROM racks; SELECT lo_create(0)";

impl Bench {
    fn new() -> Self {
        Self::on(server())
    }

    fn on(server: &Server) -> Self {
        let database = server.database();
        server.psql(&database, CONTENT);
        Self { world: world(&server.url("postgres", &database)), database }
    }

    async fn dump(&self, yaml: &str) -> PathBuf {
        let result = action::<PgDump>(yaml).run(&self.world.context).await.unwrap();
        result.file.unwrap().into()
    }

    async fn verify(&self, yaml: &str) -> Result<StepResult, StepError> {
        action::<VerifyBackup>(yaml).run(&self.world.context).await
    }

    /// The error in the words a person reads.
    async fn refused(&self, yaml: &str) -> String {
        let error = self.verify(yaml).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Expectation, "{}", error.message);
        told(&error, &self.world)
    }

    /// How many there are of this run's.
    fn scratch_databases(&self) -> String {
        let name = scratch::scratch_name(&self.world.context);
        server().psql("postgres", &format!("SELECT count(*) FROM pg_database WHERE datname = '{name}'"))
    }
}

fn told(error: &StepError, world: &World) -> String {
    let mut lines = vec![error.message.clone()];
    lines.extend(error.facts.iter().map(|(label, text)| format!("  {label}: {text}")));
    lines.extend(error.hints.iter().map(|hint| format!("  -> {hint}")));
    lines.join("\n").replace(world.context.directory.to_str().unwrap(), "[DIR]")
}

fn world(url: &str) -> World {
    let mut world = World::new(&json!({}), &[]);
    world.context.targets = targets(spec(url));
    world.context.connections = Arc::new([("main".to_owned(), "main".to_owned())].into());
    world.context.default_connection = Some("main".into());
    world.context.run = format!("run-{}", fastrand::u64(..));
    world.set_path(&format!("{}:/usr/bin:/bin", programs().display()));
    world
}

/// As if the file had been written like this: only what reads more than the checksum can tell.
fn make_the_checksum_fit(backup: &std::path::Path) {
    let taken = Checksums::take(backup, Shape::of(backup).unwrap(), |_| Ok(())).unwrap();
    let manifest = Manifest::read(backup).unwrap().unwrap();
    Manifest { size: taken.size, sha256: taken.sha256, ..manifest }.write(backup).unwrap();
}

fn edit(backup: &std::path::Path, change: impl FnOnce(&mut Manifest)) {
    let mut manifest = Manifest::read(backup).unwrap().unwrap();
    change(&mut manifest);
    manifest.write(backup).unwrap();
}

fn cut(file: &std::path::Path, share: f64) {
    let length = fs::metadata(file).unwrap().len();
    fs::OpenOptions::new().write(true).open(file).unwrap().set_len((length as f64 * share) as u64).unwrap();
}

fn flip(file: &std::path::Path, text: &str) {
    let bytes = fs::read(file).unwrap();
    let place = bytes.windows(text.len()).position(|window| window == text.as_bytes()).unwrap();
    fs::OpenOptions::new().write(true).open(file).unwrap().write_at(&[bytes[place] ^ 1], place as u64).unwrap();
}

#[tokio::test]
async fn every_format_is_proven_by_restoring_it() {
    let bench = Bench::new();
    for format in ["custom", "directory", "tar", "plain"] {
        bench.dump(&format!("{{file: {format}, format: {format}, with: [count, fingerprint]}}")).await;
        let yaml = format!(
            "{{file: {format}, level: restore, max_age: 1h, min_size: 1KiB, rto: 10m, \
             checks: [{{name: users, sql: {{query: SELECT count(*) FROM users, expect: {{value: 50}}}}}}]}}"
        );
        let result = bench.verify(&yaml).await.unwrap();
        assert!(result.summary.contains("2 tables with 2050 rows"), "{}", result.summary);
        assert_eq!(result.findings, [""; 0], "{format}");
        assert!(result.json.unwrap()["restore_seconds"].as_f64().unwrap() > 0.0);
        let noted = Verified::read(&bench.world.context.directory.join(format)).unwrap();
        assert_eq!((noted.level, noted.run.as_str()), (Level::Restore, bench.world.context.run.as_str()));
        bench.verify(&format!("{{file: {format}, level: checksum}}")).await.unwrap();
        assert_eq!(Verified::read(&bench.world.context.directory.join(format)).unwrap().level, Level::Restore, "the better proof stays");
    }
    assert_eq!(bench.scratch_databases(), "0");
}

#[tokio::test]
async fn a_truncated_dump_is_refused() {
    let bench = Bench::new();
    let file = bench.dump("{file: a.dump}").await;
    cut(&file, 0.6);
    let refused = bench.refused("{file: a.dump, level: checksum}").await;
    assert!(refused.starts_with("the backup is not what was written: its checksum differs from the manifest's"), "{refused}");
    // `pg_restore --list` is content with it.
    make_the_checksum_fit(&file);
    bench.verify("{file: a.dump, level: checksum}").await.unwrap();
    insta::assert_snapshot!(bench.refused("{file: a.dump}").await, @r"
    the backup can't be read to its end
      backup: [DIR]/a.dump
      because: pg_restore failed: could not read from input file: end of file
      -> it can't be restored; take another backup
    ");
}

#[tokio::test]
async fn a_directory_without_one_of_its_files_is_refused() {
    let bench = Bench::new();
    let directory = bench.dump("{file: tree, format: directory}").await;
    let data = fs::read_dir(&directory)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .find(|path| path.extension().is_some_and(|ending| ending == "gz"));
    fs::remove_file(data.unwrap()).unwrap();
    assert!(bench.refused("{file: tree, level: checksum}").await.starts_with("the backup is not what was written"));
    make_the_checksum_fit(&directory);
    let refused = bench.refused("{file: tree}").await;
    assert!(refused.starts_with("the backup can't be read to its end") && refused.contains("No such file"), "{refused}");
}

/// With compression reading finds it; without, only the checksum or the fingerprints do.
#[tokio::test]
async fn a_flipped_bit_is_refused() {
    let bench = Bench::new();
    let packed = bench.dump("{file: packed.dump}").await;
    let length = fs::metadata(&packed).unwrap().len();
    let bytes = fs::read(&packed).unwrap();
    let place = (length * 6 / 10) as usize;
    fs::OpenOptions::new().write(true).open(&packed).unwrap().write_at(&[bytes[place] ^ 1], place as u64).unwrap();
    assert!(bench.refused("{file: packed.dump, level: checksum}").await.starts_with("the backup is not what was written"));
    make_the_checksum_fit(&packed);
    assert!(bench.refused("{file: packed.dump}").await.starts_with("the backup can't be read to its end"));

    let open = bench.dump("{file: open.dump, compression: 0, with: [count, fingerprint]}").await;
    flip(&open, "user 17");
    assert!(bench.refused("{file: open.dump, level: checksum}").await.starts_with("the backup is not what was written"));
    make_the_checksum_fit(&open);
    bench.verify("{file: open.dump}").await.unwrap();
    let refused = bench.refused("{file: open.dump, level: restore}").await;
    assert!(refused.starts_with("the restored database is not what was dumped: table public.users has fingerprint "), "{refused}");
    assert_eq!(bench.scratch_databases(), "0");
}

#[tokio::test]
async fn sql_text_cut_inside_a_table_is_refused() {
    let bench = Bench::new();
    let file = bench.dump("{file: a.sql, format: plain}").await;
    bench.verify("{file: a.sql}").await.unwrap();
    cut(&file, 0.7);
    make_the_checksum_fit(&file);
    insta::assert_snapshot!(bench.refused("{file: a.sql}").await, @r"
    the backup can't be read to its end
      backup: [DIR]/a.sql
      because: it does not end as pg_dump ends it: it was cut off
      -> it can't be restored; take another backup
    ");
}

#[tokio::test]
async fn roles_that_a_server_does_not_know_are_named() {
    let home = start(&[]);
    let bench = Bench::on(&home);
    home.psql(
        &bench.database,
        "CREATE ROLE auditor_of_racks; GRANT SELECT ON racks TO auditor_of_racks; CREATE ROLE keeper; ALTER TABLE users OWNER TO keeper",
    );
    bench.dump("{file: a.dump}").await;
    let there = world(&server().url("postgres", "postgres"));
    let mut abroad = bench;
    abroad.world.context.targets = there.context.targets.clone();
    insta::assert_snapshot!(abroad.refused("{file: a.dump, level: restore}").await, @r"
    the server does not know the roles auditor_of_racks, keeper
      needed by: owners and grants in the backup
      -> create the roles, e.g. with the FILE.globals.sql beside the backup; a new server needs them too
      -> `owner: false` and `privileges: false` restore without them
    ");
    abroad.verify("{file: a.dump, level: restore, owner: false, privileges: false}").await.unwrap();
}

#[tokio::test]
async fn what_differs_from_the_manifest_is_listed() {
    let bench = Bench::new();
    let file = bench.dump("{file: a.dump}").await;
    edit(&file, |manifest| {
        manifest.tables.as_mut().unwrap()[0].rows += 1;
        manifest.large_objects = Some(7);
        manifest.sequences.values_mut().next().unwrap().value = 1;
    });
    let error = bench.verify("{file: a.dump, level: restore}").await.unwrap_err();
    assert_eq!(error.message, "the restored database is not what was dumped: 3 things differ");
    let rows = error.result.unwrap().rows;
    insta::assert_snapshot!(serde_json::to_string(&rows).unwrap(), @r#"[["table public.racks","2001 rows","2000 rows"],["sequence public.racks_id_seq","1","2000"],["large objects","7","1"]]"#);
    assert_eq!(bench.scratch_databases(), "0");
}

#[tokio::test]
async fn comparing_nothing_proves_nothing() {
    let empty = server().database();
    let world = world(&server().url("postgres", &empty));
    let bench = Bench { world, database: empty };
    bench.dump("{file: empty.dump}").await;
    insta::assert_snapshot!(bench.refused("{file: empty.dump, level: restore}").await, @r"
    the backup holds no table, so restoring it proves nothing
      -> dump with `with: [count]`, which is the default, from a database that has tables
    ");
    let bench = Bench::new();
    bench.dump("{file: uncounted.dump, with: []}").await;
    assert!(bench.refused("{file: uncounted.dump, level: restore}").await.starts_with("the manifest has no counts"));
    bench.dump("{file: unknown.dump, manifest: false}").await;
    insta::assert_snapshot!(bench.refused("{file: unknown.dump, level: checksum}").await, @r"
    [DIR]/unknown.dump has no manifest, so nothing tells what it should be
      -> a backup made by a `pg_dump` step has one; could not be verified is not verified
    ");
    insta::assert_snapshot!(bench.refused("{file: nothing.dump}").await, @"there is no backup [DIR]/nothing.dump");
}

#[tokio::test]
async fn too_old_too_small_and_too_slow_are_refused() {
    let bench = Bench::new();
    let file = bench.dump("{file: a.dump}").await;
    edit(&file, |manifest| manifest.created_at = "2026-01-01T00:00:00Z".parse().unwrap());
    assert!(bench.refused("{file: a.dump, max_age: 24h}").await.contains("old, more than 1day"));
    edit(&file, |manifest| manifest.created_at = "2999-01-01T00:00:00Z".parse().unwrap());
    assert!(bench.refused("{file: a.dump}").await.starts_with("by its manifest the backup is made in the future"));
    edit(&file, |manifest| manifest.created_at = bench.world.context.clock.now());
    assert!(bench.refused("{file: a.dump, min_size: 1GB}").await.contains("less than 953.7 MiB"));
    assert!(bench.refused("{file: a.dump, level: restore, rto: 1ms}").await.contains("longer than 1ms"));
    let failing = "{file: a.dump, level: restore, checks: [{name: nobody, sql: {query: SELECT count(*) FROM users, expect: {value: 0}}}]}";
    assert!(bench.refused(failing).await.contains("check of the restored database: nobody"));
    assert_eq!(bench.scratch_databases(), "0");
}

#[tokio::test]
async fn the_newest_backup_is_the_one_that_counts() {
    let bench = Bench::new();
    let old = bench.dump("{file: backups/b.dump}").await;
    edit(&old, |manifest| manifest.created_at = "2026-01-01T00:00:00Z".parse().unwrap());
    let new = bench.dump("{file: backups/a.dump}").await;
    let result = bench.verify("{newest_in: backups, level: checksum}").await.unwrap();
    assert_eq!(result.file.as_deref(), new.to_str());
    fs::write(beside(&new, MANIFEST), "{").unwrap();
    assert!(bench.refused("{newest_in: backups}").await.contains("which backup is the newest is not known"));
    fs::create_dir(bench.world.context.directory.join("none")).unwrap();
    assert!(bench.refused("{newest_in: none}").await.starts_with("there is no backup in [DIR]/none"));
}

/// A killed run leaves its scratch database; the same step drops it before it begins.
#[tokio::test]
async fn what_a_killed_attempt_left_behind_is_dropped() {
    let bench = Bench::new();
    bench.dump("{file: a.dump}").await;
    let name = scratch::scratch_name(&bench.world.context);
    server().psql("postgres", &format!("CREATE DATABASE {name}"));
    bench.verify("{file: a.dump, level: restore}").await.unwrap();
    assert_eq!(server().psql("postgres", &format!("SELECT count(*) FROM pg_database WHERE datname = '{name}'")), "0");
}

#[tokio::test]
async fn part_of_a_database_is_proven_without_what_it_refers_to() {
    let bench = Bench::new();
    server().psql(
        &bench.database,
        "CREATE SCHEMA app; CREATE TABLE app.loads (user_id int REFERENCES users); INSERT INTO app.loads VALUES (1)",
    );
    bench.dump("{file: part.dump, tables: [app.loads]}").await;
    let result = bench.verify("{file: part.dump, level: restore}").await.unwrap();
    insta::assert_snapshot!(result.findings.join("\n"), @"restored without the foreign key loads_user_id_fkey of app.loads: public.users is not in the backup");
}

#[test]
fn mistakes_are_found_before_anything_runs() {
    let found = |yaml: &str| problems(&action::<VerifyBackup>(yaml)).join("; ");
    assert_eq!(found("{file: a, rto: 5m}"), "only `level: restore` measures how long restoring takes");
    assert_eq!(found("{file: a, checks: [{name: x, sql: {query: SELECT 1}}]}"), "only `level: restore` has a database to ask");
    assert_eq!(found("{file: a, level: restore, checks: [{name: x, sql: {exec: DELETE FROM a}}]}"), "a check may only read");
    let elsewhere = "{file: a, level: restore, checks: [{name: x, sql: {query: SELECT 1, connection: main}}]}";
    assert_eq!(found(elsewhere), "a check asks the restored database, not a connection");
    for wrong in ["{}", "{file: a, newest_in: b}"] {
        let problem = try_action::<VerifyBackup>(wrong).unwrap_err();
        assert_eq!(problem, "exactly one of `file` and `newest_in` must say which backup");
    }
}
