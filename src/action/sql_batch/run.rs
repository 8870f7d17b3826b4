//! From the first look at the table to the ledger: phases, workers, sweeps.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::time::Instant;

use futures_util::future::join_all;
use tokio::sync::watch;

use super::SqlBatch;
use super::chunks::{Books, Standing};
use super::finish::{finish, remaining};
use super::kept::Found;
use super::pace::TARGET;
use super::statements::Spec;
use super::table::{Table, Way};
use super::talk::{Talk, failed, unusable};
use super::throttle::Watch;
use super::worker::Job;
use crate::action::StepContext;
use crate::outcome::{ErrorKind, StepError, StepResult};
use crate::target::{Isolation, Kind, LedgerMode, SessionSettings, TargetError};

/// How often rows that came late or moved are looked for.
const SWEEPS: u64 = 5;

pub(super) async fn run(batch: &SqlBatch, context: &StepContext) -> Result<StepResult, StepError> {
    let connection = context.connection(batch.connection.as_ref().map(|name| name.value.as_str()))?;
    if context.targets.ledger_mode(connection)? == LedgerMode::None {
        return Err(StepError::new(
            ErrorKind::Connection,
            format!("connection `{connection}` keeps no ledger, and batches need their place in it"),
        )
        .hint("Remove `ledger: none` from the connection, or change the rows in one statement with `sql: {exec: …}`."));
    }
    let settings = settings(batch, context)?;
    let mut talk = Talk::open(context, connection, &settings).await?;
    talk.session.ensure_ledger().await?;
    if let Some(result) = talk.session.ledger_find(&context.ledger_key).await? {
        return Ok(serde_json::from_value(result).unwrap_or_default());
    }
    let spec = Spec::new(batch, &context.values, &format!("{}/{}", context.run, context.ledger_key), talk.session.identity().kind)?;
    let spec = match &batch.restore {
        Some(restore) => spec.restoring(Found::look(batch, restore, &context.values, &context.run, &mut talk).await?),
        None => spec,
    };
    let books = Books::new(spec.kind, &context.run, &context.ledger_key);
    books.ensure(&mut talk).await?;
    let mut table = Table::look(batch, &spec, &mut talk).await?;
    let watch = Watch::new(batch, context, &spec)?;
    if let Some(watch) = &watch {
        watch.may_look(&mut talk).await?;
    }
    let workers = if spec.kind == Kind::Sqlite { 1 } else { batch.workers() };
    let standing = match books.standing(&mut talk).await? {
        Some(standing) => taken_up(standing, &spec, &mut table)?,
        None => begin(batch, context, &books, &spec, &mut table, workers, &mut talk).await?,
    };
    let total = standing.total;
    table.has_rows(total);
    let mut phase = standing.phase;
    loop {
        let job = Job {
            context,
            connection,
            settings: settings.clone(),
            spec: &spec,
            table: &table,
            books: &books,
            phase,
            total,
            target: batch.target_duration.as_ref().map(|target| context.values.setting(target)).transpose()?.unwrap_or(TARGET),
            first_size: batch.batch_size,
            begun: Instant::now(),
            changed_before: books.changed(&mut talk, None).await.map_err(failed)?,
            changed: AtomicU64::new(0),
            batches: AtomicU64::new(0),
            pids: Mutex::default(),
            lag: Mutex::default(),
            // Nobody works before the first look.
            pause: watch::Sender::new(batch.throttle.as_ref().map(|_| "the throttle looks around".to_owned())),
            over: AtomicBool::new(false),
        };
        work(watch.as_ref(), &job, workers).await?;
        if context.finish_up.is_cancelled() || context.cancel.is_cancelled() {
            return Err(job.stopped());
        }
        let left = left_for_sweep(&job, &mut talk).await?;
        if !wants_sweep(&job, left, &mut talk).await? {
            return finish(batch, &job, &mut talk, left).await;
        }
        phase += 1;
        in_transaction(&mut talk, async |talk| books.lay_out(talk, &spec, &table, phase, workers).await).await.map_err(failed)?;
    }
}

/// All workers, and who looks out for others meanwhile.
async fn work(watch: Option<&Watch>, job: &Job<'_>, workers: u32) -> Result<(), StepError> {
    let all = join_all((0..workers).map(|_| job.work()));
    let worked = match watch {
        None => all.await,
        Some(watch) => tokio::select! {
            worked = all => worked,
            () = watch.keep(job) => Vec::new(),
        },
    };
    worked.into_iter().collect()
}

