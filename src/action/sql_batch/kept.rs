//! Old values: what `keep_old` writes down beside each batch, and what `restore` reads.
//!
//! A table of its own, named after run and step, holds for each row its key, and for each
//! column that is set the value before and the value after: what somebody has changed since
//! is thus known, and is never overwritten. `kept` lists these tables until all is put back.

use super::statements::{Range, Spec, own_table, tag_of};
use super::table::Table;
use super::talk::{Rows, Talk, text, unusable};
use super::{Restore, SqlBatch};
use crate::outcome::StepError;
use crate::target::{Kind, TargetError, text_literal};
use crate::template::Values;

/// The table that lists the others.
const KEPT: &str = "kept";

/// Old values of a step, to be put back.
#[derive(Debug, Clone)]
pub(super) struct Found {
    /// The table that holds them.
    pub name: String,
    /// Quoted; their values are in `old_1` …
    pub columns: Vec<String>,
    owner: String,
}

/// The table of old values that a step of a run keeps.
pub(super) fn kept_table(kind: Kind, owner: &str) -> String {
    own_table(kind, &format!("old_{}", tag_of(owner)))
}

fn owner_of(run: &str, step: &str) -> String {
    format!("{run}/{step}")
}

impl Found {
    /// What a run's step has kept; `run` is the one this happens in.
    pub(super) async fn look(batch: &SqlBatch, restore: &Restore, values: &Values, run: &str, talk: &mut Talk) -> Result<Self, StepError> {
        let run = restore.run.as_ref().map(|run| values.text(run)).transpose()?.unwrap_or_else(|| run.to_owned());
        let step = &restore.step.value;
        let kind = talk.session.identity().kind;
        let condition = format!("run = {} AND step = {}", text_literal(&run), text_literal(step));
        let rows = match talk.look(&format!("SELECT of_table, columns FROM {} WHERE {condition}", own_table(kind, KEPT))).await {
            // Nothing was ever kept here.
            Err(TargetError::Sql(error)) if error.code == "42P01" || error.message.contains("no such table") => Rows::new(),
            other => other?,
        };
        let Some(row) = rows.first() else {
            return Err(unusable(format!("run {run} has no old values of step `{step}` here: it kept none, or they were put back"))
                .hint("`keep_old: true` keeps them; `runbook list` shows the runs."));
        };
        let of_table = text(row.first()).unwrap_or_default();
        if of_table != batch.table.value {
            return Err(unusable(format!("step `{step}` of run {run} changed {of_table}, not {}", batch.table.value)));
        }
        let columns = text(row.get(1)).and_then(|columns| serde_json::from_str(&columns).ok()).unwrap_or_default();
        let owner = owner_of(&run, step);
        Ok(Self { name: kept_table(kind, &owner), columns, owner })
    }

    /// Rows that are still to be put back, or that somebody has changed since.
    pub(super) async fn left(&self, changed: u64, talk: &mut Talk) -> Result<u64, TargetError> {
        let kept = super::talk::number(&talk.look(&format!("SELECT count(*) FROM {}", self.name)).await?);
        Ok(kept.saturating_sub(changed))
    }

    /// Nothing is left to put back.
    pub(super) async fn forget(&self, kind: Kind, talk: &mut Talk) -> Result<(), TargetError> {
        let (run, step) = self.owner.split_once('/').unwrap_or_default();
        let condition = format!("run = {} AND step = {}", text_literal(run), text_literal(step));
        talk.change(&format!("DELETE FROM {} WHERE {condition}", own_table(kind, KEPT))).await?;
        talk.change(&format!("DROP TABLE {}", self.name)).await.map(drop)
    }
}

