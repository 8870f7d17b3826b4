//! Where a step's output goes: in full to a file, live to the terminal, and its end
//! into the step's result.
//!
//! Everything passes the redactor first, and memory stays flat however much comes:
//! the file keeps head and tail ([`settle_log`]), the terminal gets what it can take
//! and a count of the rest. It does not start processes and does not draw.

mod live;
mod log;
mod tail;

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use tokio::sync::mpsc::UnboundedSender;

pub use live::{LiveLine, LiveOutput, LiveReceiver, LiveSender, Stream, live_channel, printable};
pub use log::settle_log;

use crate::secret::{RedactingStream, Redactor};
use live::{Lines, Live};
use log::Log;
use tail::Tail;

/// What an [`Output`] is made of.
#[derive(Debug)]
pub struct OutputOptions {
    /// The run's directory for output files; created when the first byte comes.
    pub directory: PathBuf,
    /// The step as people know it.
    pub step: String,
    /// Counted from 1.
    pub attempt: u32,
    /// How much the file may hold: the first half of the output and its last half.
    pub max_bytes: u64,
    /// Stands before every sink.
    pub redactor: Redactor,
    /// The terminal, if one wants to see it live.
    pub live: Option<LiveSender>,
}

/// The output of one attempt at a step. Cheap to clone; may be used from any thread.
#[derive(Debug, Clone)]
pub struct Output {
    sinks: Arc<Mutex<Sinks>>,
    redactor: Redactor,
    /// Where lines of standard error go instead of the terminal.
    watcher: Option<LineSender>,
}

/// Takes lines as they come, after redaction.
pub type LineSender = UnboundedSender<String>;

#[derive(Debug)]
struct Sinks {
    log: Log,
    live: Option<Live>,
}

impl Output {
    /// An output that has written nothing yet, not even a file.
    pub fn new(options: OutputOptions) -> Self {
        let file_name = format!("{}.{}.log", options.step.replace('/', "."), options.attempt);
        let log = Log::new(options.directory.join(file_name), options.max_bytes);
        let live = options.live.map(|sender| Live::new(sender, options.step.into()));
        Self { sinks: Arc::new(Mutex::new(Sinks { log, live })), redactor: options.redactor, watcher: None }
    }

    /// A message about the work, such as a NOTICE, in lines of its own.
    pub fn note(&self, text: &str) {
        let text = self.redactor.text(text);
        let mut sinks = self.lock();
        sinks.log.line(text.as_bytes());
        if let Some(live) = &mut sinks.live {
            let mut lines = Lines::new(Stream::Note);
            lines.push(text.as_bytes(), live, Instant::now());
            lines.finish(live, Instant::now());
        }
    }

    /// The same file, but nothing of what is captured is shown live: lines of standard error
    /// go to `lines`, for whoever makes progress of a program's chatter.
    pub fn watched(&self, lines: LineSender) -> Self {
        Self { watcher: Some(lines), ..self.clone() }
    }

    /// The standard output and error of one process, or whatever stands for them.
    pub fn capture(&self) -> Capture {
        let channel = |stream| Channel::new(&self.redactor, stream);
        Capture { output: self.clone(), stdout: channel(Stream::Stdout), stderr: channel(Stream::Stderr) }
    }

    /// Completes the file and says what it holds.
    pub fn finish(&self) -> Kept {
        self.lock().log.finish()
    }

