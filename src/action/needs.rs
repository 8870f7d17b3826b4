//! What a step will need when its turn comes, as data, so that `runbook doctor` can look
//! for it days before. Nothing is looked for here, and nothing is ever changed.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use super::context::connection;
use super::{Channels, ProcessEnvironment};
use crate::outcome::{StepError, StepResult};
use crate::secret::{Redactor, Secret};
use crate::source::Spanned;
use crate::template::{Template, Values};

/// Something a step cannot do without.
#[derive(Debug)]
pub enum Need {
    /// A program, found as the step will find it.
    Program {
        /// As the author wrote it.
        name: String,
        /// Where it is started; relative names begin here.
        directory: PathBuf,
        /// The `PATH` the step sets; `None`: runbook's own.
        path: Option<String>,
        /// It runs a script, of which nothing more is known.
        runs_script: bool,
    },
    /// One of PostgreSQL's client programs, which must not be older than the server.
    ClientProgram {
        /// Its name.
        name: &'static str,
        /// The server's connection, by its name in `Targets`.
        connection: String,
    },
    /// A directory that exists.
    Directory(PathBuf),
    /// A file that can be read.
    Readable {
        /// What it is to the step.
        what: &'static str,
        /// Where.
        path: PathBuf,
        /// It has its name from the run, so that it cannot be there before.
        of_run: bool,
    },
    /// A file that can be written.
    Writable {
        /// What it is to the step.
        what: &'static str,
        /// Where.
        path: PathBuf,
        /// A file that is there already may be replaced.
        replaces: bool,
        /// It may become as large as this database, by its name in `Targets`.
        as_large_as: Option<String>,
    },
    /// A server whose port answers.
    Endpoint {
        /// What it is to the step.
        what: String,
        /// Its address.
        url: Secret,
    },
    /// Something the action has looked at itself.
    Seen {
        /// What it is to the step.
        what: &'static str,
        /// What was found.
        outcome: Result<Box<StepResult>, Box<StepError>>,
    },
    /// Something that cannot be known before the run.
    Unknown {
        /// What it is to the step.
        what: String,
        /// Why not.
        reason: String,
    },
}

/// The world as it is before a run.
#[derive(Debug)]
pub struct Prospect<'a> {
    /// What is known beforehand.
    pub values: &'a Values,
    /// What each connection of the step's playbook is called in `Targets`.
    pub connections: &'a BTreeMap<String, String>,
    /// Name of the connection a step uses when it names none.
    pub default_connection: Option<&'a str>,
    /// Notification channels, resolved.
    pub channels: &'a Channels,
    /// The variables runbook was started with.
    pub environment: Arc<ProcessEnvironment>,
    /// Where the command is run.
    pub directory: PathBuf,
    /// Knows every declared secret.
    pub redactor: &'a Redactor,
}

impl Prospect<'_> {
    /// A template's value, or why there is none yet.
    pub(super) fn text(&self, what: &str, template: &Template) -> Result<String, Need> {
        self.values.text(template).map_err(|_| Need::Unknown {
            what: what.to_owned(),
            reason: format!("`{}` is known only in a run", template.text.value.trim()),
        })
    }

    /// A file's place, or why it is not known yet.
    pub(super) fn path(&self, what: &'static str, template: &Template) -> Result<PathBuf, Need> {
        Ok(self.directory.join(self.text(what, template)?))
    }

    /// A file that is read.
    pub(super) fn readable(&self, what: &'static str, template: &Template) -> Need {
        let of_run = template.references().any(|reference| reference.path.first().is_some_and(|root| root == "run"));
        self.path(what, template).map_or_else(|unknown| unknown, |path| Need::Readable { what, path, of_run })
    }

    /// A file that is written.
    pub(super) fn writable(&self, what: &'static str, template: &Template, replaces: bool) -> Need {
        self.path(what, template).map_or_else(|unknown| unknown, |path| Need::Writable { what, path, replaces, as_large_as: None })
    }

    /// The name in `Targets` of the connection a step works on.
    pub(super) fn connection(&self, named: Option<&Spanned<String>>) -> Option<String> {
        let named = named.map(|name| name.value.as_str());
        connection(self.connections, self.default_connection, named).ok().map(ToOwned::to_owned)
    }
}
