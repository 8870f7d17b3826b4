//! What stands between a restore and the data it overwrites: a dump of them, and a person.

use std::path::{Path, PathBuf};

use super::PgRestore;
use super::backup_file::BackupFile;
use crate::action::backup::manifest::Manifest;
use crate::action::pg_dump::{DumpCheck, DumpFormat, Kept, PgDump};
use crate::action::{Perform, Prompt, PromptKind, StepContext};
use crate::outcome::{ErrorKind, StepError};
use crate::source::Spanned;
use crate::template::{Expression, Template};
use crate::text::{count, moment};
use crate::units::ByteSize;

/// Where the safety dump goes: beside the backup unless the author says otherwise.
pub(super) fn path(context: &StepContext, step: &PgRestore, backup: &Path) -> Result<PathBuf, StepError> {
    if let Some(template) = &step.safety_dump {
        return Ok(context.directory.join(context.values.text(template)?));
    }
    let name = backup.file_name().unwrap_or_default().to_string_lossy();
    Ok(backup.with_file_name(format!("{name}.before-{}.dump", context.run)))
}

/// An attempt that failed or was killed has left its dump, and since then rows may have
/// changed: each attempt makes its own.
pub(super) fn free_name(path: PathBuf) -> PathBuf {
    let numbered = |number: u32| PathBuf::from(format!("{}.{number}", path.display()));
    if path.symlink_metadata().is_err() {
        return path;
    }
    (2..).map(numbered).find(|path| path.symlink_metadata().is_err()).unwrap_or(path)
}

/// Makes it; `tables`: of these only.
pub(super) async fn dump(context: &StepContext, step: &PgRestore, path: &Path, tables: &[String]) -> Result<(), StepError> {
    let dump = PgDump {
        connection: step.into.clone(),
        file: written(&path.display().to_string()),
        format: DumpFormat::Custom,
        compression: None,
        tables: tables.iter().map(|table| written(table)).collect(),
        schemas: Vec::new(),
        exclude_tables: Vec::new(),
        exclude_schemas: Vec::new(),
        exclude_rows: Vec::new(),
        large_objects: None,
        jobs: None,
        verify: DumpCheck::Archive,
        manifest: true,
        with: vec![Kept::Count],
        globals: None,
        lock_wait_timeout: None,
        check_space: true,
    };
    let failed =
        |error: StepError| StepError { message: format!("the safety dump failed, so nothing was changed: {}", error.message), ..error };
    let result = Box::pin(dump.run(context)).await.map_err(failed)?;
    context.output.note(&format!("safety dump {}: {}", path.display(), result.summary));
    Ok(())
}

/// A template that is only text.
fn written(text: &str) -> Template {
    let text = Spanned::new(text.to_owned(), crate::source::Span::default());
    let parts = vec![crate::template::Part::Text(0..text.value.len())];
    Template { text, parts }
}

/// Asks for the database's name.
pub(super) async fn confirm(
    context: &StepContext,
    environment: &str,
    database: &str,
    overwritten: Vec<String>,
    file: &BackupFile,
    safety_dump: &Path,
) -> Result<(), StepError> {
    let mut facts: Vec<(String, String)> = overwritten.into_iter().map(|line| ("overwritten".to_owned(), line)).collect();
    facts.push(("backup".into(), file.manifest.as_ref().map_or_else(|| unknown(file), |manifest| age(context, manifest))));
    facts.push(("safety dump".into(), format!("{}, made first", safety_dump.display())));
    let prompt = Prompt {
        message: format!("Overwrite database {database} ({environment}) with {}?", file.path.display()),
        facts,
        kind: PromptKind::Type(database.to_owned()),
        timeout_seconds: None,
        approvers: 0,
    };
    let answer = context.ask(prompt).await?;
    if answer.accepted {
        return Ok(());
    }
    let reason = answer.text.map_or_else(String::new, |text| format!(": {text}"));
    Err(StepError::new(ErrorKind::Declined, format!("declined by {}{reason}", answer.by)))
}

fn unknown(file: &BackupFile) -> String {
    format!("{}, without a manifest that tells when it was made", file.path.display())
}

/// When and of what it was made.
fn age(context: &StepContext, manifest: &Manifest) -> String {
    let age = started(context).and_then(|started| u64::try_from(started.as_second() - manifest.created_at.as_second()).ok());
    let age = age.map_or_else(String::new, |seconds| format!(", {} before this run", rough(seconds)));
    let when = format!("{}{age}", moment(manifest.created_at));
    format!("of database {}, made {when}, {}", manifest.source.database, ByteSize(manifest.size))
}

/// When the run began: an age that goes on growing would make every look a new question.
fn started(context: &StepContext) -> Option<jiff::Timestamp> {
    let expression = Expression::parse(Spanned::new("run.started_at".to_owned(), crate::source::Span::default())).ok()?;
    context.values.evaluate(&expression).ok()?.as_str()?.parse().ok()
}

/// A span of time as people say it.
fn rough(seconds: u64) -> String {
    match seconds {
        0..120 => count(seconds, "second"),
        120..7200 => count(seconds / 60, "minute"),
        7200..172_800 => count(seconds / 3600, "hour"),
        _ => count(seconds / 86_400, "day"),
    }
}
