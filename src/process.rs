//! Child processes: started without inheriting anything unsaid, captured, stopped.
//!
//! Every child leads its own process group and is followed by one thread that reads
//! its output and ends the whole group with it. Whatever happens to runbook itself,
//! the [`guard`] ends what it leaves behind. What to run and what the outcome means
//! is the actions' business.

pub mod guard;
mod installed;
mod supervise;
mod table;

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::output::{Captured, Output};
use crate::secret::Secret;
use guard::Guard;
pub use installed::{client_directories, major_version};
use supervise::{Control, Failure};

/// How long a process may go on after SIGTERM before it gets SIGKILL.
pub const GRACE: Duration = Duration::from_secs(10);

/// What to run.
#[derive(Debug, Clone)]
pub struct Command {
    /// The program or script.
    pub program: Program,
    /// Variables added to the run's environment; the way for secrets.
    pub environment: Vec<(String, Secret)>,
    /// Variables of the run's environment that it must not see.
    pub without: Vec<String>,
    /// Working directory.
    pub directory: PathBuf,
    /// Time between SIGTERM and SIGKILL, usually [`GRACE`].
    pub grace: Duration,
}

/// A program or a script.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Program {
    /// A program and its arguments, no shell.
    Argv(Vec<String>),
    /// Text for a shell.
    Script(Shell, String),
}

/// The shells that run a script. Both stop at the first command that fails, as CI
/// systems do: a script that goes on after an error reports success over it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Shell {
    /// `sh -e`
    #[default]
    Sh,
    /// `bash -e -o pipefail`, without start-up files.
    Bash,
}

impl Shell {
    fn argv(self) -> &'static [&'static str] {
        match self {
            Self::Sh => &["sh", "-e", "-c"],
            Self::Bash => &["bash", "--noprofile", "--norc", "-e", "-o", "pipefail", "-c"],
        }
    }
}

/// How a process ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ended {
    /// Its exit code or signal.
    pub exit: Exit,
    /// The end of its output.
    pub captured: Captured,
    /// Whether we stopped it.
    pub stopped: bool,
    /// Whether it left processes in the background that had to be stopped.
    pub left_behind: bool,
}

/// An exit status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// It exited.
    Code(i32),
    /// A signal ended it.
    Signal(i32),
}

impl Exit {
    /// The code, if it exited.
    pub fn code(self) -> Option<i32> {
        match self {
            Self::Code(code) => Some(code),
            Self::Signal(_) => None,
        }
    }
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Code(code) => write!(f, "exit code {code}"),
            Self::Signal(number) => match nix::sys::signal::Signal::try_from(*number) {
                Ok(signal) => write!(f, "ended by {signal}"),
                Err(_) => write!(f, "ended by signal {number}"),
            },
        }
    }
}

/// Why a process did not start, or could not be followed.
#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    /// No such program.
    #[error("there is no program `{program}` {place}")]
    NotFound {
        /// As the author wrote it.
        program: String,
        /// Where it was looked for.
        place: String,
    },
    /// No such directory.
    #[error("there is no directory `{0}` to run in")]
    NoDirectory(PathBuf),
    /// The system refused to start it.
    #[error("cannot start `{program}`: {source}")]
    Spawn {
        /// Which one.
        program: String,
        /// The system's reason.
        source: std::io::Error,
    },
    /// Without its guard no child is started.
    #[error("cannot start the process that ends a run's children should runbook be killed: {0}")]
    Guard(std::io::Error),
    /// Reading its output or waiting for it failed.
    #[error("cannot follow `{program}`: {source}")]
    Follow {
        /// Which one.
        program: String,
        /// The system's reason.
        source: std::io::Error,
    },
}

/// Starts the processes of one run. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Processes(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    environment: Vec<(OsString, OsString)>,
    guard: Guard,
    programs: Mutex<HashMap<String, PathBuf>>,
}

impl Processes {
    /// For a run with this id: children see `environment` and nothing else of ours.
    /// The guard is started with the first child.
    pub fn new(run: &str, environment: impl IntoIterator<Item = (OsString, OsString)>, guard: guard::Start) -> Self {
        let guard = Guard::new(run, guard);
        let mut environment: Vec<_> = environment.into_iter().filter(|(name, _)| name != guard::MARKER).collect();
        environment.push((guard::MARKER.into(), guard.marker().into()));
        Self(Arc::new(Inner { environment, guard, programs: Mutex::default() }))
    }

