//! What is wrong with an `sql` action that its fields' types can't say.

use super::{Source, Sql, Transaction};
use crate::action::Loader;
use crate::diagnostic::Diagnostic;
use crate::source::{Span, Spanned};
use crate::sql::{BoundStatement, SqlText};
use crate::yaml::span_within;

/// Reads the file of statements.
pub(super) fn read(name: &Spanned<String>, loader: &mut Loader<'_>) -> Option<SqlText> {
    if name.value.contains("{{") {
        loader.diagnostics.push(
            Diagnostic::error(
                "templated-file",
                name.span,
                "the name of an SQL file is written out: what runs must be known before the run",
            )
            .help("for a choice between files, write a step for each with `when`"),
        );
        return None;
    }
    let (source, text) = loader.read(&name.value, name.span)?;
    let span = Span { source, start: 0, end: text.len() as u32 };
    Some(SqlText::read(Spanned::new(text, span)))
}

/// Reports everything that can be seen without a database.
pub(super) fn report(sql: &Sql, loader: &mut Loader<'_>) {
    if let Some(text) = sql.text() {
        let span = |range| span_within(loader.sources, text.written.span, &text.written, range);
        let problems = text.problems().iter().map(|problem| {
            Diagnostic::error(problem.code, span(problem.range.clone()), problem.message.clone()).help(problem.help.clone())
        });
        let misfits = text.sound_statements().filter_map(|statement| misfit(sql, statement, || span(first_line(text, statement))));
        let found: Vec<_> = problems.chain(misfits).collect();
        loader.diagnostics.extend(found);
    }
    loader.diagnostics.extend(conflicts(sql));
}

/// A place a person recognises; whole statements are long.
fn first_line(text: &SqlText, statement: &BoundStatement) -> std::ops::Range<usize> {
    let start = statement.range.start;
    let line = text.written[statement.range.clone()].lines().next().unwrap_or_default();
    start..start + line.len()
}

/// A statement that cannot run the way the step runs it.
fn misfit(sql: &Sql, statement: &BoundStatement, span: impl Fn() -> Span) -> Option<Diagnostic> {
    let kind = &statement.statement.kind;
    if statement.statement.transaction_control {
        return Some(
            Diagnostic::error("transaction-control", span(), format!("{kind} is the engine's to say: it opens and ends the transaction"))
                .help("remove it; all statements of the step run in one transaction, or with `transaction: none` in none"),
        );
    }
    if !sql.writes && !statement.statement.reads_only {
        let (found, help) = match &sql.source {
            Source::Inline(_) => ("a `query` only reads", "use `exec`, which a reviewer finds"),
            Source::File(..) => ("a file with `mode: read` only reads", "use `mode: write`"),
        };
        return Some(Diagnostic::error("query-writes", span(), format!("{found}, but this {kind} does more")).help(help));
    }
    if sql.transaction() == Transaction::Single && !statement.statement.transactional {
        return Some(
            Diagnostic::error("not-transactional", span(), format!("{kind} cannot run inside a transaction"))
                .help("write `transaction: none`, and `done_when` so that an interruption can be settled"),
        );
    }
    None
}

/// Fields that contradict each other.
fn conflicts(sql: &Sql) -> Vec<Diagnostic> {
    let fields = &sql.fields;
    let mut found = Vec::new();
    let mut conflict = |span: Span, message: &str| found.push(Diagnostic::error("conflicting-fields", span, message));
    if fields.mode.is_some() && matches!(sql.source, Source::Inline(_)) {
        conflict(sql.span(), "`mode` is for a `file`: a `query` reads, an `exec` writes");
    }
    if sql.transaction() == Transaction::None {
        if !sql.writes {
            conflict(fields.transaction.span, "a query always runs in a READ ONLY transaction");
        }
        if let Some(isolation) = &fields.isolation {
            conflict(isolation.span, "without a transaction there is no isolation level");
        }
    }
    if let Some(ledger) = &fields.ledger
        && (!sql.writes || sql.transaction() == Transaction::None)
    {
        conflict(ledger.span, "the ledger records what one transaction writes; this step has no such transaction");
    }
    if let Some(comparison) = sql.expectations().and_then(|expectations| expectations.rows_affected.as_ref())
        && !sql.writes
    {
        conflict(comparison.span, "a query affects no rows; `rows` counts those it finds");
    }
    found
}
