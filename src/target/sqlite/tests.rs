//! What an SQLite target does.

use std::time::Duration;

use serde_json::{Value, json};

use crate::outcome::{ErrorKind, StepError};
use crate::target::testing::{spec, targets, targets_of};
use crate::target::*;

struct Scratch(tempfile::TempDir);

impl Scratch {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn spec(&self) -> ConnectionSpec {
        spec(&format!("sqlite:{}?mode=rwc", self.0.path().join("stock.db").display()))
    }

    fn shown(&self, text: &str) -> String {
        text.replace(&self.0.path().canonicalize().unwrap().display().to_string(), "DIR")
            .replace(&self.0.path().display().to_string(), "DIR")
    }
}

async fn open(targets: &Targets) -> Session {
    targets.session("main", "step", &SessionSettings::default()).await.unwrap()
}

async fn run(session: &mut Session, text: &str) -> Result<Executed, TargetError> {
    session.execute(&Statement::change(text), &mut |_, _| {}).await
}

async fn rows(session: &mut Session, text: &str, binds: &[Value]) -> Result<Vec<Vec<Value>>, TargetError> {
    let mut rows = Vec::new();
    session.read(&Statement::query(text).with(binds), None, &mut |_, row| rows.push(row)).await?;
    Ok(rows)
}

fn sql(error: TargetError) -> SqlError {
    match error {
        TargetError::Sql(error) => *error,
        other => panic!("not an SQL error: {other:?}"),
    }
}

#[tokio::test]
async fn values_come_back_as_they_are_stored() {
    let scratch = Scratch::new();
    let mut session = open(&targets(scratch.spec())).await;
    run(&mut session, "CREATE TABLE t (id INTEGER PRIMARY KEY, ok BOOLEAN, name TEXT, amount REAL, data BLOB, any)").await.unwrap();
    let insert = "INSERT INTO t (id, ok, name, amount, data, any) VALUES ($1, $2, $3, $4, x'00ff', $5)";
    let binds = [json!(9_007_199_254_740_993_i64), json!(true), json!("o'neil"), json!(1.5), json!([1, "x"])];
    let executed = session.execute(&Statement::change(insert).with(&binds), &mut |_, _| {}).await.unwrap();
    assert_eq!(executed.rows_affected, 1);
    let mut found = Vec::new();
    let executed = session.read(&Statement::query("SELECT *, NULL AS none FROM t"), None, &mut |_, row| found.push(row)).await.unwrap();
    assert_eq!(found, [[binds[0].clone(), json!(true), json!("o'neil"), json!(1.5), json!("\\x00ff"), json!("[1,\"x\"]"), json!(null)]]);
    let types: Vec<_> = executed.columns.iter().map(|column| column.type_name.as_str()).collect();
    assert_eq!(types, ["integer", "boolean", "text", "real", "blob", "text", "null"]);
    assert_eq!((executed.row_count, executed.rows_affected), (1, 0));
    assert_eq!(rows(&mut session, "SELECT id FROM t WHERE name = $1", &[json!("nobody")]).await.unwrap(), Vec::<Vec<Value>>::new());
    let executed = session.read(&Statement::query("SELECT id, name FROM t WHERE false"), None, &mut |_, _| {}).await.unwrap();
    assert_eq!(executed.columns.len(), 2, "a result without rows still has columns");
}

#[tokio::test]
async fn a_read_cannot_write() {
    let scratch = Scratch::new();
    let mut session = open(&targets(scratch.spec())).await;
    run(&mut session, "CREATE TABLE t (id)").await.unwrap();
    let error = sql(rows(&mut session, "INSERT INTO t VALUES (1) RETURNING id", &[]).await.unwrap_err());
    assert_eq!(error.code, "SQLITE_READONLY");
    run(&mut session, "INSERT INTO t VALUES (1)").await.unwrap();
}

