//! Events of the YAML parser to a tree, without recursion and within limits.

mod explain;

use std::collections::HashMap;

use saphyr_parser::{Event, Parser, ScalarStyle, ScanError, Tag};

use super::{Node, Value, scalar};
use crate::diagnostic::Diagnostic;
use crate::source::{SourceId, Sources, Span, Spanned};
use explain::{explain, unquoted_template};

/// How deep lists and mappings may be nested; deep enough for any playbook, and
/// shallow enough that walking a tree recursively is safe.
const DEPTH: usize = 64;
/// How many values one document may hold.
const NODES: usize = 3_000_000;
/// How many values anchors and aliases may stand for in all.
const ALIASED_NODES: usize = 100_000;

/// Parses one document; every problem found is returned.
pub fn parse(sources: &Sources, source: SourceId) -> Result<Node, Vec<Diagnostic>> {
    let text = &sources.get(source).text;
    if let Some(diagnostic) = forbidden_character(text, source) {
        return Err(vec![diagnostic]);
    }
    let mut builder = Builder::new(text, source);
    for event in Parser::new_from_str(text) {
        let step = match event {
            Ok((event, span)) => {
                let start = builder.offsets.byte(span.start.index());
                let end = builder.offsets.byte(span.end.index());
                builder.take(event, start, end.max(start))
            }
            Err(error) => {
                builder.syntax_error(&error);
                Err(Stop)
            }
        };
        if step.is_err() {
            break;
        }
    }
    builder.finish()
}

/// The parser would take a NUL byte for the end of the text, and an escape sequence
/// would reach the terminal.
fn forbidden_character(text: &str, source: SourceId) -> Option<Diagnostic> {
    let (at, found) =
        text.char_indices().find(|(_, c)| (c.is_control() && !matches!(c, '\t' | '\n' | '\r' | '\u{85}')) || *c == '\u{feff}')?;
    let span = Span { source, start: at as u32, end: (at + found.len_utf8()) as u32 };
    let (what, help) = match found {
        '\u{feff}' => ("a byte-order mark in the middle of the text", "delete it; it stands where two files were joined"),
        '\0' => ("a NUL byte", "the file is damaged or not text (UTF-16?); save it as UTF-8"),
        _ => ("a control character", "delete it, or write it as an escape in double quotes, e.g. \"\\x1b\""),
    };
    Some(
        Diagnostic::error("forbidden-character", span, format!("{what} (U+{:04X}) is not allowed in a YAML file", u32::from(found)))
            .help(help),
    )
}

/// Nothing more can be read.
struct Stop;

enum Frame {
    Sequence { items: Vec<Node> },
    Mapping { entries: Vec<(Spanned<String>, Node)>, key: Key },
}

enum Key {
    Expected,
    Read(Spanned<String>),
    /// It was refused, and so its value is dropped.
    Refused,
}

struct Open {
    frame: Frame,
    span: Span,
    anchor: usize,
    /// A flow collection ends at its bracket, a block one with its last child.
    flow: bool,
    /// Where the last child ends so far.
    last: u32,
}

struct Anchored {
    node: Node,
    size: usize,
    height: usize,
}

struct Builder<'a> {
    text: &'a str,
    source: SourceId,
    offsets: Offsets<'a>,
    open: Vec<Open>,
    root: Option<Node>,
    anchors: HashMap<usize, Anchored>,
    nodes: usize,
    aliased: usize,
    /// End of the last event, in bytes.
    position: usize,
    diagnostics: Vec<Diagnostic>,
}

impl<'a> Builder<'a> {
    fn new(text: &'a str, source: SourceId) -> Self {
        Self {
            text,
            source,
            offsets: Offsets::new(text),
            open: Vec::new(),
            root: None,
            anchors: HashMap::new(),
            nodes: 0,
            aliased: 0,
            position: 0,
            diagnostics: Vec::new(),
        }
    }

