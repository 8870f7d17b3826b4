//! Two snapshots side by side: what differs, and whether that much may.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, de::Error};
use serde_json::{Value, json};

use super::{Snapshot, SnapshotExpectation};
use crate::action::StepContext;
use crate::outcome::{Column, ErrorKind, Sample, StepError, StepResult};
use crate::source::{Span, Spanned};
use crate::template::Expression;
use crate::text::count;
use crate::units::Percent;

/// More tables than this are not named in a sentence.
const NAMED: usize = 3;

/// What a snapshot says of one table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct TableState {
    pub table: String,
    pub count: u64,
    pub fingerprint: Option<String>,
}

/// How much a table may change.
#[derive(Debug, Clone, Copy, Default, PartialEq, Deserialize)]
#[serde(try_from = "Value")]
pub enum Tolerance {
    /// Not at all: the same count and, where both are known, the same fingerprint.
    #[default]
    Exact,
    /// By any number of rows more, but none fewer.
    MayGrow,
    /// By this share of the earlier count, more or fewer; whatever the contents.
    Share(Percent),
}

impl Tolerance {
    /// How many rows more or fewer a share allows.
    fn rows(share: Percent, before: u64) -> u64 {
        // A little more, so that 7% of 100 is 7 although 0.07 has no exact binary form.
        (share.0 * before as f64 + 1e-6).floor() as u64
    }

    /// For the table of differences.
    fn allowed(self, before: Option<u64>) -> String {
        match (self, before) {
            (Self::Share(share), Some(before)) => format!("± {share} ({})", Self::rows(share, before)),
            (tolerance, _) => tolerance.to_string(),
        }
    }
}

impl fmt::Display for Tolerance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact => f.write_str("exact"),
            Self::MayGrow => f.write_str("may grow"),
            Self::Share(share) => write!(f, "± {share}"),
        }
    }
}

impl FromStr for Tolerance {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text.trim() {
            "exact" => Ok(Self::Exact),
            "may_grow" => Ok(Self::MayGrow),
            share => share
                .parse()
                .map(Self::Share)
                .map_err(|_| format!("`{text}` is not a tolerance; write exact, may_grow or a share such as 5%")),
        }
    }
}

impl TryFrom<Value> for Tolerance {
    type Error = String;
    fn try_from(written: Value) -> Result<Self, String> {
        match written {
            Value::String(text) => text.parse(),
            other => other.to_string().parse(),
        }
    }
}

impl JsonSchema for Tolerance {
    fn schema_name() -> Cow<'static, str> {
        "Tolerance".into()
    }
    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let share = generator.subschema_for::<Percent>();
        json_schema!({
            "description": "exact: not at all; may_grow: no row fewer; a share such as 5%: that many rows more or fewer, whatever the contents",
            "anyOf": [{ "type": "string", "enum": ["exact", "may_grow"] }, share]
        })
    }
}

/// The step whose snapshot is compared with, read like `steps.ID`.
#[derive(Debug)]
pub struct EarlierStep {
    id: Spanned<String>,
    expression: Expression,
}

impl EarlierStep {
    pub(super) fn id(&self) -> &str {
        &self.id
    }

    pub(super) fn span(&self) -> Span {
        self.id.span
    }

    pub(super) fn expression(&self) -> &Expression {
        &self.expression
    }

    /// What it found. No snapshot to compare with is an error, and not one that a
    /// `severity: warning` lets pass: nothing was compared.
    pub(super) fn found(&self, context: &StepContext) -> Result<Vec<TableState>, StepError> {
        let step = context.values.evaluate(&self.expression).unwrap_or_default();
        let rows = step.get("rows").and_then(Value::as_array);
        let states = rows.and_then(|rows| rows.iter().map(TableState::read).collect::<Option<Vec<_>>>());
        states.filter(|states| !states.is_empty()).ok_or_else(|| {
            let status = step.get("status").and_then(Value::as_str).unwrap_or("not run");
            StepError::new(
                ErrorKind::Template,
                format!("there is no snapshot of `{}` to compare with: the step is {status}", self.id.value),
            )
            .at(context.sources.location(self.id.span))
        })
    }
}

