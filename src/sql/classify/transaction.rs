//! What a statement has to do with transactions: whether one can hold it, and whether
//! it begins, ends or reshapes one itself.

use super::Kind;
use crate::sql::cursor::Words;
use crate::sql::lexer::{TokenKind, tokens};

pub(super) fn transactional(words: &Words<'_>, kind: &Kind) -> bool {
    match kind {
        Kind::CreateIndex { concurrently } | Kind::DropIndex { concurrently } => !concurrently,
        Kind::Reindex { concurrently } => {
            let target = words.behind(1);
            !concurrently && !words.is_any(target, &["database", "system", "schema"])
        }
        Kind::Vacuum => false,
        Kind::Cluster => words.behind(words.skip(1, &["verbose"])) < words.len(),
        Kind::Do => !commits_itself(words),
        Kind::AlterTable => !detaches_concurrently(words),
        Kind::Pragma => pragma_reads(words) || !words.is_any(pragma_name(words), PRAGMAS_OUTSIDE),
        Kind::Other(label) => match label.as_str() {
            "CREATE DATABASE"
            | "DROP DATABASE"
            | "CREATE TABLESPACE"
            | "DROP TABLESPACE"
            | "ALTER SYSTEM"
            | "CREATE SUBSCRIPTION"
            | "DROP SUBSCRIPTION"
            | "COMMIT PREPARED"
            | "ROLLBACK PREPARED"
            | "DISCARD ALL"
            | "REPACK"
            | "ATTACH"
            | "DETACH" => false,
            "ALTER DATABASE" => !(0..words.len()).any(|index| words.are(index, &["set", "tablespace"])),
            _ => true,
        },
        _ => true,
    }
}

/// SQLite ignores or refuses to set these inside a transaction.
const PRAGMAS_OUTSIDE: &[&str] = &["foreign_keys", "journal_mode", "synchronous", "auto_vacuum", "page_size", "wal_checkpoint", "encoding"];

fn pragma_name(words: &Words<'_>) -> usize {
    if words.kind(2) == Some(&TokenKind::Dot) { 3 } else { 1 }
}

pub(super) fn pragma_reads(words: &Words<'_>) -> bool {
    const LOOKUPS: &[&str] = &[
        "table_info",
        "table_xinfo",
        "table_list",
        "index_list",
        "index_info",
        "index_xinfo",
        "foreign_key_list",
        "foreign_key_check",
        "integrity_check",
        "quick_check",
    ];
    const ACTIONS: &[&str] = &["optimize", "wal_checkpoint", "incremental_vacuum", "shrink_memory"];
    let name = pragma_name(words);
    words.is_any(name, LOOKUPS) || (words.len() == name + 1 && !words.is_any(name, ACTIONS))
}

fn detaches_concurrently(words: &Words<'_>) -> bool {
    (0..words.len()).any(|index| words.are(index, &["detach", "partition"]))
        && words.is_any(words.len().saturating_sub(1), &["concurrently", "finalize"])
}

/// Whether a `DO` block ends transactions, which it may only do outside of one.
fn commits_itself(words: &Words<'_>) -> bool {
    let bodies = words.tokens.iter().filter(|token| matches!(token.kind, TokenKind::DollarText | TokenKind::Text));
    bodies.map(|token| body(&words.text[token.range.clone()])).any(|body| {
        let mut begins_statement = true;
        tokens(body).iter().filter(|token| !token.kind.is_trivia()).any(|token| {
            let word = &body[token.range.clone()];
            let ends = begins_statement && ["commit", "rollback"].iter().any(|verb| word.eq_ignore_ascii_case(verb));
            begins_statement =
                token.kind == TokenKind::Semicolon || ["begin", "then", "else", "loop"].iter().any(|verb| word.eq_ignore_ascii_case(verb));
            ends
        })
    })
}

/// What stands between a string's quotes.
fn body(literal: &str) -> &str {
    let opening = match literal.strip_prefix('$') {
        Some(rest) => rest.find('$').map_or(1, |length| length + 2),
        None => literal.find('\'').map_or(0, |length| length + 1),
    };
    let closing = if literal.starts_with('$') { opening } else { 1 };
    literal.get(opening..literal.len().saturating_sub(closing)).unwrap_or_default()
}

pub(super) fn transaction_control(words: &Words<'_>, kind: &Kind) -> bool {
    match kind {
        Kind::Begin | Kind::Commit | Kind::Rollback | Kind::Savepoint => true,
        Kind::Set => reshapes_transaction(words),
        Kind::Other(label) => label == "PREPARE TRANSACTION",
        _ => false,
    }
}

/// `SET TRANSACTION READ WRITE` would open a query for writing.
pub(super) fn reshapes_transaction(words: &Words<'_>) -> bool {
    let name = if words.is_any(1, &["local", "session"]) { 2 } else { 1 };
    words.is_any(name, &["transaction", "characteristics"])
        || words.str(name).trim_matches('"').to_ascii_lowercase().starts_with("transaction_")
}
