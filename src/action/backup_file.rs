//! A backup that appears under its name only when it is complete and on disk.
//!
//! It is written under `NAME.partial`, readable by its owner alone and locked, then
//! synced, described in `NAME.manifest.json` and renamed without ever replacing
//! anything. Whatever ends the process in between leaves no file that passes for a
//! backup. What is written, and whether it is good, is the caller's business.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// Why there can be no backup under this name.
#[derive(Debug, thiserror::Error)]
pub(super) enum BackupError {
    #[error("`{0}` exists already; nothing was overwritten")]
    Exists(PathBuf),
    #[error("another run is just writing `{0}`")]
    Busy(PathBuf),
    #[error("cannot write `{path}`: {source}")]
    Io { path: PathBuf, source: io::Error },
}

/// One file, or a directory of files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Shape {
    File,
    Directory,
}

/// What is known of a complete backup; the content of its manifest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Manifest {
    /// Of this format; 1.
    pub(super) version: u32,
    pub(super) file: String,
    /// As `pg_dump` calls it.
    pub(super) format: String,
    pub(super) size: u64,
    /// Of the file; of a directory, of the lines `sha256sum *` gives for its files.
    pub(super) sha256: String,
    pub(super) database: Option<String>,
    pub(super) host: Option<String>,
    pub(super) run: String,
    pub(super) step: String,
    pub(super) created_at: String,
}

/// A backup being written. Dropping it removes what is there.
#[derive(Debug)]
pub(super) struct Partial {
    target: PathBuf,
    path: PathBuf,
    shape: Shape,
    /// Held until the end, so that another run does not take it for a leftover.
    _lock: File,
}

impl Partial {
    /// Claims the name. A leftover of a killed process is removed.
    pub(super) fn create(target: &Path, shape: Shape) -> Result<Self, BackupError> {
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
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// How much is written so far.
    pub(super) fn size(&self) -> u64 {
        files(&self.path, self.shape)
            .map_or(0, |files| files.iter().filter_map(|file| file.metadata().ok()).map(|metadata| metadata.len()).sum())
    }

    /// Makes it durable and gives it its name. `describe` gets size and checksum and
    /// says what goes into the manifest, if there shall be one.
    pub(super) fn publish(self, describe: impl FnOnce(u64, String) -> Option<Manifest>) -> Result<(u64, String), BackupError> {
        let failed = |source| BackupError::Io { path: self.target.clone(), source };
        let (size, sha256) = make_durable(&self.path, self.shape).map_err(failed)?;
        if let Some(manifest) = describe(size, sha256.clone()) {
            write_manifest(&beside(&self.target, MANIFEST), &manifest).map_err(failed)?;
        }
        match rename_without_replacing(&self.path, &self.target) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Err(BackupError::Exists(self.target.clone())),
            other => other.map_err(failed)?,
        }
        sync_parent(&self.target).map_err(failed)?;
        Ok((size, sha256))
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
pub(super) fn completed(target: &Path, shape: Shape, run: &str, step: &str) -> Option<Manifest> {
    let manifest: Manifest = serde_json::from_slice(&fs::read(beside(target, MANIFEST)).ok()?).ok()?;
    let ours = manifest.run == run && manifest.step == step;
    let (size, sha256) = make_durable(target, shape).ok()?;
    (ours && manifest.size == size && manifest.sha256 == sha256).then_some(manifest)
}

const MANIFEST: &str = ".manifest.json";

fn beside(target: &Path, suffix: &str) -> PathBuf {
    let mut name = target.as_os_str().to_owned();
    name.push(suffix);
    name.into()
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

/// All files, by name.
fn files(path: &Path, shape: Shape) -> io::Result<Vec<PathBuf>> {
    if shape == Shape::File {
        return Ok(vec![path.to_owned()]);
    }
    let mut files: Vec<PathBuf> = fs::read_dir(path)?.map(|entry| entry.map(|entry| entry.path())).collect::<Result<_, _>>()?;
    files.sort();
    Ok(files)
}

/// Syncs, protects and measures.
fn make_durable(path: &Path, shape: Shape) -> io::Result<(u64, String)> {
    let mut size = 0;
    let mut lines = String::new();
    for file in files(path, shape)? {
        let (length, sha256) = sync_and_hash(&file)?;
        size += length;
        if shape == Shape::File {
            return Ok((size, sha256));
        }
        let name = file.file_name().unwrap_or_default().to_string_lossy();
        lines.push_str(&format!("{sha256}  {name}\n"));
    }
    File::open(path)?.sync_all()?;
    Ok((size, hexadecimal(&Sha256::digest(lines))))
}

fn sync_and_hash(path: &Path) -> io::Result<(u64, String)> {
    let mut file = File::open(path)?;
    file.set_permissions(fs::Permissions::from_mode(0o600))?;
    file.sync_all()?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 256 * 1024];
    let mut size = 0;
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok((size, hexadecimal(&hash.finalize()))),
            length => {
                hash.update(&buffer[..length]);
                size += length as u64;
            }
        }
    }
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn write_manifest(path: &Path, manifest: &Manifest) -> io::Result<()> {
    let text = serde_json::to_string_pretty(manifest)? + "\n";
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
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

    fn manifest(size: u64, sha256: String) -> Manifest {
        Manifest {
            version: 1,
            file: "a.dump".into(),
            format: "custom".into(),
            size,
            sha256,
            database: None,
            host: None,
            run: "run".into(),
            step: "backup".into(),
            created_at: "2026-02-03T04:05:06Z".into(),
        }
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
        let (size, sha256) = partial.publish(|size, sha256| Some(manifest(size, sha256))).unwrap();
        assert_eq!((size, sha256.as_str()), (3, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"));
        assert_eq!(names(target.parent().unwrap()), ["a.dump", "a.dump.manifest.json"]);
        assert_eq!(fs::metadata(&target).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn nothing_is_ever_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let target = directory.path().join("a.dump");
        let partial = Partial::create(&target, Shape::File).unwrap();
        assert!(matches!(Partial::create(&target, Shape::File), Err(BackupError::Busy(_))));
        fs::write(&target, "somebody else's").unwrap();
        assert!(matches!(partial.publish(|_, _| None), Err(BackupError::Exists(_))));
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
    fn a_directory_is_measured_as_sha256sum_would() {
        let directory = tempfile::tempdir().unwrap();
        let partial = Partial::create(&directory.path().join("d"), Shape::Directory).unwrap();
        fs::write(partial.path().join("toc.dat"), "toc").unwrap();
        fs::write(partial.path().join("1.dat"), "one").unwrap();
        assert_eq!(partial.size(), 6);
        let (size, sha256) = partial.publish(|_, _| None).unwrap();
        let line = |name: &str, text: &str| format!("{}  {name}\n", hexadecimal(&Sha256::digest(text)));
        assert_eq!((size, sha256), (6, hexadecimal(&Sha256::digest(line("1.dat", "one") + &line("toc.dat", "toc")))));
    }

    #[test]
    fn only_the_same_steps_whole_backup_counts_as_completed() {
        let directory = tempfile::tempdir().unwrap();
        let target = directory.path().join("a.dump");
        let partial = Partial::create(&target, Shape::File).unwrap();
        fs::write(partial.path(), "abc").unwrap();
        partial.publish(|size, sha256| Some(manifest(size, sha256))).unwrap();
        assert!(completed(&target, Shape::File, "run", "backup").is_some());
        assert!(completed(&target, Shape::File, "another", "backup").is_none());
        fs::write(&target, "abd").unwrap();
        assert!(completed(&target, Shape::File, "run", "backup").is_none());
    }
}