    /// Runs a command to its end. When `stop` is cancelled, or the future dropped, the
    /// group gets SIGTERM, and SIGKILL after the command's grace; a dropped future's
    /// process is still followed to its end in the background.
    pub async fn run(&self, command: Command, output: &Output, stop: &CancellationToken) -> Result<Ended, ProcessError> {
        let program = command.program.argv().0.to_owned();
        let prepared = self.prepare(&command)?;
        let directory = command.directory;
        self.0.guard.start().map_err(ProcessError::Guard)?;
        let control = Arc::new(Control::new(command.grace));
        let stop_when_dropped = StopWhenDropped(control.clone());
        let capture = output.capture();
        // Started here, so that the child begins while its thread wakes up.
        let child = match supervise::start(prepared, &control) {
            Ok(child) => child,
            Err(failure) => return Err(failure.told(program, directory)),
        };
        let mut worker = tokio::task::spawn_blocking(move || supervise::run(child, &control, capture));
        let done = tokio::select! {
            done = &mut worker => done,
            () = stop.cancelled() => {
                stop_when_dropped.0.stop();
                worker.await
            }
        };
        match done {
            Ok(Ok(ended)) => Ok(ended),
            Ok(Err(failure)) => Err(failure.told(program, directory)),
            Err(lost) => Err(ProcessError::Follow { program, source: std::io::Error::other(lost) }),
        }
    }

    /// The directories in which children look for programs.
    pub fn search_path(&self) -> Vec<PathBuf> {
        let path = self.0.environment.iter().find(|(name, _)| name == "PATH");
        path.map(|(_, path)| std::env::split_paths(path).collect()).unwrap_or_default()
    }

    /// Ids of processes that an earlier runbook has started for this run and that still
    /// run: its guard has not ended them yet, or is gone itself.
    pub fn left_by_earlier(&self) -> std::io::Result<Vec<i32>> {
        Ok(self.0.guard.left_by_earlier()?.into_iter().map(|process| process.as_raw_pid()).collect())
    }

    fn prepare(&self, command: &Command) -> Result<std::process::Command, ProcessError> {
        let (program, arguments) = command.program.argv();
        let file = self.find(program, command)?;
        let mut prepared = std::process::Command::new(file);
        prepared.arg0(program).args(arguments).current_dir(&command.directory);
        prepared.env_clear().envs(self.0.environment.iter().map(|(name, value)| (name, value)));
        for name in &command.without {
            prepared.env_remove(name);
        }
        prepared.envs(command.environment.iter().map(|(name, value)| (name, value.expose())));
        prepared.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
        Ok(prepared)
    }

    /// The file of a program; remembered for the run's own PATH, as most steps start the
    /// same shell.
    fn find(&self, program: &str, command: &Command) -> Result<PathBuf, ProcessError> {
        let own_path = command.environment.iter().rev().find(|(name, _)| name == "PATH").map(|(_, value)| OsStr::new(value.expose()));
        if own_path.is_some() || program.contains('/') {
            return find_program(program, &command.directory, own_path);
        }
        let mut found = self.0.programs.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(file) = found.get(program) {
            return Ok(file.clone());
        }
        let path = self.0.environment.iter().find(|(name, _)| name == "PATH").map(|(_, value)| value.as_os_str());
        let file = find_program(program, &command.directory, path)?;
        // What a relative PATH finds depends on the directory.
        if file.is_absolute() && !file.starts_with(&command.directory) {
            found.insert(program.to_owned(), file.clone());
        }
        Ok(file)
    }
}

impl Program {
    fn argv(&self) -> (&str, Vec<&str>) {
        match self {
            Self::Argv(argv) => {
                let mut arguments = argv.iter().map(String::as_str);
                (arguments.next().unwrap_or_default(), arguments.collect())
            }
            Self::Script(shell, text) => {
                let [program, options @ ..] = shell.argv() else { return ("sh", vec![text]) };
                (program, options.iter().copied().chain([text.as_str()]).collect())
            }
        }
    }
}

/// Looks for a program as `execvp` does. Doing it here says what was looked for where,
/// and an absolute name lets the standard library use `posix_spawn`, which is faster
/// than fork and exec.
pub fn find_program(program: &str, directory: &Path, path: Option<&OsStr>) -> Result<PathBuf, ProcessError> {
    let not_found = |place: String| ProcessError::NotFound { program: program.to_owned(), place };
    if program.contains('/') {
        let file = directory.join(program);
        return if file.exists() { Ok(file) } else { Err(not_found(format!("in `{}`", directory.display()))) };
    }
    let path = path.ok_or_else(|| not_found("(PATH is not set)".into()))?;
    std::env::split_paths(path)
        .map(|place| directory.join(place).join(program))
        .find(|file| !program.is_empty() && is_executable(file))
        .ok_or_else(|| not_found(format!("in PATH ({})", path.display())))
}

fn is_executable(file: &Path) -> bool {
    file.metadata().is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
}

impl Failure {
    fn told(self, program: String, directory: PathBuf) -> ProcessError {
        match self {
            Self::Spawn(_) if !directory.is_dir() => ProcessError::NoDirectory(directory),
            Self::Spawn(source) => ProcessError::Spawn { program, source },
            Self::Follow(source) => ProcessError::Follow { program, source },
        }
    }
}

/// A run whose future is dropped must not leave its process behind.
struct StopWhenDropped(Arc<Control>);

impl Drop for StopWhenDropped {
    fn drop(&mut self) {
        self.0.stop();
    }
}

#[cfg(test)]
mod tests;
