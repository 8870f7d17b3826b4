//! One worker: batch after batch, through everything that passes.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio::time::sleep;

use super::chunks::Books;
use super::pace::{FIRST, Pace};
use super::statements::{Range, Spec};
use super::table::{Table, Way};
use super::talk::{Remedy, Talk, failed, number, remedy};
use crate::action::StepContext;
use crate::outcome::{Aftermath, ErrorKind, StepError};
use crate::target::{Kind, SessionSettings, TargetError};
use crate::text::count;

/// How often in a row a batch may fail before the step does.
const PATIENCE: u32 = 30;
/// Between two looks for a chunk that others have.
const OTHERS: Duration = Duration::from_millis(50);
/// The longest wait before another attempt.
const LONGEST_WAIT: f64 = 3.0;

/// What all workers share.
pub(super) struct Job<'a> {
    pub context: &'a StepContext,
    pub connection: &'a str,
    pub settings: SessionSettings,
    pub spec: &'a Spec,
    pub table: &'a Table,
    pub books: &'a Books,
    pub phase: u64,
    pub total: u64,
    pub target: crate::units::Duration,
    pub first_size: Option<u64>,
    pub begun: Instant,
    /// Rows changed before this process began, and since.
    pub changed_before: u64,
    pub changed: AtomicU64,
    pub batches: AtomicU64,
    /// Backends of the workers, for finding whom they block.
    pub pids: Mutex<Vec<i32>>,
    /// How far replicas are behind, in words for the progress line.
    pub lag: Mutex<String>,
    /// Why everybody waits, if so.
    pub pause: watch::Sender<Option<String>>,
    /// Another worker has failed.
    pub over: AtomicBool,
}

/// What became of one attempt at a batch.
enum Batch {
    Done {
        rows: u64,
        /// In keys, as the pace counts.
        size: u64,
        short: bool,
    },
    /// What is left is in the hands of others.
    Waiting,
    NothingLeft,
}

