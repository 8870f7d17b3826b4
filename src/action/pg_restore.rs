//! `pg_restore`: a dump back into a PostgreSQL database, wholly or not at all.
//!
//! Responsible for what is written in a playbook and what a plan shows of it. The file is
//! `backup_file`'s business, its text `script`'s, the transaction `restore`'s, rows alone
//! `chosen_rows`'.

mod backup_file;
mod chosen_rows;
mod failure;
mod restore;
mod safety;
mod script;
mod there;

use schemars::JsonSchema;
use serde::Deserialize;

use super::written::shown;
use super::{Class, Description, Inspection, Need, Perform, Prospect, Recovery, StepContext};
use crate::diagnostic::Diagnostic;
use crate::outcome::{StepError, StepResult};
use crate::source::Spanned;
use crate::template::{Place, Setting, Template, Values};
use crate::units::Duration;

/// Restores a dump that `pg_dump` made, in any of its formats, in one transaction.
///
/// First the file is compared with its manifest and read to its end, then everything is sent over
/// runbook's own connection, statement by statement: commands of `psql`, programs and transactions
/// in it are refused before anything runs. What the dump holds is never put over data that are
/// there: with `replace: true` they are dumped first, dropped and made anew, and on a database with
/// an environment somebody types its name. Rows are counted and compared with the manifest before
/// COMMIT; until then, and after whatever interrupts it, the database is as it was. The schema
/// `runbook` is never touched.
///
/// ```yaml
/// pg_restore: {file: "{{ steps.verify.file }}"}
/// pg_restore: {file: "{{ params.file }}", into: main, replace: true}
/// pg_restore: {file: backups/nightly.dump, tables: [loads, fuel_expenses], replace: true}
/// ```
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PgRestore {
    /// The dump: a file, or a directory of `format: directory`. Relative to where runbook is run.
    pub file: Template,
    /// The connection of the database it goes into. Default: the only connection, or `main`.
    #[serde(default)]
    pub into: Option<Spanned<String>>,
    /// Only the rows of these tables, into tables that are there and have the same columns.
    /// Foreign keys around them are checked anew, their triggers keep still, and their sequences
    /// only move forward.
    #[serde(default)]
    pub tables: Vec<Template>,
    /// Overwrites what the dump holds and the database has already, after a safety dump of it.
    /// Default: false, and such a restore is refused.
    #[serde(default)]
    pub replace: bool,
    /// Where what is overwritten is dumped to. Default: `FILE.before-RUN.dump`, beside the backup.
    #[serde(default)]
    pub safety_dump: Option<Template>,
    /// Whether objects get the owners they had. Default: true; otherwise they belong to the role
    /// that restores.
    #[serde(default = "yes")]
    pub owner: bool,
    /// Whether what others were granted is granted again. Default: true.
    #[serde(default = "yes")]
    pub privileges: bool,
    /// Whether a dump without a manifest is taken. It is read to its end all the same, but a
    /// changed byte in it may go unnoticed.
    #[serde(default)]
    pub unverified: bool,
    /// Whether to gather the planner's statistics of the restored tables. Default: true.
    #[serde(default = "yes")]
    pub analyze: bool,
    /// The longest to wait for somebody's lock. Default: the playbook's.
    #[serde(default)]
    pub lock_timeout: Option<Setting<Duration>>,
}

fn yes() -> bool {
    true
}

impl PgRestore {
    /// A whole dump into a database that has nothing yet, for a step of another kind.
    pub(super) fn into_empty(file: Template, owner: bool, privileges: bool) -> Self {
        Self {
            file,
            into: None,
            tables: Vec::new(),
            replace: false,
            safety_dump: None,
            owner,
            privileges,
            unverified: false,
            analyze: false,
            lock_timeout: None,
        }
    }
}

impl Perform for PgRestore {
    fn class(&self) -> Class {
        Class::Change
    }

    /// Everything is one transaction with its proof.
    fn recovery(&self) -> Recovery {
        Recovery::Ledger
    }

    fn inspect<'a>(&'a self, inspection: &mut Inspection<'a>) {
        inspection.connection(self.into.as_ref());
        for template in [&self.file].into_iter().chain(&self.safety_dump).chain(&self.tables) {
            inspection.template(template, Place::Argument);
        }
        if let Some(timeout) = &self.lock_timeout {
            inspection.setting(timeout);
        }
        if let Some(template) = &self.safety_dump
            && !self.replace
        {
            inspection.diagnostics.push(
                Diagnostic::error("safety-dump", template.text.span, "`safety_dump` is for `replace: true`")
                    .help("without it nothing is overwritten, so there is nothing to dump"),
            );
        }
    }

    fn describe(&self, values: &Values) -> Description {
        let into = self.into.as_ref().map_or_else(String::new, |name| format!(" into {}", name.value));
        let mut details = Vec::new();
        if !self.tables.is_empty() {
            let tables = self.tables.iter().map(|template| shown(template, values)).collect::<Vec<_>>().join(", ");
            details.push(format!("only the rows of {tables}"));
        }
        if self.replace {
            let place = self.safety_dump.as_ref().map_or_else(|| "beside the backup".to_owned(), |place| shown(place, values));
            details.push(format!("overwrites what is there, after a safety dump {place}"));
            details.push("on a database with an environment: goes on only when its name is typed".into());
        } else {
            details.push("refused where the database holds any of it already".into());
        }
        if self.unverified {
            details.push("also without a manifest".into());
        }
        details.extend((!self.owner).then(|| "not the owners".to_owned()));
        details.extend((!self.privileges).then(|| "not the privileges".to_owned()));
        details.push("one transaction; rows are counted before COMMIT".into());
        Description { summary: format!("restore {}{into}", shown(&self.file, values)), details }
    }

    async fn needs(&self, prospect: &Prospect<'_>) -> Vec<Need> {
        let Some(connection) = prospect.connection(self.into.as_ref()) else { return Vec::new() };
        let mut needs =
            vec![prospect.readable("backup", &self.file), Need::ClientProgram { name: "pg_restore", connection: connection.clone() }];
        if let (true, Some(file)) = (self.replace, &self.safety_dump) {
            needs.push(prospect.writable("safety dump", file, false));
        }
        needs
    }

    async fn run(&self, context: &StepContext) -> Result<StepResult, StepError> {
        let location = context.sources.location(self.file.text.span);
        restore::run(self, context).await.map_err(|error| error.at(location))
    }
}
