//! Reading the tables, all in one snapshot of the database.

use serde_json::Value;
use sha2::{Digest, Sha256};

use super::compare::TableState;
use super::condition::Condition;
use super::{Snapshot, TableName};
use crate::action::StepContext;
use crate::action::effect::cancellable;
use crate::diagnostic::did_you_mean;
use crate::outcome::{Aftermath, Column, ErrorKind, StepError};
use crate::source::Spanned;
use crate::target::{Access, Isolation, Kind, RowSink, Session, Statement, TargetError};

/// More tables than this are not listed.
const LISTED: usize = 10;

/// Reads a table's count and its fingerprint: the sum of the rows' hashes, so that their
/// order does not matter, but how often a row occurs does.
pub(super) fn statement(table: &TableName, condition: Option<&Condition>, fingerprint: bool) -> String {
    let fingerprint = if fingerprint {
        // `("users".*)` and not `users`, for a column may have the table's name.
        format!(", coalesce(sum(hashtextextended(({}.*)::text, 0)::numeric), 0)::text AS fingerprint", table.bare_sql())
    } else {
        String::new()
    };
    format!("SELECT count(*) AS count{fingerprint} FROM {}{}", table.sql(), where_clause(condition))
}

fn where_clause(condition: Option<&Condition>) -> String {
    let Some(sql) = condition.map(Condition::sql) else { return String::new() };
    // A condition may end in a comment.
    let end = if sql.contains("--") { "\n" } else { "" };
    format!(" WHERE ({sql}{end})")
}

/// The state of all tables at one moment, in the order they are written.
pub(super) async fn take(snapshot: &Snapshot, context: &StepContext) -> Result<Vec<TableState>, StepError> {
    let connection = context.connection(snapshot.connection.as_ref().map(|name| name.value.as_str()))?;
    let mut settings = context.session.clone();
    if let Some(timeout) = &snapshot.statement_timeout {
        settings.statement_timeout = Some(context.values.setting(timeout)?.0);
    }
    let binds = snapshot.tables.iter().map(|table| binds(snapshot, table, context)).collect::<Result<Vec<_>, _>>()?;
    let session = tokio::select! {
        biased;
        () = context.cancel.cancelled() => return Err(StepError::new(ErrorKind::Cancelled, "stopped before the snapshot")),
        session = context.targets.session(connection, &context.step, &settings) => session?,
    };
    let mut reader = Reader { snapshot, context, session };
    let outcome = reader.all(&binds).await;
    reader.session.rollback().await;
    // Whatever went wrong: it has only read.
    outcome.map_err(|error| error.aftermath(Aftermath::Unchanged))
}

/// The values of a table's condition.
fn binds(snapshot: &Snapshot, table: &Spanned<TableName>, context: &StepContext) -> Result<Vec<Value>, StepError> {
    let expressions = snapshot.conditions.get(table).into_iter().flat_map(Condition::expressions);
    Ok(expressions.map(|expression| context.values.evaluate(expression)).collect::<Result<_, _>>()?)
}

struct Reader<'a> {
    snapshot: &'a Snapshot,
    context: &'a StepContext,
    session: Session,
}