impl Job<'_> {
    pub(super) fn should_stop(&self) -> bool {
        self.context.finish_up.is_cancelled() || self.context.cancel.is_cancelled() || self.over.load(Ordering::Relaxed)
    }

    /// Until nothing is left, or it is time to stop.
    pub(super) async fn work(&self) -> Result<(), StepError> {
        let worked = self.batches_until_the_end().await;
        if worked.is_err() {
            self.over.store(true, Ordering::Relaxed);
        }
        worked
    }

    async fn batches_until_the_end(&self) -> Result<(), StepError> {
        let mut talk = None;
        let mut own = None;
        let mut pace = Pace::new(self.target, self.first_size.map_or(FIRST, |size| size as f64));
        let mut failures = 0;
        while !self.should_stop() {
            self.wait_while_paused().await;
            if self.should_stop() {
                break;
            }
            let started = Instant::now();
            match self.batch(&mut talk, &mut own, pace.size()).await {
                Ok(Batch::Done { rows, size, short }) => {
                    failures = 0;
                    if !short {
                        pace.took(started.elapsed(), size);
                    }
                    self.note(rows, pace.size());
                }
                Ok(Batch::Waiting) => sleep(OTHERS).await,
                Ok(Batch::NothingLeft) => break,
                Err(error) => {
                    failures += 1;
                    self.recover(error, &mut talk, &mut pace, failures).await?;
                }
            }
        }
        Ok(())
    }

    async fn batch(&self, talk: &mut Option<Talk>, own: &mut Option<u64>, size: u64) -> Result<Batch, TargetError> {
        let talk = match talk {
            Some(talk) => talk,
            None => talk.insert(self.connect().await?),
        };
        talk.begin(None).await?;
        let Some(chunk) = self.books.claim(talk, self.phase, *own).await? else {
            talk.session.rollback().await;
            let open = self.books.is_open(talk, self.phase).await?;
            return Ok(if open { Batch::Waiting } else { Batch::NothingLeft });
        };
        *own = Some(chunk.number);
        let table = self.table;
        let step = match table.way {
            Way::Pages if self.phase == 0 => chunk.next_pages((table.window(size) as f64 / table.rows_per_page) as u64),
            Way::Shares if self.phase == 0 => chunk.next_share(talk, self.spec, table, table.window(size)).await?,
            _ => chunk.next_keys(talk, self.spec, table, size).await?,
        };
        let size = match step.range {
            Range::Pages { .. } => (step.size as f64 * table.rows_per_page) as u64,
            _ => step.size,
        };
        let rows = self.change(talk, &step.range).await?;
        if !self.books.advance(talk, &chunk, &step, rows).await? {
            talk.session.rollback().await;
            return Err(TargetError::LockLost {
                connection: self.connection.to_owned(),
                message: "another session may have it; the batch was rolled back".into(),
            });
        }
        talk.session.commit().await?;
        Ok(Batch::Done { rows, size, short: step.ends })
    }

    async fn connect(&self) -> Result<Talk, TargetError> {
        let mut talk = Talk::open(self.context, self.connection, &self.settings).await?;
        if self.spec.kind == Kind::Postgres {
            // A batch is a small part of the table, whatever old statistics say of it.
            talk.change("SET enable_seqscan = off").await?;
            talk.change("SET jit = off").await?;
        }
        self.pids.lock().unwrap_or_else(PoisonError::into_inner).push(talk.session.pid());
        Ok(talk)
    }

    /// Changes the rows of a batch, and keeps their old values where that is asked for.
    async fn change(&self, talk: &mut Talk, range: &Range) -> Result<u64, TargetError> {
        let (spec, table) = (self.spec, self.table);
        match (spec.keeps, spec.kind) {
            (false, _) => talk.change(&spec.change(table, range)).await,
            (true, Kind::Postgres) => Ok(number(&talk.rows(&spec.keeping_change(table, range)).await?)),
            (true, Kind::Sqlite) => {
                let [before, after] = spec.keeping_around(table, range);
                talk.change(&before).await?;
                let rows = talk.change(&spec.change(table, range)).await?;
                talk.change(&after).await?;
                Ok(rows)
            }
        }
    }

    async fn recover(&self, error: TargetError, talk: &mut Option<Talk>, pace: &mut Pace, failures: u32) -> Result<(), StepError> {
        let remedy = remedy(&error);
        if remedy == Remedy::GiveUp || failures > PATIENCE || self.context.cancel.is_cancelled() {
            return Err(failed(error).fact("so far", self.so_far()));
        }
        self.context.output.note(&format!("{error}; the batch is tried again"));
        match remedy {
            Remedy::Halve => pace.halve(),
            Remedy::Reconnect => *talk = None,
            _ => {}
        }
        if let Some(talk) = talk {
            talk.session.rollback().await;
        }
        let wait = (0.05 * f64::from(1_u32 << failures.min(6))).min(LONGEST_WAIT) * (0.5 + self.context.clock.random() / 2.0);
        tokio::select! {
            () = sleep(Duration::from_secs_f64(wait)) => {}
            () = self.context.cancel.cancelled() => {}
        }
        Ok(())
    }

    async fn wait_while_paused(&self) {
        let mut pause = self.pause.subscribe();
        loop {
            let reason = pause.borrow_and_update().clone();
            let Some(reason) = reason else { return };
            self.context.progress(format!("paused: {reason}; {}", self.so_far()), self.fraction());
            tokio::select! {
                _ = pause.changed() => {}
                () = self.context.finish_up.cancelled() => return,
                () = self.context.cancel.cancelled() => return,
            }
        }
    }

    fn note(&self, rows: u64, size: u64) {
        self.changed.fetch_add(rows, Ordering::Relaxed);
        self.batches.fetch_add(1, Ordering::Relaxed);
        let lag = self.lag.lock().unwrap_or_else(PoisonError::into_inner).clone();
        self.context.progress(format!("{}{}, batches of {size}{lag}", self.so_far(), self.speed()), self.fraction());
    }

    pub(super) fn all_changed(&self) -> u64 {
        self.changed_before + self.changed.load(Ordering::Relaxed)
    }

    fn fraction(&self) -> Option<f64> {
        (self.total > 0).then(|| (self.all_changed() as f64 / self.total as f64).min(1.0))
    }

    pub(super) fn so_far(&self) -> String {
        format!("{} of {}", self.all_changed(), count(self.total, "row"))
    }

    /// The speed, and the end as a range: rows differ, and so do the hours of a day.
    fn speed(&self) -> String {
        let seconds = self.begun.elapsed().as_secs_f64();
        let rows = self.changed.load(Ordering::Relaxed);
        if seconds < 1.0 || rows == 0 {
            return String::new();
        }
        let speed = rows as f64 / seconds;
        let left = self.total.saturating_sub(self.all_changed()) as f64 / speed;
        let words = |seconds: f64| humantime::format_duration(Duration::from_secs(seconds.ceil() as u64)).to_string();
        format!(", {speed:.0} rows/s, {} to {} left", words(left * 0.9), words(left * 1.3))
    }

    /// The step stops between two batches because somebody asked for it.
    pub(super) fn stopped(&self) -> StepError {
        StepError::new(ErrorKind::Cancelled, format!("stopped between two batches, {} done", self.so_far()))
            .aftermath(Aftermath::Partial)
            .hint("`runbook resume` goes on with the next batch.")
    }
}
