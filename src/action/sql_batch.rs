//! `sql_batch`: one change to many rows, in batches that survive anything.
//!
//! Each batch is a transaction that also moves a cursor in the target database, so
//! every row is changed exactly once whatever breaks in between. This file holds what
//! an author writes; how it becomes statements is `statements`, which rows belong
//! together `chunks`, what one worker does `worker`, and when the step is done `finish`.

mod chunks;
mod finish;
mod kept;
mod pace;
mod preview;
mod run;
mod statements;
mod table;
mod talk;
mod throttle;
mod worker;

use indexmap::IndexMap;
use schemars::JsonSchema;
use serde::Deserialize;

use super::expect::Comparison;
use super::{Class, Description, Inspection, Loader, Look, Perform, Recovery, StepContext};
use crate::diagnostic::Diagnostic;
use crate::outcome::{StepError, StepResult};
use crate::source::Spanned;
use crate::sql::{Kind, SqlText};
use crate::template::{Expression, Place, Setting, Template, Values};
use crate::units::{ByteSize, Duration};
use crate::yaml::span_within;

/// The placeholder of a full statement.
const BATCH: &str = "batch";

/// Changes many rows in batches, each a short transaction; resumes after the last one.
///
/// ```yaml
/// sql_batch:
///   table: racks
///   where: barcode IS NULL
///   set: {barcode: "'R-' || lpad(id::text, 8, '0')"}
///   workers: 2
///   expect: {remaining: 0, unique: [barcode]}
/// ```
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(extend("oneOf" = [{"required": ["set"]}, {"required": ["update"]}, {"required": ["restore"]}], "examples" = [
    {"table": "racks", "where": "barcode IS NULL", "set": {"barcode": "'R-' || id"}, "expect": {"remaining": 0}},
    {"table": "scans", "update": "DELETE FROM scans WHERE {{ batch }} AND scanned_at < now() - interval '2 years'", "workers": 2}
]))]
pub struct SqlBatch {
    /// The table whose rows are changed, e.g. `racks` or `audit.racks`.
    table: Spanned<String>,
    /// The columns that name a row, unique and NOT NULL. Default: the primary key, or else
    /// the first other unique index over columns that are all NOT NULL.
    #[serde(default)]
    key: Vec<Spanned<String>>,
    /// Which rows: a condition over the table's columns. Default: all.
    #[serde(default, rename = "where")]
    condition: Option<SqlText>,
    /// A query that is computed once, before the first batch, and kept until the end: the key's
    /// columns and the values that `set` reads as `worklist.COLUMN`. Only its rows are changed.
    #[serde(default)]
    worklist: Option<SqlText>,
    /// New values by column: SQL expressions over the table's columns and the worklist's.
    #[serde(default)]
    set: Option<IndexMap<String, SqlText>>,
    /// A whole UPDATE or DELETE instead of `set`; `{{ batch }}` stands for the condition that
    /// picks a batch's rows, and names the table by its own name.
    #[serde(default)]
    update: Option<SqlText>,
    /// Instead of `set`: puts back what an earlier step kept by `keep_old`. Rows that somebody
    /// has changed since keep their values, and are counted.
    #[serde(default)]
    restore: Option<Restore>,
    /// Writes down the values that `set` overwrites, in a table of runbook's own in the same
    /// database, until `restore` has put all of them back.
    #[serde(default)]
    keep_old: bool,
    /// In which order rows are visited. Default: `auto`.
    #[serde(default)]
    order: Spanned<Order>,
    /// How many batches are in work at a time. Default: 1; on SQLite there is only one.
    #[serde(default)]
    #[schemars(range(min = 1, max = 16))]
    workers: Option<Spanned<u32>>,
    /// How long a batch should take; its size adapts to this. Default: 500ms.
    #[serde(default)]
    target_duration: Option<Setting<Duration>>,
    /// Rows of the first batch. Default: 1000.
    #[serde(default)]
    #[schemars(range(min = 1, max = 100_000))]
    batch_size: Option<u64>,
    /// When to pause for the sake of others.
    #[serde(default)]
    throttle: Option<Throttle>,
    /// What must hold at the end.
    #[serde(default)]
    expect: Option<Expect>,
    /// The connection. Default: the only one, or `main`.
    #[serde(default)]
    connection: Option<Spanned<String>>,
    /// The longest wait for one lock.
    #[serde(default)]
    lock_timeout: Option<Setting<Duration>>,
    /// The longest time one statement may take; a batch that exceeds it is halved.
    #[serde(default)]
    statement_timeout: Option<Setting<Duration>>,
}

