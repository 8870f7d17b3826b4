//! What an `sql` step does, shown on a real server.

use std::time::Duration;

use serde_json::{Value, json};

use super::*;
use crate::action::testing::World;
use crate::outcome::Aftermath;
use crate::source::{SourceFile, Sources};
use crate::target::testing::{server, spec, targets_of};
use crate::yaml;

/// A database of its own, and a world that reaches it.
struct Stage {
    world: World,
    database: String,
}

impl Stage {
    fn new(setup: &str) -> Self {
        let database = server().database();
        server().psql(&database, setup);
        let mut world = World::new(&json!({"n": 2, "name": "it's", "list": [1, 2], "nothing": null, "word": "five"}), &[]);
        world.context.targets = targets_of("run", spec(&server().url("postgres", &database)));
        world.context.connections = std::sync::Arc::new([("main".to_owned(), "main".to_owned())].into());
        world.context.default_connection = Some("main".into());
        Self { world, database }
    }

    /// Reads an action as a playbook would.
    fn action(&mut self, text: &str) -> Sql {
        let mut sources = Sources::default();
        let source = sources.add(SourceFile::new("playbook.yaml", text));
        let node = yaml::parse(&sources, source).unwrap();
        let mut sql: Sql = yaml::from_node(&node).unwrap_or_else(|problem| panic!("{}", problem.message));
        let mut diagnostics = Vec::new();
        sql.load(&mut Loader { directory: &self.world.context.directory, sources: &mut sources, diagnostics: &mut diagnostics });
        assert!(diagnostics.is_empty(), "{diagnostics:?}");
        self.world.context.sources = std::sync::Arc::new(sources);
        sql
    }

    async fn run(&mut self, text: &str) -> Result<StepResult, StepError> {
        let sql = self.action(text);
        sql.run(&self.world.context).await
    }

    fn psql(&self, query: &str) -> String {
        server().psql(&self.database, query)
    }
}

const RACKS: &str = "CREATE TABLE racks (id int PRIMARY KEY, barcode text); INSERT INTO racks SELECT n FROM generate_series(1, 1000) n";

#[tokio::test]
async fn a_query_keeps_the_first_rows_and_counts_all() {
    let mut stage = Stage::new(RACKS);
    let result = stage.run("{query: SELECT id FROM racks ORDER BY id, sample: 3, expect: {rows: 1000, each_row: id > 0}}").await.unwrap();
    assert_eq!(
        (result.row_count, result.rows, result.summary.as_str()),
        (Some(1000), vec![vec![json!(1)], vec![json!(2)], vec![json!(3)]], "1000 rows")
    );
    let result = stage
        .run("{query: 'SELECT count(*) FROM racks WHERE id <= {{ params.n }}', sample: 0, expect: {value: '{{ params.n }}'}}")
        .await
        .unwrap();
    assert_eq!((result.value, result.summary.as_str()), (Some(json!(2)), "2"));
    let error = stage.run("{query: SELECT id FROM racks, sample: 2, expect: {each_row: id <= 990}}").await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Expectation);
    assert_eq!(error.location.map(|place| place.to_string()).as_deref(), Some("playbook.yaml:1:61"));
    assert_eq!(error.sample.map(|sample| (sample.rows.len(), sample.total)), Some((2, 10)));
}

#[tokio::test]
async fn the_server_holds_a_query_to_reading() {
    let mut stage = Stage::new(
        "CREATE TABLE log (n int); CREATE FUNCTION sneak() RETURNS int LANGUAGE sql AS 'INSERT INTO log VALUES (1) RETURNING n'; CREATE SEQUENCE s",
    );
    for query in [
        "SELECT sneak()",
        "SELECT 1; SELECT sneak()",
        "SELECT nextval('s')",
        "SELECT set_config('transaction_read_only', 'off', true); SELECT sneak()",
    ] {
        let error = stage.run(&format!("query: {}", json!(query))).await.unwrap_err();
        assert!(matches!(error.code.as_deref(), Some("25006" | "25001")), "{query}: {error:?}");
        assert_eq!(error.aftermath, Aftermath::Unchanged);
    }
    assert_eq!(stage.psql("SELECT count(*) FROM log"), "0");
    assert_eq!(stage.run("query: SELECT 1; SELECT count(*) AS n FROM log").await.unwrap().columns[0].name, "n");
}

#[tokio::test]
async fn what_is_not_as_expected_is_rolled_back() {
    let mut stage = Stage::new(RACKS);
    let error = stage.run("{exec: UPDATE racks SET barcode = 'x', expect: {rows_affected: 1}}").await.unwrap_err();
    assert_eq!(error.message, "expected rows affected = 1, found 1000");
    assert_eq!((error.kind, error.aftermath), (ErrorKind::Expectation, Aftermath::Unchanged));
    assert_eq!(stage.psql("SELECT count(barcode) FROM racks"), "0");
    assert_eq!(stage.psql("SELECT count(*) FROM runbook.ledger"), "0");
}

