//! `verify_backup`: a backup is only one when it was proven to be.
//!
//! Responsible for what is written in a playbook, for the order of the proofs and for the
//! verdict. Restoring into a scratch database is `scratch`'s business, comparing it with the
//! manifest `compare`'s.

mod archive;
mod compare;
mod scratch;
mod sqlite;

use std::path::Path;
use std::sync::Arc;

use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::json;

use super::backup::catalogue::{Backup, catalogue};
use super::backup::checksum::Checksums;
use super::backup::manifest::{Level, MANIFEST, Verified};
use super::sql::Sql;
use super::written::{shown, shown_setting};
use super::{Class, Description, Inspection, Loader, Need, Perform, Prospect, Recovery, StepContext};
use crate::diagnostic::Diagnostic;
use crate::outcome::{ErrorKind, StepError, StepResult};
use crate::source::Spanned;
use crate::target::Targets;
use crate::template::{Place, Setting, Template, Values};
use crate::text::count;
use crate::units::{ByteSize, Duration};

/// Proves that a backup can be restored, or that it is at least undamaged.
///
/// What it is compared with is its manifest, never the database it was made of, which has moved
/// on. Each level includes the ones before: `checksum` (it is the file that was written, not a
/// bit differs), `archive` (PostgreSQL's own program reads it to its end and finds what the
/// manifest says), `restore` (restored into a scratch database: rows and fingerprints of each
/// table, large objects, sequences, objects, no invalid index, and the `checks`). What cannot be
/// looked at is a failure. The proof is noted in `FILE.verified.json`, which `prune_backups`
/// asks for.
///
/// ```yaml
/// verify_backup: {file: "{{ steps.backup.file }}", level: restore, max_age: 24h, rto: 5m}
/// verify_backup:
///   newest_in: backups
///   level: restore
///   checks:
///     - {name: companies are there, sql: {query: SELECT count(*) FROM companies, expect: {value: {gt: 0}}}}
/// ```
#[derive(Debug, Deserialize)]
#[serde(try_from = "Fields")]
pub struct VerifyBackup {
    which: Which,
    fields: Fields,
}

/// Which backup.
#[derive(Debug)]
enum Which {
    File(Template),
    NewestIn(Template),
}

/// The fields as they are written.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(extend("oneOf" = [{"required": ["file"]}, {"required": ["newest_in"]}]))]
struct Fields {
    /// The backup; relative to where runbook is run.
    #[serde(default)]
    file: Option<Template>,
    /// Instead of `file`: the newest backup in this directory.
    #[serde(default)]
    newest_in: Option<Template>,
    /// How far the proof goes. Default: `archive`.
    #[serde(default)]
    level: Level,
    /// It may not have been made longer ago.
    #[serde(default)]
    max_age: Option<Setting<Duration>>,
    /// It may not be smaller: a dump of the wrong, empty database is small.
    #[serde(default)]
    min_size: Option<Setting<ByteSize>>,
    /// Restoring it may not take longer (the recovery time objective); `level: restore` only.
    #[serde(default)]
    rto: Option<Spanned<Setting<Duration>>>,
    /// The server that takes the scratch database; its role must be allowed to create one.
    /// Default: the only connection, or `main`.
    #[serde(default)]
    connection: Option<Spanned<String>>,
    /// How many connections restore it. Default: 2.
    #[serde(default)]
    #[schemars(with = "Option<u32>", range(min = 1, max = 64))]
    jobs: Option<Spanned<u32>>,
    /// Whether objects shall get their owners, for which the server must know the roles.
    /// Default: true.
    #[serde(default = "yes")]
    owner: bool,
    /// Whether grants are restored too. Default: true.
    #[serde(default = "yes")]
    privileges: bool,
    /// What must be found in the restored database; `level: restore` only.
    #[serde(default)]
    checks: Vec<RestoredCheck>,
}

/// A query on the restored database.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RestoredCheck {
    /// For people.
    pub name: String,
    /// The query with its expectations, as in a step.
    pub sql: Spanned<Sql>,
}

impl TryFrom<Fields> for VerifyBackup {
    type Error = &'static str;

    fn try_from(mut fields: Fields) -> Result<Self, Self::Error> {
        let which = match (fields.file.take(), fields.newest_in.take()) {
            (Some(file), None) => Which::File(file),
            (None, Some(directory)) => Which::NewestIn(directory),
            _ => return Err("exactly one of `file` and `newest_in` must say which backup"),
        };
        Ok(Self { which, fields })
    }
}

