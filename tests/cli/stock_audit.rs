//! The stock-audit example as its README runs it: databases as before and after a
//! deployment, sound or with problems planted, and an application to look at.
//!
//! The data are made once; each test works on a copy of its own. What the playbooks
//! must say about them is in the modules `pre_deploy` and `smoke`.

use std::ffi::OsString;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock, Mutex};
use std::thread::JoinHandle;

use regex::Regex;

use crate::environment::{Invocation, Output, TestEnv};
use crate::postgres::{self, Database};

/// The release that is deployed.
const RELEASE: &str = "2.4.0";

/// A copy of the example's database, and a place to run its playbooks in.
pub struct StockAudit {
    pub env: TestEnv,
    pub database: Database,
}

impl StockAudit {
    /// As before a deployment, with these problems.
    pub fn before_deployment(problems: &[&str]) -> Self {
        static TEMPLATE: LazyLock<Database> = LazyLock::new(|| {
            let site = StockAudit::at(postgres::database());
            site.generate(&[]);
            site.database
        });
        Self::copy_of(&TEMPLATE, problems)
    }

    /// As after a deployment that pre-deploy.yaml has prepared, with these problems.
    pub fn after_deployment(problems: &[&str]) -> Self {
        static TEMPLATE: LazyLock<Database> = LazyLock::new(|| {
            let site = StockAudit::before_deployment(&[]);
            site.pre_deploy(&["--only", "record"]).run().exits(0);
            site.generate(&["--deploy"]);
            site.database
        });
        Self::copy_of(&TEMPLATE, problems)
    }

    /// Data of its own in this database, e.g. one on a server with settings of its own.
    pub fn generated_in(database: Database, problems: &[&str]) -> Self {
        let site = Self::at(database);
        site.generate(&[]);
        site.plant(problems);
        site.stamp("staging");
        site
    }

    fn copy_of(template: &Database, problems: &[&str]) -> Self {
        let site = Self::at(postgres::copy_of(template));
        site.plant(problems);
        site.stamp("staging");
        site
    }

    fn at(database: Database) -> Self {
        let mut env = TestEnv::new();
        env.use_database(&database);
        env.copy_from_project("playbooks");
        Self { env, database }
    }

    fn plant(&self, problems: &[&str]) {
        let mut arguments = vec!["--keep"];
        arguments.extend(problems.iter().flat_map(|problem| ["--plant", problem]));
        if !problems.is_empty() {
            self.generate(&arguments);
        }
    }

    fn generate(&self, arguments: &[&str]) {
        let program = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/stock-audit/generate");
        self.env.command(program, arguments).run().exits(0);
    }

    /// Writes another environment's name into the database.
    pub fn stamp(&self, environment: &str) {
        self.env.runbook(["stamp", environment]).run().exits(0);
    }

    /// `runbook run playbooks/pre-deploy.yaml` with what it must be told, and these arguments.
    pub fn pre_deploy(&self, more: &[&str]) -> Invocation<'_> {
        self.playbook("pre-deploy", &["--param", "maintenance_at=22:00 UTC"], more)
    }

    /// `runbook run playbooks/post-deploy-smoke.yaml` likewise.
    pub fn smoke(&self, application: &Application, more: &[&str]) -> Invocation<'_> {
        // Twelve times the time after which a login is not recent any more: a slow machine
        // may run the tests for longer than ten minutes after the data were made.
        let told = [format!("app_url={}", application.url()), "fresh_minutes=120".to_owned()];
        self.playbook("post-deploy-smoke", &["--param", &told[0], "--param", &told[1]], more)
    }

    fn playbook(&self, name: &str, told: &[&str], more: &[&str]) -> Invocation<'_> {
        let mut arguments = vec!["run".to_owned(), format!("playbooks/{name}.yaml")];
        for parameter in ["env=staging".to_owned(), format!("release={RELEASE}"), format!("database={}", self.database.name())] {
            arguments.extend(["--param".to_owned(), parameter]);
        }
        arguments.extend(told.iter().chain(more).map(ToString::to_string));
        self.env.runbook(arguments.into_iter().map(OsString::from))
    }

    /// Answers a gate from another terminal.
    pub fn approve(&self, waiting: &Output, step: &str, answer: &[&str]) -> Output {
        self.env.runbook(["approve", &run_of(waiting), step].iter().chain(answer)).run()
    }

    /// Goes on with a run.
    pub fn resume(&self, output: &Output) -> Output {
        self.env.runbook(["resume", &run_of(output)]).run()
    }
}

