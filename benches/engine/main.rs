//! What the engine costs, each scenario against a baseline in the same run.
//!
//! `cargo bench` runs all scenarios, `cargo bench -- plan` those with `plan` in their
//! name. Subject and baseline take turns (A B A B …), so that a slow minute of the
//! machine hits both; medians and their ratio are printed. A missed goal is shown, not an
//! error: timings are for people to judge.

#![allow(clippy::print_stdout, clippy::unwrap_used, missing_docs, reason = "a program for developers that speaks by printing")]

mod inputs;
mod measure;
#[allow(dead_code, reason = "shared with the tests, which use more of it")]
#[path = "../../tests/cli/postgres.rs"]
mod postgres;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use measure::{Contest, Goal};
use tempfile::TempDir;

const RUNBOOK: &str = env!("CARGO_BIN_EXE_runbook");

/// A scenario's name and how it is run.
type Scenario = (&'static str, fn(&Workshop) -> Contest);

const SCENARIOS: [Scenario; 8] = [
    ("version", version),
    ("plan-100", |workshop| plan(workshop, 100, Goal::at_most(3.0))),
    ("plan-10000", |workshop| plan(workshop, 10_000, Goal::at_most(1.5).and_megabytes(400))),
    ("plan-100000", |workshop| plan(workshop, 100_000, Goal::at_most(1.5).and_megabytes(400))),
    ("plan-chain-10000", |workshop| plan_chain(workshop, 10_000)),
    ("chain-shell", chain_of_shell_steps),
    ("chain-sql", chain_of_sql_steps),
    ("output", a_gigabyte_of_output),
];

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if measure::is_memory_probe(&arguments) {
        measure::probe_memory(&arguments);
    }
    let wanted: Vec<&String> = arguments.iter().filter(|argument| !argument.starts_with("--")).collect();
    let workshop = Workshop::new();
    println!("{}", measure::HEADING);
    for (name, scenario) in SCENARIOS {
        if wanted.is_empty() || wanted.iter().any(|part| name.contains(part.as_str())) {
            println!("{}", scenario(&workshop).hold(name));
        }
    }
}

/// Starting up: `--version` against `just --version`.
fn version(_: &Workshop) -> Contest {
    Contest {
        rounds: 61,
        goal: Goal::at_most(3.0),
        subject: Box::new(|| command(RUNBOOK, ["--version"])),
        evidence: concat!("runbook ", env!("CARGO_PKG_VERSION")).into(),
        baseline: just().map(|just| measure::program(move || command(&just, ["--version"]))),
    }
}

/// Reading, checking and planning a graph against `just -n` on the same graph.
fn plan(workshop: &Workshop, steps: usize, goal: Goal) -> Contest {
    let playbook = workshop.write("plan.yaml", &inputs::layered_playbook(steps));
    let justfile = workshop.write("justfile", &inputs::layered_justfile(steps));
    Contest {
        rounds: if steps > 10_000 { 7 } else { 21 },
        goal,
        subject: Box::new(move || command(RUNBOOK, [Path::new("plan"), &playbook])),
        evidence: format!("s{}", steps - 1),
        baseline: just()
            .map(|just| measure::program(move || command(&just, [Path::new("-n"), Path::new("-f"), &justfile, Path::new("all")]))),
    }
}

/// The same number of steps, each waiting for the one above it: depth must not cost more than breadth.
fn plan_chain(workshop: &Workshop, steps: usize) -> Contest {
    let chain = workshop.write("chain.yaml", &inputs::chained_playbook(steps, "shell: {run: 'true'}"));
    let layers = workshop.write("layers.yaml", &inputs::layered_playbook(steps));
    Contest {
        rounds: 11,
        goal: Goal::at_most(1.5),
        subject: Box::new(move || command(RUNBOOK, [Path::new("plan"), &chain])),
        evidence: format!("s{}", steps - 1),
        baseline: Ok(measure::program(move || command(RUNBOOK, [Path::new("plan"), &layers]))),
    }
}

