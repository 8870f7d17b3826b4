//! A file as records: bytes in, one record at a time out, in bounded memory.
//!
//! Whatever the file holds, no more than one record of [`LONGEST_RECORD`] is kept, and of
//! a longer one nothing. Whether its values are good is `check`'s business.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use csv_core::ReadRecordResult;
use encoding_rs::{Decoder, Encoding, UTF_8};

use super::fields::Format;
use super::json;

/// A longer record is rejected: several copies of one are on their way to the database at
/// once, and all of them together must stay small.
pub(super) const LONGEST_RECORD: usize = 4 << 20;
/// PostgreSQL's tables have at most 1600 columns.
const MOST_FIELDS: usize = 4096;
/// How much of a record is kept to be shown.
const RAW: usize = 1000;
const BLOCK: usize = 256 << 10;

/// How a file is written.
#[derive(Debug, Clone)]
pub(super) struct Layout {
    pub(super) format: Format,
    pub(super) delimiter: u8,
    pub(super) quote: Option<u8>,
    pub(super) header: bool,
    pub(super) encoding: &'static Encoding,
    /// The names of the wanted fields, in the order of the columns.
    pub(super) fields: Vec<String>,
}

/// Why a file can't be read at all.
#[derive(Debug, thiserror::Error)]
pub(super) enum ReadError {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("{0}")]
    Header(String),
}

/// What is wrong with a record as a whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Broken {
    TooLong,
    Fields { found: usize, expected: usize },
    Unclosed,
    NotJson(String),
}

impl std::fmt::Display for Broken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::TooLong => write!(f, "longer than {} MiB; is a quote not closed?", LONGEST_RECORD >> 20),
            Self::Fields { found, expected } if *found > MOST_FIELDS => write!(f, "more than {MOST_FIELDS} fields instead of {expected}"),
            Self::Fields { found, expected } => write!(f, "{found} fields instead of {expected}"),
            Self::Unclosed => f.write_str("a quote is opened and never closed"),
            Self::NotJson(problem) => f.write_str(problem),
        }
    }
}

/// One record; its room is used again for the next.
#[derive(Debug, Default)]
pub(super) struct Record {
    /// Where it begins, from 1.
    pub(super) line: u64,
    /// How many lines it takes.
    pub(super) lines: u64,
    pub(super) buffer: Vec<u8>,
    /// The wanted fields in `buffer`; `None`: JSON's null, or no such key.
    pub(super) values: Vec<Option<Range<usize>>>,
    /// Its beginning as it stands in the file.
    pub(super) raw: Vec<u8>,
    pub(super) broken: Option<Broken>,
}

impl Record {
    /// Its beginning, for people.
    pub(super) fn shown(&self) -> String {
        let end = self.raw.iter().rposition(|byte| !matches!(byte, b'\n' | b'\r')).map_or(0, |last| last + 1);
        let text = String::from_utf8_lossy(&self.raw[..end]).replace('\0', "\u{FFFD}");
        if self.raw.len() < RAW { text } else { format!("{text}…") }
    }

    fn keep_raw(&mut self, bytes: &[u8]) {
        self.raw.extend_from_slice(&bytes[..bytes.len().min(RAW.saturating_sub(self.raw.len()))]);
    }
}

/// The records of a file, after its header.
pub(super) struct Records<R> {
    input: BufReader<Decoded<R>>,
    layout: Layout,
    csv: csv_core::Reader,
    ends: Vec<usize>,
    /// The field of each column, and how many fields there are in all.
    places: Vec<usize>,
    fields: usize,
    line: u64,
    /// Names in the file that no column takes.
    pub(super) unused: Vec<String>,
}

impl Records<File> {
    pub(super) fn open(file: File, layout: Layout, read: Arc<AtomicU64>) -> Result<Self, ReadError> {
        Self::new(file, layout, read)
    }
}

impl<R: Read> Records<R> {
    pub(super) fn new(source: R, layout: Layout, read: Arc<AtomicU64>) -> Result<Self, ReadError> {
        let csv = csv_core::ReaderBuilder::new()
            .delimiter(layout.delimiter)
            .quote(layout.quote.unwrap_or(b'"'))
            .quoting(layout.quote.is_some())
            .build();
        let input = BufReader::with_capacity(BLOCK, Decoded::new(source, layout.encoding, read)?);
        let fields = layout.fields.len();
        let mut records =
            Self { input, csv, ends: vec![0; 64], places: (0..fields).collect(), fields, line: 1, unused: Vec::new(), layout };
        if records.layout.format == Format::Csv && records.layout.header {
            records.read_header()?;
        }
        Ok(records)
    }