    fn lock(&self) -> MutexGuard<'_, Sinks> {
        self.sinks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What became of an [`Output`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kept {
    /// The file, if anything was written.
    pub file: Option<PathBuf>,
    /// All bytes that came, after redaction.
    pub bytes: u64,
    /// How many of them the file does not hold.
    pub left_out: u64,
    /// Why the file is incomplete, e.g. a full disk; the step itself goes on.
    pub trouble: Option<String>,
}

/// Takes what one process writes.
#[derive(Debug)]
pub struct Capture {
    output: Output,
    stdout: Channel,
    stderr: Channel,
}

impl Capture {
    /// Bytes from standard output.
    pub fn stdout(&mut self, bytes: &[u8]) {
        self.stdout.push(bytes, &self.output);
    }

    /// Bytes from standard error.
    pub fn stderr(&mut self, bytes: &[u8]) {
        self.stderr.push(bytes, &self.output);
    }

    /// Nothing came for a moment: shows unfinished lines and counts live.
    pub fn idle(&mut self) {
        let mut sinks = self.output.lock();
        if let Some(live) = sinks.live.as_mut().filter(|_| self.output.watcher.is_none()) {
            let now = Instant::now();
            self.stdout.ends.lines.idle(live, now);
            self.stderr.ends.lines.idle(live, now);
        }
    }

    /// Passes on what was held back and gives the end of each stream.
    pub fn finish(mut self) -> Captured {
        self.stdout.finish(&self.output);
        self.stderr.finish(&self.output);
        let stdout_complete = self.stdout.ends.tail.is_complete();
        Captured { stdout: self.stdout.ends.tail.into_text(), stderr: self.stderr.ends.tail.into_text(), stdout_complete }
    }
}

/// The end of what a process wrote, at most 64 KiB each, without trailing newlines.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Captured {
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
    /// Whether `stdout` is all of it.
    pub stdout_complete: bool,
}

#[derive(Debug)]
struct Channel {
    redacting: RedactingStream,
    ends: Ends,
}

impl Channel {
    fn new(redactor: &Redactor, stream: Stream) -> Self {
        let ends = Ends { stream, lines: Lines::new(stream), tail: Tail::default(), unfinished: Vec::new() };
        Self { redacting: redactor.stream(), ends }
    }

    fn push(&mut self, bytes: &[u8], output: &Output) {
        self.ends.spread(self.redacting.push(bytes), output);
    }

    fn finish(&mut self, output: &Output) {
        self.ends.spread(self.redacting.finish(), output);
        self.ends.finish(output);
    }
}

/// Where a stream's bytes go once the redactor has seen them.
#[derive(Debug)]
struct Ends {
    stream: Stream,
    lines: Lines,
    tail: Tail,
    /// A watched line that has not ended yet.
    unfinished: Vec<u8>,
}

impl Ends {
    fn spread(&mut self, bytes: &[u8], output: &Output) {
        if bytes.is_empty() {
            return;
        }
        self.tail.push(bytes);
        let mut sinks = output.lock();
        sinks.log.write(bytes);
        match (&output.watcher, &mut sinks.live) {
            (Some(watcher), _) if self.stream == Stream::Stderr => watch(&mut self.unfinished, bytes, watcher),
            (None, Some(live)) => self.lines.push(bytes, live, Instant::now()),
            _ => {}
        }
    }

