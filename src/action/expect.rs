//! Expectations over what a statement finds or changes.
//!
//! They are resolved before the statement runs, followed while its rows pass by, and
//! judged at its end; NULL, or no row, where a value is asked for never passes. What
//! a failure means for the transaction is `action::sql`'s business.

mod comparison;
mod number;
mod watch;

use schemars::JsonSchema;
use serde::{Deserialize, Deserializer};
use serde_json::Value;

pub use comparison::Comparison;
pub use watch::RowWatch;

use super::Inspection;
use crate::diagnostic::Diagnostic;
use crate::outcome::{Column, ErrorKind, Sample, StepError};
use crate::source::{Span, Spanned};
use crate::template::{Expression, Values};
use crate::units::Percent;
use comparison::{Expected, show};

/// What must be found. Everything that is written must hold.
///
/// ```yaml
/// expect: {value: {lt: 80}}
/// expect: {each_row: "scans >= before", columns: [rack, scans, before]}
/// expect: {error_rate: {failed: errors, total: requests, warn: 5%, max: 10%}}
/// ```
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Expectations {
    /// How many rows the last result has.
    #[serde(default, deserialize_with = "written")]
    pub rows: Option<Comparison>,
    /// The one value: the first column of the only row.
    #[serde(default, deserialize_with = "written")]
    pub value: Option<Comparison>,
    /// How many rows were written, summed over the statements.
    #[serde(default, deserialize_with = "written")]
    pub rows_affected: Option<Comparison>,
    /// Whether the last result has no rows.
    #[serde(default, deserialize_with = "written")]
    pub empty: Option<bool>,
    /// Holds for every row; the columns are names.
    #[serde(default, deserialize_with = "written")]
    pub each_row: Option<Expression>,
    /// Holds for at least one row; the columns are names.
    #[serde(default, deserialize_with = "written")]
    pub any_row: Option<Expression>,
    /// The columns' names, in order.
    #[serde(default, deserialize_with = "written")]
    pub columns: Option<Vec<String>>,
    /// The statement must fail with this SQLSTATE, such as `23505`, or a class of them,
    /// such as `23`. Nothing of it is kept.
    #[serde(default, deserialize_with = "written")]
    #[schemars(regex(pattern = r"^[0-9A-Z]{2,5}$"))]
    pub throws: Option<Spanned<String>>,
    /// The share of failures over all rows.
    #[serde(default, deserialize_with = "written")]
    pub error_rate: Option<ErrorRate>,
}

/// A share, and how large it may be.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ErrorRate {
    /// The column that counts failures.
    pub failed: String,
    /// The column that counts everything.
    pub total: String,
    /// Above this the step has a finding.
    #[serde(default)]
    pub warn: Option<Percent>,
    /// Above this the step fails.
    #[serde(default)]
    pub max: Option<Percent>,
}

/// `key: null` is not the same as no key: what is written must be something.
fn written<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Option<T>, D::Error> {
    T::deserialize(deserializer).map(Some)
}

/// Expectations whose values are known.
#[derive(Debug)]
pub struct Prepared<'a> {
    expectations: &'a Expectations,
    rows: Option<Expected>,
    value: Option<Expected>,
    rows_affected: Option<Expected>,
}

/// An expectation that does not hold.
#[derive(Debug)]
struct Failure {
    expected: String,
    found: String,
    span: Option<Span>,
    sample: Option<Sample>,
}

/// What a statement did, to be judged.
#[derive(Debug, Clone, Copy)]
pub struct Observed<'a> {
    /// The rows of the last result.
    pub rows: &'a RowWatch<'a>,
    /// Its columns.
    pub columns: &'a [Column],
    /// Rows written.
    pub rows_affected: u64,
}

