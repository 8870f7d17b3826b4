//! What a PostgreSQL target does, shown on a real server.

mod ledger;

use std::time::Duration;

use serde_json::{Value, json};

use crate::outcome::StepError;
use crate::target::testing::{server, spec, targets, targets_of};
use crate::target::*;

fn bounded(lock_timeout: u64) -> SessionSettings {
    SessionSettings { lock_timeout: Some(Duration::from_millis(lock_timeout)), ..SessionSettings::default() }
}

/// Targets on a new database, as superuser.
fn fresh() -> (Targets, String) {
    let database = server().database();
    (targets(spec(&server().url("postgres", &database))), database)
}

async fn open(targets: &Targets, step: &str) -> Session {
    targets.session("main", step, &SessionSettings::default()).await.unwrap()
}

async fn rows(session: &mut Session, text: &str, binds: &[Value]) -> Result<Vec<Vec<Value>>, TargetError> {
    let mut rows = Vec::new();
    session.read(&Statement::query(text).with(binds), None, &mut |_, row| rows.push(row)).await?;
    Ok(rows)
}

async fn value(session: &mut Session, text: &str) -> Value {
    rows(session, text, &[]).await.unwrap().remove(0).remove(0)
}

async fn run(session: &mut Session, text: &str) -> Result<Executed, TargetError> {
    session.execute(&Statement::change(text), &mut |_, _| {}).await
}

async fn until(database: &str, condition: &str) {
    let holds = async {
        while server().psql(database, &format!("SELECT {condition}")) != "t" {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), holds).await.unwrap_or_else(|_| panic!("never: {condition}"));
}

fn sql(error: TargetError) -> SqlError {
    match error {
        TargetError::Sql(error) => *error,
        other => panic!("not an SQL error: {other:?}"),
    }
}

