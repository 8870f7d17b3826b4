//! A throwaway PostgreSQL over the binaries that are installed.
//!
//! Responsible for starting, restarting and removing servers, and for giving each
//! test a database of its own. It knows nothing of runbook.
//!
//! [`database`] hands out databases on one server that all tests of this process
//! share: starting one costs half a second, creating a database 30 ms. Tests that
//! stop the server, or need settings of their own, start a private one with
//! [`Server::builder`]. The sharing is within one process on purpose: a server
//! shared between processes would need somebody who knows when the last one has
//! left. `cargo test` runs all tests as threads of one process and is what the
//! project uses; under nextest each test has a server of its own, slower but right.
//!
//! `RUNBOOK_TEST_PG_BIN` names the `bin` directory of another server version.

use std::fs::{self, Permissions};
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, OnceLock};
use std::time::{Duration, Instant};

use nix::unistd::User;
use tempfile::TempDir;

/// How long a server may take to start or to stop before the test fails.
const PATIENCE: Duration = Duration::from_secs(60);

/// The variable that names another server's programs.
const CHOICE: &str = "RUNBOOK_TEST_PG_BIN";

/// The port in the name of the socket of a server without TCP.
const SOCKET_PORT: u16 = 5432;

/// Obeys the words it reads, and at the end of its input (which comes however the test
/// process ends) stops the server and removes everything that was written.
const KEEPER: &str = r#"
bin=$1 home=$2 server=
trap '' PIPE # nobody may be left to answer to
start() { "$bin/postgres" -D "$home/data" </dev/null >>"$home/log" 2>&1 & server=$!; }
stop() { [ -z "$server" ] || { kill -"$1" "$server"; wait "$server"; server=; }; } 2>/dev/null
while read -r word argument; do
  case $word in
    initdb) "$bin/initdb" -D "$home/data" --no-sync --auth=trust --username=postgres --locale=C --encoding=UTF8 ;;
    copy) cp -a "$argument" "$home/data" ;;
    start) start ;;
    stop) stop INT ;;
    crash) stop QUIT ;;
  esac </dev/null >>"$home/log" 2>&1
  echo "$word" 2>/dev/null
done
stop QUIT
rm -rf "$home"
"#;

/// A new, empty database on the server that all tests of this process share.
pub fn database() -> Database {
    shared_server().createdb(&next_name())
}

/// A copy of such a database, which nobody may be connected to.
pub fn copy_of(template: &Database) -> Database {
    let (server, name) = (shared_server(), next_name());
    server.psql("postgres", &format!("CREATE DATABASE {name} TEMPLATE {}", template.name()));
    Database { url: server.url(&name), name }
}

fn shared_server() -> &'static Server {
    static SHARED: OnceLock<Server> = OnceLock::new();
    SHARED.get_or_init(|| Server::builder().setting("max_connections", "200").start())
}

fn next_name() -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    format!("test_{}", COUNT.fetch_add(1, Ordering::Relaxed))
}

/// The directory of the server's programs: `RUNBOOK_TEST_PG_BIN`, else the newest of
/// Debian's.
pub fn bin_dir() -> &'static Path {
    static FOUND: OnceLock<PathBuf> = OnceLock::new();
    FOUND.get_or_init(|| match std::env::var_os(CHOICE) {
        Some(chosen) => chosen.into(),
        None => newest_installed().expect("no PostgreSQL server in /usr/lib/postgresql: run `bash .ci/setup` or set RUNBOOK_TEST_PG_BIN"),
    })
}

/// Whether somebody chose the server, which may then lack what `.ci/setup` installs.
pub fn is_chosen() -> bool {
    std::env::var_os(CHOICE).is_some()
}

/// The major version of the server's programs.
pub fn major_version() -> u32 {
    let output = Command::new(bin_dir().join("postgres")).arg("--version").output().expect("postgres --version runs");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let number = text.split_whitespace().find(|word| word.starts_with(|c: char| c.is_ascii_digit()));
    let major = number.map(|word| word.chars().take_while(char::is_ascii_digit).collect::<String>());
    major.and_then(|digits| digits.parse().ok()).unwrap_or_else(|| panic!("postgres --version says {text:?}"))
}

