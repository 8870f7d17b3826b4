//! Reading and judging a file on a thread of its own, while the database takes the rows.

use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use sha2::{Digest as _, Sha256};
use tokio::sync::mpsc::{Receiver, Sender, channel};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::check::{Checker, Problem, RowFormat, Rule};
use super::records::{Layout, ReadError, Record, Records};
use super::rejects::Rejects;
use crate::secret::Redactor;
use crate::target::CopyChunk;

/// What goes to the database at once.
const CHUNK: usize = 256 << 10;
/// How many chunks may wait for it.
const CHUNKS_AHEAD: usize = 2;
/// Where a file must be good all the way through: how many chunks are judged before one is sent.
const CHUNKS_JUDGED: usize = 16;
/// Progress is noted, and a cancellation noticed, once in so many records.
const LOOK: u64 = 1024;

/// What is to be read, and how.
#[derive(Debug, Clone)]
pub(super) struct Job {
    pub(super) file: PathBuf,
    pub(super) layout: Layout,
    pub(super) rules: Vec<Rule>,
    pub(super) null: Option<String>,
    pub(super) rows: RowFormat,
    pub(super) rejects: Option<PathBuf>,
    pub(super) redactor: Redactor,
    /// Whether the file's digest is wanted.
    pub(super) digest: bool,
    /// Whether anybody takes the rows.
    pub(super) sends: bool,
    /// What a row begins with instead of its line.
    pub(super) run: Option<String>,
    /// Ends the reading as soon as the file falls short of it.
    pub(super) demand: Option<Demand>,
}

/// What a file must be, all the way through, for its rows to be sent while it is still read.
#[derive(Debug, Clone)]
pub(super) struct Demand {
    /// The largest share of rejected records.
    pub(super) rejected: f64,
    /// The smallest share of accepted records that have a value, by column.
    pub(super) complete: Vec<f64>,
}

impl Demand {
    fn is_met(&self, accepted: u64, rejected: u64, present: &[u64]) -> bool {
        let mut shares = self.complete.iter().zip(present);
        share(rejected, accepted + rejected) <= self.rejected
            && (accepted == 0 || shares.all(|(wanted, present)| share(*present, accepted) >= *wanted))
    }
}

/// A part as a share; of nothing, none.
pub(super) fn share(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}

/// How far the reading is.
#[derive(Debug, Default)]
pub(super) struct Progress {
    pub(super) size: AtomicU64,
    pub(super) bytes: Arc<AtomicU64>,
    pub(super) accepted: AtomicU64,
    pub(super) rejected: AtomicU64,
}

/// What was read.
#[derive(Debug)]
pub(super) struct Parsed {
    pub(super) accepted: u64,
    /// Rejected records; one that swallowed others counts for each of its lines.
    pub(super) rejected: u64,
    pub(super) rejects: Rejects,
    pub(super) present: Vec<u64>,
    pub(super) formulas: Vec<u64>,
    pub(super) unused: Vec<String>,
    pub(super) size: u64,
    pub(super) digest: Option<String>,
    /// By which the file is known again.
    pub(super) state: State,
}

/// Why a file was not read to its end.
#[derive(Debug, thiserror::Error)]
pub(super) enum ParseError {
    #[error("{0}")]
    Read(#[from] ReadError),
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("cannot write the file of rejected records: {0}")]
    Rejects(io::Error),
    #[error("the file was changed while it was read")]
    Changed,
    /// It falls short of what was demanded; that many bytes were sent before.
    #[error("too much of the file is bad")]
    Unfit { sent: bool },
    /// Nobody takes the rows any more.
    #[error("stopped")]
    Stopped,
}

/// A reading that is under way.
pub(super) struct Parsing {
    pub(super) chunks: Receiver<CopyChunk>,
    pub(super) progress: Arc<Progress>,
    pub(super) handle: JoinHandle<Result<Parsed, ParseError>>,
}

/// Begins to read.
pub(super) fn start(job: Job, cancel: CancellationToken) -> Parsing {
    let (sender, chunks) = channel(CHUNKS_AHEAD);
    let progress = Arc::new(Progress::default());
    let seen = progress.clone();
    let handle = tokio::task::spawn_blocking(move || parse(job, &sender, &seen, &cancel));
    Parsing { chunks, progress, handle }
}

