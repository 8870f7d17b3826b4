//! What the YAML parser finds wrong, in the words of people who write playbooks.

use crate::diagnostic::Diagnostic;
use crate::source::{SourceId, Span};

/// `inner` is the second brace's mapping.
pub(super) fn unquoted_template(inner: Span) -> Diagnostic {
    let span = Span { start: inner.start.saturating_sub(1), end: inner.end + 1, ..inner };
    Diagnostic::error("unquoted-template", span, "`{{ … }}` needs quotes here, for YAML reads a brace as the start of a mapping")
        .help("write \"{{ … }}\"")
}

/// The parser's words into an author's, with the usual way out.
pub(super) fn explain(info: &str, text: &str, at: usize, source: SourceId) -> Diagnostic {
    let at = (0..=at).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
    let character = text[at..].chars().next();
    let mut start = at;
    let (message, help): (String, Option<&str>) = if info.contains("tab") {
        start = if character == Some('\t') { at } else { text[..at].rfind('\t').unwrap_or(at) };
        ("a tab is not allowed in indentation".into(), Some("indent with spaces"))
    } else if info.contains("mapping values are not allowed") || info.contains("illegal placement of ':'") {
        (
            "`:` is not allowed here".into(),
            Some(
                "is this line indented deeper than its neighbours, a quote or bracket above never closed, or a text that holds `: ` not quoted?",
            ),
        )
    } else if info.contains("unknown anchor") || info.contains("scanning an anchor or alias") {
        ("this alias names no anchor".into(), Some("text that begins with `*` or `&` needs quotes"))
    } else if info.contains("unexpected character") {
        (format!("text may not begin with `{}`", character.unwrap_or(' ')), Some("put the text in quotes"))
    } else if info.contains("invalid trailing content") {
        (
            "something follows the closing quote".into(),
            Some("quote the whole text; inside '…' write '' for a quote, inside \"…\" write \\\""),
        )
    } else if info.contains("unknown escape") {
        ("a text in double quotes holds an unknown escape".into(), Some("write \\\\ for a backslash, or use single quotes"))
    } else if info.contains("in quoted scalar") || info.contains("end of stream") {
        ("a quoted text is never closed".into(), Some("is the closing quote missing, or a line of the text not indented?"))
    } else if info.contains("quoted scalar") {
        (format!("a quoted text is not well-formed: {}", info.rsplit(", ").next().unwrap_or(info)), None)
    } else if info.contains("expected '-' indicator") || info.contains("did not find expected key") || info.contains("invalid indentation")
    {
        (
            "this line does not belong to the list or mapping above it".into(),
            Some("does its indentation match the lines it belongs with? is a `:` missing?"),
        )
    } else if info.contains("simple key expect") {
        ("a key is never followed by `:`".into(), Some("write `key: value`; is a quote or bracket above never closed?"))
    } else if info.contains("flow") || info.contains("bracket") {
        ("a bracket is not matched".into(), Some("is a `]`, `}` or `,` missing, or a text with brackets not quoted?"))
    } else if info.contains("document") {
        ("something follows the end of the document".into(), Some("is a `:` missing, or the indentation wrong?"))
    } else {
        (format!("this is not YAML: {info}"), None)
    };
    let shown = character_at(text, start);
    let span = Span { source, start: shown.start as u32, end: shown.end as u32 };
    let diagnostic = Diagnostic::error("yaml-syntax", span, message);
    match help {
        Some(help) => diagnostic.help(help),
        None => diagnostic,
    }
}

/// The character at a place, or before it at the end of a line.
fn character_at(text: &str, at: usize) -> std::ops::Range<usize> {
    let on_line = |c: &char| !matches!(c, '\n' | '\r');
    let after = text[at..].chars().next().filter(on_line).map_or(0, char::len_utf8);
    let before = text[..at].chars().next_back().filter(on_line).map_or(0, char::len_utf8);
    if after > 0 { at..at + after } else { at - before..at }
}
