//! The statements of a batch, as text: the author's parts with their values in place.
//!
//! Values become quoted literals, because every statement of the step is put together
//! from several texts; nothing here talks to a database.

use serde_json::Value;
use sha2::{Digest, Sha256};

use super::kept::{Found, kept_table};
use super::table::Table;
use super::{Restore, SqlBatch, is_batch};
use crate::action::Description;
use crate::outcome::{ErrorKind, StepError};
use crate::sql::{Kind as StatementKind, SqlText};
use crate::target::{Kind, identifier, text_literal, value_literal};
use crate::template::Values;

/// What the author wants, with all values known.
#[derive(Debug, Clone)]
pub(super) struct Spec {
    pub kind: Kind,
    /// Qualified and quoted.
    pub table: String,
    /// How the table's columns are qualified in a statement.
    pub name: String,
    pub condition: Option<String>,
    pub worklist: Option<String>,
    /// Column and expression.
    pub set: Vec<(String, String)>,
    pub update: Option<WholeStatement>,
    /// The column that `where` asks to be NULL and `set` fills.
    pub convergent: Option<String>,
    /// Names the step's own tables.
    tag: String,
    /// Where old values are kept, if they are.
    pub keeps: bool,
    pub kept_in: String,
    /// Old values that are put back.
    pub restored: Option<Found>,
}

/// An author's statement around its `{{ batch }}`.
#[derive(Debug, Clone)]
pub(super) struct WholeStatement {
    before: String,
    after: String,
    deletes: bool,
}

/// The rows of one batch, without `where`.
#[derive(Debug, Clone)]
pub(super) enum Range {
    /// Behind the first key, which may be missing, up to and with the last one.
    Keys { behind: Option<Vec<String>>, last: Vec<String> },
    /// One of the eight shares of such a range.
    Share { behind: Option<Vec<String>>, last: Vec<String>, share: u8 },
    /// Pages of the table's file, and up to which of the eight shares of their rows.
    Pages { first: u64, end: u64, share: u8 },
}

impl Spec {
    /// `owner` names the run and the step.
    pub(super) fn new(batch: &SqlBatch, values: &Values, owner: &str, kind: Kind) -> Result<Self, StepError> {
        let text = |text: &SqlText| inlined(text, values, kind);
        let parts: Vec<String> = batch.table.value.split('.').map(identifier).collect();
        Ok(Self {
            kind,
            name: parts.last().cloned().unwrap_or_default(),
            table: parts.join("."),
            condition: batch.condition.as_ref().map(text).transpose()?,
            worklist: batch.worklist.as_ref().map(text).transpose()?,
            set: batch.set().map(|(column, value)| Ok((identifier(column), text(value)?))).collect::<Result<_, StepError>>()?,
            update: batch.update.as_ref().map(|update| whole(update, values, kind)).transpose()?,
            convergent: convergent_column(batch).map(|column| identifier(&column)),
            tag: tag_of(owner),
            keeps: batch.keep_old,
            kept_in: kept_table(kind, owner),
            restored: None,
        })
    }

    /// The same, for putting old values back.
    pub(super) fn restoring(self, found: Found) -> Self {
        let set = found.columns.iter().enumerate().map(|(n, column)| (column.clone(), format!("worklist.old_{}", n + 1))).collect();
        Self { set, restored: Some(found), ..self }
    }

