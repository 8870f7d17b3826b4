//! The words of one statement, with its parentheses matched.

use super::lexer::{Token, TokenKind, tokens};

/// A statement's tokens without white space and comments.
pub(super) struct Words<'a> {
    pub text: &'a str,
    pub tokens: Vec<Token>,
    /// For every opening parenthesis the index behind its closing one.
    closing: Vec<usize>,
}

impl<'a> Words<'a> {
    pub fn new(text: &'a str) -> Self {
        let mut tokens = tokens(text);
        tokens.retain(|token| !token.kind.is_trivia());
        let mut closing = vec![tokens.len(); tokens.len()];
        let mut open = Vec::new();
        for (index, token) in tokens.iter().enumerate() {
            match token.kind {
                TokenKind::Open => open.push(index),
                TokenKind::Close => {
                    if let Some(start) = open.pop() {
                        closing[start] = index + 1;
                    }
                }
                _ => {}
            }
        }
        Self { text, tokens, closing }
    }

    pub fn len(&self) -> usize {
        self.tokens.len()
    }

    /// What stands at an index; nothing behind the end.
    pub fn kind(&self, index: usize) -> Option<&TokenKind> {
        self.tokens.get(index).map(|token| &token.kind)
    }

    pub fn str(&self, index: usize) -> &'a str {
        self.tokens.get(index).map_or("", |token| &self.text[token.range.clone()])
    }

    /// Whether an unquoted word stands there.
    pub fn is(&self, index: usize, word: &str) -> bool {
        self.kind(index) == Some(&TokenKind::Word) && self.str(index).eq_ignore_ascii_case(word)
    }

    /// Whether one of several words stands there.
    pub fn is_any(&self, index: usize, words: &[&str]) -> bool {
        words.iter().any(|word| self.is(index, word))
    }

    /// Whether words stand there one after the other.
    pub fn are(&self, index: usize, words: &[&str]) -> bool {
        words.iter().enumerate().all(|(offset, word)| self.is(index + offset, word))
    }

    pub fn is_open(&self, index: usize) -> bool {
        self.kind(index) == Some(&TokenKind::Open)
    }

    /// The index behind a parenthesised part that begins there, or the same index.
    pub fn behind(&self, index: usize) -> usize {
        if self.is_open(index) { self.closing[index] } else { index }
    }

    /// Whether a name or something that may be one stands there.
    pub fn is_name(&self, index: usize) -> bool {
        matches!(self.kind(index), Some(TokenKind::Word | TokenKind::QuotedName))
    }

    /// The index behind the words, if they stand there; otherwise the same index.
    pub fn skip(&self, index: usize, words: &[&str]) -> usize {
        if self.are(index, words) { index + words.len() } else { index }
    }

    /// A dotted name and the index behind it.
    pub fn name(&self, index: usize) -> Option<(String, usize)> {
        let mut name = self.part(index)?;
        let mut next = index + 1;
        while self.kind(next) == Some(&TokenKind::Dot)
            && let Some(part) = self.part(next + 1)
        {
            name.push('.');
            name.push_str(&part);
            next += 2;
        }
        Some((name, next))
    }

    fn part(&self, index: usize) -> Option<String> {
        match self.kind(index)? {
            TokenKind::Word => Some(self.str(index).to_lowercase()),
            TokenKind::QuotedName => Some(unquoted(self.str(index))),
            _ => None,
        }
    }

    /// The verb of a query expression: behind opening parentheses and `WITH` lists,
    /// whose names are collected.
    pub fn verb(&self, start: usize, common: &mut Vec<String>) -> usize {
        let mut index = start;
        loop {
            if self.is_open(index) {
                index += 1;
            } else if self.is(index, "with") {
                index = self.behind_with(index + 1, common);
            } else {
                return index;
            }
        }
    }

    fn behind_with(&self, start: usize, common: &mut Vec<String>) -> usize {
        let mut index = start;
        if self.is(index, "recursive") && self.is_name(index + 1) && !self.is(index + 1, "as") {
            index += 1;
        }
        loop {
            let Some((name, next)) = self.name(index) else { return index };
            common.push(name);
            index = self.skip(self.behind(next), &["as"]);
            index = self.skip(self.skip(index, &["not"]), &["materialized"]);
            index = self.behind(index);
            if self.is_any(index, &["search", "cycle"]) {
                index = self.behind_search(index);
            }
            if self.kind(index) != Some(&TokenKind::Comma) {
                return index;
            }
            index += 1;
        }
    }

    /// Behind `SEARCH … SET …` and `CYCLE … SET …`, whose column lists hold commas.
    fn behind_search(&self, start: usize) -> usize {
        let ends = |index: usize| {
            index >= self.len()
                || self.is_open(index)
                || self.is_any(index, VERBS)
                || (self.kind(index) == Some(&TokenKind::Comma)
                    && (self.is(index + 2, "as") || (self.is_open(index + 2) && self.is(self.behind(index + 2), "as"))))
        };
        (start..).find(|index| ends(*index)).unwrap_or(self.len())
    }
}

/// What a query expression can begin with.
pub(super) const VERBS: &[&str] = &["select", "insert", "update", "delete", "merge", "values", "table", "replace"];

/// A quoted name as people write it: without quotes where none are needed.
fn unquoted(text: &str) -> String {
    let inner = text.trim_start_matches(['u', 'U', '&']).trim_matches(['"', '`']);
    let plain = inner.chars().enumerate().all(|(index, c)| matches!(c, 'a'..='z' | '_') || (index > 0 && c.is_ascii_digit()));
    if plain && !inner.is_empty() { inner.to_owned() } else { text.to_owned() }
}