#[tokio::test]
async fn the_ledger_row_commits_with_the_effect() {
    let scratch = Scratch::new();
    let targets = targets(scratch.spec());
    let mut session = open(&targets).await;
    assert_eq!(session.ledger_find("change").await.unwrap(), None);
    session.ensure_ledger().await.unwrap();
    run(&mut session, "CREATE TABLE t (id)").await.unwrap();
    for commit in [false, true] {
        session.begin(Access::ReadWrite, None).await.unwrap();
        run(&mut session, "INSERT INTO t VALUES (1)").await.unwrap();
        session.ledger_record("change", &json!({"rows": 1})).await.unwrap();
        if commit {
            session.commit().await.unwrap();
        } else {
            session.rollback().await;
            assert_eq!(session.ledger_find("change").await.unwrap(), None);
        }
    }
    assert_eq!(targets.resolve_commit("main", "change", 0, Duration::ZERO).await.unwrap(), Some(json!({"rows": 1})));
    assert_eq!(rows(&mut session, "SELECT count(*) FROM t", &[]).await.unwrap(), [[json!(1)]]);
}

#[tokio::test]
async fn what_follows_a_failed_statement_is_never_committed() {
    let scratch = Scratch::new();
    let mut session = open(&targets(scratch.spec())).await;
    run(&mut session, "CREATE TABLE t (id INTEGER PRIMARY KEY)").await.unwrap();
    session.begin(Access::ReadWrite, None).await.unwrap();
    run(&mut session, "INSERT INTO t VALUES (1)").await.unwrap();
    let error = sql(run(&mut session, "INSERT INTO t VALUES (1)").await.unwrap_err());
    assert_eq!((error.code.as_str(), error.message.as_str()), ("SQLITE_CONSTRAINT_PRIMARYKEY", "UNIQUE constraint failed: t.id"));
    insta::assert_snapshot!(session.commit().await.unwrap_err(), @"a statement of the transaction had failed, so it was rolled back");
    assert_eq!(rows(&mut session, "SELECT count(*) FROM t", &[]).await.unwrap(), [[json!(0)]]);
}

#[tokio::test]
async fn errors_point_into_the_statement() {
    let scratch = Scratch::new();
    let mut session = open(&targets(scratch.spec())).await;
    // `FORM` is read as a name for the column, so SQLite stumbles over what follows.
    for (text, place) in [("SELECT 'é' FORM sqlite_schema", "sqlite_schema"), ("SELECT 'é',\n missing FROM sqlite_schema", "missing")] {
        let error = sql(rows(&mut session, text, &[]).await.unwrap_err());
        let found: String = text.chars().skip(error.position.unwrap()).take(place.len()).collect();
        assert_eq!(found, place);
    }
}

#[tokio::test]
async fn a_statement_can_be_cancelled_or_take_too_long() {
    const ENDLESS: &str = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n";
    let scratch = Scratch::new();
    let targets = targets(scratch.spec());
    let mut session = open(&targets).await;
    let canceller = session.canceller();
    let cancel = async {
        tokio::task::yield_now().await;
        canceller.cancel().await
    };
    let (ended, cancelled) = tokio::join!(rows(&mut session, ENDLESS, &[]), cancel);
    cancelled.unwrap();
    assert_eq!(ended.unwrap_err(), TargetError::Cancelled { connection: "main".into() });
    let bounded = SessionSettings { statement_timeout: Some(Duration::from_millis(100)), ..SessionSettings::default() };
    let mut session = targets.session("main", "step", &bounded).await.unwrap();
    let error: StepError = rows(&mut session, ENDLESS, &[]).await.unwrap_err().into();
    assert_eq!(error.kind, ErrorKind::Timeout);
    insta::assert_snapshot!(error.message, @"the statement took longer than 100ms (statement_timeout)");
    assert_eq!(rows(&mut session, "SELECT 1", &[]).await.unwrap(), [[json!(1)]], "the session is as good as before");
}

#[tokio::test]
async fn a_busy_database_is_a_transient_error() {
    let scratch = Scratch::new();
    let targets = targets(scratch.spec());
    let mut holder = open(&targets).await;
    holder.begin(Access::ReadWrite, None).await.unwrap();
    let hasty = SessionSettings { lock_timeout: Some(Duration::from_millis(50)), ..SessionSettings::default() };
    let mut session = targets.session("main", "step", &hasty).await.unwrap();
    let error: StepError = session.begin(Access::ReadWrite, None).await.unwrap_err().into();
    assert_eq!((error.code.as_deref(), error.transient), (Some("SQLITE_BUSY"), true));
    holder.rollback().await;
    session.begin(Access::ReadWrite, None).await.unwrap();
}

fn holder(run: &str) -> LockHolder {
    LockHolder { run: run.into(), host: "desk".into(), pid: 4711 }
}

