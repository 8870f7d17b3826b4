//! Declared secrets, and the one redactor in front of every sink.
//!
//! A [`Secret`] cannot be printed by accident. The [`Redactor`] replaces every
//! declared secret, also in the encoded forms listed in `forms`, with `***` in
//! text and in byte streams, across chunk borders. It cannot know secrets nobody
//! declared, nor forms that hide the text altogether (encryption, compression).

mod forms;
mod structure;

use std::borrow::Cow;
use std::sync::Arc;

use aho_corasick::{AhoCorasick, AhoCorasickKind, Input, MatchKind};
use serde_json::Value;

pub use structure::Structure;

/// What stands in a secret's place.
pub const MASK: &str = "***";

/// Above this many bytes of patterns a DFA would take tens of megabytes.
const DFA_LIMIT: usize = 4096;

/// A secret's value; `Debug` hides it, there is no `Display`.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Wraps a value.
    pub fn new(value: impl Into<String>) -> Self {
        Self(value.into())
    }

    /// The value itself, for the one place that needs it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(***)")
    }
}

/// Replaces secrets in everything that leaves the process. Cheap to clone, and free
/// of cost while no secret is declared.
///
/// Short secrets are redacted too, wherever their letters occur: a report full of
/// `***` is a nuisance, a leaked PIN is not.
#[derive(Clone, Default)]
pub struct Redactor(Option<Arc<Patterns>>);

impl std::fmt::Debug for Redactor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Redactor(***)")
    }
}

struct Patterns {
    matcher: AhoCorasick,
    /// Sorted, to find out whether a chunk's end may be the beginning of one.
    sorted: Vec<Vec<u8>>,
    longest: usize,
    begins: [bool; 256],
}

impl Redactor {
    /// Knows these secrets and their encoded forms; an empty secret is none.
    pub fn new<'a>(secrets: impl IntoIterator<Item = &'a Secret>) -> Self {
        let mut sorted: Vec<Vec<u8>> = secrets.into_iter().flat_map(|secret| forms::of(secret.expose())).collect();
        sorted.sort_unstable();
        sorted.dedup();
        if sorted.is_empty() {
            return Self(None);
        }
        let total: usize = sorted.iter().map(Vec::len).sum();
        let kind = if total > DFA_LIMIT { AhoCorasickKind::ContiguousNFA } else { AhoCorasickKind::DFA };
        let matcher = AhoCorasick::builder()
            .match_kind(MatchKind::LeftmostLongest)
            .kind(Some(kind))
            .build(&sorted)
            .expect("only gigabytes of secrets exceed the automaton's number of states");
        let mut begins = [false; 256];
        for pattern in &sorted {
            begins[usize::from(pattern[0])] = true;
        }
        let longest = sorted.iter().map(Vec::len).max().unwrap_or_default();
        Self(Some(Arc::new(Patterns { matcher, sorted, longest, begins })))
    }

    /// Whether no secret is declared, so that nothing needs to be looked through.
    pub fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    /// Text without secrets.
    pub fn text<'a>(&self, text: &'a str) -> Cow<'a, str> {
        match self.bytes(text.as_bytes()) {
            Cow::Borrowed(_) => Cow::Borrowed(text),
            Cow::Owned(bytes) => Cow::Owned(String::from_utf8_lossy(&bytes).into_owned()),
        }
    }

    /// Bytes without secrets.
    pub fn bytes<'a>(&self, bytes: &'a [u8]) -> Cow<'a, [u8]> {
        match &self.0 {
            Some(patterns) if patterns.matcher.is_match(bytes) => {
                let mut shown = Vec::with_capacity(bytes.len());
                patterns.redact(bytes, 0, bytes.len(), &mut shown);
                Cow::Owned(shown)
            }
            _ => Cow::Borrowed(bytes),
        }
    }

    /// A JSON value without secrets, in keys and values. A number that shows a secret
    /// becomes text.
    pub fn json(&self, value: Value) -> Value {
        if self.0.is_none() {
            return value;
        }
        match value {
            Value::String(text) => Value::String(self.text(&text).into_owned()),
            Value::Number(number) => match self.text(&number.to_string()) {
                Cow::Owned(redacted) => Value::String(redacted),
                Cow::Borrowed(_) => Value::Number(number),
            },
            Value::Array(items) => items.into_iter().map(|item| self.json(item)).collect(),
            Value::Object(fields) => {
                Value::Object(fields.into_iter().map(|(key, value)| (self.text(&key).into_owned(), self.json(value))).collect())
            }
            other => other,
        }
    }

    /// A filter for a byte stream.
    pub fn stream(&self) -> RedactingStream {
        RedactingStream { redactor: self.clone(), held: Vec::new(), masked: 0, shown: Vec::new() }
    }
}

