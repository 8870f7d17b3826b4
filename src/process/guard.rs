//! Ends what a killed runbook leaves behind.
//!
//! A runbook that ends in order has ended its children itself. One that is killed
//! can't, so a run has a small companion process that waits for the end of a pipe,
//! which the kernel closes in any case. It then finds the run's children by a marker
//! in their environment, so that starting a child costs nothing. What left the
//! session on purpose (a daemon, `setsid`) is not touched. Linux only, as `/proc` is.

use std::ffi::{OsStr, OsString};
use std::io::{self, Read, Write};
use std::os::unix::process::CommandExt;
use std::process::{ChildStdin, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};

use super::table;

/// The variable that marks a run's children.
pub const MARKER: &str = "RUNBOOK_CHILD_OF";

/// Said by a runbook that ends in order.
const DONE: &[u8] = b"done";

/// How the guard's process is started; the marker is added as last argument.
#[derive(Debug, Clone)]
pub struct Start {
    /// The program that calls [`watch`].
    pub program: OsString,
    /// Arguments before the marker.
    pub arguments: Vec<OsString>,
}

impl Start {
    /// This very program, as `runbook __guard`, also after its file was replaced.
    pub fn this_program() -> Self {
        Self { program: "/proc/self/exe".into(), arguments: vec!["__guard".into()] }
    }
}

/// The near end: started with the first child, dismissed with the run.
#[derive(Debug)]
pub(super) struct Guard {
    marker: String,
    start: Start,
    pipe: Mutex<Option<ChildStdin>>,
}

impl Guard {
    pub(super) fn new(run: &str, start: Start) -> Self {
        Self { marker: format!("{run}.{}", std::process::id()), start, pipe: Mutex::new(None) }
    }

    pub(super) fn marker(&self) -> &str {
        &self.marker
    }

    /// Processes of the same run that another runbook has started and that still run.
    pub(super) fn left_by_earlier(&self) -> io::Result<Vec<Pid>> {
        let own = format!("{MARKER}={}", self.marker);
        let run = own.rsplit_once('.').map_or(own.as_str(), |(run, _)| run);
        let theirs = format!("{run}.");
        let is_theirs = |variable: &[u8]| variable.starts_with(theirs.as_bytes()) && variable != own.as_bytes();
        let left = table::running()?.filter(|found| found.environment().split(|byte| *byte == 0).any(is_theirs));
        Ok(left.map(|found| found.process).collect())
    }

    pub(super) fn start(&self) -> io::Result<()> {
        let mut pipe = self.pipe.lock().unwrap_or_else(PoisonError::into_inner);
        if pipe.is_none() {
            // A group of its own keeps it out of the terminal's Ctrl+C; an empty environment
            // keeps the guard of a runbook inside a runbook from looking like a child.
            let child = Command::new(&self.start.program)
                .arg0("runbook-guard")
                .args(&self.start.arguments)
                .arg(&self.marker)
                .env_clear()
                .current_dir("/")
                .process_group(0)
                .stdin(Stdio::piped())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()?;
            *pipe = child.stdin;
        }
        Ok(())
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        let pipe = self.pipe.get_mut().unwrap_or_else(PoisonError::into_inner);
        if let Some(pipe) = pipe {
            // It fails if the guard is gone, and then there is nobody to dismiss.
            let _ = pipe.write_all(DONE);
        }
    }
}

/// The far end: waits for the end of standard input, then ends what is left, unless
/// the run said it is done. There is nobody to tell an error to.
pub fn watch(marker: &OsStr) {
    let mut said = Vec::new();
    let _ = io::stdin().read_to_end(&mut said);
    if said != DONE {
        let _ = end_children(marker);
    }
}

/// Kills the groups of all marked processes, until two looks in a row find none: a
/// process between fork and exec does not carry the marker yet.
fn end_children(marker: &OsStr) -> io::Result<()> {
    let mut quiet = 0;
    while quiet < 2 {
        let groups = marked_groups(marker)?;
        quiet = if groups.is_empty() { quiet + 1 } else { 0 };
        for group in groups {
            // It may have ended meanwhile, or belong to somebody we may not signal.
            let _ = kill_process_group(group, Signal::KILL);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

fn marked_groups(marker: &OsStr) -> io::Result<Vec<Pid>> {
    let wanted = [MARKER.as_bytes(), b"=", marker.as_encoded_bytes()].concat();
    let own = table::this()?;
    let mut groups: Vec<Pid> = table::running()?
        .filter(|found| found.session == own.session && found.group != own.group)
        .filter(|found| found.environment().split(|byte| *byte == 0).any(|variable| variable == wanted))
        .filter_map(|found| found.group)
        .collect();
    groups.dedup();
    Ok(groups)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_marked_processes_and_nobody_else() {
        let start =
            |marker: &str| Command::new("/bin/sh").args(["-c", "sleep 1000 & wait"]).env(MARKER, marker).process_group(0).spawn().unwrap();
        let name = format!("ends-marked.{}", std::process::id());
        let (mut ours, mut other) = (start(&name), start(&format!("{name}x")));
        end_children(OsStr::new(&name)).unwrap();
        assert!(!ours.wait().unwrap().success());
        assert!(other.try_wait().unwrap().is_none(), "the other run's child goes on");
        kill_process_group(Pid::from_child(&other), Signal::KILL).unwrap();
        other.wait().unwrap();
    }
}
