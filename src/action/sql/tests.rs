//! SQL steps as they are written: what they refer to and how a plan shows them.

use serde_json::json;

use super::*;
use crate::source::{SourceFile, Sources};
use crate::yaml;

/// Reads and loads an action; problems as `text`: message, help.
fn load(text: &str, directory: &std::path::Path) -> Result<Sql, String> {
    let mut sources = Sources::default();
    let source = sources.add(SourceFile::new("playbook.yaml", text));
    let node = yaml::parse(&sources, source).unwrap_or_else(|problems| panic!("{text}: {problems:?}"));
    let mut sql: Sql = yaml::from_node(&node).map_err(|diagnostic| diagnostic.message)?;
    let mut diagnostics = Vec::new();
    sql.load(&mut Loader { directory, sources: &mut sources, diagnostics: &mut diagnostics });
    let mut inspection = Inspection::default();
    sql.inspect(&mut inspection);
    diagnostics.append(&mut inspection.diagnostics);
    if diagnostics.is_empty() {
        return Ok(sql);
    }
    let lines = diagnostics.iter().map(|found| {
        let place = &sources.get(found.span.source).text[found.span.start as usize..found.span.end as usize];
        let help = found.help.iter().map(|help| format!("\n   {help}")).collect::<String>();
        format!("{} `{place}`: {}{help}", sources.location(found.span), found.message)
    });
    Err(lines.collect::<Vec<_>>().join("\n"))
}

fn read(text: &str) -> Sql {
    load(text, std::path::Path::new(".")).unwrap_or_else(|problems| panic!("{problems}"))
}

fn problems(text: &str) -> String {
    load(text, std::path::Path::new(".")).err().unwrap_or_else(|| panic!("{text} is accepted"))
}

