//! `pg_dump`: a backup of a PostgreSQL database, complete or not there at all.
//!
//! Responsible for what is written in a playbook and what a plan shows of it; how the dump
//! is made is `dump`'s business.

mod dump;

use std::num::NonZero;
use std::str::FromStr;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer};

use super::backup::checksum::Shape;
use super::written::shown;
use super::{Class, Description, Inspection, Need, Perform, Prospect, Recovery, StepContext};
use crate::diagnostic::Diagnostic;
use crate::outcome::{StepError, StepResult};
use crate::source::Spanned;
use crate::template::{Place, Setting, Template, Values};
use crate::units::Duration;

/// Dumps a database, or parts of it, with PostgreSQL's own `pg_dump`.
///
/// The file is readable by its owner alone and appears under its name only when it is
/// complete, read back and on disk; an existing file is never overwritten. Beside it stand
/// `FILE.manifest.json` (what is in it: tables with their rows as the dump's own snapshot saw
/// them, sequences, objects, versions, roles, checksum), `FILE.sha256` for `sha256sum -c`, and
/// `FILE.globals.sql` with the roles a new server needs. The client programs of the server's
/// version are looked for in PATH and where distributions put them. The schema `runbook` is
/// left out: what runs have done and where a database belongs is not restored elsewhere.
///
/// ```yaml
/// pg_dump: {file: "backups/{{ run.started_at | date('%Y%m%d_%H%M%S') }}.dump"}
/// pg_dump: {file: "backups/{{ run.id }}", format: directory, jobs: 4, with: [count, fingerprint]}
/// pg_dump: {file: "critical.dump", tables: [companies, loads, fuel_expenses]}
/// ```
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PgDump {
    /// The database. Default: the only connection, or `main`.
    #[serde(default)]
    pub connection: Option<Spanned<String>>,
    /// Where to; relative to where runbook is run. Missing directories are made.
    pub file: Template,
    /// Default: `custom`.
    #[serde(default)]
    pub format: DumpFormat,
    /// How hard to compress: 0 (not at all) to 9, or with `pg_dump` 16 and newer also `lz4` or
    /// `zstd`, as in `zstd:3`. Default: 1, which takes half the time of `pg_dump`'s own
    /// default for a tenth more bytes; nothing for SQL text.
    #[serde(default)]
    pub compression: Option<Spanned<Compression>>,
    /// Only these tables; names or `pg_dump`'s patterns.
    #[serde(default)]
    pub tables: Vec<Template>,
    /// Only these schemas; names or `pg_dump`'s patterns.
    #[serde(default)]
    pub schemas: Vec<Template>,
    /// Not these tables.
    #[serde(default)]
    pub exclude_tables: Vec<Template>,
    /// Not these schemas.
    #[serde(default)]
    pub exclude_schemas: Vec<Template>,
    /// Of these tables only the definition, not the rows.
    #[serde(default)]
    pub exclude_rows: Vec<Template>,
    /// Whether large objects are dumped too. Default: only with the whole database.
    #[serde(default)]
    pub large_objects: Option<bool>,
    /// How many tables to dump side by side; `format: directory` only. Default there: one for
    /// each processor, at most 4.
    #[serde(default)]
    #[schemars(with = "Option<u32>", range(min = 1, max = 64))]
    pub jobs: Option<Spanned<u32>>,
    /// How the dump is checked before it counts. Default: `archive`.
    #[serde(default)]
    pub verify: DumpCheck,
    /// Whether to write `FILE.manifest.json` and `FILE.sha256`. Default: true.
    #[serde(default = "yes")]
    pub manifest: bool,
    /// What the manifest keeps of each table, all of the moment of the dump. A fingerprint
    /// reads every row once more. Default: `[count]`.
    #[serde(default = "counts")]
    pub with: Vec<Kept>,
    /// Whether to write the server's roles to `FILE.globals.sql`, without passwords. Default:
    /// with the whole database.
    #[serde(default)]
    pub globals: Option<bool>,
    /// The longest `pg_dump` waits for a table that somebody has locked. Default: 60s.
    #[serde(default)]
    pub lock_wait_timeout: Option<Setting<Duration>>,
    /// Whether to refuse where the disk seems too small: less free than an eighth of the
    /// tables, or half of them for SQL text and tar. Default: true.
    #[serde(default = "yes")]
    pub check_space: bool,
}