impl Patterns {
    /// Appends `bytes` to `shown` with all matches masked that begin before `settled`.
    /// The first `masked` bytes are already shown, as part of a mask; returns how many
    /// bytes from `settled` on are.
    ///
    /// Matches that overlap are masked as one, so the search goes on one byte after
    /// each match's begin, not after its end.
    fn redact(&self, bytes: &[u8], masked: usize, settled: usize, shown: &mut Vec<u8>) -> usize {
        let mut done = masked;
        let mut from = 0;
        while let Some(found) = self.matcher.find(Input::new(bytes).range(from..)).filter(|found| found.start() < settled) {
            if found.start() >= done {
                shown.extend_from_slice(&bytes[done..found.start()]);
                shown.extend_from_slice(MASK.as_bytes());
            }
            done = done.max(found.end());
            from = found.start() + 1;
        }
        if done < settled {
            shown.extend_from_slice(&bytes[done..settled]);
        }
        done.saturating_sub(settled)
    }

    /// Where the first pattern may begin that ends beyond these bytes.
    fn settled(&self, bytes: &[u8]) -> usize {
        let earliest = bytes.len().saturating_sub(self.longest - 1);
        (earliest..bytes.len())
            .find(|&start| self.begins[usize::from(bytes[start])] && self.is_begun_by(&bytes[start..]))
            .unwrap_or(bytes.len())
    }

    fn is_begun_by(&self, tail: &[u8]) -> bool {
        let first = self.sorted.partition_point(|pattern| pattern.as_slice() <= tail);
        self.sorted.get(first).is_some_and(|pattern| pattern.starts_with(tail))
    }
}

/// Redacts bytes that arrive in chunks: holds back a tail only while it is the
/// beginning of a secret, so a complete line is rarely delayed.
pub struct RedactingStream {
    redactor: Redactor,
    /// Not passed on yet; shorter than the longest pattern.
    held: Vec<u8>,
    /// How much of `held` a mask already stands for.
    masked: usize,
    shown: Vec<u8>,
}

impl std::fmt::Debug for RedactingStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "RedactingStream({} bytes held)", self.held.len())
    }
}

impl RedactingStream {
    /// Takes a chunk, gives what is safe to pass on.
    pub fn push<'a>(&'a mut self, chunk: &'a [u8]) -> &'a [u8] {
        let Some(patterns) = &self.redactor.0 else { return chunk };
        if self.held.is_empty() && !patterns.matcher.is_match(chunk) {
            let (safe, held) = chunk.split_at(patterns.settled(chunk));
            self.held.extend_from_slice(held);
            return safe;
        }
        self.held.extend_from_slice(chunk);
        let settled = patterns.settled(&self.held);
        self.shown.clear();
        self.masked = patterns.redact(&self.held, self.masked, settled, &mut self.shown);
        self.held.drain(..settled);
        &self.shown
    }

    /// Gives what was held back, at the end of the stream.
    pub fn finish(&mut self) -> &[u8] {
        self.shown.clear();
        if let Some(patterns) = &self.redactor.0 {
            patterns.redact(&self.held, self.masked, self.held.len(), &mut self.shown);
        }
        self.held.clear();
        self.masked = 0;
        &self.shown
    }
}

#[cfg(test)]
mod tests {
    use base64::Engine;
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn redactor(secrets: &[&str]) -> Redactor {
        let secrets: Vec<Secret> = secrets.iter().map(|secret| Secret::new(*secret)).collect();
        Redactor::new(&secrets)
    }

    #[test]
    fn every_usual_way_to_write_a_secret_is_masked() {
        let secret = "p/w \"ü+'$1";
        let redactor = redactor(&[secret]);
        let base64 = |text: String| base64::engine::general_purpose::STANDARD.encode(text);
        let written = [
            secret.to_owned(),
            base64(secret.to_owned()),
            base64(secret.to_owned()).replace('+', "-").replace('/', "_").replace('=', ""),
            "p%2Fw%20%22%C3%BC%2B%27%241".into(),
            "p%2fw%20%22%c3%bc%2b%27%241".into(),
            "p%2Fw+%22%C3%BC%2B%27%241".into(),
            "p/w%20%22%C3%BC+'$1".into(),
            r#"p/w \"ü+'$1"#.into(),
            r#"p\/w \"\u00fc+'$1"#.into(),
            "p/w \"ü+''$1".into(),
            r#"p/w "ü+'\''$1"#.into(),
            "702f772022c3bc2b272431".into(),
        ];
        for text in written {
            let line = format!("<{text}>");
            let shown = redactor.text(&line);
            assert!(shown.starts_with("<***") && shown.len() <= 8, "{line} is shown as {shown}");
        }
        assert_eq!(redactor.text("nothing to hide"), "nothing to hide");
    }

    #[test]
    fn a_secret_inside_longer_base64_is_masked_wherever_it_stands() {
        let redactor = redactor(&["correct-horse"]);
        for before in ["", "a", "ab", "abc"] {
            for after in ["", "z", "yz"] {
                let encoded = base64::engine::general_purpose::STANDARD.encode(format!("{before}correct-horse{after}"));
                let shown = redactor.text(&encoded).into_owned();
                assert!(shown.contains(MASK), "{encoded}");
                assert!(shown.replace(MASK, "").len() <= 4 + 4, "{encoded} is shown as {shown}");
            }
        }
    }

