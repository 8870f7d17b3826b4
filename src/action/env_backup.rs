//! `env_backup`: environment variables in a private file that a shell reads back exactly.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read};
use std::path::Path;

use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::json;

use super::env_check::{Ground, blocking};
use super::environment::baseline::{Baseline, Origin};
use super::environment::private_file::{self, Existing};
use super::environment::{Source, Value, dotenv, is_sensitive, is_variable};
use super::written::shown;
use super::{Class, Description, Inspection, Need, Perform, Prospect, Recovery, StepContext};
use crate::diagnostic::Diagnostic;
use crate::outcome::{ErrorKind, StepError, StepResult};
use crate::secret::{Redactor, Secret};
use crate::source::Spanned;
use crate::template::{Place, Template, Values};
use crate::text::count;

/// Writes environment variables to a file, and can record what they are for a later `env_check`.
///
/// The file is readable by its owner alone, appears under its name only when it is complete
/// and on disk, and never replaces another. It holds one `NAME='value'` after the other, which
/// `set -a; . FILE` reads back exactly, and comments that say what was left out.
///
/// Secrets are left out unless `secrets: true` asks for them. A variable is a secret if
/// `secrets:` reads it; if its value holds a declared secret or the password of a connection;
/// if its name holds KEY, SECRET, TOKEN, PASSW, PASSPHRASE, CREDENTIAL, PRIVATE or WEBHOOK, or
/// PWD, PASS, AUTH, DSN, SALT, COOKIE, PIN, OTP or SIGNATURE as a word; or if its value looks
/// like a URL or connection string with a password, a private key or a signed token. That errs
/// to the safe side: rather a variable too many is left out, and its name is in the file and in
/// the step's result.
///
/// ```yaml
/// env_backup:
///   file: "backups/env-{{ run.id }}.env"
///   variables: [NODE_ENV, CORS_ORIGIN, "SUPABASE_*", "VITE_*"]
///   baseline: "backups/env-{{ run.id }}.baseline.json"
/// ```
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct EnvBackup {
    /// Where to; relative to where runbook is run. Missing directories are made.
    pub file: Template,
    /// Names, or patterns in which `*` stands for any letters; `"*"` alone for all variables.
    /// A name that is not set, or a pattern that fits none, fails the step.
    #[schemars(length(min = 1))]
    pub variables: Vec<Spanned<String>>,
    /// A dotenv file to read instead of the environment runbook was started with; relative to
    /// where runbook is run.
    #[serde(default)]
    pub from: Option<Template>,
    /// Write secrets too. Default: false.
    #[serde(default)]
    pub secrets: bool,
    /// Also record a baseline of the variables, for `fixed` ones of an `env_check`: hashes, also
    /// of the secrets that are left out. An existing one is never overwritten.
    #[serde(default)]
    pub baseline: Option<Template>,
}

impl Perform for EnvBackup {
    fn class(&self) -> Class {
        Class::Change
    }

    /// A file under its name is whole and says which step wrote it.
    fn recovery(&self) -> Recovery {
        Recovery::Repeat
    }

