//! The ledger and the run lock: what keeps an effect from happening twice.

use super::*;

#[tokio::test]
async fn the_ledger_row_commits_with_the_effect() {
    let (targets, database) = fresh();
    server().psql(&database, "CREATE TABLE t (id int)");
    let mut session = open(&targets, "change").await;
    assert_eq!(session.ledger_find("change").await.unwrap(), None, "no ledger yet");
    session.ensure_ledger().await.unwrap();
    for (id, commit) in [(1, false), (2, true)] {
        session.begin(Access::ReadWrite, None).await.unwrap();
        run(&mut session, &format!("INSERT INTO t VALUES ({id})")).await.unwrap();
        session.ledger_record("change", &json!({"rows_affected": 1, "note": "it's \\ done"})).await.unwrap();
        if commit {
            session.commit().await.unwrap();
        } else {
            session.rollback().await;
            assert_eq!(session.ledger_find("change").await.unwrap(), None);
        }
    }
    assert_eq!(session.ledger_find("change").await.unwrap(), Some(json!({"rows_affected": 1, "note": "it's \\ done"})));
    assert_eq!(server().psql(&database, "SELECT string_agg(id::text, ',') FROM t"), "2");
    // A second time is impossible.
    session.begin(Access::ReadWrite, None).await.unwrap();
    let error = sql(session.ledger_record("change", &json!({})).await.unwrap_err());
    assert_eq!(error.constraint.as_deref(), Some("ledger_pkey"));
}

#[tokio::test]
async fn two_runs_may_create_the_ledger_at_once() {
    let database = server().database();
    let url = server().url("postgres", &database);
    let all: Vec<Targets> = (0..6).map(|run| targets_of(&format!("r{run}"), spec(&url))).collect();
    let create = all.iter().map(|targets| async {
        let mut session = open(targets, "s").await;
        session.ensure_ledger().await
    });
    for created in futures_util::future::join_all(create).await {
        created.unwrap();
    }
}