fn parse(job: Job, sender: &Sender<CopyChunk>, progress: &Progress, cancel: &CancellationToken) -> Result<Parsed, ParseError> {
    let (file, before) = open(&job.file)?;
    progress.size.store(before.0, Ordering::Relaxed);
    let mut digest = job.digest.then(Sha256::new);
    let mut records = Records::new(Digesting { file, digest: &mut digest }, job.layout, progress.bytes.clone())?;
    let mut rejects = Rejects::new(job.rejects.as_deref(), job.redactor).map_err(ParseError::Rejects)?;
    let mut checker = Checker::new(job.rules, job.null, job.rows, job.run);
    let mut way =
        Way { sender, format: job.rows, held: Vec::new(), holds: if job.demand.is_some() { CHUNKS_JUDGED } else { 0 }, sent: false };
    let demanded = |accepted, rejected, checker: &Checker, way: &Way<'_>| match &job.demand {
        Some(demand) if !demand.is_met(accepted, rejected, &checker.present) => Err(ParseError::Unfit { sent: way.sent }),
        _ => Ok(()),
    };
    let (mut record, mut rows, mut problems) = (Record::default(), Vec::with_capacity(CHUNK * 2), Vec::new());
    let (mut accepted, mut rejected, mut seen) = (0_u64, 0_u64, 0_u64);
    while records.next(&mut record)? {
        seen += 1;
        checker.check(&record, &mut rows, &mut problems);
        if problems.is_empty() {
            accepted += 1;
        } else {
            rejected += if record.broken.is_some() { record.lines } else { 1 };
            rejects.add(&record, &problems).map_err(ParseError::Rejects)?;
            problems.clear();
        }
        if rows.len() >= CHUNK {
            if job.sends {
                demanded(accepted, rejected, &checker, &way)?;
                way.send(&mut rows)?;
            } else {
                rows.clear();
                rows.shrink_to(CHUNK * 2);
            }
        }
        if seen.is_multiple_of(LOOK) {
            progress.accepted.store(accepted, Ordering::Relaxed);
            progress.rejected.store(rejected, Ordering::Relaxed);
            // A bad beginning ends it, and its transaction, at once.
            demanded(accepted, rejected, &checker, &way)?;
            if cancel.is_cancelled() {
                return Err(ParseError::Stopped);
            }
        }
    }
    if state(&File::open(&job.file)?)? != before {
        return Err(ParseError::Changed);
    }
    if job.sends {
        demanded(accepted, rejected, &checker, &way)?;
        if !rows.is_empty() {
            way.send(&mut rows)?;
        }
        way.end()?;
    }
    let Checker { present, formulas, .. } = checker;
    let unused = records.unused;
    let digest = digest.map(|digest| digest.finalize().iter().map(|byte| format!("{byte:02x}")).collect());
    Ok(Parsed { accepted, rejected, rejects, present, formulas, unused, size: before.0, digest, state: before })
}

/// A file whose digest is taken while it is read.
struct Digesting<'d> {
    file: File,
    digest: &'d mut Option<Sha256>,
}

impl io::Read for Digesting<'_> {
    fn read(&mut self, to: &mut [u8]) -> io::Result<usize> {
        let count = self.file.read(to)?;
        if let Some(digest) = &mut *self.digest {
            digest.update(&to[..count]);
        }
        Ok(count)
    }
}

/// The rows' way to the database.
struct Way<'s> {
    sender: &'s Sender<CopyChunk>,
    format: RowFormat,
    held: Vec<Vec<u8>>,
    /// How many chunks are held back yet.
    holds: usize,
    sent: bool,
}

impl Way<'_> {
    fn send(&mut self, rows: &mut Vec<u8>) -> Result<(), ParseError> {
        if self.format == RowFormat::Json {
            rows.push(b']');
        }
        // A row of a long record makes it larger than usual once; it is not kept that large.
        self.held.push(std::mem::replace(rows, Vec::with_capacity(CHUNK * 2)));
        // Neither are many of these held.
        if self.held.iter().map(Vec::len).sum::<usize>() < self.holds * CHUNK { Ok(()) } else { self.release() }
    }

    fn release(&mut self) -> Result<(), ParseError> {
        self.holds = 0;
        for chunk in self.held.drain(..) {
            self.sent = true;
            self.sender.blocking_send(CopyChunk::Data(chunk)).map_err(|_| ParseError::Stopped)?;
        }
        Ok(())
    }

    fn end(mut self) -> Result<(), ParseError> {
        self.release()?;
        self.sender.blocking_send(CopyChunk::End).map_err(|_| ParseError::Stopped)
    }
}

/// Size and time of a file, by which a change is noticed.
pub(super) type State = (u64, Option<SystemTime>);

fn state(file: &File) -> io::Result<State> {
    let metadata = file.metadata()?;
    Ok((metadata.len(), metadata.modified().ok()))
}

fn open(path: &PathBuf) -> Result<(File, State), ParseError> {
    // Asked of the name: to open a pipe would wait for whoever writes into it.
    if !std::fs::metadata(path)?.is_file() {
        return Err(ParseError::Io(io::Error::other("it is not a regular file")));
    }
    let file = File::open(path)?;
    let state = state(&file)?;
    Ok((file, state))
}

/// A record that the database finds fault with.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) line: u64,
    pub(super) problems: Vec<Problem>,
}

/// Reads the file again for the text of records that the database has found fault with.
pub(super) struct Again {
    records: Records<File>,
    record: Record,
}

impl Again {
    pub(super) fn open(job: &Job) -> Result<Self, ParseError> {
        let records = Records::open(open(&job.file)?.0, job.layout.clone(), Arc::default())?;
        Ok(Self { records, record: Record::default() })
    }

    /// Rejects these, which come in the order of their lines.
    pub(super) fn reject(&mut self, found: &[Found], rejects: &mut Rejects) -> Result<(), ParseError> {
        for one in found {
            while self.record.line < one.line {
                if !self.records.next(&mut self.record)? {
                    return Err(ParseError::Changed);
                }
            }
            rejects.add(&self.record, &one.problems).map_err(ParseError::Rejects)?;
        }
        Ok(())
    }
}
