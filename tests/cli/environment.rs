//! A hermetic place to run `runbook` in, as its user would.
//!
//! Responsible for the directory, the cleared environment, running and killing the
//! program, and for making its output the same on every machine, so that whole
//! outputs can stand in inline snapshots. What the output must say is the tests'.

use std::ffi::OsString;
use std::fs;
use std::io::{Read, Write as _};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, LazyLock, Mutex};
use std::time::{Duration, Instant};

use nix::sys::signal::{self, Signal};
use nix::unistd::Pid;
use regex::Regex;
use tempfile::TempDir;

use crate::postgres;
use crate::terminal::Terminal;

/// How long anything may take before the test fails, loudly.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A directory of its own with nothing of the developer's machine in the environment.
pub struct TestEnv {
    directory: TempDir,
    variables: Vec<(OsString, OsString)>,
    replacements: Vec<(String, String)>,
}

impl TestEnv {
    /// An empty working directory, HOME and state directory.
    pub fn new() -> Self {
        // A path of the same length on every machine: lines that hold it wrap alike.
        let directory = TempDir::with_prefix_in("rb", "/tmp").expect("a directory under /tmp");
        let root = directory.path();
        for name in ["work", "home", "state", "temporary"] {
            fs::create_dir(root.join(name)).expect("an empty directory");
        }
        let path = format!("{}:/usr/bin:/bin", postgres::bin_dir().display());
        let variables = [
            ("PATH", OsString::from(path)),
            ("HOME", root.join("home").into()),
            ("XDG_STATE_HOME", root.join("state").into()),
            ("TMPDIR", root.join("temporary").into()),
            ("LANG", "C.UTF-8".into()),
            ("TZ", "UTC".into()),
        ];
        let variables = variables.map(|(name, value)| (name.into(), value)).to_vec();
        Self { variables, replacements: Vec::new(), directory }
    }

    /// A variable for every run.
    pub fn set(&mut self, name: &str, value: &str) -> &mut Self {
        self.variables.push((name.into(), value.into()));
        self
    }

    /// A new database, its address in `DATABASE_URL`.
    pub fn database(&mut self) -> postgres::Database {
        let database = postgres::database();
        self.use_database(&database);
        database
    }

    /// Puts the address of a database into `DATABASE_URL` and its name out of snapshots.
    pub fn use_database(&mut self, database: &postgres::Database) {
        self.set("DATABASE_URL", database.url());
        self.replace(database.url(), "[DATABASE_URL]");
        self.replace(database.name(), "[DATABASE]");
    }

    /// Shows `text` as `placeholder` in normalised output.
    pub fn replace(&mut self, text: &str, placeholder: &str) -> &mut Self {
        self.replacements.push((text.into(), placeholder.into()));
        self
    }

    /// A path in the working directory.
    pub fn path(&self, relative: impl AsRef<Path>) -> PathBuf {
        self.directory.path().join("work").join(relative)
    }

    /// A path in the state directory, where the journal is by default.
    pub fn state(&self, relative: impl AsRef<Path>) -> PathBuf {
        self.directory.path().join("state").join(relative)
    }

    /// A path in the home directory, e.g. `.pgpass`.
    pub fn home(&self, relative: impl AsRef<Path>) -> PathBuf {
        self.directory.path().join("home").join(relative)
    }

    /// Writes a file into the working directory, making its directories.
    pub fn write(&self, relative: &str, text: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(relative);
        fs::create_dir_all(path.parent().expect("a file has a directory")).expect("own directory");
        fs::write(&path, text).expect("own directory");
        path
    }

    /// Writes a program that is found before those of the machine.
    pub fn program(&self, name: &str, script: &str) -> PathBuf {
        let path = self.write(&format!("bin/{name}"), script);
        let executable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        fs::set_permissions(&path, executable).expect("own file");
        path
    }

    /// Reads a file of the working directory.
    pub fn read(&self, relative: &str) -> String {
        fs::read_to_string(self.path(relative)).unwrap_or_else(|error| panic!("{relative}: {error}"))
    }

