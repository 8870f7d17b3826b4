//! `runbook show`: a run with all its steps, or one step with all that is known of it.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};

use super::journal_file::find_run;
use super::list::load;
use super::session::Settings;
use super::{Exit, Failure};
use crate::clock::Clock;
use crate::output::printable;
use crate::report::{History, style_for_stdout};
use crate::text::{Ink, Line, draw};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The run's id, or a unique part of it
    #[arg(value_name = "RUN")]
    run: String,
    /// A step's id: its attempts, result and whole output
    #[arg(value_name = "STEP")]
    step: Option<String>,
    /// As JSON
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(args: &Args, settings: &Settings) -> Result<Exit, Failure> {
    let mut journal = settings.open_journal(&Clock::real()).await?;
    let run = find_run(&mut journal, &args.run).await?;
    let history = load(&mut journal, &run).await?;
    let outputs = journal.directory().join("output").join(&run);
    let mut out = std::io::BufWriter::new(std::io::stdout().lock());
    let shown = match (&args.step, args.json) {
        (None, false) => show_run(&history, settings, &mut out),
        (None, true) => write_json(&history.json(), &mut out),
        (Some(step), true) => {
            write_json(&with_outputs(history.step_json(step).ok_or_else(|| unknown_step(&history, step))?, &outputs, step), &mut out)
        }
        (Some(step), false) => show_step(&history, step, &outputs, settings, &mut out)?,
    };
    // A reader that has seen enough closes the pipe; that is no error.
    let _ = shown.and_then(|()| out.flush());
    Ok(Exit::Done)
}

fn show_run(history: &History, settings: &Settings, out: &mut impl Write) -> std::io::Result<()> {
    let style = style_for_stdout(settings.color_on_stdout);
    out.write_all(draw(&history.draw(&settings.command(), style), style).as_bytes())
}

fn show_step(
    history: &History,
    step: &str,
    outputs: &Path,
    settings: &Settings,
    out: &mut impl Write,
) -> Result<std::io::Result<()>, Failure> {
    let style = style_for_stdout(settings.color_on_stdout);
    let lines = history.draw_step(step, &settings.command(), style).ok_or_else(|| unknown_step(history, step))?;
    let written = out.write_all(draw(&lines, style).as_bytes()).and_then(|()| {
        output_files(outputs, step).into_iter().try_for_each(|(attempt, path)| {
            let heading =
                Line::new().then(Ink::Strong, format!("output of attempt {attempt}")).then(Ink::Dim, format!("  {}", path.display()));
            out.write_all(draw(&[Line::new(), heading], style).as_bytes())?;
            copy_printable(&path, out)
        })
    });
    Ok(written)
}

fn unknown_step(history: &History, step: &str) -> Failure {
    let steps = history.steps();
    let failure = Failure::usage(format!("run {} has no step `{step}`", history.run));
    match crate::diagnostic::did_you_mean(step, steps.iter().map(String::as_str)) {
        Some(meant) => failure.hint(format!("did you mean `{meant}`?")),
        None => failure.hint(format!("`runbook show {}` lists its steps", history.run)),
    }
}

fn write_json(value: &serde_json::Value, out: &mut impl Write) -> std::io::Result<()> {
    serde_json::to_writer_pretty(&mut *out, value)?;
    writeln!(out)
}

fn with_outputs(mut value: serde_json::Value, outputs: &Path, step: &str) -> serde_json::Value {
    let files = output_files(outputs, step);
    value["output"] = files.into_iter().map(|(attempt, path)| serde_json::json!({ "attempt": attempt, "file": path })).collect();
    value
}

/// Attempts with output, the first one first.
fn output_files(directory: &Path, step: &str) -> Vec<(u32, PathBuf)> {
    let prefix = format!("{}.", step.replace('/', "."));
    let names = std::fs::read_dir(directory).into_iter().flatten().flatten().filter_map(|entry| {
        let attempt = entry.file_name().to_str()?.strip_prefix(&prefix)?.strip_suffix(".log")?.parse().ok()?;
        Some((attempt, entry.path()))
    });
    let mut files: Vec<(u32, PathBuf)> = names.collect();
    files.sort();
    files
}

/// Line by line: an output may be large, and nothing in it may act on the terminal.
fn copy_printable(path: &Path, out: &mut impl Write) -> std::io::Result<()> {
    let mut file = match std::fs::File::open(path) {
        Ok(file) => BufReader::new(file),
        Err(error) => return writeln!(out, "  cannot be read: {error}"),
    };
    let mut line = Vec::new();
    while file.read_until(b'\n', &mut line)? > 0 {
        let text = String::from_utf8_lossy(&line);
        let text = text.strip_suffix('\n').unwrap_or(&text);
        writeln!(out, "{}", printable(text.strip_suffix('\r').unwrap_or(text)))?;
        line.clear();
    }
    Ok(())
}