/// The formats of `pg_dump`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum DumpFormat {
    /// One compressed file for `pg_restore`.
    #[default]
    Custom,
    /// A directory with a file per table for `pg_restore`, written by `jobs` connections.
    Directory,
    /// One file for `pg_restore`, readable by `tar`.
    Tar,
    /// SQL text for `psql`.
    Plain,
}

/// How a dump is checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum DumpCheck {
    /// Its checksum is taken; SQL text must end as `pg_dump` ends it.
    Checksum,
    /// `pg_restore` also reads it to its end.
    #[default]
    Archive,
}

/// What a manifest keeps of a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Kept {
    /// The number of rows.
    Count,
    /// A hash over the contents of all rows.
    Fingerprint,
}

/// `0` to `9`, or a method with a level, as `pg_dump --compress` takes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Compression(String);

impl FromStr for Compression {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let (method, level) = text.split_once(':').map_or((text, None), |(method, level)| (method, Some(level)));
        let is_level = |most: u8| level.is_none_or(|level| level.parse::<u8>().is_ok_and(|level| level <= most));
        let known = match method {
            "gzip" => is_level(9),
            "lz4" => is_level(12),
            "zstd" => is_level(22),
            "none" => level.is_none(),
            number => level.is_none() && number.len() == 1 && number.bytes().all(|digit| digit.is_ascii_digit()),
        };
        known
            .then(|| Self(text.to_owned()))
            .ok_or_else(|| format!("`{text}` is not 0 to 9, none, gzip, lz4 or zstd, or such a method with its level, as zstd:3"))
    }
}

impl<'de> Deserialize<'de> for Compression {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Written {
            Level(u8),
            Text(String),
        }
        let text = match Written::deserialize(deserializer)? {
            Written::Level(level) => level.to_string(),
            Written::Text(text) => text,
        };
        text.parse().map_err(serde::de::Error::custom)
    }
}

impl JsonSchema for Compression {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Compression".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "anyOf": [
            { "type": "integer", "minimum": 0, "maximum": 9 },
            { "type": "string", "pattern": "^([0-9]|none|(gzip|lz4|zstd)(:[0-9]{1,2})?)$" },
        ] })
    }
}

fn yes() -> bool {
    true
}

fn counts() -> Vec<Kept> {
    vec![Kept::Count]
}

impl Perform for PgDump {
    fn class(&self) -> Class {
        Class::Change
    }

    /// A dump that did not get its name is no dump.
    fn recovery(&self) -> Recovery {
        Recovery::Repeat
    }

