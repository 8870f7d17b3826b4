//! Imports as they are written, and how hostile files are read.

use std::io::Read;
use std::sync::Arc;

use encoding_rs::{UTF_8, WINDOWS_1252};

use super::check::{Checker, RowFormat, Rule};
use super::fields::Format;
use super::records::{LONGEST_RECORD, Layout, ReadError, Record, Records};
use super::*;
use crate::action::testing::{action, problems, try_action};

const ORDERS: &str = "
file: orders.csv
table: shop.orders
columns:
  id: {type: bigint, required: true}
  order: {type: text, from: Order, enum: [a, b], references: kinds.name}
  amount: {type: numeric, min: 0, max: 10}
run_column: import_run
";

fn layout(format: Format, fields: &[&str]) -> Layout {
    let fields = fields.iter().map(|field| (*field).to_owned()).collect();
    Layout { format, delimiter: b',', quote: Some(b'"'), header: false, encoding: UTF_8, fields }
}

/// Hands out a byte at a time, as a slow disk might.
struct Slow<'a>(&'a [u8]);

impl Read for Slow<'_> {
    fn read(&mut self, to: &mut [u8]) -> std::io::Result<usize> {
        let count = self.0.len().min(to.len()).min(1);
        to[..count].copy_from_slice(&self.0[..count]);
        self.0 = &self.0[count..];
        Ok(count)
    }
}

/// Each record as `line+lines: values or what is broken`.
fn read(source: impl Read, layout: Layout) -> Result<Vec<String>, ReadError> {
    let mut records = Records::new(source, layout, Arc::default())?;
    let mut record = Record::default();
    let mut all = Vec::new();
    while records.next(&mut record)? {
        let values = record
            .values
            .iter()
            .map(|range| range.clone().map_or_else(|| "-".to_owned(), |range| String::from_utf8_lossy(&record.buffer[range]).into_owned()));
        let said = record.broken.as_ref().map_or_else(|| values.collect::<Vec<_>>().join("|"), ToString::to_string);
        all.push(format!("{}+{}: {said}", record.line, record.lines));
    }
    Ok(all)
}

#[test]
fn lines_are_counted_through_quotes_empty_lines_and_every_kind_of_ending() {
    let file = "a,b\r\n\r\n\n\"x\ny\r\nz\",\"\"\"\"\r\n,\n1,2,3\n4,5";
    let expected = ["1+1: a|b", "4+3: x\ny\r\nz|\"", "7+1: |", "8+1: 3 fields instead of 2", "9+1: 4|5"];
    assert_eq!(read(file.as_bytes(), layout(Format::Csv, &["a", "b"])).unwrap(), expected);
    assert_eq!(read(Slow(file.as_bytes()), layout(Format::Csv, &["a", "b"])).unwrap(), expected);
}

#[test]
fn a_quote_that_is_never_closed_is_told_from_one_that_is() {
    let csv = || layout(Format::Csv, &["a", "b"]);
    assert_eq!(read("1,\"open\n2,3\n4,5\n".as_bytes(), csv()).unwrap(), ["1+3: a quote is opened and never closed"]);
    assert_eq!(read("1,\"shut\n\"".as_bytes(), csv()).unwrap(), ["1+2: 1|shut\n"]);
    let unquoted = Layout { quote: None, ..csv() };
    assert_eq!(read("1,\"a\n".as_bytes(), unquoted).unwrap(), ["1+1: 1|\"a"]);
}

#[test]
fn a_record_that_is_too_long_is_not_kept() {
    let long = "x".repeat(LONGEST_RECORD + 1);
    for format in [Format::Csv, Format::Ndjson] {
        let good = if format == Format::Csv { "1,2" } else { "{\"a\": 1, \"b\": 2}" };
        let file = format!("{good}\n{long}\n{good}\n");
        let mut records = Records::new(file.as_bytes(), layout(format, &["a", "b"]), Arc::default()).unwrap();
        let mut record = Record::default();
        let mut broken = Vec::new();
        while records.next(&mut record).unwrap() {
            broken.push((record.line, record.broken.is_some()));
            assert!(record.buffer.capacity() <= 2 * LONGEST_RECORD);
            assert!(record.raw.len() <= 1000);
        }
        assert_eq!(broken, [(1, false), (2, true), (3, false)]);
    }
}

