//! A restored database beside the manifest of its backup.

use serde_json::{Value, json};

use super::VerifyBackup;
use crate::action::StepContext;
use crate::action::backup::archive::Listing;
use crate::action::backup::client::{Client, MemoryFile, not_passed};
use crate::action::backup::contents::Moment;
use crate::action::backup::manifest::{Manifest, TableContent};
use crate::outcome::{Column, ErrorKind, StepError, StepResult};
use crate::text::count;

/// More differences than this are only counted.
const SHOWN: usize = 20;
/// Entries that exist only with privileges.
const GRANTS: &[&str] = &["ACL", "DEFAULT ACL"];

/// One thing that is not as the manifest says.
pub(super) struct Difference {
    pub what: String,
    pub expected: String,
    pub found: String,
}

/// Fails on any difference. Gives what is worth knowing besides.
pub(super) async fn compare(
    step: &VerifyBackup,
    context: &StepContext,
    manifest: &Manifest,
    moment: &mut Moment<'_>,
    client: &Client,
) -> Result<Vec<String>, StepError> {
    let tables = counted(manifest)?;
    let mut differences = Vec::new();
    for told in tables {
        let found = moment.content(&told.table, told.fingerprint.is_some()).await;
        differences.extend(table(told, &found.map_err(|error| missing(error, &told.table))?));
    }
    for (name, told) in &manifest.sequences {
        let found = moment.sequence(name).await?;
        if found != *told {
            let shown = |value: i64, called: bool| format!("{value}{}", if called { "" } else { " (not given out yet)" });
            let (expected, found) = (shown(told.value, told.called), shown(found.value, found.called));
            differences.push(Difference { what: format!("sequence {name}"), expected, found });
        }
    }
    if let Some(told) = manifest.large_objects {
        let found = moment.large_objects().await?;
        if found != told {
            differences.push(Difference { what: "large objects".into(), expected: told.to_string(), found: found.to_string() });
        }
    }
    differences.extend(objects(step, context, manifest, client).await?);
    for index in moment.invalid_indexes().await? {
        differences.push(Difference { what: format!("index {index}"), expected: "valid".into(), found: "invalid".into() });
    }
    if differences.is_empty() { Ok(not_validated(moment).await?) } else { Err(refusal(&differences)) }
}

/// Nothing compared is nothing proven.
pub(super) fn counted(manifest: &Manifest) -> Result<&[TableContent], StepError> {
    let hint = "dump with `with: [count]`, which is the default, from a database that has tables";
    match manifest.tables.as_deref() {
        Some(tables) if !tables.is_empty() => Ok(tables),
        Some(_) => Err(StepError::new(ErrorKind::Expectation, "the backup holds no table, so restoring it proves nothing").hint(hint)),
        None => Err(StepError::new(ErrorKind::Expectation, "the manifest has no counts, so there is nothing to compare with").hint(hint)),
    }
}

pub(super) fn table(told: &TableContent, found: &TableContent) -> Option<Difference> {
    if told.rows != found.rows {
        let (expected, found) = (count(told.rows, "row"), count(found.rows, "row"));
        return Some(Difference { what: format!("table {}", told.table), expected, found });
    }
    (told.fingerprint != found.fingerprint).then(|| Difference {
        what: format!("table {}", told.table),
        expected: format!("fingerprint {}", told.fingerprint.as_deref().unwrap_or("none")),
        found: format!("fingerprint {}", found.fingerprint.as_deref().unwrap_or("none")),
    })
}

fn missing(error: StepError, table: &str) -> StepError {
    if error.facts.iter().any(|(_, text)| text.contains("42P01")) {
        return StepError::new(ErrorKind::Expectation, format!("table {table} is in the manifest, but not in the restored database"));
    }
    error
}

/// What `pg_dump` sees in the restored database, in the manifest's own words.
async fn objects(step: &VerifyBackup, context: &StepContext, manifest: &Manifest, client: &Client) -> Result<Vec<Difference>, StepError> {
    let file = MemoryFile::new("").map_err(|error| not_passed(&error))?;
    let dump = ["pg_dump", "--no-password", "--schema-only", "--format=custom", "--exclude-schema=runbook"];
    client.must(context, dump.iter().map(|&part| part.to_owned()).chain([format!("--file={}", file.name())]).collect()).await?;
    let argv = |list: String| vec!["pg_restore".into(), "--list".into(), format!("--file={list}"), file.name()];
    let mut found = Listing::of_archive(&client.text(context, argv).await?).objects();
    let mut told = manifest.objects.clone();
    if let Some(keys) = told.get_mut("FK CONSTRAINT") {
        *keys = keys.saturating_sub(manifest.open_references.len() as u64);
    }
    for objects in [&mut told, &mut found] {
        objects.retain(|kind, number| *number > 0 && (step.fields.privileges || !GRANTS.contains(&kind.as_str())));
    }
    let kinds: std::collections::BTreeSet<&String> = told.keys().chain(found.keys()).collect();
    let number = |objects: &std::collections::BTreeMap<String, u64>, kind: &str| objects.get(kind).copied().unwrap_or(0);
    let differing = kinds.into_iter().filter(|kind| number(&told, kind) != number(&found, kind));
    Ok(differing
        .map(|kind| Difference {
            what: format!("objects of type {}", kind.to_lowercase()),
            expected: number(&told, kind).to_string(),
            found: number(&found, kind).to_string(),
        })
        .collect())
}

async fn not_validated(moment: &mut Moment<'_>) -> Result<Vec<String>, StepError> {
    let constraints = moment.constraints_not_validated().await?;
    Ok(constraints.into_iter().map(|name| format!("the constraint {name} was never validated, in the source neither")).collect())
}

pub(super) fn refusal(differences: &[Difference]) -> StepError {
    let message = match differences {
        [only] => format!("the restored database is not what was dumped: {} has {}, expected {}", only.what, only.found, only.expected),
        all => format!("the restored database is not what was dumped: {} things differ", all.len()),
    };
    let column = |name: &str| Column { name: name.to_owned(), type_name: "text".to_owned() };
    let rows = differences.iter().take(SHOWN).map(|one| vec![json!(one.what), json!(one.expected), json!(one.found)]);
    let result = StepResult {
        columns: ["what", "in the manifest", "restored"].map(column).into(),
        rows: rows.collect::<Vec<Vec<Value>>>(),
        row_count: Some(differences.len() as u64),
        ..StepResult::default()
    };
    StepError::new(ErrorKind::Expectation, message)
        .hint("do not rely on this backup; take another one and find out what happened to it")
        .with_result(result)
}
