//! What expectations let pass, what they refuse, and in which words.

use serde_json::{Value, json};

use super::*;
use crate::source::{SourceFile, Sources};
use crate::template::Values;
use crate::yaml;

fn read(text: &str) -> Result<Expectations, String> {
    let mut sources = Sources::default();
    let source = sources.add(SourceFile::new("playbook.yaml", text));
    let node = yaml::parse(&sources, source).unwrap_or_else(|problems| panic!("{text}: {problems:?}"));
    yaml::from_node(&node).map_err(|diagnostic| diagnostic.message)
}

fn values() -> Values {
    Values::new().with_json("params", &json!({"limit": 5, "allowed": ["active", "completed"], "nothing": null}))
}

/// A result as the judge sees it, and what it says.
#[track_caller]
fn judge(expectations: &str, columns: &[(&str, &str)], rows: Value) -> String {
    let expectations = read(expectations).unwrap_or_else(|message| panic!("{expectations}: {message}"));
    let values = values();
    let columns: Vec<Column> =
        columns.iter().map(|(name, type_name)| Column { name: (*name).into(), type_name: (*type_name).into() }).collect();
    let prepared = match expectations.prepare(&values) {
        Ok(prepared) => prepared,
        Err(error) => return error.message,
    };
    let mut watch = RowWatch::new(2, Some(&expectations), &values);
    for row in rows.as_array().expect("rows") {
        watch.row(&columns, row.as_array().expect("a row").clone());
    }
    match prepared.judge(Observed { rows: &watch, columns: &columns, rows_affected: 3 }) {
        Ok(findings) if findings.is_empty() => "as expected".into(),
        Ok(findings) => format!("finding: {}", findings.join("; ")),
        Err(failure) => failure.error.message,
    }
}

#[track_caller]
fn value(expectation: &str, type_name: &str, found: Value) -> String {
    judge(&format!("value: {expectation}"), &[("v", type_name)], json!([[found]]))
}

const PASS: &str = "as expected";

#[test]
fn one_value_is_compared_exactly() {
    for (expectation, type_name, found) in [
        ("0", "int8", json!(0)),
        ("1.5", "numeric", json!("1.50")),
        ("0.1", "float8", json!(0.1)),
        ("'12345678901234567890.01'", "numeric", json!("12345678901234567890.01")),
        ("{ge: 1, lt: 80}", "int4", json!(79)),
        ("{between: [1, 5]}", "int4", json!(5)),
        ("{in: [active, completed]}", "text", json!("active")),
        ("{in: '{{ params.allowed }}'}", "text", json!("completed")),
        ("'{{ params.limit }}'", "int8", json!(5)),
        ("{gt: '{{ params.limit }}'}", "numeric", json!("5.000000000000000000001")),
        ("active", "text", json!("active")),
        ("{ne: active}", "text", json!("completed")),
        ("true", "bool", json!(true)),
        ("{ge: 100}", "text", json!("100")),
        ("{lt: '2026-02-01'}", "date", json!("2026-01-31")),
        ("{ge: '2026-01-01T00:00:00Z'}", "timestamptz", json!("2026-01-01T01:00:00+01:00")),
    ] {
        assert_eq!(value(expectation, type_name, found.clone()), PASS, "{expectation} {found}");
    }
    for (expectation, type_name, found) in [
        ("9007199254740992", "int8", json!(9_007_199_254_740_993_u64)),
        ("'12345678901234567890.01'", "numeric", json!("12345678901234567890.02")),
        ("{lt: 80}", "int4", json!(80)),
        ("{between: [1, 5]}", "int4", json!(6)),
        ("{in: [1, 2]}", "int4", json!(3)),
        ("'007'", "text", json!("7")),
        ("{ne: 5}", "int8", json!(5)),
    ] {
        assert!(value(expectation, type_name, found.clone()).starts_with("expected value"), "{expectation} {found}");
    }
}