    /// Tells what the chunks were cut from. What is done to their rows may be edited between
    /// two processes of a run, which the engine asks a person to accept; the rows may not.
    pub(super) fn fingerprint(&self, key: &[String]) -> String {
        let restored = self.restored.as_ref().map(|found| &found.name);
        let rows = format!("{:?}", (&self.table, key, &self.condition, &self.worklist, self.keeps, restored));
        Sha256::digest(rows).iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// The table that keeps the worklist, or the old values.
    pub(super) fn worklist_table(&self) -> String {
        match &self.restored {
            Some(found) => found.name.clone(),
            None => own_table(self.kind, &format!("worklist_{}", self.tag)),
        }
    }

    /// `FROM … WHERE`: all rows that are to be changed.
    pub(super) fn source(&self, table: &Table) -> String {
        self.source_with(&self.worklist_table(), table)
    }

    /// The same while the worklist is a query yet.
    pub(super) fn source_beforehand(&self, table: &Table) -> String {
        match &self.worklist {
            Some(query) => self.source_with(&format!("({query}\n)"), table),
            None => self.source(table),
        }
    }

    fn source_with(&self, worklist: &str, table: &Table) -> String {
        let from = if self.has_worklist() {
            format!("{worklist} AS worklist JOIN {} ON {}", self.table, self.joined(table))
        } else {
            self.table.clone()
        };
        format!("FROM {from} WHERE {}", self.wanted().unwrap_or_else(|| "true".into()))
    }

    /// Whether rows go instead of being changed.
    pub(super) fn deletes(&self) -> bool {
        self.update.as_ref().is_some_and(|whole| whole.deletes)
    }

    /// SQL: whether the index of a row `i` of `pg_index` reads a column that is set. The index
    /// of a constraint has no dependency on columns, one over expressions no columns.
    pub(super) fn covered(&self) -> String {
        if self.set.is_empty() {
            return "false".into();
        }
        let columns: Vec<String> = self.set.iter().map(|(column, _)| text_literal(column.trim_matches('"'))).collect();
        format!(
            "EXISTS (SELECT FROM pg_catalog.pg_attribute a WHERE a.attrelid = i.indrelid AND a.attname IN ({}) AND (a.attnum = ANY (i.indkey) \
             OR EXISTS (SELECT FROM pg_catalog.pg_depend d WHERE d.classid = 'pg_catalog.pg_class'::regclass AND d.objid = i.indexrelid \
             AND d.refobjid = i.indrelid AND d.refobjsubid = a.attnum)))",
            columns.join(", ")
        )
    }

    /// `FROM … WHERE`: the keys of a range, whatever `where` says of their rows.
    pub(super) fn keys(&self, table: &Table, range: &Range) -> String {
        let from = if self.has_worklist() { self.worklist_table() } else { self.table.clone() };
        format!("FROM {from} AS {} WHERE {}", self.name, self.in_range(table, range))
    }

    /// Rows that `where` still finds, by key and by what should have been set.
    pub(super) fn unfinished(&self, table: &Table, most: usize) -> String {
        let set = self.set.iter().map(|(column, _)| column).filter(|column| !table.key.contains(column));
        let columns: Vec<&str> = table.key.iter().chain(set).map(String::as_str).collect();
        let condition = self.condition.as_deref().unwrap_or("true");
        format!("SELECT {} FROM {} WHERE ({condition}\n) LIMIT {most}", columns.join(", "), self.table)
    }

    /// The change of one batch.
    pub(super) fn change(&self, table: &Table, range: &Range) -> String {
        if let Some(whole) = &self.update {
            let picked: Vec<String> = std::iter::once(self.in_range(table, range)).chain(self.wanted()).collect();
            return format!("{}({}){}", whole.before, picked.join(" AND "), whole.after);
        }
        let set: Vec<String> = self.set.iter().map(|(column, value)| format!("{column} = ({value})")).collect();
        let from = if self.has_worklist() { format!(" FROM {} AS worklist", self.worklist_table()) } else { String::new() };
        format!("UPDATE {} SET {}{from} WHERE {}", self.table, set.join(", "), self.conditions(table, range).join(" AND "))
    }

    /// The tables that a batch reads.
    pub(super) fn tables(&self, table: &Table) -> String {
        if self.has_worklist() {
            format!("{} AS worklist JOIN {} ON {}", self.worklist_table(), self.table, self.joined(table))
        } else {
            self.table.clone()
        }
    }

    /// What picks the rows of a batch by `set`.
    pub(super) fn conditions(&self, table: &Table, range: &Range) -> Vec<String> {
        let joined = self.has_worklist().then(|| self.joined(table));
        joined.into_iter().chain([self.in_range(table, range)]).chain(self.wanted()).chain(self.fills()).collect()
    }

    /// Whether rows keep their keys and only some columns change, as far as the step says.
    pub(super) fn leaves_key(&self, key: &[String]) -> bool {
        !self.set.is_empty() && !self.set.iter().any(|(column, _)| key.contains(column))
    }

    /// Values come from a table of the step's own.
    pub(super) fn has_worklist(&self) -> bool {
        self.worklist.is_some() || self.restored.is_some()
    }

    /// A row stays out when it would be as unfinished as before: else it would be changed
    /// again and again.
    fn fills(&self) -> Option<String> {
        let column = self.convergent.as_ref()?;
        let (_, value) = self.set.iter().find(|(name, _)| name == column)?;
        Some(format!("({value}) IS NOT NULL"))
    }

    /// `where`. The worklist may have columns of the same names, so there it sees the table alone.
    fn wanted(&self) -> Option<String> {
        if let Some(found) = &self.restored {
            // What was changed since belongs to somebody else.
            let same = if self.kind == Kind::Postgres { "IS NOT DISTINCT FROM" } else { "IS" };
            let unchanged =
                found.columns.iter().enumerate().map(|(n, column)| format!("{}.{column} {same} worklist.new_{}", self.name, n + 1));
            return Some(unchanged.collect::<Vec<_>>().join(" AND "));
        }
        let condition = self.condition.as_ref()?;
        Some(match (&self.worklist, self.kind) {
            (Some(_), Kind::Postgres) => {
                format!("EXISTS (SELECT 1 FROM (SELECT {0}.*) AS {0} WHERE ({condition}\n))", self.name)
            }
            _ => format!("({condition}\n)"),
        })
    }

    fn joined(&self, table: &Table) -> String {
        let pairs: Vec<String> = table.key.iter().map(|column| format!("worklist.{column} = {}.{column}", self.name)).collect();
        pairs.join(" AND ")
    }

    fn in_range(&self, table: &Table, range: &Range) -> String {
        let key = self.key(table);
        match range {
            Range::Keys { behind, last } => between(&key, behind.as_deref(), last),
            Range::Share { behind, last, share } => {
                let shares = table.share.as_ref().map_or("0", |share| &share.sql);
                format!("{} AND ({shares}) = {share}", between(&key, behind.as_deref(), last))
            }
            Range::Pages { first, end, share } => {
                let place = format!("{}.ctid", self.name);
                let shares = match &table.share {
                    Some(share) if share.even => share.sql.clone(),
                    _ => format!("hashtid({place}) & 7"),
                };
                format!("{place} >= '({first},0)'::tid AND {place} < '({end},0)'::tid AND ({shares}) <= {share}")
            }
        }
    }

    /// `(racks.id)`, in the order of the index.
    pub(super) fn key(&self, table: &Table) -> String {
        let columns: Vec<String> = table.key.iter().map(|column| format!("{}.{column}", self.name)).collect();
        if columns.len() == 1 { columns.join("") } else { format!("({})", columns.join(", ")) }
    }

    /// The key's columns under their own names.
    pub(super) fn key_columns(&self, table: &Table) -> String {
        table.key.iter().map(|column| format!("{}.{column} AS {column}", self.name)).collect::<Vec<_>>().join(", ")
    }

    /// The key as a list for `ORDER BY`.
    pub(super) fn key_list(&self, table: &Table) -> String {
        table.key.iter().map(|column| format!("{}.{column}", self.name)).collect::<Vec<_>>().join(", ")
    }

    /// The key as one JSON text; keys are compared by the database alone. Its columns are those
    /// of `name`, a query that has picked the few rows whose key is wanted.
    pub(super) fn key_json(&self, table: &Table, name: &str) -> String {
        let texts: Vec<String> = table.key.iter().map(|column| format!("CAST({name}.{column} AS text)")).collect();
        match self.kind {
            Kind::Postgres => format!("json_build_array({})::text", texts.join(", ")),
            Kind::Sqlite => format!("json_array({})", texts.join(", ")),
        }
    }
}

/// A short name for what belongs to a step of a run.
pub(super) fn tag_of(owner: &str) -> String {
    Sha256::digest(owner).iter().take(6).map(|byte| format!("{byte:02x}")).collect()
}

/// `runbook.NAME`, or `runbook_NAME` where there are no schemas.
pub(super) fn own_table(kind: Kind, name: &str) -> String {
    match kind {
        Kind::Postgres => format!("runbook.{name}"),
        Kind::Sqlite => format!("runbook_{name}"),
    }
}

fn between(key: &str, behind: Option<&[String]>, last: &[String]) -> String {
    match behind {
        Some(behind) => format!("{key} > {} AND {key} <= {}", row(behind), row(last)),
        None => format!("{key} <= {}", row(last)),
    }
}

fn row(values: &[String]) -> String {
    let literals: Vec<String> = values.iter().map(|value| text_literal(value)).collect();
    if literals.len() == 1 { literals.join("") } else { format!("({})", literals.join(", ")) }
}

/// A text with its values in place.
pub(super) fn inlined(text: &SqlText, values: &Values, kind: Kind) -> Result<String, StepError> {
    first(text)?.inlined(|expression| values.evaluate(expression).map(|value| literal_of(&value, kind)).map_err(StepError::from))
}

fn whole(update: &SqlText, values: &Values, kind: Kind) -> Result<WholeStatement, StepError> {
    // No text of an author's holds it: YAML and the lexer refuse control characters.
    const MARK: &str = "\u{1}batch\u{1}";
    let text = first(update)?.inlined(|expression| {
        if is_batch(expression) {
            return Ok(MARK.to_owned());
        }
        values.evaluate(expression).map(|value| literal_of(&value, kind)).map_err(StepError::from)
    })?;
    let (before, after) = text.split_once(MARK).ok_or_else(|| StepError::new(ErrorKind::Template, "`{{ batch }}` is missing"))?;
    let deletes = first(update)?.statement.kind == StatementKind::Delete;
    Ok(WholeStatement { before: before.to_owned(), after: after.to_owned(), deletes })
}

fn first(text: &SqlText) -> Result<&crate::sql::BoundStatement, StepError> {
    let statements = text.statements().unwrap_or_default();
    statements.first().ok_or_else(|| StepError::new(ErrorKind::Sql, "the SQL text cannot be used; `runbook validate` says why"))
}

fn literal_of(value: &Value, kind: Kind) -> String {
    match (value, kind) {
        // SQLite compares by the value's own type.
        (Value::Number(number), Kind::Sqlite) => number.to_string(),
        (Value::Bool(value), Kind::Sqlite) => u8::from(*value).to_string(),
        (Value::Array(_), _) => value_literal(value, true),
        _ => value_literal(value, false),
    }
}

/// The column that `where` asks to be NULL, in the outermost AND, and `set` fills: such a
/// row is out of `where` once it is changed.
pub(super) fn convergent_column(batch: &SqlBatch) -> Option<String> {
    let condition = batch.condition.as_ref()?.written.to_lowercase();
    let table = batch.table.value.rsplit('.').next().unwrap_or_default().to_lowercase();
    conditions_for_null(&condition).into_iter().find_map(|column| {
        let column = column.strip_prefix(&format!("{table}.")).unwrap_or(&column).to_owned();
        batch.set().find(|(name, _)| **name == column).map(|(name, _)| name.clone())
    })
}

/// The columns of which all rows that fit are NULL. Whatever is hard to read gives none:
/// then the general order serves.
fn conditions_for_null(condition: &str) -> Vec<String> {
    if condition.contains(['"', '$', '\\']) || condition.contains("--") || condition.contains("/*") {
        return Vec::new();
    }
    // Every other piece is text; a doubled quote in it is an empty piece outside.
    let outside: Vec<&str> = condition.split('\'').step_by(2).collect();
    let outside = outside.join(" '' ").replace(['(', '{', '['], " ( ").replace([')', '}', ']'], " ) ");
    let mut depth = 0_i32;
    let mut conjuncts: Vec<Vec<&str>> = vec![Vec::new()];
    for word in outside.split_whitespace() {
        depth += i32::from(word == "(") - i32::from(word == ")");
        match word {
            "or" | "between" if depth == 0 => return Vec::new(),
            "and" if depth == 0 => conjuncts.push(Vec::new()),
            _ => conjuncts.last_mut().into_iter().for_each(|last| last.push(word)),
        }
    }
    let columns = conjuncts.into_iter().filter_map(|conjunct| match conjunct[..] {
        [column, "is", "null"] => Some(column.to_owned()),
        _ => None,
    });
    columns.collect()
}

/// The plan: what will be sent, with places for what only the database knows.
pub(super) fn describe(batch: &SqlBatch, values: &Values) -> Description {
    let shown = |text: &SqlText| {
        let known = |expression: &crate::template::Expression| -> Result<String, ()> {
            Ok(match values.evaluate(expression) {
                Ok(value) if !is_batch(expression) => literal_of(&value, Kind::Postgres),
                _ => format!("{{{{ {} }}}}", expression.text.value.trim()),
            })
        };
        first(text).ok().and_then(|statement| statement.inlined(known).ok()).unwrap_or_default()
    };
    let lines = |text: String| text.lines().map(str::trim_end).map(ToOwned::to_owned).collect::<Vec<_>>();
    let mut details = Vec::new();
    let condition = batch.condition.as_ref().map(&shown);
    if let Some(worklist) = &batch.worklist {
        details.push("the worklist, computed once:".to_owned());
        details.extend(lines(shown(worklist)).into_iter().map(|line| format!("  {line}")));
    }
    match (&batch.update, &batch.restore) {
        (Some(update), _) => details.extend(lines(shown(update))),
        (None, Some(restore)) => details.push(restores(batch, restore, values)),
        (None, None) => {
            let set: Vec<String> = batch.set().map(|(column, value)| format!("{column} = {}", shown(value))).collect();
            details.extend(lines(format!("UPDATE {} SET {}", batch.table.value, set.join(", "))));
            details.push(format!(" WHERE {{{{ batch }}}}{}", condition.as_ref().map(|text| format!(" AND {text}")).unwrap_or_default()));
        }
    }
    if batch.update.is_some()
        && let Some(condition) = &condition
    {
        details.push(format!("each batch also asks for {condition}"));
    }
    if batch.keep_old {
        let columns: Vec<&str> = batch.set().map(|(column, _)| column.as_str()).collect();
        details.push(format!("keeps the old values of {} for `restore`", columns.join(", ")));
    }
    let workers = batch.workers();
    let duration = batch.target_duration.as_ref().and_then(|setting| values.setting(setting).ok()).unwrap_or(super::pace::TARGET);
    details.push(format!(
        "in batches of about {duration}, {}, each a transaction of its own with its place in {}",
        if workers == 1 { "one at a time".into() } else { format!("{workers} at a time") },
        own_table(Kind::Postgres, "chunk"),
    ));
    if let Some(expect) = &batch.expect {
        for (comparison, what) in [(&expect.remaining, "remaining"), (&expect.rows_affected, "rows_affected")] {
            details.extend(comparison.iter().map(|comparison| format!("expects {what} {}", comparison.describe(values))));
        }
        let unique =
            |columns: &[crate::source::Spanned<String>]| columns.iter().map(|column| column.value.as_str()).collect::<Vec<_>>().join(", ");
        if !expect.unique.is_empty() {
            details.push(format!("expects ({}) to be unique", unique(&expect.unique)));
        }
        if !expect.not_null.is_empty() {
            details.push(format!("expects {} to be nowhere NULL", unique(&expect.not_null)));
        }
    }
    Description { summary: format!("batches over {}", batch.table.value), details }
}

fn restores(batch: &SqlBatch, restore: &Restore, values: &Values) -> String {
    let run = match &restore.run {
        Some(run) => format!("run {}", values.text(run).unwrap_or_else(|_| run.text.value.clone())),
        None => "this run".into(),
    };
    format!(
        "puts the values of {} back that step `{}` of {run} has overwritten, unless somebody changed them since",
        batch.table.value, restore.step.value
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_column_that_must_be_null_is_taken_for_one() {
        for condition in ["barcode is null", "a = 1 and\nbarcode is null", "(a = 1 or b = 2) and barcode is null and c in ('x', 'it''s')"] {
            assert_eq!(conditions_for_null(condition), ["barcode"], "{condition}");
        }
        for condition in [
            "a = 1 or barcode is null",
            "(a = 1)or b = 2 and barcode is null",
            "not (a = 1 and barcode is null)",
            "note = 'x and barcode is null and y'",
            "note = 'it''s and barcode is null and y'",
            "a between 1 and barcode is null",
            "a = 1 -- and\nand barcode is null",
            "not barcode is null",
        ] {
            assert_eq!(conditions_for_null(condition), [""; 0], "{condition}");
        }
    }
}
