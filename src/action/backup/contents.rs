//! What a PostgreSQL database holds as of one moment, to be compared with a copy of it.
//!
//! Responsible for reading it the same way on both sides. What the differences mean is
//! the caller's business.

use std::collections::BTreeMap;

use serde_json::Value;

use super::manifest::{OpenReference, SequenceValue, TableContent};
use crate::action::StepContext;
use crate::action::effect::cancellable;
use crate::outcome::{ErrorKind, StepError};
use crate::target::{Access, Isolation, Session, Statement};

/// What a value's text depends on, and who may see which rows: the same everywhere, whatever
/// database and role have set.
const PINNED: &[&str] = &[
    "SET LOCAL row_security = off",
    "SET LOCAL search_path = pg_catalog",
    "SET LOCAL datestyle = 'ISO, YMD'",
    "SET LOCAL intervalstyle = 'postgres'",
    "SET LOCAL timezone = 'UTC'",
    "SET LOCAL extra_float_digits = 3",
    "SET LOCAL bytea_output = 'hex'",
    "SET LOCAL xmloption = 'content'",
    "SET LOCAL lc_monetary = 'C'",
];

/// Schemas that are not the user's.
const FOREIGN: &str = "n.nspname !~ '^pg_' AND n.nspname NOT IN ('information_schema', 'runbook')";

/// A read-only transaction that sees one moment.
pub struct Moment<'a> {
    context: &'a StepContext,
    session: Session,
}

/// A table with rows of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    pub schema: String,
    pub name: String,
    pub owner: String,
    /// As SQL writes it, with its schema.
    pub sql: String,
}

impl<'a> Moment<'a> {
    /// Opens it on a session that has no transaction.
    pub async fn begin(context: &'a StepContext, mut session: Session) -> Result<Self, StepError> {
        session.begin(Access::ReadOnly, Some(Isolation::RepeatableRead)).await?;
        let mut moment = Self { context, session };
        for setting in PINNED {
            moment.rows(setting).await?;
        }
        Ok(moment)
    }

    /// Ends it.
    pub async fn end(mut self) {
        self.session.rollback().await;
    }

    /// The name under which other connections see the same moment.
    pub async fn export(&mut self) -> Result<String, StepError> {
        Ok(text(self.rows("SELECT pg_catalog.pg_export_snapshot()").await?.first().and_then(|row| row.first())))
    }

    /// All tables that have rows of their own.
    pub async fn tables(&mut self) -> Result<Vec<Table>, StepError> {
        let query = format!(
            "SELECT n.nspname::text, c.relname::text, pg_get_userbyid(c.relowner)::text, format('%I.%I', n.nspname, c.relname) \
             FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
             WHERE c.relkind = 'r' AND c.relpersistence <> 't' AND {FOREIGN} ORDER BY 4"
        );
        let tables = self.rows(&query).await?.into_iter().map(|row| {
            let cell = |index: usize| text(row.get(index));
            Table { schema: cell(0), name: cell(1), owner: cell(2), sql: cell(3) }
        });
        Ok(tables.collect())
    }

    /// A table's rows, and with `fingerprint` the sum of their hashes: their order does not
    /// matter, but how often a row occurs does.
    pub async fn content(&mut self, table: &str, fingerprint: bool) -> Result<TableContent, StepError> {
        let hash = match fingerprint {
            true => ", coalesce(sum(hashtextextended((content.*)::text COLLATE \"C\", 0)::numeric), 0)::text",
            false => "",
        };
        let rows = self.rows(&format!("SELECT count(*){hash} FROM ONLY {table} AS content")).await;
        let rows = rows.map_err(|error| error.fact("table", table))?;
        let row = rows.into_iter().next().unwrap_or_default();
        let count = row.first().and_then(Value::as_u64);
        let count = count.ok_or_else(|| StepError::new(ErrorKind::Sql, "the server's answer to count(*) is no number"))?;
        Ok(TableContent { table: table.to_owned(), rows: count, fingerprint: row.get(1).map(|value| text(Some(value))) })
    }

    /// The state of a sequence, named as SQL writes it.
    pub async fn sequence(&mut self, sequence: &str) -> Result<SequenceValue, StepError> {
        let rows = self.rows(&format!("SELECT last_value, is_called FROM {sequence}")).await?;
        let row = rows.first().map(Vec::as_slice).unwrap_or_default();
        match (row.first().and_then(Value::as_i64), row.get(1).and_then(Value::as_bool)) {
            (Some(value), Some(called)) => Ok(SequenceValue { value, called }),
            _ => Err(StepError::new(ErrorKind::Sql, format!("the state of sequence {sequence} is not readable"))),
        }
    }

    pub async fn large_objects(&mut self) -> Result<u64, StepError> {
        let rows = self.rows("SELECT count(*) FROM pg_largeobject_metadata").await?;
        Ok(rows.first().and_then(|row| row.first()?.as_u64()).unwrap_or_default())
    }

    pub async fn extensions(&mut self) -> Result<BTreeMap<String, String>, StepError> {
        let rows = self.rows("SELECT extname::text, extversion FROM pg_extension").await?;
        Ok(rows.iter().map(|row| (text(row.first()), text(row.get(1)))).collect())
    }

