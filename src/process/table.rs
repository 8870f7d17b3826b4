//! What `/proc` says about the processes of this machine.

use std::fs;
use std::io;

use rustix::process::{Pid, getpid};

/// A process that still runs; a zombie does not.
#[derive(Debug)]
pub(super) struct Running {
    pub(super) process: Pid,
    /// None, as for the session, where its leader lives outside this PID namespace, which
    /// is usual in containers.
    pub(super) group: Option<Pid>,
    pub(super) session: Option<Pid>,
}

impl Running {
    /// The environment it was started with; empty if it is not ours to read.
    pub(super) fn environment(&self) -> Vec<u8> {
        fs::read(format!("/proc/{}/environ", self.process.as_raw_pid())).unwrap_or_default()
    }
}

/// This very process. `getsid` is not asked, whose binding knows no session outside.
pub(super) fn this() -> io::Result<Running> {
    parse(getpid(), &fs::read_to_string("/proc/self/stat")?)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "/proc/self/stat is not as proc(5) has it"))
}

/// All of them.
pub(super) fn running() -> io::Result<impl Iterator<Item = Running>> {
    let entries = fs::read_dir("/proc")?;
    Ok(entries.flatten().filter_map(|entry| {
        let process = Pid::from_raw(entry.file_name().to_str()?.parse().ok()?)?;
        // It may end at any moment.
        parse(process, &fs::read_to_string(entry.path().join("stat")).ok()?)
    }))
}

fn parse(process: Pid, stat: &str) -> Option<Running> {
    // The name stands in parentheses and may hold anything, parentheses too.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    let runs = !matches!(fields.next()?, "Z" | "X");
    let _parent = fields.next()?;
    // A process that is just ending has -1 for both.
    let mut id = || fields.next()?.parse::<u32>().ok().map(|id| Pid::from_raw(id.cast_signed()));
    let (group, session) = (id()?, id()?);
    runs.then_some(Running { process, group, session })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_may_hold_anything_and_zombies_do_not_run() {
        let ids = |stat: &str| parse(Pid::INIT, stat).map(|found| (Pid::as_raw(found.group), Pid::as_raw(found.session)));
        assert_eq!(ids("7 (a) Z (b) S 1 40 30 0 -1"), Some((40, 30)));
        assert_eq!(ids("7 (a) S (b) Z 1 40 30 0 -1"), None);
        assert_eq!(ids("7 (a) R 1 -1 -1 0 -1"), None, "it is just ending");
        assert_eq!(ids("7 (a) S 1 40 0 0 -1"), Some((40, 0)), "a session from outside is no reason to overlook a process");
    }
}
