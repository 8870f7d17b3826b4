//! `tables:`: the rows of some tables, into tables that are there.
//!
//! Foreign keys around them are taken off and put back, which checks every row against the
//! rest of the database; triggers keep still meanwhile, for the rows have been through them.

use std::collections::BTreeMap;

use super::failure::explained;
use super::restore::{Restore, Restored, Wanted};
use super::there::{There, rows, text};
use crate::action::backup::manifest::SequenceValue;
use crate::outcome::{ErrorKind, StepError, StepResult};
use crate::sql::Copied;
use crate::target::{Access, Session, text_literal};

/// How the tables around the chosen ones are taken apart and put together again.
#[derive(Default)]
struct Around {
    /// Run before the rows.
    off: Vec<String>,
    /// Run behind them.
    on: Vec<String>,
}

const WANTED: &str = "wanted AS (SELECT pg_catalog.to_regclass(name)::oid AS oid FROM unnest(ARRAY[{}]::text[]) AS chosen(name))";
const FOREIGN_KEYS: &str = ", around AS (SELECT oid FROM wanted UNION SELECT a.relid::oid FROM wanted, \
     LATERAL pg_catalog.pg_partition_ancestors(wanted.oid) AS a(relid)), keys AS (SELECT k.conname, k.oid, format('%I.%I', n.nspname, c.relname) AS owner \
     FROM pg_catalog.pg_constraint k JOIN pg_catalog.pg_class c ON c.oid = k.conrelid JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
     WHERE k.contype = 'f' AND k.conparentid = 0 AND (k.conrelid IN (TABLE around) OR k.confrelid IN (TABLE around))) \
     SELECT format('ALTER TABLE %s DROP CONSTRAINT %I', owner, conname), \
     format('ALTER TABLE %s ADD CONSTRAINT %I %s', owner, conname, pg_catalog.pg_get_constraintdef(oid)), \
     format('COMMENT ON CONSTRAINT %I ON %s IS %L', conname, owner, pg_catalog.obj_description(oid, 'pg_constraint')), \
     pg_catalog.obj_description(oid, 'pg_constraint') IS NOT NULL FROM keys ORDER BY owner, conname";
const TRIGGERS: &str = ", triggers AS (SELECT t.tgname, t.tgenabled, format('%I.%I', n.nspname, c.relname) AS owner FROM wanted \
     JOIN pg_catalog.pg_trigger t ON t.tgrelid = wanted.oid JOIN pg_catalog.pg_class c ON c.oid = t.tgrelid \
     JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace WHERE NOT t.tgisinternal AND t.tgenabled <> 'D') \
     SELECT format('ALTER TABLE %s DISABLE TRIGGER %I', owner, tgname), format('ALTER TABLE %s %s TRIGGER %I', owner, \
     CASE tgenabled WHEN 'R' THEN 'ENABLE REPLICA' WHEN 'A' THEN 'ENABLE ALWAYS' ELSE 'ENABLE' END, tgname) FROM triggers ORDER BY owner, tgname";