    /// Roles that objects of this database belong to or are granted to.
    pub async fn roles(&mut self) -> Result<Vec<String>, StepError> {
        let query = "SELECT DISTINCT r.rolname::text FROM pg_shdepend d JOIN pg_roles r ON r.oid = d.refobjid \
                     JOIN pg_database b ON b.oid = d.dbid WHERE d.refclassid = 'pg_authid'::regclass \
                     AND b.datname = current_database() ORDER BY 1";
        Ok(self.rows(query).await?.iter().map(|row| text(row.first())).collect())
    }

    /// All foreign keys between tables of different names.
    pub async fn references(&mut self) -> Result<Vec<OpenReference>, StepError> {
        let query = "SELECT k.conname::text, format('%I.%I', n.nspname, c.relname), format('%I.%I', m.nspname, r.relname) \
                     FROM pg_constraint k JOIN pg_class c ON c.oid = k.conrelid JOIN pg_namespace n ON n.oid = c.relnamespace \
                     JOIN pg_class r ON r.oid = k.confrelid JOIN pg_namespace m ON m.oid = r.relnamespace \
                     WHERE k.contype = 'f' AND k.conrelid <> k.confrelid ORDER BY 2, 1";
        let reference =
            |row: &Vec<Value>| OpenReference { constraint: text(row.first()), table: text(row.get(1)), references: text(row.get(2)) };
        Ok(self.rows(query).await?.iter().map(reference).collect())
    }

    /// Indexes that no query uses because building them failed.
    pub async fn invalid_indexes(&mut self) -> Result<Vec<String>, StepError> {
        let query = "SELECT format('%I.%I', n.nspname, c.relname) FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid \
                     JOIN pg_namespace n ON n.oid = c.relnamespace WHERE NOT i.indisvalid AND c.relkind = 'i' ORDER BY 1";
        Ok(self.rows(query).await?.iter().map(|row| text(row.first())).collect())
    }

    /// Constraints that hold for new rows only.
    pub async fn constraints_not_validated(&mut self) -> Result<Vec<String>, StepError> {
        let query = "SELECT format('%I of %I.%I', k.conname, n.nspname, c.relname) FROM pg_constraint k JOIN pg_class c ON c.oid = k.conrelid \
                     JOIN pg_namespace n ON n.oid = c.relnamespace WHERE NOT k.convalidated ORDER BY 1";
        Ok(self.rows(query).await?.iter().map(|row| text(row.first())).collect())
    }

    /// What `CREATE DATABASE` has to say to make a database that sorts and stores as this one.
    pub async fn locale(&mut self) -> Result<BTreeMap<String, String>, StepError> {
        // As JSON, for the columns are not the same in every version.
        let query = "SELECT to_jsonb(d) || jsonb_build_object('encoding', pg_encoding_to_char(d.encoding)) \
                     FROM pg_database d WHERE datname = current_database()";
        let rows = self.rows(query).await?;
        let about = rows.first().and_then(|row| row.first()).cloned().unwrap_or_default();
        let mut locale = BTreeMap::new();
        let mut put = |option: &str, column: &str| {
            if let Some(value) = about[column].as_str() {
                locale.insert(option.to_owned(), value.to_owned());
            }
        };
        put("ENCODING", "encoding");
        put("LC_COLLATE", "datcollate");
        put("LC_CTYPE", "datctype");
        match about["datlocprovider"].as_str() {
            Some("i") => {
                put("ICU_LOCALE", "daticulocale");
                put("ICU_LOCALE", "datlocale");
                locale.insert("LOCALE_PROVIDER".into(), "icu".into());
            }
            Some("b") => {
                put("BUILTIN_LOCALE", "datlocale");
                locale.insert("LOCALE_PROVIDER".into(), "builtin".into());
            }
            _ => {}
        }
        Ok(locale)
    }

    /// About how many bytes all tables have, without their indexes, as the last vacuum left
    /// them: asking the tables themselves would wait for whoever has locked one.
    pub async fn size(&mut self) -> Result<u64, StepError> {
        let query = format!(
            "SELECT (coalesce(sum(greatest(c.relpages, 0)::bigint + greatest(t.relpages, 0)), 0) \
             * current_setting('block_size')::bigint)::bigint FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
             LEFT JOIN pg_class t ON t.oid = c.reltoastrelid WHERE c.relkind IN ('r', 'm') AND {FOREIGN}"
        );
        Ok(self.rows(&query).await?.first().and_then(|row| row.first()?.as_u64()).unwrap_or_default())
    }

    /// Rows of a query, until the step is cancelled.
    pub async fn rows(&mut self, query: &str) -> Result<Vec<Vec<Value>>, StepError> {
        let mut rows = Vec::new();
        let mut keep = |_: &[crate::outcome::Column], row: Vec<Value>| rows.push(row);
        let canceller = self.session.canceller();
        let statement = Statement::query(query);
        cancellable(&canceller, &self.context.cancel, self.session.execute(&statement, &mut keep)).await?;
        Ok(rows)
    }
}

fn text(cell: Option<&Value>) -> String {
    cell.and_then(Value::as_str).unwrap_or_default().to_owned()
}
