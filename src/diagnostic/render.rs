//! Drawing findings in rustc's layout.

use std::borrow::Cow;
use std::fmt;
use std::ops::Range;

use annotate_snippets::{AnnotationKind, Group, Level, Renderer, Snippet};

use super::{Diagnostic, Severity};
use crate::source::{SourceFile, Sources, Span};

/// More than this nobody reads at once; the rest is counted.
const SHOWN: usize = 200;
/// A related place further away than this gets an excerpt of its own.
const SAME_EXCERPT_LINES: usize = 50;

/// Draws findings in the order of their places: code, message, file:line:column,
/// excerpt with underline, related places, help. No control character of the source
/// reaches the result.
pub fn render(sources: &Sources, diagnostics: &[Diagnostic], color: bool) -> String {
    let renderer = if color { Renderer::styled() } else { Renderer::plain() };
    let mut sorted: Vec<&Diagnostic> = diagnostics.iter().collect();
    sorted.sort_by_key(|diagnostic| (diagnostic.span.source, diagnostic.span.start));
    let mut drawn = String::new();
    for (index, diagnostic) in sorted.iter().take(SHOWN).enumerate() {
        if index > 0 {
            drawn.push('\n');
        }
        draw(sources, diagnostic, &renderer, &mut drawn);
    }
    if let Some(more) = sorted.len().checked_sub(SHOWN).filter(|more| *more > 0) {
        drawn.push_str(&format!("\n… and {more} more, not shown\n"));
    }
    drawn
}

/// How many of each severity there are; `Display` says it in words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// Nothing runs.
    pub errors: usize,
    /// Worth a look.
    pub warnings: usize,
}

impl Counts {
    /// Counts findings.
    pub fn of(diagnostics: &[Diagnostic]) -> Self {
        let errors = diagnostics.iter().filter(|diagnostic| diagnostic.severity == Severity::Error).count();
        Self { errors, warnings: diagnostics.len() - errors }
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let amount = |count: usize, word: &str| format!("{count} {word}{}", if count == 1 { "" } else { "s" });
        match (self.errors, self.warnings) {
            (errors, 0) => f.write_str(&amount(errors, "error")),
            (0, warnings) => f.write_str(&amount(warnings, "warning")),
            (errors, warnings) => write!(f, "{}, {}", amount(errors, "error"), amount(warnings, "warning")),
        }
    }
}

/// The candidate that was probably meant by a misspelt word.
pub fn did_you_mean<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    /// Comparing takes the product of the lengths, and nobody misspells a longer name.
    const LONGEST: usize = 64;
    if word.len() > LONGEST {
        return None;
    }
    let plain = |text: &str| text.to_lowercase().replace('-', "_");
    let word = plain(word);
    candidates
        .into_iter()
        .filter(|candidate| candidate.len() <= LONGEST)
        .map(|candidate| (strsim::normalized_damerau_levenshtein(&word, &plain(candidate)), candidate))
        .filter(|(likeness, candidate)| *likeness >= 0.6 || (word.chars().count() >= 3 && plain(candidate).starts_with(&word)))
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, candidate)| candidate)
}

/// Text in which control characters other than line ends and tab are replaced by
/// visible ones of the same length in bytes.
pub fn visible(text: &str) -> Cow<'_, str> {
    let hidden = |c: char| (c.is_control() && c != '\n' && c != '\t') || is_bidirectional(c);
    if !text.contains(hidden) {
        return Cow::Borrowed(text);
    }
    // Offsets into the text must stay valid, hence one replacement per length.
    let mut characters = text.chars().peekable();
    let mut next = || {
        let character = characters.next()?;
        Some((character, character == '\r' && characters.peek() == Some(&'\n')))
    };
    let replace = |(c, ends_line): (char, bool)| match c.len_utf8() {
        _ if ends_line || !hidden(c) => c,
        1 => '?',
        2 => '¿',
        _ => '\u{fffd}',
    };
    Cow::Owned(std::iter::from_fn(&mut next).map(replace).collect())
}