fn newest_installed() -> Option<PathBuf> {
    let versions = fs::read_dir("/usr/lib/postgresql").ok()?.flatten();
    let numbered = versions.filter_map(|entry| Some((entry.file_name().to_str()?.parse::<u32>().ok()?, entry.path().join("bin"))));
    numbered.filter(|(_, bin)| bin.join("postgres").exists()).max().map(|(_, bin)| bin)
}

/// What a server is to be like.
#[derive(Debug, Default)]
pub struct Builder {
    settings: Vec<(String, String)>,
    access: Option<String>,
    files: Vec<(String, String)>,
    tcp: bool,
    /// A data directory at rest; without it, a fresh one.
    data: Option<PathBuf>,
}

impl Builder {
    /// A line of `postgresql.conf`.
    pub fn setting(mut self, name: &str, value: &str) -> Self {
        self.settings.push((name.into(), value.into()));
        self
    }

    /// The whole of `pg_hba.conf`; without it everybody on the socket and on 127.0.0.1 is trusted.
    pub fn access(mut self, lines: &str) -> Self {
        self.access = Some(lines.into());
        self
    }

    /// A file beside `postgresql.conf`, readable by the server alone, e.g. `server.key`.
    pub fn file(mut self, name: &str, text: &str) -> Self {
        self.files.push((name.into(), text.into()));
        self
    }

    /// Listens on a free port of 127.0.0.1 too.
    pub fn tcp(mut self) -> Self {
        self.tcp = true;
        self
    }

    /// Starts the server and waits until it accepts connections.
    pub fn start(self) -> Server {
        loop {
            match self.try_start() {
                Ok(server) => return server,
                // Somebody took the port between our look and the server's.
                Err(log) if self.tcp && log.contains("Address already in use") => {}
                Err(log) => panic!("PostgreSQL did not start:\n{log}"),
            }
        }
    }

    fn try_start(&self) -> Result<Server, String> {
        let account = Account::of_the_server();
        let mut keeper = Keeper::of_a_new_home(&account);
        keeper.obey(&format!("copy {}", self.data.clone().unwrap_or_else(template).display()));
        let port = if self.tcp { free_port() } else { SOCKET_PORT };
        self.write_configuration(&keeper.home, port, &account);
        keeper.obey("start");
        let server = Server { home: keeper.home.clone(), port, tcp: self.tcp, keeper: Mutex::new(keeper) };
        server.wait_until_ready(0)?;
        Ok(server)
    }

    fn write_configuration(&self, home: &Path, port: u16, account: &Account) {
        let data = home.join("data");
        let socket_dir = home.display();
        let listen = if self.tcp { "127.0.0.1" } else { "" };
        // Commits stay synchronous: they must survive a crash of the server, though not of the machine.
        let mut text = format!(
            "listen_addresses = '{listen}'\nport = {port}\nunix_socket_directories = '{socket_dir}'\n\
             fsync = off\nfull_page_writes = off\nshared_buffers = 32MB\n\
             log_line_prefix = '%m [%p] %q%a '\nlc_messages = 'C'\ntimezone = 'UTC'\n"
        );
        for (name, value) in &self.settings {
            text += &format!("{name} = '{}'\n", value.replace('\'', "''"));
        }
        account.write(&data.join("postgresql.conf"), &text);
        if let Some(lines) = &self.access {
            account.write(&data.join("pg_hba.conf"), lines);
        }
        for (name, text) in &self.files {
            account.write(&data.join(name), text);
        }
    }
}

/// A running server; it ends, and its files go, when this is dropped or the test process ends.
#[derive(Debug)]
pub struct Server {
    home: PathBuf,
    port: u16,
    tcp: bool,
    keeper: Mutex<Keeper>,
}

impl Server {
    /// A private server; see [`database`] for the shared one.
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// The directory of its unix socket.
    pub fn socket_dir(&self) -> &Path {
        &self.home
    }