impl<'de> Deserialize<'de> for EarlierStep {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let id = Spanned::<String>::deserialize(deserializer)?;
        let allowed = |letter: char| letter.is_ascii_lowercase() || letter.is_ascii_digit() || letter == '_' || letter == '-';
        if id.is_empty() || !id.chars().all(allowed) {
            return Err(D::Error::custom(format!("`{}` is not a step's id; write it as it stands there, such as counts_before", id.value)));
        }
        let mut expression = Expression::parse(Spanned::new(format!("steps['{}']", id.value), id.span)).map_err(D::Error::custom)?;
        // Places count in what the author wrote.
        for reference in &mut expression.references {
            reference.range = 0..id.len();
        }
        Ok(Self { id, expression })
    }
}

impl JsonSchema for EarlierStep {
    fn schema_name() -> Cow<'static, str> {
        "EarlierStep".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "pattern": "^[a-z][a-z0-9_-]*$", "description": "id of an earlier `snapshot` step" })
    }
}

impl TableState {
    /// A row of an earlier step's result.
    fn read(row: &Value) -> Option<Self> {
        Some(Self {
            table: row.get("table")?.as_str()?.to_owned(),
            count: row.get("count")?.as_u64()?,
            fingerprint: row.get("fingerprint").and_then(Value::as_str).map(str::to_owned),
        })
    }
}

/// What is kept of a snapshot; `before` adds the earlier counts.
pub(super) fn result(now: &[TableState], before: Option<&[TableState]>) -> StepResult {
    let fingerprints = now.iter().any(|state| state.fingerprint.is_some());
    let column = |name: &str, type_name: &str| Column { name: name.into(), type_name: type_name.into() };
    let mut columns = vec![column("table", "text")];
    columns.extend(before.map(|_| column("before", "int8")));
    columns.push(column("count", "int8"));
    columns.extend(fingerprints.then(|| column("fingerprint", "text")));
    let row = |state: &TableState| {
        let mut row = vec![json!(state.table)];
        row.extend(before.map(|before| json!(before.iter().find(|earlier| earlier.table == state.table).map(|earlier| earlier.count))));
        row.push(json!(state.count));
        row.extend(fingerprints.then(|| json!(state.fingerprint)));
        row
    };
    let rows: u64 = now.iter().map(|state| state.count).sum();
    StepResult {
        summary: format!("{} in {}", count(rows, "row"), count(now.len() as u64, "table")),
        rows: now.iter().map(row).collect(),
        row_count: Some(now.len() as u64),
        columns,
        ..StepResult::default()
    }
}

/// The result, if no table changed more than it may.
pub(super) fn judge(
    snapshot: &Snapshot,
    expect: &SnapshotExpectation,
    before: &[TableState],
    now: &[TableState],
    context: &StepContext,
) -> Result<StepResult, StepError> {
    let tolerance = |name: &str| {
        let table = snapshot.tables.iter().find(|table| table.value.to_string() == name);
        table.map(|table| expect.tolerance(table)).unwrap_or_default()
    };
    let differences = differences(before, now, tolerance);
    let earlier = expect.unchanged_from.id();
    let mut result = result(now, Some(before));
    if differences.is_empty() {
        result.summary = format!("{}, {}", result.summary, within(before, now, earlier));
        return Ok(result);
    }
    let error = failed(&differences, now.len(), earlier).with_result(result);
    Err(error.at(context.sources.location(expect.unchanged_from.span())))
}

/// What may be, in a few words.
fn within(before: &[TableState], now: &[TableState], earlier: &str) -> String {
    let changed = now.iter().filter_map(|state| {
        let past = before.iter().find(|past| past.table == state.table)?;
        (past.count != state.count).then(|| format!("{} {}", state.table, signed(past.count, state.count)))
    });
    let changed: Vec<String> = changed.collect();
    if changed.is_empty() { format!("as in {earlier}") } else { format!("within tolerance of {earlier}: {}", changed.join(", ")) }
}