impl Restore<'_> {
    /// Only rows, only of the chosen tables.
    pub(super) async fn rows(&self, session: &mut Session) -> Result<StepResult, StepError> {
        let chosen = self.chosen()?;
        let there = There { tables: chosen.iter().map(|copied| copied.table.clone()).collect(), ..There::default() };
        session.begin(Access::ReadOnly, None).await?;
        let looked = self.look_at_chosen(session, &chosen, &there).await;
        session.rollback().await;
        let (full, described) = looked?;
        if full && !self.step.replace {
            let error = StepError::new(ErrorKind::Expectation, "there are rows in the tables already; nothing was changed");
            let error = described.into_iter().fold(error, |error, line| error.fact("there is", line));
            return Err(error.hint("`replace: true` replaces them, after a safety dump"));
        }
        if full {
            self.confirm(session, described).await?;
        }
        session.begin(Access::ReadWrite, None).await?;
        let outcome = self.replace_rows(session, &chosen, full).await;
        self.finish(session, outcome).await
    }

    /// The tables the author names, as the backup writes them.
    fn chosen(&self) -> Result<Vec<Copied>, StepError> {
        let mut chosen = Vec::new();
        for template in &self.step.tables {
            let name = self.context().values.text(template)?;
            let fits = |copied: &&Copied| copied.table == name || copied.table.ends_with(&format!(".{name}"));
            let mut found = self.contents.copies.iter().map(|(copied, _)| copied).filter(fits);
            match (found.next(), found.next()) {
                (Some(copied), None) => chosen.push(copied.clone()),
                (Some(_), Some(_)) => {
                    return Err(StepError::new(ErrorKind::Expectation, format!("the backup has more than one table `{name}`"))
                        .hint("write its schema in front, as in `public.loads`"));
                }
                (None, _) => return Err(self.no_such_rows(&name)),
            }
        }
        Ok(chosen)
    }

    fn no_such_rows(&self, name: &str) -> StepError {
        let error = StepError::new(ErrorKind::Expectation, format!("the backup has no rows of a table `{name}`"));
        if self.contents.inserts {
            return error.hint("its rows are INSERT statements; `tables:` needs a dump with COPY, as pg_dump makes it by default");
        }
        let tables: Vec<&str> = self.contents.copies.iter().map(|(copied, _)| copied.table.as_str()).collect();
        error.fact("it has rows of", if tables.is_empty() { "no table".into() } else { tables.join(", ") })
    }

    /// Whether a row is there, and how many, once the tables fit.
    async fn look_at_chosen(&self, session: &mut Session, chosen: &[Copied], there: &There) -> Result<(bool, Vec<String>), StepError> {
        for copied in chosen {
            self.same_columns(session, copied).await?;
        }
        let exists: Vec<String> = there.tables.iter().map(|table| format!("EXISTS (SELECT FROM ONLY {table})")).collect();
        let full = rows(session, &format!("SELECT {}", exists.join(" OR "))).await?;
        let full = full.first().and_then(|row| row.first()?.as_bool()).unwrap_or(true);
        Ok((full, if full { there.described(session).await? } else { Vec::new() }))
    }

    async fn same_columns(&self, session: &mut Session, copied: &Copied) -> Result<(), StepError> {
        let query = format!(
            "SELECT pg_catalog.quote_ident(a.attname) FROM pg_catalog.pg_attribute a JOIN pg_catalog.pg_class c ON c.oid = a.attrelid \
             WHERE c.oid = pg_catalog.to_regclass({}) AND c.relkind = 'r' AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = ''",
            text_literal(&copied.table)
        );
        let columns: Vec<String> = rows(session, &query).await?.iter().map(|row| text(row.first())).collect();
        if columns.is_empty() {
            return Err(StepError::new(ErrorKind::Expectation, format!("there is no table {} to put the rows into", copied.table))
                .hint("without `tables:` the step makes the tables as well"));
        }
        let missing = |these: &[String], those: &[String]| -> String {
            these.iter().filter(|column| !those.contains(column)).cloned().collect::<Vec<_>>().join(", ")
        };
        let (gone, new) = (missing(&copied.columns, &columns), missing(&columns, &copied.columns));
        if copied.columns.is_empty() || (gone.is_empty() && new.is_empty()) {
            return Ok(());
        }
        let mut error = StepError::new(ErrorKind::Expectation, format!("{} has other columns than when it was dumped", copied.table));
        for (label, columns) in [("only in the backup", gone), ("only in the target", new)] {
            if !columns.is_empty() {
                error = error.fact(label, columns);
            }
        }
        Err(error.hint("restore the backup into another, empty database, and take over the rows with SQL that knows both"))
    }

    async fn replace_rows(&self, session: &mut Session, chosen: &[Copied], full: bool) -> Result<Restored, StepError> {
        let tables: Vec<String> = chosen.iter().map(|copied| copied.table.clone()).collect();
        let mut restored = Restored::default();
        self.execute(session, "SET LOCAL search_path = ''").await?;
        self.execute(session, "SET LOCAL row_security = off").await?;
        if full {
            restored.safety_dump = Some(self.safety_dump(session, &tables, true).await?);
        }
        let around = self.around(session, &tables).await?;
        self.all(session, &around.off).await?;
        if full {
            let only: Vec<String> = tables.iter().map(|table| format!("ONLY {table}")).collect();
            self.all(session, &[format!("TRUNCATE TABLE {}", only.join(", "))]).await?;
        }
        let written = self.send(session, &Wanted::RowsOf(&tables)).await?;
        restored.tables = written.tables;
        self.advance(session, &tables, &written.sequences).await?;
        self.all(session, &around.on).await?;
        self.compare(session, &restored).await?;
        self.analyze(session, &restored).await?;
        Ok(restored)
    }

    async fn around(&self, session: &mut Session, tables: &[String]) -> Result<Around, StepError> {
        let mut around = Around::default();
        let mut on = Vec::new();
        for row in self.rows_of(session, &with(tables, FOREIGN_KEYS)).await? {
            around.off.push(text(row.first()));
            on.push(text(row.get(1)));
            if row.get(3).and_then(serde_json::Value::as_bool) == Some(true) {
                on.push(text(row.get(2)));
            }
        }
        for row in self.rows_of(session, &with(tables, TRIGGERS)).await? {
            around.off.push(text(row.first()));
            around.on.push(text(row.get(1)));
        }
        around.on.extend(on);
        Ok(around)
    }

    /// Sequences of the tables go on from where they are or where the backup has them,
    /// whichever is further: a number that was given out once is never given out again.
    async fn advance(
        &self,
        session: &mut Session,
        tables: &[String],
        sequences: &BTreeMap<String, SequenceValue>,
    ) -> Result<(), StepError> {
        for (sequence, SequenceValue { value, called }) in sequences {
            let name = text_literal(sequence);
            let belongs = format!(
                "SELECT EXISTS (SELECT FROM pg_catalog.pg_depend d WHERE d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass \
                 AND d.objid = pg_catalog.to_regclass({name}) AND d.deptype IN ('a', 'i') AND d.refobjid IN (SELECT oid FROM wanted))"
            );
            let belongs = self.rows_of(session, &with(tables, &belongs)).await?;
            if belongs.first().and_then(|row| row.first()?.as_bool()) == Some(true) {
                let advance = format!(
                    "SELECT pg_catalog.setval({name}, {value}, {called}) FROM {sequence} AS now \
                     JOIN pg_catalog.pg_sequence s ON s.seqrelid = pg_catalog.to_regclass({name}) \
                     WHERE ({value} * sign(s.seqincrement), {called}) > (now.last_value * sign(s.seqincrement), now.is_called)"
                );
                self.execute(session, &advance).await?;
            }
        }
        Ok(())
    }

    async fn all(&self, session: &mut Session, statements: &[String]) -> Result<(), StepError> {
        for statement in statements {
            self.context().progress(crate::text::cut(statement, 80), None);
            self.execute(session, statement).await.map_err(|error| self.around_failed(error, statement))?;
        }
        Ok(())
    }

    fn around_failed(&self, error: StepError, statement: &str) -> StepError {
        let error = error.fact("statement", crate::text::cut(statement, 200));
        if error.code.as_deref() == Some("23503") {
            return StepError { message: format!("the rows of the backup do not fit the rest of the database: {}", error.message), ..error }
                .hint("rows that they refer to, or that refer to them, came or went since: name those tables in `tables:` too; everything was rolled back");
        }
        explained(error, &self.file)
    }
}

fn with(tables: &[String], query: &str) -> String {
    let list: Vec<String> = tables.iter().map(|table| text_literal(table)).collect();
    format!("WITH {} {query}", WANTED.replacen("{}", &list.join(", "), 1))
}
