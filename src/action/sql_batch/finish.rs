//! The end of the step: what must hold of the whole table, and the proof in the ledger.

use std::sync::atomic::Ordering;

use serde_json::Value;

use super::statements::Spec;
use super::talk::{Rows, Talk, failed, number};
use super::worker::Job;
use super::{Expect, SqlBatch};
use crate::action::effect::Effect;
use crate::action::expect::Comparison;
use crate::outcome::{Aftermath, ErrorKind, Sample, StepError, StepResult};
use crate::source::{Span, Spanned};
use crate::target::{TargetError, identifier};
use crate::text::{count, table::plain_value};

/// Rows shown of what should not be.
const SHOWN: usize = 20;

/// Rows that `where` still finds; `None` without a `where`.
pub(super) async fn remaining(talk: &mut Talk, spec: &Spec) -> Result<Option<u64>, StepError> {
    let Some(condition) = &spec.condition else { return Ok(None) };
    let sql = format!("SELECT count(*) FROM {} WHERE ({condition}\n)", spec.table);
    Ok(Some(number(&talk.look(&sql).await.map_err(failed)?)))
}

/// Judges the end and makes it durable; what the batches did stays either way.
pub(super) async fn finish(batch: &SqlBatch, job: &Job<'_>, talk: &mut Talk, left: Option<u64>) -> Result<StepResult, StepError> {
    let changed = job.books.changed(talk, None).await.map_err(failed)?;
    let sweeps = job.phase;
    let late = if sweeps > 0 { changed - job.books.changed(talk, Some(0)).await.map_err(failed)? } else { 0 };
    let left = match left {
        None if batch.expect.is_some() => remaining(talk, job.spec).await?,
        known => known,
    };
    let kept = match &job.spec.restored {
        Some(found) => found.left(changed, talk).await.map_err(failed)?,
        None => 0,
    };
    let since = (kept > 0).then(|| {
        format!("{} changed since or gone: left as they are; their old values stay in {}", count(kept, "row"), job.spec.worklist_table())
    });
    let result = StepResult {
        findings: since.into_iter().collect(),
        summary: summary(job, changed, late),
        value: Some(Value::from(changed)),
        rows_affected: Some(changed),
        ..StepResult::default()
    };
    if let Some(expect) = &batch.expect {
        judge(expect, job, talk, changed, left).await.map_err(|error| error.with_result(result.clone()))?;
    }
    record(job, talk, result, kept == 0).await
}

fn summary(job: &Job<'_>, changed: u64, late: u64) -> String {
    let order = job.table.way.order();
    let swept = if late > 0 { format!(", {late} of them late or moved") } else { String::new() };
    let batches = match job.batches.load(Ordering::Relaxed) {
        // All were done by an earlier process.
        0 => String::new(),
        1 => " in 1 batch".to_owned(),
        many => format!(" in {many} batches"),
    };
    format!("{} changed{swept}{batches}, {order} order: {}", count(changed, "row"), job.table.reason)
}

async fn judge(expect: &Expect, job: &Job<'_>, talk: &mut Talk, changed: u64, left: Option<u64>) -> Result<(), StepError> {
    compare(expect.rows_affected.as_ref(), "rows changed", changed, job)?;
    if let Some(left) = left
        && let Err(error) = compare(expect.remaining.as_ref(), "rows that `where` still finds", left, job)
    {
        let mut error = error;
        if job.spec.worklist.is_some() {
            error.hints =
                vec!["Rows that came after the worklist was computed are not in it; a further step, or a new run, takes them.".into()];
        }
        return Err(shown(error, talk, &job.spec.unfinished(job.table, SHOWN), left).await);
    }
    unique(expect, job, talk).await?;
    not_null(expect, job, talk).await
}