    fn take(&mut self, event: Event<'_>, start: usize, end: usize) -> Result<(), Stop> {
        match event {
            Event::Scalar(text, style, anchor, tag) => self.scalar(text.into_owned(), style, anchor, tag.as_deref(), start, end)?,
            Event::SequenceStart(anchor, tag) => {
                self.open(Frame::Sequence { items: Vec::new() }, "seq", anchor, tag.as_deref(), start, end)?;
            }
            Event::MappingStart(anchor, tag) => {
                self.open(Frame::Mapping { entries: Vec::new(), key: Key::Expected }, "map", anchor, tag.as_deref(), start, end)?;
            }
            Event::SequenceEnd | Event::MappingEnd => self.close(end)?,
            Event::Alias(anchor) => self.alias(anchor, self.span(start, end))?,
            Event::DocumentStart(_) if self.root.is_some() => {
                let message = "a file holds one YAML document, but a second one starts here";
                self.diagnostics
                    .push(Diagnostic::error("several-documents", self.span(start, end), message).help("put it into a file of its own"));
                return Err(Stop);
            }
            Event::Nothing | Event::StreamStart | Event::StreamEnd | Event::DocumentStart(_) | Event::DocumentEnd => {}
        }
        self.position = self.position.max(end);
        Ok(())
    }

    fn scalar(&mut self, text: String, style: ScalarStyle, anchor: usize, tag: Option<&Tag>, start: usize, end: usize) -> Result<(), Stop> {
        let start = match style {
            ScalarStyle::Literal | ScalarStyle::Folded => self.block_header(start, end),
            _ if anchor != 0 || tag.is_some() => self.skip_properties(start, end),
            _ => start,
        };
        let span = self.span(start, start + self.text[start..end].trim_end().len());
        let as_text = self.text_by_tag(tag, span);
        let value = match style {
            ScalarStyle::Plain if !as_text => scalar::resolve(&text),
            _ => Value::String(text),
        };
        self.attach(Node { span, value }, anchor, span.end)
    }

    /// Whether a tag says "text"; a tag that says anything else is refused.
    fn text_by_tag(&mut self, tag: Option<&Tag>, span: Span) -> bool {
        match tag {
            None => false,
            Some(tag) if tag.is_yaml_core_schema() && tag.suffix == "str" => true,
            Some(tag) => {
                self.refuse_tag(tag, span);
                false
            }
        }
    }

    fn refuse_tag(&mut self, tag: &Tag, span: Span) {
        let shown = if tag.is_yaml_core_schema() { format!("!!{}", tag.suffix) } else { tag.to_string() };
        self.diagnostics.push(
            Diagnostic::error("yaml-tag", span, format!("the tag `{shown}` has no meaning here"))
                .help("delete the tag; only `!!str` is known"),
        );
    }

    fn open(&mut self, frame: Frame, core_tag: &str, anchor: usize, tag: Option<&Tag>, start: usize, end: usize) -> Result<(), Stop> {
        let start = if anchor != 0 || tag.is_some() { self.skip_properties(start, end) } else { start };
        let span = self.span(start, end.max(start));
        if let Some(tag) = tag
            && !(tag.is_yaml_core_schema() && tag.suffix == core_tag)
        {
            self.refuse_tag(tag, span);
        }
        if self.open.len() >= DEPTH {
            return self.too_deep(span);
        }
        let flow = self.text[start..].starts_with(['[', '{']) && end > start;
        self.open.push(Open { frame, span, anchor, flow, last: span.end });
        Ok(())
    }

    fn too_deep(&mut self, span: Span) -> Result<(), Stop> {
        let message = format!("lists and mappings are nested more than {DEPTH} levels deep");
        self.diagnostics.push(Diagnostic::error("too-deep", span, message));
        Err(Stop)
    }

    fn close(&mut self, end: usize) -> Result<(), Stop> {
        let Some(open) = self.open.pop() else { return Ok(()) };
        let end = if open.flow { end as u32 } else { open.last };
        let span = Span { end: end.max(open.span.start), ..open.span };
        let value = match open.frame {
            Frame::Sequence { items } => Value::Sequence(items),
            Frame::Mapping { entries, .. } => Value::Mapping(self.without_duplicates(entries)),
        };
        self.attach(Node { span, value }, open.anchor, span.end)
    }