impl Expectations {
    /// Names everything they refer to and what cannot be meant.
    pub fn inspect<'a>(&'a self, span: Span, inspection: &mut Inspection<'a>) {
        for comparison in [&self.rows, &self.value, &self.rows_affected].into_iter().flatten() {
            comparison.settings().for_each(|setting| inspection.setting(setting));
        }
        for expression in [&self.each_row, &self.any_row].into_iter().flatten() {
            inspection.decision(expression, None);
        }
        for (name, comparison) in [("rows", &self.rows), ("rows_affected", &self.rows_affected)] {
            if let Some(comparison) = comparison
                && !comparison.counts()
            {
                inspection.diagnostics.push(Diagnostic::error(
                    "expectation-type",
                    comparison.span,
                    format!("`{name}` is a count: it is compared with a whole number"),
                ));
            }
        }
        self.inspect_together(span, inspection);
    }

    fn inspect_together(&self, span: Span, inspection: &mut Inspection<'_>) {
        if self.is_empty() {
            inspection
                .diagnostics
                .push(Diagnostic::error("no-expectation", span, "nothing is expected here").help("for example `expect: {value: 0}`"));
        }
        if let Some(rate) = &self.error_rate
            && rate.warn.is_none()
            && rate.max.is_none()
        {
            inspection.diagnostics.push(Diagnostic::error("no-expectation", span, "`error_rate` needs `max`, `warn` or both"));
        }
        if let Some(code) = &self.throws {
            let valid = matches!(code.len(), 2..=5) && code.bytes().all(|byte| byte.is_ascii_digit() || byte.is_ascii_uppercase());
            if !valid {
                inspection.diagnostics.push(
                    Diagnostic::error("expectation-type", code.span, format!("`{}` is not an SQLSTATE", code.value))
                        .help("five characters such as \"23505\", or the two of its class such as \"23\"; for SQLite its extended result code such as \"2067\""),
                );
            }
            if self.count() > 1 {
                inspection.diagnostics.push(Diagnostic::error(
                    "expectation-conflict",
                    code.span,
                    "`throws` stands alone: a statement that fails has no result to judge",
                ));
            }
        }
    }

    fn is_empty(&self) -> bool {
        self.count() == 0
    }

    fn count(&self) -> usize {
        [
            self.rows.is_some(),
            self.value.is_some(),
            self.rows_affected.is_some(),
            self.empty.is_some(),
            self.each_row.is_some(),
            self.any_row.is_some(),
            self.columns.is_some(),
            self.throws.is_some(),
            self.error_rate.is_some(),
        ]
        .into_iter()
        .filter(|present| *present)
        .count()
    }

    /// One line for each, as a plan shows them.
    pub fn describe(&self, values: &Values) -> Vec<String> {
        let compared =
            |name: &str, comparison: &Option<Comparison>| comparison.as_ref().map(|it| format!("{name} {}", it.describe(values)));
        let expression = |name: &str, expression: &Option<Expression>| expression.as_ref().map(|it| format!("{name} {}", it.text.value));
        [
            compared("rows", &self.rows),
            compared("value", &self.value),
            compared("rows affected", &self.rows_affected),
            self.empty.map(|empty| (if empty { "no rows" } else { "at least one row" }).to_owned()),
            expression("each row:", &self.each_row),
            expression("any row:", &self.any_row),
            self.columns.as_ref().map(|columns| format!("columns {}", columns.join(", "))),
            self.throws.as_ref().map(|code| format!("an error of SQLSTATE {}", code.value)),
            self.error_rate.as_ref().map(ErrorRate::describe),
        ]
        .into_iter()
        .flatten()
        .collect()
    }

    /// Looks up everything they compare with, so that a missing value is noticed before
    /// anything runs.
    pub fn prepare<'a>(&'a self, values: &Values) -> Result<Prepared<'a>, StepError> {
        let resolve = |comparison: &Option<Comparison>| comparison.as_ref().map(|comparison| comparison.resolve(values)).transpose();
        Ok(Prepared {
            expectations: self,
            rows: resolve(&self.rows)?,
            value: resolve(&self.value)?,
            rows_affected: resolve(&self.rows_affected)?,
        })
    }
}

