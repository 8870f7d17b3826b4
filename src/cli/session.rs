//! What every subcommand needs from its surroundings: settings from options and
//! environment, the runtime, the operator.

use std::future::Future;
use std::io::IsTerminal;
use std::path::PathBuf;

use tracing_subscriber::fmt::MakeWriter;

use super::{ColorChoice, Failure, Global};
use crate::clock::Clock;
use crate::journal::{Journal, Operator};
use crate::secret::Redactor;
use crate::target::Variables;

/// Options and environment, read once.
#[derive(Debug)]
pub(super) struct Settings {
    pub journal: Option<PathBuf>,
    pub quiet: bool,
    pub verbose: u8,
    pub color_on_stdout: bool,
    pub color_on_stderr: bool,
    pub variables: Variables,
    pub log: Option<String>,
    /// The terminal can move its cursor.
    pub capable_terminal: bool,
}

impl Settings {
    pub fn new(global: &Global) -> Self {
        let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let color = |terminal: bool| match global.color {
            ColorChoice::Always => true,
            ColorChoice::Never => false,
            ColorChoice::Auto if variable("NO_COLOR").is_some() => false,
            ColorChoice::Auto if variable("FORCE_COLOR").is_some_and(|value| value != "0") => true,
            ColorChoice::Auto => terminal && variable("TERM").as_deref() != Some("dumb"),
        };
        Self {
            journal: global.journal.clone(),
            quiet: global.quiet,
            verbose: global.verbose,
            color_on_stdout: color(std::io::stdout().is_terminal()),
            color_on_stderr: color(std::io::stderr().is_terminal()),
            variables: Variables::from_system(std::env::vars_os()),
            log: variable("RUST_LOG"),
            capable_terminal: variable("TERM").is_some_and(|term| term != "dumb"),
        }
    }

    /// How this program must be called to mean the same journal.
    pub fn command(&self) -> String {
        match &self.journal {
            Some(path) if std::env::var_os("RUNBOOK_JOURNAL").as_deref() != Some(path.as_os_str()) => {
                format!("runbook --journal {}", crate::text::shell_word(&path.display().to_string()))
            }
            _ => "runbook".into(),
        }
    }

    pub async fn open_journal(&self, clock: &Clock) -> Result<Journal, Failure> {
        let path = match &self.journal {
            Some(path) => path.clone(),
            None => super::journal_file::default_path()?,
        };
        Ok(Journal::open(&path, clock.clone()).await?)
    }

    /// Sends NOTICEs of the server to the steps they belong to, and the engine's own
    /// log to standard error where asked for. Libraries log there what they were given, so it
    /// passes the redactor too.
    pub fn start_tracing(&self, redactor: &Redactor) {
        use tracing_subscriber::prelude::*;
        let level = match (&self.log, self.verbose) {
            (Some(filter), _) => filter.clone(),
            (None, 0 | 1) => "off".into(),
            (None, _) => "runbook=debug".into(),
        };
        let filter = tracing_subscriber::EnvFilter::builder().parse_lossy(level);
        let log =
            tracing_subscriber::fmt::layer().with_writer(RedactedLog(redactor.clone())).with_ansi(self.color_on_stderr).with_filter(filter);
        let _ = tracing_subscriber::registry().with(crate::target::notice_layer()).with(log).try_init();
    }
}

/// Standard error behind the redactor; each line of the log comes as one piece.
#[derive(Debug, Clone)]
struct RedactedLog(Redactor);

impl std::io::Write for RedactedLog {
    fn write(&mut self, line: &[u8]) -> std::io::Result<usize> {
        std::io::stderr().write_all(&self.0.bytes(line))?;
        Ok(line.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        std::io::stderr().flush()
    }
}

impl<'a> MakeWriter<'a> for RedactedLog {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

/// Who runs this command, by the system's account, not by a variable anyone can set.
pub(super) fn operator() -> Operator {
    let uid = nix::unistd::Uid::effective();
    let user = nix::unistd::User::from_uid(uid).ok().flatten().map_or_else(|| uid.to_string(), |user| user.name);
    Operator { user, host: gethostname::gethostname().to_string_lossy().into_owned(), pid: std::process::id() }
}

/// Runs a future to its end, on this thread: a step's tasks talk to each other all the
/// time, and waking another thread costs more than what they do. What still blocks at the
/// end, such as a question nobody answers any more, is left behind.
pub(super) fn block_on<T>(future: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Failure::engine)?;
    let outcome = runtime.block_on(future);
    runtime.shutdown_background();
    outcome
}
