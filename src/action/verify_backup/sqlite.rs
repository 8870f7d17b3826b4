//! Whether the copy of an SQLite database is sound and holds what its manifest says.

use std::time::Instant;

use super::compare::{Difference, counted, refusal, table};
use super::{Restored, VerifyBackup, moved};
use crate::action::StepContext;
use crate::action::backup::catalogue::Backup;
use crate::action::backup::sqlite::{COPY, Contents, damaged, targets};
use crate::outcome::{ErrorKind, StepError};

/// What manifests call such a copy.
pub(super) const FORMAT: &str = "sqlite";

/// A copy is its own restored database: what would be copied back is opened where it lies.
pub(super) async fn prove(
    step: &VerifyBackup,
    context: &StepContext,
    backup: &Backup,
    restores: bool,
) -> Result<Option<Restored>, StepError> {
    let started = Instant::now();
    let targets = targets(context, &backup.path);
    let mut copy = Contents::open(context, &targets).await.map_err(unusable)?;
    if let Some(error) = damaged(&copy.damage().await.map_err(unusable)?) {
        return Err(error);
    }
    if copy.objects().await.map_err(unusable)? != backup.manifest.objects {
        return Err(StepError::new(ErrorKind::Expectation, "the backup does not hold the objects its manifest tells of"));
    }
    if !restores {
        return Ok(None);
    }
    let told = counted(&backup.manifest)?;
    let found = copy.tables(told.iter().any(|table| table.fingerprint.is_some())).await.map_err(unusable)?;
    let differences: Vec<Difference> = told
        .iter()
        .filter_map(|told| match found.iter().find(|found| found.table == told.table) {
            Some(found) => table(told, found),
            None => Some(Difference { what: format!("table {}", told.table), expected: "there".into(), found: "missing".into() }),
        })
        .collect();
    if !differences.is_empty() {
        return Err(refusal(&differences));
    }
    let seconds = started.elapsed().as_secs_f64();
    let there = moved(context, &targets, COPY);
    for check in &step.fields.checks {
        check.ask(&there).await?;
    }
    Ok(Some(Restored { seconds, findings: Vec::new() }))
}

/// SQLite refuses what is no database: that is an answer.
fn unusable(error: StepError) -> StepError {
    match error.kind {
        ErrorKind::Cancelled => error,
        _ => StepError::new(ErrorKind::Expectation, "the backup can't be read to its end").fact("because", error.message),
    }
}