#[test]
fn ndjson_keeps_every_digit() {
    let file = "{\"a\": 12345678901234567890.10, \"b\": {\"x\": [1]}}\n\n  \n{\"b\": null, \"a\": \"\\u00e9\"}\n[1]\n{\"a\": \n\"\\xff\"";
    let read = read(file.as_bytes(), layout(Format::Ndjson, &["a", "b"])).unwrap();
    assert_eq!(read[..2], ["1+1: 12345678901234567890.10|{\"x\": [1]}", "4+1: é|-"]);
    assert!(read[2..].iter().all(|line| line.contains("not a JSON object")), "{read:?}");
    assert_eq!(read.len(), 5);
}

#[test]
fn encodings_are_decoded_across_the_borders_of_reads() {
    let latin = Layout { encoding: WINDOWS_1252, ..layout(Format::Csv, &["a"]) };
    assert_eq!(read(Slow(b"caf\xe9\n\x80\n"), latin).unwrap(), ["1+1: café", "2+1: €"]);
    let header = Layout { header: true, ..layout(Format::Csv, &["a"]) };
    assert_eq!(read("\u{FEFF} a ,b\n1,2\n".as_bytes(), header).unwrap(), ["2+1: 1"]);
}

fn check(columns: &str, null: Option<&str>, format: RowFormat, file: &str) -> (String, Vec<String>) {
    let import: Import = action(&format!("{{file: f, table: t, run_column: r, columns: {columns}}}"));
    let rules: Vec<Rule> = import.columns.iter().map(|(name, column)| Rule::new(&name.value, column)).collect();
    let layout = Layout { header: false, ..import.layout(Path::new("f.csv")).unwrap() };
    let mut records = Records::new(file.as_bytes(), layout, Arc::default()).unwrap();
    let mut checker = Checker::new(rules, null.map(ToOwned::to_owned), format, None);
    let (mut record, mut rows, mut found) = (Record::default(), Vec::new(), Vec::new());
    let mut all = Vec::new();
    while records.next(&mut record).unwrap() {
        checker.check(&record, &mut rows, &mut found);
        all.extend(found.drain(..).map(|problem| format!("{} {}: {}", record.line, problem.column, problem.reason)));
    }
    (String::from_utf8(rows).unwrap(), all)
}

#[test]
fn rows_are_escaped_for_the_database() {
    let file = "\"a\tb\\c\nd\re\",\nx,1\n";
    let columns = "{a: {type: text}, b: {type: integer}}";
    let (rows, problems) = check(columns, None, RowFormat::Copy, file);
    assert_eq!((rows.as_str(), problems.len()), ("1\ta\\tb\\\\c\\nd\\re\t\\N\n3\tx\t1\n", 0));
    let (rows, _) = check(columns, None, RowFormat::Json, file);
    assert_eq!(rows, "[[1,\"a\\tb\\\\c\\nd\\re\",null],[3,\"x\",\"1\"]");
}

#[test]
fn every_problem_of_a_record_is_said() {
    let columns = "{a: {type: text, required: true, pattern: 'x+'}, b: {type: numeric, min: 1, max: 5}, c: {type: boolean, enum: ['yes']}}";
    let (rows, problems) = check(columns, None, RowFormat::Copy, "axx,0,t\n,9,no\nx,1,Y\n");
    assert_eq!(rows, "3\tx\t1\ttrue\n");
    assert_eq!(
        problems,
        ["1 a: does not match x+", "1 b: less than 1", "2 a: has no value", "2 b: more than 5", "2 c: not one of the allowed values"]
    );
}

