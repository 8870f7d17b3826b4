//! The file that is restored: what it is, whether it is whole and what is in it, known before
//! the first change.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use tokio_util::sync::CancellationToken;

use super::PgRestore;
use super::script::{Part, Script, ScriptError};
use crate::action::StepContext;
use crate::action::backup::checksum::{Checksums, Shape};
use crate::action::backup::client::{Client, not_passed, succeeded};
use crate::action::backup::manifest::{GLOBALS, Manifest, beside};
use crate::outcome::{ErrorKind, StepError};
use crate::sql::{Copied, Created, created, roles};
use crate::units::ByteSize;

/// A dump to be restored.
#[derive(Debug)]
pub struct BackupFile {
    pub path: PathBuf,
    pub format: Format,
    pub manifest: Option<Manifest>,
}

/// How a dump is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// For `pg_restore`: one file, or a directory of them.
    Archive(Shape),
    /// SQL text.
    Plain,
}

/// What a dump holds, by its text.
#[derive(Debug, Default)]
pub struct Contents {
    pub created: Vec<Created>,
    /// In their order, with the number of rows.
    pub copies: Vec<(Copied, u64)>,
    /// Rows stand in it as INSERT.
    pub inserts: bool,
    pub roles: BTreeSet<String>,
    /// Their numbers.
    pub large_objects: Vec<String>,
    /// Statements and bytes of rows: a measure for progress.
    pub statements: u64,
    pub bytes: u64,
    /// It ends as `pg_dump` ends it.
    complete: bool,
}

impl BackupFile {
    /// Looks at the file, and compares it with its manifest.
    pub async fn open(step: &PgRestore, context: &StepContext) -> Result<Self, StepError> {
        let path = context.directory.join(context.values.text(&step.file)?);
        let unverified = step.unverified;
        context.progress("checking the backup against its manifest", None);
        let opened = tokio::task::spawn_blocking(move || Self::checked(path, unverified)).await;
        opened.map_err(|lost| StepError::new(ErrorKind::Io, lost.to_string()))?
    }

    fn checked(path: PathBuf, unverified: bool) -> Result<Self, StepError> {
        let unreadable = |error: &io::Error| StepError::new(ErrorKind::Io, format!("cannot read `{}`: {error}", path.display()));
        let format = Format::of(&path).map_err(|error| unreadable(&error))?;
        let Some(format) = format else {
            return Err(StepError::new(ErrorKind::Io, format!("`{}` is compressed from outside", path.display()))
                .hint("unpack it first, e.g. with gunzip; `pg_dump` compresses its own formats inside"));
        };
        let manifest = Manifest::read(&path).map_err(|error| unreadable(&error))?;
        match &manifest {
            Some(manifest) => compare(&path, format, manifest)?,
            None if unverified => {}
            None => {
                return Err(StepError::new(
                    ErrorKind::Io,
                    format!("nothing tells whether `{}` is whole: it has no manifest", path.display()),
                )
                .fact("expected", format!("`{}` beside it, as `pg_dump` steps write it", beside(&path, ".manifest.json").display()))
                .hint("`unverified: true` restores it all the same: it is read to its end first, but a changed byte may go unnoticed"));
            }
        }
        Ok(Self { path, format, manifest })
    }

    /// Reads all of it, so that nothing is begun that can't be ended.
    pub async fn contents(&self, context: &StepContext, client: &Client) -> Result<Contents, StepError> {
        context.progress("reading the backup to its end", None);
        let stop = context.cancel.clone();
        let contents = self.read(context, client, move |input| Contents::read(input, &stop)).await?;
        if self.format == Format::Plain && !contents.complete {
            return Err(StepError::new(ErrorKind::Io, format!("`{}` does not end as pg_dump ends a dump", self.path.display()))
                .fact("expected", "the line `-- PostgreSQL database dump complete`")
                .hint("it was cut off, or its dump failed: psql would restore what there is and report success"));
        }
        Ok(contents)
    }

