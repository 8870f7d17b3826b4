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

/// Where the tested server's programs are: in `RUNBOOK_TEST_PG_BIN`, else the machine's.
pub fn programs() -> PathBuf {
    std::env::var_os("RUNBOOK_TEST_PG_BIN").map_or_else(machine_programs, PathBuf::from)
}

/// Where those of the operating system are, which know TLS.
pub fn machine_programs() -> PathBuf {
    PathBuf::from("/usr/lib/postgresql/15/bin")
}

/// A client program, of the tested version where it comes with one.
pub fn client(name: &str) -> PathBuf {
    Some(programs().join(name)).filter(|path| path.exists()).unwrap_or_else(|| machine_programs().join(name))
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

/// A new directory of the user that servers run as.
pub fn directory() -> PathBuf {
    let directory = tempfile::Builder::new().prefix("runbook-pg-").tempdir_in("/tmp").unwrap().keep();
    hand_over(&directory);
    directory
}

/// Runs a program to its end as the user that servers run as.
pub fn finish(command: &mut Command) {
    let ended = command.output().unwrap();
    assert!(ended.status.success(), "{command:?}: {}", String::from_utf8_lossy(&ended.stderr));
}

/// A port nobody listens on.
pub fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// Starts a server with further settings; it lives as long as the value.
pub fn start(settings: &[&str]) -> Server {
    start_in(&programs(), directory(), 5432, settings)
}

/// The same, in a directory that may already hold its configuration, on a port of its own.
pub fn start_in(programs: &Path, directory: PathBuf, port: u16, settings: &[&str]) -> Server {
    let initdb = ["-U", "postgres", "-A", "trust", "-N", "--no-instructions", "-D"];
    finish(unprivileged(programs.join("initdb")).args(initdb).arg(directory.join("data")));
    serve(programs, directory, port, settings)
}

/// A standby of the shared server.
pub fn standby() -> Server {
    let directory = directory();
    let copy = ["-U", "postgres", "-R", "-N", "-c", "fast", "-X", "stream", "-h"];
    finish(unprivileged(client("pg_basebackup")).args(copy).arg(&server().socket).arg("-D").arg(directory.join("data")));
    serve(&programs(), directory, 5432, &["hot_standby=on"])
}

fn serve(programs: &Path, directory: PathBuf, port: u16, settings: &[&str]) -> Server {
    let mut arguments: Vec<String> =
        ["-D", &directory.join("data").display().to_string(), "-k", &directory.display().to_string()].map(str::to_owned).into();
    let port_setting = format!("port={port}");
    let defaults = ["fsync=off", "listen_addresses=", "max_connections=200", port_setting.as_str()];
    arguments.extend(defaults.iter().chain(settings).flat_map(|setting| ["-c".to_owned(), (*setting).to_owned()]));
    // An immediate shutdown: nothing in these servers is worth saving.
    guard(directory, programs.join("postgres"), &arguments, "QUIT", port)
}

/// Starts a program that serves a socket in `directory` and waits until it does. A
/// shell ends it by `signal`, and removes the directory, when its standard input closes.
pub fn guard(directory: PathBuf, program: impl AsRef<std::ffi::OsStr>, arguments: &[String], signal: &str, port: u16) -> Server {
    let mut shell = unprivileged("sh");
    shell
        .args(["-c", r#"dir=$1 signal=$2; shift 2; "$@" >"$dir/log" 2>&1 & read -r _; kill -"$signal" $!; wait; rm -rf "$dir""#, "sh"])
        .arg(&directory)
        .arg(signal);
    shell.arg(program.as_ref()).args(arguments);
    let server = Server { socket: directory, guardian: shell.stdin(Stdio::piped()).spawn().unwrap() };
    let mut ready = Command::new(client("pg_isready"));
    ready.arg("-q").arg("-h").arg(&server.socket).args(["-p", &port.to_string()]);
    for _ in 0..600 {
        if ready.status().unwrap().success() {
            return server;
        }
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    panic!("{}", std::fs::read_to_string(server.socket.join("log")).unwrap_or_default());
}

/// The server most tests share.
pub fn server() -> &'static Server {
    static SERVER: OnceLock<Server> = OnceLock::new();
    SERVER.get_or_init(|| start(&[]))
}

impl Server {
    /// Runs psql as superuser and gives what it prints.
    pub fn psql(&self, database: &str, sql: &str) -> String {
        self.psql_at(5432, database, sql)
    }

    /// The same, on another port.
    pub fn psql_at(&self, port: u16, database: &str, sql: &str) -> String {
        let answer = Command::new(client("psql"))
            .args(["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-U", "postgres", "-d", database, "-c", sql])
            .args(["-p", &port.to_string(), "-h"])
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