#[test]
fn every_problem_is_shown_where_it_is() {
    insta::assert_snapshot!(problems("
exec: |
  UPDATE racks SET barcode = '{{ params.code }}';
  DELETE FROM {{ params.table }};
  COPY racks FROM PROGRAM 'curl example.com';
"), @r##"
    playbook.yaml:3:31 `{{ params.code }}`: `{{ }}` inside a quoted string is text, not a value
       take the quotes away: `name = {{ value }}`, or join with `'prefix-' || {{ value }}`; an array or JSON text that needs two braces takes a space between them
    playbook.yaml:4:15 `{{ params.table }}`: a value cannot stand behind FROM, where a table is named
       `{{ }}` holds a value, never an identifier: write the name out; for a choice between a few, write a step for each with `when`
    playbook.yaml:5:3 `COPY racks FROM PROGRAM 'curl example.com'`: COPY … PROGRAM runs a shell command on the database server
       no reviewer would look for that in SQL: use a `shell` step, which runs on this machine
    "##);
    insta::assert_snapshot!(problems("
query: |
  SELECT 1;
  DELETE FROM racks
  WHERE id = 1;
  COMMIT
expect: {rows_affected: 1}
"), @r##"
    playbook.yaml:4:3 `DELETE FROM racks`: a `query` only reads, but this DELETE does more
       use `exec`, which a reviewer finds
    playbook.yaml:6:3 `COMMIT`: COMMIT is the engine's to say: it opens and ends the transaction
       remove it; all statements of the step run in one transaction, or with `transaction: none` in none
    playbook.yaml:7:25 `1`: a query affects no rows; `rows` counts those it finds
    "##);
    insta::assert_snapshot!(problems("exec: CREATE INDEX CONCURRENTLY i ON racks (id)"), @r##"
    playbook.yaml:1:7 `CREATE INDEX CONCURRENTLY i ON racks (id)`: CREATE INDEX CONCURRENTLY cannot run inside a transaction
       write `transaction: none`, and `done_when` so that an interruption can be settled
    "##);
    insta::assert_snapshot!(problems("{exec: VACUUM racks, transaction: none, isolation: serializable, mode: read, ledger: target, expect: {}}"), @r##"
    playbook.yaml:1:8 `VACUUM racks`: `mode` is for a `file`: a `query` reads, an `exec` writes
    playbook.yaml:1:52 `serializable`: without a transaction there is no isolation level
    playbook.yaml:1:86 `target`: the ledger records what one transaction writes; this step has no such transaction
    playbook.yaml:1:102 `{}`: nothing is expected here
       for example `expect: {value: 0}`
    "##);
    insta::assert_snapshot!(problems("{query: SELECT 1, exec: SELECT 1}"), @r##"exactly one of `query`, `exec` and `file` is needed"##);
    insta::assert_snapshot!(problems("{query: SELECT 1, isolation: chaos}"), @r##"unknown value `chaos`"##);
    insta::assert_snapshot!(problems("{file: nowhere.sql}"), @r##"
    playbook.yaml:1:8 `nowhere.sql`: cannot read ./nowhere.sql: No such file or directory (os error 2)
       file names are relative to the playbook's directory, .
    "##);
    insta::assert_snapshot!(problems("{file: '{{ params.file }}'}"), @r##"
    playbook.yaml:1:8 `'{{ params.file }}'`: the name of an SQL file is written out: what runs must be known before the run
       for a choice between files, write a step for each with `when`
    "##);
}

#[test]
fn a_file_is_read_and_its_problems_are_its_own() {
    let directory = tempfile::tempdir().expect("a directory");
    std::fs::write(directory.path().join("bad.sql"), "-- drop\nDROP INDEX CONCURRENTLY i;\n\\echo done\n").expect("written");
    std::fs::write(directory.path().join("good.sql"), "INSERT INTO a VALUES ({{ params.n }});\nDELETE FROM b").expect("written");
    let found = load("{file: bad.sql}", directory.path()).expect_err("has problems").replace(&*directory.path().to_string_lossy(), "DIR");
    insta::assert_snapshot!(found, @r##"
    DIR/bad.sql:3:1 `\echo done`: `\echo` is a command of psql, not SQL
       statements go to the server over the engine's own connection, without psql: remove the line, or put what it does into a step
    DIR/bad.sql:2:1 `DROP INDEX CONCURRENTLY i`: DROP INDEX CONCURRENTLY cannot run inside a transaction
       write `transaction: none`, and `done_when` so that an interruption can be settled
    "##);
    let found = load("{file: good.sql, mode: read}", directory.path())
        .expect_err("has problems")
        .replace(&*directory.path().to_string_lossy(), "DIR");
    insta::assert_snapshot!(found, @r##"
    DIR/good.sql:1:1 `INSERT INTO a VALUES ({{ params.n }})`: a file with `mode: read` only reads, but this INSERT does more
       use `mode: write`
    DIR/good.sql:2:1 `DELETE FROM b`: a file with `mode: read` only reads, but this DELETE does more
       use `mode: write`
    "##);
    let sql = load("{file: good.sql}", directory.path()).unwrap_or_else(|problems| panic!("{problems}"));
    assert_eq!(sql.statements().map(<[_]>::len), Ok(2));
    assert_eq!(sql.class(), Class::Change);
}

#[test]
fn class_and_recovery_follow_from_the_form() {
    for (text, class, recovery) in [
        ("query: SELECT 1", Class::Read, Recovery::Repeat),
        ("exec: UPDATE a SET b = 1", Class::Change, Recovery::Ledger),
        ("{exec: UPDATE a SET b = 1, ledger: none}", Class::Change, Recovery::Unknown),
        ("{exec: VACUUM a, transaction: none}", Class::Change, Recovery::Unknown),
        ("exec: CALL tidy()", Class::NotPreviewable, Recovery::Ledger),
        ("exec: DO $$ BEGIN END $$", Class::NotPreviewable, Recovery::Ledger),
    ] {
        let sql = read(text);
        assert_eq!((sql.class(), sql.recovery()), (class, recovery), "{text}");
    }
}

#[test]
fn a_plan_shows_what_is_sent() {
    let values = Values::new().with_json("params", &json!({"session": 7}));
    let sql = read(
        "
exec: |
  UPDATE audit_sessions
     SET status = 'completed', racks = {{ steps.count.value }}
   WHERE id = {{ params.session }};
  REFRESH MATERIALIZED VIEW totals
expect: {rows_affected: 1}
",
    );
    let description = sql.describe(&values);
    insta::assert_snapshot!(format!("{}\n{}", description.summary, description.details.join("\n")), @r##"
    UPDATE audit_sessions; REFRESH MATERIALIZED VIEW totals
    UPDATE audit_sessions
       SET status = 'completed', racks = $1
     WHERE id = $2;
      $1 = known after count  (steps.count.value)
      $2 = 7  (params.session)
    REFRESH MATERIALIZED VIEW totals;
    expects rows affected = 1
    "##);
}

#[test]
fn it_refers_to_what_it_reads() {
    let sql = read(
        "{exec: 'UPDATE a SET b = {{ params.b }}', connection: other, lock_timeout: '{{ params.wait }}', expect: {rows_affected: '{{ steps.x.value }}'}}",
    );
    let mut inspection = Inspection::default();
    sql.inspect(&mut inspection);
    let uses: Vec<_> = inspection.uses.iter().map(|found| (found.reference.path.join("."), found.place)).collect();
    assert_eq!(
        uses,
        [("params.b".to_owned(), Place::Bind), ("steps.x.value".to_owned(), Place::Decision), ("params.wait".to_owned(), Place::Decision)]
    );
    assert_eq!(inspection.connections[0].map(|name| name.value.as_str()), Some("other"));
}
