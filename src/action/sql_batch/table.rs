//! What the database says of the table: its key, and in which order its rows may be visited.

use serde_json::Value;

use super::statements::Spec;
use super::talk::{Talk, failed, text, unusable, whole};
use super::{Order, SqlBatch};
use crate::outcome::StepError;
use crate::target::{Kind, identifier, text_literal};

/// The table as it is.
#[derive(Debug, Clone)]
pub(super) struct Table {
    /// Quoted columns in the order of the index.
    pub key: Vec<String>,
    /// Pages of its file; 0 where they are not visited.
    pub pages: u64,
    /// Rows on a page, about.
    pub rows_per_page: f64,
    /// Visited by place instead of by key.
    pub physical: bool,
    /// Why.
    pub reason: String,
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
            physical: false,
            reason: String::new(),
        };
        table.choose_order(batch, spec, talk).await?;
        Ok(table)
    }

    async fn choose_order(&mut self, batch: &SqlBatch, spec: &Spec, talk: &mut Talk) -> Result<(), StepError> {
        let against = self.against_physical(spec, talk).await?;
        (self.physical, self.reason) = match (batch.order.value, against) {
            (Order::Key, _) => (false, "as the step asks".into()),
            (Order::Physical, Some(reason)) => {
                return Err(unusable(format!("`order: physical` cannot be used on {}: {reason}", spec.table))
                    .hint("Leave `order` out: the step then visits the rows by their key."));
            }
            (Order::Physical, None) => (true, "as the step asks".into()),
            (Order::Auto, Some(reason)) => (false, reason),
            (Order::Auto, None) => (true, "rows stay on their pages, as no index covers what is set".into()),
        };
        Ok(())
    }

    /// Why rows may not, or should not, be visited by their place.
    async fn against_physical(&mut self, spec: &Spec, talk: &mut Talk) -> Result<Option<String>, StepError> {
        if spec.kind == Kind::Sqlite {
            return Ok(Some("SQLite's rows have no place".into()));
        }
        if spec.convergent.is_none() {
            return Ok(Some("`where` does not ask for `COLUMN IS NULL` of a column that is set".into()));
        }
        if talk.session.identity().major_version < 14 {
            return Ok(Some("it needs PostgreSQL 14".into()));
        }
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
            return Ok(Some("the catalogue does not describe it".into()));
        };
        self.pages = whole(pages);
        self.rows_per_page = (whole(tuples) as f64 / whole(counted_pages).max(1) as f64).max(1.0);
        Ok(match (text(Some(kind)).as_deref(), text(Some(method)).as_deref(), text(Some(indexes))) {
            (Some("r"), Some("heap"), None) if inherited == &Value::Bool(false) => None,
            (Some("r"), Some("heap"), None) => Some("other tables inherit from it".into()),
            (Some("r"), Some("heap"), Some(indexes)) => Some(format!("indexes cover what is set ({indexes}), so rows move")),
            _ => Some("it is not one ordinary table".into()),
        })
    }
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