#[tokio::test]
async fn every_type_becomes_a_json_value() {
    let (targets, database) = fresh();
    server().psql(
        &database,
        "CREATE TYPE mood AS ENUM ('calm', 'so so'); CREATE DOMAIN quantity AS int CHECK (VALUE > 0); \
         CREATE DOMAIN quantities AS quantity[]; CREATE TYPE pair AS (a int, b text)",
    );
    let mut session = open(&targets, "types").await;
    let cases = [
        ("true", "bool", json!(true)),
        ("1::int2", "int2", json!(1)),
        ("-2147483648", "int4", json!(-2147483648)),
        ("9223372036854775807", "int8", json!(9223372036854775807_i64)),
        ("1.5::float4", "float4", json!(1.5)),
        ("0.1::float8 + 0.2", "float8", json!(0.30000000000000004)),
        ("'NaN'::float8", "float8", json!("NaN")),
        ("'-Infinity'::float4", "float4", json!("-Infinity")),
        ("12345678901234567890.10", "numeric", json!("12345678901234567890.10")),
        ("'NaN'::numeric", "numeric", json!("NaN")),
        ("'1.50'::money", "money", json!("$1.50")),
        ("'grün'::text", "text", json!("grün")),
        ("'a'::varchar(3)", "varchar", json!("a")),
        ("'a'::char(3)", "bpchar", json!("a  ")),
        ("'x'::name", "name", json!("x")),
        ("'x'::\"char\"", "\"char\"", json!("x")),
        ("'{\"b\": 1, \"a\": [1.50, null]}'::json", "json", json!({"b": 1, "a": [1.5, null]})),
        ("'12345678901234567890.5'::jsonb", "jsonb", json!("12345678901234567890.5")),
        ("'null'::jsonb", "jsonb", json!(null)),
        ("'\\x00ff'::bytea", "bytea", json!("\\x00ff")),
        ("'00000000-0000-0000-0000-000000000001'::uuid", "uuid", json!("00000000-0000-0000-0000-000000000001")),
        ("date '2024-02-29'", "date", json!("2024-02-29")),
        ("time '10:11:12.5'", "time", json!("10:11:12.5")),
        ("timestamp '2024-02-29 10:11:12'", "timestamp", json!("2024-02-29 10:11:12")),
        ("timestamptz '2024-02-29 10:11:12+02'", "timestamptz", json!("2024-02-29 08:11:12+00")),
        ("'infinity'::timestamptz", "timestamptz", json!("infinity")),
        ("interval '1 day 2 hours'", "interval", json!("1 day 02:00:00")),
        ("'10.0.0.1/8'::inet", "inet", json!("10.0.0.1/8")),
        ("int4range(1, 5)", "int4range", json!("[1,5)")),
        ("'{[1,3),[5,7)}'::int4multirange", "int4multirange", json!("{[1,3),[5,7)}")),
        ("B'101'", "bit", json!("101")),
        ("'(1,2)'::point", "point", json!("(1,2)")),
        ("'pg_class'::regclass", "regclass", json!("pg_class")),
        ("'so so'::mood", "mood", json!("so so")),
        ("5::quantity", "int4", json!(5)),
        ("'{5,6}'::quantities", "quantity[]", json!([5, 6])),
        ("(1, 'x y')::pair", "pair", json!("(1,\"x y\")")),
        ("ROW(1, NULL)", "record", json!("(1,)")),
        ("pg_notify('c', '')", "void", json!(null)),
        ("NULL::int", "int4", json!(null)),
        ("ARRAY[1, NULL, 3]", "int4[]", json!([1, null, 3])),
        ("'[5:6][0:1]={{1,2},{3,4}}'::int8[]", "int8[]", json!([[1, 2], [3, 4]])),
        ("ARRAY['a,b', '\"q\"', NULL, 'NULL', '']", "text[]", json!(["a,b", "\"q\"", null, "NULL", ""])),
        ("ARRAY[1.10, 2]", "numeric[]", json!(["1.10", "2"])),
        ("ARRAY['{\"a\": 1}'::jsonb]", "jsonb[]", json!([{"a": 1}])),
        ("ARRAY['calm', 'so so']::mood[]", "mood[]", json!(["calm", "so so"])),
        ("ARRAY['(2,2),(1,1)'::box, '(4,4),(3,3)'::box]", "box[]", json!(["(2,2),(1,1)", "(4,4),(3,3)"])),
        ("'{}'::text[]", "text[]", json!([])),
    ];
    for (expression, type_name, expected) in cases {
        let text = format!("SELECT {expression} AS x");
        let mut found = Vec::new();
        let executed = session.read(&Statement::query(&text), None, &mut |_, row| found.push(row)).await;
        let executed = executed.unwrap_or_else(|error| panic!("{expression}: {error:?}"));
        assert_eq!(found, [[expected]], "{expression}");
        assert_eq!(executed.columns[0].type_name, type_name, "{expression}");
    }
}

#[tokio::test]
async fn results_do_not_depend_on_the_databases_settings() {
    let (targets, database) = fresh();
    server().psql(
        "postgres",
        &format!(
            "ALTER DATABASE {database} SET IntervalStyle = 'iso_8601'; ALTER DATABASE {database} SET DateStyle = 'German'; \
             ALTER DATABASE {database} SET bytea_output = 'escape'; ALTER DATABASE {database} SET TimeZone = 'Asia/Tokyo'; \
             ALTER DATABASE {database} SET extra_float_digits = 0; ALTER DATABASE {database} SET standard_conforming_strings = off"
        ),
    );
    let mut session = open(&targets, "settings").await;
    let found = rows(
        &mut session,
        "SELECT interval '1 hour', timestamptz '2024-01-02 00:00:00+00', $1::bytea, 0.1::float8 + 0.2, $2",
        &[json!("\\x00"), json!("a\\'b")],
    )
    .await;
    assert_eq!(
        found.unwrap(),
        [[json!("01:00:00"), json!("2024-01-02 00:00:00+00"), json!("\\x00"), json!(0.30000000000000004), json!("a\\'b")]]
    );
}