impl Reader<'_> {
    async fn all(&mut self, binds: &[Vec<Value>]) -> Result<Vec<TableState>, StepError> {
        self.session.begin(Access::ReadOnly, Some(Isolation::RepeatableRead)).await?;
        self.find_tables().await?;
        let tables = &self.snapshot.tables;
        let mut states = Vec::with_capacity(tables.len());
        for (index, (table, binds)) in tables.iter().zip(binds).enumerate() {
            self.context.progress(format!("table {} of {}: {}", index + 1, tables.len(), table.value), None);
            states.push(self.table(table, binds).await?);
        }
        Ok(states)
    }

    async fn table(&mut self, table: &Spanned<TableName>, binds: &[Value]) -> Result<TableState, StepError> {
        let condition = self.snapshot.conditions.get(table);
        let fingerprint = self.snapshot.keeps_fingerprints();
        let read = if fingerprint && self.session.identity().kind == Kind::Sqlite {
            self.hashed(table, condition, binds).await
        } else {
            self.counted(&statement(table, condition, fingerprint), binds).await
        };
        let (count, fingerprint) = read.map_err(|error| self.placed(error, table))?;
        Ok(TableState { table: table.value.to_string(), count, fingerprint })
    }

    /// The server counts and hashes.
    async fn counted(&mut self, text: &str, binds: &[Value]) -> Result<(u64, Option<String>), StepError> {
        let rows = self.rows(text, binds).await?;
        let cells = rows.into_iter().next().unwrap_or_default();
        let count = cells.first().and_then(Value::as_u64);
        let count = count.ok_or_else(|| StepError::new(ErrorKind::Sql, "the server's answer to count(*) is no number"))?;
        Ok((count, cells.get(1).and_then(Value::as_str).map(str::to_owned)))
    }

    /// SQLite has no hash function, so its rows come here, one at a time.
    async fn hashed(
        &mut self,
        table: &TableName,
        condition: Option<&Condition>,
        binds: &[Value],
    ) -> Result<(u64, Option<String>), StepError> {
        let (mut count, mut sum) = (0, 0_i128);
        let mut add = |_: &[Column], row: Vec<Value>| {
            count += 1;
            sum += i128::from(row_hash(&row));
        };
        self.execute(&format!("SELECT * FROM {}{}", table.sql(), where_clause(condition)), binds, &mut add).await?;
        Ok((count, Some(sum.to_string())))
    }

    /// Every table that is not there, before the first one is counted.
    async fn find_tables(&mut self) -> Result<(), StepError> {
        let missing = match self.session.identity().kind {
            Kind::Postgres => self.missing_from_postgres().await?,
            Kind::Sqlite => self.missing_from_sqlite().await?,
        };
        let Some(first) = missing.first() else { return Ok(()) };
        let names: Vec<String> = missing.iter().map(|table| format!("`{}`", table.value)).collect();
        let message = match names.as_slice() {
            [name] => format!("there is no table {name}"),
            names => format!("there are no tables {}", names.join(", ")),
        };
        let mut error = StepError::new(ErrorKind::Sql, message).at(self.context.sources.location(first.span));
        let known = self.known_tables().await?;
        for table in &missing {
            error.hints.extend(nearest(table, &known).map(|near| format!("`{}`: did you mean `{near}`?", table.value)));
        }
        if error.hints.is_empty() {
            error.hints.push(match known.len() {
                0 => "this role sees no table in this database".into(),
                1..=LISTED => format!("the tables are {}", known.iter().map(|(_, name)| name.as_str()).collect::<Vec<_>>().join(", ")),
                many => {
                    format!("none of the {many} tables has a name like that; a table off the search path needs its schema, as in app.users")
                }
            });
        }
        Err(error)
    }

    async fn missing_from_postgres(&mut self) -> Result<Vec<Spanned<TableName>>, StepError> {
        let names: Value = self.snapshot.tables.iter().map(|table| table.sql()).collect();
        let query = "SELECT u.n FROM pg_catalog.unnest($1::text[]) WITH ORDINALITY u(name, n) \
                     WHERE pg_catalog.to_regclass(u.name) IS NULL ORDER BY u.n";
        let positions = self.rows(query, &[names]).await?;
        let positions = positions.iter().filter_map(|row| row.first()?.as_u64());
        Ok(positions.filter_map(|position| self.snapshot.tables.get(position as usize - 1).cloned()).collect())
    }

    async fn missing_from_sqlite(&mut self) -> Result<Vec<Spanned<TableName>>, StepError> {
        let known = self.known_tables().await?;
        let is_known = |table: &TableName| {
            table.schema().is_none_or(|schema| schema == "main") && known.iter().any(|(name, _)| name.eq_ignore_ascii_case(table.bare()))
        };
        Ok(self.snapshot.tables.iter().filter(|table| !is_known(table)).cloned().collect())
    }

    /// The tables there are: the bare name, and how it has to be written here. Of two with
    /// the same name the one on the search path comes last.
    async fn known_tables(&mut self) -> Result<Vec<(String, String)>, StepError> {
        let query = match self.session.identity().kind {
            Kind::Postgres => {
                "SELECT c.relname::text, CASE WHEN pg_catalog.pg_table_is_visible(c.oid) THEN '' \
                 ELSE pg_catalog.quote_ident(n.nspname) || '.' END || pg_catalog.quote_ident(c.relname) \
                 FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
                 WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f') AND n.nspname !~ '^pg_' AND n.nspname NOT IN ('information_schema', 'runbook') \
                 ORDER BY pg_catalog.pg_table_is_visible(c.oid), 2"
            }
            Kind::Sqlite => {
                "SELECT name, name FROM sqlite_schema WHERE type IN ('table', 'view') AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\' ORDER BY name"
            }
        };
        let text = |cell: Option<&Value>| cell.and_then(Value::as_str).unwrap_or_default().to_owned();
        Ok(self.rows(query, &[]).await?.iter().map(|row| (text(row.first()), text(row.get(1)))).collect())
    }

    async fn rows(&mut self, text: &str, binds: &[Value]) -> Result<Vec<Vec<Value>>, StepError> {
        let mut rows = Vec::new();
        let mut keep = |_: &[Column], row: Vec<Value>| rows.push(row);
        self.execute(text, binds, &mut keep).await?;
        Ok(rows)
    }

    async fn execute(&mut self, text: &str, binds: &[Value], rows: RowSink<'_>) -> Result<(), TargetError> {
        let canceller = self.session.canceller();
        let statement = Statement::query(text).with(binds);
        cancellable(&canceller, &self.context.cancel, self.session.execute(&statement, rows)).await.map(|_| ())
    }

    /// An error with the table it is about.
    fn placed(&self, error: StepError, table: &Spanned<TableName>) -> StepError {
        error.fact("table", table.value.to_string()).at(self.context.sources.location(table.span))
    }
}

