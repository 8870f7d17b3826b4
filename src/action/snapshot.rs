//! `snapshot`: how many rows tables have and what is in them, all of one moment, and
//! whether that is still so.
//!
//! Responsible for what is written in a playbook and what a plan shows of it. Reading the
//! tables is `take`'s business, judging a difference `compare`'s.

mod compare;
mod condition;
mod table_name;
mod take;

use indexmap::IndexMap;
use schemars::JsonSchema;
use serde::Deserialize;

use super::sql::known;
use super::{Class, Description, Inspection, Loader, Perform, StepContext};
use crate::diagnostic::{Diagnostic, did_you_mean};
use crate::outcome::{StepError, StepResult};
use crate::source::{Span, Spanned};
use crate::template::{Place, Setting, Values};
use crate::units::Duration;
use compare::{EarlierStep, Tolerance};
use condition::Condition;
use table_name::TableName;
pub(super) use take::row_hash;

/// The key of `tolerance` that stands for all tables it does not name.
const DEFAULT: &str = "default";

/// Counts the rows of tables, all as of one moment, and keeps the counts with the run.
///
/// The tables are read in one `REPEATABLE READ`, `READ ONLY` transaction. With `expect`, the
/// step compares them with an earlier snapshot and fails where a table changed more than it
/// may. A fingerprint is the sum of the hashes of all rows, whatever their order; it also
/// changes when a column is added or changes its type.
///
/// ```yaml
/// snapshot: {tables: [users, racks, scans], with: [count, fingerprint]}
/// snapshot:
///   tables: [users, racks, scans]
///   expect: {unchanged_from: counts_before, tolerance: {default: exact, users: may_grow, scans: 5%}}
/// ```
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Snapshot {
    /// The tables, views included.
    #[schemars(length(min = 1))]
    pub tables: Spanned<Vec<Spanned<TableName>>>,
    /// What is kept of each table; the count always is. Default: `[count]`.
    #[serde(default)]
    pub with: Vec<Kept>,
    /// For each table named here, which rows count: what comes after `WHERE`, such as
    /// `created_at < {{ params.until }}`.
    #[serde(default, rename = "where")]
    pub conditions: IndexMap<Spanned<TableName>, Condition>,
    /// The connection. Default: the only one, or `main`.
    #[serde(default)]
    pub connection: Option<Spanned<String>>,
    /// The longest time reading one table may take.
    #[serde(default)]
    pub statement_timeout: Option<Setting<Duration>>,
    /// What must be found.
    #[serde(default)]
    pub expect: Option<SnapshotExpectation>,
}

/// What is kept of a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Kept {
    /// The number of rows.
    Count,
    /// A hash over the contents of all rows.
    Fingerprint,
}

/// What the tables are compared with.
///
/// ```yaml
/// expect: {unchanged_from: counts_before, tolerance: {default: exact, users: may_grow, scans: 5%}}
/// ```
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SnapshotExpectation {
    /// The step that took the earlier snapshot, of the same tables.
    pub unchanged_from: EarlierStep,
    /// How much each table may change, and `default` for those not named: `exact`, not at all
    /// (count and, where both snapshots have one, fingerprint); `may_grow`, no row fewer; a
    /// share such as `5%`, so many rows more or fewer, whatever the contents. Default: `exact`.
    #[serde(default)]
    pub tolerance: IndexMap<Spanned<String>, Tolerance>,
}

impl SnapshotExpectation {
    /// What is allowed for a table.
    fn tolerance(&self, table: &TableName) -> Tolerance {
        let named = self.tolerance.iter().find(|(name, _)| name.value != DEFAULT && name.parse().as_ref() == Ok(table));
        named.map(|(_, tolerance)| *tolerance).or_else(|| self.tolerance.get(DEFAULT).copied()).unwrap_or_default()
    }

    fn describe(&self, tables: &[Spanned<TableName>]) -> String {
        let tolerances: Vec<String> = tables.iter().map(|table| format!("{} {}", table.value, self.tolerance(table))).collect();
        format!("expects unchanged from {}: {}", self.unchanged_from.id(), tolerances.join(", "))
    }
}

impl Snapshot {
    fn keeps_fingerprints(&self) -> bool {
        self.with.contains(&Kept::Fingerprint)
    }

    /// The earlier step it is compared with, and where that is written.
    pub fn compared_with(&self) -> Option<Spanned<&str>> {
        let earlier = &self.expect.as_ref()?.unchanged_from;
        Some(Spanned::new(earlier.id(), earlier.span()))
    }