#[tokio::test]
async fn values_take_the_type_the_statement_needs() {
    let (targets, database) = fresh();
    server().psql(&database, "CREATE TABLE t (id int, name text, tags text[], doc jsonb, at timestamptz, ok bool, amount numeric)");
    let mut session = open(&targets, "binds").await;
    session.begin(Access::ReadWrite, None).await.unwrap();
    let binds = [
        json!(7),
        json!("o'neil \\ \"x\""),
        json!(["a,b", null, "c\"d"]),
        json!({"k": [1, "x"]}),
        json!("2024-01-02T03:04:05Z"),
        json!(false),
        json!("12345678901234567890.12"),
    ];
    let insert = Statement::change("INSERT INTO t VALUES ($1, $2, $3, $4, $5, $6, $7) -- all").with(&binds);
    let executed = session.execute(&insert, &mut |_, _| {}).await.unwrap();
    assert_eq!((executed.rows_affected, executed.row_count), (1, 0));
    session.commit().await.unwrap();
    let found = rows(&mut session, "SELECT * FROM t WHERE id = $1 AND name LIKE $2", &[json!(7), json!("o'%")]).await;
    assert_eq!(
        found.unwrap(),
        [[json!(7), binds[1].clone(), binds[2].clone(), binds[3].clone(), json!("2024-01-02 03:04:05+00"), json!(false), binds[6].clone()]]
    );
    let found = rows(&mut session, "SELECT count(*) FROM t WHERE id = ANY ($1) AND doc @> $2", &[json!([1, 7]), json!({"k": []})]).await;
    assert_eq!(found.unwrap(), [[json!(1)]]);
}

