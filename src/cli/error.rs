//! What can go wrong with a command, how it is said and which exit code it gets.

use std::io::Write;

use super::exit::Exit;
use super::session::Settings;
use crate::diagnostic::{self, Counts, Diagnostic};
use crate::engine::EngineError;
use crate::journal::JournalError;
use crate::source::Sources;

/// Why a command did not do what was asked.
#[derive(Debug)]
pub enum Failure {
    /// Findings in the playbook or its inputs.
    Invalid {
        /// The files the findings are in.
        sources: Sources,
        /// All findings.
        diagnostics: Vec<Diagnostic>,
    },
    /// The engine could not begin or go on.
    Engine(EngineError),
    /// Anything that is said in one sentence, with what to do about it.
    Message {
        /// Which exit code.
        exit: Exit,
        /// What is wrong.
        message: String,
        /// What to do next.
        hints: Vec<String>,
    },
}

impl Failure {
    /// A usage error.
    pub fn usage(message: impl Into<String>) -> Self {
        Self::Message { exit: Exit::Usage, message: message.into(), hints: Vec::new() }
    }

    /// A playbook that is not even text.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::Message { exit: Exit::Invalid, message: message.into(), hints: Vec::new() }
    }

    /// An error of the engine's surroundings.
    pub fn engine(message: impl std::fmt::Display) -> Self {
        Self::Message { exit: Exit::Engine, message: message.to_string(), hints: Vec::new() }
    }

    /// Says what to do next.
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        if let Self::Message { hints, .. } = &mut self {
            hints.push(hint.into());
        }
        self
    }

    /// The exit code.
    pub fn exit(&self) -> Exit {
        match self {
            Self::Invalid { .. } => Exit::Invalid,
            Self::Message { exit, .. } => *exit,
            Self::Engine(EngineError::Locked { .. }) => Exit::Locked,
            Self::Engine(EngineError::Target(_) | EngineError::Refused { .. }) => Exit::Refused,
            Self::Engine(EngineError::Journal(_) | EngineError::System(_)) => Exit::Engine,
        }
    }

    pub(super) fn print(&self, settings: &Settings) {
        let mut out = std::io::stderr().lock();
        let _ = match self {
            Self::Invalid { sources, diagnostics } => write!(out, "{}", findings(sources, diagnostics, settings.color_on_stderr)),
            Self::Message { message, hints, .. } => write_error(&mut out, message, hints),
            Self::Engine(error) => write_engine_error(&mut out, error),
        };
    }
}

/// All findings, drawn, and a closing line that counts them.
pub(super) fn findings(sources: &Sources, diagnostics: &[Diagnostic], color: bool) -> String {
    let mut text = diagnostic::render(sources, diagnostics, color);
    if !diagnostics.is_empty() {
        text.push_str(&format!("\n{}\n", Counts::of(diagnostics)));
    }
    text
}

fn write_error(out: &mut impl Write, message: &str, hints: &[String]) -> std::io::Result<()> {
    writeln!(out, "error: {message}")?;
    hints.iter().try_for_each(|hint| writeln!(out, "  {hint}"))
}

fn write_engine_error(out: &mut impl Write, error: &EngineError) -> std::io::Result<()> {
    match error {
        EngineError::Refused { message, hints } => write_error(out, message, hints),
        EngineError::Locked { name, holder } => {
            let who = match &holder.holder {
                Some(holder) => format!("run {} on {} (pid {})", holder.run, holder.host, holder.pid),
                None => holder.application.clone(),
            };
            let backend = holder.backend.map_or_else(String::new, |pid| format!(", server process {pid}"));
            let age = holder.age.map_or_else(String::new, |age| {
                format!(", for {}", humantime::format_duration(std::time::Duration::from_secs(age.as_secs())))
            });
            write_error(
                out,
                &format!("the lock `{name}` is held by {who}{backend}{age}"),
                &["nothing was changed; try again when it has ended".into()],
            )
        }
        EngineError::Target(error) => {
            let error = crate::outcome::StepError::from(error.clone());
            writeln!(out, "error: {}", error.message)?;
            error.facts.iter().try_for_each(|(label, text)| writeln!(out, "  {label}: {text}"))?;
            error.hints.iter().try_for_each(|hint| writeln!(out, "  {hint}"))?;
            writeln!(out, "  nothing was changed")
        }
        EngineError::Journal(error) => write_error(
            out,
            &error.to_string(),
            &["nothing more was started; free some space or repair the journal's file, then `runbook resume`".into()],
        ),
        EngineError::System(error) => write_error(out, &error.to_string(), &[]),
    }
}

impl From<EngineError> for Failure {
    fn from(error: EngineError) -> Self {
        Self::Engine(error)
    }
}

impl From<JournalError> for Failure {
    fn from(error: JournalError) -> Self {
        Self::Engine(EngineError::Journal(error))
    }
}

impl From<(Sources, Vec<Diagnostic>)> for Failure {
    fn from((sources, diagnostics): (Sources, Vec<Diagnostic>)) -> Self {
        Self::Invalid { sources, diagnostics }
    }
}
