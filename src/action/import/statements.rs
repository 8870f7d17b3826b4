//! The SQL of an import, for both kinds of database.
//!
//! Rows wait in a temporary table of the session that loads them: nobody else sees it, it
//! writes no WAL, and it is gone with the session, so a killed run leaves nothing behind.

use super::fields::{OnDuplicate, reference};
use crate::target::{Kind, text_literal as literal};

/// Words PostgreSQL or SQLite take for themselves.
const RESERVED: &str = " all analyse analyze and any array as asc asymmetric between both by case cast check collate column commit \
constraint create cross current_date current_role current_time current_timestamp current_user default deferrable delete desc \
distinct do drop else end escape except exists false fetch for foreign from full grant group having if ilike in index initially \
inner insert intersect into is isnull join lateral leading left like limit localtime localtimestamp natural not notnull null \
offset on only or order outer overlaps placing primary references returning right select session_user set similar some \
symmetric table tablesample then to trailing transaction true union unique update user using values variadic verbose when \
where window with ";

/// A name as it stands in the catalogue, quoted where SQL needs it.
pub(super) fn name(text: &str) -> String {
    let plain = text.starts_with(|first: char| first.is_ascii_lowercase() || first == '_')
        && text.chars().all(|letter| letter.is_ascii_lowercase() || letter.is_ascii_digit() || letter == '_')
        && !RESERVED.contains(&format!(" {text} "));
    if plain { text.to_owned() } else { format!("\"{}\"", text.replace('"', "\"\"")) }
}

/// A table with its schema, if it has one.
pub(super) fn table_name(text: &str) -> String {
    text.split('.').map(name).collect::<Vec<_>>().join(".")
}

fn names<'n>(all: impl IntoIterator<Item = &'n String>) -> String {
    all.into_iter().map(|text| name(text)).collect::<Vec<_>>().join(", ")
}

fn within((after, last): (u64, u64)) -> String {
    format!("runbook_line > {after} AND runbook_line <= {last}")
}

/// What the statements are about.
#[derive(Debug, Clone)]
pub(super) struct Statements {
    pub(super) kind: Kind,
    /// As the playbook names it.
    pub(super) table: String,
    pub(super) columns: Vec<String>,
    pub(super) key: Vec<String>,
    pub(super) on_duplicate: OnDuplicate,
    pub(super) run: String,
    pub(super) step: String,
    /// The column that gets the run's id.
    pub(super) run_column: Option<String>,
    /// Without it: the columns by which rows are noted in `runbook.imported`.
    pub(super) noted_by: Vec<String>,
    /// Of the staged rows only those behind the first of these lines, up to the second.
    pub(super) lines: Option<(u64, u64)>,
}

