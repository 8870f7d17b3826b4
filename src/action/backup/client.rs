//! PostgreSQL's client programs: the right one among those installed, and its way to the
//! database without a password that anybody else can read.

use std::fs::{File, Permissions};
use std::io::{self, Read, Seek, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use nix::sys::memfd::{MFdFlags, memfd_create};

use crate::action::StepContext;
use crate::action::shell::not_followed;
use crate::action::written::short;
use crate::outcome::{ErrorKind, StepError};
use crate::output::{Output, printable};
use crate::process::{Command, Ended, Exit, GRACE, ProcessError, Program, client_directories, major_version};
use crate::secret::Secret;
use crate::target::{Identity, LibpqEnvironment};

/// How the client programs of one installation reach one database.
pub struct Client {
    /// Where all of them are: those of two installations do not fit together.
    directory: PathBuf,
    /// What `pg_dump` says it is, e.g. `pg_dump (PostgreSQL) 15.18`.
    pub version: String,
    environment: LibpqEnvironment,
    _passfile: Option<MemoryFile>,
}

impl Client {
    /// The programs to use for a connection: those of the server's major version where they
    /// are installed, else the next newer ones.
    pub async fn find(context: &StepContext, connection: &str) -> Result<(Self, Identity), StepError> {
        let access = context.targets.libpq_environment(connection, &context.step)?;
        let mut environment = access.ok_or_else(|| {
            StepError::new(ErrorKind::Connection, format!("`{connection}` is an SQLite database, and this step is for PostgreSQL"))
                .hint("an SQLite database is copied by `sqlite_backup`")
        })?;
        let server = context.targets.identity(connection).await?;
        let Installed { directory, version, .. } = choose(installed(context, server.major_version).await?, server.major_version)?;
        let passfile = environment.passfile.as_ref().map(|lines| MemoryFile::new(lines.expose())).transpose();
        let passfile = passfile.map_err(|error| not_passed(&error))?;
        environment.set.extend(passfile.iter().map(|file| ("PGPASSFILE".to_owned(), file.name())));
        Ok((Self { directory, version, environment, _passfile: passfile }, server))
    }

    /// Programs of at least this major version, to read files with, not to connect.
    pub async fn local(context: &StepContext, major: u32) -> Result<Self, StepError> {
        let Installed { directory, version, .. } = choose(installed(context, major).await?, major)?;
        let environment = LibpqEnvironment { set: Vec::new(), remove: Vec::new(), passfile: None };
        Ok(Self { directory, version, environment, _passfile: None })
    }

    /// The same programs for another database of the same server.
    pub fn database(&mut self, name: &str) {
        self.environment.set.retain(|(variable, _)| variable != "PGDATABASE");
        self.environment.set.push(("PGDATABASE".into(), name.to_owned()));
    }

    /// Runs one of the programs; its messages go to `output`.
    pub async fn run(&self, context: &StepContext, output: &Output, argv: Vec<String>) -> Result<Ended, StepError> {
        let environment = self.environment.set.iter().map(|(name, value)| (name.clone(), Secret::new(value))).collect();
        let without = self.environment.remove.iter().map(|name| (*name).to_owned()).collect();
        let command = Command { without, ..command(context, &self.directory, argv, environment) };
        context.processes.run(command, output, &context.cancel).await.map_err(|error| not_followed(&error))
    }

    /// Runs one of the programs, which must succeed.
    pub async fn must(&self, context: &StepContext, argv: Vec<String>) -> Result<Ended, StepError> {
        let program = argv.first().cloned().unwrap_or_default();
        let ended = self.run(context, &context.output, argv).await?;
        succeeded(&program, &ended)?;
        Ok(ended)
    }

    /// What a program writes into the file whose name `argv` is given.
    pub async fn text(&self, context: &StepContext, argv: impl FnOnce(String) -> Vec<String>) -> Result<String, StepError> {
        let file = MemoryFile::new("").map_err(|error| not_passed(&error))?;
        self.must(context, argv(file.name())).await?;
        file.text().map_err(|error| StepError::new(ErrorKind::Io, format!("cannot read what the program wrote: {error}")))
    }
}

/// A file without a name, for its owner alone: nothing of it is left behind, whatever ends
/// this process.
pub struct MemoryFile(File);

impl MemoryFile {
    pub fn new(text: &str) -> io::Result<Self> {
        let mut file = File::from(memfd_create("runbook", MFdFlags::MFD_CLOEXEC)?);
        file.set_permissions(Permissions::from_mode(0o600))?;
        file.write_all(text.as_bytes())?;
        Ok(Self(file))
    }

    /// How a child of ours opens it.
    pub fn name(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd())
    }

    fn text(mut self) -> io::Result<String> {
        let mut text = String::new();
        self.0.rewind()?;
        self.0.read_to_string(&mut text)?;
        Ok(text)
    }
}

/// One installation of the client programs.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Installed {
    major: u32,
    directory: PathBuf,
    version: String,
}

/// All that are installed, PATH's first; ends with the first of the server's version.
async fn installed(context: &StepContext, server: u32) -> Result<Vec<Installed>, StepError> {
    let mut found = Vec::new();
    for directory in context.processes.search_path().into_iter().chain(client_directories()) {
        if !context.directory.join(&directory).join("pg_dump").exists() {
            continue;
        }
        let Some(version) = ask_version(context, &directory).await? else { continue };
        let Some(major) = major_version(&version) else { continue };
        found.push(Installed { major, directory, version });
        if major == server {
            break;
        }
    }
    Ok(found)
}