    /// Gives the text of the dump to `work`, on a thread of its own.
    pub async fn read<T: Send + 'static>(
        &self,
        context: &StepContext,
        client: &Client,
        work: impl FnOnce(Box<dyn io::BufRead + Send>) -> Result<T, ScriptError> + Send + 'static,
    ) -> Result<T, StepError> {
        let done = match self.format {
            Format::Plain => {
                let path = self.path.clone();
                tokio::task::spawn_blocking(move || work(Box::new(buffered(File::open(path)?)))).await
            }
            Format::Archive(_) => {
                let (reader, writer) = io::pipe().map_err(|error| not_passed(&error))?;
                // A second door to the pipe, for pg_restore writes to files only; ours stays open until it has ended.
                let door = format!("/proc/{}/fd/{}", std::process::id(), writer.as_raw_fd());
                let argv = ["pg_restore", "--exclude-schema=runbook"].map(str::to_owned);
                let argv = argv.into_iter().chain([format!("--file={door}"), self.path.display().to_string()]).collect();
                let converting = client.run(context, &context.output, argv);
                tokio::pin!(converting);
                let mut worker = tokio::task::spawn_blocking(move || work(Box::new(buffered(reader))));
                tokio::select! {
                    biased;
                    ended = &mut converting => {
                        drop(writer);
                        let done = worker.await;
                        // Whoever refuses to read on makes pg_restore fail to write.
                        if !matches!(done, Ok(Err(ScriptError::Refused { .. } | ScriptError::Stopped))) {
                            succeeded("pg_restore", &ended?).map_err(|error| self.not_converted(error))?;
                        }
                        done
                    }
                    // Only a fault ends it while pg_restore still writes.
                    done = &mut worker => done,
                }
            }
        };
        let done = done.map_err(|lost| StepError::new(ErrorKind::Io, lost.to_string()))?;
        done.map_err(|error| self.not_read(error))
    }

    /// How a place in it is told: archives have no lines.
    pub fn place(&self, line: u64) -> Option<String> {
        (self.format == Format::Plain).then(|| format!("{}:{line}", self.path.display()))
    }

    /// The file with the roles that it needs, if it is there.
    pub fn globals(&self) -> Option<PathBuf> {
        Some(beside(&self.path, GLOBALS)).filter(|path| path.exists())
    }

    fn not_read(&self, error: ScriptError) -> StepError {
        let message = format!("`{}` is not restored: {error}", self.path.display());
        match error {
            ScriptError::Refused { line, help, .. } => self.placed(StepError::new(ErrorKind::Io, message), line).hint(help),
            ScriptError::Cut { line, .. } => self
                .placed(StepError::new(ErrorKind::Io, message), line)
                .hint("it was cut off, or its dump failed; take an older one that verifies"),
            ScriptError::Io(_) => StepError::new(ErrorKind::Io, message),
            ScriptError::Stopped => StepError::new(ErrorKind::Cancelled, "stopped while the backup was read"),
        }
    }

    fn placed(&self, error: StepError, line: u64) -> StepError {
        match self.place(line) {
            Some(place) => error.fact("at", place),
            None => error,
        }
    }

    fn not_converted(&self, error: StepError) -> StepError {
        if error.kind == ErrorKind::Cancelled {
            return error;
        }
        let newer = error.message.contains("unsupported version");
        let error = error.fact("file", self.path.display().to_string());
        if newer {
            error.hint("it was made by a newer pg_dump: install client programs of that version")
        } else {
            error.hint("it is damaged or not whole; nothing was changed. Take an older one that verifies")
        }
    }
}

impl Format {
    /// By its first bytes; `None`: a compressed file.
    fn of(path: &Path) -> io::Result<Option<Self>> {
        if path.is_dir() {
            File::open(path.join("toc.dat"))?;
            return Ok(Some(Self::Archive(Shape::Directory)));
        }
        let mut head = Vec::new();
        File::open(path)?.take(512).read_to_end(&mut head)?;
        let compressed: [&[u8]; 4] = [b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"BZh", b"\xfd7zXZ"];
        Ok(match head.as_slice() {
            head if head.starts_with(b"PGDMP") || head.get(257..262) == Some(b"ustar") => Some(Self::Archive(Shape::File)),
            head if compressed.iter().any(|magic| head.starts_with(magic)) => None,
            _ => Some(Self::Plain),
        })
    }

    fn shape(self) -> Shape {
        match self {
            Self::Archive(shape) => shape,
            Self::Plain => Shape::File,
        }
    }
}

fn compare(path: &Path, format: Format, manifest: &Manifest) -> Result<(), StepError> {
    let found = Checksums::take(path, format.shape(), |_| Ok(()))
        .map_err(|error| StepError::new(ErrorKind::Io, format!("cannot read `{}`: {error}", path.display())))?;
    if (found.size, &found.sha256) == (manifest.size, &manifest.sha256) {
        return Ok(());
    }
    let error = StepError::new(ErrorKind::Io, format!("`{}` is not as it was written", path.display()));
    let error = match found.size == manifest.size {
        false => error.fact("size", format!("{}, and by its manifest {}", ByteSize(found.size), ByteSize(manifest.size))),
        true => error.fact("sha256", found.sha256).fact("by its manifest", manifest.sha256.clone()),
    };
    Err(error.hint("it is damaged or was changed; nothing was restored. Take an older one that verifies"))
}

fn buffered<R: Read>(input: R) -> BufReader<R> {
    BufReader::with_capacity(256 * 1024, input)
}

impl Contents {
    fn read(input: Box<dyn io::BufRead + Send>, stop: &CancellationToken) -> Result<Self, ScriptError> {
        let mut script = Script::new(input);
        let mut contents = Self::default();
        let mut chunk = Vec::new();
        while let Some(part) = script.next()? {
            if stop.is_cancelled() {
                return Err(ScriptError::Stopped);
            }
            contents.statements += 1;
            match part {
                Part::Statement(statement) => contents.note(&statement.text),
                Part::Copy(_, copied) => {
                    let mut rows = 0;
                    let mut more = true;
                    while more {
                        if stop.is_cancelled() {
                            return Err(ScriptError::Stopped);
                        }
                        chunk.clear();
                        more = script.rows(&mut chunk)?;
                        rows += chunk.iter().filter(|byte| **byte == b'\n').count() as u64;
                        contents.bytes += chunk.len() as u64;
                    }
                    contents.copies.push((copied, rows));
                }
            }
        }
        contents.complete = script.complete;
        Ok(contents)
    }

    fn note(&mut self, statement: &str) {
        self.roles.extend(roles(statement));
        self.created.extend(created(statement));
        self.inserts |= statement.starts_with("INSERT ");
        if statement.starts_with("SELECT pg_catalog.lo_create(") {
            self.large_objects.extend(statement.split('\'').skip(1).step_by(2).map(str::to_owned));
        }
    }
}
