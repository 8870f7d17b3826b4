//! One run at a time: the lock in each target database, or a local one where a
//! playbook has none, and one per run so that a run is not resumed twice.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

use super::EngineError;
use crate::journal::Operator;
use crate::target::{HolderDescription, LockHolder, LockOutcome, RunLock, Targets};

/// How long a lock is asked for again: a killed holder's backend is noticed by the
/// server within `client_connection_check_interval`.
const PATIENCE: Duration = Duration::from_secs(3);
/// After a kill the earlier backend may be in the middle of a statement.
const PATIENCE_ON_RESUME: Duration = Duration::from_secs(15);
/// Between getting a file's lock and having one's name in it.
const TIME_TO_WRITE: Duration = Duration::from_millis(250);

/// Locks held for the length of a run. The operating system frees the files', the
/// server the database's, when the process dies.
#[derive(Debug)]
pub(super) struct Locks {
    _files: Vec<File>,
    databases: Vec<RunLock>,
}

impl Locks {
    pub(super) async fn release(self) {
        for lock in self.databases {
            lock.release().await;
        }
    }
}

pub(super) struct Claim<'a> {
    pub run: &'a str,
    pub lock: &'a str,
    pub operator: &'a Operator,
    pub journal_directory: &'a Path,
    pub targets: &'a Targets,
    /// Connections to lock, one per database.
    pub connections: Vec<String>,
    pub resuming: bool,
}

pub(super) async fn claim(claim: &Claim<'_>) -> Result<Locks, EngineError> {
    let directory = claim.journal_directory.join("locks");
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&directory)?;
    let mut files = vec![file_lock(&directory, &format!("run-{}", claim.run), claim)?];
    if claim.connections.is_empty() {
        files.push(file_lock(&directory, &format!("name-{}", claim.lock.replace('/', "_")), claim)?);
    }
    let holder = LockHolder { run: claim.run.to_owned(), host: claim.operator.host.clone(), pid: claim.operator.pid };
    let patience = if claim.resuming { PATIENCE_ON_RESUME } else { PATIENCE };
    let mut databases = Vec::new();
    for connection in &claim.connections {
        match claim.targets.lock(connection, claim.lock, &holder, patience).await? {
            LockOutcome::Held(lock) => databases.push(lock),
            LockOutcome::HeldBy(holder) => return Err(EngineError::Locked { name: claim.lock.to_owned(), holder: Box::new(holder) }),
        }
    }
    Ok(Locks { _files: files, databases })
}

fn file_lock(directory: &Path, name: &str, claim: &Claim<'_>) -> Result<File, EngineError> {
    let path = directory.join(name);
    let mut file = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(&path)?;
    match file.try_lock() {
        Ok(()) => {
            file.set_len(0)?;
            file.write_all(format!("{}\n{}\n{}\n", claim.run, claim.operator.host, claim.operator.pid).as_bytes())?;
            Ok(file)
        }
        Err(TryLockError::WouldBlock) => Err(EngineError::Locked { name: claim.lock.to_owned(), holder: Box::new(described(&mut file)) }),
        Err(TryLockError::Error(error)) => Err(error.into()),
    }
}

/// Who has the file. A holder writes its name right after it got the lock.
fn described(file: &mut File) -> HolderDescription {
    let deadline = Instant::now() + TIME_TO_WRITE;
    loop {
        let description = describe(file);
        if description.holder.is_some() || Instant::now() >= deadline {
            return description;
        }
        std::thread::sleep(TIME_TO_WRITE / 50);
    }
}

fn describe(file: &mut File) -> HolderDescription {
    let age = file.metadata().and_then(|metadata| metadata.modified()).ok().and_then(|modified| modified.elapsed().ok());
    let mut text = String::new();
    let _ = file.rewind().and_then(|()| file.read_to_string(&mut text));
    let mut lines = text.lines();
    let holder = match (lines.next(), lines.next(), lines.next().and_then(|pid| pid.parse().ok())) {
        (Some(run), Some(host), Some(pid)) => Some(LockHolder { run: run.into(), host: host.into(), pid }),
        _ => None,
    };
    let application = holder.as_ref().map_or_else(|| "another runbook".into(), |holder| format!("runbook/{}", holder.run));
    HolderDescription { holder, application, backend: None, age }
}
