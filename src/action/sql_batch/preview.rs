//! What the database says of the batches before they run: how many rows, about how long and
//! how much WAL, what each change sets off besides. It only reads; what could be told only by
//! writing is estimated, and said to be.

use std::time::Duration;

use serde_json::Value;

use super::kept::Found;
use super::pace::{LARGEST, SMALLEST, TARGET};
use super::statements::Spec;
use super::table::{Table, Way};
use super::talk::{Talk, number, text, whole};
use super::{Restore, SqlBatch};
use crate::action::Look;
use crate::outcome::StepError;
use crate::target::{Kind, TargetError, text_literal};
use crate::text::count;
use crate::units::ByteSize;

/// Rows that are looked at for their size.
const SAMPLE: u32 = 1_000;
/// Rows a second that one worker changes in a table without indexes; each index that a row is
/// entered into anew takes as long again. From `benches/data` on two cores.
const ROWS_A_SECOND: f64 = 300_000.0;
/// How much slower and faster another machine may be.
const SLOWEST: f64 = 5.0;
const FASTEST: f64 = 1.5;
/// What a second worker adds, of the first one's speed.
const FURTHER_WORKER: f64 = 0.6;
/// WAL of a changed row besides its new version, and of an entry into an index.
const RECORD: u64 = 60;
const INDEX_ENTRY: u64 = 100;
const PAGE: u64 = 8_192;

/// What a change of a row touches.
#[derive(Debug, Default)]
struct Weight {
    heap_pages: u64,
    indexes: u64,
    index_pages: u64,
    /// Their names.
    covering: Option<String>,
}

pub(super) async fn preview(batch: &SqlBatch, look: &Look<'_>) -> Result<Vec<String>, StepError> {
    let connection = look.connection(batch.connection.as_ref().map(|name| name.value.as_str()))?;
    let session = look.targets.session(connection, look.step, look.session).await?;
    let mut talk = Talk::on(session);
    let mut spec = Spec::new(batch, look.values, look.step, talk.session.identity().kind)?;
    match &batch.restore {
        Some(Restore { run: None, step }) => return Ok(vec![format!("the rows that `{}` will have kept", step.value)]),
        Some(restore) => spec = spec.restoring(Found::look(batch, restore, look.values, "", &mut talk).await?),
        None => {}
    }
    let table = Table::look(batch, &spec, &mut talk).await?;
    let total = number(&talk.look(&format!("SELECT count(*) {}", spec.source_beforehand(&table))).await?);
    let order = table.way.order();
    let mut lines = vec![format!("{} to change, in {order} order: {}", count(total, "row"), table.reason)];
    let weight = if spec.kind == Kind::Postgres { weight(&spec, &mut talk).await? } else { Weight::default() };
    if total > 0 {
        // Rows that stay on their page need no new entry; some move all the same.
        let indexes = if stays(&table, total) { 1 } else { weight.indexes };
        lines.push(effort(batch, look, total, indexes)?);
        lines.extend(wal(&spec, &table, &weight, total, &mut talk).await);
    }
    lines.extend(weight.covering.map(|names| format!("indexes that cover what is set: {names}")));
    lines.extend(triggers(&spec, &mut talk).await?.map(|names| format!("triggers that each change fires: {names}")));
    Ok(lines)
}

/// Whether most rows will stay on their pages.
fn stays(table: &Table, total: u64) -> bool {
    table.way == Way::Pages || table.way == Way::Shares && !table.is_sparse(total)
}

/// Batches and time, as ranges: the first run on a machine is what measures it.
fn effort(batch: &SqlBatch, look: &Look<'_>, total: u64, indexes: u64) -> Result<String, StepError> {
    let target = batch.target_duration.as_ref().map(|target| look.values.setting(target)).transpose()?.unwrap_or(TARGET);
    let workers = f64::from(batch.workers());
    let speed = ROWS_A_SECOND / (1.0 + indexes as f64) * (1.0 + FURTHER_WORKER * (workers - 1.0));
    let rows = total as f64;
    let (shortest, longest) = (rows / (speed * FASTEST), rows / (speed / SLOWEST));
    let batches = |seconds: f64| (seconds * workers / target.0.as_secs_f64()).clamp(rows / LARGEST, rows / SMALLEST).ceil() as u64;
    let (fewest, most) = (batches(shortest), batches(longest));
    let number = if fewest == most { count(most, "batch") } else { format!("{fewest} to {most} batches") };
    let seconds = |seconds: f64| humantime::format_duration(Duration::from_secs(seconds.ceil() as u64)).to_string();
    let (shortest, longest) = (seconds(shortest), seconds(longest));
    let time = if shortest == longest { longest } else { format!("{shortest} to {longest}") };
    Ok(format!("estimated: {number}, {time}"))
}

