//! From bytes of a scalar's value back to the file.

use std::ops::Range;

use crate::source::{Sources, Span};

/// Where the bytes `range` of a scalar's value stand in the file. `scalar` is the span
/// of the scalar's node and `text` its value. When the two do not match (an alias of a
/// tagged value, say), the whole scalar is given.
///
/// YAML folds and strips only whitespace, so every other character of the value stands
/// in the file in the same order: the two are walked side by side.
pub fn span_within(sources: &Sources, scalar: Span, text: &str, range: Range<usize>) -> Span {
    let source = &sources.get(scalar.source).text;
    let Some(written) = source.get(scalar.start as usize..scalar.end as usize) else { return scalar };
    let Some(characters) = characters(written) else { return scalar };
    locate(&characters, text, &range).map_or(scalar, |found| Span {
        start: scalar.start + found.start as u32,
        end: scalar.start + found.end as u32,
        ..scalar
    })
}

/// A character of the value and the bytes it is written with.
type Written = (char, Range<usize>);

fn locate(written: &[Written], text: &str, range: &Range<usize>) -> Option<Range<usize>> {
    let mut visible = written.iter().filter(|(c, _)| !c.is_whitespace());
    let mut start = None;
    let mut end = None;
    // Whitespace is placed between its visible neighbours.
    let mut previous_end = written.first().map_or(0, |(_, bytes)| bytes.start);
    for (at, character) in text.char_indices() {
        if character.is_whitespace() {
            continue;
        }
        let (found, bytes) = visible.next()?;
        if *found != character {
            return None;
        }
        if at >= range.end {
            end.get_or_insert(previous_end);
        }
        if at >= range.start {
            start.get_or_insert(if at < range.end || range.is_empty() && at == range.start { bytes.start } else { previous_end });
        }
        previous_end = bytes.end;
    }
    if visible.next().is_some() {
        return None;
    }
    let start = start.unwrap_or(previous_end);
    Some(start..end.unwrap_or(previous_end).max(start))
}

/// The value's characters in the order written; whitespace may be more than the value has.
fn characters(written: &str) -> Option<Vec<Written>> {
    match written.as_bytes().first()? {
        b'|' | b'>' => {
            let content = written.find('\n')?;
            Some(plain(written, content..written.len()))
        }
        b'\'' => single_quoted(written),
        b'"' => double_quoted(written),
        _ => Some(plain(written, 0..written.len())),
    }
}

fn plain(written: &str, range: Range<usize>) -> Vec<Written> {
    let start = range.start;
    written[range].char_indices().map(|(at, c)| (c, start + at..start + at + c.len_utf8())).collect()
}

fn between(written: &str, quote: char) -> Option<Range<usize>> {
    let inner = written.strip_prefix(quote)?.strip_suffix(quote)?;
    Some(1..1 + inner.len())
}

fn single_quoted(written: &str) -> Option<Vec<Written>> {
    let mut all = plain(written, between(written, '\'')?).into_iter();
    let mut result = Vec::new();
    while let Some((character, bytes)) = all.next() {
        let end = if character == '\'' { all.next()?.1.end } else { bytes.end };
        result.push((character, bytes.start..end));
    }
    Some(result)
}