#[test]
fn what_cannot_be_compared_never_passes() {
    insta::assert_snapshot!(value("0", "int8", json!(null)), @r##"expected value = 0, found NULL, where a value is asked for"##);
    insta::assert_snapshot!(value("{ne: 0}", "int8", json!(null)), @r##"expected value ≠ 0, found NULL, where a value is asked for"##);
    insta::assert_snapshot!(value("{lt: 5}", "numeric", json!("NaN")), @r##"expected value < 5, found 'NaN' (text cannot be compared with a number)"##);
    insta::assert_snapshot!(value("{ne: 5}", "text", json!("five")), @r##"expected value ≠ 5, found 'five' (text cannot be compared with a number)"##);
    insta::assert_snapshot!(value("{lt: b}", "text", json!("a")), @r##"expected value < 'b', found 'a' (only numbers, dates and times have an order here; compare in SQL and expect `true`)"##);
    insta::assert_snapshot!(value("'{{ params.nothing }}'", "int8", json!(1)), @r##"expected value = NULL, found 1 (what it is compared with is NULL)"##);
    insta::assert_snapshot!(value("'{{ params.nowhere }}'", "int8", json!(1)), @r##"`params.nowhere` has no value: params.nowhere is not defined here"##);
    insta::assert_snapshot!(judge("value: 0", &[("n", "int8")], json!([])), @r##"expected value = 0, found no row, where a value is asked for"##);
    insta::assert_snapshot!(judge("value: 0", &[("n", "int8")], json!([[0], [1]])), @r##"expected value = 0, found 2 rows, where one value is asked for"##);
}

#[test]
fn rows_are_counted_and_looked_at() {
    let columns = [("rack", "text"), ("n", "int8")];
    let rows = json!([["a", 0], ["b", 1], ["c", 2]]);
    for (expectation, expected) in [
        ("rows: 3", PASS),
        ("{rows: {ge: 1}, empty: false, columns: [rack, n], rows_affected: 3}", PASS),
        ("each_row: n >= 0 and rack != 'x'", PASS),
        ("any_row: n == params.limit - 3", PASS),
        ("rows: 2", "expected rows = 2, found 3"),
        ("empty: true", "expected no rows, found 3 rows"),
        ("columns: [n, rack]", "expected columns n, rack, found rack, n"),
        ("rows_affected: {between: [1, 2]}", "expected rows affected between 1 and 2, found 3"),
        ("each_row: n == 0", "expected each row: n == 0, found 2 of 3 rows for which it does not hold"),
        ("any_row: n > 2", "expected any row: n > 2, found 3 rows for which it does not hold"),
        (
            "{rows: 1, each_row: n < 2}",
            "expected rows = 1, found 3; expected each row: n < 2, found 1 of 3 rows for which it does not hold",
        ),
        ("each_row: m == 0", "`m == 0` has no value: `m` is undefined"),
    ] {
        assert_eq!(judge(expectation, &columns, rows.clone()), expected, "{expectation}");
    }
    assert_eq!(judge("any_row: n > 2", &columns, json!([])), "expected any row: n > 2, found no rows");
    assert_eq!(
        judge("each_row: n < 5", &columns, json!([["a", 1], ["b", null]])),
        "expected each row: n < 5, found 1 of 2 rows for which it does not hold (n is NULL in 1)"
    );
    assert_eq!(judge("each_row: n is none or n < 5", &columns, json!([["a", 1], ["b", null]])), PASS);
}

#[test]
fn a_failure_shows_the_rows_that_break_it() {
    let expectations = read("each_row: n == 0").expect("valid");
    let values = values();
    let columns = [Column { name: "n".into(), type_name: "int8".into() }];
    let prepared = expectations.prepare(&values).expect("resolves");
    let mut watch = RowWatch::new(2, Some(&expectations), &values);
    for n in [0, 1, 0, 2, 3] {
        watch.row(&columns, vec![json!(n)]);
    }
    let failure = prepared.judge(Observed { rows: &watch, columns: &columns, rows_affected: 0 }).expect_err("broken");
    let sample = failure.error.sample.expect("a sample");
    assert_eq!((sample.rows, sample.total), (vec![vec![json!(1)], vec![json!(2)]], 3));
    assert_eq!(failure.error.message, "expected each row: n == 0, found 3 of 5 rows for which it does not hold");
    assert_eq!(failure.error.facts, [], "one expectation is not said twice");
    assert!(failure.span.is_some());
}

#[test]
fn an_error_rate_has_two_bounds() {
    let columns = [("errors", "int8"), ("requests", "numeric")];
    let rate = |errors: Value, requests: Value| {
        judge("error_rate: {failed: errors, total: requests, warn: 5%, max: 10%}", &columns, json!([[errors, requests], [0, 0]]))
    };
    assert_eq!(rate(json!(5), json!("100")), PASS);
    assert_eq!(rate(json!(6), json!("100")), "finding: error rate above 5%: 6 of 100, 6%");
    assert_eq!(rate(json!(10), json!("100")), "finding: error rate above 5%: 10 of 100, 10%");
    insta::assert_snapshot!(rate(json!(11), json!("100")), @r##"expected errors of requests: at most 10%, a finding above 5%, found 11 of 100, 11%"##);
    assert_eq!(rate(json!(0), json!(0)), "finding: requests is 0, so its error rate says nothing");
    insta::assert_snapshot!(rate(json!(1), json!(0)), @r##"expected errors of requests: at most 10%, a finding above 5%, found 1 of 0"##);
    insta::assert_snapshot!(rate(json!(null), json!(5)), @r##"expected errors of requests: at most 10%, a finding above 5%, found errors is NULL"##);
    insta::assert_snapshot!(judge("error_rate: {failed: errors, total: requests, max: 10%}", &columns, json!([])), @r##"expected errors of requests: at most 10%, found no row, where a rate is asked for"##);
    insta::assert_snapshot!(judge("error_rate: {failed: oops, total: requests, max: 10%}", &columns, json!([[1, 2]])), @r##"expected oops of requests: at most 10%, found the query gives no column `oops`"##);
}

#[test]
fn what_is_written_must_mean_something() {
    let message = |text: &str| read(text).err().unwrap_or_else(|| panic!("{text} is accepted"));
    insta::assert_snapshot!(message("value: {gte: 5}"), @r##"unknown key `gte`"##);
    insta::assert_snapshot!(message("value: null"), @r##"expected a number, a text, or operators such as `{ge: 1, lt: 80}` (eq, ne, lt, le, gt, ge, between, in), found nothing"##);
    insta::assert_snapshot!(message("value: {eq: null}"), @r##"nothing equals NULL; write `any_row: "column is none"` if NULL is expected"##);
    insta::assert_snapshot!(message("value: {}"), @r##"an operator is missing: one of eq, ne, lt, le, gt, ge, between, in"##);
    insta::assert_snapshot!(message("value: {between: [1]}"), @r##"`between` takes two values, both included: `between: [1, 5]`"##);
    insta::assert_snapshot!(message("value: {in: active}"), @r##"`in` takes a list: `in: [active, completed]`"##);
    insta::assert_snapshot!(message("empty: ~"), @r##"expected a boolean, found nothing"##);
    insta::assert_snapshot!(message("valu: 3"), @r##"unknown key `valu`"##);

    let found = |text: &str| {
        let expectations = read(text).unwrap_or_else(|message| panic!("{text}: {message}"));
        let mut inspection = Inspection::default();
        expectations.inspect(Span::default(), &mut inspection);
        inspection.diagnostics.iter().map(|diagnostic| diagnostic.message.clone()).collect::<Vec<_>>().join("; ")
    };
    insta::assert_snapshot!(found("{}"), @r##"nothing is expected here"##);
    insta::assert_snapshot!(found("rows: 1.5"), @r##"`rows` is a count: it is compared with a whole number"##);
    insta::assert_snapshot!(found("throws: unique_violation"), @r##"`unique_violation` is not an SQLSTATE"##);
    insta::assert_snapshot!(found("{throws: '23505', rows: 1}"), @r##"`throws` stands alone: a statement that fails has no result to judge"##);
    insta::assert_snapshot!(found("error_rate: {failed: a, total: b}"), @r##"`error_rate` needs `max`, `warn` or both"##);
}

#[test]
fn a_plan_shows_them() {
    let expectations = read(
        "{rows: {between: [1, 5]}, value: '{{ steps.a.value }}', rows_affected: '{{ params.limit }}', empty: false, each_row: n > 0, columns: [n], error_rate: {failed: a, total: b, max: 10%}}",
    );
    let lines = expectations.expect("valid").describe(&values());
    insta::assert_snapshot!(lines.join("\n"), @r##"
    rows between 1 and 5
    value = {{ steps.a.value }}
    rows affected = 5
    at least one row
    each row: n > 0
    columns n
    a of b: at most 10%
    "##);
}
