//! Files and directories: whether they can be read or written, and how much room there is.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::sys::statvfs::statvfs;
use nix::unistd::{AccessFlags, eaccess};

use super::{Finding, Verdict};
use crate::units::ByteSize;

/// Less than this is as good as nothing.
const FULL: u64 = 1 << 20;
/// Less than this is soon used up.
const TIGHT: u64 = 100 << 20;

/// A file that a step reads.
pub(super) fn readable(subject: &str, path: &Path) -> Finding {
    match path.metadata() {
        Err(error) => Finding::new(Verdict::Problem, subject, format!("{} cannot be read: {}", path.display(), reason(&error))),
        Ok(metadata) if !metadata.is_file() => Finding::new(Verdict::Problem, subject, format!("{} is not a file", path.display())),
        Ok(metadata) => match eaccess(path, AccessFlags::R_OK) {
            Ok(()) => Finding::new(Verdict::Ok, subject, format!("{}, {}", path.display(), ByteSize(metadata.size()))),
            Err(error) => Finding::new(Verdict::Problem, subject, format!("{} cannot be read: {}", path.display(), error.desc())),
        },
    }
}

/// A directory that a step works in.
pub(super) fn directory(path: &Path) -> Finding {
    match path.is_dir() && eaccess(path, AccessFlags::X_OK).is_ok() {
        true => Finding::new(Verdict::Ok, "directory", format!("{} is there", path.display())),
        false => Finding::new(Verdict::Problem, "directory", format!("{} is no directory that can be entered", path.display()))
            .advise("it is named from where runbook is run"),
    }
}

/// A file that a step writes; `size`: what it may need.
pub(super) fn writable(subject: &str, path: &Path, replaces: bool, size: Option<u64>) -> Finding {
    match path.symlink_metadata() {
        Ok(metadata) if metadata.is_dir() && replaces => {
            Finding::new(Verdict::Problem, subject, format!("{} is a directory", path.display()))
        }
        Ok(_) if !replaces => {
            Finding::new(Verdict::Problem, subject, format!("{} exists already and is never overwritten", path.display()))
                .advise("give each run a name of its own, e.g. with `{{ run.id }}`, or move the file away")
        }
        _ => new_file(subject, path, size),
    }
}

/// A file that is not there yet, or is replaced.
pub(super) fn new_file(subject: &str, path: &Path, size: Option<u64>) -> Finding {
    let parent = directory_of(path);
    let Some(existing) = parent.ancestors().map(or_here).find(|place| place.symlink_metadata().is_ok()) else {
        return Finding::new(Verdict::Problem, subject, format!("there is no directory for {}", path.display()));
    };
    if !existing.is_dir() {
        return Finding::new(
            Verdict::Problem,
            subject,
            format!("{} cannot be written: {} is not a directory", path.display(), existing.display()),
        );
    }
    if let Err(error) = eaccess(existing, AccessFlags::W_OK | AccessFlags::X_OK) {
        return Finding::new(
            Verdict::Problem,
            subject,
            format!("{} cannot be written: {} is closed to this user ({})", path.display(), existing.display(), error.desc()),
        )
        .advise("run as another user, or let an administrator give this one the right to write there");
    }
    let made = if existing == or_here(parent) { String::new() } else { format!(" (makes {})", parent.display()) };
    with_space(subject, format!("{} can be written{made}", path.display()), existing, size)
}

/// The journal: the file itself, or the directory in which a run makes it.
pub(super) fn journal(path: &Path) -> Finding {
    if !path.exists() {
        return new_file("file", path, None);
    }
    // SQLite makes its log beside the file.
    for (place, rights) in
        [(path, AccessFlags::R_OK | AccessFlags::W_OK), (or_here(directory_of(path)), AccessFlags::W_OK | AccessFlags::X_OK)]
    {
        if let Err(error) = eaccess(place, rights) {
            return Finding::new(Verdict::Problem, "file", format!("{} cannot be written: {}", place.display(), error.desc()))
                .advise("nothing runs without its journal: run as the user who owns it, or name another with --journal FILE");
        }
    }
    with_space("file", format!("{} can be written", path.display()), path, None)
}

fn with_space(subject: &str, text: String, place: &Path, size: Option<u64>) -> Finding {
    judge_space(subject, text, place, free_space(place), size)
}

fn judge_space(subject: &str, text: String, place: &Path, free: Option<u64>, size: Option<u64>) -> Finding {
    let Some(free) = free else {
        return Finding::new(Verdict::Warning, subject, format!("{text}; how much room is there cannot be told"));
    };
    let free_text = ByteSize(free);
    match size {
        _ if free < FULL => {
            Finding::new(Verdict::Problem, subject, format!("only {free_text} free at {}", place.display())).advise("make room")
        }
        Some(size) if free < size => Finding::new(
            Verdict::Warning,
            subject,
            format!("{text}, but {free_text} free may be too little: the database has {}", ByteSize(size)),
        )
        .advise("a compressed dump is mostly much smaller than its database, but not always; make room"),
        _ if free < TIGHT => Finding::new(Verdict::Warning, subject, format!("{text}, but only {free_text} are free")).advise("make room"),
        _ => Finding::new(Verdict::Ok, subject, format!("{text}, {free_text} free")),
    }
}

/// What an ordinary user may still write there.
fn free_space(place: &Path) -> Option<u64> {
    let space = statvfs(place).ok()?;
    Some(space.blocks_available().saturating_mul(space.fragment_size()))
}

fn directory_of(path: &Path) -> &Path {
    path.parent().unwrap_or(path)
}

fn or_here(path: &Path) -> &Path {
    if path.as_os_str().is_empty() { Path::new(".") } else { path }
}

fn reason(error: &std::io::Error) -> String {
    error.to_string().split(" (os error").next().unwrap_or_default().to_owned()
}

/// The same place written in one way.
pub(super) fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn little_room_is_a_warning_and_none_a_problem() {
        let judged = |free: Option<u64>, size: Option<u64>| {
            let finding = judge_space("dump", "a.dump can be written".into(), Path::new("/srv"), free, size);
            (finding.verdict, finding.text)
        };
        let (verdict, text) = judged(Some(1000), None);
        assert_eq!((verdict, text.as_str()), (Verdict::Problem, "only 1000 B free at /srv"));
        assert_eq!(judged(Some(50 << 20), None).0, Verdict::Warning);
        let (verdict, text) = judged(Some(2 << 30), Some(3 << 30));
        assert_eq!(verdict, Verdict::Warning);
        assert_eq!(text, "a.dump can be written, but 2 GiB free may be too little: the database has 3 GiB");
        assert_eq!(judged(Some(4 << 30), Some(3 << 30)).0, Verdict::Ok);
        assert_eq!(judged(None, None).0, Verdict::Warning);
    }
}
