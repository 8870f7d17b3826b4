//! What the table can hold: its columns' types, limits and primary key.
//!
//! A value that the column would refuse, cut off or round is a reject of its record, not
//! the failure of all of them.

use std::collections::HashSet;

use serde_json::Value;

use super::check::Rule;
use super::fields::ColumnType;
use super::statements::table_name;
use crate::outcome::{ErrorKind, StepError};
use crate::target::{Kind, Session, Statement};

/// What is known of the table.
#[derive(Debug)]
pub(super) struct Table {
    columns: Vec<Column>,
    /// Its primary key's columns.
    pub(super) primary_key: Vec<String>,
    /// A table, without rules and without row security for this role.
    plain: bool,
}

#[derive(Debug)]
struct Column {
    name: String,
    type_name: String,
    modifier: i64,
    not_null: bool,
    /// Of an enumerated type.
    labels: Option<HashSet<String>>,
    /// INSERT may not give it a value; COPY might.
    generated: bool,
}

const COLUMNS: &str = "SELECT a.attname::text, CASE t.typtype WHEN 'd' THEN 'domain' ELSE t.typname::text END, a.atttypmod::bigint, a.attnotnull, \
     (SELECT json_agg(e.enumlabel ORDER BY e.enumsortorder)::text FROM pg_catalog.pg_enum e WHERE e.enumtypid = t.oid), \
     a.attidentity = 'a' OR a.attgenerated <> '' \
     FROM pg_catalog.pg_attribute a JOIN pg_catalog.pg_type t ON t.oid = a.atttypid \
     WHERE a.attrelid = pg_catalog.to_regclass($1) AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum";

const PLAIN: &str = "SELECT c.relkind IN ('r', 'p') AND NOT c.relhasrules AND NOT pg_catalog.row_security_active(c.oid) \
     FROM pg_catalog.pg_class c WHERE c.oid = pg_catalog.to_regclass($1)";

const PRIMARY_KEY: &str = "SELECT a.attname::text FROM pg_catalog.pg_index i \
     CROSS JOIN LATERAL pg_catalog.unnest(i.indkey) WITH ORDINALITY k(number, place) \
     JOIN pg_catalog.pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.number \
     WHERE i.indrelid = pg_catalog.to_regclass($1) AND i.indisprimary ORDER BY k.place";

impl Table {
    /// Asks the catalogue; a table that is not there is an error.
    pub(super) async fn read(session: &mut Session, table: &str) -> Result<Self, StepError> {
        let found = match session.identity().kind {
            Kind::Postgres => Self::of_postgres(session, table).await?,
            Kind::Sqlite => Self::of_sqlite(session, table).await?,
        };
        if found.columns.is_empty() {
            return Err(StepError::new(ErrorKind::Sql, format!("there is no table `{table}`"))
                .hint("names are taken exactly as the catalogue has them; write the schema before it where it is not on the search path"));
        }
        Ok(found)
    }

    async fn of_postgres(session: &mut Session, table: &str) -> Result<Self, StepError> {
        let bind = [Value::String(table_name(table))];
        let columns = query(session, COLUMNS, &bind).await?.into_iter().map(|row| Column {
            name: text(&row, 0),
            type_name: text(&row, 1),
            modifier: row.get(2).and_then(Value::as_i64).unwrap_or(-1),
            not_null: row.get(3) == Some(&Value::Bool(true)),
            labels: row.get(4).and_then(Value::as_str).and_then(|labels| serde_json::from_str(labels).ok()),
            generated: row.get(5) == Some(&Value::Bool(true)),
        });
        let columns = columns.collect();
        let primary_key = query(session, PRIMARY_KEY, &bind).await?.iter().map(|row| text(row, 0)).collect();
        let plain = query(session, PLAIN, &bind).await?.first().and_then(|row| row.first()) == Some(&Value::Bool(true));
        Ok(Self { columns, primary_key, plain })
    }