fn compare(comparison: Option<&Comparison>, what: &str, actual: u64, job: &Job<'_>) -> Result<(), StepError> {
    let Some(comparison) = comparison else { return Ok(()) };
    let expected = comparison.resolve(&job.context.values)?;
    if expected.accepts(&Value::from(actual), "int8").unwrap_or(false) {
        return Ok(());
    }
    Err(unmet(format!("{what}: expected {expected}, found {actual}"), comparison.span, job))
}

async fn unique(expect: &Expect, job: &Job<'_>, talk: &mut Talk) -> Result<(), StepError> {
    let [first, ..] = expect.unique.as_slice() else { return Ok(()) };
    let columns = listed(&expect.unique);
    let filled: Vec<String> = expect.unique.iter().map(|column| format!("{} IS NOT NULL", identifier(&column.value))).collect();
    let groups = format!(
        "SELECT {columns}, count(*) AS rows FROM {} WHERE {} GROUP BY {columns} HAVING count(*) > 1",
        job.spec.table,
        filled.join(" AND ")
    );
    let found = number(&talk.look(&format!("SELECT count(*) FROM ({groups}) AS groups")).await.map_err(failed)?);
    if found == 0 {
        return Ok(());
    }
    let error = unmet(format!("({columns}) is not unique: {} occur more than once", count(found, "value")), first.span, job);
    Err(shown(error, talk, &format!("{groups} LIMIT {SHOWN}"), found).await)
}

async fn not_null(expect: &Expect, job: &Job<'_>, talk: &mut Talk) -> Result<(), StepError> {
    for column in &expect.not_null {
        let rows = format!("FROM {} WHERE {} IS NULL", job.spec.table, identifier(&column.value));
        let found = number(&talk.look(&format!("SELECT count(*) {rows}")).await.map_err(failed)?);
        if found > 0 {
            let error = unmet(format!("{} is NULL in {}", column.value, count(found, "row")), column.span, job);
            return Err(shown(error, talk, &format!("SELECT * {rows} LIMIT {SHOWN}"), found).await);
        }
    }
    Ok(())
}

fn listed(columns: &[Spanned<String>]) -> String {
    columns.iter().map(|column| identifier(&column.value)).collect::<Vec<_>>().join(", ")
}

fn unmet(message: String, span: Span, job: &Job<'_>) -> StepError {
    StepError::new(ErrorKind::Expectation, message)
        .aftermath(Aftermath::Partial)
        .at(job.context.sources.location(span))
        .hint("What the batches have changed is committed; mend the rows, then `runbook resume` sweeps and looks again.")
}

/// Adds the rows that show it.
async fn shown(error: StepError, talk: &mut Talk, sql: &str, total: u64) -> StepError {
    match talk.look_with_columns(sql).await {
        Ok((columns, rows)) => StepError { sample: Some(Sample { columns, rows: plain(rows), total }), ..error },
        Err(_) => error,
    }
}

fn plain(rows: Rows) -> Rows {
    rows.into_iter().map(|row| row.into_iter().map(|value| Value::String(plain_value(&value))).collect()).collect()
}

/// One transaction forgets the books and records that the step is done.
async fn record(job: &Job<'_>, talk: &mut Talk, result: StepResult, all_put_back: bool) -> Result<StepResult, StepError> {
    let effect = Effect { context: job.context, connection: job.connection, ledger: true };
    let recorded = async {
        talk.begin(None).await?;
        job.books.close(talk, job.spec).await?;
        if let Some(found) = job.spec.restored.as_ref().filter(|_| all_put_back) {
            found.forget(job.spec.kind, talk).await?;
        }
        effect.record(&mut talk.session, &result).await?;
        talk.session.commit().await
    }
    .await;
    match recorded {
        Ok(()) => Ok(result),
        Err(TargetError::CommitUnknown { pid, .. }) => effect.resolve(pid, result).await.map_err(|error| match error.aftermath {
            Aftermath::Unchanged => error.aftermath(Aftermath::Partial),
            _ => error,
        }),
        Err(error) => {
            talk.session.rollback().await;
            Err(failed(error))
        }
    }
}