    /// Copies a file or directory of the project into the working directory.
    pub fn copy_from_project(&self, relative: &str) {
        let to = self.path(relative);
        fs::create_dir_all(to.parent().expect("below the working directory")).expect("own directory");
        let from = Path::new(env!("CARGO_MANIFEST_DIR")).join(relative);
        let status = Command::new("cp").arg("-r").arg(from).arg(to).status().expect("cp starts");
        assert!(status.success(), "cannot copy {relative}");
    }

    /// `runbook` with these arguments, not yet started.
    pub fn runbook<I: IntoIterator<Item: Into<OsString>>>(&self, arguments: I) -> Invocation<'_> {
        self.command(env!("CARGO_BIN_EXE_runbook"), arguments)
    }

    /// Another program in the same environment, not yet started.
    pub fn command<I: IntoIterator<Item: Into<OsString>>>(&self, program: impl Into<OsString>, arguments: I) -> Invocation<'_> {
        Invocation {
            environment: self,
            program: program.into(),
            arguments: arguments.into_iter().map(Into::into).collect(),
            variables: self.variables_with_own_programs(),
            input: None,
        }
    }

    /// Replaces all that differs from run to run and from machine to machine.
    pub fn normalise(&self, text: &str) -> String {
        let mut text = text.to_owned();
        for (from, to) in &self.replacements {
            text = text.replace(from, to);
        }
        text = text.replace(&self.path("").display().to_string(), "[DIR]/");
        text = text.replace(&self.path("").display().to_string().trim_end_matches('/').to_owned(), "[DIR]");
        text = text.replace(&self.directory.path().display().to_string(), "[ROOT]");
        text = text.replace(&format!(" by {}", login_name()), " by [USER]");
        for (pattern, to) in VOLATILE.iter() {
            text = pattern.replace_all(&text, *to).into_owned();
        }
        text
    }

    fn variables_with_own_programs(&self) -> Vec<(OsString, OsString)> {
        let mut variables = self.variables.clone();
        if self.path("bin").exists() {
            let (_, path) = &mut variables[0];
            *path = format!("{}:{}", self.path("bin").display(), path.to_string_lossy()).into();
        }
        variables
    }
}

fn login_name() -> String {
    let user = nix::unistd::User::from_uid(nix::unistd::geteuid()).expect("accounts can be read");
    user.expect("tests run as somebody").name
}

/// What is volatile wherever it stands. Durations are those with a fraction or in
/// milliseconds: `5m` and `30s` are the author's own and stay.
static VOLATILE: LazyLock<Vec<(Regex, &str)>> = LazyLock::new(|| {
    let rules = [
        (r"\b[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\b", "[UUID]"),
        (r"\b20\d{6}-\d{6}-[0-9a-z]{4}\b", "[RUN]"),
        (r"\b20\d\d-\d\d-\d\d[T ]\d\d:\d\d:\d\d(\.\d+)?(Z| ?UTC|[+-]\d\d(:?\d\d)?)?", "[TIMESTAMP]"),
        (r"\b\d\d:\d\d:\d\d(\.\d+)?\b", "[TIME]"),
        (r"\b\d+\.\d+ ?(ms|s)\b|\b\d+ ?(ms|µs)\b", "[DURATION]"),
        (r"\bpid(:? |=)\d+", "pid${1}[PID]"),
        (r"\b\d+s old\b", "[AGE] old"),
        (r"127\.0\.0\.1:\d+", "127.0.0.1:[PORT]"),
        (r"(/\w+)+/rbpg\w+", "[SOCKET]"),
        (r"\b[0-9a-f]{64}\b", "[SHA256]"),
        (r"\b\d+(\.\d+)? [KM]iB(?<rows>(, [\w ]+)?), sha256 \w+…?", "[SIZE]${rows}, sha256 [SUM]"),
    ];
    rules.map(|(pattern, to)| (Regex::new(pattern).expect("a fixed pattern"), to)).into()
});

/// A program about to be started.
pub struct Invocation<'a> {
    environment: &'a TestEnv,
    program: OsString,
    arguments: Vec<OsString>,
    variables: Vec<(OsString, OsString)>,
    input: Option<Vec<u8>>,
}

