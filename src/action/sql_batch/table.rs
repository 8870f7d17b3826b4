//! What the database says of the table: its key, and in which order its rows may be visited.

use serde_json::Value;

use super::statements::Spec;
use super::talk::{Talk, failed, text, unusable, whole};
use super::{Order, SqlBatch};
use crate::outcome::StepError;
use crate::target::{Kind, identifier, text_literal};

/// The share of a table's rows below which they are few.
const FEW: f64 = 0.2;
/// Pages of a window: a quarter of the memory that a server has by default.
const WINDOW: f64 = 4096.0;
/// Types of keys and what hashes them, the same way whatever a session's settings are.
const HASHES: &[(&str, &str)] = &[
    ("int2", "hashint2"),
    ("int4", "hashint4"),
    ("int8", "hashint8"),
    ("uuid", "uuid_hash"),
    ("text", "hashtext"),
    ("varchar", "hashtext"),
    ("bpchar", "hashbpchar"),
];

/// The table as it is.
#[derive(Debug, Clone)]
pub(super) struct Table {
    /// Quoted columns in the order of the index.
    pub key: Vec<String>,
    /// Pages of its file; 0 where that is not known.
    pub pages: u64,
    /// Rows on a page, about.
    pub rows_per_page: f64,
    /// How the rows are visited.
    pub way: Way,
    /// Why by key or by place.
    pub reason: String,
    /// SQL: a number from 0 to 7 by a row's key, where there is one.
    pub share: Option<Share>,
}

/// What parts rows that lie together.
#[derive(Debug, Clone)]
pub(super) struct Share {
    /// An expression over the key.
    pub sql: String,
    /// Keys that follow each other are spread evenly, which chance does not.
    pub even: bool,
}

/// How rows are visited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// By key, each range at once.
    Keys,
    /// By key, each range in eight transactions, as for pages: the room that a page's rows of
    /// one share leave behind takes the new versions of the next, so that most indexes stay
    /// as they are. Each row belongs to one share, whatever is done to it.
    Shares,
    /// By place, each window of pages in eight transactions.
    Pages,
}

impl Way {
    /// As the books have it.
    pub(super) fn code(self) -> u64 {
        match self {
            Self::Keys => 0,
            Self::Pages => 1,
            Self::Shares => 2,
        }
    }

    pub(super) fn from_code(code: u64) -> Self {
        [Self::Pages, Self::Shares].into_iter().find(|way| way.code() == code).unwrap_or(Self::Keys)
    }

    /// The order's name in the language.
    pub(super) fn order(self) -> &'static str {
        if self == Self::Pages { "physical" } else { "key" }
    }
}

/// What the catalogue says of the table's file.
struct File {
    /// Nothing but a heap of its own.
    ordinary: Result<(), String>,
    /// Indexes over what is set.
    covering: Option<String>,
}

impl Table {
    pub(super) async fn look(batch: &SqlBatch, spec: &Spec, talk: &mut Talk) -> Result<Self, StepError> {
        let wanted: Vec<String> = batch.key.iter().map(|column| column.value.clone()).collect();
        let keys = unique_keys(spec, talk).await?;
        let named = |key: &Vec<String>| wanted.is_empty() || *key == wanted;
        let key = keys.iter().find(|key| named(key)).ok_or_else(|| no_key(spec, &wanted, &keys))?;
        let mut table = Self {
            key: key.iter().map(|column| identifier(column)).collect(),
            pages: 0,
            rows_per_page: 1.0,
            way: Way::Keys,
            reason: String::new(),
            share: None,
        };
        table.choose_way(batch, spec, key, talk).await?;
        Ok(table)
    }

