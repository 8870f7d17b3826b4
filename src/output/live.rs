//! The live view: lines for the terminal, no more than it can take, and nothing in
//! them that a terminal would obey.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;

/// Longer lines are cut.
const LONGEST_LINE: usize = 4096;
/// What a step may show per beat; nobody reads faster.
const BEAT: Duration = Duration::from_millis(100);
const LINES_PER_BEAT: usize = 100;
const BYTES_PER_BEAT: usize = 64 * 1024;
/// Batches on their way; with the limits above a few MiB at most.
const BATCHES: usize = 64;

/// Takes batches from all steps of a run.
pub type LiveSender = mpsc::Sender<LiveOutput>;
/// Gives them to the terminal.
pub type LiveReceiver = mpsc::Receiver<LiveOutput>;

/// A bounded channel: whoever writes never waits for the terminal.
pub fn live_channel() -> (LiveSender, LiveReceiver) {
    mpsc::channel(BATCHES)
}

/// Lines of one step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LiveOutput {
    /// The step.
    pub step: Arc<str>,
    /// How many lines before these are not shown; the log has them.
    pub skipped: u64,
    /// Oldest first.
    pub lines: Vec<LiveLine>,
}

/// One line, safe to print.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LiveLine {
    /// Where it comes from.
    pub stream: Stream,
    /// Without newline and control characters.
    pub text: String,
    /// Not finished: a prompt, or progress that overwrites itself. The stream's next
    /// line takes its place.
    pub passing: bool,
}

/// Where a line comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
    /// A message of the database or of the engine.
    Note,
}

/// Text in which everything a terminal would obey is made visible; newlines and tabs stay.
pub fn printable(text: &str) -> Cow<'_, str> {
    if text.chars().any(|letter| visible(letter) != letter) { text.chars().map(visible).collect::<String>().into() } else { text.into() }
}

fn visible(letter: char) -> char {
    match letter {
        '\n' | '\t' => letter,
        '\0'..='\x1f' => char::from_u32(0x2400 + u32::from(letter)).unwrap_or(char::REPLACEMENT_CHARACTER),
        '\x7f' => '\u{2421}',
        // C1 controls, line separators, and what reorders text on the screen.
        '\u{80}'..='\u{9f}' | '\u{2028}' | '\u{2029}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => {
            char::REPLACEMENT_CHARACTER
        }
        other => other,
    }
}

/// A step's way to the terminal.
#[derive(Debug)]
pub(super) struct Live {
    sender: LiveSender,
    step: Arc<str>,
    beat: Option<Instant>,
    lines_left: usize,
    bytes_left: usize,
    /// Lines that did not fit into the channel.
    refused: u64,
}

impl Live {
    pub(super) fn new(sender: LiveSender, step: Arc<str>) -> Self {
        Self { sender, step, beat: None, lines_left: 0, bytes_left: 0, refused: 0 }
    }

    fn may_show(&mut self, now: Instant) -> bool {
        if self.beat.is_none_or(|beat| now.duration_since(beat) >= BEAT) {
            self.beat = Some(now);
            self.lines_left = LINES_PER_BEAT;
            self.bytes_left = BYTES_PER_BEAT;
        }
        self.lines_left > 0 && self.bytes_left > 0
    }

    fn spend(&mut self, line: &LiveLine) {
        self.lines_left = self.lines_left.saturating_sub(1);
        self.bytes_left = self.bytes_left.saturating_sub(line.text.len());
    }

    fn send(&mut self, skipped: u64, lines: Vec<LiveLine>) {
        if lines.is_empty() && skipped == 0 {
            return;
        }
        let skipped = skipped + std::mem::take(&mut self.refused);
        let batch = LiveOutput { step: self.step.clone(), skipped, lines };
        if let Err(TrySendError::Full(batch)) = self.sender.try_send(batch) {
            self.refused = batch.skipped + batch.lines.iter().filter(|line| !line.passing).count() as u64;
        }
    }
}

/// Cuts a stream into lines.
#[derive(Debug)]
pub(super) struct Lines {
    stream: Stream,
    /// The unfinished line: what a terminal would show of it, cut.
    partial: Vec<u8>,
    partial_shown: bool,
    /// Lines since the last one shown, and the newest of them.
    skipped: u64,
    newest_skipped: Vec<u8>,
}