    /// Why it cannot be compared with an earlier snapshot: each counts rows the other does not.
    pub fn differs_from(&self, earlier: &Self, id: &str) -> Vec<Diagnostic> {
        let mut found = Vec::new();
        let mut problem = |span: Span, message: String| found.push(Diagnostic::error("snapshots-differ", span, message));
        for table in self.tables.iter().filter(|table| !earlier.tables.contains(table)) {
            problem(table.span, format!("`{}` is not among the tables of `{id}`, so nothing can be said of it", table.value));
        }
        for table in earlier.tables.iter().filter(|table| !self.tables.contains(table)) {
            problem(self.tables.span, format!("`{id}` also counts `{}`, which is missing here", table.value));
        }
        for table in self.tables.iter().filter(|table| earlier.tables.contains(table)) {
            let [here, there] = [self, earlier].map(|snapshot| snapshot.conditions.get(table).map(Condition::text));
            if here != there {
                problem(table.span, format!("`{}` has another `where` in `{id}`: other rows would be counted", table.value));
            }
        }
        found
    }

    fn inspect_names(&self, inspection: &mut Inspection<'_>) {
        if self.tables.is_empty() {
            inspection.diagnostics.push(Diagnostic::error("no-tables", self.tables.span, "at least one table is needed"));
        }
        for (index, table) in self.tables.iter().enumerate() {
            if self.tables[..index].contains(table) {
                inspection.diagnostics.push(Diagnostic::error("duplicate-table", table.span, format!("`{}` is named twice", table.value)));
            }
        }
        let tolerances = self.expect.iter().flat_map(|expect| expect.tolerance.keys());
        let tolerances = tolerances.filter(|name| name.value != DEFAULT).map(|name| (name.value.clone(), name.span));
        let conditions = self.conditions.keys().map(|name| (name.value.to_string(), name.span));
        for (name, span) in tolerances.chain(conditions) {
            if name.parse().is_ok_and(|name: TableName| self.tables.iter().any(|table| table.value == name)) {
                continue;
            }
            let known: Vec<String> = self.tables.iter().map(|table| table.value.to_string()).collect();
            let problem = Diagnostic::error("unknown-table", span, format!("`{name}` is none of the step's tables"));
            inspection.diagnostics.push(match did_you_mean(&name, known.iter().map(String::as_str)) {
                Some(similar) => problem.help(format!("did you mean `{similar}`?")),
                None => problem.help(format!("the tables are {}", known.join(", "))),
            });
        }
    }
}

impl Perform for Snapshot {
    fn class(&self) -> Class {
        Class::Read
    }

    fn load(&mut self, loader: &mut Loader<'_>) {
        for condition in self.conditions.values() {
            let problems = condition.diagnostics(loader.sources);
            loader.diagnostics.extend(problems);
        }
    }

    fn inspect<'a>(&'a self, inspection: &mut Inspection<'a>) {
        inspection.connection(self.connection.as_ref());
        for expression in self.conditions.values().flat_map(Condition::expressions) {
            inspection.value(expression, Place::Bind);
        }
        if let Some(timeout) = &self.statement_timeout {
            inspection.setting(timeout);
        }
        if let Some(expect) = &self.expect {
            inspection.expression(expect.unchanged_from.expression());
        }
        self.inspect_names(inspection);
    }

    fn describe(&self, values: &Values) -> Description {
        let mut details = vec!["BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY".to_owned()];
        for table in self.tables.iter() {
            let condition = self.conditions.get(table);
            details.extend(take::statement(table, condition, self.keeps_fingerprints()).lines().map(|line| line.trim_end().to_owned()));
            let expressions = condition.into_iter().flat_map(Condition::expressions).enumerate();
            details.extend(expressions.map(|(index, expression)| format!("  ${} = {}", index + 1, known(expression, values))));
        }
        if self.keeps_fingerprints() {
            details.push("(on SQLite the rows are read and hashed by runbook)".into());
        }
        details.extend(self.expect.iter().map(|expect| expect.describe(&self.tables)));
        let names: Vec<String> = self.tables.iter().map(|table| table.value.to_string()).collect();
        let compared = self.compared_with().map(|earlier| format!(", compared with {}", earlier.value));
        Description { summary: format!("snapshot of {}{}", names.join(", "), compared.unwrap_or_default()), details }
    }

    async fn run(&self, context: &StepContext) -> Result<StepResult, StepError> {
        // Looked up before anything is read, so that a missing one is noticed at once.
        let earlier = self.expect.as_ref().map(|expect| expect.unchanged_from.found(context)).transpose()?;
        let now = take::take(self, context).await?;
        match (&self.expect, earlier) {
            (Some(expect), Some(before)) => compare::judge(self, expect, &before, &now, context),
            _ => Ok(compare::result(&now, None)),
        }
    }
}

#[cfg(test)]
mod tests;
