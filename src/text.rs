//! Text for people: lines made of inked pieces, and how they become bytes.
//!
//! Whatever a piece is made from (an error of the database, a row, a name), nothing in
//! it reaches a terminal as a command: control characters are made visible as soon as
//! it becomes part of a [`Line`]. This draws to strings; it never prints.

pub mod table;

use std::borrow::Cow;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

use crate::output::printable;

/// What a piece of text is, as far as colour goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ink {
    /// Ordinary text.
    Plain,
    /// What the eye should find first.
    Strong,
    /// What may be overlooked.
    Dim,
    /// All is well.
    Good,
    /// Worth a look.
    Warn,
    /// Something is wrong.
    Bad,
    /// To be copied: commands, ids.
    Accent,
}

/// How text is drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Style {
    /// Whether colours are used.
    pub color: bool,
    /// Columns to wrap and cut at; none when nobody looks at it on a screen.
    pub width: Option<usize>,
}

impl Style {
    /// For files and pipes: no colours, no wrapping.
    pub const PLAIN: Self = Self { color: false, width: None };
}

/// One line.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Line {
    pieces: Vec<(Ink, String)>,
}

impl Line {
    /// An empty line.
    pub fn new() -> Self {
        Self::default()
    }

    /// A line of ordinary text.
    pub fn plain(text: impl AsRef<str>) -> Self {
        Self::new().then(Ink::Plain, text)
    }

    /// Adds a piece.
    pub fn then(mut self, ink: Ink, text: impl AsRef<str>) -> Self {
        self.push(ink, text);
        self
    }

    /// Adds a piece. It stays on this line: what would begin another is shown as `↵`.
    pub fn push(&mut self, ink: Ink, text: impl AsRef<str>) {
        let text = one_line(text.as_ref());
        if !text.is_empty() {
            self.pieces.push((ink, text.into_owned()));
        }
    }

    /// The line moved to the right.
    pub fn indented(mut self, columns: usize) -> Self {
        if columns > 0 && !self.pieces.is_empty() {
            self.pieces.insert(0, (Ink::Plain, " ".repeat(columns)));
        }
        self
    }

    /// Another line's pieces behind this one's.
    pub fn append(&mut self, other: Self) {
        self.pieces.extend(other.pieces);
    }

    /// Columns on a terminal.
    pub fn width(&self) -> usize {
        self.pieces.iter().map(|(_, text)| text.width()).sum()
    }

    /// The line in at most `width` columns; `…` stands for what is left out.
    pub fn cut(mut self, width: usize) -> Self {
        if self.width() <= width {
            return self;
        }
        let mut left = width;
        let mut pieces = Vec::new();
        for (ink, text) in self.pieces {
            if text.width() > left || text.width() == left && !pieces.is_empty() {
                pieces.push((ink, cut(&text, left)));
                break;
            }
            left -= text.width();
            pieces.push((ink, text));
        }
        self.pieces = pieces;
        self
    }

    /// As characters for a file or a terminal.
    pub fn draw(&self, style: Style) -> String {
        let mut drawn = String::new();
        for (ink, text) in &self.pieces {
            match escape(*ink).filter(|_| style.color) {
                Some(escape) => drawn.extend([escape, text.as_str(), "\x1b[0m"]),
                None => drawn.push_str(text),
            }
        }
        drawn.truncate(drawn.trim_end_matches(' ').len());
        drawn
    }
}

/// Lines drawn below each other, each ended.
pub fn draw(lines: &[Line], style: Style) -> String {
    lines.iter().map(|line| line.draw(style) + "\n").collect()
}

fn escape(ink: Ink) -> Option<&'static str> {
    match ink {
        Ink::Plain => None,
        Ink::Strong => Some("\x1b[1m"),
        Ink::Dim => Some("\x1b[2m"),
        Ink::Good => Some("\x1b[32m"),
        Ink::Warn => Some("\x1b[33m"),
        Ink::Bad => Some("\x1b[1;31m"),
        Ink::Accent => Some("\x1b[36m"),
    }
}

/// Text that stays on one line and that a terminal does not obey.
fn one_line(text: &str) -> Cow<'_, str> {
    match printable(text) {
        Cow::Borrowed(text) if !text.contains(['\n', '\t']) => Cow::Borrowed(text),
        text => Cow::Owned(text.replace('\n', "↵").replace('\t', "    ")),
    }
}

/// Text in at most `width` columns; `…` stands for what is left out.
pub fn cut(text: &str, width: usize) -> String {
    if text.width() <= width {
        return text.to_owned();
    }
    let mut kept = String::new();
    let mut columns = 1;
    for letter in text.chars() {
        columns += letter.width().unwrap_or(0);
        if columns > width {
            break;
        }
        kept.push(letter);
    }
    if width > 0 {
        kept.push('…');
    }
    kept
}

/// Text in lines of at most `width` columns, broken between words. The author's own
/// lines stay lines; a word that is too long is left for the terminal to break, so that
/// it can be copied in one piece.
pub fn wrap(text: &str, width: Option<usize>) -> Vec<String> {
    text.trim_end().lines().flat_map(|line| wrap_line(line, width.unwrap_or(usize::MAX))).collect()
}

fn wrap_line(line: &str, width: usize) -> Vec<String> {
    if line.width() <= width {
        return vec![line.to_owned()];
    }
    let indent = " ".repeat(line.len() - line.trim_start_matches(' ').len());
    let mut lines: Vec<String> = Vec::new();
    let mut current = indent.clone();
    for word in line.split_whitespace() {
        let begun = current.len() > indent.len();
        if begun && current.width() + 1 + word.width() > width {
            lines.push(std::mem::replace(&mut current, indent.clone()));
        } else if begun {
            current.push(' ');
        }
        current.push_str(word);
    }
    lines.push(current);
    lines
}

