//! `pg_dump`: a backup of a PostgreSQL database, complete or not there at all.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration as Time;

use nix::sys::memfd::{MFdFlags, memfd_create};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::json;

use super::backup_file::{BackupError, Manifest, Partial, Shape, completed};
use super::shell::not_followed;
use super::written::{short, shown};
use super::{Class, Description, Inspection, Perform, Recovery, StepContext};
use crate::diagnostic::Diagnostic;
use crate::outcome::{ErrorKind, StepError, StepResult};
use crate::output::printable;
use crate::process::{Command, Ended, Exit, GRACE, Program};
use crate::secret::Secret;
use crate::source::Spanned;
use crate::target::LibpqEnvironment;
use crate::template::{Place, Template, Values};
use crate::units::ByteSize;

/// Dumps a database, or parts of it, with PostgreSQL's own `pg_dump`.
///
/// The file is readable by its owner alone and appears under its name only when it is
/// complete and on disk; an existing file is never overwritten. `FILE.manifest.json` keeps
/// size, checksum and origin. `pg_dump` must not be older than the server.
///
/// ```yaml
/// pg_dump: {file: "backups/{{ run.started_at | date('%Y%m%d_%H%M%S') }}.dump", format: custom, verify: archive}
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
    /// Only these tables; names or `pg_dump`'s patterns.
    #[serde(default)]
    pub tables: Vec<Template>,
    /// Only these schemas; names or `pg_dump`'s patterns.
    #[serde(default)]
    pub schemas: Vec<Template>,
    /// How many tables to dump side by side; `format: directory` only.
    #[serde(default)]
    #[schemars(with = "Option<u32>", range(min = 1, max = 64))]
    pub jobs: Option<Spanned<u32>>,
    /// How the dump is checked before it counts. Default: `checksum`.
    #[serde(default)]
    pub verify: DumpCheck,
    /// Whether to write `FILE.manifest.json`. Default: true.
    #[serde(default = "yes")]
    pub manifest: bool,
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
    /// SQL text for `psql`.
    Plain,
}

/// How a dump is checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum DumpCheck {
    /// Its checksum is taken; SQL text must end as `pg_dump` ends it.
    #[default]
    Checksum,
    /// `pg_restore` also reads it to its end.
    Archive,
}

fn yes() -> bool {
    true
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
        for template in [&self.file].into_iter().chain(&self.tables).chain(&self.schemas) {
            inspection.template(template, Place::Argument);
        }
        if let Some(jobs) = &self.jobs
            && (self.format != DumpFormat::Directory || !(1..=64).contains(&jobs.value))
        {
            inspection.diagnostics.push(
                Diagnostic::error("jobs", jobs.span, "`jobs` is a number from 1 to 64, and only for `format: directory`")
                    .help("the other formats are written by one connection"),
            );
        }
    }

    fn describe(&self, values: &Values) -> Description {
        let list = |templates: &[Template]| templates.iter().map(|template| shown(template, values)).collect::<Vec<_>>().join(", ");
        let mut details = vec![format!("format {}", self.format.name())];
        if !self.tables.is_empty() {
            details.push(format!("tables {}", list(&self.tables)));
        }
        if !self.schemas.is_empty() {
            details.push(format!("schemas {}", list(&self.schemas)));
        }
        if let Some(jobs) = &self.jobs {
            details.push(format!("{} connections", jobs.value));
        }
        if self.verify == DumpCheck::Archive {
            details.push("read to its end afterwards".into());
        }
        let from = self.connection.as_ref().map_or_else(String::new, |name| format!(" {}", name.value));
        Description { summary: format!("dump{from} to {}", shown(&self.file, values)), details }
    }

    async fn run(&self, context: &StepContext) -> Result<StepResult, StepError> {
        let location = context.sources.location(self.file.text.span);
        self.dump(context).await.map_err(|error| error.at(location))
    }
}

impl PgDump {
    async fn dump(&self, context: &StepContext) -> Result<StepResult, StepError> {
        let file = self.target(context)?;
        let shape = self.format.shape();
        if context.uncertain
            && let Some(manifest) = completed(&file, shape, &context.run, &context.step)
        {
            return Ok(result(&file, &manifest, Vec::new()));
        }
        let connection = context.connection(self.connection.as_ref().map(|name| name.value.as_str()))?;
        let access = context.targets.libpq_environment(connection, &context.step)?.ok_or_else(|| {
            StepError::new(ErrorKind::Connection, format!("`{connection}` is an SQLite database, and pg_dump is PostgreSQL's"))
                .hint("copy an SQLite database with `VACUUM INTO 'file'` in a `sql` step")
        })?;
        let access = Access::new(access)?;
        let partial = Partial::create(&file, shape).map_err(|error| not_written(&error))?;
        let ended = self.watch(context, access.command(self.argv(&partial, &context.values)?, &context.directory), &partial).await?;
        succeeded("pg_dump", &ended)?;
        self.check(context, &access, &partial).await?;
        let manifest = self.publish(context, &access, partial, file.clone()).await?;
        Ok(result(&file, &manifest, warnings(&ended.captured.stderr)))
    }