#[tokio::test]
async fn a_summary_says_what_was_seen() {
    let mut stage = Stage::new(RACKS);
    let mut summary = async |text: &str| stage.run(text).await.unwrap().summary;
    let three = "SELECT count(*) AS racks, min(id) AS first, max(barcode) AS barcode FROM racks";
    assert_eq!(summary(&format!("query: '{three}'")).await, "racks 1000, first 1, barcode NULL");
    assert_eq!(summary(&format!("{{query: '{three}', expect: {{value: 1000}}}}")).await, "1000");
    assert_eq!(summary(&format!("{{query: '{three}', expect: {{rows: 1}}}}")).await, "1 row");
    assert_eq!(summary(&format!("{{query: '{three}', sample: 0}}")).await, "1 row");
    assert_eq!(summary("query: SELECT id FROM racks WHERE id < 1").await, "0 rows");
    assert_eq!(summary("query: SELECT max(barcode) FROM racks").await, "NULL");
    let wide = summary("query: \"SELECT repeat('x', 90) AS a, repeat('y', 90) AS b, repeat('z', 90) AS c\"").await;
    assert_eq!(wide, format!("a {}…, b {}…, c {}…", "x".repeat(39), "y".repeat(39), "z".repeat(9)));
    assert_eq!(summary("{exec: CREATE TABLE IF NOT EXISTS empty (id int), ledger: none}").await, "CREATE TABLE");
    assert_eq!(summary("{exec: CREATE TABLE copied AS SELECT * FROM racks, ledger: none}").await, "1000 rows affected");
    assert_eq!(summary("{exec: DELETE FROM racks WHERE id < 1, ledger: none}").await, "0 rows affected");
}

#[tokio::test]
async fn everything_commits_together_with_its_proof_and_only_once() {
    let mut stage = Stage::new(RACKS);
    let text = "
exec: |
  UPDATE racks SET barcode = {{ params.name }} WHERE id = ANY({{ params.list }});
  DELETE FROM racks WHERE id > 1000 - {{ params.n }};
  SELECT count(*) FROM racks;
expect: {rows_affected: 4, value: 998}
";
    let result = stage.run(text).await.unwrap();
    assert_eq!((result.rows_affected, result.value, result.summary.as_str()), (Some(4), Some(json!(998)), "4 rows affected"));
    assert_eq!(stage.psql("SELECT count(*) FROM racks WHERE barcode = 'it''s'"), "2");
    assert_eq!(stage.psql("SELECT run, step, result->>'rows_affected' FROM runbook.ledger"), "run|step|4");

    // The engine does not know how the first attempt ended.
    stage.world.context.uncertain = true;
    stage.world.context.attempt = 2;
    let result = stage.run(text).await.unwrap();
    assert_eq!(result.summary, "4 rows affected (committed by an earlier attempt)");
    assert_eq!(stage.psql("SELECT count(*) FROM racks"), "998");
}

#[tokio::test]
async fn an_error_undoes_everything_and_points_at_its_place() {
    let mut stage = Stage::new(RACKS);
    let error = stage
        .run(
            "
exec: |
  UPDATE racks SET barcode = {{ params.name }};
  UPDATE racks
     SET barkode = 'ä'
   WHERE id = {{ params.n }}
",
        )
        .await
        .unwrap_err();
    assert_eq!((error.code.as_deref(), error.aftermath), (Some("42703"), Aftermath::Unchanged));
    assert_eq!(error.location.map(|place| place.to_string()).as_deref(), Some("playbook.yaml:5:10"));
    assert!(error.facts.contains(&("statement".into(), "2 of 2: UPDATE".into())), "{:?}", error.facts);
    assert_eq!(stage.psql("SELECT count(barcode) FROM racks"), "0");

    let error = stage.run("exec: 'UPDATE racks SET barcode = 1 WHERE id = {{ params.word }}'").await.unwrap_err();
    assert_eq!(error.code.as_deref(), Some("22P02"), "{error:?}");
    assert_eq!(error.location.map(|place| place.to_string()).as_deref(), Some("playbook.yaml:1:48"));
}

#[tokio::test]
async fn a_value_that_is_missing_is_noticed_before_anything_runs() {
    let mut stage = Stage::new(RACKS);
    let error = stage.run("exec: 'TRUNCATE racks; UPDATE racks SET barcode = {{ steps.nowhere.value }}'").await.unwrap_err();
    assert_eq!((error.kind, error.aftermath), (ErrorKind::Template, Aftermath::Unchanged));
    let error = stage.run("{exec: TRUNCATE racks, expect: {rows_affected: '{{ params.nowhere }}'}}").await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Template);
    assert_eq!(stage.psql("SELECT count(*) FROM racks"), "1000");
}

