//! Places where a bind parameter is a syntax error, or worse, silently means nothing.
//!
//! The server would say so too, but only when the step runs.

use std::ops::Range;

use super::lexer::{Token, TokenKind};
use super::problem::SqlProblem;

const NAME_HELP: &str =
    "`{{ }}` holds a value, never an identifier: write the name out; for a choice between a few, write a step for each with `when`";

/// Looks at every placeholder of a statement.
pub(super) fn check(text: &str, tokens: &[Token], problems: &mut Vec<SqlProblem>) {
    let around = Around { text, tokens };
    for (index, token) in tokens.iter().enumerate() {
        if token.kind == TokenKind::Placeholder
            && let Some((message, help)) = around.misplaced(index)
        {
            problems.push(SqlProblem { code: "misplaced-placeholder", message, help, range: token.range.clone() });
        }
    }
}

struct Around<'a> {
    text: &'a str,
    tokens: &'a [Token],
}

impl Around<'_> {
    fn misplaced(&self, index: usize) -> Option<(String, String)> {
        let name = |place: &str| Some((format!("a value cannot stand {place}"), NAME_HELP.to_owned()));
        if self.touches(index) {
            return name("as part of a name or number");
        }
        let before = self.before(index);
        let next = self.after(index);
        if before.is_some_and(|at| self.tokens[at].kind == TokenKind::Dot) || next.is_some_and(|at| self.tokens[at].kind == TokenKind::Dot)
        {
            return name("as part of a qualified name");
        }
        let before = before?;
        let word = self.word(before);
        let earlier = self.before(before).map(|at| self.word(at)).unwrap_or_default();
        match word.as_str() {
            "into" if self.is_vacuum() => None,
            "into" | "join" | "only" | "table" => name(&format!("behind {}, where a table is named", word.to_uppercase())),
            "update" if earlier.is_empty() => name("behind UPDATE, where a table is named"),
            "from" if earlier != "distinct" && !self.inside_function_with_from(before) => name("behind FROM, where a table is named"),
            "in" => Some((
                "IN takes a list in parentheses, not one value".into(),
                "write `= ANY({{ … }})` for a list, or `IN ({{ a }}, {{ b }})`".into(),
            )),
            "interval" | "date" | "time" | "timestamp" | "timestamptz" => Some((
                format!("{} before a value takes only a quoted string", word.to_uppercase()),
                format!("write `CAST({{{{ … }}}} AS {word})`"),
            )),
            "by" if matches!(earlier.as_str(), "order" | "group" | "partition") && self.stands_alone(next) => {
                let clause = earlier.to_uppercase();
                Some((format!("{clause} BY takes columns; a value is the same for every row"), NAME_HELP.to_owned()))
            }
            _ => None,
        }
    }

    /// SQLite's `VACUUM INTO` names a file by an expression.
    fn is_vacuum(&self) -> bool {
        let first = self.tokens.iter().position(|token| !token.kind.is_trivia());
        first.is_some_and(|at| self.word(at) == "vacuum")
    }

    /// `$1` would run together with what stands next to it.
    fn touches(&self, index: usize) -> bool {
        let part = |token: &Token| {
            matches!(
                token.kind,
                TokenKind::Word
                    | TokenKind::Number
                    | TokenKind::QuotedName
                    | TokenKind::Parameter
                    | TokenKind::Placeholder
                    | TokenKind::Text
            )
        };
        index.checked_sub(1).is_some_and(|before| part(&self.tokens[before])) || self.tokens.get(index + 1).is_some_and(part)
    }

    fn before(&self, index: usize) -> Option<usize> {
        (0..index).rev().find(|at| !self.tokens[*at].kind.is_trivia())
    }

    fn after(&self, index: usize) -> Option<usize> {
        (index + 1..self.tokens.len()).find(|at| !self.tokens[*at].kind.is_trivia())
    }

    fn word(&self, index: usize) -> String {
        let Token { kind, range } = &self.tokens[index];
        if *kind == TokenKind::Word { self.slice(range).to_lowercase() } else { String::new() }
    }

    fn slice(&self, range: &Range<usize>) -> &str {
        &self.text[range.clone()]
    }

    /// `extract(epoch FROM {{ … }})` and its like.
    fn inside_function_with_from(&self, index: usize) -> bool {
        let mut depth = 0usize;
        for at in (0..index).rev() {
            match self.tokens[at].kind {
                TokenKind::Close => depth += 1,
                TokenKind::Open if depth == 0 => {
                    let function = self.before(at).map(|at| self.word(at)).unwrap_or_default();
                    return matches!(function.as_str(), "extract" | "substring" | "trim" | "overlay" | "position");
                }
                TokenKind::Open => depth -= 1,
                _ => {}
            }
        }
        false
    }

    /// Nothing computes with the value.
    fn stands_alone(&self, next: Option<usize>) -> bool {
        next.is_none_or(|at| match self.tokens[at].kind {
            TokenKind::Comma | TokenKind::Close => true,
            TokenKind::Word => {
                matches!(self.word(at).as_str(), "asc" | "desc" | "nulls" | "limit" | "offset" | "fetch" | "for" | "having" | "order")
            }
            _ => false,
        })
    }
}