    async fn choose_way(&mut self, batch: &SqlBatch, spec: &Spec, key: &[String], talk: &mut Talk) -> Result<(), StepError> {
        let file = match spec.kind {
            Kind::Postgres => Some(self.look_at_file(spec, talk).await?),
            Kind::Sqlite => None,
        };
        let stays = file.as_ref().is_some_and(|file| file.ordinary.is_ok() && file.covering.is_none());
        if spec.kind == Kind::Postgres {
            self.share = share(spec, key, talk).await?;
        }
        let against = against_pages(spec, file, talk.session.identity().major_version);
        let way = if stays && spec.leaves_key(&self.key) && self.share.is_some() { Way::Shares } else { Way::Keys };
        (self.way, self.reason) = match (batch.order.value, against) {
            (Order::Key, _) => (way, "as the step asks".into()),
            (Order::Physical, Some(reason)) => {
                return Err(unusable(format!("`order: physical` cannot be used on {}: {reason}", spec.table))
                    .hint("Leave `order` out: the step then visits the rows by their key."));
            }
            (Order::Physical, None) => (Way::Pages, "as the step asks".into()),
            (Order::Auto, Some(reason)) => (way, reason),
            (Order::Auto, None) => (Way::Pages, "rows stay on their pages, as no index covers what is set".into()),
        };
        Ok(())
    }

    async fn look_at_file(&mut self, spec: &Spec, talk: &mut Talk) -> Result<File, StepError> {
        let sql = format!(
            "SELECT c.relkind::text, coalesce(m.amname, ''), \
             pg_catalog.pg_relation_size(c.oid) / pg_catalog.current_setting('block_size')::bigint, \
             greatest(c.reltuples, 0)::bigint, greatest(c.relpages, 1)::bigint, \
             EXISTS (SELECT FROM pg_catalog.pg_inherits h WHERE h.inhparent = c.oid), \
             (SELECT string_agg(i.indexrelid::regclass::text, ', ') FROM pg_catalog.pg_index i WHERE i.indrelid = c.oid AND {}) \
             FROM pg_catalog.pg_class c LEFT JOIN pg_catalog.pg_am m ON m.oid = c.relam WHERE c.oid = {}::regclass",
            spec.covered(),
            text_literal(&spec.table)
        );
        let rows = talk.look(&sql).await.map_err(failed)?;
        let Some([kind, method, pages, tuples, counted_pages, inherited, indexes]) = rows.first().map(Vec::as_slice) else {
            return Ok(File { ordinary: Err("the catalogue does not describe it".into()), covering: None });
        };
        self.pages = whole(pages);
        self.rows_per_page = (whole(tuples) as f64 / whole(counted_pages).max(1) as f64).max(1.0);
        let ordinary = match (text(Some(kind)).as_deref(), text(Some(method)).as_deref()) {
            (Some("r"), Some("heap")) if inherited == &Value::Bool(false) => Ok(()),
            (Some("r"), Some("heap")) => Err("other tables inherit from it".into()),
            _ => Err("it is not one ordinary table".into()),
        };
        Ok(File { ordinary, covering: text(Some(indexes)) })
    }

    /// Whether so few of its rows are to be changed that visiting each range eight times would
    /// cost more than it saves.
    pub(super) fn is_sparse(&self, rows: u64) -> bool {
        (rows as f64) < self.pages as f64 * self.rows_per_page * FEW
    }

    /// Corrects what old statistics say, or none: it has at least so many rows.
    pub(super) fn has_rows(&mut self, rows: u64) {
        self.rows_per_page = self.rows_per_page.max(rows as f64 / self.pages.max(1) as f64);
    }

    /// Rows of a window of pages that stays in the server's memory while it is visited.
    pub(super) fn window(&self, size: u64) -> u64 {
        size.min((self.rows_per_page * WINDOW) as u64).max(1)
    }
}

/// Why rows may not, or should not, be visited by their place.
fn against_pages(spec: &Spec, file: Option<File>, major_version: u32) -> Option<String> {
    let Some(file) = file else { return Some("SQLite's rows have no place".into()) };
    if spec.convergent.is_none() {
        return Some("`where` does not ask for `COLUMN IS NULL` of a column that is set".into());
    }
    if major_version < 14 {
        return Some("it needs PostgreSQL 14".into());
    }
    match (file.ordinary, file.covering) {
        (Err(reason), None) => Some(reason),
        (Ok(()) | Err(_), Some(indexes)) => Some(format!("indexes cover what is set ({indexes}), so rows move")),
        (Ok(()), None) => None,
    }
}