impl JsonSchema for VerifyBackup {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "VerifyBackup".into()
    }
    fn json_schema(generator: &mut schemars::SchemaGenerator) -> schemars::Schema {
        let mut schema = Fields::json_schema(generator);
        schema.insert(
            "description".into(),
            "Proves that a backup can be restored, or that it is at least undamaged: checksum, archive or restore.".into(),
        );
        schema.insert(
            "examples".into(),
            json!([
                { "file": "{{ steps.backup.file }}", "level": "restore", "max_age": "24h", "rto": "5m" },
                { "newest_in": "backups", "level": "restore",
                  "checks": [{ "name": "companies are there", "sql": { "query": "SELECT count(*) FROM companies", "expect": { "value": { "gt": 0 } } } }] }
            ]),
        );
        schema
    }
}

fn yes() -> bool {
    true
}

impl Perform for VerifyBackup {
    fn class(&self) -> Class {
        if self.fields.level == Level::Restore { Class::Change } else { Class::Read }
    }

    /// A scratch database that is left behind is dropped first.
    fn recovery(&self) -> Recovery {
        Recovery::Repeat
    }

    fn load(&mut self, loader: &mut Loader<'_>) {
        for check in &mut self.fields.checks {
            check.sql.value.load(loader);
        }
    }

    fn inspect<'a>(&'a self, inspection: &mut Inspection<'a>) {
        inspection.template(self.which.template(), Place::Argument);
        if let Some(age) = &self.fields.max_age {
            inspection.setting(age);
        }
        if let Some(size) = &self.fields.min_size {
            inspection.setting(size);
        }
        if let Some(rto) = &self.fields.rto {
            inspection.setting(&rto.value);
        }
        if self.fields.level == Level::Restore {
            inspection.connection(self.fields.connection.as_ref());
        }
        self.inspect_checks(inspection);
        self.inspect_fields(inspection);
    }

    fn describe(&self, values: &Values) -> Description {
        let what = match &self.which {
            Which::File(file) => shown(file, values),
            Which::NewestIn(directory) => format!("the newest backup in {}", shown(directory, values)),
        };
        let mut details = vec!["its checksum is the manifest's".to_owned()];
        if self.fields.level >= Level::Archive {
            details.push("it is read to its end and holds what the manifest says".into());
        }
        if self.fields.level == Level::Restore {
            let server = self.fields.connection.as_ref().map_or_else(String::new, |name| format!(" on {}", name.value));
            details.push(format!("it is restored into a scratch database{server}, compared with the manifest, and dropped"));
        }
        details.extend(self.fields.checks.iter().map(|check| format!("there: {}", check.name)));
        let bound = |what: &str, text: String| format!("{what} {text}");
        details.extend(self.fields.max_age.iter().map(|age| bound("not older than", shown_setting(age, values))));
        details.extend(self.fields.min_size.iter().map(|size| bound("not smaller than", shown_setting(size, values))));
        details.extend(self.fields.rto.iter().map(|rto| bound("restored within", shown_setting(&rto.value, values))));
        Description { summary: format!("prove {what}"), details }
    }

    async fn needs(&self, prospect: &Prospect<'_>) -> Vec<Need> {
        let mut needs = vec![match &self.which {
            Which::File(file) => prospect.readable("backup", file),
            Which::NewestIn(directory) => prospect.path("backups", directory).map_or_else(|unknown| unknown, Need::Directory),
        }];
        if let (Level::Restore, Some(connection)) = (self.fields.level, prospect.connection(self.fields.connection.as_ref())) {
            needs.push(Need::ClientProgram { name: "pg_restore", connection });
        }
        needs
    }

    async fn run(&self, context: &StepContext) -> Result<StepResult, StepError> {
        let location = context.sources.location(self.which.template().text.span);
        Proof { step: self, context }.all().await.map_err(|error| error.at(location))
    }
}

impl Which {
    fn template(&self) -> &Template {
        match self {
            Self::File(template) | Self::NewestIn(template) => template,
        }
    }
}

impl VerifyBackup {
    /// They ask the restored database, whatever connections there are.
    fn inspect_checks<'a>(&'a self, inspection: &mut Inspection<'a>) {
        for check in &self.fields.checks {
            let mut inner = Inspection::default();
            check.sql.value.inspect(&mut inner);
            inspection.uses.extend(inner.uses);
            inspection.diagnostics.extend(inner.diagnostics);
            if let Some(named) = inner.connections.into_iter().flatten().next() {
                inspection.diagnostics.push(
                    Diagnostic::error("verify-backup", named.span, "a check asks the restored database, not a connection")
                        .help("leave `connection` out here"),
                );
            }
        }
    }

    fn inspect_fields(&self, inspection: &mut Inspection<'_>) {
        let mut problem = |span, message: &str, help: &str| {
            inspection.diagnostics.push(Diagnostic::error("verify-backup", span, message).help(help));
        };
        if let (Some(rto), true) = (&self.fields.rto, self.fields.level != Level::Restore) {
            problem(rto.span, "only `level: restore` measures how long restoring takes", "add `level: restore`, or leave `rto` out");
        }
        if let (Some(check), true) = (self.fields.checks.first(), self.fields.level != Level::Restore) {
            problem(check.sql.span, "only `level: restore` has a database to ask", "add `level: restore`, or leave `checks` out");
        }
        for check in self.fields.checks.iter().filter(|check| check.sql.value.class() != Class::Read) {
            problem(check.sql.span, "a check may only read", "use `query` instead of `exec`");
        }
        if let Some(jobs) = self.fields.jobs.as_ref().filter(|jobs| !(1..=64).contains(&jobs.value)) {
            problem(jobs.span, "`jobs` is a number from 1 to 64", "2 is enough for most");
        }
    }
}