fn nearest<'a>(table: &TableName, known: &'a [(String, String)]) -> Option<&'a str> {
    let near = did_you_mean(table.bare(), known.iter().map(|(name, _)| name.as_str()))?;
    known.iter().rev().find(|(name, _)| name == near).map(|(_, written)| written.as_str())
}

/// 64 bits of a row's SHA-256.
pub(in crate::action) fn row_hash(row: &[Value]) -> i64 {
    let hash = Sha256::digest(Value::from(row).to_string().as_bytes());
    hash.iter().take(8).fold(0, |bits, byte| (bits << 8) | i64::from(*byte))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn rows_that_differ_in_type_or_place_have_other_hashes() {
        let rows = [json!([1, null]), json!(["1", null]), json!([1.0, null]), json!([null, 1]), json!([1, ""]), json!(["1", "null"])];
        let hashes: std::collections::BTreeSet<i64> = rows.iter().map(|row| row_hash(row.as_array().unwrap())).collect();
        assert_eq!(hashes.len(), rows.len());
    }

    #[test]
    fn the_table_on_the_search_path_is_the_one_that_was_meant() {
        let known = [("users", "old.users"), ("Users", "\"Users\""), ("racks", "racks"), ("users", "users")]
            .map(|(bare, written)| (bare.to_owned(), written.to_owned()));
        let near = |name: &str| nearest(&name.parse().unwrap(), &known).map(str::to_owned);
        assert_eq!(near("usres").as_deref(), Some("users"));
        assert_eq!(near("rack").as_deref(), Some("racks"));
        assert_eq!(near("invoices"), None);
        assert_eq!(nearest(&"users".parse().unwrap(), &known[1..2]), Some("\"Users\""));
    }
}
