//! A condition in SQL that says which rows of a table count.

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer};

use crate::diagnostic::Diagnostic;
use crate::source::{Sources, Spanned};
use crate::sql::{SqlProblem, SqlText, split};
use crate::template::Expression;
use crate::yaml::span_within;

/// What stands around a condition while it is read: only a whole statement can be.
const BEFORE: &str = "SELECT 1 FROM t WHERE (\n";
const AFTER: &str = "\n)";

/// What comes after `WHERE`.
#[derive(Debug)]
pub struct Condition {
    written: Spanned<String>,
    /// With `$1`, `$2` … in place of the placeholders.
    sql: String,
    expressions: Vec<Expression>,
    problems: Vec<SqlProblem>,
}

impl Condition {
    fn read(written: Spanned<String>) -> Self {
        let around = SqlText::read(Spanned::new(format!("{BEFORE}{}{AFTER}", written.value), written.span));
        let mut problems = around.problems().to_vec();
        let mut expressions: Vec<Expression> = around.expressions().cloned().collect();
        let sent = around.sound_statements().next().map(|statement| statement.text.as_str()).unwrap_or_default();
        let sql = sent.strip_prefix(BEFORE).and_then(|sent| sent.strip_suffix(AFTER)).map(str::trim);
        if problems.is_empty() && (sql.is_none() || !is_single(&written)) {
            problems.push(SqlProblem {
                code: "not-a-condition",
                message: "this is not a condition".into(),
                help: "write what comes after WHERE, such as `created_at < '2026-01-01'`, without a semicolon".into(),
                range: BEFORE.len()..BEFORE.len() + written.len(),
            });
        }
        // Places count in what the author wrote.
        let own = |offset: usize| offset.saturating_sub(BEFORE.len()).min(written.len());
        for problem in &mut problems {
            problem.range = own(problem.range.start)..own(problem.range.end);
        }
        for reference in expressions.iter_mut().flat_map(|expression| &mut expression.references) {
            reference.range = own(reference.range.start)..own(reference.range.end);
        }
        Self { sql: sql.unwrap_or_default().to_owned(), expressions, problems, written }
    }

    /// As written.
    pub(super) fn text(&self) -> &str {
        self.written.trim()
    }

    /// As sent.
    pub(super) fn sql(&self) -> &str {
        &self.sql
    }

    /// What its parameters hold, `$1` first.
    pub(super) fn expressions(&self) -> impl Iterator<Item = &Expression> {
        self.expressions.iter()
    }

    /// Everything that is wrong with it.
    pub(super) fn diagnostics(&self, sources: &Sources) -> Vec<Diagnostic> {
        let place = |problem: &SqlProblem| span_within(sources, self.written.span, &self.written, problem.range.clone());
        let told =
            |problem: &SqlProblem| Diagnostic::error(problem.code, place(problem), problem.message.clone()).help(problem.help.clone());
        self.problems.iter().map(told).collect()
    }
}

/// Whether a text, in parentheses, does not hold several statements or none.
fn is_single(text: &str) -> bool {
    match split(text).statements.as_slice() {
        [only] => !text[only.range.end..].trim_start().starts_with(';'),
        _ => false,
    }
}

impl<'de> Deserialize<'de> for Condition {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Spanned::<String>::deserialize(deserializer).map(Self::read)
    }
}

impl JsonSchema for Condition {
    fn schema_name() -> Cow<'static, str> {
        "Condition".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "description": "what comes after WHERE; `{{ }}` holds a bind parameter" })
    }
}