/// Rows that came, or moved, while the batches went over the table. Only rows that leave
/// `where` by being changed can be told from those that are done.
async fn left_for_sweep(job: &Job<'_>, talk: &mut Talk) -> Result<Option<u64>, StepError> {
    if job.spec.convergent.is_none() {
        return Ok(None);
    }
    remaining(talk, job.spec).await
}

/// Until nothing is left, or a sweep has found nothing that it could change.
async fn wants_sweep(job: &Job<'_>, left: Option<u64>, talk: &mut Talk) -> Result<bool, StepError> {
    if left.is_none_or(|left| left == 0) || job.phase >= SWEEPS {
        return Ok(false);
    }
    Ok(job.phase == 0 || job.books.changed(talk, Some(job.phase)).await.map_err(failed)? > 0)
}

fn settings(batch: &SqlBatch, context: &StepContext) -> Result<SessionSettings, StepError> {
    let mut settings = context.session.clone();
    if let Some(timeout) = &batch.lock_timeout {
        settings.lock_timeout = Some(context.values.setting(timeout)?.0);
    }
    if let Some(timeout) = &batch.statement_timeout {
        settings.statement_timeout = Some(context.values.setting(timeout)?.0);
    }
    Ok(settings)
}

/// An earlier process has begun it: in the same order, over the same rows.
fn taken_up(standing: Standing, spec: &Spec, table: &mut Table) -> Result<Standing, StepError> {
    if standing.fingerprint != spec.fingerprint(&table.key) {
        return Err(unusable("the step is not the one whose batches were begun: its table, key, `where` or worklist differ")
            .hint("Put these back as they were and resume, or start a new run with the changed playbook."));
    }
    if standing.way.order() != table.way.order() {
        table.reason = "as it was begun".into();
    }
    if standing.way == Way::Shares && table.share.is_none() {
        return Err(unusable("the key's columns have other types than when the batches were begun")
            .hint("Put these back as they were and resume, or start a new run."));
    }
    table.way = standing.way;
    Ok(standing)
}

/// The worklist, the number of rows and the chunks come from one moment.
async fn begin(
    batch: &SqlBatch,
    context: &StepContext,
    books: &Books,
    spec: &Spec,
    table: &mut Table,
    workers: u32,
    talk: &mut Talk,
) -> Result<Standing, StepError> {
    let moved = spec.set.iter().find(|(column, _)| spec.keeps && table.key.contains(column));
    if let Some((column, _)) = moved {
        return Err(unusable(format!("`keep_old` finds rows again by their key, and `set` changes {column} of it")));
    }
    let standing = in_transaction(talk, async |talk| {
        if let Some(worklist) = &spec.worklist {
            let name = spec.worklist_table();
            talk.change(&format!("CREATE TABLE {name} AS {worklist}")).await?;
            match spec.kind {
                Kind::Postgres => talk.change(&format!("ALTER TABLE {name} ADD PRIMARY KEY ({})", table.key.join(", "))).await?,
                Kind::Sqlite => talk.change(&format!("CREATE UNIQUE INDEX {name}_key ON {name} ({})", table.key.join(", "))).await?,
            };
            talk.change(&format!("ANALYZE {name}")).await?;
        }
        if spec.keeps {
            spec.prepare_keeping(batch, &context.run, &context.ledger_key, table, talk).await?;
        }
        let total = books.lay_out(talk, spec, table, 0, workers).await?;
        if table.way == Way::Shares && table.is_sparse(total) {
            table.way = Way::Keys;
        }
        let standing = Standing { fingerprint: spec.fingerprint(&table.key), way: table.way, total, phase: 0 };
        books.open(talk, &standing).await?;
        Ok(standing)
    });
    standing.await.map_err(|error| {
        let error = StepError::from(error);
        if spec.worklist.is_some() && matches!(error.code.as_deref(), Some("23505" | "23502" | "42703")) {
            return error.hint("The worklist needs the table's key columns under their own names, each key once and never NULL.");
        }
        error
    })
}

async fn in_transaction<T>(talk: &mut Talk, work: impl AsyncFnOnce(&mut Talk) -> Result<T, TargetError>) -> Result<T, TargetError> {
    talk.begin(Some(Isolation::RepeatableRead)).await?;
    match work(talk).await {
        Ok(value) => talk.session.commit().await.map(|()| value),
        Err(error) => {
            talk.session.rollback().await;
            Err(error)
        }
    }
}
