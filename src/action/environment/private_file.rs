//! A small file that only its owner can read and that is under its name either whole or
//! not at all.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};

/// What happens to a file of that name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::action) enum Existing {
    /// Nothing: writing fails.
    Keep,
    /// It is replaced in one step.
    Replace,
}

/// Writes the file durably. A leftover of a killed process, `NAME.partial`, is removed.
pub(in crate::action) fn write(path: &Path, text: &str, existing: Existing) -> io::Result<()> {
    if existing == Existing::Keep && path.symlink_metadata().is_ok() {
        return Err(io::ErrorKind::AlreadyExists.into());
    }
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or_else(|| Path::new("."));
    DirBuilder::new().recursive(true).mode(0o700).create(parent)?;
    let partial = Partial(with_suffix(path));
    let _ = fs::remove_file(&partial.0);
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&partial.0);
    let mut file = file.map_err(|error| match error.kind() {
        // Not to be taken for the file itself.
        io::ErrorKind::AlreadyExists => io::Error::other(format!("`{}` is in the way", partial.0.display())),
        _ => error,
    })?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    match existing {
        Existing::Keep => rename_without_replacing(&partial.0, path)?,
        Existing::Replace => fs::rename(&partial.0, path)?,
    }
    File::open(parent)?.sync_all()
}

/// Removed when something goes wrong; after the renaming there is nothing under this name.
struct Partial(PathBuf);

impl Drop for Partial {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

fn with_suffix(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".partial");
    name.into()
}

fn rename_without_replacing(from: &Path, to: &Path) -> io::Result<()> {
    match renameat2(AT_FDCWD, from, AT_FDCWD, to, RenameFlags::RENAME_NOREPLACE) {
        // Some network file systems can't. A second name is refused where there is one already.
        Err(Errno::EINVAL | Errno::ENOSYS) => fs::hard_link(from, to),
        other => other.map_err(io::Error::from),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_file_is_whole_private_and_never_replaced_unasked() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("new/a.env");
        write(&path, "A='1'\n", Existing::Keep).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(write(&path, "B", Existing::Keep).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(fs::read_to_string(&path).unwrap(), "A='1'\n");
        fs::write(with_suffix(&path), "a leftover").unwrap();
        write(&path, "B", Existing::Replace).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "B");
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
    }
}