#[tokio::test]
async fn a_deferred_constraint_refuses_at_commit() {
    let mut stage = Stage::new("CREATE TABLE a (id int PRIMARY KEY); CREATE TABLE b (a int REFERENCES a DEFERRABLE INITIALLY DEFERRED)");
    let error = stage.run("exec: INSERT INTO b VALUES (1)").await.unwrap_err();
    assert_eq!((error.code.as_deref(), error.aftermath), (Some("23503"), Aftermath::Unchanged));
    assert_eq!(stage.psql("SELECT count(*) FROM b"), "0");
    assert_eq!(stage.psql("SELECT count(*) FROM runbook.ledger"), "0");
}

#[tokio::test]
async fn without_a_transaction_each_statement_stands_alone() {
    let mut stage = Stage::new(RACKS);
    let result = stage.run("{exec: 'CREATE INDEX CONCURRENTLY i ON racks (barcode); VACUUM racks', transaction: none}").await.unwrap();
    assert_eq!(result.summary, "VACUUM");
    assert_eq!(stage.psql("SELECT indisvalid FROM pg_index WHERE indexrelid = 'i'::regclass"), "t");

    let error = stage.run("{exec: 'DELETE FROM racks WHERE id = 1; DELETE FROM nowhere', transaction: none}").await.unwrap_err();
    assert_eq!(error.aftermath, Aftermath::Partial);
    assert!(error.facts.contains(&("in place".into(), "the first 1 of 2 statements".into())), "{:?}", error.facts);
    assert_eq!(stage.psql("SELECT count(*) FROM racks"), "999");

    let error = stage.run("{exec: DELETE FROM nowhere, transaction: none}").await.unwrap_err();
    assert_eq!(error.aftermath, Aftermath::Unchanged);

    let error = stage.run("{exec: DELETE FROM racks WHERE id = 2, transaction: none, expect: {rows_affected: 2}}").await.unwrap_err();
    assert_eq!((error.kind, error.aftermath), (ErrorKind::Expectation, Aftermath::Partial));

    stage.psql("UPDATE racks SET barcode = 'same'");
    let error = stage.run("{exec: CREATE UNIQUE INDEX CONCURRENTLY u ON racks (barcode), transaction: none}").await.unwrap_err();
    assert_eq!((error.code.as_deref(), error.aftermath), (Some("23505"), Aftermath::Partial));
    assert!(error.hints.iter().any(|hint| hint.contains("INVALID index")), "{:?}", error.hints);
}

