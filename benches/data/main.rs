//! What the steps that move data cost, each against the plain way in the same run.
//!
//! `cargo bench --bench data` runs all scenarios, `cargo bench --bench data -- import` those
//! with `import` in their name. The server is a throwaway one with PostgreSQL's own defaults,
//! which the scenarios share; see `measure` for how they are compared.

#![allow(clippy::print_stdout, clippy::unwrap_used, missing_docs, reason = "a program for developers that speaks by printing")]

mod backup;
mod batch;
mod import;
mod measure;
mod neighbours;
#[allow(dead_code, reason = "shared with the tests, which use more of it")]
#[path = "../../tests/cli/postgres.rs"]
mod postgres;
#[allow(dead_code, reason = "shared with the other benches, which use more of it")]
#[path = "../engine/measure.rs"]
mod programs;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use measure::Race;
use postgres::{Database, Server};
use tempfile::TempDir;

const RUNBOOK: &str = env!("CARGO_BIN_EXE_runbook");

/// A scenario's name and how it is run.
type Scenario = (&'static str, fn(&Workshop) -> Race);

const SCENARIOS: &[Scenario] = &[
    ("import", import::with_run_column),
    ("import-noted", import::with_noted_keys),
    ("batch-key-1", batch::key_1),
    ("batch-key-2", batch::key_2),
    ("batch-physical-1", batch::physical_1),
    ("batch-physical-2", batch::physical_2),
    ("batch-guides-loop", batch::guides_loop),
    ("backup-checksum", backup::checksum),
    ("backup-archive", backup::archive),
    ("backup-shipped", backup::shipped),
    ("backup-directory", backup::directory),
];

/// What others feel; tells it by itself.
type Report = (&'static str, fn(&Workshop) -> String);

const REPORTS: &[Report] = &[("neighbours-key-2", neighbours::key_2), ("neighbours-physical-2", neighbours::physical_2)];

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if programs::is_memory_probe(&arguments) {
        programs::probe_memory(&arguments);
    }
    let wanted: Vec<&String> = arguments.iter().filter(|argument| !argument.starts_with("--")).collect();
    let workshop = Workshop::new();
    let is_wanted = |name: &str| wanted.is_empty() || wanted.iter().any(|part| name.contains(part.as_str()));
    println!("{}", measure::HEADING);
    for (name, scenario) in SCENARIOS.iter().filter(|(name, _)| is_wanted(name)) {
        println!("{}", scenario(&workshop).hold(name));
    }
    for (_, report) in REPORTS.iter().filter(|(name, _)| is_wanted(name)) {
        println!("{}", report(&workshop));
    }
}

/// The directory that holds all inputs and journals, and the server.
struct Workshop {
    directory: TempDir,
    server: Server,
}

impl Workshop {
    fn new() -> Self {
        // The tests' server gives durability and memory away; here they are part of the price.
        let server = Server::builder().setting("fsync", "on").setting("full_page_writes", "on").setting("shared_buffers", "128MB").start();
        Self { directory: TempDir::with_prefix("runbook-bench").expect("a temporary directory"), server }
    }

    /// A new, empty database.
    fn database(&self, name: &str) -> Database {
        self.server.createdb(&name.replace('-', "_"))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path(name);
        std::fs::write(&path, text).expect("own directory");
        path
    }

    /// `runbook run`, each time with a journal of its own.
    fn run(&self, playbook: &Path) -> impl Fn() -> Command + use<> {
        let (state, playbook) = (self.path("state"), playbook.to_owned());
        move || {
            let _ = std::fs::remove_dir_all(&state);
            std::fs::create_dir(&state).expect("own directory");
            let mut run = quiet(RUNBOOK);
            run.args(["run", "--journal"]).arg(state.join("journal.db")).arg(&playbook).env("XDG_STATE_HOME", &state);
            run
        }
    }
}

/// psql that runs one command, which may be one of its own.
fn psql(database: &Database, command: &str) -> Command {
    let mut psql = quiet("psql");
    psql.args(["--no-psqlrc", "--quiet", "--set=ON_ERROR_STOP=1", database.url(), "-c", command]);
    psql
}

/// A program without a terminal whose output goes nowhere.
fn quiet(program: &str) -> Command {
    let mut command = Command::new(program);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command
}