    /// Reads the next record; `false`: there is none.
    pub(super) fn next(&mut self, record: &mut Record) -> io::Result<bool> {
        match self.layout.format {
            Format::Csv => self.next_csv(record),
            Format::Ndjson => self.next_json(record),
        }
    }

    fn read_header(&mut self) -> Result<(), ReadError> {
        let mut record = Record::default();
        let Some(count) = self.read_csv(&mut record)? else {
            return Err(ReadError::Header("the file is empty: not even a header is there".into()));
        };
        if let Some(broken) = &record.broken {
            return Err(ReadError::Header(format!("the header is {broken}")));
        }
        let ranges = (0..count).map(|index| self.range(index));
        let names: Vec<String> = ranges.map(|range| String::from_utf8_lossy(&record.buffer[range]).trim().to_owned()).collect();
        let place = |wanted: &String| match names.iter().filter(|name| *name == wanted).count() {
            0 => Err(ReadError::Header(format!("the header has no `{wanted}`; it has {}", listed(&names)))),
            1 => Ok(names.iter().position(|name| name == wanted).unwrap_or_default()),
            several => Err(ReadError::Header(format!("the header has `{wanted}` {several} times"))),
        };
        self.places = self.layout.fields.iter().map(place).collect::<Result<_, _>>()?;
        self.fields = count;
        self.unused = names.into_iter().filter(|name| !self.layout.fields.contains(name)).take(json::NAMED).collect();
        Ok(())
    }

    fn range(&self, index: usize) -> Range<usize> {
        let start = index.checked_sub(1).map_or(0, |before| self.ends[before]);
        start..self.ends[index]
    }

    fn next_csv(&mut self, record: &mut Record) -> io::Result<bool> {
        let Some(count) = self.read_csv(record)? else { return Ok(false) };
        if record.broken.is_none() && count != self.fields {
            record.broken = Some(Broken::Fields { found: count, expected: self.fields });
        }
        if record.broken.is_none() {
            let ranges = self.places.iter().map(|place| Some(self.range(*place)));
            record.values.extend(ranges);
        }
        Ok(true)
    }

    /// Reads one record and says how many fields it has.
    fn read_csv(&mut self, record: &mut Record) -> io::Result<Option<usize>> {
        record.raw.clear();
        record.values.clear();
        record.broken = None;
        record.line = self.csv.line();
        if record.buffer.is_empty() {
            record.buffer.resize(BLOCK, 0);
        }
        let (mut written, mut count, mut quotes, mut too_many, mut last) = (0, 0, 0, false, 0);
        loop {
            let input = self.input.fill_buf()?;
            let at_end = input.is_empty();
            let (result, read, wrote, ended) = self.csv.read_record(input, &mut record.buffer[written..], &mut self.ends[count..]);
            let mut taken = &input[..read];
            if let Some(quote) = self.layout.quote {
                quotes += taken.iter().filter(|byte| **byte == quote).count();
            }
            last = taken.last().copied().unwrap_or(last);
            // Empty lines before a record belong to none.
            while record.raw.is_empty()
                && let Some((b'\n' | b'\r', rest)) = taken.split_first()
            {
                record.line += u64::from(taken[0] == b'\n');
                taken = rest;
            }
            record.keep_raw(taken);
            self.input.consume(read);
            written += wrote;
            count += ended;
            match result {
                ReadRecordResult::InputEmpty => {}
                ReadRecordResult::OutputFull if record.buffer.len() < LONGEST_RECORD => {
                    record.buffer.resize((record.buffer.len() * 2).min(LONGEST_RECORD), 0);
                }
                ReadRecordResult::OutputFull => {
                    record.broken = Some(Broken::TooLong);
                    written = 0;
                }
                ReadRecordResult::OutputEndsFull if self.ends.len() < MOST_FIELDS => self.ends.resize(self.ends.len() * 2, 0),
                ReadRecordResult::OutputEndsFull => {
                    too_many = true;
                    count = 0;
                }
                ReadRecordResult::Record => {
                    let ended_lines = u64::from(last == b'\n');
                    record.lines = (self.csv.line() + 1).saturating_sub(record.line + ended_lines).max(1);
                    if record.broken.is_none() && at_end && quotes % 2 == 1 {
                        record.broken = Some(Broken::Unclosed);
                    }
                    return Ok(Some(if too_many { MOST_FIELDS + 1 } else { count }));
                }
                ReadRecordResult::End => return Ok(None),
            }
        }
    }