/// 1,000 chained steps with durable checkpoints against a bare loop over `sh -c true`.
fn chain_of_shell_steps(workshop: &Workshop) -> Contest {
    const STEPS: usize = 1_000;
    let playbook = workshop.write("shell.yaml", &inputs::chained_playbook(STEPS, "shell: {run: 'true'}"));
    Contest {
        rounds: 9,
        goal: Goal::at_most(1.5),
        subject: Box::new(workshop.run_with_new_journal(playbook)),
        evidence: format!("s{}", STEPS - 1),
        baseline: Ok(Box::new(|| {
            for _ in 0..STEPS {
                assert!(command("sh", ["-c", "true"]).status().expect("sh starts").success());
            }
        })),
    }
}

/// 1,000 chained assertions against one `psql -f` of the same statements.
fn chain_of_sql_steps(workshop: &Workshop) -> Contest {
    const STEPS: usize = 1_000;
    let database = postgres::database();
    let header = format!("connections: {{main: {{url: '{}'}}}}\n", database.url());
    let chain = inputs::chained_playbook(STEPS, "sql: {query: SELECT 1, expect: {value: 1}}");
    let playbook = workshop.write("sql.yaml", &chain.replace("steps:\n", &format!("{header}steps:\n")));
    let script = workshop.write("sql.sql", &"SELECT 1;\n".repeat(STEPS));
    Contest {
        rounds: 9,
        goal: Goal::at_most(5.0),
        subject: Box::new(workshop.run_with_new_journal(playbook)),
        evidence: format!("s{}", STEPS - 1),
        baseline: Ok(measure::program(move || {
            let mut psql = command("psql", ["--no-psqlrc", "--quiet", database.url(), "-f"]);
            psql.arg(&script);
            psql
        })),
    }
}

/// A step that prints 1 GB of lines against the same lines through `cat` into a file.
fn a_gigabyte_of_output(workshop: &Workshop) -> Contest {
    const EMIT: &str = "yes 'INFO 12:00:00 one line of a chatty program, about as long as they are' | head -c 1000000000";
    let playbook = workshop.write("output.yaml", &inputs::chained_playbook(1, &format!("shell: {{run: \"{EMIT}\"}}")));
    let sink = workshop.path("sink");
    Contest {
        rounds: 5,
        goal: Goal::at_most(2.0).and_megabytes(50),
        subject: Box::new(workshop.run_with_new_journal(playbook)),
        evidence: "s0".into(),
        baseline: Ok(measure::program(move || {
            let mut shell = command("sh", ["-c", &format!("{EMIT} | cat")]);
            shell.stdout(File::create(&sink).expect("own directory"));
            shell
        })),
    }
}

/// The directory that holds all inputs and journals.
struct Workshop(TempDir);

impl Workshop {
    fn new() -> Self {
        Self(TempDir::with_prefix("runbook-bench").expect("a temporary directory"))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path(name);
        std::fs::write(&path, text).expect("own directory");
        path
    }

    /// `runbook run`, each time with a journal of its own, so that the last round finds what the first found.
    fn run_with_new_journal(&self, playbook: PathBuf) -> impl Fn() -> Command + use<> {
        let state = self.path("state");
        move || {
            let _ = std::fs::remove_dir_all(&state);
            std::fs::create_dir(&state).expect("own directory");
            let mut run = command(RUNBOOK, ["run", "--journal"]);
            run.arg(state.join("journal.db")).arg(&playbook).env("XDG_STATE_HOME", &state);
            run
        }
    }
}

/// A program without a terminal whose output goes nowhere.
fn command<A: AsRef<std::ffi::OsStr>>(program: impl AsRef<std::ffi::OsStr>, arguments: impl IntoIterator<Item = A>) -> Command {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command
}

/// The other runner's program, or why it can't be compared with.
fn just() -> Result<PathBuf, String> {
    let directories = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&directories).map(|directory| directory.join("just")).find(|path| path.is_file());
    found.ok_or_else(|| "just is not on PATH: cargo install just".into())
}