/// What came of restoring a backup.
struct Restored {
    seconds: f64,
    findings: Vec<String>,
}

impl RestoredCheck {
    /// Asks the restored database.
    async fn ask(&self, there: &StepContext) -> Result<(), StepError> {
        let found = Box::pin(self.sql.value.run(there)).await;
        found.map(|_| ()).map_err(|error| error.fact("check of the restored database", self.name.clone()))
    }
}

/// The step's world with one database only, which `targets` knows as `connection`.
fn moved(context: &StepContext, targets: &Targets, connection: &str) -> StepContext {
    StepContext {
        targets: targets.clone(),
        connections: Arc::new([("main".to_owned(), connection.to_owned())].into()),
        default_connection: Some("main".into()),
        ..context.clone()
    }
}

/// One step's work.
struct Proof<'a> {
    step: &'a VerifyBackup,
    context: &'a StepContext,
}

impl Proof<'_> {
    async fn all(&self) -> Result<StepResult, StepError> {
        let backup = self.backup()?;
        let age = self.age(&backup)?;
        self.size(&backup)?;
        self.checksum(&backup).await?;
        let mut summary = "undamaged".to_owned();
        let mut findings = Vec::new();
        let mut restored = None;
        if self.step.fields.level >= Level::Archive {
            let outcome = self.contents(&backup).await?;
            summary = "readable to its end".into();
            if let Some(outcome) = outcome {
                self.in_time(outcome.seconds)?;
                summary = format!("restored in {:.1}s", outcome.seconds);
                findings.extend(outcome.findings);
                restored = Some(outcome.seconds);
            }
        }
        findings.extend(self.note(&backup, restored).err().map(|error| format!("the proof could not be noted beside the backup: {error}")));
        let manifest = &backup.manifest;
        if let (Some(tables), Some(rows)) = (&manifest.tables, manifest.rows()) {
            summary += &format!(", {} with {}", count(tables.len() as u64, "table"), count(rows, "row"));
        }
        Ok(StepResult {
            summary: format!("{summary}, {} old", spoken(age)),
            file: Some(backup.path.display().to_string()),
            json: Some(json!({
                "level": self.step.fields.level,
                "size": manifest.size,
                "sha256": manifest.sha256,
                "created_at": manifest.created_at,
                "age_seconds": age.as_secs(),
                "restore_seconds": restored,
                "tables": manifest.tables,
            })),
            findings,
            ..StepResult::default()
        })
    }

    /// Reads the backup through, and restores it where that is asked for.
    async fn contents(&self, backup: &Backup) -> Result<Option<Restored>, StepError> {
        let restores = self.step.fields.level == Level::Restore;
        if backup.manifest.format == sqlite::FORMAT {
            return sqlite::prove(self.step, self.context, backup, restores).await;
        }
        let listing = archive::read(self.context, backup).await?;
        match restores {
            true => Ok(Some(scratch::restore(self.step, self.context, backup, &listing).await?)),
            false => Ok(None),
        }
    }

    fn backup(&self) -> Result<Backup, StepError> {
        let path = |template: &Template| Ok::<_, StepError>(self.context.directory.join(self.context.values.text(template)?));
        match &self.step.which {
            Which::File(file) => the_backup(&path(file)?),
            Which::NewestIn(directory) => newest(&path(directory)?),
        }
    }

    fn age(&self, backup: &Backup) -> Result<std::time::Duration, StepError> {
        let made = backup.manifest.created_at;
        let age = std::time::Duration::try_from(self.context.clock.now().duration_since(made));
        let age = age.map_err(|_| {
            StepError::new(ErrorKind::Expectation, format!("by its manifest the backup is made in the future, at {made}"))
                .hint("one of the two clocks is wrong; the age of a backup can't be told then")
        })?;
        let limit = self.step.fields.max_age.as_ref().map(|limit| self.context.values.setting(limit)).transpose()?;
        match limit {
            Some(limit) if age > limit.0 => {
                Err(StepError::new(ErrorKind::Expectation, format!("the backup is {} old, more than {limit}", spoken(age)))
                    .fact("backup", backup.path.display().to_string())
                    .fact("made", made.to_string()))
            }
            _ => Ok(age),
        }
    }

    fn size(&self, backup: &Backup) -> Result<(), StepError> {
        let limit = self.step.fields.min_size.as_ref().map(|limit| self.context.values.setting(limit)).transpose()?;
        let size = ByteSize(backup.manifest.size);
        match limit {
            Some(limit) if size < limit => Err(StepError::new(ErrorKind::Expectation, format!("the backup has {size}, less than {limit}"))
                .fact("backup", backup.path.display().to_string())
                .fact("of database", backup.manifest.source.database.clone())),
            _ => Ok(()),
        }
    }

    async fn checksum(&self, backup: &Backup) -> Result<(), StepError> {
        self.context.progress("reading it", None);
        let (path, shape) = (backup.path.clone(), backup.shape);
        let taken = tokio::task::spawn_blocking(move || Checksums::take(&path, shape, |_| Ok(()))).await;
        let taken = taken.map_err(|lost| StepError::new(ErrorKind::Io, lost.to_string()))?;
        let taken = taken.map_err(|error| StepError::new(ErrorKind::Io, format!("cannot read {}: {error}", backup.path.display())))?;
        let manifest = &backup.manifest;
        if taken.size == manifest.size && taken.sha256 == manifest.sha256 {
            return Ok(());
        }
        let message = "the backup is not what was written: its checksum differs from the manifest's";
        Err(StepError::new(ErrorKind::Expectation, message)
            .fact("backup", backup.path.display().to_string())
            .fact("size", format!("{} bytes, in the manifest {}", taken.size, manifest.size))
            .fact("sha256", format!("{}, in the manifest {}", taken.sha256, manifest.sha256))
            .hint("it is damaged, cut off or was exchanged; take another backup, and look at the disk that holds this one"))
    }

    fn in_time(&self, seconds: f64) -> Result<(), StepError> {
        let Some(rto) = &self.step.fields.rto else { return Ok(()) };
        let rto = self.context.values.setting(&rto.value)?;
        if seconds <= rto.0.as_secs_f64() {
            return Ok(());
        }
        Err(StepError::new(ErrorKind::Expectation, format!("restoring it took {seconds:.1}s, longer than {rto}"))
            .hint("more `jobs` and `format: directory` restore faster; otherwise the promise has to change"))
    }

    /// A lesser proof does not replace a better one of the same file.
    fn note(&self, backup: &Backup, restore_seconds: Option<f64>) -> std::io::Result<()> {
        if backup.verified.as_ref().is_some_and(|known| known.level > self.step.fields.level) {
            return Ok(());
        }
        Verified {
            version: 1,
            sha256: backup.manifest.sha256.clone(),
            level: self.step.fields.level,
            verified_at: self.context.clock.now(),
            run: self.context.run.clone(),
            step: self.context.step.clone(),
            restore_seconds,
        }
        .write(&backup.path)
    }
}

