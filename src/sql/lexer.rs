//! SQL text to tokens.
//!
//! The rules of PostgreSQL's lexer come from `squawk-lexer`; this adds what that one
//! leaves out: `E''` strings continued on the next line, SQLite's back-quoted names,
//! and `{{ }}` placeholders, whose end minijinja's lexer decides. It never fails and
//! its tokens cover the text without gaps. Where the two databases differ, text that
//! is wrong in one of them may join two statements into one, never split one in two.

use std::ops::Range;

use squawk_lexer::{LiteralKind, TokenKind as Raw};

use crate::template;

/// A piece of SQL text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Token {
    pub kind: TokenKind,
    pub range: Range<usize>,
}

/// What a token is, as far as splitting and classifying need to know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum TokenKind {
    Space,
    Comment,
    /// A keyword or an unquoted name.
    Word,
    QuotedName,
    /// Any string literal that is not dollar-quoted.
    Text,
    DollarText,
    Number,
    /// `$1`.
    Parameter,
    Semicolon,
    Open,
    Close,
    Comma,
    Dot,
    /// A backslash outside of quotes is never SQL but a command of psql, up to the end
    /// of the line.
    MetaCommand,
    /// `{{ … }}`, braces included.
    Placeholder,
    /// Braces that hold no expression, and why.
    BadPlaceholder(String),
    /// A string, name or comment whose end is missing.
    Unterminated(&'static str),
    Symbol,
}

impl TokenKind {
    /// Whether the token means nothing to the server.
    pub fn is_trivia(&self) -> bool {
        matches!(self, Self::Space | Self::Comment)
    }
}

/// Cuts text into tokens.
pub(super) fn tokens(text: &str) -> Vec<Token> {
    tokens_from(text, 0)
}

/// Cuts what follows an offset into tokens.
pub(super) fn tokens_from(text: &str, start: usize) -> Vec<Token> {
    let mut found = Vec::new();
    let mut position = start;
    while position < text.len() {
        position = run_of_tokens(text, position, &mut found);
    }
    found
}

/// Reads with one lexer until a token has to be taken by hand; gives the place behind it.
fn run_of_tokens(text: &str, start: usize, found: &mut Vec<Token>) -> usize {
    let mut position = start;
    for raw in squawk_lexer::tokenize(&text[start..]) {
        let end = position + raw.len as usize;
        if let Some((kind, by_hand_end)) = by_hand(text, position..end, raw.kind) {
            found.push(Token { kind, range: position..by_hand_end });
            return by_hand_end;
        }
        found.push(Token { kind: kind(raw.kind, &text[position..end]), range: position..end });
        position = end;
    }
    position
}

fn by_hand(text: &str, range: Range<usize>, kind: Raw) -> Option<(TokenKind, usize)> {
    match kind {
        Raw::OpenCurly if text[range.end..].starts_with('{') => Some(placeholder(text, range.start)),
        Raw::OpenCurly if text[range.end..].starts_with('%') => {
            Some((TokenKind::BadPlaceholder("`{% %}` may stand only in a message; SQL takes only `{{ value }}`".into()), range.end + 1))
        }
        Raw::Unknown if text[range.clone()].starts_with('\\') => {
            Some((TokenKind::MetaCommand, text[range.end..].find(['\n', '\r']).map_or(text.len(), |length| range.end + length)))
        }
        Raw::Backtick => text[range.end..].find('`').map(|length| (TokenKind::QuotedName, range.end + length + 1)),
        Raw::Literal { kind: LiteralKind::EscStr { terminated: true } } => {
            continued_quote(text, range.end).map(|quote| continued_escape_string(text, quote))
        }
        _ => None,
    }
}

fn placeholder(text: &str, start: usize) -> (TokenKind, usize) {
    match template::placeholder(text, start) {
        Ok((_, end)) => (TokenKind::Placeholder, end),
        Err(reason) => {
            let line = text[start..].lines().next().unwrap_or_default();
            let end = line.find("}}").map_or(start + 2, |closing| start + closing + 2);
            (TokenKind::BadPlaceholder(reason), end)
        }
    }
}

/// The quote that continues the string ending at `end`: on a later line, with nothing
/// but white space and comments between.
fn continued_quote(text: &str, end: usize) -> Option<usize> {
    let mut new_line = false;
    let mut position = end;
    loop {
        let rest = &text[position..];
        match rest.as_bytes().first()? {
            b'\n' | b'\r' => {
                new_line = true;
                position += 1;
            }
            b' ' | b'\t' | 0x0b | 0x0c => position += 1,
            b'-' if rest.starts_with("--") => position += rest.find(['\n', '\r'])?,
            b'\'' if new_line => return Some(position),
            _ => return None,
        }
    }
}

fn continued_escape_string(text: &str, quote: usize) -> (TokenKind, usize) {
    let mut quote = quote;
    loop {
        let Some(end) = escape_string_end(text, quote + 1) else {
            return (TokenKind::Unterminated("string"), text.len());
        };
        match continued_quote(text, end) {
            Some(next) => quote = next,
            None => return (TokenKind::Text, end),
        }
    }
}

fn escape_string_end(text: &str, start: usize) -> Option<usize> {
    let bytes = text.as_bytes();
    let mut position = start;
    loop {
        match bytes.get(position)? {
            // The byte skipped may be the first of several; the others are neither
            // quote nor backslash.
            b'\\' => position += 2,
            b'\'' if bytes.get(position + 1) == Some(&b'\'') => position += 2,
            b'\'' => return Some(position + 1),
            _ => position += 1,
        }
    }
}

fn kind(raw: Raw, text: &str) -> TokenKind {
    match raw {
        // What `squawk-lexer` calls white space also covers a byte-order mark, which
        // is white space to no server.
        Raw::Whitespace if text.starts_with('\u{feff}') => TokenKind::Symbol,
        Raw::Whitespace => TokenKind::Space,
        Raw::LineComment | Raw::BlockComment { terminated: true } => TokenKind::Comment,
        Raw::BlockComment { terminated: false } => TokenKind::Unterminated("comment"),
        Raw::Ident => TokenKind::Word,
        Raw::QuotedIdent { terminated: true, .. } => TokenKind::QuotedName,
        Raw::QuotedIdent { terminated: false, .. } => TokenKind::Unterminated("quoted name"),
        Raw::Literal { kind } => literal(kind),
        Raw::PositionalParam { .. } => TokenKind::Parameter,
        Raw::Semi => TokenKind::Semicolon,
        Raw::OpenParen => TokenKind::Open,
        Raw::CloseParen => TokenKind::Close,
        Raw::Comma => TokenKind::Comma,
        Raw::Dot => TokenKind::Dot,
        _ => TokenKind::Symbol,
    }
}

fn literal(kind: LiteralKind) -> TokenKind {
    match kind {
        LiteralKind::Int { .. } | LiteralKind::Numeric { .. } => TokenKind::Number,
        LiteralKind::DollarQuotedString { terminated: true } => TokenKind::DollarText,
        LiteralKind::DollarQuotedString { terminated: false } => TokenKind::Unterminated("dollar-quoted string"),
        LiteralKind::Str { terminated }
        | LiteralKind::NationalStr { terminated }
        | LiteralKind::ByteStr { terminated }
        | LiteralKind::BitStr { terminated }
        | LiteralKind::UnicodeEscStr { terminated }
        | LiteralKind::EscStr { terminated } => {
            if terminated {
                TokenKind::Text
            } else {
                TokenKind::Unterminated("string")
            }
        }
    }
}
