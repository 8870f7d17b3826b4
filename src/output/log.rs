//! The file that keeps a step's output: the first half of what it may hold as it
//! comes, then the last half in a ring beside it, joined at the end.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Seek, SeekFrom, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::Kept;

#[derive(Debug)]
pub(super) struct Log {
    path: PathBuf,
    max_bytes: u64,
    state: State,
    bytes: u64,
    lost: u64,
    at_line_start: bool,
}

#[derive(Debug)]
enum State {
    Unopened,
    Head { file: File, length: u64 },
    Ring { ring: Ring },
    Failed { trouble: String },
    Finished(Kept),
}

impl Log {
    pub(super) fn new(path: PathBuf, max_bytes: u64) -> Self {
        Self { path, max_bytes, state: State::Unopened, bytes: 0, lost: 0, at_line_start: true }
    }

    /// Text in lines of its own.
    pub(super) fn line(&mut self, text: &[u8]) {
        if !self.at_line_start {
            self.write(b"\n");
        }
        self.write(text);
        if !self.at_line_start {
            self.write(b"\n");
        }
    }

    pub(super) fn write(&mut self, bytes: &[u8]) {
        let Some(last) = bytes.last() else { return };
        self.at_line_start = *last == b'\n';
        self.bytes += bytes.len() as u64;
        if matches!(self.state, State::Failed { .. } | State::Finished(_)) {
            self.lost += bytes.len() as u64;
        } else if let Err(error) = self.store(bytes) {
            self.lost += bytes.len() as u64;
            self.state = State::Failed { trouble: format!("cannot write {}: {error}", self.path.display()) };
        }
    }

    fn store(&mut self, bytes: &[u8]) -> io::Result<()> {
        if matches!(self.state, State::Unopened) {
            self.state = State::Head { file: open_log(&self.path)?, length: 0 };
        }
        let mut rest = bytes;
        if let State::Head { file, length } = &mut self.state {
            let room = usize::try_from(self.max_bytes / 2 - *length).unwrap_or(usize::MAX);
            let (head, over) = bytes.split_at(bytes.len().min(room));
            file.write_all(head)?;
            *length += head.len() as u64;
            rest = over;
            if !over.is_empty() {
                let head_end = file.stream_position()?;
                self.state =
                    State::Ring { ring: Ring::create(&tail_path(&self.path), head_end, (self.max_bytes - self.max_bytes / 2).max(1))? };
            }
        }
        match &mut self.state {
            State::Ring { ring } => ring.write(rest),
            _ => Ok(()),
        }
    }

    pub(super) fn finish(&mut self) -> Kept {
        if let State::Finished(kept) = &self.state {
            return kept.clone();
        }
        let left_out = match &self.state {
            State::Ring { ring } => ring.left_out(),
            _ => 0,
        };
        let mut trouble = match &self.state {
            State::Failed { trouble } => Some(trouble.clone()),
            _ => None,
        };
        self.state = State::Unopened;
        if let Err(error) = settle_log(&self.path) {
            trouble.get_or_insert_with(|| format!("cannot complete {}: {error}", self.path.display()));
        }
        let file = (self.bytes > 0 && self.path.is_file()).then(|| self.path.clone());
        let kept = Kept { file, bytes: self.bytes, left_out: left_out + self.lost, trouble };
        self.state = State::Finished(kept.clone());
        kept
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        self.finish();
    }
}

/// Appends to what an earlier attempt of the same number left, which happens after a
/// crash.
fn open_log(path: &Path) -> io::Result<File> {
    if let Some(directory) = path.parent() {
        DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    }
    settle_log(path)?;
    let mut file = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path)?;
    file.seek(SeekFrom::End(0))?;
    Ok(file)
}

fn tail_path(log: &Path) -> PathBuf {
    let mut name = log.as_os_str().to_owned();
    name.push(".tail");
    name.into()
}

/// The newest bytes, written round and round. A header says how to read it, so that
/// it can be joined also after a crash: where the head ends, and how much came.
#[derive(Debug)]
struct Ring {
    file: File,
    head_end: u64,
    capacity: u64,
    total: u64,
}

const HEADER: u64 = 24;