impl Spec {
    /// Makes room for old values, in the transaction that lays the step out.
    pub(super) async fn prepare_keeping(
        &self,
        batch: &SqlBatch,
        run: &str,
        step: &str,
        table: &Table,
        talk: &mut Talk,
    ) -> Result<(), TargetError> {
        let kept = own_table(self.kind, KEPT);
        talk.change(&format!(
            "CREATE TABLE IF NOT EXISTS {kept} (run text, step text, of_table text NOT NULL, kept_in text NOT NULL, columns text NOT NULL, PRIMARY KEY (run, step))"
        ))
        .await?;
        let name = kept_table(self.kind, &owner_of(run, step));
        let values: Vec<String> = self.numbered().map(|(n, column)| format!("{column} AS old_{n}, {column} AS new_{n}")).collect();
        let fresh = if self.kind == Kind::Sqlite { ", 1 AS fresh" } else { "" };
        talk.change(&format!(
            "CREATE TABLE {name} AS SELECT {}, {}{fresh} FROM {} WHERE false",
            table.key.join(", "),
            values.join(", "),
            self.table
        ))
        .await?;
        let unique = match self.kind {
            Kind::Postgres => format!("ALTER TABLE {name} ADD PRIMARY KEY ({})", table.key.join(", ")),
            Kind::Sqlite => format!("CREATE UNIQUE INDEX {name}_key ON {name} ({})", table.key.join(", ")),
        };
        talk.change(&unique).await?;
        let columns: Vec<&String> = self.set.iter().map(|(column, _)| column).collect();
        let columns = serde_json::Value::from(columns.into_iter().cloned().collect::<Vec<_>>()).to_string();
        let listed = [run, step, &batch.table.value, &name, &columns].map(text_literal).join(", ");
        talk.change(&format!("INSERT INTO {kept} (run, step, of_table, kept_in, columns) VALUES ({listed})")).await.map(drop)
    }

    fn numbered(&self) -> impl Iterator<Item = (usize, &String)> {
        self.set.iter().enumerate().map(|(index, (column, _))| (index + 1, column))
    }

    /// The change of one batch that also writes down old and new values; one row: how many.
    /// PostgreSQL locks the rows before it looks at them, so that old is what was overwritten.
    pub(super) fn keeping_change(&self, table: &Table, range: &Range) -> String {
        let key = |prefix: &str| table.key.iter().map(|column| format!("{prefix}.{column}")).collect::<Vec<_>>();
        let named: Vec<String> = key(&self.name).iter().enumerate().map(|(n, column)| format!("{column} AS key_{n}")).collect();
        let old: Vec<String> = self.numbered().map(|(n, column)| format!("{}.{column} AS old_{n}", self.name)).collect();
        let given: Vec<String> = self.set.iter().enumerate().map(|(n, (_, value))| format!("({value}) AS given_{}", n + 1)).collect();
        let set: Vec<String> = self.numbered().map(|(n, column)| format!("{column} = runbook_before.given_{n}")).collect();
        let same: Vec<String> =
            key(&self.name).iter().enumerate().map(|(n, column)| format!("{column} = runbook_before.key_{n}")).collect();
        let returned: Vec<String> = key(&self.name)
            .into_iter()
            .chain(self.numbered().flat_map(|(n, column)| [format!("runbook_before.old_{n}"), format!("{}.{column}", self.name)]))
            .collect();
        format!(
            "WITH runbook_before AS (SELECT {}, {}, {} FROM {} WHERE {} FOR UPDATE OF {}), \
             runbook_changed AS (UPDATE {} SET {} FROM runbook_before WHERE {} RETURNING {}), \
             runbook_kept AS (INSERT INTO {} SELECT * FROM runbook_changed ON CONFLICT DO NOTHING) \
             SELECT count(*) FROM runbook_changed",
            named.join(", "),
            old.join(", "),
            given.join(", "),
            self.tables(table),
            self.conditions(table, range).join(" AND "),
            self.name,
            self.table,
            set.join(", "),
            same.join(" AND "),
            returned.join(", "),
            self.kept_in,
        )
    }

    /// Before and after a batch on SQLite, where nobody else writes meanwhile.
    pub(super) fn keeping_around(&self, table: &Table, range: &Range) -> [String; 2] {
        let key: Vec<String> = table.key.iter().map(|column| format!("{}.{column}", self.name)).collect();
        let values: Vec<String> = self.numbered().map(|(_, column)| format!("{0}.{column}, {0}.{column}", self.name)).collect();
        let before = format!(
            "INSERT OR IGNORE INTO {} SELECT {}, {}, 1 FROM {} WHERE {}",
            self.kept_in,
            key.join(", "),
            values.join(", "),
            self.tables(table),
            self.conditions(table, range).join(" AND ")
        );
        let set: Vec<String> = self.numbered().map(|(n, column)| format!("new_{n} = {}.{column}", self.name)).collect();
        let same: Vec<String> = table.key.iter().map(|column| format!("{}.{column} = {}.{column}", self.kept_in, self.name)).collect();
        let after = format!(
            "UPDATE {} SET {}, fresh = 0 FROM {} WHERE {} AND {}.fresh = 1",
            self.kept_in,
            set.join(", "),
            self.table,
            same.join(" AND "),
            self.kept_in
        );
        [before, after]
    }
}
