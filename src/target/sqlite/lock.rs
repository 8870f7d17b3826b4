//! One run at a time: a locked file beside the database.
//!
//! The operating system frees the lock when its process dies. The file stays: removing
//! it would let two processes lock two files of the same name.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{MutexGuard, PoisonError};
use std::time::Duration;

use sha2::{Digest, Sha256};
use tokio::time::{Instant, sleep};

use super::Database;
use crate::target::error::TargetError;
use crate::target::{HolderDescription, LockHolder};

/// How often a lock that is not free is tried again.
const POLL: Duration = Duration::from_millis(100);

/// The run lock, as it was taken.
#[derive(Debug)]
pub struct HeldLock {
    file: File,
    path: PathBuf,
}

impl Database {
    /// `None`: the lock is ours.
    pub async fn lock(&self, name: &str, holder: &LockHolder, patience: Duration) -> Result<Option<HolderDescription>, TargetError> {
        let path = lock_path(&self.file()?.path, name);
        let deadline = Instant::now() + patience;
        loop {
            let other = self.try_lock(&path, holder).map_err(|error| TargetError::Connect {
                connection: self.spec.name.clone(),
                message: format!("cannot lock {}: {error}", path.display()),
                sqlstate: Some("SQLITE_CANTOPEN".into()),
                hint: None,
            })?;
            if other.is_none() || Instant::now() >= deadline {
                return Ok(other);
            }
            sleep(POLL.min(deadline.saturating_duration_since(Instant::now()))).await;
        }
    }

    fn try_lock(&self, path: &Path, holder: &LockHolder) -> std::io::Result<Option<HolderDescription>> {
        let mut held = self.held();
        if held.as_ref().is_some_and(|held| held.path == path && held.is_in_place()) {
            return Ok(None);
        }
        let mut file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Ok(Some(describe(&mut file))),
            Err(TryLockError::Error(error)) => return Err(error),
        }
        file.set_len(0)?;
        writeln!(file, "{}\n{}\n{}", holder.run, holder.host, holder.pid)?;
        *held = Some(HeldLock { file, path: path.to_owned() });
        Ok(None)
    }

    /// Makes sure that the lock is still held.
    pub fn check_lock(&self) -> Result<(), TargetError> {
        match &*self.held() {
            Some(held) if held.is_in_place() => Ok(()),
            Some(held) => Err(self.lock_lost(format!("{} was removed or replaced", held.path.display()))),
            None => Err(self.lock_lost("it was given back".to_owned())),
        }
    }

    /// The same, for a run that may not have asked for one.
    pub(super) fn check_lock_if_taken(&self) -> Result<(), TargetError> {
        let taken = self.held().is_some();
        if taken { self.check_lock() } else { Ok(()) }
    }

    /// Gives the lock back.
    pub fn release_lock(&self) {
        self.held().take();
    }

    fn held(&self) -> MutexGuard<'_, Option<HeldLock>> {
        self.lock.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock_lost(&self, message: String) -> TargetError {
        TargetError::LockLost { connection: self.spec.name.clone(), message }
    }
}

impl HeldLock {
    /// Whether the locked file is still the one others would lock.
    fn is_in_place(&self) -> bool {
        let identity = |metadata: std::fs::Metadata| (metadata.dev(), metadata.ino());
        match (self.file.metadata(), std::fs::metadata(&self.path)) {
            (Ok(ours), Ok(there)) => identity(ours) == identity(there),
            _ => false,
        }
    }
}

/// `<database>.<name>.runbook-lock`; a name that is no file name is told apart by its hash.
fn lock_path(database: &Path, name: &str) -> PathBuf {
    let plain = |letter: char| letter.is_ascii_alphanumeric() || matches!(letter, '-' | '_');
    let mut suffix: String = name.chars().map(|letter| if plain(letter) { letter } else { '_' }).take(80).collect();
    if suffix != name {
        suffix.extend(Sha256::digest(name).iter().take(4).map(|byte| format!("{byte:02x}")));
    }
    // The same file under another name must not have another lock.
    let mut path = resolved(database).into_os_string();
    path.push(format!(".{suffix}.runbook-lock"));
    PathBuf::from(path)
}

fn resolved(database: &Path) -> PathBuf {
    let in_directory = || {
        let directory = database.parent().filter(|directory| !directory.as_os_str().is_empty()).unwrap_or(Path::new("."));
        Some(std::fs::canonicalize(directory).ok()?.join(database.file_name()?))
    };
    // The file itself may not exist yet.
    std::fs::canonicalize(database).ok().or_else(in_directory).unwrap_or_else(|| database.to_owned())
}

fn describe(file: &mut File) -> HolderDescription {
    let age = file.metadata().and_then(|metadata| metadata.modified()).ok().and_then(|modified| modified.elapsed().ok());
    let mut text = String::new();
    // A holder that is just writing its name is described at the next look.
    let _ = file.rewind().and_then(|()| file.read_to_string(&mut text));
    let mut lines = text.lines();
    let holder = match (lines.next(), lines.next(), lines.next().and_then(|pid| pid.parse().ok())) {
        (Some(run), Some(host), Some(pid)) => Some(LockHolder { run: run.to_owned(), host: host.to_owned(), pid }),
        _ => None,
    };
    let application = holder.as_ref().map_or_else(|| "another runbook".to_owned(), |holder| format!("runbook/{}", holder.run));
    HolderDescription { holder, application, backend: None, age }
}
