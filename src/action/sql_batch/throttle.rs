//! When to pause: whether others suffer from the batches, as the author bounds it.

use std::sync::PoisonError;
use std::time::Duration;

use serde_json::Value;
use tokio::time::sleep;

use super::SqlBatch;
use super::statements::{Spec, inlined};
use super::talk::{Talk, failed, number, text, whole};
use super::worker::Job;
use crate::action::StepContext;
use crate::outcome::{ErrorKind, StepError};
use crate::target::{Kind, TargetError, identifier, text_literal};
use crate::units::ByteSize;

/// How often it is looked.
const LOOK: Duration = Duration::from_millis(250);

/// The bounds, with all values known.
pub(super) struct Watch {
    max_lag: Option<Duration>,
    max_lag_bytes: Option<ByteSize>,
    max_blocked: Option<u32>,
    max_archive_backlog: Option<u32>,
    vacuum: bool,
    query: Option<String>,
}

impl Watch {
    /// `None`: nothing is to be watched.
    pub(super) fn new(batch: &SqlBatch, context: &StepContext, spec: &Spec) -> Result<Option<Self>, StepError> {
        let Some(throttle) = &batch.throttle else { return Ok(None) };
        let values = &context.values;
        let server = spec.kind == Kind::Postgres;
        let watch = Self {
            max_lag: throttle.max_lag.as_ref().filter(|_| server).map(|lag| values.setting(lag)).transpose()?.map(|lag| lag.0),
            max_lag_bytes: throttle.max_lag_bytes.filter(|_| server),
            max_blocked: throttle.max_blocked.filter(|_| server),
            max_archive_backlog: throttle.max_archive_backlog.filter(|_| server),
            vacuum: server && throttle.vacuum == Some(true),
            query: throttle.query.as_ref().map(|query| inlined(query, values, spec.kind)).transpose()?,
        };
        Ok(Some(watch))
    }

    /// What a role may not see looks like nothing to wait for, so it is refused beforehand.
    pub(super) async fn may_look(&self, talk: &mut Talk) -> Result<(), StepError> {
        let statistics = self.max_lag.is_some() || self.max_lag_bytes.is_some() || self.vacuum;
        if !statistics && self.max_archive_backlog.is_none() {
            return Ok(());
        }
        let sql = "SELECT pg_catalog.pg_has_role('pg_read_all_stats', 'USAGE'), \
                   pg_catalog.has_function_privilege('pg_catalog.pg_ls_archive_statusdir()', 'EXECUTE'), current_user::text";
        let rows = talk.look(sql).await.map_err(failed)?;
        let may = |column: usize| rows.first().and_then(|row| row.get(column)) == Some(&Value::Bool(true));
        if (!statistics || may(0)) && (self.max_archive_backlog.is_none() || may(1)) {
            return Ok(());
        }
        let role = rows.first().and_then(|row| text(row.get(2))).unwrap_or_default();
        Err(StepError::new(ErrorKind::Sql, format!("role {role} may not see what the throttle watches, so it would never pause")).hint(
            format!(
                "GRANT pg_monitor TO {};  as a superuser; or leave max_lag, max_lag_bytes, max_archive_backlog and vacuum out.",
                identifier(&role)
            ),
        ))
    }

    /// Looks again and again, and lets the workers wait or go on. Never ends by itself.
    pub(super) async fn keep(&self, job: &Job<'_>) {
        let mut talk = None;
        loop {
            let reason = match self.look(job, &mut talk).await {
                Ok(reason) => reason,
                Err(error) => {
                    talk = None;
                    Some(format!("the throttle cannot look: {error}"))
                }
            };
            job.pause.send_if_modified(|before| {
                let changed = *before != reason;
                if changed && let Some(reason) = &reason {
                    job.context.output.note(&format!("paused: {reason}"));
                }
                *before = reason;
                changed
            });
            sleep(LOOK).await;
        }
    }

    async fn look(&self, job: &Job<'_>, talk: &mut Option<Talk>) -> Result<Option<String>, TargetError> {
        let talk = match talk {
            Some(talk) => talk,
            None => talk.insert(Talk::open(job.context, job.connection, &job.settings).await?),
        };
        if let Some(reason) = self.blocked(job, talk).await? {
            return Ok(Some(reason));
        }
        if let Some(reason) = self.lag(job, talk).await? {
            return Ok(Some(reason));
        }
        if let Some(reason) = self.others(job, talk).await? {
            return Ok(Some(reason));
        }
        self.authors_query(talk).await
    }