    /// Its port: of 127.0.0.1 with [`Builder::tcp`], and in the name of its socket.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The address of a database, by the unix socket, as the superuser `postgres`.
    pub fn url(&self, database: &str) -> String {
        let port = if self.port == SOCKET_PORT { String::new() } else { format!("&port={}", self.port) };
        format!("postgres:///{database}?host={}&user=postgres{port}", self.socket_dir().display())
    }

    /// The address of a database by TCP.
    pub fn tcp_url(&self, database: &str) -> String {
        assert!(self.tcp, "this server was built without .tcp()");
        format!("postgres://postgres@127.0.0.1:{}/{database}", self.port)
    }

    /// Creates a database.
    pub fn createdb(&self, name: &str) -> Database {
        self.psql("postgres", &format!("CREATE DATABASE {name}"));
        Database { name: name.into(), url: self.url(name) }
    }

    /// Runs SQL as a superuser; rows come back one a line, columns parted by `|`.
    pub fn psql(&self, database: &str, sql: &str) -> String {
        psql(&self.url(database), sql)
    }

    /// A further server that replays what this one writes; this one is stopped for a moment.
    pub fn standby(&self) -> Self {
        self.stop();
        let primary = format!("host={} port={} user=postgres", self.socket_dir().display(), self.port);
        let standby = Builder { data: Some(self.home.join("data")), ..Builder::default() }
            .setting("primary_conninfo", &primary)
            .file("standby.signal", "")
            .start();
        self.start();
        standby
    }

    /// Everything it has logged; with `log_statement = all`, each statement.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.home.join("log")).unwrap_or_default()).into_owned()
    }

    /// Breaks every connection and comes back by crash recovery.
    pub fn immediate_restart(&self) {
        self.command("crash");
        self.start();
    }

    /// Stops it in an orderly way: open transactions roll back.
    pub fn stop(&self) {
        self.command("stop");
    }

    /// Starts it again after [`Server::stop`].
    pub fn start(&self) {
        let logged = self.log().len();
        self.command("start");
        self.wait_until_ready(logged).unwrap_or_else(|log| panic!("PostgreSQL did not come back:\n{log}"));
    }

    fn command(&self, word: &str) {
        self.keeper.lock().unwrap().obey(word);
    }

    /// The error is the log from the given place on.
    fn wait_until_ready(&self, logged: usize) -> Result<(), String> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let log = self.log().split_off(logged);
            match self.status() {
                Some((_, true)) => return Ok(()),
                None if log.contains("FATAL:") => return Err(log),
                _ if Instant::now() > deadline => return Err(log),
                _ => std::thread::sleep(Duration::from_millis(3)),
            }
        }
    }

    /// The server's pid and whether it accepts connections, as it writes them itself.
    fn status(&self) -> Option<(u32, bool)> {
        let text = fs::read_to_string(self.home.join("data/postmaster.pid")).ok()?;
        let pid = text.lines().next()?.trim().parse().ok()?;
        Some((pid, text.lines().nth(7).is_some_and(|line| line.trim() == "ready")))
    }
}

/// One test's own database.
#[derive(Debug, Clone)]
pub struct Database {
    name: String,
    url: String,
}

impl Database {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its address, as the superuser `postgres`.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Its address as another role.
    pub fn url_as(&self, role: &str) -> String {
        self.url.replace("user=postgres", &format!("user={role}"))
    }

    /// Runs SQL as a superuser; rows come back one a line, columns parted by `|`.
    pub fn psql(&self, sql: &str) -> String {
        psql(&self.url, sql)
    }

    /// A psql session that stays open, e.g. to hold locks.
    pub fn session(&self) -> Session {
        Session::open(&self.url)
    }
}

/// A psql that runs what it is told, one connection throughout; ends when dropped.
#[derive(Debug)]
pub struct Session {
    child: Child,
    answers: BufReader<ChildStdout>,
}