/// In which order rows are visited.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum Order {
    /// `physical` where that is sound and of use, otherwise `key`; the step says which and why.
    #[default]
    Auto,
    /// By the key.
    Key,
    /// By place in the table's file, which leaves less bloat and is faster. Only where `where`
    /// asks for `COLUMN IS NULL` and `set` fills that column.
    Physical,
}

/// Whose old values are put back.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Restore {
    /// The id of the step that kept them.
    step: Spanned<String>,
    /// The run it belongs to. Default: this one.
    #[serde(default)]
    run: Option<Template>,
}

/// When to pause between batches.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Throttle {
    /// Pauses while a replica is further behind than this time.
    #[serde(default)]
    max_lag: Option<Setting<Duration>>,
    /// Pauses while a replica has not replayed more than this.
    #[serde(default)]
    max_lag_bytes: Option<ByteSize>,
    /// Pauses while more sessions than this wait for locks of ours.
    #[serde(default)]
    max_blocked: Option<u32>,
    /// Pauses while more WAL files than this wait to be archived.
    #[serde(default)]
    max_archive_backlog: Option<u32>,
    /// Pauses while a vacuum works on the table.
    #[serde(default)]
    vacuum: Option<bool>,
    /// Pauses while this query's value is true, or a number above 0.
    #[serde(default)]
    query: Option<SqlText>,
}

/// What must hold when all batches are done.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Expect {
    /// How many rows `where` still finds.
    #[serde(default)]
    remaining: Option<Comparison>,
    /// How many rows were changed in all.
    #[serde(default)]
    rows_affected: Option<Comparison>,
    /// Columns that together are unique in the whole table.
    #[serde(default)]
    unique: Vec<Spanned<String>>,
    /// Columns that are nowhere NULL.
    #[serde(default)]
    not_null: Vec<Spanned<String>>,
}

impl SqlBatch {
    /// Every SQL text with what it is.
    fn texts(&self) -> impl Iterator<Item = (&SqlText, Role)> {
        let fragments = self.condition.iter().chain(self.set().map(|(_, value)| value)).map(|text| (text, Role::Fragment));
        let queries = self.worklist.iter().chain(self.throttle.iter().filter_map(|throttle| throttle.query.as_ref()));
        fragments.chain(queries.map(|text| (text, Role::Query))).chain(self.update.iter().map(|text| (text, Role::Change)))
    }

    /// Column and new value.
    fn set(&self) -> impl Iterator<Item = (&String, &SqlText)> {
        self.set.iter().flatten()
    }

    /// What does not fit together of what is to be done to the rows.
    fn wrong_change(&self) -> Option<&'static str> {
        let ways = [self.set.is_some(), self.update.is_some(), self.restore.is_some()];
        match () {
            () if ways.iter().filter(|way| **way).count() > 1 => Some("exactly one of `set`, `update` and `restore` says what is changed"),
            () if self.set.is_some() && self.set().next().is_none() => Some("`set` names no column"),
            () if self.worklist.is_some() && self.set.is_none() => {
                Some("a `worklist` gives its values to `set`; an `update` joins what it needs by itself, `restore` has its own")
            }
            () if self.restore.is_some() && self.condition.is_some() => Some("`restore` takes the rows that were kept; leave `where` out"),
            () if self.keep_old && self.set.is_none() => Some("`keep_old` keeps what `set` overwrites, and there is no `set`"),
            () => None,
        }
    }

    fn workers(&self) -> u32 {
        self.workers.as_ref().map_or(1, |workers| workers.value)
    }
}