/// Text for one line of a finding; nobody reads an id of a megabyte.
fn line(text: &str) -> Cow<'_, str> {
    const LONGEST: usize = 1000;
    match text.char_indices().nth(LONGEST) {
        Some((end, _)) => Cow::Owned(format!("{}…", visible(&text[..end]))),
        None => visible(text),
    }
}

/// Characters that make a terminal show text in another order than it is read in.
fn is_bidirectional(c: char) -> bool {
    matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{200e}' | '\u{200f}')
}

fn draw(sources: &Sources, diagnostic: &Diagnostic, renderer: &Renderer, drawn: &mut String) {
    let level = match diagnostic.severity {
        Severity::Error => Level::ERROR,
        Severity::Warning => Level::WARNING,
    };
    let message = line(&diagnostic.message);
    let mut excerpts = vec![Excerpt::new(sources, diagnostic.span, &diagnostic.label)];
    for (span, label) in &diagnostic.related {
        match excerpts.iter_mut().find(|excerpt| excerpt.is_near(*span)) {
            Some(excerpt) => excerpt.add(*span, label),
            None => excerpts.push(Excerpt::new(sources, *span, label)),
        }
    }
    let mut group = Group::with_title(level.primary_title(message).id(diagnostic.code));
    for (index, excerpt) in excerpts.iter().enumerate() {
        group = group.element(excerpt.snippet(index == 0));
    }
    for help in &diagnostic.help {
        group = group.element(Level::HELP.message(line(help)));
    }
    drawn.push_str(&renderer.render(&[group]));
    drawn.push('\n');
}

/// Consecutive lines of a file with the places in them.
struct Excerpt<'a> {
    file: &'a SourceFile,
    places: Vec<(Span, Cow<'a, str>)>,
}

impl<'a> Excerpt<'a> {
    fn new(sources: &'a Sources, span: Span, label: &'a str) -> Self {
        Self { file: sources.get(span.source), places: vec![(span, line(label))] }
    }

    fn add(&mut self, span: Span, label: &'a str) {
        self.places.push((span, line(label)));
    }

    fn is_near(&self, span: Span) -> bool {
        let line = |span: Span| self.file.line_column(span.start).0;
        self.places.iter().all(|(place, _)| place.source == span.source && line(*place).abs_diff(line(span)) <= SAME_EXCERPT_LINES)
    }

    fn snippet(&self, primary: bool) -> Snippet<'a, annotate_snippets::Annotation<'a>> {
        let text = &self.file.text;
        let ranges: Vec<Range<usize>> = self.places.iter().map(|(span, _)| first_line(text, *span)).collect();
        let first = ranges.iter().map(|range| range.start).min().unwrap_or(0);
        let last = ranges.iter().map(|range| range.end).max().unwrap_or(0);
        let start = text[..first].rfind('\n').map_or(0, |found| found + 1);
        let end = text[last..].find('\n').map_or(text.len(), |found| last + found);
        let mut snippet = Snippet::source(visible(text[start..end].trim_end_matches('\r')))
            .line_start(self.file.line_column(start as u32).0)
            .path(visible(&self.file.path.display().to_string()).into_owned());
        for (index, (range, (_, label))) in ranges.into_iter().zip(&self.places).enumerate() {
            let kind = if primary && index == 0 { AnnotationKind::Primary } else { AnnotationKind::Context };
            let label = (!label.is_empty()).then(|| label.clone());
            snippet = snippet.annotation(kind.span(range.start - start..range.end - start).label(label));
        }
        snippet
    }
}

