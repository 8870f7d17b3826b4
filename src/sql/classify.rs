//! What can be said of a statement by looking at its text.
//!
//! Two answers decide what the engine does: a statement that cannot run in a
//! transaction needs `transaction: none`, and one that is not a plain read does not
//! belong in a `query`. The latter is advice for the author only; what holds a query
//! to reading is the server's READ ONLY transaction.

mod transaction;

use std::fmt;

use super::cursor::{VERBS, Words};
use super::lexer::TokenKind;
use super::tables::tables;
use transaction::{pragma_reads, reshapes_transaction, transaction_control, transactional};

/// What a statement does, by its first words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// `SELECT`, `VALUES` or `TABLE`, also behind `WITH`.
    Select,
    /// `INSERT`, and SQLite's `REPLACE`.
    Insert,
    /// `UPDATE`.
    Update,
    /// `DELETE`.
    Delete,
    /// `MERGE`.
    Merge,
    /// `TRUNCATE`.
    Truncate,
    /// `CREATE INDEX`.
    CreateIndex {
        /// Without blocking writers.
        concurrently: bool,
    },
    /// `DROP INDEX`.
    DropIndex {
        /// Without blocking readers.
        concurrently: bool,
    },
    /// `REINDEX`.
    Reindex {
        /// Without blocking writers.
        concurrently: bool,
    },
    /// `CREATE TABLE`, also `… AS`.
    CreateTable,
    /// `ALTER TABLE`.
    AlterTable,
    /// `DROP TABLE`.
    DropTable,
    /// `REFRESH MATERIALIZED VIEW`.
    Refresh {
        /// Without blocking readers.
        concurrently: bool,
    },
    /// `VACUUM`.
    Vacuum,
    /// `ANALYZE`.
    Analyze,
    /// `CLUSTER`.
    Cluster,
    /// `EXPLAIN`.
    Explain {
        /// The statement is executed.
        analyze: bool,
    },
    /// `SHOW`.
    Show,
    /// `SET` and `RESET`.
    Set,
    /// SQLite's `PRAGMA`.
    Pragma,
    /// `LOCK TABLE`.
    Lock,
    /// `DO`.
    Do,
    /// `CALL`.
    Call,
    /// `COPY` between a table and a file of the server.
    Copy,
    /// `BEGIN`, `START TRANSACTION`.
    Begin,
    /// `COMMIT`, `END`.
    Commit,
    /// `ROLLBACK`, `ABORT`, also to a savepoint.
    Rollback,
    /// `SAVEPOINT`, `RELEASE`.
    Savepoint,
    /// Anything else, by its first one or two words.
    Other(String),
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let concurrently = match self {
            Self::CreateIndex { concurrently }
            | Self::DropIndex { concurrently }
            | Self::Reindex { concurrently }
            | Self::Refresh { concurrently } => *concurrently,
            _ => false,
        };
        f.write_str(match self {
            Self::Select => "SELECT",
            Self::Insert => "INSERT",
            Self::Update => "UPDATE",
            Self::Delete => "DELETE",
            Self::Merge => "MERGE",
            Self::Truncate => "TRUNCATE",
            Self::CreateIndex { .. } => "CREATE INDEX",
            Self::DropIndex { .. } => "DROP INDEX",
            Self::Reindex { .. } => "REINDEX",
            Self::CreateTable => "CREATE TABLE",
            Self::AlterTable => "ALTER TABLE",
            Self::DropTable => "DROP TABLE",
            Self::Refresh { .. } => "REFRESH MATERIALIZED VIEW",
            Self::Vacuum => "VACUUM",
            Self::Analyze => "ANALYZE",
            Self::Cluster => "CLUSTER",
            Self::Explain { analyze: false } => "EXPLAIN",
            Self::Explain { analyze: true } => "EXPLAIN ANALYZE",
            Self::Show => "SHOW",
            Self::Set => "SET",
            Self::Pragma => "PRAGMA",
            Self::Lock => "LOCK TABLE",
            Self::Do => "DO",
            Self::Call => "CALL",
            Self::Copy => "COPY",
            Self::Begin => "BEGIN",
            Self::Commit => "COMMIT",
            Self::Rollback => "ROLLBACK",
            Self::Savepoint => "SAVEPOINT",
            Self::Other(words) => words,
        })?;
        f.write_str(if concurrently { " CONCURRENTLY" } else { "" })
    }
}

