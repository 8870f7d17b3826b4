//! `sql`: statements on one connection, with expectations.
//!
//! A `query` runs in a READ ONLY transaction that the server enforces. An `exec` runs
//! in one transaction, expectations are judged before its COMMIT, and a ledger row
//! commits with it; with `transaction: none` every statement stands alone.

mod execute;
mod validate;

use schemars::JsonSchema;
use serde::Deserialize;

use super::expect::Expectations;
use super::{Class, Description, Inspection, Loader, Perform, Recovery, StepContext};
use crate::outcome::{ErrorKind, StepError, StepResult};
use crate::source::{Span, Spanned};
use crate::sql::{BoundStatement, Kind, SqlText};
use crate::target;
use crate::template::{Expression, Place, Setting, Values};
use crate::units::Duration;

/// Rows kept of a result where the step says nothing else.
const SAMPLE: usize = 20;

/// Runs SQL: `query` reads, `exec` may write, `file` is a file of statements.
///
/// ```yaml
/// sql: {query: "SELECT count(*) FROM racks WHERE barcode IS NULL", expect: {value: 0}}
/// sql:
///   exec: UPDATE audit_sessions SET status = 'completed' WHERE id = {{ params.session }}
///   expect: {rows_affected: 1}          # checked before COMMIT: anything else rolls back
/// sql: {file: sql/idx_scans.sql, transaction: none}     # CREATE INDEX CONCURRENTLY
/// ```
#[derive(Debug, Deserialize)]
#[serde(try_from = "Fields")]
pub struct Sql {
    source: Source,
    writes: bool,
    fields: Fields,
}

/// Where the statements come from.
#[derive(Debug)]
enum Source {
    Inline(SqlText),
    /// A file's text is there once it has been loaded.
    File(Spanned<String>, Option<SqlText>),
}

/// The fields as they are written.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(extend("oneOf" = [{"required": ["query"]}, {"required": ["exec"]}, {"required": ["file"]}]))]
struct Fields {
    /// Statements that only read; the server makes sure of it.
    #[serde(default)]
    query: Option<SqlText>,
    /// Statements that may change something.
    #[serde(default)]
    exec: Option<SqlText>,
    /// A file of statements, relative to the playbook; `{{ }}` is a bind parameter in it too.
    #[serde(default)]
    file: Option<Spanned<String>>,
    /// What the statements of a file may do. Default: `write`.
    #[serde(default)]
    mode: Option<Mode>,
    /// The connection. Default: the only one, or `main`.
    #[serde(default)]
    connection: Option<Spanned<String>>,
    /// One transaction around all statements, or none. Default: `single`.
    #[serde(default)]
    transaction: Spanned<Transaction>,
    /// The transaction's isolation level. Default: the server's.
    #[serde(default)]
    isolation: Option<Spanned<Isolation>>,
    /// What must be found; in a transaction it is checked before COMMIT.
    #[serde(default)]
    expect: Option<Spanned<Expectations>>,
    /// How many rows of the result are kept for the report and for later steps. Default: 20.
    #[serde(default)]
    #[schemars(range(max = 10000))]
    sample: Option<Spanned<usize>>,
    /// The longest wait for one lock.
    #[serde(default)]
    lock_timeout: Option<Setting<Duration>>,
    /// The longest time one statement may take.
    #[serde(default)]
    statement_timeout: Option<Setting<Duration>>,
    /// Where the proof of the effect is kept: in the target database, or nowhere, so that
    /// an interruption leaves the step `unknown`. Default: as on the connection.
    #[serde(default)]
    ledger: Option<Spanned<Ledger>>,
}

/// What a file's statements may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum Mode {
    /// Only read, as a `query`.
    Read,
    /// Change something, as an `exec`.
    Write,
}

/// How statements share a transaction.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum Transaction {
    /// One for all of them: everything or nothing.
    #[default]
    Single,
    /// Each statement commits by itself.
    None,
}

/// Isolation levels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum Isolation {
    /// Each statement sees what was committed before it.
    ReadCommitted,
    /// All statements see the same snapshot.
    RepeatableRead,
    /// As if run one after the other.
    Serializable,
}

/// Where the proof of an effect is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum Ledger {
    /// In the target database, committed together with the effect.
    Target,
    /// Nowhere.
    None,
}

impl TryFrom<Fields> for Sql {
    type Error = &'static str;

    fn try_from(mut fields: Fields) -> Result<Self, Self::Error> {
        let (source, writes) = match (fields.query.take(), fields.exec.take(), fields.file.take()) {
            (Some(text), None, None) => (Source::Inline(text), false),
            (None, Some(text), None) => (Source::Inline(text), true),
            (None, None, Some(file)) => (Source::File(file, None), fields.mode != Some(Mode::Read)),
            _ => return Err("exactly one of `query`, `exec` and `file` is needed"),
        };
        Ok(Self { source, writes, fields })
    }
}

impl JsonSchema for Sql {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Sql".into()
    }
    fn json_schema(generator: &mut schemars::SchemaGenerator) -> schemars::Schema {
        let mut schema = Fields::json_schema(generator);
        schema.insert(
            "description".into(),
            "Runs SQL: `query` reads in a READ ONLY transaction, `exec` may write, `file` is a file of statements.".into(),
        );
        schema.insert(
            "examples".into(),
            serde_json::json!([
                { "query": "SELECT count(*) FROM racks WHERE barcode IS NULL", "expect": { "value": 0 } },
                { "exec": "UPDATE audit_sessions SET status = 'completed' WHERE id = {{ params.session }}", "expect": { "rows_affected": 1 } },
                { "file": "sql/idx_scans.sql", "transaction": "none" }
            ]),
        );
        schema
    }
}