fn double_quoted(written: &str) -> Option<Vec<Written>> {
    let mut all = plain(written, between(written, '"')?).into_iter();
    let mut result = Vec::new();
    while let Some((character, bytes)) = all.next() {
        if character != '\\' {
            result.push((character, bytes));
            continue;
        }
        let (escape, escaped) = all.next()?;
        let digits = match escape {
            'x' => 2,
            'u' => 4,
            'U' => 8,
            _ => 0,
        };
        let mut end = escaped.end;
        for _ in 0..digits {
            end = all.next()?.1.end;
        }
        let meant = match escape {
            'x' | 'u' | 'U' => char::from_u32(u32::from_str_radix(&written[escaped.end..end], 16).ok()?)?,
            '0' => '\0',
            'a' => '\u{7}',
            'b' => '\u{8}',
            'e' => '\u{1b}',
            't' | 'n' | 'v' | 'f' | 'r' | 'N' | '_' | 'L' | 'P' => ' ',
            other => other,
        };
        result.push((meant, bytes.start..end));
    }
    Some(result)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::{Node, Value, parse};
    use super::*;
    use crate::source::SourceFile;

    /// What the file holds where `needle` of the value of `key` stands.
    fn found(yaml: &str, needle: &str) -> String {
        let (sources, node) = tree(yaml);
        let text = node.as_str().expect("text");
        let at = text.find(needle).expect("needle");
        let span = span_within(&sources, node.span, text, at..at + needle.len());
        yaml[span.start as usize..span.end as usize].to_owned()
    }

    fn tree(yaml: &str) -> (Sources, Node) {
        let mut sources = Sources::default();
        let source = sources.add(SourceFile::new("x.yaml", yaml));
        let Value::Mapping(mut entries) = parse(&sources, source).expect("parses").value else { panic!("a mapping") };
        (sources, entries.pop().expect("an entry").1)
    }

    #[test]
    fn every_style_points_to_what_was_written() {
        assert_eq!(found("k: select one from x", "one"), "one");
        assert_eq!(found("é: é select\n  one from x", "one from"), "one from");
        assert_eq!(found("k: 'it''s one'", "it's"), "it''s");
        assert_eq!(found(r#"k: "a\tb \"one\" \u00e9 two""#, "\"one\" é"), r#"\"one\" \u00e9"#);
        assert_eq!(found("k: \"a\n\n  b \\\n  one\"", "one"), "one");
        assert_eq!(found("k: |2-  # note | x\n    é one\n\n  two\n", "two"), "two");
        assert_eq!(found("k: >+\n  a\n  b\n\n    one\n  two\n\n", "one\ntwo"), "one\n  two");
        assert_eq!(found("# | not this\nk: !!str # nor | this\n  |\n  a\n  one\r\n", "one"), "one");
    }

    #[test]
    fn a_text_that_is_not_the_scalars_gets_the_whole_scalar() {
        let (sources, node) = tree("k: one two");
        assert_eq!(span_within(&sources, node.span, "something else", 0..4), node.span);
        assert_eq!(span_within(&sources, node.span, "one two three", 8..13), node.span);
    }

    proptest! {
        #[test]
        fn literal_blocks_map_byte_by_byte(
            lines in prop::collection::vec("[ a-zé{}'\"|>#:-]{0,12}", 1..8),
            indent in 1usize..9,
            crlf: bool,
            cut in (0usize..80, 0usize..80),
        ) {
            let newline = if crlf { "\r\n" } else { "\n" };
            let pad = " ".repeat(indent);
            let body: String = lines.iter().map(|line| format!("{pad}{line}{newline}")).collect();
            let yaml = format!("k: |{indent}+{newline}{body}");
            let (sources, node) = tree(&yaml);
            let value = lines.iter().map(|line| format!("{line}\n")).collect::<String>();
            prop_assert_eq!(node.as_str(), Some(value.as_str()));
            let visible: Vec<usize> = value.char_indices().filter(|(_, c)| !c.is_whitespace()).map(|(at, _)| at).collect();
            prop_assume!(!visible.is_empty());
            let (a, b) = (visible[cut.0 % visible.len()], visible[cut.1 % visible.len()]);
            let (a, b) = (a.min(b), a.max(b));
            let end = b + value[b..].chars().next().map_or(0, char::len_utf8);
            let span = span_within(&sources, node.span, &value, a..end);
            let written = &yaml[span.start as usize..span.end as usize];
            let stripped = written.replace("\r\n", "\n").replace(&format!("\n{pad}"), "\n");
            prop_assert_eq!(stripped, &value[a..end]);
        }

        #[test]
        fn nothing_panics(yaml in "[ -~é\n\t]{0,60}", text in "[ -~é\n]{0,20}", range in (0usize..30, 0usize..30)) {
            let mut sources = Sources::default();
            let source = sources.add(SourceFile::new("x.yaml", yaml.clone()));
            let _ = parse(&sources, source);
            let scalar = Span { source, start: 0, end: yaml.len() as u32 };
            let span = span_within(&sources, scalar, &text, range.0.min(range.1)..range.0.max(range.1));
            prop_assert!(span.start <= span.end && span.end <= scalar.end);
        }
    }
}