    /// Hands a finished node, written up to `end`, to what holds it.
    fn attach(&mut self, node: Node, anchor: usize, end: u32) -> Result<(), Stop> {
        self.nodes += 1;
        if let Some(parent) = self.open.last_mut() {
            parent.last = parent.last.max(end);
        }
        if self.nodes > NODES {
            self.diagnostics.push(Diagnostic::error("too-large", node.span, format!("the document holds more than {NODES} values")));
            return Err(Stop);
        }
        if anchor != 0 {
            self.remember(&node, anchor)?;
        }
        let key = match self.open.last_mut() {
            None => {
                self.root = Some(node);
                return Ok(());
            }
            Some(Open { frame: Frame::Sequence { items }, .. }) => {
                items.push(node);
                return Ok(());
            }
            Some(Open { frame: Frame::Mapping { entries, key }, .. }) => match std::mem::replace(key, Key::Expected) {
                Key::Read(name) => {
                    entries.push((name, node));
                    return Ok(());
                }
                Key::Refused => return Ok(()),
                Key::Expected => self.key(node),
            },
        };
        if let Some(Open { frame: Frame::Mapping { key: slot, .. }, .. }) = self.open.last_mut() {
            *slot = key;
        }
        Ok(())
    }

    fn key(&mut self, node: Node) -> Key {
        let written = &self.text[node.span.start as usize..node.span.end as usize];
        let diagnostic = match node.value {
            Value::String(text) if text == "<<" && written == "<<" => {
                Diagnostic::error("merge-key", node.span, "merge keys (`<<`) are not part of the language")
                    .help("write the keys out, so that a reviewer sees them where they hold; what all steps share belongs under `defaults`")
            }
            Value::String(text) => return Key::Read(Spanned::new(text, node.span)),
            Value::Mapping(_)
                if self.text[..node.span.start as usize].ends_with('{') && self.text[node.span.end as usize..].starts_with('}') =>
            {
                unquoted_template(node.span)
            }
            Value::Mapping(_) | Value::Sequence(_) => {
                Diagnostic::error("key-not-text", node.span, "a key is text, not a list or a mapping")
            }
            _ if written.is_empty() => Diagnostic::error("key-not-text", node.span, "a key is missing in front of `:`"),
            _ => Diagnostic::error("key-not-text", node.span, format!("a key is text, but `{written}` is not"))
                .help(format!("put it in quotes: \"{written}\"")),
        };
        self.diagnostics.push(diagnostic);
        Key::Refused
    }

    fn without_duplicates(&mut self, entries: Vec<(Spanned<String>, Node)>) -> Vec<(Spanned<String>, Node)> {
        let mut first: HashMap<&str, Span> = HashMap::new();
        let mut duplicates = Vec::new();
        for (index, (key, _)) in entries.iter().enumerate() {
            // A handful of keys is compared faster than hashed.
            let earlier = if entries.len() <= 16 {
                entries[..index].iter().find(|(other, _)| other.value == key.value).map(|(other, _)| other.span)
            } else if let Some(span) = first.get(key.value.as_str()) {
                Some(*span)
            } else {
                first.insert(&key.value, key.span);
                None
            };
            if let Some(earlier) = earlier {
                duplicates.push(index);
                self.diagnostics.push(
                    Diagnostic::error("duplicate-key", key.span, format!("the key `{}` stands here twice", key.value))
                        .label("again")
                        .related(earlier, "first here"),
                );
            }
        }
        if duplicates.is_empty() {
            return entries;
        }
        entries.into_iter().enumerate().filter(|(index, _)| duplicates.binary_search(index).is_err()).map(|(_, entry)| entry).collect()
    }

    fn remember(&mut self, node: &Node, anchor: usize) -> Result<(), Stop> {
        let (size, height) = measure(node);
        self.spend(size, node.span)?;
        self.anchors.insert(anchor, Anchored { node: node.clone(), size, height });
        Ok(())
    }

    fn alias(&mut self, anchor: usize, span: Span) -> Result<(), Stop> {
        let Some(Anchored { node, size, height }) = self.anchors.get(&anchor) else {
            self.diagnostics.push(Diagnostic::error("yaml-syntax", span, "an alias stands inside the value it is an alias of"));
            return Err(Stop);
        };
        let (node, size, height) = (node.clone(), *size, *height);
        if self.open.len() + height > DEPTH {
            return self.too_deep(span);
        }
        self.spend(size, span)?;
        self.attach(node, 0, span.end)
    }

    fn spend(&mut self, size: usize, span: Span) -> Result<(), Stop> {
        self.aliased += size;
        if self.aliased <= ALIASED_NODES {
            return Ok(());
        }
        let message = format!("anchors and aliases stand for more than {ALIASED_NODES} values");
        self.diagnostics.push(Diagnostic::error("alias-bomb", span, message).help("write the values out where they are needed"));
        Err(Stop)
    }