/// From the size of some rows: without and with each page once in full, as after a checkpoint.
async fn wal(spec: &Spec, table: &Table, weight: &Weight, total: u64, talk: &mut Talk) -> Option<String> {
    if spec.kind == Kind::Sqlite {
        return None;
    }
    let added: Vec<String> = spec.set.iter().map(|(_, value)| format!("coalesce(pg_catalog.pg_column_size(({value})), 0)")).collect();
    let sql = format!(
        "SELECT coalesce(avg(size), 0)::bigint FROM (SELECT pg_catalog.pg_column_size({}.*) + {} AS size {} LIMIT {SAMPLE}) AS sample",
        spec.name,
        if added.is_empty() { "0".to_owned() } else { added.join(" + ") },
        spec.source_beforehand(table)
    );
    // A value that only a writer may compute, such as a sequence's next one, has no sample.
    let row = number(&talk.look(&sql).await.ok()?);
    let stays = stays(table, total);
    let entries = if stays { 0 } else { weight.indexes };
    let least = total * (RECORD + row + entries * INDEX_ENTRY);
    let pages = 2 * weight.heap_pages + if stays { 0 } else { weight.index_pages };
    let most = least + PAGE * pages.min(total * (2 + entries));
    Some(format!("estimated from {SAMPLE} rows: {} to {} of WAL", ByteSize(least), ByteSize(most)))
}

async fn weight(spec: &Spec, talk: &mut Talk) -> Result<Weight, TargetError> {
    let sql = format!(
        "SELECT greatest(c.relpages, 0)::bigint, count(i.*), coalesce(sum(greatest(x.relpages, 0)), 0)::bigint, \
         string_agg(x.relname, ', ' ORDER BY x.relname) FILTER (WHERE {}) \
         FROM pg_catalog.pg_class c LEFT JOIN pg_catalog.pg_index i ON i.indrelid = c.oid LEFT JOIN pg_catalog.pg_class x ON x.oid = i.indexrelid \
         WHERE c.oid = {}::regclass GROUP BY c.relpages",
        spec.covered(),
        text_literal(&spec.table)
    );
    let rows = talk.look(&sql).await?;
    let Some([heap_pages, indexes, index_pages, covering]) = rows.first().map(Vec::as_slice) else { return Ok(Weight::default()) };
    Ok(Weight { heap_pages: whole(heap_pages), indexes: whole(indexes), index_pages: whole(index_pages), covering: text(Some(covering)) })
}

async fn triggers(spec: &Spec, talk: &mut Talk) -> Result<Option<String>, TargetError> {
    // Bits of pg_trigger.tgtype: 2 BEFORE, 8 DELETE, 16 UPDATE.
    let event = if spec.deletes() { 8 } else { 16 };
    let sql = match spec.kind {
        Kind::Postgres => format!(
            "SELECT string_agg(tgname || CASE WHEN tgtype & 2 > 0 THEN ' (before)' ELSE ' (after)' END, ', ' ORDER BY tgname) FROM pg_catalog.pg_trigger \
             WHERE tgrelid = {}::regclass AND NOT tgisinternal AND tgenabled <> 'D' AND tgtype & {event} > 0",
            text_literal(&spec.table)
        ),
        Kind::Sqlite => format!(
            "SELECT group_concat(name, ', ') FROM sqlite_master WHERE type = 'trigger' AND tbl_name = {}",
            text_literal(spec.name.trim_matches('"'))
        ),
    };
    Ok(talk
        .look(&sql)
        .await?
        .first()
        .and_then(|row| row.first())
        .filter(|names| **names != Value::Null)
        .and_then(|names| text(Some(names))))
}