#[tokio::test]
async fn a_value_that_does_not_fit_is_named() {
    let (targets, _) = fresh();
    let mut session = open(&targets, "binds").await;

    let error = sql(rows(&mut session, "SELECT $1::text, $2 + 1", &[json!("x"), json!("many")]).await.unwrap_err());
    assert_eq!((error.code.as_str(), error.bind, error.position), ("22P02", Some(1), None));
    insta::assert_snapshot!(error.message, @r#"invalid input syntax for type integer: "many""#);

    insta::assert_snapshot!(rows(&mut session, "  CREATE TABLE t AS SELECT $1", &[json!(1)]).await.unwrap_err(), @"CREATE TABLE takes no values");

    insta::assert_snapshot!(rows(&mut session, "SELECT $1", &[json!("a\0b")]).await.unwrap_err(), @"value $1 contains a NUL character, which PostgreSQL cannot store");
}

#[tokio::test]
async fn errors_point_into_the_statement() {
    let (targets, _) = fresh();
    let mut session = open(&targets, "errors").await;
    for binds in [&[][..], &[json!(1)]] {
        let text = if binds.is_empty() { "SELECT 'é',\n  nothing FROM pg_class" } else { "SELECT 'é' || $1,\n  nothing FROM pg_class" };
        let error = sql(rows(&mut session, text, binds).await.unwrap_err());
        let place: String = text.chars().skip(error.position.unwrap()).take(7).collect();
        assert_eq!((error.code.as_str(), place.as_str()), ("42703", "nothing"));
    }
    // The session is as good as before.
    assert_eq!(value(&mut session, "SELECT 1").await, json!(1));
}

#[tokio::test]
async fn an_sql_error_tells_what_psql_would_tell() {
    let (targets, database) = fresh();
    server().psql(&database, "CREATE TABLE t (id int PRIMARY KEY); INSERT INTO t VALUES (1)");
    let mut session = open(&targets, "errors").await;
    session.begin(Access::ReadWrite, None).await.unwrap();
    let error: StepError = run(&mut session, "INSERT INTO t VALUES (1)").await.unwrap_err().into();
    insta::assert_snapshot!(serde_json::to_string_pretty(&error).unwrap(), @r#"
    {
      "kind": "sql",
      "message": "duplicate key value violates unique constraint \"t_pkey\"",
      "facts": [
        [
          "DETAIL",
          "Key (id)=(1) already exists."
        ],
        [
          "constraint",
          "t_pkey"
        ]
      ],
      "code": "23505",
      "aftermath": "unchanged",
      "transient": false
    }
    "#);
    // What follows a failed statement is never committed.
    let error = sql(session.commit().await.unwrap_err());
    assert_eq!(error.code, "25P02");
}

#[tokio::test]
async fn a_result_without_rows_still_has_columns() {
    let (targets, _) = fresh();
    let mut session = open(&targets, "columns").await;
    let executed = session.read(&Statement::query("SELECT relname, oid FROM pg_class WHERE false"), None, &mut |_, _| {}).await.unwrap();
    let columns: Vec<_> = executed.columns.iter().map(|column| (column.name.as_str(), column.type_name.as_str())).collect();
    assert_eq!(columns, [("relname", "name"), ("oid", "oid")]);
}

#[tokio::test]
async fn the_server_enforces_that_a_read_only_reads() {
    let (targets, database) = fresh();
    server().psql(&database, "CREATE TABLE t (id int)");
    let mut session = open(&targets, "read").await;
    let error = sql(rows(&mut session, "INSERT INTO t VALUES (1) RETURNING id", &[]).await.unwrap_err());
    assert_eq!(error.code, "25006");
    session.begin(Access::ReadOnly, Some(Isolation::Serializable)).await.unwrap();
    assert_eq!(sql(run(&mut session, "DELETE FROM t").await.unwrap_err()).code, "25006");
    session.rollback().await;
    assert_eq!(value(&mut session, "SELECT current_setting('transaction_isolation')").await, json!("read committed"));
}

#[tokio::test]
async fn a_step_does_not_inherit_what_another_left_in_the_session() {
    let (targets, _) = fresh();
    let mut session = open(&targets, "first").await;
    let pid = session.pid();
    value(&mut session, "SELECT set_config('search_path', 'pg_catalog', false)").await;
    drop(session);
    let mut session = open(&targets, "second").await;
    assert_eq!(session.pid(), pid, "an idle session is used again");
    assert_eq!(value(&mut session, "SELECT current_setting('search_path')").await, json!("\"$user\", public"));
    assert_eq!(value(&mut session, "SELECT current_setting('application_name')").await, json!("runbook/r1/second"));
    session.begin(Access::ReadWrite, None).await.unwrap();
    run(&mut session, "SET search_path = pg_catalog").await.unwrap();
    run(&mut session, "CREATE TEMP TABLE scratch ()").await.unwrap();
    session.commit().await.unwrap();
    drop(session);
    let mut session = targets.session("main", "third", &bounded(1234)).await.unwrap();
    assert_eq!(session.pid(), pid);
    assert_eq!(value(&mut session, "SELECT to_regclass('scratch')::text").await, json!(null));
    assert_eq!(value(&mut session, "SELECT current_setting('search_path')").await, json!("\"$user\", public"));
    assert_eq!(value(&mut session, "SELECT current_setting('lock_timeout')").await, json!("1234ms"));
    assert_eq!(value(&mut session, "SELECT current_setting('client_connection_check_interval')").await, json!("500ms"));
}

#[tokio::test]
async fn a_session_that_died_while_idle_is_replaced() {
    let (targets, database) = fresh();
    let session = open(&targets, "first").await;
    let pid = session.pid();
    drop(session);
    server().psql(&database, &format!("SELECT pg_terminate_backend({pid}, 5000)"));
    let mut session = open(&targets, "second").await;
    assert_eq!(value(&mut session, "SELECT 1").await, json!(1));
    assert_ne!(session.pid(), pid);
}

#[tokio::test]
async fn statements_outside_a_transaction_commit_by_themselves() {
    let (targets, database) = fresh();
    server().psql(&database, "CREATE TABLE t (id int)");
    let mut session = open(&targets, "alone").await;
    run(&mut session, "CREATE INDEX CONCURRENTLY t_id ON t (id)").await.unwrap();
    run(&mut session, "VACUUM t").await.unwrap();
    assert_eq!(server().psql(&database, "SELECT indisvalid FROM pg_index WHERE indexrelid = 't_id'::regclass"), "t");
}

#[tokio::test]
async fn notices_reach_the_session_that_caused_them() {
    use tracing_subscriber::layer::SubscriberExt;
    let _guard = tracing::subscriber::set_default(tracing_subscriber::registry().with(notice_layer()));
    let (targets, _) = fresh();
    let (mut one, mut two) = (open(&targets, "one").await, open(&targets, "two").await);
    let (sender, mut first) = tokio::sync::mpsc::unbounded_channel();
    one.forward_notices(sender);
    let (sender, mut second) = tokio::sync::mpsc::unbounded_channel();
    two.forward_notices(sender);
    let raise = |level: &str, text: &str| format!("DO $$BEGIN PERFORM pg_sleep(0.01); RAISE {level} '{text}'; END$$");
    let (a, b) = (raise("NOTICE", "from one"), raise("WARNING", "from two"));
    let (a, b) = tokio::join!(run(&mut one, &a), run(&mut two, &b));
    a.unwrap();
    b.unwrap();
    run(&mut one, &raise("INFO", "again")).await.unwrap();
    assert_eq!(first.try_recv().unwrap().to_string(), "NOTICE:  from one");
    assert_eq!(first.try_recv().unwrap().to_string(), "INFO:  again");
    assert_eq!(second.try_recv().unwrap().to_string(), "WARNING:  from two");
    assert!(first.try_recv().is_err() && second.try_recv().is_err());
}

#[tokio::test]
async fn a_running_statement_can_be_cancelled_and_the_session_goes_on_rolling_back() {
    let (targets, database) = fresh();
    server().psql(&database, "CREATE TABLE t (id int)");
    let mut session = open(&targets, "long").await;
    session.begin(Access::ReadWrite, None).await.unwrap();
    run(&mut session, "INSERT INTO t VALUES (1)").await.unwrap();
    let canceller = session.canceller();
    let (statement, cancelled) = tokio::join!(run(&mut session, "SELECT pg_sleep(3600)"), canceller.cancel());
    cancelled.unwrap();
    assert_eq!(statement.unwrap_err(), TargetError::Cancelled { connection: "main".into() });
    assert_eq!(session.commit().await.unwrap_err().to_string(), "a statement of the transaction had failed, so it was rolled back");
    assert_eq!(server().psql(&database, "SELECT count(*) FROM t"), "0");
}

#[tokio::test]
async fn a_statement_nobody_waits_for_any_more_is_cancelled() {
    let (targets, database) = fresh();
    let mut session = open(&targets, "dropped").await;
    let pid = session.pid();
    tokio::time::timeout(Duration::from_millis(300), run(&mut session, "SELECT pg_sleep(3600)")).await.unwrap_err();
    drop(session);
    let gone = async {
        while server().psql(&database, &format!("SELECT count(*) FROM pg_stat_activity WHERE pid = {pid}")) != "0" {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), gone).await.unwrap();
}

#[tokio::test]
async fn a_lock_timeout_names_who_held_the_lock() {
    let (targets, database) = fresh();
    server().psql(&database, "CREATE TABLE t (id int); INSERT INTO t VALUES (1)");
    let other = targets_of("other", spec(&server().url("postgres", &database)));
    let mut holder = open(&other, "holder").await;
    holder.begin(Access::ReadWrite, None).await.unwrap();
    run(&mut holder, "UPDATE t\n   SET id = 2").await.unwrap();
    let mut session = targets.session("main", "waiter", &bounded(1000)).await.unwrap();
    session.begin(Access::ReadWrite, None).await.unwrap();
    let error: StepError = run(&mut session, "UPDATE t SET id = 3").await.unwrap_err().into();
    assert!(error.transient);
    let text = error.facts.iter().map(|(label, text)| format!("{label}: {text}")).collect::<Vec<_>>().join("\n");
    let text = text.replace(&format!("pid {}", holder.pid()), "pid 4711");
    let open_for = text.split("open for ").nth(1).and_then(|rest| rest.split(':').next()).unwrap();
    insta::assert_snapshot!(format!("{} {}\n{}", error.code.unwrap(), error.message, text.replace(open_for, "2s")), @r#"
    55P03 canceling statement due to lock timeout
    CONTEXT: while updating tuple (0,1) in relation "t"
    blocked by: pid 4711, application runbook/other/holder, user postgres, idle in transaction, transaction open for 2s: UPDATE t SET id = 2
    "#);
}

#[tokio::test]
async fn the_wrong_target_is_refused_with_everything_that_differs() {
    let (_, database) = fresh();
    let mut wrong = spec(&server().url("postgres", &database));
    wrong.expect = Expect {
        database: Some("stock_audit".into()),
        role: Role::Standby,
        min_version: Some(99),
        system_identifier: Some("1".into()),
        user: Some("deploy".into()),
    };
    wrong.environment = Some("production".into());
    let targets = targets(wrong);
    let error: StepError = targets.session("main", "s", &SessionSettings::default()).await.unwrap_err().into();
    let facts = error.facts.iter().map(|(what, text)| format!("{what}: {text}")).collect::<Vec<_>>().join("\n");
    let text = format!("{}\n{facts}\n{}", error.message, error.hints.join("\n"));
    let identifier = server().psql(&database, "SELECT system_identifier FROM pg_control_system()");
    let version = server().psql(&database, "SHOW server_version");
    insta::assert_snapshot!(text.replace(&database, "DATABASE").replace(&identifier, "IDENTIFIER").replace(&version, "VERSION"), @r"
    connection `main` is not the expected target
    database: expected stock_audit, found DATABASE
    role: expected standby, found primary
    version: expected 99 or newer, found VERSION
    system identifier: expected 1, found IDENTIFIER
    user: expected deploy, found postgres
    environment: expected `production`, found not stamped
    If DATABASE really is production, say so once: runbook stamp production --url URL
    ");
}

#[tokio::test]
async fn the_right_target_says_who_it_is() {
    let (_, database) = fresh();
    let mut right = spec(&server().url("postgres", &database));
    right.environment = Some("staging".into());
    right.expect = Expect { database: Some(database.clone()), role: Role::Primary, min_version: Some(13), ..Expect::default() };
    let targets = targets(right.clone());
    targets.stamp("main", "staging").await.unwrap();
    let identity = targets.identity("main").await.unwrap();
    assert_eq!((identity.database.as_str(), identity.user.as_str(), identity.in_recovery), (database.as_str(), "postgres", false));
    assert_eq!(identity.environment.as_deref(), Some("staging"));
    assert_eq!(identity.system_identifier, Some(server().psql(&database, "SELECT system_identifier FROM pg_control_system()")));
    // A role without any privilege reads the stamp as well.
    server().psql(&database, "CREATE ROLE app_stamp LOGIN");
    let limited = targets_of("r1", ConnectionSpec { url: crate::secret::Secret::new(server().url("app_stamp", &database)), ..right });
    assert_eq!(limited.identity("main").await.unwrap().environment.as_deref(), Some("staging"));
    targets.stamp("main", "production").await.unwrap();
    assert_eq!(targets.read_stamp("main").await.unwrap(), Stamp::Environment("production".into()));
}

#[tokio::test]
async fn a_copy_of_a_stamped_database_does_not_pass_for_it() {
    let (targets, database) = fresh();
    targets.stamp("main", "production").await.unwrap();
    targets.close().await;
    until("postgres", &format!("NOT EXISTS (SELECT FROM pg_stat_activity WHERE datname = '{database}')")).await;
    let copy = format!("{database}_copy");
    server().psql("postgres", &format!("CREATE DATABASE {copy} TEMPLATE {database}"));
    let mut restored = spec(&server().url("postgres", &copy));
    restored.environment = Some("production".into());
    let error: StepError = targets_of("r1", restored).identity("main").await.unwrap_err().into();
    insta::assert_snapshot!(error.facts[0].1, @"expected `production`, found `production`, stamped into another database and restored here from its dump");
}

#[tokio::test]
async fn a_role_that_may_not_stamp_is_told_what_is_missing() {
    let (_, database) = fresh();
    server().psql(&database, "CREATE ROLE app_stamper LOGIN");
    let error: StepError = targets(spec(&server().url("app_stamper", &database))).stamp("main", "staging").await.unwrap_err().into();
    let text = format!("{}\n{}: {}", error.message, error.facts[0].0, error.facts[0].1);
    insta::assert_snapshot!(text.replace(&database, "DATABASE"), @r"
    permission denied for database DATABASE
    HINT: Let the owner of the database stamp it, or an administrator run: GRANT CREATE ON DATABASE DATABASE TO app_stamper;
    ");
}

#[test]
fn names_fit_into_what_postgresql_keeps() {
    assert_eq!(application_name("r1", "orphans"), "runbook/r1/orphans");
    let long = application_name("0192-run", &"very_long_step_name/".repeat(5));
    let other = application_name("0192-run", &format!("{}x", "very_long_step_name/".repeat(5)));
    assert_eq!((long.len(), other.len()), (63, 63));
    assert_ne!(long, other);
}