    fn target(&self, context: &StepContext) -> Result<PathBuf, StepError> {
        let file = context.directory.join(context.values.text(&self.file)?);
        std::path::absolute(&file)
            .map_err(|error| StepError::new(ErrorKind::Io, format!("`{}` is not a file name: {error}", file.display())))
    }

    fn argv(&self, partial: &Partial, values: &Values) -> Result<Vec<String>, StepError> {
        let path = partial.path().to_str().ok_or_else(|| StepError::new(ErrorKind::Io, "a backup's file name must be UTF-8"))?;
        let mut argv = vec!["pg_dump".into(), "--no-password".into(), format!("--format={}", self.format.name()), format!("--file={path}")];
        if let Some(jobs) = &self.jobs {
            argv.push(format!("--jobs={}", jobs.value));
        }
        for schema in &self.schemas {
            argv.push(format!("--schema={}", values.text(schema)?));
        }
        for table in &self.tables {
            argv.push(format!("--table={}", values.text(table)?));
        }
        if !(self.schemas.is_empty() && self.tables.is_empty()) {
            // A table that is not there must not be missing from the backup unnoticed.
            argv.push("--strict-names".into());
        }
        Ok(argv)
    }

    /// Runs it and shows how much is written.
    async fn watch(&self, context: &StepContext, command: Command, partial: &Partial) -> Result<Ended, StepError> {
        let ended = context.processes.run(command, &context.output, &context.cancel);
        tokio::pin!(ended);
        let mut tick = tokio::time::interval(Time::from_secs(1));
        loop {
            tokio::select! {
                biased;
                ended = &mut ended => return ended.map_err(|error| not_followed(&error)),
                _ = tick.tick() => match partial.size() {
                    0 => {}
                    size => context.progress(format!("{} written", ByteSize(size)), None),
                },
            }
        }
    }

    async fn check(&self, context: &StepContext, access: &Access, partial: &Partial) -> Result<(), StepError> {
        if self.format == DumpFormat::Plain {
            return ends_as_dump(partial.path());
        }
        if self.verify == DumpCheck::Archive {
            context.progress("reading it to its end", None);
            let argv = ["pg_restore".into(), "--file=/dev/null".into(), partial.path().display().to_string()].to_vec();
            let command = access.command(argv, &context.directory);
            let ended = context.processes.run(command, &context.output, &context.cancel).await.map_err(|error| not_followed(&error))?;
            succeeded("pg_restore", &ended)?;
        }
        Ok(())
    }

    async fn publish(&self, context: &StepContext, access: &Access, partial: Partial, file: PathBuf) -> Result<Manifest, StepError> {
        let mut manifest = Manifest {
            version: 1,
            file: file.file_name().unwrap_or_default().to_string_lossy().into_owned(),
            format: self.format.name().into(),
            size: 0,
            sha256: String::new(),
            database: access.variable("PGDATABASE"),
            host: access.variable("PGHOST"),
            run: context.run.clone(),
            step: context.step.clone(),
            created_at: context.clock.now().to_string(),
        };
        let wanted = self.manifest;
        tokio::task::spawn_blocking(move || {
            let described = manifest.clone();
            let (size, sha256) = partial.publish(|size, sha256| wanted.then_some(Manifest { size, sha256, ..described }))?;
            manifest.size = size;
            manifest.sha256 = sha256;
            Ok(manifest)
        })
        .await
        .map_err(|lost| StepError::new(ErrorKind::Io, lost.to_string()))?
        .map_err(|error| not_written(&error))
    }
}

impl DumpFormat {
    fn name(self) -> &'static str {
        match self {
            Self::Custom => "custom",
            Self::Directory => "directory",
            Self::Plain => "plain",
        }
    }

    fn shape(self) -> Shape {
        if self == Self::Directory { Shape::Directory } else { Shape::File }
    }
}

/// How a client program reaches the database, its password in a file that has no name:
/// nothing of it is left behind, whatever ends this process.
struct Access {
    environment: LibpqEnvironment,
    _passfile: Option<File>,
}

