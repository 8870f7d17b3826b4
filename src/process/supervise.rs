//! One child: its start, and the thread behind it that reads its output and ends its group.

use std::cell::Cell;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitStatus};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open, test_kill_process_group};

use super::{Ended, Exit, table};
use crate::output::Capture;

/// How often a quiet child is looked at: for a stop that was asked for, and for output
/// that waits to be shown.
const TICK: Duration = Duration::from_millis(100);
/// The same once the child has ended, or where the kernel can't tell its end (before 5.3).
const SHORT_TICK: Duration = Duration::from_millis(10);
/// How long what a child leaves in the background may still take; `cmd > >(tee log)` needs
/// a moment.
const DRAIN: Duration = Duration::from_secs(1);
/// How long a killed group may take to disappear before it is no longer waited for.
const KILLED: Duration = Duration::from_secs(1);

/// Why following a child ended early.
#[derive(Debug)]
pub(super) enum Failure {
    Spawn(io::Error),
    Follow(io::Error),
}

/// The way to a running child from other threads. Signals are sent under the lock and
/// never after the group is gone, so that they can't hit a reused process id.
#[derive(Debug)]
pub(super) struct Control {
    grace: Duration,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    group: Option<Pid>,
    /// When SIGTERM was asked for.
    stopping: Option<Instant>,
    killed: Option<Instant>,
    left_behind: bool,
}

impl Control {
    pub(super) fn new(grace: Duration) -> Self {
        Self { grace, state: Mutex::new(State::default()) }
    }

    /// Asks the group to end; the thread that follows it insists.
    pub(super) fn stop(&self) {
        self.lock().stop();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn stop(&mut self) {
        if self.stopping.is_none() {
            self.stopping = Some(Instant::now());
            self.signal(Signal::TERM);
            // A group that was suspended would not hear of it.
            self.signal(Signal::CONT);
        }
    }

    fn signal(&self, signal: Signal) {
        if let Some(group) = self.group {
            // It fails if the group is gone, which is what we want.
            let _ = kill_process_group(group, signal);
        }
    }

    /// Whether anything but zombies is left of the group: the first look is cheap, the
    /// second only needed where nobody collects orphans, as in many containers.
    fn group_lives(&self) -> bool {
        let Some(group) = self.group else { return false };
        test_kill_process_group(group).is_ok()
            && table::running().map_or(true, |mut processes| processes.any(|process| process.group == Some(group)))
    }
}

/// Starts a child; from here on it can be stopped through its control.
pub(super) fn start(mut command: Command, control: &Control) -> Result<Child, Failure> {
    let mut state = control.lock();
    let child = command.spawn().map_err(Failure::Spawn)?;
    state.group = Pid::from_raw(child.id().cast_signed());
    if state.stopping.is_some() {
        state.signal(Signal::TERM);
    }
    Ok(child)
}

/// Follows a child to its end.
pub(super) fn run(mut child: Child, control: &Control, mut capture: Capture) -> Result<Ended, Failure> {
    let followed = follow(&mut child, control, &mut capture);
    if followed.is_err() {
        control.lock().signal(Signal::KILL);
    }
    let status = child.wait();
    let mut state = control.lock();
    state.group = None;
    followed.map_err(Failure::Follow)?;
    let status = status.map_err(Failure::Follow)?;
    let stopped = state.stopping.is_some() && !state.left_behind;
    Ok(Ended { exit: exit(status), captured: capture.finish(), stopped, left_behind: state.left_behind })
}

fn exit(status: ExitStatus) -> Exit {
    match (status.code(), status.signal()) {
        (Some(code), _) => Exit::Code(code),
        (None, signal) => Exit::Signal(signal.unwrap_or_default()),
    }
}

/// Reads until the child has ended, its output is at its end and its group is empty.
fn follow(child: &mut Child, control: &Control, capture: &mut Capture) -> io::Result<()> {
    let mut stdout = child.stdout.take();
    let mut stderr = child.stderr.take();
    let ending = Pid::from_raw(child.id().cast_signed()).and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok());
    let mut buffer = BUFFER.take();
    buffer.resize(64 * 1024, 0);
    let mut ended: Option<Instant> = None;
    loop {
        let ready = wait(
            stdout.as_ref().map(AsFd::as_fd),
            stderr.as_ref().map(AsFd::as_fd),
            ending.as_ref().filter(|_| ended.is_none()),
            ended.is_some(),
        )?;
        if ready.stdout {
            read(&mut stdout, &mut buffer, |bytes| capture.stdout(bytes))?;
        }
        if ready.stderr {
            read(&mut stderr, &mut buffer, |bytes| capture.stderr(bytes))?;
        }
        if ready.nothing() {
            capture.idle();
        }
        if ended.is_none() && (ready.ended || ending.is_none()) && child.try_wait()?.is_some() {
            ended = Some(Instant::now());
        }
        let silent = stdout.is_none() && stderr.is_none();
        if !goes_on(control, ended, silent) {
            BUFFER.set(buffer);
            return Ok(());
        }
    }
}