#[tokio::test]
async fn one_run_at_a_time_and_the_other_learns_who() {
    let scratch = Scratch::new();
    let (one, two) = (targets(scratch.spec()), targets_of("r2", scratch.spec()));
    let LockOutcome::Held(lock) = one.lock("main", "barcodes", &holder("r1"), Duration::ZERO).await.unwrap() else { panic!("not free") };
    open(&one).await;
    lock.check().await.unwrap();
    let LockOutcome::HeldBy(other) = two.lock("main", "barcodes", &holder("r2"), Duration::ZERO).await.unwrap() else {
        panic!("taken twice")
    };
    assert_eq!(other.holder, Some(holder("r1")));
    assert!(matches!(two.lock("main", "other", &holder("r2"), Duration::ZERO).await.unwrap(), LockOutcome::Held(_)));
    lock.release().await;
    assert!(matches!(two.lock("main", "barcodes", &holder("r2"), Duration::ZERO).await.unwrap(), LockOutcome::Held(_)));
}

#[tokio::test]
async fn a_lock_file_that_was_removed_is_a_lock_that_was_lost() {
    let scratch = Scratch::new();
    let targets = targets(scratch.spec());
    let LockOutcome::Held(lock) = targets.lock("main", "l", &holder("r1"), Duration::ZERO).await.unwrap() else { panic!("not free") };
    let mut session = open(&targets).await;
    session.ensure_ledger().await.unwrap();
    std::fs::remove_file(scratch.0.path().join("stock.db.l.runbook-lock")).unwrap();
    insta::assert_snapshot!(scratch.shown(&lock.check().await.unwrap_err().to_string()), @"the run lock on `main` was lost: DIR/stock.db.l.runbook-lock was removed or replaced");
    session.begin(Access::ReadWrite, None).await.unwrap();
    assert!(matches!(session.ledger_record("s", &json!(1)).await, Err(TargetError::LockLost { .. })));
}

#[tokio::test]
async fn the_target_is_the_file_that_is_expected() {
    let scratch = Scratch::new();
    let mut expected = scratch.spec();
    expected.environment = Some("staging".into());
    expected.expect.database = Some("stock.db".into());
    let targets = targets(expected.clone());
    let error: StepError = targets.identity("main").await.unwrap_err().into();
    assert_eq!(error.facts, [("environment".to_owned(), "expected `staging`, found not stamped".to_owned())]);
    targets.stamp("main", "staging").await.unwrap();
    let identity = targets.identity("main").await.unwrap();
    assert_eq!((identity.kind, identity.environment.as_deref()), (Kind::Sqlite, Some("staging")));
    expected.expect.database = Some("other.db".into());
    let error: StepError = targets_of("r", expected).identity("main").await.unwrap_err().into();
    assert_eq!(error.facts, [("database".to_owned(), "expected other.db, found stock.db".to_owned())]);
}

#[tokio::test]
async fn urls_that_cannot_mean_one_file_are_refused() {
    let scratch = Scratch::new();
    let explained = async |url: String| {
        let error: StepError = targets(spec(&url)).identity("main").await.unwrap_err().into();
        assert!(!error.transient);
        scratch.shown(&format!("{} {}", error.message, error.hints.join(" ")))
    };
    insta::assert_snapshot!(explained("sqlite::memory:".into()).await, @"connection `main`: an SQLite database in memory is a different one for every connection; name a file Write sqlite:path, or sqlite:path?mode=ro, or ?mode=rwc to make the file if it is missing.");
    insta::assert_snapshot!(explained("sqlite:x.db?cache=shared".into()).await, @"connection `main`: `cache=shared` is not supported in an sqlite: URL Write sqlite:path, or sqlite:path?mode=ro, or ?mode=rwc to make the file if it is missing.");
    insta::assert_snapshot!(explained(format!("sqlite:{}/missing.db", scratch.0.path().display())).await, @"cannot connect to `main`: DIR/missing.db: unable to open database file DIR/missing.db does not exist. A new database is made only where the URL ends in ?mode=rwc.");
    std::fs::write(scratch.0.path().join("text.db"), "this is not a database, only text that is long enough to be read as one ".repeat(20))
        .unwrap();
    insta::assert_snapshot!(explained(format!("sqlite:{}/text.db", scratch.0.path().display())).await, @"cannot connect to `main`: DIR/text.db: file is not a database");
}
