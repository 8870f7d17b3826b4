//! `sqlite_backup`: a consistent copy of an SQLite database, complete or not there at all.

use std::path::PathBuf;

use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::json;

use super::backup::checksum::Shape;
use super::backup::manifest::{Manifest, Source};
use super::backup::partial::{Partial, completed};
use super::backup::sqlite::{Contents, damaged, targets};
use super::effect::cancellable;
use super::pg_dump::Kept;
use super::written::shown;
use super::{Class, Description, Inspection, Need, Perform, Prospect, Recovery, StepContext};
use crate::outcome::{Aftermath, ErrorKind, StepError, StepResult};
use crate::source::Spanned;
use crate::target::{Identity, Kind, SessionSettings, Statement, text_literal};
use crate::template::{Place, Template, Values};
use crate::text::count;
use crate::units::ByteSize;

/// Copies an SQLite database while others read and write it.
///
/// The copy is as of one moment, without what the write-ahead log still holds beside the file;
/// SQLite checks it, and its tables are counted. It is readable by its owner alone and appears
/// under its name only when it is complete and on disk; an existing file is never overwritten.
/// `FILE.manifest.json` and `FILE.sha256` stand beside it. To restore it, copy it back while
/// nobody has the database open.
///
/// ```yaml
/// sqlite_backup: {file: "backups/{{ run.started_at | date('%Y%m%d_%H%M%S') }}.db"}
/// ```
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SqliteBackup {
    /// The database. Default: the only connection, or `main`.
    #[serde(default)]
    pub connection: Option<Spanned<String>>,
    /// Where to; relative to where runbook is run. Missing directories are made.
    pub file: Template,
    /// Whether to write `FILE.manifest.json` and `FILE.sha256`. Default: true.
    #[serde(default = "yes")]
    pub manifest: bool,
    /// What the manifest keeps of each table. Default: `[count]`.
    #[serde(default = "counts")]
    pub with: Vec<Kept>,
}

fn yes() -> bool {
    true
}

fn counts() -> Vec<Kept> {
    vec![Kept::Count]
}

impl Perform for SqliteBackup {
    fn class(&self) -> Class {
        Class::Change
    }

    /// A copy that did not get its name is no copy.
    fn recovery(&self) -> Recovery {
        Recovery::Repeat
    }

    fn inspect<'a>(&'a self, inspection: &mut Inspection<'a>) {
        inspection.connection(self.connection.as_ref());
        inspection.template(&self.file, Place::Argument);
    }

    fn describe(&self, values: &Values) -> Description {
        let from = self.connection.as_ref().map_or_else(String::new, |name| format!(" {}", name.value));
        Description {
            summary: format!("copy{from} to {}", shown(&self.file, values)),
            details: vec!["VACUUM INTO, then PRAGMA integrity_check on the copy".into()],
        }
    }

    async fn needs(&self, prospect: &Prospect<'_>) -> Vec<Need> {
        vec![prospect.writable("copy", &self.file, false)]
    }

    async fn run(&self, context: &StepContext) -> Result<StepResult, StepError> {
        let location = context.sources.location(self.file.text.span);
        self.copy(context).await.map_err(|error| error.aftermath(Aftermath::Unchanged).at(location))
    }
}

