//! What is known of a complete backup: `NAME.manifest.json` beside it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What a manifest's name ends with.
pub const MANIFEST: &str = ".manifest.json";
/// What the name of the file ends with that `sha256sum -c` reads.
pub const CHECKSUM: &str = ".sha256";
/// What the name of the file ends with that tells how a backup was proven.
pub const VERIFIED: &str = ".verified.json";
/// What the name of the file ends with that holds the roles and their settings.
pub const GLOBALS: &str = ".globals.sql";

/// The content of a manifest. What a backup does not have is empty.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Manifest {
    /// Of this format; 1.
    pub version: u32,
    pub file: String,
    /// `custom`, `directory`, `tar` or `plain` of `pg_dump`, or `sqlite`.
    pub format: String,
    pub size: u64,
    /// Of the file; of a directory, of the lines `sha256sum *` gives for its files.
    pub sha256: String,
    pub run: String,
    pub step: String,
    pub created_at: Timestamp,
    /// From the first connection to the last byte.
    pub seconds: f64,
    pub source: Source,
    /// The program that wrote it, with its version.
    pub program: String,
    /// Whether it is the whole database.
    pub whole: bool,
    /// Tables whose rows are in it, with what the snapshot shared with the dump saw; `None`: not counted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tables: Option<Vec<TableContent>>,
    /// Large objects in it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub large_objects: Option<u64>,
    /// Each sequence's `setval` in it, by name.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub sequences: BTreeMap<String, SequenceValue>,
    /// How many objects of each type it creates, in `pg_restore --list`'s words.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub objects: BTreeMap<String, u64>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub extensions: BTreeMap<String, String>,
    /// Roles that a server must have to take all of it.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub roles: BTreeSet<String>,
    /// Foreign keys that point to tables it does not hold.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub open_references: Vec<OpenReference>,
    /// Checksum of `NAME.globals.sql`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub globals_sha256: Option<String>,
    /// What the dumping program warned of.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub warnings: Vec<String>,
}

/// The database a backup was made of.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Source {
    pub database: String,
    pub host: String,
    pub server_version: String,
    pub major_version: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub system_identifier: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub environment: Option<String>,
    /// How `CREATE DATABASE` is told to make one like it.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub locale: BTreeMap<String, String>,
    /// The exported snapshot that dump and counts share.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub snapshot: Option<String>,
}

/// The rows of one table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableContent {
    /// As SQL writes it, with its schema.
    pub table: String,
    pub rows: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fingerprint: Option<String>,
}

/// A sequence's state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct SequenceValue {
    pub value: i64,
    /// Whether `value` was given out already.
    pub called: bool,
}

/// A foreign key whose target is not in the backup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OpenReference {
    pub constraint: String,
    pub table: String,
    pub references: String,
}

/// How far a proof of a backup goes; each includes the ones before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// It is the file that was written.
    Checksum,
    /// It can be read to its end and holds what the manifest says.
    #[default]
    Archive,
    /// It was restored.
    Restore,
}

impl Level {
    /// As it is written.
    pub fn name(self) -> &'static str {
        match self {
            Self::Checksum => "checksum",
            Self::Archive => "archive",
            Self::Restore => "restore",
        }
    }
}

/// How a backup was proven: `NAME.verified.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Verified {
    /// Of this format; 1.
    pub version: u32,
    /// Of the backup that was proven.
    pub sha256: String,
    pub level: Level,
    pub verified_at: Timestamp,
    pub run: String,
    pub step: String,
    /// How long restoring it took.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restore_seconds: Option<f64>,
}

impl Verified {
    /// The record beside `backup`; one that can't be read proves nothing.
    pub fn read(backup: &Path) -> Option<Self> {
        serde_json::from_slice(&std::fs::read(beside(backup, VERIFIED)).ok()?).ok()
    }

    /// Writes it beside `backup`, to stay.
    pub fn write(&self, backup: &Path) -> io::Result<()> {
        write_private(&beside(backup, VERIFIED), &(serde_json::to_string_pretty(self)? + "\n"))
    }
}

impl Manifest {
    /// The manifest beside `backup`; `None`: there is none.
    pub fn read(backup: &Path) -> io::Result<Option<Self>> {
        match std::fs::read(beside(backup, MANIFEST)) {
            Ok(text) => Ok(Some(serde_json::from_slice(&text)?)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Writes it beside `backup`, to stay.
    pub fn write(&self, backup: &Path) -> io::Result<()> {
        write_private(&beside(backup, MANIFEST), &(serde_json::to_string_pretty(self)? + "\n"))
    }

    /// All rows of all tables, where they were counted.
    pub fn rows(&self) -> Option<u64> {
        Some(self.tables.as_ref()?.iter().map(|table| table.rows).sum())
    }
}

/// The schema and the name of a table written as SQL writes it, both still as SQL writes them.
pub fn schema_and_name(table: &str) -> (&str, &str) {
    let mut quoted = false;
    let dot = table.find(|letter| {
        quoted ^= letter == '"';
        letter == '.' && !quoted
    });
    dot.map_or(("", table), |dot| (&table[..dot], &table[dot + 1..]))
}

/// A name without SQL's quotes.
pub fn unquoted(name: &str) -> String {
    let inside = name.strip_prefix('"').and_then(|name| name.strip_suffix('"'));
    inside.map_or_else(|| name.to_owned(), |name| name.replace("\"\"", "\""))
}

/// `NAME` and an ending, e.g. [`MANIFEST`].
pub fn beside(backup: &Path, ending: &str) -> PathBuf {
    let mut name = backup.as_os_str().to_owned();
    name.push(ending);
    name.into()
}

/// Writes a small file for its owner's eyes, and waits until it is on disk.
pub fn write_private(path: &Path, text: &str) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_taken_apart_as_sql_writes_them() {
        let parts = |table| {
            let (schema, name) = schema_and_name(table);
            (unquoted(schema), unquoted(name))
        };
        assert_eq!(parts("public.racks"), ("public".into(), "racks".into()));
        assert_eq!(parts(r#""a.b"."it""s""#), ("a.b".into(), "it\"s".into()));
    }
}