impl ErrorRate {
    fn describe(&self) -> String {
        let bounds = [self.max.map(|max| format!("at most {max}")), self.warn.map(|warn| format!("a finding above {warn}"))];
        format!("{} of {}: {}", self.failed, self.total, bounds.into_iter().flatten().collect::<Vec<_>>().join(", "))
    }
}

impl Prepared<'_> {
    /// Judges what was observed: findings that stop nothing, or why it is not as expected.
    pub fn judge(&self, observed: Observed<'_>) -> Result<Vec<String>, JudgeError> {
        if let Some(trouble) = &observed.rows.trouble {
            return Err(JudgeError { error: trouble.clone().into(), span: self.row_span() });
        }
        let mut findings = Vec::new();
        let failures: Vec<Failure> = [
            self.rows(observed),
            self.value(observed),
            self.rows_affected(observed),
            self.empty(observed),
            self.each_row(observed),
            self.any_row(observed),
            self.columns(observed),
            self.error_rate(observed, &mut findings),
        ]
        .into_iter()
        .flatten()
        .collect();
        if failures.is_empty() { Ok(findings) } else { Err(failed(failures)) }
    }

    fn row_span(&self) -> Option<Span> {
        self.expectations.each_row.as_ref().or(self.expectations.any_row.as_ref()).map(|expression| expression.text.span)
    }

    fn rows(&self, observed: Observed<'_>) -> Option<Failure> {
        self.count("rows", self.rows.as_ref()?, observed.rows.count, &self.expectations.rows, observed)
    }

    fn rows_affected(&self, observed: Observed<'_>) -> Option<Failure> {
        self.count("rows affected", self.rows_affected.as_ref()?, observed.rows_affected, &self.expectations.rows_affected, observed)
    }

    fn count(&self, name: &str, expected: &Expected, found: u64, written: &Option<Comparison>, observed: Observed<'_>) -> Option<Failure> {
        let accepted = expected.accepts(&Value::from(found), "int8");
        let found = match accepted {
            Ok(true) => return None,
            Ok(false) => found.to_string(),
            Err(reason) => format!("{found} ({reason})"),
        };
        let span = written.as_ref().map(|comparison| comparison.span);
        Some(Failure { expected: format!("{name} {expected}"), found, span, sample: observed.sample() })
    }

    fn value(&self, observed: Observed<'_>) -> Option<Failure> {
        let expected = self.value.as_ref()?;
        let found = match (observed.rows.count, observed.columns.first(), &observed.rows.first) {
            (0, ..) => "no row, where a value is asked for".to_owned(),
            (1, Some(_), Some(Value::Null)) => "NULL, where a value is asked for".to_owned(),
            (1, Some(column), Some(value)) => match expected.accepts(value, &column.type_name) {
                Ok(true) => return None,
                Ok(false) => show(value),
                Err(reason) => format!("{} ({reason})", show(value)),
            },
            (1, ..) => "a row without columns".to_owned(),
            (rows, ..) => format!("{rows} rows, where one value is asked for"),
        };
        let span = self.expectations.value.as_ref().map(|comparison| comparison.span);
        Some(Failure { expected: format!("value {expected}"), found, span, sample: observed.sample() })
    }

    fn empty(&self, observed: Observed<'_>) -> Option<Failure> {
        let empty = self.expectations.empty?;
        let expected = if empty { "no rows" } else { "at least one row" };
        let found = rows_in_words(observed.rows.count);
        (empty != (observed.rows.count == 0)).then(|| Failure { expected: expected.into(), found, span: None, sample: observed.sample() })
    }

    fn each_row(&self, observed: Observed<'_>) -> Option<Failure> {
        let expression = self.expectations.each_row.as_ref()?;
        let decision = &observed.rows.each;
        let broken = decision.fails + decision.unknown;
        if broken == 0 {
            return None;
        }
        let mut found = format!("{broken} of {} for which it does not hold", rows_in_words(observed.rows.count));
        if let Some(name) = &decision.null {
            found.push_str(&format!(" ({name} is NULL in {})", decision.unknown));
        }
        Some(Failure {
            expected: format!("each row: {}", expression.text.value),
            found,
            span: Some(expression.text.span),
            sample: watch::sample(observed.columns, &decision.broken_by, broken),
        })
    }

    fn any_row(&self, observed: Observed<'_>) -> Option<Failure> {
        let expression = self.expectations.any_row.as_ref()?;
        let found = match (observed.rows.any.holds, observed.rows.count) {
            (0, 0) => "no rows".to_owned(),
            (0, count) => format!("{} for which it does not hold", rows_in_words(count)),
            _ => return None,
        };
        Some(Failure {
            expected: format!("any row: {}", expression.text.value),
            found,
            span: Some(expression.text.span),
            sample: observed.sample(),
        })
    }

    fn columns(&self, observed: Observed<'_>) -> Option<Failure> {
        let expected = self.expectations.columns.as_ref()?;
        let found: Vec<&str> = observed.columns.iter().map(|column| column.name.as_str()).collect();
        (found != *expected).then(|| Failure {
            expected: format!("columns {}", expected.join(", ")),
            found: if found.is_empty() { "no columns".into() } else { found.join(", ") },
            span: None,
            sample: None,
        })
    }

    fn error_rate(&self, observed: Observed<'_>, findings: &mut Vec<String>) -> Option<Failure> {
        let wanted = self.expectations.error_rate.as_ref()?;
        let failure = |found: String| Some(Failure { expected: wanted.describe(), found, span: None, sample: observed.sample() });
        let rate = match observed.rows.rate.as_ref()? {
            Err(problem) => return failure(problem.clone()),
            Ok(_) if observed.rows.count == 0 => return failure("no row, where a rate is asked for".into()),
            Ok(rate) => *rate,
        };
        if rate.total == 0.0 && rate.failed == 0.0 {
            findings.push(format!("{} is 0, so its error rate says nothing", wanted.total));
            return None;
        }
        let exceeds = |bound: Option<Percent>| bound.is_some_and(|bound| rate.failed > bound.0 * rate.total);
        let share = if rate.total > 0.0 { format!(", {}", Percent(rate.failed / rate.total)) } else { String::new() };
        let found = format!("{} of {}{share}", rate.failed, rate.total);
        if exceeds(wanted.max) {
            return failure(found);
        }
        if exceeds(wanted.warn) {
            findings.push(format!("error rate above {}: {found}", wanted.warn.map(|warn| warn.to_string()).unwrap_or_default()));
        }
        None
    }
}