/// A table that is not as it was, more than it may be.
#[derive(Debug, PartialEq)]
struct Difference {
    table: String,
    before: Option<u64>,
    after: Option<u64>,
    /// For a cell.
    difference: String,
    /// For a sentence, after the table's name.
    words: String,
    allowed: String,
    /// The counts are equal.
    contents: bool,
}

fn differences(before: &[TableState], now: &[TableState], tolerance: impl Fn(&str) -> Tolerance) -> Vec<Difference> {
    let past = |name: &str| before.iter().find(|state| state.table == name);
    let mut found: Vec<Difference> = now
        .iter()
        .filter_map(|state| {
            let past = past(&state.table);
            difference(&state.table, past, Some(state), tolerance(&state.table))
        })
        .collect();
    let gone = before.iter().filter(|past| !now.iter().any(|state| state.table == past.table));
    found.extend(gone.filter_map(|past| difference(&past.table, Some(past), None, tolerance(&past.table))));
    found
}

fn difference(table: &str, past: Option<&TableState>, state: Option<&TableState>, tolerance: Tolerance) -> Option<Difference> {
    let counts = (past.map(|past| past.count), state.map(|state| state.count));
    let (difference, words, contents) = match (past, state) {
        (Some(past), Some(state)) if !allows(tolerance, past.count, state.count) => {
            let more = state.count.abs_diff(past.count);
            let words = if state.count < past.count { "lost" } else { "grew by" };
            (signed(past.count, state.count), format!("{words} {}", count(more, "row")), false)
        }
        (Some(past), Some(state)) if tolerance == Tolerance::Exact && contents_differ(past, state) => {
            ("other contents".into(), "has as many rows but other contents".into(), true)
        }
        (Some(_), Some(_)) | (None, None) => return None,
        (Some(_), None) => ("not counted now".into(), "was not counted now".into(), false),
        (None, Some(_)) => ("not counted before".into(), "was not counted before".into(), false),
    };
    let allowed = tolerance.allowed(counts.0);
    Some(Difference { table: table.to_owned(), before: counts.0, after: counts.1, difference, words, allowed, contents })
}

fn allows(tolerance: Tolerance, before: u64, now: u64) -> bool {
    match tolerance {
        Tolerance::Exact => now == before,
        Tolerance::MayGrow => now >= before,
        Tolerance::Share(share) => now.abs_diff(before) <= Tolerance::rows(share, before),
    }
}

fn contents_differ(past: &TableState, state: &TableState) -> bool {
    matches!((&past.fingerprint, &state.fingerprint), (Some(past), Some(now)) if past != now)
}

fn signed(before: u64, now: u64) -> String {
    format!("{}{}", if now < before { '-' } else { '+' }, now.abs_diff(before))
}

