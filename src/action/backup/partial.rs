//! A backup that appears under its name only when it is complete and on disk.
//!
//! It is written under `NAME.partial`, readable by its owner alone and locked, then
//! synced, described in files beside it and renamed without ever replacing
//! anything. Whatever ends the process in between leaves no file that passes for a
//! backup. What is written, and whether it is good, is the caller's business.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::checksum::{Checksums, Shape, files};
use super::manifest::{CHECKSUM, GLOBALS, Manifest, beside, write_private};
use crate::outcome::{ErrorKind, StepError};
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};

/// Why there can be no backup under this name.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    #[error("`{0}` exists already; nothing was overwritten")]
    Exists(PathBuf),
    #[error("another run is just writing `{0}`")]
    Busy(PathBuf),
    #[error("cannot write `{path}`: {source}")]
    Io { path: PathBuf, source: io::Error },
}

impl From<BackupError> for StepError {
    fn from(error: BackupError) -> Self {
        let failed = Self::new(ErrorKind::Io, error.to_string());
        match error {
            BackupError::Exists(_) => {
                failed.hint("give each backup a name of its own, e.g. with `{{ run.started_at | date('%Y%m%d_%H%M%S') }}`")
            }
            _ => failed,
        }
    }
}

/// A backup being written. Dropping it removes what is there.
#[derive(Debug)]
pub struct Partial {
    target: PathBuf,
    path: PathBuf,
    shape: Shape,
    /// Held until the end, so that another run does not take it for a leftover.
    _lock: File,
}

impl Partial {
    /// Claims the name. A leftover of a killed process is removed.
    pub fn create(target: &Path, shape: Shape) -> Result<Self, BackupError> {
        let at = |path: &Path| {
            let path = path.to_owned();
            move |source| BackupError::Io { path, source }
        };
        if target.symlink_metadata().is_ok() {
            return Err(BackupError::Exists(target.to_owned()));
        }
        if let Some(parent) = target.parent() {
            DirBuilder::new().recursive(true).mode(0o700).create(parent).map_err(at(parent))?;
        }
        let path = beside(target, ".partial");
        let lock = open_locked(&path, shape).map_err(|error| match error {
            TryLockError::WouldBlock => BackupError::Busy(target.to_owned()),
            TryLockError::Error(source) => at(&path)(source),
        })?;
        let partial = Self { target: target.to_owned(), path, shape, _lock: lock };
        partial.clear().map_err(at(&partial.path))?;
        Ok(partial)
    }

    /// Where to write.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// How much is written so far.
    pub fn size(&self) -> u64 {
        files(&self.path, self.shape)
            .map_or(0, |files| files.iter().filter_map(|file| file.metadata().ok()).map(|metadata| metadata.len()).sum())
    }

    /// Makes it durable and gives it its name, with a manifest and a file for `sha256sum -c`
    /// beside it where one is wanted. The manifest gets size and checksum here.
    pub fn publish(self, manifest: Manifest, describe: bool) -> Result<Manifest, BackupError> {
        let failed = |source| BackupError::Io { path: self.target.clone(), source };
        let taken = make_durable(&self.path, self.shape).map_err(failed)?;
        let manifest = Manifest { size: taken.size, sha256: taken.sha256.clone(), ..manifest };
        if describe {
            let mut lines = taken.lines(&manifest.file);
            if let Some(globals) = &manifest.globals_sha256 {
                lines += &format!("{globals}  {}{GLOBALS}\n", manifest.file);
            }
            write_private(&beside(&self.target, CHECKSUM), &lines).map_err(failed)?;
            manifest.write(&self.target).map_err(failed)?;
        }
        match rename_without_replacing(&self.path, &self.target) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Err(BackupError::Exists(self.target.clone())),
            other => other.map_err(failed)?,
        }
        sync_parent(&self.target).map_err(failed)?;
        Ok(manifest)
    }

    fn clear(&self) -> io::Result<()> {
        match self.shape {
            Shape::File => OpenOptions::new().write(true).truncate(true).open(&self.path).map(drop),
            Shape::Directory => {
                for file in files(&self.path, self.shape)? {
                    fs::remove_file(file)?;
                }
                Ok(())
            }
        }
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        // After publishing there is nothing under this name any more.
        let _ = match self.shape {
            Shape::File => fs::remove_file(&self.path),
            Shape::Directory => fs::remove_dir_all(&self.path),
        };
    }
}