/// A label and its text; further lines of the text stand below its first one.
#[derive(Debug, Clone)]
pub struct Field {
    /// What it is.
    pub label: String,
    /// The text, line by line.
    pub lines: Vec<Line>,
}

impl Field {
    /// A field of ready-made lines.
    pub fn new(label: impl Into<String>, lines: Vec<Line>) -> Self {
        Self { label: label.into(), lines }
    }

    /// A field of ordinary text, wrapped to what is left of the width.
    pub fn text(label: impl Into<String>, text: &str, style: Style) -> Self {
        Self::new(label, paragraph(Ink::Plain, text, style, FIELD_TEXT))
    }
}

/// Where the text of a field begins, at the least.
const FIELD_TEXT: usize = 12;

/// Fields below each other, indented by two, their texts aligned.
pub fn fields(fields: &[Field]) -> Vec<Line> {
    let widest = fields.iter().map(|field| field.label.width()).filter(|width| *width <= 20).max().unwrap_or(0);
    let column = (widest + 2).max(FIELD_TEXT - 2);
    let mut lines = Vec::new();
    for field in fields {
        for (position, line) in field.lines.iter().enumerate() {
            let label = if position == 0 { one_line(&field.label) } else { "".into() };
            let padding = column.saturating_sub(label.width()).max(usize::from(position == 0) * 2);
            let mut drawn = Line::new().then(Ink::Dim, format!("  {label}")).then(Ink::Plain, " ".repeat(padding));
            drawn.append(line.clone());
            lines.push(drawn);
        }
    }
    lines
}

/// Wrapped text that will stand `indent` columns from the left.
pub fn paragraph(ink: Ink, text: &str, style: Style, indent: usize) -> Vec<Line> {
    let width = style.width.map(|width| width.saturating_sub(indent).max(20));
    wrap(text, width).iter().map(|line| Line::new().then(ink, line)).collect()
}

/// How long something took: always with a fraction below a minute, so that it reads as measured.
pub fn took(milliseconds: u64) -> String {
    let seconds = milliseconds / 1000;
    match seconds {
        0..10 => format!("{}.{:02}s", seconds, milliseconds % 1000 / 10),
        10..60 => format!("{}.{}s", seconds, milliseconds % 1000 / 100),
        60..3600 => format!("{}m {:02}s", seconds / 60, seconds % 60),
        _ => format!("{}h {:02}m", seconds / 3600, seconds % 3600 / 60),
    }
}

/// A moment in the reader's time zone.
pub fn moment(at: Timestamp) -> String {
    at.to_zoned(TimeZone::system()).strftime("%Y-%m-%d %H:%M:%S").to_string()
}

/// `1 step`, `2 steps`.
pub fn count(number: u64, one: &str) -> String {
    if number == 1 { format!("1 {one}") } else { format!("{number} {one}s") }
}

/// A word as it can be pasted into a shell.
pub fn shell_word(word: &str) -> Cow<'_, str> {
    let harmless = |letter: char| letter.is_ascii_alphanumeric() || "-_./:@%+=,".contains(letter);
    if !word.is_empty() && word.chars().all(harmless) { word.into() } else { format!("'{}'", word.replace('\'', r"'\''")).into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_in_a_line_is_obeyed_by_a_terminal() {
        let style = Style { color: true, width: None };
        let line = Line::new().then(Ink::Bad, "FAILED").then(Ink::Plain, " \x1b[2Jrow\r\n2\tx");
        assert_eq!(line.draw(style), "\x1b[1;31mFAILED\x1b[0m ␛[2Jrow␍↵2    x");
        assert_eq!(line.draw(Style::PLAIN), "FAILED ␛[2Jrow␍↵2    x");
    }

    #[test]
    fn lines_are_cut_by_columns_not_letters() {
        assert_eq!(cut("日本語テキスト", 7), "日本語…");
        assert_eq!(cut("short", 5), "short");
        let line = Line::plain("done  ").then(Ink::Dim, "a long value");
        assert_eq!(line.clone().cut(10).draw(Style::PLAIN), "done  a l…");
        assert_eq!(line.clone().cut(18), line);
    }

    #[test]
    fn text_is_wrapped_between_words_and_keeps_its_own_lines() {
        assert_eq!(wrap("one two three\n  four five six", Some(9)), ["one two", "three", "  four", "  five", "  six"]);
        assert_eq!(wrap("supercalifragilistic x", Some(8)), ["supercalifragilistic", "x"]);
        assert_eq!(wrap("one two three", None), ["one two three"]);
    }

    #[test]
    fn fields_align_their_texts() {
        let style = Style { color: false, width: Some(40) };
        let lines = fields(&[
            Field::text("state", "nothing was changed, so it may simply be tried again", style),
            Field::text("blocked by", "pid 12", style),
        ]);
        insta::assert_snapshot!(draw(&lines, style), @r"
          state       nothing was changed, so it
                      may simply be tried again
          blocked by  pid 12
        ");
    }

    #[test]
    fn durations_read_as_measured() {
        let shown = [0, 12, 9_999, 10_000, 59_990, 61_000, 3_725_000].map(took);
        assert_eq!(shown, ["0.00s", "0.01s", "9.99s", "10.0s", "59.9s", "1m 01s", "1h 02m"]);
    }

    #[test]
    fn words_are_quoted_for_the_shell_where_needed() {
        assert_eq!(shell_word("nested/step"), "nested/step");
        assert_eq!(shell_word("step[3]"), "'step[3]'");
        assert_eq!(shell_word("it's"), r"'it'\''s'");
    }
}