impl Session {
    fn open(url: &str) -> Self {
        let mut child =
            psql_command(url).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::inherit()).spawn().expect("psql starts");
        let answers = BufReader::new(child.stdout.take().expect("piped just above"));
        Self { child, answers }
    }

    /// Runs SQL and waits for its end.
    pub fn run(&mut self, sql: &str) -> String {
        const END: &str = "end of the answer";
        self.tell(&format!("{sql}\n;\n\\echo {END}"));
        let mut answer = String::new();
        loop {
            let mut line = String::new();
            let count = self.answers.read_line(&mut line).expect("psql's output is text");
            assert!(count > 0, "psql ended while running: {sql}");
            if line.trim_end() == END {
                return answer.trim_end().into();
            }
            answer += &line;
        }
    }

    /// Sends SQL without waiting for its end.
    pub fn tell(&mut self, sql: &str) {
        let input = self.child.stdin.as_mut().expect("piped when opened");
        writeln!(input, "{sql}").and_then(|()| input.flush()).expect("psql still reads");
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn psql(url: &str, sql: &str) -> String {
    let mut child = psql_command(url)
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("psql starts: is postgresql-client installed?");
    let mut input = child.stdin.take().expect("piped just above");
    let text = sql.to_owned();
    // In a thread, because both sides block when a long script meets a long answer.
    let writer = std::thread::spawn(move || input.write_all(text.as_bytes()));
    let output = child.wait_with_output().expect("psql ends");
    let _ = writer.join();
    assert!(output.status.success(), "psql failed:\n{}\nin:\n{sql}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("psql prints UTF-8").trim_end().into()
}

fn psql_command(url: &str) -> Command {
    // A server-only distribution brings no psql; any version will do.
    let own = bin_dir().join("psql");
    let mut command = Command::new(if own.exists() { own.as_path() } else { Path::new("psql") });
    command.args(["--no-psqlrc", "--quiet", "--no-align", "--tuples-only", "--set=ON_ERROR_STOP=1", url]);
    command.env("PGCLIENTENCODING", "UTF8").env_remove("PGOPTIONS").env_remove("PGSERVICE").env_remove("PGPASSWORD");
    command
}

/// The shell that holds a server and its directory; see [`KEEPER`].
#[derive(Debug)]
struct Keeper {
    home: PathBuf,
    shell: Child,
    answers: BufReader<ChildStdout>,
}

impl Keeper {
    fn of_a_new_home(account: &Account) -> Self {
        let home = account.new_home();
        let mut command = account.command("sh");
        command.arg("-c").arg(KEEPER).arg("keeper").arg(bin_dir()).arg(&home);
        // Its own process group: an interrupt at the developer's terminal must reach
        // the tests alone, so that this shell lives on to clean up.
        command.process_group(0).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut shell = command.spawn().expect("sh starts");
        let answers = BufReader::new(shell.stdout.take().expect("piped just above"));
        Self { home, shell, answers }
    }

    fn obey(&mut self, order: &str) {
        let input = self.shell.stdin.as_mut().expect("piped when started, and taken only by drop");
        writeln!(input, "{order}").expect("the keeper still reads");
        let mut answer = String::new();
        self.answers.read_line(&mut answer).expect("the keeper answers");
        assert_eq!(Some(answer.trim_end()), order.split(' ').next(), "the keeper of the server is gone");
    }

    fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(self.home.join("log")).unwrap_or_default()).into_owned()
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        drop(self.shell.stdin.take());
        let _ = self.shell.wait();
    }
}

/// Whom the server runs as: PostgreSQL refuses root.
struct Account(Option<User>);

impl Account {
    fn of_the_server() -> Self {
        if !nix::unistd::geteuid().is_root() {
            return Self(None);
        }
        let found = ["postgres", "nobody"].into_iter().find_map(|name| User::from_name(name).ok().flatten());
        Self(Some(found.expect("every system has a user nobody")))
    }

    fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new(program);
        // The test process may stand in a directory that this user may not enter.
        command.current_dir("/").env_clear().env("PATH", "/usr/bin:/bin").env("LC_ALL", "C");
        if let Some(user) = &self.0 {
            command.uid(user.uid.as_raw()).gid(user.gid.as_raw());
        }
        command
    }

    /// A new directory with a short name: the path of a unix socket has at most 107 bytes.
    fn new_home(&self) -> PathBuf {
        let home = TempDir::with_prefix_in("rbpg", "/tmp").expect("a directory under /tmp").keep();
        self.give(&home);
        // The tests' own processes reach the socket as whoever they are.
        fs::set_permissions(&home, Permissions::from_mode(0o755)).expect("own directory");
        home
    }

    fn write(&self, path: &Path, text: &str) {
        fs::write(path, text).expect("own directory");
        fs::set_permissions(path, Permissions::from_mode(0o600)).expect("own file");
        self.give(path);
    }

    fn give(&self, path: &Path) {
        if let Some(user) = &self.0 {
            std::os::unix::fs::chown(path, Some(user.uid.as_raw()), Some(user.gid.as_raw())).expect("root may give files away");
        }
    }
}

/// A data directory fresh from `initdb`, made once a process; every server starts from a copy.
fn template() -> PathBuf {
    static TEMPLATE: OnceLock<Mutex<Keeper>> = OnceLock::new();
    let keeper = TEMPLATE.get_or_init(|| {
        let mut keeper = Keeper::of_a_new_home(&Account::of_the_server());
        keeper.obey("initdb");
        assert!(keeper.home.join("data/PG_VERSION").exists(), "initdb of {} failed:\n{}", bin_dir().display(), keeper.log());
        Mutex::new(keeper)
    });
    keeper.lock().unwrap().home.join("data")
}

fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("it is bound").port()
}

#[test]
fn databases_are_separate() {
    let (one, two) = (database(), database());
    one.psql("CREATE TABLE t AS SELECT 1 AS a, 'x' AS b");
    assert_eq!(one.psql("SELECT * FROM t"), "1|x");
    assert_eq!(two.psql("SELECT count(*) FROM pg_class WHERE relname = 't'"), "0");
}

#[test]
fn a_server_comes_back_from_an_immediate_restart() {
    let server = Server::builder().setting("max_connections", "50").tcp().start();
    let database = server.createdb("app");
    let mut session = database.session();
    session.run("CREATE TABLE kept (); BEGIN; CREATE TABLE lost ()");
    server.immediate_restart();
    assert_eq!(
        psql(&server.tcp_url("app"), "SHOW max_connections; SELECT relname FROM pg_class WHERE relname IN ('kept', 'lost')"),
        "50\nkept"
    );
}

#[test]
fn a_dropped_server_leaves_nothing() {
    let server = Server::builder().start();
    let home = server.home.clone();
    let pid = server.status().expect("it runs").0;
    drop(server);
    assert!(!home.exists());
    assert!(!is_alive(pid));
}

/// Plays both parts: the test process that is killed is this same test in another process.
#[test]
fn a_server_ends_with_a_test_process_that_is_killed() {
    const OTHER_PART: &str = "RUNBOOK_TEST_IS_TO_BE_KILLED";
    if std::env::var_os(OTHER_PART).is_some() {
        let server = Server::builder().start();
        println!("\nserver {} {}", server.status().expect("it runs").0, server.home.display());
        let _ = std::io::stdin().read_line(&mut String::new());
        return;
    }
    let mut command = Command::new(std::env::current_exe().expect("a running test"));
    command.args(["--exact", "--nocapture", "postgres::a_server_ends_with_a_test_process_that_is_killed"]);
    let mut killed = command.env(OTHER_PART, "1").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("it starts");
    let mut lines = BufReader::new(killed.stdout.take().expect("piped just above")).lines();
    let line = lines.find_map(|line| line.ok()?.strip_prefix("server ").map(str::to_owned)).expect("the server's pid");
    let (pid, home) = line.split_once(' ').expect("a pid and a path");
    killed.kill().expect("it still runs");
    killed.wait().expect("it is a child");
    let deadline = Instant::now() + PATIENCE;
    while Path::new(home).exists() || is_alive(pid.parse().expect("a pid")) {
        assert!(Instant::now() < deadline, "server {pid} or {home} outlives its test process");
        std::thread::sleep(Duration::from_millis(3));
    }
}

fn is_alive(pid: u32) -> bool {
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid as i32), None).is_ok()
}