    fn inspect<'a>(&'a self, inspection: &mut Inspection<'a>) {
        for template in [&self.file].into_iter().chain(&self.from).chain(&self.baseline) {
            inspection.template(template, Place::Argument);
        }
        let mut wrong =
            |span, message: String, help: &str| inspection.diagnostics.push(Diagnostic::error("env-backup", span, message).help(help));
        if self.variables.is_empty() {
            wrong(
                self.file.text.span,
                "`variables` is empty, so nothing would be written".into(),
                "name them, or write `variables: [\"*\"]` for all",
            );
        }
        for pattern in self.variables.iter().filter(|pattern| !is_variable(&pattern.value.replace('*', "A"))) {
            wrong(
                pattern.span,
                format!("`{}` is neither a name of an environment variable nor a pattern of one", pattern.value),
                "use letters, digits and `_`, and `*` for any of them",
            );
        }
    }

    fn describe(&self, values: &Values) -> Description {
        let patterns: Vec<&str> = self.variables.iter().map(|pattern| pattern.value.as_str()).collect();
        let mut details = vec![format!("variables {}", patterns.join(", "))];
        details.extend(self.from.as_ref().map(|from| format!("of {}", shown(from, values))));
        details.push(if self.secrets { "with secrets".into() } else { "secrets are left out".into() });
        details.extend(self.baseline.as_ref().map(|baseline| format!("records the baseline {}", shown(baseline, values))));
        Description { summary: format!("write environment variables to {}", shown(&self.file, values)), details }
    }

    async fn needs(&self, prospect: &Prospect<'_>) -> Vec<Need> {
        let mut needs = Vec::new();
        let ground = Ground::before(prospect);
        match self.from.as_ref().map(|from| Ok((from, prospect.path("dotenv file", from)?))).transpose() {
            Err(unknown) => needs.push(unknown),
            Ok(Some((from, path))) if !path.exists() => needs.push(prospect.readable("dotenv file", from)),
            Ok(_) => {
                let chosen = ground.source(self.from.as_ref()).and_then(|source| self.choose(&source, &ground, prospect.redactor));
                let seen = chosen.map(|chosen| Box::new(StepResult { summary: chosen.summary(), ..StepResult::default() }));
                needs.push(Need::Seen { what: "variables", outcome: seen.map_err(Box::new) });
            }
        }
        needs.push(prospect.writable("backup", &self.file, false));
        needs.extend(self.baseline.as_ref().map(|baseline| prospect.writable("baseline", baseline, false)));
        needs
    }

    async fn run(&self, context: &StepContext) -> Result<StepResult, StepError> {
        let location = context.sources.location(self.file.text.span);
        self.back_up(context).await.map_err(|error| error.at(location))
    }
}

/// What goes into the file, and what does not.
#[derive(Debug, Default)]
pub(super) struct Chosen {
    written: BTreeMap<String, Secret>,
    secret: BTreeMap<String, Secret>,
    /// What no shell can set to the same value again.
    impossible: BTreeSet<String>,
}

/// Variables that shells do not let anyone set.
const READ_ONLY: [&str; 6] = ["BASHOPTS", "BASH_VERSINFO", "EUID", "PPID", "SHELLOPTS", "UID"];

impl EnvBackup {
    async fn back_up(&self, context: &StepContext) -> Result<StepResult, StepError> {
        let ground = Ground::of(context);
        let path = ground.path(&self.file)?;
        let baseline = self.baseline.as_ref().map(|baseline| ground.path(baseline)).transpose()?;
        let origin = Origin { run: context.run.clone(), step: context.step.clone(), at: context.clock.now() };
        if context.uncertain
            && let Some(written) = written_by(&path, &origin)
        {
            return Ok(found_again(&path, written));
        }
        let source = ground.source(self.from.as_ref())?;
        let chosen = self.choose(&source, &ground, &context.redactor)?;
        let findings = source.doubts(chosen.written.keys().chain(chosen.secret.keys()).map(String::as_str));
        let result = chosen.result(&path, findings);
        let (text, all) = (chosen.text(&origin, &source.name), chosen.all());
        blocking(move || {
            if path.symlink_metadata().is_ok() {
                return Err(not_written(&path, &io::ErrorKind::AlreadyExists.into()));
            }
            // The backup comes last: where it is, the step is done.
            if let Some(baseline) = baseline {
                Baseline::put(&baseline, &all, &origin)?;
            }
            private_file::write(&path, &text, Existing::Keep).map_err(|error| not_written(&path, &error))
        })
        .await?;
        Ok(result)
    }

    /// Sorts out what is asked for; anything that is missing is an error.
    pub(super) fn choose(&self, source: &Source, ground: &Ground<'_>, redactor: &Redactor) -> Result<Chosen, StepError> {
        let mut chosen = Chosen::default();
        let mut missing = Vec::new();
        for pattern in &self.variables {
            let names: Vec<&str> = source.names().filter(|name| fits(&pattern.value, name)).collect();
            if names.is_empty() {
                missing.push(pattern.value.as_str());
            }
            let by_name = !pattern.value.contains('*');
            for name in names {
                match source.get(name) {
                    Some(Value::Text(text)) if is_variable(name) && !READ_ONLY.contains(&name) => {
                        let secret = ground.environment.secrets.contains(name)
                            || is_sensitive(name, text.expose())
                            || redactor.text(text.expose()) != text.expose();
                        let into = if secret && !self.secrets { &mut chosen.secret } else { &mut chosen.written };
                        into.insert(name.to_owned(), text.clone());
                    }
                    Some(Value::NotText) if by_name => {
                        return Err(StepError::new(
                            ErrorKind::Expectation,
                            format!("{name} is not UTF-8 text and cannot be written to a dotenv file"),
                        ));
                    }
                    _ => _ = chosen.impossible.insert(name.to_owned()),
                }
            }
        }
        if missing.is_empty() {
            return Ok(chosen);
        }
        let verb = if missing.len() == 1 { "is not set" } else { "are not set" };
        Err(StepError::new(ErrorKind::Expectation, format!("{} {verb} in {}", missing.join(", "), source.name))
            .hint("a backup without them would pass for a whole one; set them, or take them out of `variables`"))
    }
}