    async fn of_sqlite(session: &mut Session, table: &str) -> Result<Self, StepError> {
        let bare = table.rsplit('.').next().unwrap_or(table);
        let found = query(session, "SELECT name, \"notnull\", pk FROM pragma_table_info($1)", &[bare.into()]).await?;
        let number = |row: &Vec<Value>, index: usize| row.get(index).and_then(Value::as_i64).unwrap_or(0);
        let mut key: Vec<(i64, String)> = found.iter().filter(|row| number(row, 2) > 0).map(|row| (number(row, 2), text(row, 0))).collect();
        key.sort_unstable();
        let columns = found.iter().map(|row| Column {
            name: text(row, 0),
            type_name: String::new(),
            modifier: -1,
            not_null: number(row, 1) == 1,
            labels: None,
            generated: false,
        });
        let primary_key = key.into_iter().map(|(_, name)| name).collect();
        Ok(Self { columns: columns.collect(), primary_key, plain: false })
    }

    /// Makes the rules as strict as the table's columns are.
    pub(super) fn narrow(&self, rules: &mut [Rule]) -> Result<(), StepError> {
        for rule in rules {
            self.column(&rule.name)?.narrow(rule)?;
        }
        Ok(())
    }

    /// Whether COPY puts rows into it as INSERT would: it knows no rules, is refused where
    /// policies hide rows, and takes values for columns that only the table fills.
    pub(super) fn copies_as_it_inserts<'n>(&self, mut names: impl Iterator<Item = &'n str>) -> bool {
        self.plain && !names.any(|name| self.columns.iter().any(|column| column.name == name && column.generated))
    }

    /// Makes sure of a column.
    pub(super) fn must_have(&self, name: &str) -> Result<(), StepError> {
        self.column(name).map(|_| ())
    }

    fn column(&self, name: &str) -> Result<&Column, StepError> {
        self.columns.iter().find(|column| column.name == name).ok_or_else(|| {
            let all: Vec<&str> = self.columns.iter().map(|column| column.name.as_str()).collect();
            StepError::new(ErrorKind::Sql, format!("the table has no column `{name}`")).fact("columns", all.join(", "))
        })
    }
}

impl Column {
    fn narrow(&self, rule: &mut Rule) -> Result<(), StepError> {
        use ColumnType::{Bigint, Boolean, Date, Integer, Json, Numeric, Timestamp, Timestamptz, Uuid};
        rule.required |= self.not_null;
        let fitting: &[ColumnType] = match self.type_name.as_str() {
            "int2" | "int4" | "int8" => &[Integer, Bigint],
            "numeric" | "float4" | "float8" => &[Integer, Bigint, Numeric],
            "bool" => &[Boolean],
            "date" => &[Date],
            "timestamp" => &[Date, Timestamp],
            "timestamptz" => &[Date, Timestamp, Timestamptz],
            "uuid" => &[Uuid],
            "json" | "jsonb" => &[Json],
            // Text takes everything; of other types only the server knows.
            _ => &[],
        };
        if !fitting.is_empty() && !fitting.contains(&rule.kind) {
            let names: Vec<String> = fitting.iter().map(|kind| format!("`{}`", kind.name())).collect();
            let message = format!("column `{}` is a {}, and the playbook says `{}`", self.name, self.type_name, rule.kind.name());
            return Err(StepError::new(ErrorKind::Sql, message).hint(format!("write `type:` {}", names.join(" or "))));
        }
        let limit = self.modifier - 4;
        match self.type_name.as_str() {
            "int2" => rule.range = Some((i64::from(i16::MIN), i64::from(i16::MAX))),
            "int4" => rule.range = Some((i64::from(i32::MIN), i64::from(i32::MAX))),
            "varchar" | "bpchar" if limit > 0 => rule.most_characters = usize::try_from(limit).ok(),
            // Precision and scale, the scale as a signed number of 11 bits.
            "numeric" if limit >= 0 => {
                let scale = ((limit & 0x7ff) ^ 0x400) - 0x400;
                rule.digits = Some((i32::try_from(limit >> 16).unwrap_or(i32::MAX), i32::try_from(scale).unwrap_or(0)));
            }
            _ => {}
        }
        rule.values.extend(self.labels.clone());
        Ok(())
    }
}

fn text(row: &[Value], index: usize) -> String {
    row.get(index).and_then(Value::as_str).unwrap_or_default().to_owned()
}

/// The rows of something small.
pub(super) async fn query(session: &mut Session, text: &str, binds: &[Value]) -> Result<Vec<Vec<Value>>, StepError> {
    let mut rows = Vec::new();
    session.read(&Statement::query(text).with(binds), None, &mut |_, row| rows.push(row)).await?;
    Ok(rows)
}