impl Access {
    fn new(mut environment: LibpqEnvironment) -> Result<Self, StepError> {
        let passfile = match &environment.passfile {
            Some(lines) => {
                Some(passfile(lines).map_err(|error| StepError::new(ErrorKind::Io, format!("cannot pass the password on: {error}")))?)
            }
            None => None,
        };
        if let Some(file) = &passfile {
            environment.set.push(("PGPASSFILE".into(), format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd())));
        }
        Ok(Self { environment, _passfile: passfile })
    }

    fn command(&self, argv: Vec<String>, directory: &Path) -> Command {
        let directory = if directory.as_os_str().is_empty() { Path::new(".") } else { directory };
        // The messages are read, so they must be the untranslated ones.
        let locale = [("LC_ALL".to_owned(), Secret::new("C"))];
        let environment = self.environment.set.iter().map(|(name, value)| (name.clone(), Secret::new(value))).chain(locale).collect();
        let without = self.environment.remove.iter().map(|name| (*name).to_owned()).collect();
        Command { program: Program::Argv(argv), environment, without, directory: directory.to_owned(), grace: GRACE }
    }

    fn variable(&self, name: &str) -> Option<String> {
        self.environment.set.iter().find(|(variable, _)| variable == name).map(|(_, value)| value.clone())
    }
}

fn passfile(lines: &Secret) -> std::io::Result<File> {
    let mut file = File::from(memfd_create("pgpass", MFdFlags::MFD_CLOEXEC)?);
    file.set_permissions(std::fs::Permissions::from_mode(0o600))?;
    file.write_all(lines.expose().as_bytes())?;
    Ok(file)
}

fn result(file: &Path, manifest: &Manifest, findings: Vec<String>) -> StepResult {
    StepResult {
        summary: format!("{}, sha256 {}…", ByteSize(manifest.size), &manifest.sha256[..12.min(manifest.sha256.len())]),
        file: Some(file.display().to_string()),
        json: Some(json!({"size": manifest.size, "sha256": manifest.sha256, "format": manifest.format})),
        findings,
        ..StepResult::default()
    }
}

fn not_written(error: &BackupError) -> StepError {
    let failed = StepError::new(ErrorKind::Io, error.to_string());
    match error {
        BackupError::Exists(_) => {
            failed.hint("give each backup a name of its own, e.g. with `{{ run.started_at | date('%Y%m%d_%H%M%S') }}`")
        }
        _ => failed,
    }
}

/// What a program says that did not succeed, as data.
fn succeeded(program: &str, ended: &Ended) -> Result<(), StepError> {
    if ended.exit == Exit::Code(0) {
        return Ok(());
    }
    if ended.stopped {
        return Err(StepError::new(ErrorKind::Cancelled, format!("{program} was stopped; nothing of the dump is left")));
    }
    let said = printable(&ended.captured.stderr).into_owned();
    let prefix = format!("{program}: error: ");
    let message = said.lines().find_map(|line| line.strip_prefix(&prefix)).map_or_else(|| ended.exit.to_string(), short);
    if message.contains("server version mismatch") {
        let versions =
            said.lines().find_map(|line| line.split_once("server version: ")).map(|(_, versions)| format!("server version: {versions}"));
        return Err(StepError::new(ErrorKind::Process, "pg_dump is older than the server and can't dump it")
            .fact("versions", versions.unwrap_or_default())
            .hint("install the client programs of the server's version, or put them first in PATH"));
    }
    let unreachable = message.contains("connection to server") || message.contains("could not connect");
    let kind = if unreachable { ErrorKind::Connection } else { ErrorKind::Process };
    let mut error = StepError::new(kind, format!("{program} failed: {message}"));
    error.transient = unreachable && !message.contains("authentication failed") && !message.contains("does not exist");
    let more: Vec<&str> = said.lines().filter(|line| !line.contains(message.as_str())).collect();
    Err(if more.is_empty() { error } else { error.fact("it also said", short(&more.join("\n"))) })
}

/// Warnings do not stop a dump, but somebody should read them.
fn warnings(stderr: &str) -> Vec<String> {
    stderr.lines().filter_map(|line| line.strip_prefix("pg_dump: warning: ")).map(|line| printable(line).into_owned()).collect()
}

/// SQL text that was cut off looks like any other; only its last line tells.
fn ends_as_dump(path: &Path) -> Result<(), StepError> {
    const TAIL: u64 = 512;
    let read = || {
        let mut file = File::open(path)?;
        let start = file.metadata()?.len().saturating_sub(TAIL);
        file.seek(SeekFrom::Start(start))?;
        let mut tail = Vec::new();
        file.read_to_end(&mut tail)?;
        Ok::<_, std::io::Error>(String::from_utf8_lossy(&tail).into_owned())
    };
    match read() {
        Ok(tail) if tail.contains("-- PostgreSQL database dump complete") => Ok(()),
        Ok(_) => Err(StepError::new(ErrorKind::Io, "the dump does not end as pg_dump ends it")),
        Err(error) => Err(StepError::new(ErrorKind::Io, format!("cannot read the dump back: {error}"))),
    }
}

#[cfg(test)]
mod tests;