/// What a text must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    /// A part of a statement.
    Fragment,
    /// One query.
    Query,
    /// One UPDATE or DELETE.
    Change,
}

/// The expression of `{{ batch }}`.
fn is_batch(expression: &Expression) -> bool {
    expression.text.value.trim() == BATCH
}

impl Perform for SqlBatch {
    fn class(&self) -> Class {
        Class::Change
    }

    fn recovery(&self) -> Recovery {
        Recovery::Ledger
    }

    fn load(&mut self, loader: &mut Loader<'_>) {
        for (text, role) in self.texts() {
            let place = |range| span_within(loader.sources, text.written.span, &text.written, range);
            let problems = text.problems().iter().map(|problem| {
                Diagnostic::error(problem.code, place(problem.range.clone()), problem.message.clone()).help(problem.help.clone())
            });
            let wrong = wrong_form(text, role).map(|wrong| Diagnostic::error("batch-statement", text.written.span, wrong));
            let found: Vec<Diagnostic> = problems.chain(wrong).collect();
            loader.diagnostics.extend(found);
        }
    }

    fn inspect<'a>(&'a self, inspection: &mut Inspection<'a>) {
        inspection.connection(self.connection.as_ref());
        for expression in self.texts().flat_map(|(text, _)| text.expressions()).filter(|expression| !is_batch(expression)) {
            inspection.value(expression, Place::Bind);
        }
        let lag = self.throttle.as_ref().and_then(|throttle| throttle.max_lag.as_ref());
        for setting in [&self.target_duration, &self.lock_timeout, &self.statement_timeout].into_iter().flatten().chain(lag) {
            inspection.setting(setting);
        }
        let expect = self.expect.as_ref();
        for comparison in expect.iter().flat_map(|expect| [&expect.remaining, &expect.rows_affected]).flatten() {
            comparison.settings().for_each(|setting| inspection.setting(setting));
        }
        if let Some(run) = self.restore.as_ref().and_then(|restore| restore.run.as_ref()) {
            inspection.template(run, Place::Argument);
        }
        if let Some(message) = self.wrong_change() {
            inspection.diagnostics.push(Diagnostic::error("batch-change", self.table.span, message));
        }
        if expect.is_some_and(|expect| expect.remaining.is_some()) && self.condition.is_none() {
            let message = "`remaining` counts what `where` still finds, and there is no `where`";
            inspection.diagnostics.push(Diagnostic::error("batch-remaining", self.table.span, message));
        }
        if self.order.value == Order::Physical && statements::convergent_column(self).is_none() {
            let message = "`order: physical` needs a `where` that asks for `COLUMN IS NULL` and a `set` that fills that column";
            inspection.diagnostics.push(
                Diagnostic::error("batch-order", self.order.span, message)
                    .help("rows that move while it runs are found again by `where`; without it they could be changed twice or not at all"),
            );
        }
    }

    fn describe(&self, values: &Values) -> Description {
        statements::describe(self, values)
    }

    async fn preview(&self, look: &Look<'_>) -> Result<Vec<String>, StepError> {
        preview::preview(self, look).await
    }

    async fn run(&self, context: &StepContext) -> Result<StepResult, StepError> {
        run::run(self, context).await
    }
}

/// What is wrong with a text in its place.
fn wrong_form(text: &SqlText, role: Role) -> Option<String> {
    let statements = text.statements().ok()?;
    let [statement] = statements else { return Some("one statement is expected here, without `;` between".into()) };
    let batches = statement.expressions.iter().filter(|expression| is_batch(expression)).count();
    match role {
        Role::Fragment => None,
        Role::Query if statement.statement.kind == Kind::Select => None,
        Role::Query => Some("a query is expected here".into()),
        Role::Change if !matches!(statement.statement.kind, Kind::Update | Kind::Delete) => {
            Some("an UPDATE or a DELETE is expected here".into())
        }
        Role::Change if batches != 1 => Some("`{{ batch }}` must stand in its WHERE once: it picks the rows of a batch".into()),
        Role::Change => None,
    }
}