thread_local! {
    /// The pool's threads serve one child after the other.
    static BUFFER: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// Moves the end of a group forward, and says whether there is more to wait for.
fn goes_on(control: &Control, ended: Option<Instant>, silent: bool) -> bool {
    let mut state = control.lock();
    let alive = ended.is_none() || state.group_lives();
    let now = Instant::now();
    let since = |moment: Option<Instant>| moment.map(|moment| now.duration_since(moment));
    if alive && since(state.stopping).is_some_and(|time| time >= control.grace) && state.killed.is_none() {
        state.signal(Signal::KILL);
        state.killed = Some(now);
    }
    let drained = since(ended).is_some_and(|time| time >= DRAIN);
    if ended.is_some() && alive && drained && state.stopping.is_none() {
        state.left_behind = true;
        state.stop();
    }
    let given_up = since(state.killed).is_some_and(|time| time >= KILLED) && ended.is_some();
    let finished = !alive && (silent || drained || state.killed.is_some());
    !finished && !given_up
}

#[derive(Debug)]
struct Ready {
    stdout: bool,
    stderr: bool,
    ended: bool,
}

impl Ready {
    fn nothing(&self) -> bool {
        !(self.stdout || self.stderr || self.ended)
    }
}

fn wait(stdout: Option<BorrowedFd<'_>>, stderr: Option<BorrowedFd<'_>>, ending: Option<&OwnedFd>, ended: bool) -> io::Result<Ready> {
    let tick = if ended || ending.is_none() { SHORT_TICK } else { TICK };
    let timeout = Timespec { tv_sec: 0, tv_nsec: i64::from(tick.subsec_nanos()) };
    let sources = [stdout, stderr, ending.map(AsFd::as_fd)];
    let mut polled: Vec<PollFd<'_>> = sources.iter().flatten().map(|source| PollFd::from_borrowed_fd(*source, PollFlags::IN)).collect();
    match poll(&mut polled, Some(&timeout)) {
        Ok(_) | Err(rustix::io::Errno::INTR) => {}
        Err(error) => return Err(error.into()),
    }
    let mut ready = polled.iter().map(|source| !source.revents().is_empty());
    let mut next = |source: bool| source && ready.next().unwrap_or(false);
    Ok(Ready { stdout: next(sources[0].is_some()), stderr: next(sources[1].is_some()), ended: next(sources[2].is_some()) })
}

/// Reads what is there; at the end the pipe is closed.
fn read(pipe: &mut Option<impl Read>, buffer: &mut [u8], mut take: impl FnMut(&[u8])) -> io::Result<()> {
    let Some(open) = pipe else { return Ok(()) };
    match open.read(buffer) {
        Ok(0) => *pipe = None,
        Ok(length) => take(&buffer[..length]),
        Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
        Err(error) => return Err(error),
    }
    Ok(())
}