    fn finish(&mut self, output: &Output) {
        match (&output.watcher, &mut output.lock().live) {
            (Some(watcher), _) if !self.unfinished.is_empty() => watch(&mut self.unfinished, b"\n", watcher),
            (None, Some(live)) => self.lines.finish(live, Instant::now()),
            _ => {}
        }
    }
}

/// Passes every whole line on. A line is bounded, so that no program can fill the memory.
fn watch(unfinished: &mut Vec<u8>, bytes: &[u8], watcher: &LineSender) {
    const LONGEST: usize = 16 * 1024;
    for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
        let room = LONGEST.saturating_sub(unfinished.len());
        unfinished.extend_from_slice(&piece[..piece.len().min(room)]);
        if piece.ends_with(b"\n") {
            // Nobody listens any more: then nobody needs to know.
            let _ = watcher.send(String::from_utf8_lossy(unfinished).trim_end().to_owned());
            unfinished.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::secret::Secret;

    fn output(directory: &std::path::Path, max_bytes: u64, live: Option<LiveSender>) -> Output {
        let redactor = Redactor::new(&[Secret::new("hunter2")]);
        Output::new(OutputOptions { directory: directory.to_owned(), step: "nested/ship[0]".into(), attempt: 2, max_bytes, redactor, live })
    }

    fn shown(receiver: &mut LiveReceiver) -> Vec<String> {
        let mut lines = Vec::new();
        while let Ok(batch) = receiver.try_recv() {
            if batch.skipped > 0 {
                lines.push(format!("({} skipped)", batch.skipped));
            }
            lines.extend(
                batch.lines.into_iter().map(|line| format!("{:?}{} {}", line.stream, if line.passing { "~" } else { "" }, line.text)),
            );
        }
        lines
    }

    #[test]
    fn a_quiet_step_leaves_no_file() {
        let directory = tempfile::tempdir().unwrap();
        let output = output(&directory.path().join("run"), 1024, None);
        assert_eq!(output.capture().finish(), Captured { stdout_complete: true, ..Captured::default() });
        assert_eq!(output.finish(), Kept { file: None, bytes: 0, left_out: 0, trouble: None });
        assert!(!directory.path().join("run").exists());
    }

    #[test]
    fn output_reaches_file_result_and_terminal_without_the_secret() {
        let directory = tempfile::tempdir().unwrap();
        let (sender, mut receiver) = live_channel();
        let output = output(&directory.path().join("run"), 1024, Some(sender));
        let mut capture = output.capture();
        capture.stdout(b"password is hun");
        capture.stderr(b"warning\n");
        capture.stdout(b"ter2, ok\nunfin");
        output.note("NOTICE: hunter2 seen");
        let captured = capture.finish();
        let kept = output.finish();

        assert_eq!((captured.stdout.as_str(), captured.stderr.as_str()), ("password is ***, ok\nunfin", "warning"));
        let file = kept.file.unwrap();
        assert_eq!(file.file_name().unwrap(), "nested.ship[0].2.log");
        assert_eq!(
            std::fs::read_to_string(&file).unwrap(),
            "password is warning\n***, ok\nunfin\nNOTICE: *** seen\n",
            "a note starts a line of its own"
        );
        assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(shown(&mut receiver), ["Stderr warning", "Stdout password is ***, ok", "Note NOTICE: *** seen", "Stdout unfin"]);
    }

    #[test]
    fn watched_lines_come_whole_and_are_not_shown() {
        let directory = tempfile::tempdir().unwrap();
        let (sender, mut live) = live_channel();
        let (watcher, mut lines) = tokio::sync::mpsc::unbounded_channel();
        let output = output(directory.path(), 1024, Some(sender));
        let mut capture = output.watched(watcher).capture();
        capture.stderr(b"dumping hun");
        capture.stdout(b"not watched\n");
        capture.stderr(b"ter2 now\nand");
        capture.stderr(b" then");
        let captured = capture.finish();
        let seen: Vec<String> = std::iter::from_fn(|| lines.try_recv().ok()).collect();
        assert_eq!(seen, ["dumping *** now", "and then"]);
        assert_eq!(captured.stderr, "dumping *** now\nand then");
        assert_eq!(shown(&mut live), [""; 0]);
    }

    #[test]
    fn a_flood_is_skipped_live_with_a_count_but_never_in_the_file() {
        let directory = tempfile::tempdir().unwrap();
        let (sender, mut receiver) = live_channel();
        let output = output(directory.path(), 1 << 20, Some(sender));
        let mut capture = output.capture();
        let flood: String = (1..=5000).map(|number| format!("line {number}\n")).collect();
        capture.stdout(flood.as_bytes());
        capture.finish();
        let lines = shown(&mut receiver);
        assert_eq!(lines.first().unwrap(), "Stdout line 1");
        assert_eq!(lines.last().unwrap(), "Stdout line 5000", "the newest line is worth showing");
        let count: u64 = lines.iter().filter_map(|line| line.strip_prefix('(')?.strip_suffix(" skipped)")?.parse::<u64>().ok()).sum();
        assert_eq!(count + lines.iter().filter(|line| line.starts_with("Stdout")).count() as u64, 5000);
        assert_eq!(std::fs::read_to_string(output.finish().file.unwrap()).unwrap(), flood);
    }

    #[test]
    fn a_full_disk_does_not_stop_the_step() {
        let output = output(std::path::Path::new("/dev/null/run"), 1024, None);
        let mut capture = output.capture();
        capture.stdout(b"hello\n");
        assert_eq!(capture.finish().stdout, "hello");
        let kept = output.finish();
        assert_eq!((kept.file, kept.bytes, kept.left_out), (None, 6, 6));
        assert!(kept.trouble.unwrap().contains("/dev/null/run"));
    }
}