#[tokio::test]
async fn a_refusal_can_be_expected_and_leaves_nothing() {
    let mut stage = Stage::new(RACKS);
    for (text, passes) in [
        ("{exec: 'DELETE FROM racks WHERE id = 9; INSERT INTO racks VALUES (1)', expect: {throws: '23505'}}", true),
        ("{exec: INSERT INTO racks VALUES (1), expect: {throws: '23'}}", true),
        ("{exec: INSERT INTO racks VALUES (1), expect: {throws: '42'}}", false),
        ("{exec: INSERT INTO racks VALUES (1001), expect: {throws: '23505'}}", false),
        ("{query: SELECT 1 / 0, expect: {throws: '22012'}}", true),
    ] {
        let outcome = stage.run(text).await;
        assert_eq!(outcome.is_ok(), passes, "{text}: {outcome:?}");
    }
    assert_eq!(stage.psql("SELECT count(*) FROM racks"), "1000");
    let result = stage.run("{exec: INSERT INTO racks VALUES (1), expect: {throws: '23505'}}").await.unwrap();
    insta::assert_snapshot!(result.summary, @r#"refused as expected: 23505 duplicate key value violates unique constraint "racks_pkey""#);
}

#[tokio::test]
async fn cancelling_stops_the_statement_on_the_server() {
    let mut stage = Stage::new(RACKS);
    let sql = stage.action("exec: UPDATE racks SET barcode = 'x'; SELECT pg_sleep(600)");
    let context = stage.world.context.clone();
    let running = tokio::spawn(async move { sql.run(&context).await });
    let asleep = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event = 'PgSleep'";
    while stage.psql(asleep) != "1" {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    stage.world.context.cancel.cancel();
    let error = running.await.unwrap().unwrap_err();
    assert_eq!((error.kind, error.aftermath), (ErrorKind::Cancelled, Aftermath::Unchanged));
    assert_eq!(stage.psql(asleep), "0");
    assert_eq!(stage.psql("SELECT count(barcode) FROM racks"), "0");

    let error = stage.run("exec: TRUNCATE racks").await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Cancelled);
    assert_eq!(stage.psql("SELECT count(*) FROM racks"), "1000");
}

#[tokio::test]
async fn a_lost_commit_is_resolved_by_the_ledger() {
    let mut stage = Stage::new(
        "CREATE TABLE a (n int); CREATE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_sleep(600); RETURN NULL; END'; \
         CREATE CONSTRAINT TRIGGER slow AFTER INSERT ON a DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION wait()",
    );
    let sql = stage.action("exec: INSERT INTO a VALUES (1)");
    let context = stage.world.context.clone();
    let running = tokio::spawn(async move { sql.run(&context).await });
    let end = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE datname = current_database() AND wait_event = 'PgSleep'";
    while stage.psql(end) != "1" {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let error = running.await.unwrap().unwrap_err();
    assert_eq!(error.message, "the connection was lost during COMMIT, and the ledger shows that it was rolled back");
    assert_eq!((error.aftermath, error.transient), (Aftermath::Unchanged, true));
    assert_eq!(stage.psql("SELECT count(*) FROM a"), "0");

    // Without a ledger nobody can say.
    let sql = stage.action("{exec: INSERT INTO a VALUES (1), ledger: none}");
    let context = stage.world.context.clone();
    let running = tokio::spawn(async move { sql.run(&context).await });
    while stage.psql(end) != "1" {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(running.await.unwrap().unwrap_err().aftermath, Aftermath::Unknown);
}

#[tokio::test]
async fn a_lock_that_is_not_free_names_its_holder() {
    let mut stage = Stage::new(RACKS);
    let mut holder = stage.world.context.targets.session("main", "holder", &crate::target::SessionSettings::default()).await.unwrap();
    holder.begin(crate::target::Access::ReadWrite, None).await.unwrap();
    holder.execute(&crate::target::Statement::change("LOCK TABLE racks"), &mut |_, _| {}).await.unwrap();
    let error = stage.run("{exec: TRUNCATE racks, lock_timeout: 100ms}").await.unwrap_err();
    assert_eq!((error.code.as_deref(), error.transient), (Some("55P03"), true));
    let blocked = error.facts.iter().find(|(label, _)| label == "blocked by").map(|(_, text)| text.clone()).unwrap_or_default();
    assert!(blocked.contains(&format!("pid {}", holder.pid())), "{:?}", error.facts);
}

#[tokio::test]
async fn without_a_ledger_nothing_is_written_beside_the_effect() {
    let mut stage = Stage::new(RACKS);
    stage.run("{exec: DELETE FROM racks, ledger: none}").await.unwrap();
    assert_eq!(stage.psql("SELECT count(*) FROM pg_namespace WHERE nspname = 'runbook'"), "0");
}

#[tokio::test]
async fn a_file_runs_like_what_is_written_inline() {
    let mut stage = Stage::new(RACKS);
    std::fs::write(
        stage.world.context.directory.join("fix.sql"),
        "-- fix\nUPDATE racks SET barcode = {{ params.name }}\n WHERE id = 1;\n\nSELECT oops\n",
    )
    .unwrap();
    let error = stage.run("file: fix.sql").await.unwrap_err();
    let place = error.location.map(|place| place.to_string()).unwrap_or_default();
    assert!(place.ends_with("fix.sql:5:8"), "{place}");
    std::fs::write(stage.world.context.directory.join("count.sql"), "SELECT count(*) FROM racks WHERE id < {{ params.n }}").unwrap();
    assert_eq!(stage.run("{file: count.sql, mode: read, expect: {value: 1}}").await.unwrap().value, Some(Value::from(1)));
}

#[tokio::test]
async fn moments_and_numbers_compare_as_the_server_prints_them() {
    let mut stage = Stage::new("");
    for text in [
        "{query: \"SELECT timestamptz '2026-01-01 00:00:00+00'\", expect: {value: {ge: '2026-01-01T00:00:00Z', lt: '2026-01-01T00:00:01Z'}}}",
        "{query: \"SELECT timestamp '2026-01-01 10:00'\", expect: {value: {between: ['2026-01-01', '2026-01-02']}}}",
        "{query: \"SELECT date '2026-01-01'\", expect: {value: '2026-01-01'}}",
        "{query: \"SELECT 12345678901234567890.5\", expect: {value: {gt: '12345678901234567890.4'}}}",
        "{query: \"SHOW max_connections\", expect: {value: {ge: 20}}}",
    ] {
        stage.run(text).await.unwrap_or_else(|error| panic!("{text}: {error:?}"));
    }
}