impl Ring {
    fn create(path: &Path, head_end: u64, capacity: u64) -> io::Result<Self> {
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).mode(0o600).open(path)?;
        Ok(Self { file, head_end, capacity, total: 0 })
    }

    fn open(path: &Path) -> io::Result<Option<Self>> {
        let file = match File::open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other?,
        };
        let mut header = [[0; 8]; 3];
        for (index, field) in header.iter_mut().enumerate() {
            file.read_exact_at(field, index as u64 * 8)?;
        }
        let [head_end, capacity, total] = header.map(u64::from_le_bytes);
        Ok(Some(Self { file, head_end, capacity, total }))
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        let skipped = (bytes.len() as u64).saturating_sub(self.capacity);
        let mut rest = &bytes[usize::try_from(skipped).unwrap_or(0)..];
        self.total += skipped;
        while !rest.is_empty() {
            let at = self.total % self.capacity;
            let room = usize::try_from(self.capacity - at).unwrap_or(usize::MAX);
            let (now, later) = rest.split_at(rest.len().min(room));
            self.file.write_all_at(now, HEADER + at)?;
            self.total += now.len() as u64;
            rest = later;
        }
        let header = [self.head_end, self.capacity, self.total].map(u64::to_le_bytes).concat();
        self.file.write_all_at(&header, 0)
    }

    fn left_out(&self) -> u64 {
        self.total.saturating_sub(self.capacity)
    }

    /// Appends the bytes in their order to the head, with a line about what is missing.
    fn append_to(mut self, log: &Path) -> io::Result<()> {
        let mut target = OpenOptions::new().write(true).open(log)?;
        target.set_len(self.head_end)?;
        target.seek(SeekFrom::End(0))?;
        let left_out = self.left_out();
        let oldest = if left_out > 0 { self.total % self.capacity } else { 0 };
        if left_out > 0 {
            write!(target, "\n--- {left_out} bytes left out here: more output than max_output ---\n")?;
        }
        self.copy(oldest..self.capacity.min(self.total), &mut target)?;
        self.copy(0..oldest, &mut target)
    }

    fn copy(&mut self, range: std::ops::Range<u64>, target: &mut File) -> io::Result<()> {
        self.file.seek(SeekFrom::Start(HEADER + range.start))?;
        io::copy(&mut io::Read::take(&mut self.file, range.end - range.start), target)?;
        Ok(())
    }
}

/// Joins the tail to a log whose writer is gone; a complete log stays as it is.
pub fn settle_log(log: &Path) -> io::Result<()> {
    let tail = tail_path(log);
    match Ring::open(&tail) {
        Ok(None) => Ok(()),
        Ok(Some(ring)) => {
            ring.append_to(log)?;
            fs::remove_file(tail)
        }
        // Killed before the header was there: nothing of the tail was kept.
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => fs::remove_file(tail),
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => Ok(()),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn head_and_tail_are_kept_and_the_gap_is_counted(max in 0u64..60, sizes in prop::collection::vec(0usize..40, 0..12)) {
            let directory = tempfile::tempdir().unwrap();
            let mut log = Log::new(directory.path().join("a.log"), max);
            let mut all = Vec::new();
            for (index, size) in sizes.iter().enumerate() {
                let chunk: Vec<u8> = (0..*size).map(|at| b'a' + ((at + index * 7) % 26) as u8).collect();
                log.write(&chunk);
                all.extend(chunk);
            }
            let kept = log.finish();
            let (head, tail) = ((max / 2) as usize, ((max - max / 2).max(1)) as usize);
            let expected = if all.len() <= head + tail {
                all.clone()
            } else {
                let gap = all.len() - head - tail;
                prop_assert_eq!(kept.left_out, gap as u64);
                let line = format!("\n--- {gap} bytes left out here: more output than max_output ---\n");
                [&all[..head], line.as_bytes(), &all[all.len() - tail..]].concat()
            };
            let found = kept.file.map(|file| std::fs::read(file).unwrap()).unwrap_or_default();
            prop_assert_eq!(String::from_utf8(found).unwrap(), String::from_utf8(expected).unwrap());
            prop_assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), usize::from(!all.is_empty()), "no tail is left");
        }
    }

    #[test]
    fn a_log_whose_writer_was_killed_is_joined_later() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a.log");
        let mut log = Log::new(path.clone(), 10);
        log.write(b"0123456789abcdefghij");
        std::mem::forget(log);
        settle_log(&path).unwrap();
        settle_log(&path).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(text, "01234\n--- 10 bytes left out here: more output than max_output ---\nfghij");

        let mut again = Log::new(path.clone(), 10);
        again.write(b"xyz");
        drop(again);
        assert!(std::fs::read_to_string(&path).unwrap().ends_with("fghijxyz"), "the same attempt is continued");
    }
}