/// The run that an output is about.
pub fn run_of(output: &Output) -> String {
    static RUN: LazyLock<Regex> = LazyLock::new(|| Regex::new(r"\brun (\d{8}-\d{6}-\w{4})\b").expect("a fixed pattern"));
    let found = RUN.captures(&output.raw_stdout).unwrap_or_else(|| panic!("no run is named in {output}"));
    found[1].to_owned()
}

/// What is said last of one step: its line and what is indented below it, without the
/// places in the playbook and what is said at the end of every failure.
pub fn said_of(output: &Output, title: &str) -> String {
    // Output of steps that run at the same time may stand anywhere.
    let lines: Vec<&str> = output.stdout.lines().filter(|line| !line.contains(" │ ")).collect();
    let of_the_step = |line: &&str| !line.starts_with(' ') && line.contains(title);
    let start = lines.iter().rposition(of_the_step).unwrap_or_else(|| panic!("nothing is said of `{title}`:\n{output}"));
    let below = lines[start + 1..].iter().take_while(|line| line.starts_with(' ') && !line.starts_with("  state "));
    stable(&[&lines[start]].into_iter().chain(below).copied().collect::<Vec<_>>().join("\n"))
}

/// Takes out what the day, the server's version and the place in the playbook change.
pub fn stable(text: &str) -> String {
    static CHANGING: LazyLock<Vec<(Regex, &str)>> = LazyLock::new(|| {
        let rules = [
            (r"system \d+", "system [ID]"),
            (r"are in use → \d+(\.\d+)?", "are in use → [SHARE]"),
            (r"\.yaml:\d+:\d+", ".yaml:[PLACE]"),
            (r"(?m)^( +)\d+ \|( {3,}[a-z])", "$1[LINE] |$2"),
            (r"\b20\d{6}-\d{6}-[0-9a-z]{4}_", "[RUN]_"),
            (r"\b\d{6}-(LDN|LEE|BRS|GLA)-", "[DAY]-$1-"),
        ];
        rules.map(|(pattern, to)| (Regex::new(pattern).expect("a fixed pattern"), to)).into()
    });
    CHANGING.iter().fold(text.to_owned(), |text, (pattern, to)| pattern.replace_all(&text, *to).into_owned())
}

/// A web application: answers each path with what it is told to, all others with 404.
pub struct Application {
    address: SocketAddr,
    closing: Arc<AtomicBool>,
    asked: Arc<Mutex<Vec<String>>>,
    listener: Option<JoinHandle<()>>,
}

/// A path, a status and a body.
pub type Page = (&'static str, &'static str, &'static str);

/// The health endpoint of an application that is well.
pub const HEALTHY: Page = ("/api/health", "200 OK", r#"{"database": true, "auth": true}"#);

impl Application {
    /// One that is well.
    pub fn healthy() -> Self {
        Self::with(HEALTHY)
    }

    /// One that differs in a page.
    pub fn with(page: Page) -> Self {
        let html = "<!doctype html><title>Stock audit</title>";
        let pages = vec![page, HEALTHY, ("/", "200 OK", html), ("/dashboard", "200 OK", html), ("/scanner", "200 OK", html)];
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        let (closing, asked) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Vec::new())));
        let listener = std::thread::spawn({
            let (closing, asked) = (Arc::clone(&closing), Arc::clone(&asked));
            move || {
                for connection in listener.incoming().flatten().take_while(|_| !closing.load(Ordering::Acquire)) {
                    // A client that goes away in the middle is no concern of the others.
                    let _ = answer(connection, &pages, &asked);
                }
            }
        });
        Self { address, closing, asked, listener: Some(listener) }
    }

    /// Where it is.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// How often a path was asked for.
    pub fn asked_for(&self, path: &str) -> usize {
        self.asked.lock().unwrap().iter().filter(|asked| *asked == path).count()
    }
}

impl Application {
    /// Ends it; from now on nobody listens there.
    pub fn stop(&mut self) {
        self.closing.store(true, Ordering::Release);
        let _ = TcpStream::connect(self.address);
        if let Some(listener) = self.listener.take() {
            let _ = listener.join();
        }
    }
}

impl Drop for Application {
    fn drop(&mut self) {
        self.stop();
    }
}

fn answer(mut connection: TcpStream, pages: &[Page], asked: &Mutex<Vec<String>>) -> std::io::Result<()> {
    let mut lines = BufReader::new(connection.try_clone()?).lines();
    let request = lines.next().transpose()?.unwrap_or_default();
    let path = request.split(' ').nth(1).unwrap_or_default().to_owned();
    for line in lines {
        if line?.is_empty() {
            break;
        }
    }
    let (_, status, body) = pages.iter().find(|(known, ..)| *known == path).unwrap_or(&("", "404 Not Found", ""));
    asked.lock().unwrap().push(path);
    write!(connection, "HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len())
}
