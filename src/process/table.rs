//! What `/proc` says about the processes of this machine.

use std::fs;
use std::io;

use rustix::process::Pid;

/// A process that still runs; a zombie does not.
#[derive(Debug)]
pub(super) struct Running {
    pub(super) process: Pid,
    pub(super) group: Pid,
    pub(super) session: Pid,
}

impl Running {
    /// The environment it was started with; empty if it is not ours to read.
    pub(super) fn environment(&self) -> Vec<u8> {
        fs::read(format!("/proc/{}/environ", self.process.as_raw_pid())).unwrap_or_default()
    }
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
    let mut id = || Pid::from_raw(fields.next()?.parse().ok()?);
    let (group, session) = (id()?, id()?);
    runs.then_some(Running { process, group, session })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_may_hold_anything_and_zombies_do_not_run() {
        let ids = |stat: &str| parse(Pid::INIT, stat).map(|found| (found.group.as_raw_pid(), found.session.as_raw_pid()));
        assert_eq!(ids("7 (a) Z (b) S 1 40 30 0 -1"), Some((40, 30)));
        assert_eq!(ids("7 (a) S (b) Z 1 40 30 0 -1"), None);
    }
}