/// The backup an interrupted attempt of this step completed, if it is whole.
pub fn completed(target: &Path, shape: Shape, run: &str, step: &str) -> Option<Manifest> {
    let manifest = Manifest::read(target).ok()??;
    let ours = manifest.run == run && manifest.step == step;
    let taken = make_durable(target, shape).ok()?;
    (ours && manifest.size == taken.size && manifest.sha256 == taken.sha256).then_some(manifest)
}

fn open_locked(path: &Path, shape: Shape) -> Result<File, TryLockError> {
    let file = match shape {
        Shape::File => OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).open(path),
        Shape::Directory => match DirBuilder::new().mode(0o700).create(path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
            _ => File::open(path),
        },
    }
    .map_err(TryLockError::Error)?;
    file.try_lock()?;
    Ok(file)
}

/// Syncs, protects and measures.
fn make_durable(path: &Path, shape: Shape) -> io::Result<Checksums> {
    let taken = Checksums::take(path, shape, |file| {
        file.set_permissions(fs::Permissions::from_mode(0o600))?;
        file.sync_all()
    })?;
    if shape == Shape::Directory {
        File::open(path)?.sync_all()?;
    }
    Ok(taken)
}

fn rename_without_replacing(from: &Path, to: &Path) -> io::Result<()> {
    match renameat2(AT_FDCWD, from, AT_FDCWD, to, RenameFlags::RENAME_NOREPLACE) {
        // Some network file systems can't; the name was free a moment ago.
        Err(Errno::EINVAL | Errno::ENOSYS) if to.symlink_metadata().is_err() => fs::rename(from, to),
        Err(Errno::EINVAL | Errno::ENOSYS) => Err(io::ErrorKind::AlreadyExists.into()),
        other => other.map_err(io::Error::from),
    }
}

fn sync_parent(path: &Path) -> io::Result<()> {
    path.parent().map_or(Ok(()), |parent| File::open(parent)?.sync_all())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest() -> Manifest {
        Manifest { version: 1, file: "a.dump".into(), run: "run".into(), step: "backup".into(), ..Manifest::default() }
    }

    fn names(directory: &Path) -> Vec<String> {
        let mut names: Vec<String> =
            fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_backup_appears_when_it_is_complete() {
        let directory = tempfile::tempdir().unwrap();
        let target = directory.path().join("new/a.dump");
        let partial = Partial::create(&target, Shape::File).unwrap();
        fs::write(partial.path(), "abc").unwrap();
        assert_eq!(names(target.parent().unwrap()), ["a.dump.partial"]);
        let Manifest { size, sha256, .. } = partial.publish(manifest(), true).unwrap();
        assert_eq!((size, sha256.as_str()), (3, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"));
        assert_eq!(names(target.parent().unwrap()), ["a.dump", "a.dump.manifest.json", "a.dump.sha256"]);
        assert_eq!(fs::metadata(&target).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn nothing_is_ever_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let target = directory.path().join("a.dump");
        let partial = Partial::create(&target, Shape::File).unwrap();
        assert!(matches!(Partial::create(&target, Shape::File), Err(BackupError::Busy(_))));
        fs::write(&target, "somebody else's").unwrap();
        assert!(matches!(partial.publish(manifest(), false), Err(BackupError::Exists(_))));
        assert!(matches!(Partial::create(&target, Shape::File), Err(BackupError::Exists(_))));
        assert_eq!(fs::read_to_string(&target).unwrap(), "somebody else's");
        assert_eq!(names(directory.path()), ["a.dump"]);
    }

    #[test]
    fn an_aborted_backup_leaves_nothing_and_a_killed_one_a_leftover_that_goes() {
        let directory = tempfile::tempdir().unwrap();
        for shape in [Shape::File, Shape::Directory] {
            let target = directory.path().join("b");
            drop(Partial::create(&target, shape).unwrap());
            assert_eq!(names(directory.path()), [""; 0]);
        }
        let leftover = directory.path().join("c.dump.partial");
        fs::write(&leftover, "half of it").unwrap();
        let partial = Partial::create(&directory.path().join("c.dump"), Shape::File).unwrap();
        assert_eq!(partial.size(), 0);
    }

    #[test]
    fn only_the_same_steps_whole_backup_counts_as_completed() {
        let directory = tempfile::tempdir().unwrap();
        let target = directory.path().join("a.dump");
        let partial = Partial::create(&target, Shape::File).unwrap();
        fs::write(partial.path(), "abc").unwrap();
        partial.publish(manifest(), true).unwrap();
        assert!(completed(&target, Shape::File, "run", "backup").is_some());
        assert!(completed(&target, Shape::File, "another", "backup").is_none());
        fs::write(&target, "abd").unwrap();
        assert!(completed(&target, Shape::File, "run", "backup").is_none());
    }
}
