//! The records that were not loaded: their file, and the first of them for the report.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use serde_json::json;

use super::check::Problem;
use super::records::Record;
use crate::outcome::Sample;
use crate::secret::Redactor;

/// Rejected records shown with the step.
const SHOWN: usize = 20;
/// Of a record shown with the step; the file has more.
const SHOWN_CHARACTERS: usize = 120;

/// Receives every rejected record. Without [`Rejects::publish`] nothing is left of the file.
#[derive(Debug)]
pub(super) struct Rejects {
    file: Option<(PathBuf, PathBuf, BufWriter<File>)>,
    redactor: Redactor,
    first: Vec<Vec<serde_json::Value>>,
    /// Records rejected.
    pub(super) count: u64,
}

impl Rejects {
    pub(super) fn new(file: Option<&Path>, redactor: Redactor) -> io::Result<Self> {
        let file = match file {
            Some(target) => {
                if let Some(directory) = target.parent() {
                    fs::create_dir_all(directory)?;
                }
                let mut name = target.file_name().unwrap_or_default().to_owned();
                name.push(".partial");
                let partial = target.with_file_name(name);
                // A leftover of a killed run is not written into: somebody may read it.
                let _ = fs::remove_file(&partial);
                let opened = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&partial)?;
                opened.set_permissions(Permissions::from_mode(0o600))?;
                let mut writer = BufWriter::new(opened);
                writer.write_all(b"line,column,reason,raw\n")?;
                Some((target.to_owned(), partial, writer))
            }
            None => None,
        };
        Ok(Self { file, redactor, first: Vec::new(), count: 0 })
    }

    /// Adds a record.
    pub(super) fn add(&mut self, record: &Record, problems: &[Problem]) -> io::Result<()> {
        self.count += 1;
        if self.file.is_none() && self.first.len() >= SHOWN {
            return Ok(());
        }
        let columns = joined(problems.iter().map(|problem| problem.column.as_str()));
        let reasons = joined(problems.iter().map(|problem| problem.reason.as_str()));
        let raw = record.shown();
        let raw = self.redactor.text(&raw);
        if self.first.len() < SHOWN {
            let short: String = raw.chars().take(SHOWN_CHARACTERS).collect();
            let short = if short.len() < raw.len() { format!("{short}…") } else { short };
            self.first.push(vec![json!(record.line), json!(columns), json!(reasons), json!(short)]);
        }
        if let Some((_, _, writer)) = &mut self.file {
            writeln!(writer, "{},{},{},{}", record.line, quoted(&columns), quoted(&reasons), quoted(&raw))?;
        }
        Ok(())
    }

    /// Gives the file its name, once it is whole and on disk.
    pub(super) fn publish(&mut self) -> io::Result<Option<PathBuf>> {
        let Some((target, partial, mut writer)) = self.file.take() else { return Ok(None) };
        writer.flush()?;
        writer.get_ref().sync_all()?;
        fs::rename(&partial, &target)?;
        if let Some(directory) = target.parent().filter(|directory| !directory.as_os_str().is_empty()) {
            File::open(directory)?.sync_all()?;
        }
        Ok(Some(target))
    }

    /// The first of them.
    pub(super) fn sample(&self) -> Option<Sample> {
        let columns = ["line", "column", "reason", "raw"].map(ToOwned::to_owned).to_vec();
        (self.count > 0).then(|| Sample { columns, rows: self.first.clone(), total: self.count })
    }
}

impl Drop for Rejects {
    fn drop(&mut self) {
        if let Some((_, partial, _)) = &self.file {
            let _ = fs::remove_file(partial);
        }
    }
}

fn joined<'a>(parts: impl Iterator<Item = &'a str>) -> String {
    parts.collect::<Vec<_>>().join("; ")
}

/// A field of a CSV file.
fn quoted(text: &str) -> String {
    if text.contains(['"', ',', '\n', '\r']) { format!("\"{}\"", text.replace('"', "\"\"")) } else { text.to_owned() }
}