impl SqliteBackup {
    async fn copy(&self, context: &StepContext) -> Result<StepResult, StepError> {
        let file = std::path::absolute(context.directory.join(context.values.text(&self.file)?));
        let file = file.map_err(|error| StepError::new(ErrorKind::Io, format!("the file's name can't be used: {error}")))?;
        if context.uncertain
            && let Some(manifest) = completed(&file, Shape::File, &context.run, &context.step)
        {
            return Ok(result(file, &manifest, Vec::new()));
        }
        let started = context.clock.now();
        let connection = context.connection(self.connection.as_ref().map(|name| name.value.as_str()))?;
        let identity = context.targets.identity(connection).await?;
        if identity.kind != Kind::Sqlite {
            return Err(StepError::new(
                ErrorKind::Connection,
                format!("`{connection}` is a PostgreSQL database, and this step copies SQLite's"),
            )
            .hint("`pg_dump` backs up a PostgreSQL database"));
        }
        let partial = Partial::create(&file, Shape::File)?;
        self.fill(context, connection, &partial).await?;
        let mut manifest = self.manifest(context, &file, identity, started);
        let findings = self.look(context, &partial, &mut manifest).await?;
        manifest.seconds = (context.clock.now() - started).total(jiff::Unit::Second).unwrap_or_default();
        let wanted = self.manifest;
        let published = tokio::task::spawn_blocking(move || partial.publish(manifest, wanted)).await;
        let published = published.map_err(|lost| StepError::new(ErrorKind::Io, lost.to_string()))?;
        Ok(result(file, &published?, findings))
    }

    async fn fill(&self, context: &StepContext, connection: &str, partial: &Partial) -> Result<(), StepError> {
        context.progress("copying", None);
        let settings = SessionSettings { statement_timeout: None, ..context.session.clone() };
        let mut session = context.targets.session(connection, &context.step, &settings).await?;
        let path = partial.path().to_str().ok_or_else(|| StepError::new(ErrorKind::Io, "a backup's file name must be UTF-8"))?;
        let vacuum = format!("VACUUM INTO {}", text_literal(path));
        let canceller = session.canceller();
        let statement = Statement::change(&vacuum);
        cancellable(&canceller, &context.cancel, session.execute(&statement, &mut |_, _| ())).await?;
        Ok(())
    }

    /// The copy is asked, not the database, which others go on changing.
    async fn look(&self, context: &StepContext, partial: &Partial, manifest: &mut Manifest) -> Result<Vec<String>, StepError> {
        context.progress("checking the copy", None);
        let mut copy = Contents::open(context, &targets(context, partial.path())).await?;
        if let Some(error) = damaged(&copy.damage().await?) {
            return Err(error);
        }
        manifest.objects = copy.objects().await?;
        if !self.with.is_empty() {
            manifest.tables = Some(copy.tables(self.with.contains(&Kept::Fingerprint)).await?);
        }
        let orphans = copy.orphans().await?.into_iter();
        Ok(orphans.map(|(table, rows)| format!("{} of {table} refer to rows that are not there", count(rows, "row"))).collect())
    }

    fn manifest(&self, context: &StepContext, file: &std::path::Path, identity: Identity, started: jiff::Timestamp) -> Manifest {
        Manifest {
            version: 1,
            file: file.file_name().unwrap_or_default().to_string_lossy().into_owned(),
            format: "sqlite".into(),
            run: context.run.clone(),
            step: context.step.clone(),
            created_at: started,
            program: format!("SQLite {}", identity.version),
            whole: true,
            source: Source {
                database: identity.database,
                server_version: identity.version,
                major_version: identity.major_version,
                environment: identity.environment,
                ..Source::default()
            },
            ..Manifest::default()
        }
    }
}