async fn ask_version(context: &StepContext, directory: &Path) -> Result<Option<String>, StepError> {
    let command = command(context, directory, vec!["pg_dump".into(), "--version".into()], Vec::new());
    let (unseen, _) = tokio::sync::mpsc::unbounded_channel();
    match context.processes.run(command, &context.output.watched(unseen), &context.cancel).await {
        Ok(Ended { exit: Exit::Code(0), captured, .. }) => Ok(Some(printable(captured.stdout.trim()).into_owned())),
        Ok(Ended { stopped: true, .. }) => Err(StepError::new(ErrorKind::Cancelled, "stopped before anything was written")),
        Ok(_) | Err(ProcessError::NotFound { .. }) => Ok(None),
        Err(error) => Err(not_followed(&error)),
    }
}

/// The programs of the server's version, else the oldest of the newer ones: an archive should
/// be readable by programs as old as possible.
fn choose(found: Vec<Installed>, server: u32) -> Result<Installed, StepError> {
    let newest = found.iter().max_by_key(|installed| installed.major).map(|installed| installed.version.clone());
    // The first of several equal ones, which is PATH's.
    let fitting = found.into_iter().filter(|installed| installed.major >= server).min_by_key(|installed| installed.major);
    fitting.ok_or_else(|| none_fits(newest, server))
}

fn command(context: &StepContext, place: &Path, mut argv: Vec<String>, mut environment: Vec<(String, Secret)>) -> Command {
    let directory = if context.directory.as_os_str().is_empty() { Path::new(".") } else { &context.directory };
    if let Some(program) = argv.first_mut() {
        *program = place.join(&*program).display().to_string();
    }
    // The messages are read, so they must be the untranslated ones.
    environment.push(("LC_ALL".into(), Secret::new("C")));
    Command { program: Program::Argv(argv), environment, without: Vec::new(), directory: directory.to_owned(), grace: GRACE }
}

fn none_fits(newest: Option<String>, server: u32) -> StepError {
    let hint = format!("install the client programs of PostgreSQL {server}, e.g. `apt install postgresql-client-{server}`");
    match newest {
        Some(version) => {
            StepError::new(ErrorKind::Process, format!("the server is PostgreSQL {server}, and pg_dump can't dump a newer server"))
                .fact("newest installed", version)
                .hint(hint)
        }
        None => StepError::new(ErrorKind::Process, "pg_dump is not installed").fact("server", format!("PostgreSQL {server}")).hint(hint),
    }
}

pub fn not_passed(error: &io::Error) -> StepError {
    StepError::new(ErrorKind::Io, format!("cannot make a file in memory for a client program: {error}"))
}

/// What a program says that did not succeed, as data.
pub fn succeeded(program: &str, ended: &Ended) -> Result<(), StepError> {
    if ended.exit == Exit::Code(0) {
        return Ok(());
    }
    if ended.stopped {
        return Err(StepError::new(ErrorKind::Cancelled, format!("{program} was stopped")));
    }
    let said = printable(&ended.captured.stderr).into_owned();
    let prefix = format!("{program}: error: ");
    let message = said.lines().find_map(|line| line.strip_prefix(&prefix)).map_or_else(|| ended.exit.to_string(), short);
    let unreachable = message.contains("connection to server") || message.contains("could not connect");
    let kind = if unreachable { ErrorKind::Connection } else { ErrorKind::Process };
    let mut error = StepError::new(kind, format!("{program} failed: {message}"));
    error.transient = unreachable && !message.contains("authentication failed") && !message.contains("does not exist");
    let more: Vec<&str> = said.lines().filter(|line| !line.contains(message.as_str()) && !is_chatter(program, line)).collect();
    Err(if more.is_empty() { error } else { error.fact("it also said", short(&more.join("\n"))) })
}

/// What `--verbose` adds: neither an error nor what belongs to one.
fn is_chatter(program: &str, line: &str) -> bool {
    let Some(text) = line.strip_prefix(program).and_then(|line| line.strip_prefix(": ")) else { return false };
    !["error: ", "warning: ", "detail: ", "hint: "].iter().any(|label| text.starts_with(label))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_programs_of_the_servers_version_are_used_or_the_next_newer_ones() {
        let installed = |major: u32| Installed { major, directory: PathBuf::new(), version: format!("pg_dump (PostgreSQL) {major}.1") };
        let chosen = |majors: &[u32], server| choose(majors.iter().copied().map(installed).collect(), server).map(|one| one.major);
        assert_eq!(chosen(&[14, 17, 15, 16], 15), Ok(15));
        assert_eq!(chosen(&[14, 18, 17], 15), Ok(17));
        let error = chosen(&[13, 14], 15).unwrap_err();
        insta::assert_snapshot!(error.message, @"the server is PostgreSQL 15, and pg_dump can't dump a newer server");
        assert_eq!(error.facts, [("newest installed".to_owned(), "pg_dump (PostgreSQL) 14.1".to_owned())]);
        insta::assert_snapshot!(chosen(&[], 15).unwrap_err().message, @"pg_dump is not installed");
    }
}