fn failed(differences: &[Difference], tables: usize, earlier: &str) -> StepError {
    let mut words: Vec<String> = differences.iter().take(NAMED).map(|it| format!("{} {}", it.table, it.words)).collect();
    if differences.len() > NAMED {
        words.push(format!("{} more", differences.len() - NAMED));
    }
    let verb = if differences.len() == 1 { "is" } else { "are" };
    let message = format!("{} of {} {verb} not as in `{earlier}`: {}", differences.len(), count(tables as u64, "table"), words.join(", "));
    let row = |it: &Difference| vec![json!(it.table), json!(it.before), json!(it.after), json!(it.difference), json!(it.allowed)];
    let mut error = StepError::new(ErrorKind::Expectation, message);
    error.sample = Some(Sample {
        columns: ["table", "before", "after", "difference", "allowed"].map(str::to_owned).into(),
        rows: differences.iter().map(row).collect(),
        total: differences.len() as u64,
    });
    if differences.iter().any(|it| it.contents) {
        error = error.hint(
            "A fingerprint also changes when a column is added, removed or changes its type. \
             A tolerance of 0% compares the count of a table alone.",
        );
    }
    error
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(table: &str, count: u64, fingerprint: Option<&str>) -> TableState {
        TableState { table: table.into(), count, fingerprint: fingerprint.map(str::to_owned) }
    }

    /// What is said of one table that had `before` rows and has `now`.
    fn said(tolerance: &str, before: (u64, Option<&str>), now: (u64, Option<&str>)) -> Option<(String, String)> {
        let tolerance: Tolerance = tolerance.parse().unwrap();
        let found = differences(&[state("t", before.0, before.1)], &[state("t", now.0, now.1)], |_| tolerance);
        found.into_iter().next().map(|found| (found.difference, found.allowed))
    }

    #[test]
    fn tolerances_are_kept_to_the_row() {
        let counts = |tolerance: &str, before: u64, now: u64| said(tolerance, (before, None), (now, None));
        let difference = |difference: &str, allowed: &str| Some((difference.to_owned(), allowed.to_owned()));
        assert_eq!(counts("exact", 3, 3), None);
        assert_eq!(counts("exact", 3, 2), difference("-1", "exact"));
        assert_eq!(counts("exact", 3, 4), difference("+1", "exact"));
        assert_eq!(counts("may_grow", 3, 900), None);
        assert_eq!(counts("may_grow", 3, 2), difference("-1", "may grow"));
        for percent in 1..=100 {
            let tolerance = format!("{percent}%");
            assert_eq!(counts(&tolerance, 100, 100 + percent), None, "{tolerance}");
            assert_eq!(counts(&tolerance, 100, 100 - percent), None, "{tolerance}");
            assert!(counts(&tolerance, 100, 101 + percent).is_some(), "{tolerance}");
        }
        assert_eq!(counts("5%", 119, 113), difference("-6", "± 5% (5)"));
        assert_eq!(counts("5%", 0, 1), difference("+1", "± 5% (0)"));
        assert_eq!(counts("0%", 7, 8), difference("+1", "± 0% (0)"));
    }

    #[test]
    fn contents_count_where_nothing_may_change_and_both_are_known() {
        assert_eq!(said("exact", (3, Some("1")), (3, Some("2"))), Some(("other contents".into(), "exact".into())));
        assert_eq!(said("exact", (3, Some("1")), (3, Some("1"))), None);
        assert_eq!(said("exact", (3, Some("1")), (3, None)), None);
        assert_eq!(said("0%", (3, Some("1")), (3, Some("2"))), None);
        assert_eq!(said("may_grow", (3, Some("1")), (3, Some("2"))), None);
    }

    #[test]
    fn a_table_in_one_of_both_is_a_difference() {
        let found =
            differences(&[state("a", 1, None), state("b", 2, None)], &[state("b", 2, None), state("c", 3, None)], |_| Tolerance::MayGrow);
        let error = failed(&found, 2, "before");
        assert_eq!(error.message, "2 of 2 tables are not as in `before`: c was not counted before, a was not counted now");
        assert_eq!(error.sample.unwrap().rows[1], [json!("a"), json!(1), Value::Null, json!("not counted now"), json!("may grow")]);
    }

    #[test]
    fn a_sentence_names_a_few_tables() {
        let before: Vec<TableState> = ["a", "b", "c", "d", "e"].map(|name| state(name, 5, None)).into();
        let now: Vec<TableState> = before.iter().map(|past| TableState { count: 4, ..past.clone() }).collect();
        let error = failed(&differences(&before, &now, |_| Tolerance::Exact), 5, "before");
        assert_eq!(error.message, "5 of 5 tables are not as in `before`: a lost 1 row, b lost 1 row, c lost 1 row, 2 more");
        assert_eq!(error.sample.unwrap().rows.len(), 5);
    }

    #[test]
    fn what_is_kept_reads_back() {
        let states =
            [state("users", u64::from(u32::MAX) * 1000, Some("-170141183460469231731687303715884105728")), state("racks", 0, Some("0"))];
        let kept = result(&states, None);
        let results = crate::template::StepResults::default();
        results.insert("before", "done", &kept);
        let values = crate::template::Values::new().with("steps", results.value());
        let step = values.evaluate(&Expression::parse(Spanned::new("steps['before']".into(), Span::default())).unwrap()).unwrap();
        let read: Option<Vec<TableState>> = step["rows"].as_array().unwrap().iter().map(TableState::read).collect();
        assert_eq!(read.as_deref(), Some(&states[..]));
    }
}