/// A statement's properties.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Statement {
    /// What it does.
    pub kind: Kind,
    /// By its form it changes nothing and locks no rows. A function it calls may.
    pub reads_only: bool,
    /// It can run inside a transaction block, and has its effect there.
    pub transactional: bool,
    /// It begins, ends or reshapes the transaction, which is the engine's to do.
    pub transaction_control: bool,
    /// The server takes bind parameters in it.
    pub takes_parameters: bool,
    /// Tables and views it names, each once, in the order met; without those that
    /// `WITH` defines.
    pub tables: Vec<String>,
}

/// Says what a single statement is.
pub fn classify(statement: &str) -> Statement {
    let words = Words::new(statement);
    let mut common = Vec::new();
    let verb = words.verb(0, &mut common);
    let kind = kind(&words, verb);
    Statement {
        reads_only: reads_only(&words, verb, &kind),
        transactional: transactional(&words, &kind),
        transaction_control: transaction_control(&words, &kind),
        takes_parameters: takes_parameters(&words, &kind),
        tables: tables(&words, &kind),
        kind,
    }
}

fn kind(words: &Words<'_>, verb: usize) -> Kind {
    let first = if words.is_any(verb, VERBS) { verb } else { 0 };
    match words.str(first).to_ascii_lowercase().as_str() {
        "select" | "values" | "table" => Kind::Select,
        "insert" | "replace" => Kind::Insert,
        "update" => Kind::Update,
        "delete" => Kind::Delete,
        "merge" => Kind::Merge,
        "truncate" => Kind::Truncate,
        "create" => created(words),
        "drop" if words.is(1, "index") => Kind::DropIndex { concurrently: words.is(2, "concurrently") },
        "drop" if words.is(1, "table") => Kind::DropTable,
        "alter" if words.is(1, "table") => Kind::AlterTable,
        "reindex" => {
            let target = words.behind(1);
            Kind::Reindex { concurrently: option(words, 1, "concurrently") == Some(true) || words.is(target + 1, "concurrently") }
        }
        "refresh" => Kind::Refresh { concurrently: words.is(3, "concurrently") },
        "vacuum" => Kind::Vacuum,
        "analyze" | "analyse" => Kind::Analyze,
        "cluster" => Kind::Cluster,
        "explain" => Kind::Explain { analyze: words.is_any(1, &["analyze", "analyse"]) || option(words, 1, "analyze") == Some(true) },
        "show" => Kind::Show,
        "set" | "reset" => Kind::Set,
        "pragma" => Kind::Pragma,
        "lock" => Kind::Lock,
        "do" => Kind::Do,
        "call" => Kind::Call,
        "copy" => Kind::Copy,
        "begin" => Kind::Begin,
        "start" if words.is(1, "transaction") => Kind::Begin,
        "commit" | "rollback" if words.is(1, "prepared") => other(words),
        "commit" | "end" => Kind::Commit,
        "rollback" | "abort" => Kind::Rollback,
        "savepoint" | "release" => Kind::Savepoint,
        _ => other(words),
    }
}

fn created(words: &Words<'_>) -> Kind {
    let index = words.skip(1, &["unique"]);
    if words.is(index, "index") {
        return Kind::CreateIndex { concurrently: words.is(index + 1, "concurrently") };
    }
    if words.is(created_object(words), "table") { Kind::CreateTable } else { other(words) }
}

/// Where a `CREATE` names what it creates, behind `TEMP`, `UNLOGGED` and the like.
pub(super) fn created_object(words: &Words<'_>) -> usize {
    const MODIFIERS: &[&str] = &["or", "replace", "global", "local", "temp", "temporary", "unlogged", "unique", "constraint", "virtual"];
    (1..words.len()).find(|index| !words.is_any(*index, MODIFIERS)).unwrap_or(1)
}

fn other(words: &Words<'_>) -> Kind {
    let object = if words.is(0, "create") { created_object(words) } else { 1 };
    let two = words.is_any(0, &["create", "drop", "alter", "security", "import", "prepare", "commit", "rollback", "discard", "reassign"]);
    let mut label = words.str(0).to_uppercase();
    if two && words.kind(object) == Some(&TokenKind::Word) {
        label.push(' ');
        label.push_str(&words.str(object).to_uppercase());
    }
    Kind::Other(label)
}