    #[test]
    fn lines_of_a_secret_are_masked_alone_but_not_its_braces() {
        let redactor = redactor(&["{\n  \"key\": \"s3cr3t-line\"\n}\n"]);
        assert_eq!(redactor.text("got \"key\": \"s3cr3t-line\" in {}"), "got *** in {}");
    }

    #[test]
    fn overlapping_secrets_leave_nothing_between_them() {
        let redactor = redactor(&["abcd", "cdef", "x"]);
        assert_eq!(redactor.text("-abcdef-x-xx-"), "-***-***-******-");
    }

    #[test]
    fn json_is_masked_in_keys_values_and_numbers() {
        let redactor = redactor(&["4711", "hunter2"]);
        assert_eq!(
            redactor.json(json!({"hunter2": ["a hunter2", 147112, 12, null, true]})),
            json!({"***": ["a ***", "1***2", 12, null, true]})
        );
    }

    #[test]
    fn a_stream_holds_back_only_the_beginning_of_a_secret() {
        let redactor = redactor(&["hunter2"]);
        let mut stream = redactor.stream();
        assert_eq!(stream.push(b"done\nhun"), b"done\n");
        assert_eq!(stream.push(b"t"), b"");
        assert_eq!(stream.push(b"er2 and hu"), b"*** and ");
        assert_eq!(stream.finish(), b"hu");
    }

    #[test]
    fn without_secrets_a_stream_passes_the_very_same_bytes() {
        let mut stream = Redactor::new(&[Secret::new("")]).stream();
        let chunk = b"anything".as_slice();
        assert!(std::ptr::eq(stream.push(chunk), chunk));
        assert_eq!(stream.finish(), b"");
    }

    #[test]
    fn debug_output_shows_no_secret() {
        let redactor = redactor(&["hunter2"]);
        let mut stream = redactor.stream();
        stream.push(b"hunt");
        assert_eq!(format!("{redactor:?} {stream:?}"), "Redactor(***) RedactingStream(4 bytes held)");
    }

    /// The definition: a byte is hidden if some pattern covers it.
    fn by_definition(secrets: &[String], text: &[u8]) -> Vec<u8> {
        let mut ranges: Vec<(usize, usize)> = Vec::new();
        for form in secrets.iter().flat_map(|secret| forms::of(secret)) {
            for start in 0..text.len() {
                if text[start..].starts_with(&form) {
                    ranges.push((start, start + form.len()));
                }
            }
        }
        ranges.sort_unstable();
        let (mut shown, mut done) = (Vec::new(), 0);
        for (start, end) in ranges {
            if start >= done {
                shown.extend_from_slice(&text[done..start]);
                shown.extend_from_slice(MASK.as_bytes());
            }
            done = done.max(end);
        }
        shown.extend_from_slice(&text[done..]);
        shown
    }

    proptest! {
        #[test]
        fn any_chunking_hides_what_the_definition_hides(
            secrets in prop::collection::vec("[ab%=\"\n ]{0,9}", 0..4),
            pieces in prop::collection::vec((prop::option::of(0usize..4), "[ab%=25GRE\"\n\\\\ ]{0,6}", 1usize..9), 0..12),
        ) {
            let mut text = String::new();
            for (secret, noise, _) in &pieces {
                text.push_str(secret.and_then(|index| secrets.get(index)).map_or("", String::as_str));
                text.push_str(noise);
            }
            let declared: Vec<Secret> = secrets.iter().map(Secret::new).collect();
            let redactor = Redactor::new(&declared);
            let expected = by_definition(&secrets, text.as_bytes());

            let mut stream = redactor.stream();
            let (mut streamed, mut rest) = (Vec::new(), text.as_bytes());
            for (_, _, size) in pieces.iter().cycle().take(text.len()) {
                let (chunk, later) = rest.split_at(rest.len().min(*size));
                streamed.extend_from_slice(stream.push(chunk));
                rest = later;
            }
            streamed.extend_from_slice(stream.finish());
            prop_assert_eq!(&streamed, &expected);
            prop_assert_eq!(redactor.bytes(text.as_bytes()).into_owned(), expected);
        }

        #[test]
        fn a_secret_in_the_middle_of_anything_never_shows(secret in "[!-~]{6,40}", before in "\\PC{0,40}", after in "\\PC{0,40}") {
            let redactor = Redactor::new(&[Secret::new(&secret)]);
            let engine = base64::engine::general_purpose::URL_SAFE_NO_PAD;
            let text = format!("{before}{secret}{after} {}", engine.encode(format!("{before}{secret}{after}")));
            let shown = redactor.text(&text).into_owned();
            prop_assert!(!shown.contains(&secret));
            let encoded = shown.rsplit(' ').next().unwrap_or_default();
            prop_assert!(encoded.contains(MASK), "{}", encoded);
        }
    }
}
