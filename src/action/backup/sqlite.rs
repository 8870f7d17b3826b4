//! What an SQLite file holds, and whether it is sound. The file is opened read-only and
//! belongs to nobody else.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Value;

use super::manifest::TableContent;
use crate::action::StepContext;
use crate::action::effect::cancellable;
use crate::action::snapshot::row_hash;
use crate::outcome::{Column, ErrorKind, StepError};
use crate::secret::Secret;
use crate::target::{ConnectionSpec, Expect, LedgerMode, RowSink, Session, SessionSettings, Statement, Targets, Variables, identifier};

/// The only connection of [`targets`].
pub const COPY: &str = "copy";

/// A file as a database of its own, of which nothing is expected.
pub fn targets(context: &StepContext, file: &Path) -> Targets {
    // In a URI these would end the name.
    let name = file.display().to_string().replace('%', "%25").replace('?', "%3f").replace('#', "%23");
    let url = Secret::new(format!("sqlite:{name}?mode=ro"));
    let spec = ConnectionSpec { name: COPY.into(), url, expect: Expect::default(), ledger: LedgerMode::None, environment: None };
    Targets::new(&context.run, vec![spec], &Variables::default())
}

/// A session on a file.
pub struct Contents<'a> {
    context: &'a StepContext,
    session: Session,
}

impl<'a> Contents<'a> {
    pub async fn open(context: &'a StepContext, targets: &Targets) -> Result<Self, StepError> {
        let settings = SessionSettings { statement_timeout: None, ..context.session.clone() };
        Ok(Self { context, session: targets.session(COPY, &context.step, &settings).await? })
    }

    /// What SQLite itself finds wrong with the file; empty: nothing.
    pub async fn damage(&mut self) -> Result<Vec<String>, StepError> {
        let found = self.texts("PRAGMA integrity_check").await?;
        Ok(found.into_iter().filter(|line| line != "ok").collect())
    }

    /// Rows whose foreign key points to nothing, by table.
    pub async fn orphans(&mut self) -> Result<BTreeMap<String, u64>, StepError> {
        let mut orphans = BTreeMap::new();
        for table in self.texts("PRAGMA foreign_key_check").await? {
            *orphans.entry(table).or_default() += 1;
        }
        Ok(orphans)
    }

    /// How many objects of each type there are.
    pub async fn objects(&mut self) -> Result<BTreeMap<String, u64>, StepError> {
        let mut objects = BTreeMap::new();
        let query =
            "SELECT type FROM sqlite_schema WHERE name NOT LIKE 'sqlite\\_%' ESCAPE '\\' AND tbl_name NOT LIKE 'runbook\\_%' ESCAPE '\\'";
        for kind in self.texts(query).await? {
            *objects.entry(kind.to_uppercase()).or_default() += 1;
        }
        Ok(objects)
    }

    /// All tables but those that runbook itself keeps.
    pub async fn tables(&mut self, fingerprint: bool) -> Result<Vec<TableContent>, StepError> {
        let query = "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\' \
                     AND name NOT LIKE 'runbook\\_%' ESCAPE '\\' ORDER BY name";
        let mut contents = Vec::new();
        for name in self.texts(query).await? {
            contents.push(self.table(identifier(&name), fingerprint).await?);
        }
        Ok(contents)
    }

    async fn table(&mut self, table: String, fingerprint: bool) -> Result<TableContent, StepError> {
        let (mut rows, mut sum) = (0, 0_i128);
        if fingerprint {
            let mut add = |_: &[Column], row: Vec<Value>| {
                rows += 1;
                sum += i128::from(row_hash(&row));
            };
            self.execute(&format!("SELECT * FROM {table}"), &mut add).await?;
        } else {
            let mut keep = |_: &[Column], row: Vec<Value>| rows = row.first().and_then(Value::as_u64).unwrap_or_default();
            self.execute(&format!("SELECT count(*) FROM {table}"), &mut keep).await?;
        }
        Ok(TableContent { table, rows, fingerprint: fingerprint.then(|| sum.to_string()) })
    }

    async fn texts(&mut self, query: &str) -> Result<Vec<String>, StepError> {
        let mut texts = Vec::new();
        let mut keep = |_: &[Column], row: Vec<Value>| texts.extend(row.first().and_then(Value::as_str).map(str::to_owned));
        self.execute(query, &mut keep).await?;
        Ok(texts)
    }

    async fn execute(&mut self, query: &str, rows: RowSink<'_>) -> Result<(), StepError> {
        let canceller = self.session.canceller();
        let statement = Statement::query(query);
        let done = cancellable(&canceller, &self.context.cancel, self.session.execute(&statement, rows)).await;
        done.map(|_| ()).map_err(StepError::from)
    }
}

/// What makes a copy useless, as an error.
pub fn damaged(damage: &[String]) -> Option<StepError> {
    let first = damage.first()?;
    Some(
        StepError::new(ErrorKind::Expectation, format!("SQLite finds the copy damaged: {first}"))
            .fact("problems", damage.len().to_string())
            .hint("the source may be damaged too: run PRAGMA integrity_check there"),
    )
}