/// The value of a Boolean option in `(ANALYZE, TIMING off)`; named without a value it
/// is on, and the last one counts.
fn option(words: &Words<'_>, open: usize, name: &str) -> Option<bool> {
    let end = words.behind(open);
    (open + 1..end)
        .filter(|index| words.is(*index, name) || (name == "analyze" && words.is(*index, "analyse")))
        .rfind(|index| *index == open + 1 || words.kind(index - 1) == Some(&TokenKind::Comma))
        .map(|index| !matches!(words.str(index + 1).trim_matches('\'').to_ascii_lowercase().as_str(), "off" | "false" | "0" | "no"))
}

fn reads_only(words: &Words<'_>, verb: usize, kind: &Kind) -> bool {
    match kind {
        Kind::Select => !writes_inside(words),
        Kind::Show => true,
        Kind::Explain { analyze: false } => true,
        Kind::Explain { analyze: true } => {
            let start = explained(words);
            let inner = words.verb(start, &mut Vec::new());
            words.is_any(inner, &["select", "values", "table"]) && !writes_inside(words)
        }
        Kind::Set => !reshapes_transaction(words),
        Kind::Pragma => pragma_reads(words),
        Kind::Other(_) => match words.str(verb).to_ascii_lowercase().as_str() {
            "fetch" | "move" | "close" | "deallocate" => true,
            "declare" => !writes_inside(words),
            _ => false,
        },
        _ => false,
    }
}

/// Where the statement begins that an `EXPLAIN` is about.
pub(super) fn explained(words: &Words<'_>) -> usize {
    let mut index = words.behind(1);
    while words.is_any(index, &["analyze", "analyse", "verbose", "query", "plan"]) {
        index += 1;
    }
    index
}

/// `SELECT … INTO`, row locks, and `WITH … AS (DELETE …)`.
fn writes_inside(words: &Words<'_>) -> bool {
    (0..words.len()).any(|index| {
        words.is(index, "into")
            || (words.is(index, "for")
                && (words.is_any(index + 1, &["update", "share"])
                    || words.are(index + 1, &["no", "key", "update"])
                    || words.are(index + 1, &["key", "share"])))
            || (words.is_open(index) && index > 0 && words.is_any(index - 1, &["as", "materialized"]) && modifies(words, index))
    })
}

fn modifies(words: &Words<'_>, open: usize) -> bool {
    let verb = words.verb(open, &mut Vec::new());
    words.are(verb, &["insert", "into"])
        || words.are(verb, &["delete", "from"])
        || words.are(verb, &["merge", "into"])
        // `AS (update text)` may also be a column definition list.
        || (words.is(verb, "update") && (verb..words.behind(open)).any(|index| words.is(index, "set")))
}

