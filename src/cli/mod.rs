//! The command line: arguments, the environment, exit codes, and one file per
//! subcommand.
//!
//! Only here is the environment read, and only here are exit codes chosen.

mod approve;
mod doctor;
mod error;
mod exit;
mod journal;
mod journal_file;
mod list;
mod pause;
mod plan;
mod playbook_file;
mod resume;
mod run;
mod schema;
mod session;
mod show;
mod stamp;
mod validate;

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Parser, Subcommand, ValueEnum};

pub use error::Failure;
pub use exit::Exit;

/// Runs playbooks for production databases: checks, changes, backups and gates in
/// dependency order, with a durable checkpoint after every step.
#[derive(Debug, Parser)]
#[command(name = "runbook", version, arg_required_else_help = true, max_term_width = 100, after_help = exit::HELP)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

/// Options of every subcommand.
#[derive(Debug, Clone, clap::Args)]
struct Global {
    /// Journal file [default: $XDG_STATE_HOME/runbook/journal.db]
    #[arg(long, global = true, env = "RUNBOOK_JOURNAL", value_name = "FILE")]
    journal: Option<PathBuf>,
    /// When to use colour
    #[arg(long, global = true, value_enum, default_value_t, value_name = "WHEN")]
    color: ColorChoice,
    /// Say only what went wrong, and the end
    #[arg(long, short, global = true, conflicts_with = "verbose")]
    quiet: bool,
    /// Say more; twice: what the engine does inside
    #[arg(long, short, global = true, action = clap::ArgAction::Count)]
    verbose: u8,
}

#[derive(Debug, Clone, Copy, Default, ValueEnum)]
enum ColorChoice {
    /// On a terminal, unless NO_COLOR is set
    #[default]
    Auto,
    Always,
    Never,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a playbook
    #[command(after_help = exit::HELP)]
    Run(run::Args),
    /// Go on with a run that stands still or whose process died
    #[command(after_help = exit::HELP)]
    Resume(resume::Args),
    /// Show what a run would do, in order; touches nothing
    Plan(plan::Args),
    /// Check playbooks; touches nothing
    Validate(validate::Args),
    /// Look for everything playbooks need: databases, programs, variables, rights, room; changes
    /// nothing
    #[command(after_help = exit::HELP)]
    Doctor(doctor::Args),
    /// Print the JSON Schema of the playbook language, or its reference
    Schema(schema::Args),
    /// List the runs of the journal
    List(list::Args),
    /// Show a run, or one of its steps with its output
    Show(show::Args),
    /// Answer a gate that waits
    Approve(approve::Args),
    /// Ask a run to stand still, from another terminal: what runs may finish, batches stop
    /// after the current one
    Pause(pause::Args),
    /// Look after the journal
    Journal(journal::Args),
    /// Write the environment's name into a target database, or read it
    Stamp(stamp::Args),
    /// Ends what a killed run left behind; started by runbook itself
    #[command(name = "__guard", hide = true)]
    Guard { marker: OsString },
}

/// Parses the arguments, runs the subcommand, prints what went wrong.
pub fn main() -> i32 {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let usage = error.use_stderr();
            let _ = error.print();
            return if usage { Exit::Usage.code() } else { Exit::Done.code() };
        }
    };
    if let Command::Guard { marker } = &cli.command {
        crate::process::guard::watch(marker);
        return Exit::Done.code();
    }
    let settings = session::Settings::new(&cli.global);
    match dispatch(cli.command, &settings) {
        Ok(exit) => exit.code(),
        Err(failure) => {
            failure.print(&settings);
            failure.exit().code()
        }
    }
}

fn dispatch(command: Command, settings: &session::Settings) -> Result<Exit, Failure> {
    match command {
        Command::Validate(args) => validate::run(&args, settings),
        Command::Plan(args) => plan::run(&args, settings),
        Command::Doctor(args) => session::block_on(doctor::run(&args, settings)),
        Command::Schema(args) => schema::run(&args, settings),
        Command::Run(args) => session::block_on(run::run(&args, settings)),
        Command::Resume(args) => session::block_on(resume::run(&args, settings)),
        Command::List(args) => session::block_on(list::run(&args, settings)),
        Command::Show(args) => session::block_on(show::run(&args, settings)),
        Command::Approve(args) => session::block_on(approve::run(&args, settings)),
        Command::Pause(args) => session::block_on(pause::run(&args, settings)),
        Command::Journal(args) => session::block_on(journal::run(&args, settings)),
        Command::Stamp(args) => session::block_on(stamp::run(&args, settings)),
        Command::Guard { .. } => Ok(Exit::Done),
    }
}