/// Spreads the rows of a page evenly over eight shares, where the key's types allow it.
async fn share(spec: &Spec, key: &[String], talk: &mut Talk) -> Result<Option<Share>, StepError> {
    let sql = format!(
        "SELECT a.attname::text, t.typname::text FROM pg_catalog.pg_attribute a JOIN pg_catalog.pg_type t ON t.oid = a.atttypid \
         WHERE a.attrelid = {}::regclass AND t.typnamespace = 'pg_catalog'::regnamespace",
        text_literal(&spec.table)
    );
    let rows = talk.look(&sql).await.map_err(failed)?;
    let type_of = |column: &String| rows.iter().find(|row| text(row.first()).as_ref() == Some(column)).and_then(|row| text(row.get(1)));
    let hashes = key.iter().map(|column| {
        let (_, function) = HASHES.iter().find(|(kind, _)| type_of(column).as_deref() == Some(kind))?;
        Some((format!("{}.{}", spec.name, identifier(column)), *function))
    });
    Ok(hashes.collect::<Option<Vec<_>>>().map(|hashes| match hashes.as_slice() {
        // By the golden ratio, so that numbers in a row, or at equal distances, are spread evenly.
        [(column, function)] if function.starts_with("hashint") => {
            Share { sql: format!("((({column}::bigint % 65521) * 40503) & 65535) >> 13"), even: true }
        }
        hashes => {
            let hashes: Vec<String> = hashes.iter().map(|(column, function)| format!("pg_catalog.{function}({column})")).collect();
            Share { sql: format!("({}) & 7", hashes.join(" # ")), even: false }
        }
    }))
}

/// The unique keys over columns that are NOT NULL, the primary one first.
async fn unique_keys(spec: &Spec, talk: &mut Talk) -> Result<Vec<Vec<String>>, StepError> {
    let sql = match spec.kind {
        Kind::Postgres => format!(
            "SELECT json_agg(a.attname ORDER BY k.n)::text FROM pg_catalog.pg_index i \
             CROSS JOIN LATERAL unnest(i.indkey) WITH ORDINALITY k(attnum, n) \
             JOIN pg_catalog.pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum \
             WHERE i.indrelid = {}::regclass AND i.indisunique AND i.indisvalid AND i.indimmediate AND i.indpred IS NULL \
             AND i.indexprs IS NULL AND k.n <= i.indnkeyatts GROUP BY i.indexrelid, i.indisprimary \
             HAVING bool_and(a.attnotnull) ORDER BY i.indisprimary DESC, count(*), i.indexrelid",
            text_literal(&spec.table)
        ),
        Kind::Sqlite => sqlite_keys(&spec.name),
    };
    let rows = talk.look(&sql).await.map_err(failed)?;
    let parsed = rows.iter().filter_map(|row| serde_json::from_str(&text(row.first())?).ok());
    Ok(parsed.collect())
}

fn sqlite_keys(name: &str) -> String {
    let name = text_literal(name.trim_matches('"'));
    format!(
        "SELECT * FROM (SELECT json_group_array(name) AS columns FROM (SELECT name FROM pragma_table_info({name}) WHERE pk > 0 ORDER BY pk) \
         HAVING count(*) > 0) UNION ALL \
         SELECT json_group_array(column_name) FROM (SELECT l.seq, i.name AS column_name, i.seqno, \
           (SELECT count(*) FROM pragma_index_info(l.name) p JOIN pragma_table_info({name}) t ON t.name = p.name WHERE t.\"notnull\" = 0) AS nullable \
           FROM pragma_index_list({name}) l, pragma_index_info(l.name) i WHERE l.\"unique\" = 1 AND l.partial = 0 AND l.origin <> 'pk' ORDER BY l.seq, i.seqno) \
         WHERE nullable = 0 GROUP BY seq"
    )
}

fn no_key(spec: &Spec, wanted: &[String], found: &[Vec<String>]) -> StepError {
    let found: Vec<String> = found.iter().map(|key| format!("({})", key.join(", "))).collect();
    let error = if wanted.is_empty() {
        unusable(format!("{} has no unique key over columns that are all NOT NULL, so its batches have no order to go on in", spec.table))
            .hint("Give it a primary key, or change it in one statement with `sql: {exec: …}`.")
    } else {
        unusable(format!("({}) is no unique key of {} over columns that are all NOT NULL", wanted.join(", "), spec.table))
    };
    if found.is_empty() { error } else { error.fact("its keys", found.join(", ")) }
}
