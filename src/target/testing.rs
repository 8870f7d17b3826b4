//! A throwaway PostgreSQL for the tests of this module, one per test process.
//!
//! A shell stands between: it ends the server and removes its files when this
//! process is gone, however it went.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use super::{ConnectionSpec, Expect, LedgerMode, Targets, Variables};
use crate::secret::Secret;

/// A running server.
pub struct Server {
    /// Directory of its socket.
    pub socket: PathBuf,
    /// The shell; it acts when its standard input is closed.
    guardian: std::process::Child,
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.guardian.stdin.take());
        let _ = self.guardian.wait();
    }
}

/// Where the server's programs are.
pub fn programs() -> PathBuf {
    std::env::var_os("RUNBOOK_TEST_POSTGRES_BIN").map_or_else(|| PathBuf::from("/usr/lib/postgresql/15/bin"), PathBuf::from)
}

/// A command as the user that servers run as: they refuse to be root.
pub fn unprivileged(program: impl AsRef<std::ffi::OsStr>) -> Command {
    if !nix::unistd::geteuid().is_root() {
        return Command::new(program);
    }
    let mut command = Command::new("setpriv");
    command.args(["--reuid=postgres", "--regid=postgres", "--clear-groups", "--"]).arg(program.as_ref());
    command
}

/// Gives a directory to the user that servers run as.
pub fn hand_over(directory: &Path) {
    if nix::unistd::geteuid().is_root() {
        let user = nix::unistd::User::from_name("postgres").unwrap().unwrap();
        nix::unistd::chown(directory, Some(user.uid), Some(user.gid)).unwrap();
    }
}

/// Starts a server with further settings; it lives as long as the value.
pub fn start(settings: &[&str]) -> Server {
    let directory = tempfile::Builder::new().prefix("runbook-pg-").tempdir_in("/tmp").unwrap().keep();
    hand_over(&directory);
    let data = directory.join("data");
    let made = unprivileged(programs().join("initdb"))
        .args(["-U", "postgres", "-A", "trust", "-N", "--no-instructions", "-D"])
        .arg(&data)
        .output()
        .unwrap();
    assert!(made.status.success(), "initdb: {}", String::from_utf8_lossy(&made.stderr));
    let mut shell = unprivileged("sh");
    // QUIT is an immediate shutdown: nothing in this server is worth saving.
    shell.args(["-c", r#"dir=$1; shift; "$@" >"$dir/log" 2>&1 & read -r _; kill -QUIT $!; wait; rm -rf "$dir""#, "sh"]).arg(&directory);
    shell.arg(programs().join("postgres")).arg("-D").arg(&data).arg("-k").arg(&directory);
    for setting in [&["fsync=off", "listen_addresses=", "max_connections=200"], settings].concat() {
        shell.args(["-c", setting]);
    }
    let server = Server { socket: directory, guardian: shell.stdin(Stdio::piped()).spawn().unwrap() };
    let ready = |_: &u32| Command::new(programs().join("pg_isready")).arg("-q").arg("-h").arg(&server.socket).status().unwrap().success();
    let waited = (0..600).find(|attempt| {
        let answer = ready(attempt);
        if !answer {
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
        answer
    });
    assert!(waited.is_some(), "{}", std::fs::read_to_string(server.socket.join("log")).unwrap_or_default());
    server
}

/// The server most tests share.
pub fn server() -> &'static Server {
    static SERVER: OnceLock<Server> = OnceLock::new();
    SERVER.get_or_init(|| start(&[]))
}

impl Server {
    /// Runs psql as superuser and gives what it prints.
    pub fn psql(&self, database: &str, sql: &str) -> String {
        let answer = Command::new(programs().join("psql"))
            .args(["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-U", "postgres", "-d", database, "-c", sql])
            .arg("-h")
            .arg(&self.socket)
            .output()
            .unwrap();
        assert!(answer.status.success(), "{sql}: {}", String::from_utf8_lossy(&answer.stderr));
        String::from_utf8(answer.stdout).unwrap().trim_end().to_owned()
    }

    /// A database of its own for one test.
    pub fn database(&self) -> String {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("test_{}", COUNT.fetch_add(1, Ordering::Relaxed));
        self.psql("postgres", &format!("CREATE DATABASE {name}"));
        name
    }

    /// How `user` reaches a database.
    pub fn url(&self, user: &str, database: &str) -> String {
        format!("postgres:///{database}?user={user}&host={}", self.socket.display())
    }
}

/// A connection named `main` that expects nothing.
pub fn spec(url: &str) -> ConnectionSpec {
    ConnectionSpec { name: "main".into(), url: Secret::new(url), expect: Expect::default(), ledger: LedgerMode::Target, environment: None }
}

/// The targets of run `r1` with one connection.
pub fn targets(spec: ConnectionSpec) -> Targets {
    targets_of("r1", spec)
}

/// The targets of another run.
pub fn targets_of(run: &str, spec: ConnectionSpec) -> Targets {
    Targets::new(run, vec![spec], &Variables::default())
}