impl<'a> Invocation<'a> {
    /// A variable for this run alone.
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.variables.push((name.into(), value.into()));
        self
    }

    /// What it reads; without it standard input is /dev/null.
    pub fn stdin(mut self, input: impl Into<Vec<u8>>) -> Self {
        self.input = Some(input.into());
        self
    }

    /// Runs it to its end.
    pub fn run(self) -> Output {
        self.spawn().wait()
    }

    /// Starts it.
    pub fn spawn(self) -> Running<'a> {
        let mut command = Command::new(&self.program);
        command.args(&self.arguments).env_clear().envs(self.variables).current_dir(self.environment.path(""));
        command.stdin(if self.input.is_some() { Stdio::piped() } else { Stdio::null() });
        // Its own process group, so that signals to it never reach the tests.
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
        let mut child = command.spawn().unwrap_or_else(|error| panic!("cannot start {:?}: {error}", self.program));
        if let (Some(mut pipe), Some(input)) = (child.stdin.take(), self.input) {
            // The program may end without reading all of it: that is its right.
            std::thread::spawn(move || pipe.write_all(&input));
        }
        Running::watch(child, self.environment)
    }

    /// Starts it on a terminal of 100 columns and 40 rows.
    pub fn terminal(self) -> Terminal<'a> {
        let mut command = pty_process::blocking::Command::new(&self.program).args(&self.arguments);
        command = command.env_clear().env("TERM", "xterm-256color").envs(self.variables);
        Terminal::start(command.current_dir(self.environment.path("")), self.environment)
    }
}

/// What a running program has written, and its end.
#[derive(Default)]
struct Progress {
    stdout: Vec<u8>,
    stderr: Vec<u8>,
    open: usize,
    status: Option<ExitStatus>,
}

/// A program that has been started; it and its process group are killed when dropped.
pub struct Running<'a> {
    environment: &'a TestEnv,
    pid: Pid,
    progress: Arc<(Mutex<Progress>, Condvar)>,
}

impl<'a> Running<'a> {
    fn watch(mut child: Child, environment: &'a TestEnv) -> Self {
        let progress = Arc::new((Mutex::new(Progress { open: 2, ..Progress::default() }), Condvar::new()));
        let stdout = child.stdout.take().expect("piped when started");
        let stderr = child.stderr.take().expect("piped when started");
        follow(stdout, Arc::clone(&progress), |progress| &mut progress.stdout);
        follow(stderr, Arc::clone(&progress), |progress| &mut progress.stderr);
        let pid = Pid::from_raw(child.id() as i32);
        let ended = Arc::clone(&progress);
        std::thread::spawn(move || {
            let status = child.wait().expect("a child can be waited for");
            update(&ended, |progress| progress.status = Some(status));
        });
        Self { environment, pid, progress }
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.pid.as_raw() as u32
    }

    /// Waits until standard output or standard error holds the text; fails when the program ends without.
    pub fn wait_for(&self, text: &str) -> &Self {
        self.wait_until(&format!("to print {text:?}"), |progress| {
            [&progress.stdout, &progress.stderr].into_iter().any(|bytes| String::from_utf8_lossy(bytes).contains(text))
        });
        self
    }

    /// Sends a signal; a program that has ended meanwhile fails the test.
    pub fn signal(&self, signal: Signal) -> &Self {
        signal::kill(self.pid, signal).unwrap_or_else(|error| panic!("cannot send {signal}: {error}"));
        self
    }

    /// Kills it as a crash would, together with nothing else.
    pub fn kill(self) -> Output {
        let _ = signal::kill(self.pid, Signal::SIGKILL);
        self.wait()
    }

    /// Whether it has ended.
    pub fn has_ended(&self) -> bool {
        self.progress.0.lock().unwrap().status.is_some()
    }

    /// Waits for its end. Output pipes that a grandchild still holds open are not waited for after a kill.
    pub fn wait(self) -> Output {
        self.wait_until("to end", |progress| {
            let killed = progress.status.is_some_and(|status| status.signal().is_some());
            progress.status.is_some() && (killed || progress.open == 0)
        });
        let progress = self.progress.0.lock().unwrap();
        let status = progress.status.expect("waited for just above");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let (raw_stdout, raw_stderr) = (text(&progress.stdout), text(&progress.stderr));
        let stdout = self.environment.normalise(&raw_stdout);
        let stderr = self.environment.normalise(&raw_stderr);
        Output { status, stdout, stderr, raw_stdout, raw_stderr }
    }

