//! One run at a time: an advisory lock that the control connection holds.
//!
//! It is polled, never waited for: a waiter would deadlock `CREATE INDEX
//! CONCURRENTLY`. A second lock, shared, is taken by every ledger transaction just
//! before it commits; a new holder waits until nobody has it, so that a commit under
//! the old run lock is never still on its way when the new run looks.

use std::time::Duration;

use sha2::{Digest, Sha256};
use tokio::time::{Instant, sleep};

use super::control::Control;
use super::{Database, guarded, seconds};
use crate::target::error::TargetError;
use crate::target::literal::literal;
use crate::target::{HolderDescription, LockHolder, NAME_LIMIT};

/// How often a lock that is not free is tried again.
const POLL: Duration = Duration::from_millis(250);

/// How long commits under an earlier holder's lock may take to end.
const COMMITS: Duration = Duration::from_secs(10);

/// The run lock, as it was taken.
#[derive(Debug, Clone)]
pub struct HeldLock {
    run: i64,
    commits: i64,
    pid: i32,
}

impl Database {
    /// `None`: the lock is ours.
    pub async fn lock(&self, name: &str, holder: &LockHolder, patience: Duration) -> Result<Option<HolderDescription>, TargetError> {
        let keys = (key("run", name), key("commits", name));
        let deadline = Instant::now() + patience;
        loop {
            let mut control = self.control.lock().await;
            let other = self.try_lock(&mut control, keys, holder).await?;
            drop(control);
            if other.is_none() || Instant::now() >= deadline {
                return Ok(other);
            }
            sleep(POLL.min(deadline.saturating_duration_since(Instant::now()))).await;
        }
    }

    async fn try_lock(
        &self,
        control: &mut Option<Control>,
        (run, commits): (i64, i64),
        holder: &LockHolder,
    ) -> Result<Option<HolderDescription>, TargetError> {
        // Named first, so that a holder can always be described.
        let taking = format!("SET application_name = {}; SELECT pg_catalog.pg_try_advisory_lock({run})", literal(&holder_name(holder)));
        loop {
            if is_true(&self.ask_once(control, &taking).await?) {
                break;
            }
            if let Some(other) = self.holder_of(control, run).await? {
                return Ok(Some(other));
            }
            // It became free in between.
        }
        let deadline = Instant::now() + COMMITS;
        let passing = format!("SELECT pg_catalog.pg_try_advisory_lock({commits}) AND pg_catalog.pg_advisory_unlock({commits})");
        while !is_true(&self.ask_once(control, &passing).await?) {
            if Instant::now() >= deadline {
                let other = self.holder_of(control, commits).await?;
                self.ask_once(control, &format!("SELECT pg_catalog.pg_advisory_unlock({run})")).await?;
                return Ok(other);
            }
            sleep(Duration::from_millis(20)).await;
        }
        let pid = control.as_ref().map_or(0, |control| control.pid);
        *guarded(&self.lock) = Some(HeldLock { run, commits, pid });
        Ok(None)
    }

    async fn holder_of(&self, control: &mut Option<Control>, key: i64) -> Result<Option<HolderDescription>, TargetError> {
        let query = format!(
            "SELECT l.pid, a.application_name, extract(epoch FROM pg_catalog.clock_timestamp() - a.backend_start) \
             FROM pg_catalog.pg_locks l LEFT JOIN pg_catalog.pg_stat_activity a USING (pid) WHERE {} LIMIT 1",
            held(key, "l.")
        );
        let Some(row) = self.ask_once(control, &query).await?.into_iter().next() else { return Ok(None) };
        let mut row = row.into_iter();
        let mut next = || row.next().flatten();
        let backend = next().and_then(|pid| pid.parse().ok());
        let application = next().unwrap_or_default();
        Ok(Some(HolderDescription { holder: parse_holder(&application), application, backend, age: seconds(next()) }))
    }

    /// Makes sure that the lock is still held.
    pub async fn check_lock(&self) -> Result<(), TargetError> {
        let Some(lock) = guarded(&self.lock).clone() else { return Err(self.lock_lost("it was given back")) };
        let query = format!("SELECT EXISTS (SELECT FROM pg_catalog.pg_locks WHERE {} AND pid = {})", held(lock.run, ""), lock.pid);
        if is_true(&self.ask(&query).await?) { Ok(()) } else { Err(self.lock_lost("the connection that held it was lost")) }
    }

    /// Gives the lock back.
    pub async fn release_lock(&self) {
        let lock = guarded(&self.lock).take();
        if let Some(lock) = lock {
            // Failing means that the connection is gone, and the lock with it.
            let _ = self.ask(&format!("SELECT pg_catalog.pg_advisory_unlock({})", lock.run)).await;
        }
    }

    /// The condition under which a ledger row may be written: this run's lock is held,
    /// and the transaction has announced its commit. Without a lock, always.
    pub(super) fn lock_condition(&self) -> String {
        match &*guarded(&self.lock) {
            None => "true".to_owned(),
            Some(lock) => format!(
                "CASE WHEN pg_catalog.pg_try_advisory_xact_lock_shared({}) \
                 THEN EXISTS (SELECT FROM pg_catalog.pg_locks WHERE {} AND pid = {}) ELSE false END",
                lock.commits,
                held(lock.run, ""),
                lock.pid
            ),
        }
    }

    pub(super) fn lock_lost(&self, message: &str) -> TargetError {
        TargetError::LockLost { connection: self.spec.name.clone(), message: message.to_owned() }
    }
}

/// How `pg_locks` shows a held advisory lock.
fn held(key: i64, table: &str) -> String {
    let bits = key.cast_unsigned();
    format!(
        "{table}locktype = 'advisory' AND {table}granted AND {table}classid = {} AND {table}objid = {} AND {table}objsubid = 1 \
         AND {table}database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database())",
        bits >> 32,
        bits & 0xffff_ffff
    )
}

fn key(purpose: &str, name: &str) -> i64 {
    let digest = Sha256::digest(format!("runbook/{purpose}/{name}"));
    digest.iter().take(8).fold(0, |key, byte| (key << 8) | i64::from(*byte))
}

fn is_true(rows: &super::connect::TextRows) -> bool {
    rows.last().and_then(|row| row.first()) == Some(&Some("t".to_owned()))
}

/// `runbook/<run>/@<host>:<pid>`, the host cut where PostgreSQL would cut the name.
fn holder_name(holder: &LockHolder) -> String {
    let around = format!("runbook/{}/@:{}", holder.run, holder.pid).len();
    let room = NAME_LIMIT.saturating_sub(around);
    let host: String = holder.host.chars().filter(char::is_ascii_graphic).take(room).collect();
    format!("runbook/{}/@{host}:{}", holder.run, holder.pid)
}

fn parse_holder(application: &str) -> Option<LockHolder> {
    let (run, place) = application.strip_prefix("runbook/")?.rsplit_once("/@")?;
    let (host, pid) = place.rsplit_once(':')?;
    Some(LockHolder { run: run.to_owned(), host: host.to_owned(), pid: pid.parse().ok()? })
}