    /// Where the `|` or `>` stands of the block scalar that the parser saw at `start..end`,
    /// which is its content, or begins with its anchor or tag.
    fn block_header(&self, start: usize, end: usize) -> usize {
        let bytes = self.text.as_bytes();
        let mut at = self.position;
        while at < end {
            match bytes[at] {
                b'|' | b'>' => return at,
                b'#' => at = next_line(bytes, at),
                b'&' | b'!' => at += self.text[at..].find(char::is_whitespace).unwrap_or(end),
                _ => at += 1,
            }
        }
        start
    }

    /// Where a value begins whose anchor or tag begins at `start`.
    fn skip_properties(&self, start: usize, end: usize) -> usize {
        let bytes = self.text.as_bytes();
        let mut at = start;
        while at < end {
            match bytes[at] {
                b'&' | b'!' => at += self.text[at..end].find(char::is_whitespace).unwrap_or(end - at),
                b'#' => at = next_line(bytes, at),
                b' ' | b'\t' | b'\n' | b'\r' => at += 1,
                _ => return at,
            }
        }
        end
    }

    fn syntax_error(&mut self, error: &ScanError) {
        let at = self.offsets.byte(error.marker().index());
        if error.info().contains("recursion limit") {
            let _ = self.too_deep(self.span(at, at));
            return;
        }
        let diagnostic = explain(error.info(), self.text, at.min(self.text.len()), self.source);
        // The braces have been complained about already, and they are the cause.
        let line = |offset: u32| self.text[..offset as usize].rfind('\n').map_or(0, |found| found + 1);
        let explained = self
            .diagnostics
            .last()
            .is_some_and(|last| last.code == "unquoted-template" && line(last.span.start) == line(diagnostic.span.start));
        if explained {
            return;
        }
        // An error further down is often the first that notices an open bracket.
        let open = self.open.iter().rev().find(|open| open.flow && line(open.span.start) != line(diagnostic.span.start));
        self.diagnostics.push(match open {
            Some(bracket) => diagnostic.related(Span { end: bracket.span.start + 1, ..bracket.span }, "still open"),
            None => diagnostic,
        });
    }

    fn span(&self, start: usize, end: usize) -> Span {
        Span { source: self.source, start: start as u32, end: end.max(start) as u32 }
    }

    fn finish(mut self) -> Result<Node, Vec<Diagnostic>> {
        if self.diagnostics.is_empty() {
            match self.root {
                Some(root) if root.value != Value::Null => return Ok(root),
                _ => self.diagnostics.push(
                    Diagnostic::error("empty-document", self.span(0, 0), "the file is empty")
                        .help("only blank lines and comments stand in it"),
                ),
            }
        }
        Err(self.diagnostics)
    }
}

/// Number of values and levels.
fn measure(node: &Node) -> (usize, usize) {
    let mut add = (1, 0);
    let mut child = |node: &Node| {
        let (size, height) = measure(node);
        add = (add.0 + size, add.1.max(height));
    };
    match &node.value {
        Value::Sequence(items) => items.iter().for_each(&mut child),
        Value::Mapping(entries) => entries.iter().for_each(|(_, value)| child(value)),
        _ => return (1, 0),
    }
    (add.0, add.1 + 1)
}

fn next_line(bytes: &[u8], at: usize) -> usize {
    bytes[at..].iter().position(|b| *b == b'\n').map_or(bytes.len(), |found| at + found)
}

/// The parser counts characters, spans count bytes.
struct Offsets<'a> {
    text: &'a str,
    /// The byte of every [`Offsets::STRIDE`]th character; empty for ASCII.
    known: Vec<u32>,
}

impl<'a> Offsets<'a> {
    const STRIDE: usize = 64;

    fn new(text: &'a str) -> Self {
        let known = if text.is_ascii() { Vec::new() } else { text.char_indices().step_by(Self::STRIDE).map(|(at, _)| at as u32).collect() };
        Self { text, known }
    }

    fn byte(&self, character: usize) -> usize {
        if self.known.is_empty() {
            return character.min(self.text.len());
        }
        let Some(start) = self.known.get(character / Self::STRIDE) else { return self.text.len() };
        let start = *start as usize;
        self.text[start..].char_indices().nth(character % Self::STRIDE).map_or(self.text.len(), |(at, _)| start + at)
    }
}

#[cfg(test)]
mod tests;