#[tokio::test]
async fn a_role_that_may_not_keep_a_ledger_is_told_what_to_run() {
    let (_, database) = fresh();
    server().psql(&database, "CREATE ROLE app_ledger LOGIN");
    let url = server().url("app_ledger", &database);
    let limited = targets(spec(&url));
    let mut session = open(&limited, "s").await;
    let error = session.ensure_ledger().await.unwrap_err();
    let TargetError::LedgerForbidden { statements, .. } = error.clone() else { panic!("{error:?}") };
    let step: StepError = error.into();
    let text = format!("{}\n{}", step.message, step.hints.join("\n")).replace(&database, "DATABASE");
    insta::assert_snapshot!(text, @r"
    role `app_ledger` may not write runbook's tables on `main`: permission denied for database DATABASE
    Let an administrator run once: CREATE SCHEMA runbook; CREATE TABLE runbook.ledger (run text, step text, result json NOT NULL, recorded_at timestamptz NOT NULL DEFAULT now(), recorded_by text NOT NULL DEFAULT current_user, PRIMARY KEY (run, step)); GRANT USAGE ON SCHEMA runbook TO app_ledger; GRANT SELECT, INSERT ON runbook.ledger TO app_ledger;
    Or set `ledger: none` on the connection; an interrupted write is then reported `unknown`.
    ");
    // What it says is enough.
    server().psql(&database, &statements.join(" "));
    session.ensure_ledger().await.unwrap();
    session.begin(Access::ReadWrite, None).await.unwrap();
    session.ledger_record("s", &json!(1)).await.unwrap();
    session.commit().await.unwrap();
    assert_eq!(session.ledger_find("s").await.unwrap(), Some(json!(1)));
}

/// A constraint trigger that waits until somebody opens the gate holds up COMMIT.
fn slow_commit(database: &str) {
    server().psql(
        database,
        "CREATE TABLE t (id int); CREATE TABLE gate (); \
         CREATE FUNCTION wait_at_gate() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN \
           LOOP EXIT WHEN EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND objid = 4242); PERFORM pg_sleep(0.02); END LOOP; \
           RETURN NULL; END$$; \
         CREATE CONSTRAINT TRIGGER at_commit AFTER INSERT ON t DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION wait_at_gate()",
    );
}

#[tokio::test]
async fn a_backend_killed_in_commit_leaves_an_unknown_that_resolves_to_rolled_back() {
    let (targets, database) = fresh();
    slow_commit(&database);
    let mut session = open(&targets, "s").await;
    session.ensure_ledger().await.unwrap();
    session.begin(Access::ReadWrite, None).await.unwrap();
    run(&mut session, "INSERT INTO t VALUES (1)").await.unwrap();
    session.ledger_record("s", &json!("done")).await.unwrap();
    let pid = session.pid();
    let kill = async {
        until(&database, &format!("EXISTS (SELECT FROM pg_stat_activity WHERE pid = {pid} AND query = 'COMMIT' AND state = 'active')"))
            .await;
        server().psql(&database, &format!("SELECT pg_terminate_backend({pid})"));
    };
    let (committed, ()) = tokio::join!(session.commit(), kill);
    let error = committed.unwrap_err();
    assert!(matches!(error, TargetError::CommitUnknown { pid: backend, .. } if backend == pid), "{error:?}");
    assert_eq!(targets.resolve_commit("main", "s", pid, Duration::from_secs(20)).await.unwrap(), None);
    assert_eq!(server().psql(&database, "SELECT count(*) FROM t"), "0");
}

#[tokio::test]
async fn resolving_waits_for_a_backend_that_still_commits() {
    let (targets, database) = fresh();
    slow_commit(&database);
    let mut session = open(&targets, "s").await;
    session.ensure_ledger().await.unwrap();
    session.begin(Access::ReadWrite, None).await.unwrap();
    run(&mut session, "INSERT INTO t VALUES (1)").await.unwrap();
    session.ledger_record("s", &json!("done")).await.unwrap();
    let pid = session.pid();
    // The answer never arrives, and the backend goes on.
    let commit = session.commit();
    let mut commit = Box::pin(commit);
    let committing = format!("EXISTS (SELECT FROM pg_stat_activity WHERE pid = {pid} AND query = 'COMMIT' AND state = 'active')");
    tokio::select! {
        answer = &mut commit => panic!("{answer:?}"),
        () = until(&database, &committing) => {}
    }
    let early = targets.resolve_commit("main", "s", pid, Duration::from_millis(100)).await;
    assert!(matches!(early, Err(TargetError::CommitUnknown { .. })), "{early:?}");
    let found = targets.earlier_backend("main", "s").await.unwrap();
    assert_eq!(found, None, "sessions of this process are no leftovers");
    let later = targets_of("r1", spec(&server().url("postgres", &database)));
    let found = later.earlier_backend("main", "s").await.unwrap().unwrap();
    assert_eq!((found.pid, found.state.as_str(), found.query.as_str()), (pid, "active", "COMMIT"));
    server().psql(&database, "SELECT pg_advisory_lock(4242), pg_sleep(0.2)");
    commit.await.unwrap();
    drop(session);
    targets.close().await;
    assert_eq!(later.resolve_commit("main", "s", pid, Duration::from_secs(20)).await.unwrap(), Some(json!("done")));
}

#[tokio::test]
async fn an_earlier_backend_can_be_ended() {
    let (earlier, database) = fresh();
    let mut session = open(&earlier, "s").await;
    session.begin(Access::ReadWrite, None).await.unwrap();
    let now = targets_of("r1", spec(&server().url("postgres", &database)));
    let found = now.earlier_backend("main", "s").await.unwrap().unwrap();
    assert_eq!(found.state, "idle in transaction");
    assert!(now.terminate("main", found.pid, Duration::from_secs(20)).await.unwrap());
    assert_eq!(now.earlier_backend("main", "s").await.unwrap(), None);
    let lost: StepError = run(&mut session, "SELECT 1").await.unwrap_err().into();
    assert!(lost.transient);
    // What follows is the server's last words or, where they came too late, the system's.
    assert!(lost.message.starts_with("the connection to `main` was lost: "), "{}", lost.message);
}

fn holder(run: &str) -> LockHolder {
    LockHolder { run: run.into(), host: "db-admin-7.example".into(), pid: 4711 }
}

#[tokio::test]
async fn one_run_at_a_time_and_the_other_learns_who() {
    let (one, database) = fresh();
    let two = targets_of("r2", spec(&server().url("postgres", &database)));
    let LockOutcome::Held(lock) = one.lock("main", "barcodes", &holder("r1"), Duration::ZERO).await.unwrap() else { panic!("not free") };
    lock.check().await.unwrap();
    let LockOutcome::HeldBy(other) = two.lock("main", "barcodes", &holder("r2"), Duration::ZERO).await.unwrap() else {
        panic!("taken twice")
    };
    assert_eq!(other.holder, Some(holder("r1")));
    assert_eq!(other.application, "runbook/r1/@db-admin-7.example:4711");
    assert!(other.age.is_some() && other.backend.is_some());
    assert!(matches!(two.lock("main", "another", &holder("r2"), Duration::ZERO).await.unwrap(), LockOutcome::Held(_)));
    lock.release().await;
    assert!(matches!(two.lock("main", "barcodes", &holder("r2"), Duration::ZERO).await.unwrap(), LockOutcome::Held(_)));
}

#[tokio::test]
async fn a_dead_holders_lock_frees_itself_and_its_writes_are_refused() {
    let (one, database) = fresh();
    let two = targets_of("r2", spec(&server().url("postgres", &database)));
    let LockOutcome::Held(lock) = one.lock("main", "l", &holder("r1"), Duration::ZERO).await.unwrap() else { panic!("not free") };
    let mut session = open(&one, "s").await;
    session.ensure_ledger().await.unwrap();
    session.begin(Access::ReadWrite, None).await.unwrap();
    let LockOutcome::HeldBy(other) = two.lock("main", "l", &holder("r2"), Duration::ZERO).await.unwrap() else { panic!("taken twice") };
    server().psql(&database, &format!("SELECT pg_terminate_backend({}, 5000)", other.backend.unwrap()));
    let LockOutcome::Held(_) = two.lock("main", "l", &holder("r2"), Duration::from_secs(20)).await.unwrap() else { panic!("still held") };
    insta::assert_snapshot!(lock.check().await.unwrap_err(), @"the run lock on `main` was lost: the connection that held it was lost");
    let error = session.ledger_record("s", &json!(1)).await.unwrap_err();
    assert!(matches!(error, TargetError::LockLost { .. }), "{error:?}");
}

#[tokio::test]
async fn a_new_holder_waits_for_commits_under_the_old_lock() {
    let (one, database) = fresh();
    let two = targets_of("r2", spec(&server().url("postgres", &database)));
    let LockOutcome::Held(lock) = one.lock("main", "l", &holder("r1"), Duration::ZERO).await.unwrap() else { panic!("not free") };
    let mut session = open(&one, "s").await;
    session.ensure_ledger().await.unwrap();
    session.begin(Access::ReadWrite, None).await.unwrap();
    session.ledger_record("s", &json!(1)).await.unwrap();
    lock.release().await;
    let newcomer = holder("r2");
    let mut second = Box::pin(two.lock("main", "l", &newcomer, Duration::ZERO));
    let taken = "EXISTS (SELECT FROM pg_locks l JOIN pg_stat_activity a USING (pid) WHERE l.locktype = 'advisory' AND a.application_name LIKE 'runbook/r2/@%')";
    tokio::select! {
        early = &mut second => panic!("{early:?}"),
        () = until(&database, taken) => {}
    }
    session.commit().await.unwrap();
    assert!(matches!(second.await.unwrap(), LockOutcome::Held(_)));
}

#[tokio::test]
async fn an_unprivileged_role_still_learns_the_holders_name() {
    let (one, database) = fresh();
    server().psql(&database, "CREATE ROLE app_lock LOGIN");
    let two = targets_of("r2", spec(&server().url("app_lock", &database)));
    let LockOutcome::Held(_lock) = one.lock("main", "l", &holder("r1"), Duration::ZERO).await.unwrap() else { panic!("not free") };
    let LockOutcome::HeldBy(other) = two.lock("main", "l", &holder("r2"), Duration::ZERO).await.unwrap() else { panic!("taken twice") };
    assert_eq!((other.holder, other.age), (Some(holder("r1")), None));
}
