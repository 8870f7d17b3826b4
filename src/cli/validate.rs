//! `runbook validate`: says everything that is wrong with playbooks, and nothing else.

use std::io::Write;
use std::path::{Path, PathBuf};

use super::error::findings;
use super::playbook_file::load_playbook;
use super::session::Settings;
use super::{Exit, Failure};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Playbooks
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
}

pub(super) fn run(args: &Args, settings: &Settings) -> Result<Exit, Failure> {
    let mut exit = Exit::Done;
    for file in &args.files {
        let judged = judge(file, settings);
        if exit == Exit::Done {
            exit = judged;
        }
    }
    Ok(exit)
}

/// Says what is wrong with one file; the others are judged all the same.
fn judge(file: &Path, settings: &Settings) -> Exit {
    let loaded = match load_playbook(file) {
        Ok(loaded) => loaded,
        Err(failure) => {
            failure.print(settings);
            return failure.exit();
        }
    };
    if !loaded.diagnostics.is_empty() {
        let text = findings(&loaded.sources, &loaded.diagnostics, settings.color_on_stderr);
        let _ = write!(std::io::stderr(), "{text}");
    }
    if loaded.document.is_none() {
        return Exit::Invalid;
    }
    if !settings.quiet {
        let _ = writeln!(std::io::stdout(), "{}: valid", file.display());
    }
    Exit::Done
}