    fn inspect<'a>(&'a self, inspection: &mut Inspection<'a>) {
        inspection.connection(self.connection.as_ref());
        for template in [&self.file].into_iter().chain(self.selections().flat_map(|(_, templates)| templates)) {
            inspection.template(template, Place::Argument);
        }
        if let Some(timeout) = &self.lock_wait_timeout {
            inspection.setting(timeout);
        }
        self.inspect_format(inspection);
    }

    fn describe(&self, values: &Values) -> Description {
        let list = |templates: &[Template]| templates.iter().map(|template| shown(template, values)).collect::<Vec<_>>().join(", ");
        let mut details = vec![format!(
            "format {}{}",
            self.format.name(),
            self.compress().map(|level| format!(", compression {level}")).unwrap_or_default()
        )];
        details.extend(
            self.selections().filter(|(_, templates)| !templates.is_empty()).map(|(what, templates)| format!("{what} {}", list(templates))),
        );
        if let Some(jobs) = self.connections() {
            details.push(format!("{jobs} connections"));
        }
        if self.verify == DumpCheck::Archive && self.format != DumpFormat::Plain {
            details.push("read to its end afterwards".into());
        }
        if self.manifest {
            let kept = if self.with.contains(&Kept::Fingerprint) { "rows and fingerprint of each table" } else { "rows of each table" };
            details.push(format!("beside it {}", if self.with.is_empty() { "what is in it" } else { kept }));
        }
        let from = self.connection.as_ref().map_or_else(String::new, |name| format!(" {}", name.value));
        Description { summary: format!("dump{from} to {}", shown(&self.file, values)), details }
    }

    async fn needs(&self, prospect: &Prospect<'_>) -> Vec<Need> {
        let Some(connection) = prospect.connection(self.connection.as_ref()) else { return Vec::new() };
        let mut needs = vec![Need::ClientProgram { name: "pg_dump", connection: connection.clone() }];
        if self.format != DumpFormat::Plain {
            needs.push(Need::ClientProgram { name: "pg_restore", connection: connection.clone() });
        }
        needs.push(match prospect.path("dump", &self.file) {
            Ok(path) => Need::Writable { what: "dump", path, replaces: false, as_large_as: Some(connection) },
            Err(unknown) => unknown,
        });
        needs
    }

    async fn run(&self, context: &StepContext) -> Result<StepResult, StepError> {
        let location = context.sources.location(self.file.text.span);
        dump::dump(self, context).await.map_err(|error| error.at(location))
    }
}

impl PgDump {
    /// What is chosen and left out, in words.
    fn selections(&self) -> impl Iterator<Item = (&'static str, &Vec<Template>)> {
        [
            ("tables", &self.tables),
            ("schemas", &self.schemas),
            ("not tables", &self.exclude_tables),
            ("not schemas", &self.exclude_schemas),
            ("not the rows of", &self.exclude_rows),
        ]
        .into_iter()
    }

    /// Whether nothing of the database is left out.
    fn is_whole(&self) -> bool {
        self.selections().all(|(_, templates)| templates.is_empty()) && self.large_objects != Some(false)
    }

    fn compress(&self) -> Option<&str> {
        match (&self.compression, self.format) {
            (Some(compression), _) => Some(&compression.value.0),
            (None, DumpFormat::Custom | DumpFormat::Directory) => Some("1"),
            (None, DumpFormat::Plain | DumpFormat::Tar) => None,
        }
    }

    fn connections(&self) -> Option<u32> {
        let processors = || std::thread::available_parallelism().map_or(1, NonZero::get).min(4);
        let jobs = || self.jobs.as_ref().map_or_else(|| processors() as u32, |jobs| jobs.value);
        (self.format == DumpFormat::Directory).then(jobs)
    }

    fn inspect_format(&self, inspection: &mut Inspection<'_>) {
        if let Some(jobs) = &self.jobs
            && (self.format != DumpFormat::Directory || !(1..=64).contains(&jobs.value))
        {
            inspection.diagnostics.push(
                Diagnostic::error("jobs", jobs.span, "`jobs` is a number from 1 to 64, and only for `format: directory`")
                    .help("the other formats are written by one connection"),
            );
        }
        if let Some(compression) = &self.compression
            && matches!(self.format, DumpFormat::Tar | DumpFormat::Plain)
        {
            inspection.diagnostics.push(
                Diagnostic::error("compression", compression.span, "`compression` is for `format: custom` and `directory`")
                    .help("a tar archive can't be compressed inside, and SQL text is to be read by anybody"),
            );
        }
    }
}

impl DumpFormat {
    fn name(self) -> &'static str {
        match self {
            Self::Custom => "custom",
            Self::Directory => "directory",
            Self::Tar => "tar",
            Self::Plain => "plain",
        }
    }

    fn shape(self) -> Shape {
        if self == Self::Directory { Shape::Directory } else { Shape::File }
    }
}

#[cfg(test)]
mod tests;