    async fn blocked(&self, job: &Job<'_>, talk: &mut Talk) -> Result<Option<String>, TargetError> {
        let Some(most) = self.max_blocked else { return Ok(None) };
        let pids: Vec<String> = job.pids.lock().unwrap_or_else(PoisonError::into_inner).iter().map(i32::to_string).collect();
        let sql = format!(
            "SELECT count(DISTINCT l.pid) FROM pg_catalog.pg_locks l WHERE NOT l.granted \
             AND pg_catalog.pg_blocking_pids(l.pid) && '{{{0}}}'::int[] AND l.pid <> ALL ('{{{0}}}'::int[])",
            pids.join(",")
        );
        let blocked = number(&talk.look(&sql).await?);
        Ok((blocked > u64::from(most)).then(|| {
            let waiting = if blocked == 1 { "1 session waits".to_owned() } else { format!("{blocked} sessions wait") };
            format!("{waiting} for locks of ours (max_blocked {most})")
        }))
    }

    async fn lag(&self, job: &Job<'_>, talk: &mut Talk) -> Result<Option<String>, TargetError> {
        if self.max_lag.is_none() && self.max_lag_bytes.is_none() {
            return Ok(None);
        }
        // The time of a replica that has replayed everything may be an old one.
        let sql = "SELECT coalesce(max(pg_catalog.pg_wal_lsn_diff(pg_catalog.pg_current_wal_lsn(), replay_lsn)), 0)::bigint, \
                   coalesce(max(extract(epoch FROM replay_lag) * 1000) FILTER (WHERE replay_lsn < pg_catalog.pg_current_wal_lsn()), 0)::bigint, \
                   count(*) FROM pg_catalog.pg_stat_replication WHERE state IN ('streaming', 'catchup')";
        let rows = talk.look(sql).await?;
        let Some([bytes, milliseconds, replicas]) = rows.first().map(Vec::as_slice) else { return Ok(None) };
        let (bytes, time) = (whole(bytes), Duration::from_millis(whole(milliseconds)));
        let behind = match whole(replicas) {
            0 => "no replica".to_owned(),
            _ => format!("lag {} and {}", humantime::format_duration(time), ByteSize(bytes)),
        };
        *job.lag.lock().unwrap_or_else(PoisonError::into_inner) = format!(", {behind}");
        Ok(match (self.max_lag_bytes, self.max_lag) {
            (Some(most), _) if bytes > most.0 => Some(format!("a replica is {} behind (max_lag_bytes {most})", ByteSize(bytes))),
            (_, Some(most)) if time > most => {
                Some(format!("a replica is {} behind (max_lag {})", humantime::format_duration(time), humantime::format_duration(most)))
            }
            _ => None,
        })
    }

    async fn others(&self, job: &Job<'_>, talk: &mut Talk) -> Result<Option<String>, TargetError> {
        if let Some(most) = self.max_archive_backlog {
            let sql = "SELECT count(*) FROM pg_catalog.pg_ls_archive_statusdir() WHERE name LIKE '%.ready'";
            let backlog = number(&talk.look(sql).await?);
            if backlog > u64::from(most) {
                return Ok(Some(format!("{backlog} WAL files wait to be archived (max_archive_backlog {most})")));
            }
        }
        if self.vacuum {
            let sql = format!(
                "SELECT pid FROM pg_catalog.pg_stat_progress_vacuum WHERE relid = {}::regclass AND datname = pg_catalog.current_database()",
                text_literal(&job.spec.table)
            );
            if let Some(pid) = talk.look(&sql).await?.first().and_then(|row| text(row.first())) {
                return Ok(Some(format!("a vacuum works on {} (pid {pid})", job.spec.table)));
            }
        }
        Ok(None)
    }

    async fn authors_query(&self, talk: &mut Talk) -> Result<Option<String>, TargetError> {
        let Some(query) = &self.query else { return Ok(None) };
        let rows = talk.look(query).await?;
        let value = rows.first().and_then(|row| row.first()).cloned().unwrap_or_default();
        let pauses = match &value {
            Value::Null => false,
            Value::Bool(value) => *value,
            Value::Number(number) => number.as_f64().is_some_and(|number| number > 0.0),
            Value::String(text) => text.parse::<f64>().is_ok_and(|number| number > 0.0),
            _ => true,
        };
        Ok(pauses.then(|| format!("the throttle's query gives {}", crate::text::table::plain_value(&value))))
    }
}