impl Lines {
    pub(super) fn new(stream: Stream) -> Self {
        Self { stream, partial: Vec::new(), partial_shown: true, skipped: 0, newest_skipped: Vec::new() }
    }

    pub(super) fn push(&mut self, bytes: &[u8], live: &mut Live, now: Instant) {
        let mut rest = bytes;
        let mut shown = Vec::new();
        let mut skipped_before = 0;
        while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
            if !live.may_show(now) {
                self.skip(rest);
                break;
            }
            skipped_before += self.show_newest_skipped(live, &mut shown);
            self.extend(&rest[..end]);
            let line = self.line(&self.partial, false);
            self.partial.clear();
            self.partial_shown = true;
            live.spend(&line);
            shown.push(line);
            rest = &rest[end + 1..];
        }
        let unfinished = rest.iter().rposition(|byte| *byte == b'\n').map_or(rest, |newline| &rest[newline + 1..]);
        self.extend(unfinished);
        if unfinished.contains(&b'\r') && live.may_show(now) {
            self.show_partial(live, &mut shown);
        }
        live.send(skipped_before, shown);
    }

    /// Nothing came for a moment: shows what is waiting.
    pub(super) fn idle(&mut self, live: &mut Live, now: Instant) {
        if live.may_show(now) {
            let mut shown = Vec::new();
            let skipped = self.show_newest_skipped(live, &mut shown);
            self.show_partial(live, &mut shown);
            live.send(skipped, shown);
        }
    }

    /// The stream has ended: an unfinished line is a line.
    pub(super) fn finish(&mut self, live: &mut Live, now: Instant) {
        live.may_show(now);
        let mut shown = Vec::new();
        let skipped = self.show_newest_skipped(live, &mut shown);
        if !self.partial.is_empty() {
            shown.push(self.line(&self.partial, false));
            self.partial.clear();
        }
        live.send(skipped, shown);
    }

    /// Counts the complete lines in `rest` and keeps the newest.
    fn skip(&mut self, rest: &[u8]) {
        let Some(end) = rest.iter().rposition(|byte| *byte == b'\n') else { return };
        let complete = &rest[..end];
        self.skipped += 1 + complete.iter().filter(|byte| **byte == b'\n').count() as u64;
        let newest = match complete.iter().rposition(|byte| *byte == b'\n') {
            Some(newline) => {
                self.partial.clear();
                &complete[newline + 1..]
            }
            None => complete,
        };
        self.extend(newest);
        self.newest_skipped.clear();
        self.newest_skipped.append(&mut self.partial);
        self.partial_shown = true;
    }

    /// Gives how many older ones stay unseen.
    fn show_newest_skipped(&mut self, live: &mut Live, shown: &mut Vec<LiveLine>) -> u64 {
        if self.skipped == 0 {
            return 0;
        }
        let line = self.line(&self.newest_skipped, false);
        self.newest_skipped.clear();
        live.spend(&line);
        shown.push(line);
        std::mem::take(&mut self.skipped) - 1
    }

    fn show_partial(&mut self, live: &mut Live, shown: &mut Vec<LiveLine>) {
        if !self.partial_shown {
            let line = self.line(&self.partial, true);
            self.partial_shown = true;
            live.spend(&line);
            shown.push(line);
        }
    }

    /// Adds to the unfinished line as a terminal does: a carriage return starts over.
    fn extend(&mut self, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        self.partial_shown = false;
        let text = bytes.strip_suffix(b"\r").unwrap_or(bytes);
        let (overwritten, text) = match text.iter().rposition(|byte| *byte == b'\r') {
            Some(last) => (true, &text[last + 1..]),
            None => (self.partial.ends_with(b"\r") && !text.is_empty(), text),
        };
        if overwritten {
            self.partial.clear();
        }
        let room = (LONGEST_LINE + 1).saturating_sub(self.partial.len());
        self.partial.extend_from_slice(&text[..text.len().min(room)]);
        if bytes.ends_with(b"\r") && !self.partial.ends_with(b"\r") {
            self.partial.push(b'\r');
        }
    }

    fn line(&self, bytes: &[u8], passing: bool) -> LiveLine {
        let bytes = bytes.strip_suffix(b"\r").unwrap_or(bytes);
        let cut = bytes.len() > LONGEST_LINE;
        let mut text = String::from_utf8_lossy(&bytes[..bytes.len().min(LONGEST_LINE)]).into_owned();
        if let Cow::Owned(safe) = printable(&text) {
            text = safe;
        }
        if cut {
            text.push('…');
        }
        LiveLine { stream: self.stream, text, passing }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(chunks: &[&[u8]]) -> Vec<(String, bool)> {
        let (sender, mut receiver) = live_channel();
        let mut live = Live::new(sender, "step".into());
        let mut lines = Lines::new(Stream::Stdout);
        for chunk in chunks {
            lines.push(chunk, &mut live, Instant::now());
        }
        lines.finish(&mut live, Instant::now());
        drop(live);
        let mut texts = Vec::new();
        while let Ok(batch) = receiver.try_recv() {
            texts.extend(batch.lines.into_iter().map(|line| (line.text, line.passing)));
        }
        texts
    }

    #[test]
    fn what_a_terminal_would_obey_is_made_visible() {
        assert_eq!(printable("plain\ttext\n"), Cow::Borrowed("plain\ttext\n"));
        assert_eq!(printable("\x1b[2J\x07\x7f\u{9b}31m\u{202e}"), "␛[2J␇␡\u{fffd}31m\u{fffd}");
        assert_eq!(shown(&[b"a\x1b]0;title\x07b\xff\x9b\n"]), [("a␛]0;title␇b\u{fffd}\u{fffd}".to_owned(), false)]);
    }

    #[test]
    fn progress_that_overwrites_itself_passes_and_ends_as_one_line() {
        let done = |text: &str| (text.to_owned(), false);
        let passing = |text: &str| (text.to_owned(), true);
        assert_eq!(shown(&[b"10%\r", b"20%\r50%\r", b"100%\n", b"next\n"]), [passing("10%"), passing("50%"), done("100%"), done("next")]);
        assert_eq!(shown(&[b"dos\r", b"\nline\r\n"]), [passing("dos"), done("dos"), done("line")]);
    }

    #[test]
    fn an_unfinished_line_is_shown_when_nothing_more_comes() {
        let (sender, mut receiver) = live_channel();
        let mut live = Live::new(sender, "step".into());
        let mut lines = Lines::new(Stream::Stderr);
        lines.push(b"Continue? ", &mut live, Instant::now());
        assert!(receiver.try_recv().is_err());
        lines.idle(&mut live, Instant::now());
        lines.idle(&mut live, Instant::now());
        let batch = receiver.try_recv().unwrap();
        assert_eq!(batch.lines, [LiveLine { stream: Stream::Stderr, text: "Continue? ".into(), passing: true }]);
        assert!(receiver.try_recv().is_err(), "shown once");
    }

    #[test]
    fn long_lines_are_cut_whatever_the_chunks() {
        let long = "ü".repeat(5000);
        let chunks: Vec<&[u8]> = long.as_bytes().chunks(77).chain([b"\nshort\n".as_slice()]).collect();
        let lines = shown(&chunks);
        assert_eq!(lines[0].0, format!("{}…", "ü".repeat(2048)));
        assert_eq!(lines[1].0, "short");
    }

    #[test]
    fn a_terminal_that_takes_nothing_costs_lines_not_memory() {
        let (sender, mut receiver) = live_channel();
        let mut live = Live::new(sender, "step".into());
        let mut lines = Lines::new(Stream::Stdout);
        let start = Instant::now();
        for beat in 0..200u32 {
            lines.push(b"line\n", &mut live, start + BEAT * beat);
        }
        let mut taken = 0;
        while let Ok(batch) = receiver.try_recv() {
            taken += batch.skipped + batch.lines.len() as u64;
        }
        assert_eq!(taken, BATCHES as u64);
        lines.push(b"last\n", &mut live, start + BEAT * 200);
        assert_eq!(receiver.try_recv().unwrap().skipped, 200 - BATCHES as u64);
    }
}