impl Statements {
    pub(super) fn staging(&self) -> &'static str {
        match self.kind {
            Kind::Postgres => "pg_temp.runbook_staging",
            Kind::Sqlite => "temp.runbook_staging",
        }
    }

    /// The staged rows that are loaded.
    fn source(&self) -> String {
        match self.lines {
            None => self.staging().to_owned(),
            Some(lines) => format!("(SELECT * FROM {} WHERE {}) batch", self.staging(), within(lines)),
        }
    }

    /// The last line, and the number, of the rows behind a line.
    pub(super) fn next_lines(&self, after: u64, most: u64) -> String {
        format!(
            "SELECT last, (SELECT count(*) FROM {staging} WHERE runbook_line > {after} AND runbook_line <= last) \
             FROM (SELECT max(runbook_line) AS last FROM \
             (SELECT runbook_line FROM {staging} WHERE runbook_line > {after} ORDER BY runbook_line LIMIT {most}) next) bound \
             WHERE last IS NOT NULL",
            staging = self.staging()
        )
    }

    pub(super) fn index_staging(&self) -> &'static str {
        match self.kind {
            Kind::Postgres => "CREATE INDEX runbook_staging_line ON pg_temp.runbook_staging (runbook_line)",
            Kind::Sqlite => "CREATE INDEX temp.runbook_staging_line ON runbook_staging (runbook_line)",
        }
    }

    fn unknown(&self) -> &'static str {
        match self.kind {
            Kind::Postgres => "pg_temp.runbook_unknown",
            Kind::Sqlite => "temp.runbook_unknown",
        }
    }

    /// A table with the columns' own types, so that what is staged fits.
    pub(super) fn create_staging(&self) -> String {
        let (columns, table) = (names(&self.columns), table_name(&self.table));
        match self.kind {
            Kind::Postgres => {
                format!("CREATE TEMP TABLE runbook_staging AS SELECT 0::bigint AS runbook_line, {columns} FROM {table} WITH NO DATA")
            }
            Kind::Sqlite => format!("CREATE TEMP TABLE runbook_staging AS SELECT 0 AS runbook_line, {columns} FROM {table} WHERE 0"),
        }
    }

    pub(super) fn copy(&self) -> String {
        format!("COPY {} (runbook_line, {}) FROM STDIN", self.staging(), names(&self.columns))
    }

    /// The run's id comes first in every row.
    pub(super) fn copy_into_table(&self) -> String {
        let columns = self.run_column.iter().chain(&self.columns);
        format!("COPY {} ({}) FROM STDIN", table_name(&self.table), names(columns))
    }

    /// For SQLite, which has no COPY: many rows as one JSON text.
    pub(super) fn fill(&self) -> String {
        let values: Vec<String> = (0..=self.columns.len()).map(|index| format!("value ->> {index}")).collect();
        format!("INSERT INTO {} (runbook_line, {}) SELECT {} FROM json_each($1)", self.staging(), names(&self.columns), values.join(", "))
    }

    /// Collects the staged rows that refer to nothing, with the columns concerned.
    pub(super) fn find_unknown(&self, references: &[(String, String)]) -> String {
        let parts: Vec<String> = references
            .iter()
            .enumerate()
            .filter_map(|(index, (column, to))| {
                let (table, field) = reference(to)?;
                Some(format!(
                    "SELECT s.runbook_line, {index} AS n, {column_text} AS name, CAST(s.{column} AS text) AS value, {to} AS target \
                     FROM {staging} s WHERE s.{column} IS NOT NULL AND NOT EXISTS (SELECT 1 FROM {table} r WHERE r.{field} = s.{column})",
                    column_text = self.text(column),
                    column = name(column),
                    to = self.text(to),
                    staging = self.staging(),
                    table = table_name(table),
                    field = name(field),
                ))
            })
            .collect();
        let problems = match self.kind {
            Kind::Postgres => "CAST(json_agg(json_build_array(name, value, target) ORDER BY n) AS text)",
            Kind::Sqlite => "json_group_array(json_array(name, value, target))",
        };
        format!(
            "CREATE TEMP TABLE runbook_unknown AS SELECT runbook_line, {problems} AS problems FROM ({}) found GROUP BY runbook_line",
            parts.join(" UNION ALL ")
        )
    }

    fn text(&self, text: &str) -> String {
        match self.kind {
            Kind::Postgres => format!("CAST({} AS text)", literal(text)),
            Kind::Sqlite => format!("'{}'", text.replace('\'', "''")),
        }
    }

    pub(super) fn index_unknown(&self) -> &'static str {
        match self.kind {
            Kind::Postgres => "CREATE INDEX runbook_unknown_line ON pg_temp.runbook_unknown (runbook_line)",
            Kind::Sqlite => "CREATE INDEX temp.runbook_unknown_line ON runbook_unknown (runbook_line)",
        }
    }

    pub(super) fn page_of_unknown(&self, after: u64, most: usize) -> String {
        format!("SELECT runbook_line, problems FROM {} WHERE runbook_line > {after} ORDER BY runbook_line LIMIT {most}", self.unknown())
    }

    pub(super) fn drop_unknown_rows(&self) -> String {
        format!("DELETE FROM {} WHERE runbook_line IN (SELECT runbook_line FROM {})", self.staging(), self.unknown())
    }

    /// How many staged rows there are, and how many of them have each column.
    pub(super) fn count_staged(&self) -> String {
        let counts: String = self.columns.iter().map(|column| format!(", count({})", name(column))).collect();
        format!("SELECT count(*){counts} FROM {}", self.staging())
    }

    /// Staged rows whose key is in the table.
    pub(super) fn count_present(&self) -> String {
        let same = self.same_key(&self.key);
        let key = self.key.iter().map(|column| format!("s.{}", name(column))).collect::<Vec<_>>().join(", ");
        format!(
            "SELECT count(*) FROM (SELECT DISTINCT {key} FROM (SELECT * FROM {}) s WHERE EXISTS (SELECT 1 FROM {} t WHERE {same})) present",
            self.source(),
            table_name(&self.table)
        )
    }

    fn same_key(&self, key: &[String]) -> String {
        key.iter().map(|column| format!("t.{0} = s.{0}", name(column))).collect::<Vec<_>>().join(" AND ")
    }

    /// The statement that loads everything.
    pub(super) fn insert(&self) -> String {
        let mut columns = names(&self.columns);
        let mut values = columns.clone();
        if let Some(run_column) = &self.run_column {
            columns.push_str(&format!(", {}", name(run_column)));
            values.push_str(&format!(", {}", literal(&self.run)));
        }
        let insert = format!("INSERT INTO {} ({columns})", table_name(&self.table));
        let key = names(&self.key);
        match (self.on_duplicate, self.kind) {
            // Staged rows lie in the order of the file and are read in it, so the first of two wins.
            (OnDuplicate::Fail, _) => format!("{insert} SELECT {values} FROM {}", self.source()),
            (OnDuplicate::Skip, _) => {
                let target = if self.key.is_empty() { String::new() } else { format!(" ({key})") };
                format!("{insert} SELECT {values} FROM {} WHERE true ON CONFLICT{target} DO NOTHING", self.source())
            }
            (OnDuplicate::Update, kind) => {
                let last = match kind {
                    Kind::Postgres => {
                        format!("SELECT DISTINCT ON ({key}) {values} FROM {} ORDER BY {key}, runbook_line DESC", self.source())
                    }
                    Kind::Sqlite => format!(
                        "SELECT {values} FROM (SELECT *, row_number() OVER (PARTITION BY {key} ORDER BY runbook_line DESC) AS runbook_n \
                         FROM {}) last WHERE runbook_n = 1",
                        self.source()
                    ),
                };
                let set: Vec<String> = self
                    .columns
                    .iter()
                    .filter(|column| !self.key.contains(column))
                    .map(|column| format!("{0} = excluded.{0}", name(column)))
                    .collect();
                let action = if set.is_empty() { "NOTHING".to_owned() } else { format!("UPDATE SET {}", set.join(", ")) };
                format!("{insert} {last} ON CONFLICT ({key}) DO {action}")
            }
        }
    }

    /// On PostgreSQL: the same, counting what is new and noting its keys.
    pub(super) fn insert_and_count(&self) -> String {
        // A row that was there before has been locked for the update, which its xmax tells.
        let added = if self.on_duplicate == OnDuplicate::Update { "(xmax = 0)" } else { "true" };
        let mut returned = vec![format!("{added} AS runbook_added")];
        returned.extend(self.noted_by.iter().map(|column| name(column)));
        let mut text = format!("WITH written AS ({} RETURNING {})", self.insert(), returned.join(", "));
        if !self.noted_by.is_empty() {
            let pairs: Vec<String> = self.noted_by.iter().map(|column| format!("{}, {}", literal(column), name(column))).collect();
            text.push_str(&format!(
                ", noted AS (INSERT INTO runbook.imported (run, step, table_name, key) SELECT {}, {}, {}, jsonb_build_object({}) \
                 FROM written WHERE runbook_added)",
                literal(&self.run),
                literal(&self.step),
                literal(&self.table),
                pairs.join(", ")
            ));
        }
        text.push_str(" SELECT count(*) FILTER (WHERE runbook_added), count(*) FILTER (WHERE NOT runbook_added) FROM written");
        text
    }

    /// On SQLite, before the rows are loaded: notes the keys that are new.
    pub(super) fn note_new(&self) -> String {
        let pairs: Vec<String> = self.noted_by.iter().map(|column| format!("{}, s.{}", self.text(column), name(column))).collect();
        format!(
            "INSERT INTO runbook_imported (run, step, table_name, key) SELECT DISTINCT {}, {}, {}, json_object({}) FROM (SELECT * FROM {}) s \
             WHERE NOT EXISTS (SELECT 1 FROM {} t WHERE {})",
            self.text(&self.run),
            self.text(&self.step),
            self.text(&self.table),
            pairs.join(", "),
            self.source(),
            table_name(&self.table),
            self.same_key(&self.noted_by)
        )
    }

    /// Where rows are noted that can't say themselves which run they came with.
    pub(super) fn create_imported(&self) -> &'static [&'static str] {
        match self.kind {
            Kind::Postgres => &[
                "CREATE TABLE IF NOT EXISTS runbook.imported (run text NOT NULL, step text NOT NULL, table_name text NOT NULL, \
                 key jsonb NOT NULL)",
                "CREATE INDEX IF NOT EXISTS imported_run ON runbook.imported (run)",
            ],
            Kind::Sqlite => &[
                "CREATE TABLE IF NOT EXISTS runbook_imported (run TEXT NOT NULL, step TEXT NOT NULL, table_name TEXT NOT NULL, \
                 key TEXT NOT NULL)",
                "CREATE INDEX IF NOT EXISTS runbook_imported_run ON runbook_imported (run)",
            ],
        }
    }

    /// Where the cursors of imports in batches are.
    pub(super) fn create_importing(&self) -> &'static [&'static str] {
        match self.kind {
            Kind::Postgres => {
                &["CREATE TABLE IF NOT EXISTS runbook.importing (run text, step text, fingerprint text NOT NULL, line bigint NOT NULL, \
                 inserted bigint NOT NULL, updated bigint NOT NULL, skipped bigint NOT NULL, PRIMARY KEY (run, step))"]
            }
            Kind::Sqlite => {
                &["CREATE TABLE IF NOT EXISTS runbook_importing (run TEXT, step TEXT, fingerprint TEXT NOT NULL, line INTEGER NOT NULL, \
                 inserted INTEGER NOT NULL, updated INTEGER NOT NULL, skipped INTEGER NOT NULL, PRIMARY KEY (run, step))"]
            }
        }
    }

    /// The staged rows behind a line whose key is there twice, in the file or in the table.
    pub(super) fn duplicates(&self, after: u64, most: usize) -> String {
        let key = names(&self.key);
        let own = self.key.iter().map(|column| format!("s.{}", name(column))).collect::<Vec<_>>().join(", ");
        format!(
            "SELECT s.runbook_line AS line, {own}, CASE WHEN EXISTS (SELECT 1 FROM {table} t WHERE {same}) THEN 'in the table' \
             ELSE 'earlier in the file' END AS \"there already\" \
             FROM (SELECT *, row_number() OVER (PARTITION BY {key} ORDER BY runbook_line) AS runbook_n FROM {staging} \
             WHERE {whole}) s \
             WHERE s.runbook_line > {after} AND (s.runbook_n > 1 OR EXISTS (SELECT 1 FROM {table} t WHERE {same})) \
             ORDER BY s.runbook_line LIMIT {most}",
            whole = self.key.iter().map(|column| format!("{} IS NOT NULL", name(column))).collect::<Vec<_>>().join(" AND "),
            table = table_name(&self.table),
            same = self.same_key(&self.key),
            staging = self.staging(),
        )
    }
}
