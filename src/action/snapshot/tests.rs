//! What may be written, what is refused, and what a plan shows.

use serde_json::json;

use super::*;
use crate::action::testing::{action, problems, try_action};
use crate::source::{SourceFile, Sources};

fn names(written: &[&str]) -> Vec<Result<String, String>> {
    written.iter().map(|name| name.parse::<TableName>().map(|name| format!("{name} {}", name.sql()))).collect()
}

#[test]
fn names_are_read_as_sql_reads_them() {
    let ok = |text: &str| Ok(text.to_owned());
    assert_eq!(
        names(&["users", "Users", "app.Users", "\"Users\"", "app.\"Odd \"\"name\"\".x\"", "user$1", "Größe"]),
        [
            ok("users \"users\""),
            ok("users \"users\""),
            ok("app.users \"app\".\"users\""),
            ok("\"Users\" \"Users\""),
            ok("app.\"Odd \"\"name\"\".x\" \"app\".\"Odd \"\"name\"\".x\""),
            ok("\"user$1\" \"user$1\""),
            ok("\"größe\" \"größe\""),
        ]
    );
    for wrong in
        ["", " ", "a b", "1a", "a.", ".a", "a.b.c", "\"a", "\"\"", "a\"b\"", "users; DROP TABLE users", "{{ params.table }}", "a--b"]
    {
        assert!(wrong.parse::<TableName>().is_err(), "{wrong}");
    }
    assert!(try_action::<Snapshot>("{tables: ['a b']}").unwrap_err().contains("not a table's name"));
}

#[test]
fn what_cannot_be_meant_is_refused() {
    let refused = |yaml: &str| problems(&action::<Snapshot>(yaml));
    assert_eq!(refused("{tables: [users, racks], with: [fingerprint], expect: {unchanged_from: before, tolerance: {racks: 5%}}}"), [""; 0]);
    assert_eq!(refused("{tables: []}"), ["at least one table is needed"]);
    assert_eq!(refused("{tables: [users, Users]}"), ["`users` is named twice"]);
    assert_eq!(
        refused("{tables: [users], where: {user: id > 1}, expect: {unchanged_from: before, tolerance: {racks: exact, 'a b': exact}}}"),
        ["`racks` is none of the step's tables", "`a b` is none of the step's tables", "`user` is none of the step's tables"]
    );
    for (yaml, message) in [
        ("{tables: [a], expect: {tolerance: {a: exact}}}", "unchanged_from"),
        ("{tables: [a], expect: {unchanged_from: before, tolerance: {a: 140%}}}", "not a tolerance"),
        ("{tables: [a], expect: {unchanged_from: before, tolerance: {a: shrink}}}", "not a tolerance"),
        ("{tables: [a], expect: {unchanged_from: steps.before.rows}}", "not a step's id"),
        ("{tables: [a], with: [checksum]}", "checksum"),
    ] {
        let found = try_action::<Snapshot>(yaml).unwrap_err();
        assert!(found.contains(message), "{yaml}: {found}");
    }
}

#[test]
fn a_condition_is_a_condition() {
    let refused = |condition: &str| {
        let yaml = format!("{{tables: [a], where: {{a: {condition:?}}}}}");
        let mut sources = Sources::default();
        sources.add(SourceFile::new("test.yaml", &yaml));
        let snapshot: Snapshot = action(&yaml);
        let found = snapshot.conditions.values().flat_map(|condition| condition.diagnostics(&sources));
        found.map(|problem| (problem.message, yaml[problem.span.start as usize..problem.span.end as usize].to_owned())).collect::<Vec<_>>()
    };
    assert_eq!(refused("id > {{ params.least }} -- all others are ours"), []);
    for wrong in ["true; DELETE FROM a", "true;", "", " ", "-- all of them"] {
        assert_eq!(refused(wrong).into_iter().map(|(message, _)| message).collect::<Vec<_>>(), ["this is not a condition"], "{wrong}");
    }
    assert_eq!(refused("name = '{{ params.name }}'")[0].1, "{{ params.name }}");
    assert_eq!(refused("id > {{ params. }} or true")[0].1, "{{ params. }}");
}

#[test]
fn a_plan_shows_what_is_sent_and_what_may_change() {
    let snapshot: Snapshot = action(
        "{tables: [users, app.Racks, '\"Scans\"'], with: [count, fingerprint], where: {users: \"created_at <= {{ params.until }}\"}, \
         expect: {unchanged_from: before, tolerance: {default: may_grow, app.racks: 0.5%}}}",
    );
    let shown = snapshot.describe(&Values::new().with_json("params", &json!({"until": "2026-01-01"})));
    insta::assert_snapshot!(format!("{}\n{}", shown.summary, shown.details.join("\n")), @r#"
    snapshot of users, app.racks, "Scans", compared with before
    BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY
    SELECT count(*) AS count, coalesce(sum(hashtextextended(("users".*)::text, 0)::numeric), 0)::text AS fingerprint FROM "users" WHERE (created_at <= $1)
      $1 = "2026-01-01"  (params.until)
    SELECT count(*) AS count, coalesce(sum(hashtextextended(("racks".*)::text, 0)::numeric), 0)::text AS fingerprint FROM "app"."racks"
    SELECT count(*) AS count, coalesce(sum(hashtextextended(("Scans".*)::text, 0)::numeric), 0)::text AS fingerprint FROM "Scans"
    (on SQLite the rows are read and hashed by runbook)
    expects unchanged from before: users may grow, app.racks ± 0.5%, "Scans" may grow
    "#);
    let counts: Snapshot = action("{tables: [users], where: {users: 'id > 3 -- the first are ours'}}");
    insta::assert_snapshot!(counts.describe(&Values::new()).details.join("\n"), @r#"
    BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY
    SELECT count(*) AS count FROM "users" WHERE (id > 3 -- the first are ours
    )
    "#);
}

#[test]
fn snapshots_of_other_rows_are_not_compared() {
    let earlier: Snapshot = action("{tables: [users, racks, scans], where: {racks: 'id < 100', scans: 'id < 5'}}");
    let later: Snapshot = action("{tables: [users, racks, Scans, orders], where: {racks: ' id < 100 '}, expect: {unchanged_from: before}}");
    let found: Vec<String> = later.differs_from(&earlier, "before").into_iter().map(|problem| problem.message).collect();
    assert_eq!(
        found,
        [
            "`orders` is not among the tables of `before`, so nothing can be said of it",
            "`scans` has another `where` in `before`: other rows would be counted"
        ]
    );
    let found: Vec<String> = earlier.differs_from(&later, "later").into_iter().map(|problem| problem.message).collect();
    assert_eq!(found[0], "`later` also counts `orders`, which is missing here");
}