fn takes_parameters(words: &Words<'_>, kind: &Kind) -> bool {
    match kind {
        Kind::Select | Kind::Insert | Kind::Update | Kind::Delete | Kind::Merge => true,
        // SQLite's backup takes an expression for the file's name.
        Kind::Vacuum => words.is(1, "into") || words.is(2, "into"),
        Kind::Other(label) => label == "ATTACH",
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One line a statement: kind, then what is remarkable.
    fn summary(text: &str) -> String {
        let statement = classify(text);
        let mut line = statement.kind.to_string();
        for (holds, word) in [
            (statement.reads_only, "reads"),
            (!statement.transactional, "outside of transactions"),
            (statement.transaction_control, "control"),
        ] {
            if holds {
                line.push_str(" | ");
                line.push_str(word);
            }
        }
        if !statement.tables.is_empty() {
            line.push_str(&format!(" | {}", statement.tables.join(", ")));
        }
        line
    }

    #[track_caller]
    fn table(rows: &[(&str, &str)]) {
        for (text, expected) in rows {
            assert_eq!(summary(text), *expected, "{text}");
            let commented = format!("/* c */ {} -- c", text.replace(' ', "\n"));
            assert_eq!(classify(&commented), classify(text), "{commented}");
        }
    }

    #[test]
    fn reading_is_told_from_writing() {
        table(&[
            ("SELECT 1", "SELECT | reads"),
            ("select count(*) from Racks r, \"Odd-Name\" o join s.scans using (id)", "SELECT | reads | racks, \"Odd-Name\", s.scans"),
            ("(SELECT a FROM t1) UNION (SELECT b FROM t2)", "SELECT | reads | t1, t2"),
            ("VALUES (1), (2)", "SELECT | reads"),
            ("TABLE racks", "SELECT | reads | racks"),
            ("SHOW server_version", "SHOW | reads"),
            ("SELECT * FROM t FOR UPDATE", "SELECT | t"),
            ("SELECT * FROM t FOR NO KEY UPDATE SKIP LOCKED", "SELECT | t"),
            ("SELECT update, delete FROM t", "SELECT | reads | t"),
            ("SELECT a INTO b FROM c", "SELECT | b, c"),
            ("SELECT 'for update', \"into\" FROM t", "SELECT | reads | t"),
            ("WITH gone AS (DELETE FROM t RETURNING *) SELECT count(*) FROM gone", "SELECT | t"),
            ("WITH x AS (SELECT 1), y AS MATERIALIZED (UPDATE t SET a = 1 RETURNING a) SELECT 1", "SELECT | t"),
            ("WITH RECURSIVE x (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM x) SELECT n FROM x", "SELECT | reads"),
            ("WITH x AS (SELECT * FROM a) DELETE FROM b USING x WHERE b.id = x.id", "DELETE | a, b"),
            ("WITH RECURSIVE x AS (SELECT 1) SEARCH DEPTH FIRST BY a, b SET c SELECT 1", "SELECT | reads"),
            ("SELECT extract(epoch FROM now()), a IS DISTINCT FROM b FROM t", "SELECT | reads | t"),
            ("SELECT * FROM generate_series(1, 2) g, t", "SELECT | reads | t"),
            ("SELECT * FROM json_to_record('{}') AS (update text)", "SELECT | reads"),
            ("SELECT * FROM (SELECT a FROM t1) x LEFT JOIN LATERAL (SELECT 1 FROM t2) y ON true, t3", "SELECT | reads | t1, t2, t3"),
            ("SELECT a, b FROM t WHERE c IN (SELECT d FROM u) ORDER BY a, b", "SELECT | reads | t, u"),
            ("EXPLAIN DELETE FROM t", "EXPLAIN | reads | t"),
            ("EXPLAIN ANALYZE DELETE FROM t", "EXPLAIN ANALYZE | t"),
            ("EXPLAIN (ANALYZE, BUFFERS) SELECT 1 FROM t", "EXPLAIN ANALYZE | reads | t"),
            ("EXPLAIN (ANALYZE off) DELETE FROM t", "EXPLAIN | reads | t"),
            ("EXPLAIN QUERY PLAN SELECT 1 FROM t", "EXPLAIN | reads | t"),
            ("FETCH 10 FROM c", "FETCH | reads"),
            ("PRAGMA table_info(racks)", "PRAGMA | reads"),
            ("PRAGMA user_version", "PRAGMA | reads"),
            ("PRAGMA user_version = 3", "PRAGMA"),
        ]);
    }

    #[test]
    fn writing_names_its_tables() {
        table(&[
            ("INSERT INTO a (x, y) SELECT x, y FROM b ON CONFLICT (x) DO UPDATE SET y = 1", "INSERT | a, b"),
            ("UPDATE ONLY a SET x = b.y FROM b WHERE a.id = b.id", "UPDATE | a, b"),
            ("DELETE FROM a USING b, c WHERE a.id = b.id", "DELETE | a, b, c"),
            ("MERGE INTO a USING b ON a.id = b.id WHEN MATCHED THEN UPDATE SET x = 1", "MERGE | a, b"),
            ("REPLACE INTO a VALUES (1)", "INSERT | a"),
            ("TRUNCATE TABLE a, ONLY b", "TRUNCATE | a, b"),
            ("CREATE UNIQUE INDEX i ON s.a (x)", "CREATE INDEX | s.a"),
            ("ALTER TABLE IF EXISTS ONLY a ADD COLUMN b int", "ALTER TABLE | a"),
            ("CREATE TEMP TABLE IF NOT EXISTS a AS SELECT * FROM b", "CREATE TABLE | a, b"),
            ("DROP TABLE IF EXISTS a, b CASCADE", "DROP TABLE | a, b"),
            ("CREATE OR REPLACE VIEW v AS SELECT * FROM b", "CREATE VIEW | b"),
            ("LOCK TABLE a, b IN SHARE MODE", "LOCK TABLE | a, b"),
            ("COPY a (x) FROM '/srv/x.csv'", "COPY | a"),
            ("ANALYZE VERBOSE a (x), b", "ANALYZE | a, b"),
            ("REFRESH MATERIALIZED VIEW CONCURRENTLY m", "REFRESH MATERIALIZED VIEW CONCURRENTLY | m"),
            ("GRANT SELECT ON a TO b", "GRANT"),
            ("", ""),
        ]);
    }

    #[test]
    fn what_no_transaction_holds_is_known() {
        table(&[
            ("CREATE INDEX CONCURRENTLY i ON a (x)", "CREATE INDEX CONCURRENTLY | outside of transactions | a"),
            ("CREATE UNIQUE INDEX CONCURRENTLY IF NOT EXISTS i ON a (x)", "CREATE INDEX CONCURRENTLY | outside of transactions | a"),
            ("DROP INDEX CONCURRENTLY i", "DROP INDEX CONCURRENTLY | outside of transactions"),
            ("REINDEX (VERBOSE, CONCURRENTLY) TABLE a", "REINDEX CONCURRENTLY | outside of transactions | a"),
            ("REINDEX INDEX CONCURRENTLY i", "REINDEX CONCURRENTLY | outside of transactions"),
            ("REINDEX DATABASE d", "REINDEX | outside of transactions"),
            ("REINDEX TABLE a", "REINDEX | a"),
            ("VACUUM (ANALYZE, VERBOSE) a", "VACUUM | outside of transactions | a"),
            ("VACUUM FULL a", "VACUUM | outside of transactions | a"),
            ("CLUSTER", "CLUSTER | outside of transactions"),
            ("CLUSTER a USING i", "CLUSTER | a"),
            ("CREATE DATABASE d", "CREATE DATABASE | outside of transactions"),
            ("ALTER SYSTEM SET work_mem = '1MB'", "ALTER SYSTEM | outside of transactions"),
            ("DROP TABLESPACE t", "DROP TABLESPACE | outside of transactions"),
            ("ALTER DATABASE d SET TABLESPACE t", "ALTER DATABASE | outside of transactions"),
            ("ALTER DATABASE d SET work_mem = '1MB'", "ALTER DATABASE"),
            ("ALTER TABLE a DETACH PARTITION b CONCURRENTLY", "ALTER TABLE | outside of transactions | a"),
            ("DO $$ BEGIN UPDATE a SET b = 1; COMMIT; END $$", "DO | outside of transactions"),
            ("DO $$ BEGIN PERFORM 'COMMIT;'; /* COMMIT; */ RAISE NOTICE 'x'; END $$", "DO"),
            ("CALL tidy()", "CALL"),
            ("PRAGMA foreign_keys = off", "PRAGMA | outside of transactions"),
            ("COMMIT PREPARED 'x'", "COMMIT PREPARED | outside of transactions"),
        ]);
    }

    #[test]
    fn the_transaction_is_the_engines() {
        table(&[
            ("BEGIN ISOLATION LEVEL SERIALIZABLE", "BEGIN | control"),
            ("START TRANSACTION READ WRITE", "BEGIN | control"),
            ("COMMIT AND CHAIN", "COMMIT | control"),
            ("END", "COMMIT | control"),
            ("ROLLBACK TO SAVEPOINT s", "ROLLBACK | control"),
            ("ABORT", "ROLLBACK | control"),
            ("SAVEPOINT s", "SAVEPOINT | control"),
            ("RELEASE s", "SAVEPOINT | control"),
            ("PREPARE TRANSACTION 'x'", "PREPARE TRANSACTION | control"),
            ("SET TRANSACTION READ WRITE", "SET | control"),
            ("SET LOCAL transaction_read_only = off", "SET | control"),
            ("SET SESSION CHARACTERISTICS AS TRANSACTION READ WRITE", "SET | control"),
            ("SET LOCAL work_mem = '64MB'", "SET | reads"),
            ("RESET work_mem", "SET | reads"),
        ]);
    }
}
