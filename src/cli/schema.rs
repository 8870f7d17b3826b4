//! `runbook schema`: the language for editors and readers.

use std::io::Write;

use super::session::Settings;
use super::{Exit, Failure};
use crate::playbook::schema;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The reference for people, as Markdown, instead of the JSON Schema
    #[arg(long)]
    reference: bool,
}

pub(super) fn run(args: &Args, _settings: &Settings) -> Result<Exit, Failure> {
    let text = if args.reference { schema::reference() } else { schema::json_schema() };
    let _ = write!(std::io::stdout(), "{text}");
    Ok(Exit::Done)
}