impl Sql {
    /// Where its statements, or the name of their file, are written.
    pub fn span(&self) -> Span {
        match &self.source {
            Source::Inline(text) => text.written.span,
            Source::File(name, _) => name.span,
        }
    }

    fn text(&self) -> Option<&SqlText> {
        match &self.source {
            Source::Inline(text) => Some(text),
            Source::File(_, text) => text.as_ref(),
        }
    }

    fn statements(&self) -> Result<&[BoundStatement], StepError> {
        let text = self.text().ok_or_else(|| StepError::new(ErrorKind::Io, "the SQL file was not read"))?;
        text.statements().map_err(|problems| {
            let message = problems.first().map_or_else(String::new, ToString::to_string);
            StepError::new(ErrorKind::Sql, message)
        })
    }

    fn transaction(&self) -> Transaction {
        self.fields.transaction.value
    }

    fn expectations(&self) -> Option<&Expectations> {
        self.fields.expect.as_ref().map(|expect| &expect.value)
    }

    fn sample(&self) -> usize {
        self.fields.sample.as_ref().map_or(SAMPLE, |sample| sample.value)
    }

    fn isolation(&self) -> Option<target::Isolation> {
        self.fields.isolation.as_ref().map(|isolation| match isolation.value {
            Isolation::ReadCommitted => target::Isolation::ReadCommitted,
            Isolation::RepeatableRead => target::Isolation::RepeatableRead,
            Isolation::Serializable => target::Isolation::Serializable,
        })
    }

    /// Whether a row in the target's ledger proves the effect, unless the connection
    /// keeps none.
    fn keeps_ledger(&self) -> bool {
        let wanted = self.fields.ledger.as_ref().is_none_or(|ledger| ledger.value == Ledger::Target);
        self.writes && self.transaction() == Transaction::Single && wanted
    }
}

impl Perform for Sql {
    fn class(&self) -> Class {
        let unforeseeable = |statement: &BoundStatement| matches!(statement.statement.kind, Kind::Do | Kind::Call);
        match self.statements() {
            _ if !self.writes => Class::Read,
            Ok(statements) if statements.iter().any(unforeseeable) => Class::NotPreviewable,
            _ => Class::Change,
        }
    }

    fn recovery(&self) -> Recovery {
        match (self.writes, self.keeps_ledger()) {
            (false, _) => Recovery::Repeat,
            (true, true) => Recovery::Ledger,
            (true, false) => Recovery::Unknown,
        }
    }

    fn load(&mut self, loader: &mut Loader<'_>) {
        if let Source::File(name, text) = &mut self.source {
            *text = validate::read(name, loader);
        }
        validate::report(self, loader);
    }

    fn inspect<'a>(&'a self, inspection: &mut Inspection<'a>) {
        inspection.connection(self.fields.connection.as_ref());
        for expression in self.text().into_iter().flat_map(SqlText::expressions) {
            inspection.value(expression, Place::Bind);
        }
        if let Some(expect) = &self.fields.expect {
            expect.value.inspect(expect.span, inspection);
        }
        for timeout in [&self.fields.lock_timeout, &self.fields.statement_timeout].into_iter().flatten() {
            inspection.setting(timeout);
        }
    }

    fn describe(&self, values: &Values) -> Description {
        let statements = self.statements().unwrap_or_default();
        let mut details = Vec::new();
        if let Source::File(name, _) = &self.source {
            details.push(format!("-- {}", name.value));
        }
        for statement in statements {
            details.extend(sent_lines(statement, statements.len() > 1));
            details.extend(
                statement
                    .expressions
                    .iter()
                    .enumerate()
                    .map(|(index, expression)| format!("  ${} = {}", index + 1, known(expression, values))),
            );
        }
        if self.transaction() == Transaction::None {
            details.push("without a transaction: each statement commits by itself".into());
        }
        let expected = self.expectations().map(|expectations| expectations.describe(values)).unwrap_or_default();
        details.extend(expected.into_iter().map(|line| format!("expects {line}")));
        Description { summary: summary(statements), details }
    }

    async fn run(&self, context: &StepContext) -> Result<StepResult, StepError> {
        execute::run(self, context).await
    }
}

/// `UPDATE racks; 2 × INSERT`.
fn summary(statements: &[BoundStatement]) -> String {
    const SHOWN: usize = 3;
    let line = |statement: &BoundStatement| match statement.statement.tables.as_slice() {
        [] => statement.statement.kind.to_string(),
        tables => format!("{} {}", statement.statement.kind, tables.join(", ")),
    };
    let mut parts: Vec<String> = statements.iter().take(SHOWN).map(line).collect();
    if statements.len() > SHOWN {
        parts.push(format!("{} more", statements.len() - SHOWN));
    }
    parts.join("; ")
}

/// A statement as it is sent, line by line.
fn sent_lines(statement: &BoundStatement, terminated: bool) -> Vec<String> {
    let mut lines: Vec<String> = statement.text.lines().map(|line| line.trim_end().to_owned()).collect();
    if let Some(last) = lines.last_mut().filter(|_| terminated) {
        last.push(';');
    }
    lines
}

/// A bound value, or the step that will give it.
pub(super) fn known(expression: &Expression, values: &Values) -> String {
    let source = &expression.text.value;
    if let Ok(value) = values.evaluate(expression) {
        return format!("{value}  ({source})");
    }
    let steps = expression.references.iter().filter(|reference| reference.path[0] == "steps");
    let mut ids: Vec<&str> = steps.filter_map(|reference| reference.path.get(1).map(String::as_str)).collect();
    ids.dedup();
    if ids.is_empty() { format!("known when it runs  ({source})") } else { format!("known after {}  ({source})", ids.join(", ")) }
}

#[cfg(test)]
mod postgres_tests;
#[cfg(test)]
mod tests;