/// The backup of this name.
fn the_backup(path: &Path) -> Result<Backup, StepError> {
    match Backup::open(path) {
        Ok(Some(backup)) => Ok(backup),
        Ok(None) => {
            Err(StepError::new(ErrorKind::Expectation, format!("{} has no manifest, so nothing tells what it should be", path.display()))
                .hint("a backup made by a `pg_dump` step has one; could not be verified is not verified"))
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            Err(StepError::new(ErrorKind::Expectation, format!("there is no backup {}", path.display())))
        }
        Err(error) => Err(StepError::new(ErrorKind::Io, format!("cannot read the backup {}: {error}", path.display()))),
    }
}

/// The newest backup in a directory. A manifest that can't be read may be the newest one's.
fn newest(directory: &Path) -> Result<Backup, StepError> {
    let listed = catalogue(directory);
    let listed =
        listed.map_err(|error| StepError::new(ErrorKind::Io, format!("cannot look for backups in {}: {error}", directory.display())))?;
    if let Some((manifest, error)) = listed.unusable.first() {
        let message = format!("{} can't be used, so which backup is the newest is not known", manifest.display());
        return Err(StepError::new(ErrorKind::Expectation, message)
            .fact("because", error.to_string())
            .hint("repair it or move it away, with the files it belongs to"));
    }
    listed.backups.into_iter().next().ok_or_else(|| {
        StepError::new(ErrorKind::Expectation, format!("there is no backup in {}", directory.display()))
            .hint(format!("a backup is a file or directory with a {MANIFEST} beside it"))
    })
}

/// `3 days 4h`, `12m`, `45s`: as precise as anybody wants to know.
fn spoken(age: std::time::Duration) -> String {
    let seconds = age.as_secs();
    let rounded = match seconds {
        0..60 => seconds,
        60..3600 => seconds / 60 * 60,
        _ => seconds / 3600 * 3600,
    };
    humantime::format_duration(std::time::Duration::from_secs(rounded)).to_string()
}

#[cfg(test)]
mod tests;