#[test]
fn with_a_text_for_null_an_empty_text_is_kept() {
    let columns = "{a: {type: text}, b: {type: integer}}";
    assert_eq!(check(columns, Some("NULL"), RowFormat::Copy, ",\nNULL,NULL\n").0, "1\t\t\\N\n2\t\\N\t\\N\n");
    assert_eq!(check(columns, None, RowFormat::Copy, ",\nNULL,1\n").0, "1\t\\N\t\\N\n2\tNULL\t1\n");
}

#[test]
fn a_plan_shows_checks_limits_and_the_statement() {
    let import: Import = action(ORDERS);
    let description = import.describe(&Values::new());
    insta::assert_snapshot!(format!("{}\n{}", description.summary, description.details.join("\n")), @r#"
    import orders.csv into shop.orders
    CSV, or NDJSON by its name, utf-8
      id bigint, required
      order text, from `Order`, one of a|b, in kinds.name
      amount numeric, from 0, to 10
    more than 5% rejected: a finding, to be confirmed where an environment is declared
    more than 10% rejected: nothing is loaded
    INSERT INTO shop.orders (id, "order", amount, import_run) SELECT id, "order", amount, '{{ run.id }}' FROM pg_temp.runbook_staging
    "#);
    let update: Import = action(&format!("{ORDERS}on_duplicate: update\nkey: [id]\n"));
    let mut statements = update.statements(Kind::Postgres, "r1", "s");
    insta::assert_snapshot!(statements.insert(), @r#"INSERT INTO shop.orders (id, "order", amount, import_run) SELECT DISTINCT ON (id) id, "order", amount, 'r1' FROM pg_temp.runbook_staging ORDER BY id, runbook_line DESC ON CONFLICT (id) DO UPDATE SET "order" = excluded."order", amount = excluded.amount"#);
    statements.run_column = None;
    statements.noted_by = vec!["id".into()];
    insta::assert_snapshot!(statements.insert_and_count(), @r#"WITH written AS (INSERT INTO shop.orders (id, "order", amount) SELECT DISTINCT ON (id) id, "order", amount FROM pg_temp.runbook_staging ORDER BY id, runbook_line DESC ON CONFLICT (id) DO UPDATE SET "order" = excluded."order", amount = excluded.amount RETURNING (xmax = 0) AS runbook_added, id), noted AS (INSERT INTO runbook.imported (run, step, table_name, key) SELECT 'r1', 's', 'shop.orders', jsonb_build_object('id', id) FROM written WHERE runbook_added) SELECT count(*) FILTER (WHERE runbook_added), count(*) FILTER (WHERE NOT runbook_added) FROM written"#);
}

#[test]
fn what_can_not_be_meant_is_said() {
    let wrong: Import = action(
        "{file: f, table: '{{ x }}', key: [z], on_duplicate: update, delimiter: '\"', encoding: klingon, run_column: a,
          rejects: {warn_ratio: 20%}, columns: {a: {type: text, min: 1}, b: {type: date, max: soon, references: x}}}",
    );
    insta::assert_snapshot!(problems(&wrong).join("\n"), @"
    `min` and `max` are for numbers, dates and timestamps, not for text
    `soon` is not a date such as 2026-05-01
    a reference is written `table.column`
    names of tables and columns are written out: what is loaded must be known before the run
    `z` is not one of the columns
    the column for the run's id can't come from the file as well
    `klingon` is no encoding that is known; utf-8, windows-1252, utf-16le …
    `warn_ratio` can't be above `max_ratio`
    delimiter and quote can't be the same
    ");
    for (text, said) in [
        ("{file: f, table: t, columns: {a: {type: money}}}", "money"),
        ("{file: f, table: t, columns: {a: {type: text, pattern: '('}}}", "not a regular expression"),
        ("{file: f, table: t, delimiter: ';;', columns: {a: {type: text}}}", "not one character"),
        ("{file: f, columns: {a: {type: text}}}", "table"),
    ] {
        let problem = try_action::<Import>(text).map(|_| ()).unwrap_err();
        assert!(problem.contains(said), "{text}: {problem}");
    }
}