    fn wait_until(&self, what: &str, mut met: impl FnMut(&Progress) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        let mut progress = self.progress.0.lock().unwrap();
        while !met(&progress) {
            let left = deadline.saturating_duration_since(Instant::now());
            let over = progress.status.is_some() && progress.open == 0;
            if over || left.is_zero() {
                let state = progress.status.map_or("it still runs".into(), |status| format!("it ended: {status}"));
                let (out, err) = (String::from_utf8_lossy(&progress.stdout), String::from_utf8_lossy(&progress.stderr));
                panic!("waited in vain for the program {what}; {state}\n--- stdout\n{out}\n--- stderr\n{err}");
            }
            progress = self.progress.1.wait_timeout(progress, left).unwrap().0;
        }
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        // With what it has left behind in its own process group; that there is nothing is the usual case.
        let _ = signal::killpg(self.pid, Signal::SIGKILL);
    }
}

fn follow(mut pipe: impl Read + Send + 'static, progress: Arc<(Mutex<Progress>, Condvar)>, sink: fn(&mut Progress) -> &mut Vec<u8>) {
    std::thread::spawn(move || {
        let mut buffer = [0; 8192];
        while let Ok(count @ 1..) = pipe.read(&mut buffer) {
            update(&progress, |progress| sink(progress).extend_from_slice(&buffer[..count]));
        }
        update(&progress, |progress| progress.open -= 1);
    });
}

fn update(progress: &(Mutex<Progress>, Condvar), change: impl FnOnce(&mut Progress)) {
    change(&mut progress.0.lock().unwrap());
    progress.1.notify_all();
}

/// How a program ended and what it wrote.
#[derive(Debug)]
pub struct Output {
    /// Exit code or signal.
    pub status: ExitStatus,
    /// Standard output, normalised.
    pub stdout: String,
    /// Standard error, normalised.
    pub stderr: String,
    /// Standard output as it was.
    pub raw_stdout: String,
    /// Standard error as it was.
    pub raw_stderr: String,
}

impl Output {
    /// The exit code; none after a signal.
    pub fn code(&self) -> Option<i32> {
        self.status.code()
    }

    /// Demands an exit code, showing everything when it is another.
    #[track_caller]
    pub fn exits(self, code: i32) -> Self {
        assert_eq!(self.code(), Some(code), "{self}");
        self
    }

    /// The lines of standard output as JSON, for `--json`.
    pub fn json_lines(&self) -> Vec<serde_json::Value> {
        let lines = self.raw_stdout.lines();
        lines.map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error} in {line:?}"))).collect()
    }
}

/// Everything a user sees, for whole-output snapshots.
impl std::fmt::Display for Output {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(f, "{}", self.status)?;
        for (name, text) in [("stdout", &self.stdout), ("stderr", &self.stderr)] {
            if !text.is_empty() {
                writeln!(f, "--- {name}\n{}", text.trim_end())?;
            }
        }
        Ok(())
    }
}

#[test]
fn the_environment_is_the_tests_own() {
    let mut env = TestEnv::new();
    env.set("COLOUR", "blue");
    let output = env.command("sh", ["-c", "env | cut -d= -f1 | sort | tr '\\n' ' '; echo $COLOUR; pwd >&2; exit 3"]).run();
    insta::assert_snapshot!(output, @"
    exit status: 3
    --- stdout
    COLOUR HOME LANG PATH PWD TMPDIR TZ XDG_STATE_HOME blue
    --- stderr
    [DIR]
    ");
}

#[test]
fn a_killed_program_is_seen_to_be_killed() {
    let env = TestEnv::new();
    let running = env.command("sh", ["-c", "echo ready; sleep 600 & wait"]).spawn();
    running.wait_for("ready");
    assert_eq!(running.kill().status.signal(), Some(9));
}