    fn next_json(&mut self, record: &mut Record) -> io::Result<bool> {
        loop {
            record.raw.clear();
            record.buffer.clear();
            record.values.clear();
            record.broken = None;
            record.line = self.line;
            record.lines = 1;
            if !self.read_line(record)? {
                return Ok(false);
            }
            if record.broken.is_some() || !record.buffer.trim_ascii().is_empty() {
                break;
            }
        }
        if record.broken.is_none()
            && let Err(problem) = json::take_apart(record, &self.layout.fields, &mut self.unused)
        {
            record.broken = Some(Broken::NotJson(problem));
        }
        Ok(true)
    }

    fn read_line(&mut self, record: &mut Record) -> io::Result<bool> {
        let mut any = false;
        loop {
            let input = self.input.fill_buf()?;
            if input.is_empty() {
                return Ok(any);
            }
            any = true;
            let end = input.iter().position(|byte| *byte == b'\n');
            let taken = &input[..end.unwrap_or(input.len())];
            record.keep_raw(taken);
            if record.buffer.len() + taken.len() > LONGEST_RECORD {
                record.broken = Some(Broken::TooLong);
                record.buffer.clear();
            }
            if record.broken.is_none() {
                record.buffer.extend_from_slice(taken);
            }
            let read = taken.len() + usize::from(end.is_some());
            self.input.consume(read);
            if end.is_some() {
                self.line += 1;
                return Ok(true);
            }
        }
    }
}

fn listed(names: &[String]) -> String {
    const SHOWN: usize = 20;
    let mut text = names.iter().take(SHOWN).map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
    if names.len() > SHOWN {
        text.push_str(" …");
    }
    text
}

/// Bytes in any encoding, as UTF-8 and without a byte-order mark. UTF-8 itself passes
/// unchanged: what is wrong in it is found in the values.
struct Decoded<R> {
    source: R,
    decoder: Option<Decoder>,
    /// Bytes that are read and not decoded yet.
    pending: Vec<u8>,
    /// The source has no more.
    ended: bool,
    /// The decoder has been told so, and must not be used again.
    finished: bool,
    read: Arc<AtomicU64>,
}

impl<R: Read> Decoded<R> {
    fn new(mut source: R, encoding: &'static Encoding, read: Arc<AtomicU64>) -> Result<Self, ReadError> {
        let mut start = Vec::new();
        source.by_ref().take(3).read_to_end(&mut start)?;
        read.fetch_add(start.len() as u64, Ordering::Relaxed);
        if encoding == UTF_8 {
            if let [0xFF, 0xFE, ..] | [0xFE, 0xFF, ..] = start.as_slice() {
                let name = if start[0] == 0xFF { "utf-16le" } else { "utf-16be" };
                return Err(ReadError::Header(format!("the file begins like UTF-16; write `encoding: {name}`")));
            }
            if start == [0xEF, 0xBB, 0xBF] {
                start.clear();
            }
        }
        let decoder = (encoding != UTF_8).then(|| encoding.new_decoder_with_bom_removal());
        Ok(Self { source, decoder, pending: start, ended: false, finished: false, read })
    }
}

impl<R: Read> Read for Decoded<R> {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        let Some(decoder) = &mut self.decoder else {
            if !self.pending.is_empty() {
                let count = self.pending.len().min(to.len());
                to[..count].copy_from_slice(&self.pending[..count]);
                self.pending.drain(..count);
                return Ok(count);
            }
            let count = self.source.read(to)?;
            self.read.fetch_add(count as u64, Ordering::Relaxed);
            return Ok(count);
        };
        loop {
            if self.finished {
                return Ok(0);
            }
            let (_, taken, wrote, _) = decoder.decode_to_utf8(&self.pending, to, self.ended);
            self.pending.drain(..taken);
            self.finished = self.ended && self.pending.is_empty();
            if wrote > 0 {
                return Ok(wrote);
            }
            let before = self.pending.len();
            self.pending.resize(before + BLOCK, 0);
            let count = self.source.read(&mut self.pending[before..]);
            self.pending.truncate(before + count.as_ref().copied().unwrap_or(0));
            let count = count?;
            self.read.fetch_add(count as u64, Ordering::Relaxed);
            self.ended = count == 0;
        }
    }
}