fn result(file: PathBuf, manifest: &Manifest, findings: Vec<String>) -> StepResult {
    let counted = match (&manifest.tables, manifest.rows()) {
        (Some(tables), Some(rows)) => format!(", {} with {}", count(tables.len() as u64, "table"), count(rows, "row")),
        _ => String::new(),
    };
    StepResult {
        summary: format!("{}{counted}, sha256 {}…", ByteSize(manifest.size), &manifest.sha256[..12.min(manifest.sha256.len())]),
        file: Some(file.display().to_string()),
        json: Some(json!({"size": manifest.size, "sha256": manifest.sha256, "format": manifest.format, "tables": manifest.tables})),
        findings,
        ..StepResult::default()
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::sync::Arc;

    use serde_json::json;

    use super::super::backup::checksum::Checksums;
    use super::super::testing::{World, action};
    use super::super::verify_backup::VerifyBackup;
    use super::*;
    use crate::target::testing::{spec, targets as targets_of};

    async fn world() -> World {
        let mut world = World::new(&json!({}), &[]);
        let url = format!("sqlite:{}?mode=rwc", world.context.directory.join("app.db").display());
        world.context.targets = targets_of(spec(&url));
        world.context.connections = Arc::new([("main".to_owned(), "main".to_owned())].into());
        world.context.default_connection = Some("main".into());
        let mut session = world.context.targets.session("main", "step", &SessionSettings::default()).await.unwrap();
        for sql in [
            "PRAGMA journal_mode = wal",
            "CREATE TABLE users (id INTEGER PRIMARY KEY, name TEXT)",
            "CREATE TABLE \"odd table\" (x)",
            "CREATE INDEX users_name ON users (name)",
            "INSERT INTO users (name) WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 500) SELECT 'user ' || i FROM n",
        ] {
            session.execute(&Statement::change(sql), &mut |_, _| ()).await.unwrap();
        }
        world
    }

    async fn copy(world: &World, yaml: &str) -> Result<StepResult, StepError> {
        action::<SqliteBackup>(yaml).run(&world.context).await
    }

    async fn verify(world: &World, yaml: &str) -> Result<StepResult, StepError> {
        action::<VerifyBackup>(yaml).run(&world.context).await
    }

    #[tokio::test]
    async fn a_copy_is_proven_like_a_dump() {
        let world = world().await;
        let made = copy(&world, "{file: 'backups/a.db', with: [count, fingerprint]}").await.unwrap();
        assert!(made.summary.contains("2 tables with 500 rows"), "{}", made.summary);
        let checks = "[{name: users, sql: {query: SELECT count(*) FROM users, expect: {value: 500}}}]";
        let proven = verify(&world, &format!("{{file: backups/a.db, level: restore, checks: {checks}}}")).await.unwrap();
        assert!(proven.summary.contains("2 tables with 500 rows"), "{}", proven.summary);
        let again = copy(&world, "{file: 'backups/a.db'}").await.unwrap_err();
        assert!(again.message.ends_with("exists already; nothing was overwritten"));
        let names: Vec<String> = {
            let entries = fs::read_dir(world.context.directory.join("backups")).unwrap();
            let mut names: Vec<String> = entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect();
            names.sort();
            names
        };
        assert_eq!(names, ["a.db", "a.db.manifest.json", "a.db.sha256", "a.db.verified.json"]);
    }

    #[tokio::test]
    async fn a_damaged_copy_is_refused() {
        let world = world().await;
        copy(&world, "{file: a.db, with: [count, fingerprint]}").await.unwrap();
        let file = world.context.directory.join("a.db");
        let whole = fs::read(&file).unwrap();
        let spoil = |change: &dyn Fn(&mut Vec<u8>)| {
            let mut bytes = whole.clone();
            change(&mut bytes);
            fs::write(&file, bytes).unwrap();
        };
        let cut_off = |bytes: &mut Vec<u8>| bytes.truncate(bytes.len() / 2);
        let other_name = |bytes: &mut Vec<u8>| {
            let place = bytes.windows(8).rposition(|window| window == b"user 499").unwrap();
            bytes[place] ^= 1;
        };
        spoil(&cut_off);
        let error = verify(&world, "{file: a.db, level: checksum}").await.unwrap_err();
        assert!(error.message.starts_with("the backup is not what was written"));
        let fit = || {
            let taken = Checksums::take(&file, Shape::File, |_| Ok(())).unwrap();
            let manifest = Manifest::read(&file).unwrap().unwrap();
            Manifest { size: taken.size, sha256: taken.sha256, ..manifest }.write(&file).unwrap();
        };
        fit();
        let error = verify(&world, "{file: a.db}").await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Expectation, "{}", error.message);
        spoil(&other_name);
        fit();
        let error = verify(&world, "{file: a.db, level: restore}").await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Expectation, "{}", error.message);
    }
}
