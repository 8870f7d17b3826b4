//! The tables a statement names.

use super::classify::{Kind, created_object, explained};
use super::cursor::Words;
use super::lexer::TokenKind;

/// The names, each once, in the order met.
pub(super) fn tables(words: &Words<'_>, kind: &Kind) -> Vec<String> {
    let mut found = Vec::new();
    match kind {
        Kind::Select | Kind::Insert | Kind::Update | Kind::Delete | Kind::Merge => queried(words, 0, &mut found),
        Kind::Explain { .. } => queried(words, explained(words), &mut found),
        Kind::Truncate => list(words, words.skip(1, &["table"]), &mut found),
        Kind::Lock => list(words, words.skip(1, &["table"]), &mut found),
        Kind::DropTable => list(words, words.skip(2, &["if", "exists"]), &mut found),
        Kind::AlterTable => list(words, words.skip(2, &["if", "exists"]), &mut found),
        Kind::CreateTable => {
            let name = words.skip(created_object(words) + 1, &["if", "not", "exists"]);
            one(words, name, &mut found);
            queried(words, name, &mut found);
        }
        Kind::CreateIndex { .. } => behind_word(words, "on", &mut found),
        Kind::Refresh { .. } => {
            one(words, words.skip(3, &["concurrently"]), &mut found);
        }
        Kind::Reindex { .. } => {
            let target = words.behind(1);
            if words.is(target, "table") {
                one(words, words.skip(target + 1, &["concurrently"]), &mut found);
            }
        }
        Kind::Vacuum | Kind::Analyze | Kind::Cluster => {
            let options = ["full", "freeze", "verbose", "analyze", "analyse", "skip_locked"];
            let name = (words.behind(1)..words.len()).find(|index| !words.is_any(*index, &options));
            list(words, name.unwrap_or(words.len()), &mut found);
        }
        Kind::Copy if words.is_open(1) => queried(words, 1, &mut found),
        Kind::Copy => {
            one(words, 1, &mut found);
        }
        Kind::Other(label) => match label.as_str() {
            "CREATE VIEW" | "CREATE MATERIALIZED" | "DECLARE" => queried(words, 1, &mut found),
            "CREATE TRIGGER" | "CREATE POLICY" | "CREATE RULE" => behind_word(words, "on", &mut found),
            _ => {}
        },
        _ => {}
    }
    found
}

fn add(found: &mut Vec<String>, name: String) {
    if !found.contains(&name) {
        found.push(name);
    }
}

fn one(words: &Words<'_>, index: usize, found: &mut Vec<String>) -> usize {
    let index = words.skip(index, &["only"]);
    match words.name(index) {
        Some((name, next)) => {
            add(found, name);
            next
        }
        None => index,
    }
}

/// Names with commas between, each perhaps with a `*` or a column list.
fn list(words: &Words<'_>, start: usize, found: &mut Vec<String>) {
    let mut index = start;
    loop {
        index = one(words, index, found);
        if words.str(index) == "*" {
            index += 1;
        }
        index = words.behind(index);
        if words.kind(index) != Some(&TokenKind::Comma) {
            return;
        }
        index += 1;
    }
}

fn behind_word(words: &Words<'_>, word: &str, found: &mut Vec<String>) {
    if let Some(index) = (0..words.len()).find(|index| words.is(*index, word)) {
        one(words, index + 1, found);
    }
}

/// A pair of parentheses, or the statement itself.
struct Level {
    /// A comma is followed by another table.
    in_from: bool,
    /// `FROM` belongs to the function before the parenthesis, as in `extract(… FROM …)`.
    function: bool,
}

/// Follows `FROM`, `JOIN`, `USING`, `INTO` and `UPDATE` through a query and its parts.
fn queried(words: &Words<'_>, start: usize, found: &mut Vec<String>) {
    let common = common_names(words, start);
    let mut levels = vec![Level { in_from: false, function: false }];
    let mut expected = words.is(start, "table");
    let mut index = start + usize::from(expected);
    while index < words.len() {
        match words.kind(index) {
            Some(TokenKind::Open) => {
                // `FROM (a JOIN b)` holds tables, `FROM (SELECT …)` a query of its own.
                let function = index > 0 && words.is_any(index - 1, &["extract", "substring", "trim", "overlay", "position"]);
                levels.push(Level { in_from: expected, function });
                index += 1;
                continue;
            }
            Some(TokenKind::Close) => {
                if levels.len() > 1 {
                    levels.pop();
                }
                expected = false;
            }
            Some(TokenKind::Comma) => expected = levels.last().is_some_and(|level| level.in_from),
            Some(TokenKind::Word | TokenKind::QuotedName) => {
                if let Some(next) = word(words, index, &mut levels, &mut expected, &common, found) {
                    index = next;
                    continue;
                }
            }
            _ => expected = false,
        }
        index += 1;
    }
}

/// Takes one word of a query; gives the index to go on with if that is not the next.
fn word(
    words: &Words<'_>,
    index: usize,
    levels: &mut [Level],
    expected: &mut bool,
    common: &[String],
    found: &mut Vec<String>,
) -> Option<usize> {
    let level = levels.last_mut()?;
    let before = |word: &str| index > 0 && words.is(index - 1, word);
    if *expected {
        if words.is_any(index, &["only", "lateral", "table"]) {
            return None;
        }
        *expected = false;
        if !words.is_any(index, &["select", "with", "values", "unnest", "rows"]) {
            let (name, next) = words.name(index)?;
            // A function in FROM, but `INSERT INTO t (a, b)`.
            let called = words.is_open(next) && level.in_from;
            if !called && !common.contains(&name) {
                add(found, name);
            }
            return Some(next);
        }
    }
    if index > 0 && words.kind(index - 1) == Some(&TokenKind::Dot) {
        return None;
    }
    if words.is(index, "from") {
        let is_clause = !level.function && !before("distinct");
        level.in_from |= is_clause;
        *expected = is_clause;
    } else if words.is(index, "join") || (words.is(index, "using") && !words.is_open(index + 1)) {
        level.in_from = true;
        *expected = true;
    } else if words.is(index, "into") {
        *expected = true;
    } else if words.is(index, "update") {
        *expected = !before("for") && !before("key") && names_updated(words, index + 1);
    } else if words.is_any(
        index,
        &["where", "group", "order", "having", "limit", "window", "union", "intersect", "except", "returning", "set", "select"],
    ) {
        level.in_from = false;
    }
    None
}

/// Whether `UPDATE` is followed by a table: its name with `SET` or an alias behind it.
fn names_updated(words: &Words<'_>, index: usize) -> bool {
    let behind = words.name(words.skip(index, &["only"])).map(|(_, next)| next);
    behind.is_some_and(|next| words.is_name(next) || words.str(next) == "*") && !words.is(index, "set")
}

/// The names that `WITH` defines anywhere in the statement.
fn common_names(words: &Words<'_>, start: usize) -> Vec<String> {
    let mut common = Vec::new();
    for index in (start..words.len()).filter(|index| words.is(*index, "with")) {
        if words.is(index + 1, "recursive") || words.is(index + 2, "as") || words.is_open(index + 2) {
            words.verb(index, &mut common);
        }
    }
    common
}