/// A place of several lines is shown by its first; the rest would bury the message.
fn first_line(text: &str, span: Span) -> Range<usize> {
    let boundary = |at: u32| (0..=(at as usize).min(text.len())).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
    let (start, end) = (boundary(span.start), boundary(span.end.max(span.start)));
    let line = text[start..end].find('\n').map_or(end, |found| start + found);
    start..start + text[start..line].trim_end().len()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sources(text: &str) -> Sources {
        let mut sources = Sources::default();
        sources.add(SourceFile::new("pre-deploy.yaml", text));
        sources
    }

    fn span(text: &str, needle: &str) -> Span {
        let start = text.find(needle).expect("needle") as u32;
        Span { start, end: start + needle.len() as u32, ..Span::default() }
    }

    #[test]
    fn a_finding_shows_place_label_related_places_and_help() {
        let text = "version: 1\nsteps:\n  - id: count\n    sql:\n      query: SELECT 1\n  - id: count\n";
        let again = Span { start: text.rfind("count").expect("again") as u32, end: text.len() as u32 - 1, ..Span::default() };
        let diagnostic = Diagnostic::error("duplicate-id", again, "two steps are called `count`")
            .label("again")
            .related(span(text, "count"), "first here")
            .help("give each step a name of its own");
        insta::assert_snapshot!(render(&sources(text), &[diagnostic], false), @r"
        error[duplicate-id]: two steps are called `count`
         --> pre-deploy.yaml:6:9
          |
        3 |   - id: count
          |         ----- first here
        ...
        6 |   - id: count
          |         ^^^^^ again
          |
          = help: give each step a name of its own
        ");
    }

    #[test]
    fn several_lines_and_ends_of_lines_do_not_bury_the_message() {
        let text = "a:\r\n  b: 1\r\n  c: 2\r\nd:";
        let whole = Diagnostic::warning("odd", span(text, "b: 1\r\n  c: 2"), "odd mapping");
        let end =
            Diagnostic::error("missing", Span { start: text.len() as u32, end: text.len() as u32, ..Span::default() }, "nothing here");
        insta::assert_snapshot!(render(&sources(text), &[end, whole], false), @r"
        warning[odd]: odd mapping
         --> pre-deploy.yaml:2:3
          |
        2 |   b: 1
          |   ^^^^

        error[missing]: nothing here
         --> pre-deploy.yaml:4:3
          |
        4 | d:
          |   ^
        ");
    }

    #[test]
    fn control_characters_are_made_visible() {
        let text = "a: \u{1b}[31mred\u{9b}31m \u{202e}x\nb: 1";
        let diagnostic = Diagnostic::error("x", span(text, "red"), "bad \u{1b}[2J").label("la\u{7}bel").help("he\u{9b}lp");
        let drawn = render(&sources(text), &[diagnostic], false);
        assert!(!drawn.contains(|c: char| c != '\n' && (c.is_control() || is_bidirectional(c))), "{drawn:?}");
        insta::assert_snapshot!(drawn, @r"
        error[x]: bad ?[2J
         --> pre-deploy.yaml:1:9
          |
        1 | a: ?[31mred¿31m �x
          |         ^^^ la?bel
          |
          = help: he¿lp
        ");
    }

    #[test]
    fn a_flood_is_counted() {
        let many: Vec<_> = (0..205).map(|_| Diagnostic::error("x", Span::default(), "again")).collect();
        let drawn = render(&sources("a"), &many, false);
        assert!(drawn.ends_with("… and 5 more, not shown\n"));
        assert_eq!(Counts::of(&many).to_string(), "205 errors");
        assert_eq!(Counts { errors: 1, warnings: 2 }.to_string(), "1 error, 2 warnings");
    }

    #[test]
    fn misspelt_words_find_their_candidate() {
        let keys = ["query", "exec", "connection", "max_parallel", "statement_timeout"];
        assert_eq!(did_you_mean("qurey", keys), Some("query"));
        assert_eq!(did_you_mean("max-parallel", keys), Some("max_parallel"));
        assert_eq!(did_you_mean("Connection", keys), Some("connection"));
        assert_eq!(did_you_mean("conn", keys), Some("connection"));
        assert_eq!(did_you_mean("table", keys), None);
        assert_eq!(did_you_mean("x", keys), None);
        assert_eq!(did_you_mean(&"x".repeat(10_000_000), [&*"x".repeat(10_000_001)]), None);
    }
}