impl Chosen {
    fn all(&self) -> BTreeMap<String, Option<Secret>> {
        self.written.iter().chain(&self.secret).map(|(name, value)| (name.clone(), Some(value.clone()))).collect()
    }

    /// How many variables go into the file, and how many secrets do not.
    pub(super) fn summary(&self) -> String {
        let written = count(self.written.len() as u64, "variable");
        match self.secret.len() as u64 {
            0 => written,
            secrets => format!("{written}, {} left out", count(secrets, "secret")),
        }
    }

    fn result(&self, path: &Path, mut findings: Vec<String>) -> StepResult {
        if !self.impossible.is_empty() {
            findings.push(format!("left out, because no shell could set them again: {}", listed(&self.impossible)));
        }
        StepResult {
            summary: self.summary(),
            file: Some(path.display().to_string()),
            json: Some(json!({
                "written": self.written.keys().collect::<Vec<_>>(),
                "left_out": self.secret.keys().collect::<Vec<_>>(),
            })),
            findings,
            ..StepResult::default()
        }
    }

    fn text(&self, origin: &Origin, source: &str) -> String {
        let mut text = heading(&origin.run, &origin.step);
        text.push_str(&format!("# {} of {}, at {}\n", count(self.written.len() as u64, "variable"), one_line(source), origin.at));
        if !self.secret.is_empty() {
            text.push_str(&format!("# left out as secrets (`secrets: true` writes them): {}\n", listed(self.secret.keys())));
        }
        if !self.impossible.is_empty() {
            text.push_str(&format!("# left out, because no shell could set them again: {}\n", listed(&self.impossible)));
        }
        for (name, value) in &self.written {
            text.push_str(&dotenv::line(name, value));
        }
        text
    }
}

fn heading(run: &str, step: &str) -> String {
    format!("# Environment variables, written by runbook run {run}, step {step}\n")
}

/// How many variables the file holds that an earlier attempt of this step wrote.
fn written_by(path: &Path, origin: &Origin) -> Option<usize> {
    let mut text = String::new();
    std::fs::File::open(path).ok()?.read_to_string(&mut text).ok()?;
    let ours = text.starts_with(&heading(&origin.run, &origin.step));
    ours.then(|| dotenv::parse(&text).ok().map(|entries| entries.len()))?
}

fn found_again(path: &Path, written: usize) -> StepResult {
    StepResult {
        summary: format!("{}, written before the interruption", count(written as u64, "variable")),
        file: Some(path.display().to_string()),
        ..StepResult::default()
    }
}

fn not_written(path: &Path, error: &io::Error) -> StepError {
    match error.kind() {
        io::ErrorKind::AlreadyExists => {
            StepError::new(ErrorKind::Io, format!("`{}` exists already; nothing was overwritten", path.display()))
                .hint("give each backup a name of its own, e.g. with `{{ run.id }}`")
        }
        _ => StepError::new(ErrorKind::Io, format!("cannot write `{}`: {error}", path.display())),
    }
}

/// Names as a comment can hold them.
fn listed(names: impl IntoIterator<Item = impl AsRef<str>>) -> String {
    names.into_iter().map(|name| one_line(name.as_ref())).collect::<Vec<_>>().join(", ")
}

fn one_line(text: &str) -> String {
    text.chars().map(|letter| if letter.is_control() { '\u{fffd}' } else { letter }).collect()
}

/// Whether a name is of a pattern's form; `*` stands for any letters.
fn fits(pattern: &str, name: &str) -> bool {
    let mut parts = pattern.split('*');
    let Some(mut rest) = parts.next().and_then(|first| name.strip_prefix(first)) else { return false };
    let Some(last) = parts.next_back() else { return rest.is_empty() };
    for part in parts {
        let Some(found) = rest.find(part) else { return false };
        rest = &rest[found + part.len()..];
    }
    rest.ends_with(last)
}