impl Observed<'_> {
    fn sample(&self) -> Option<Sample> {
        self.rows.sample(self.columns)
    }
}

/// An observation that is not as expected, and where the expectation stands.
#[derive(Debug)]
pub struct JudgeError {
    /// The failure.
    pub error: StepError,
    /// The first expectation that does not hold, where it has a place of its own.
    pub span: Option<Span>,
}

fn failed(failures: Vec<Failure>) -> JudgeError {
    let described: Vec<String> = failures.iter().map(|failure| format!("expected {}, found {}", failure.expected, failure.found)).collect();
    let mut error = StepError::new(ErrorKind::Expectation, described.join("; "));
    // What a single expectation is about, the message has said.
    for failure in failures.iter().filter(|_| failures.len() > 1) {
        error = error.fact("expected", &failure.expected).fact("found", &failure.found);
    }
    let span = failures.iter().find_map(|failure| failure.span);
    error.sample = failures.into_iter().find_map(|failure| failure.sample);
    JudgeError { error, span }
}

/// `1 row`, `12 rows`.
pub(super) fn rows_in_words(count: u64) -> String {
    match count {
        0 => "no rows".into(),
        1 => "1 row".into(),
        count => format!("{count} rows"),
    }
}

#[cfg(test)]
mod tests;
