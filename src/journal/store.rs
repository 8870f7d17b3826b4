//! Events in SQLite: appended in one statement, durable when the call returns.
//!
//! WAL with `synchronous = FULL` makes each commit survive a power cut. The file is
//! the operator's own (0600 in a 0700 directory). Every event passes the redactor on
//! its way in; what is applied to the state is what was stored.

use std::fs::File;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqliteSynchronous};
use sqlx::{ConnectOptions, Row};

use super::event::{Event, EventKind};
use super::state::{IllegalEvent, RunState};
use crate::clock::Clock;
use crate::secret::Redactor;

/// Why the journal can't be used. After a failed append nothing more may be started.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// The file or its directory.
    #[error("cannot use the journal {}: {reason}", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// The reason.
        reason: String,
    },
    /// An event could not be made durable.
    #[error("cannot write to the journal {}: {reason}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// The reason.
        reason: String,
    },
    /// An event could not be read.
    #[error("cannot read the journal {}: {reason}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The reason.
        reason: String,
    },
    /// Written by a newer engine.
    #[error("run {run} was written by a newer runbook (journal format {format}); use that version")]
    Newer {
        /// The run.
        run: String,
        /// Its format.
        format: u32,
    },
    /// The stored history is not what was written.
    #[error("the journal of run {run} is damaged at event {sequence}: {reason}")]
    Damaged {
        /// The run.
        run: String,
        /// The first bad event.
        sequence: u64,
        /// What is wrong with it.
        reason: String,
    },
    /// Another process writes to this run.
    #[error("run {run} was changed by another process meanwhile")]
    Conflict {
        /// The run.
        run: String,
    },
    /// An event that does not fit what came before: an error in the engine.
    #[error(transparent)]
    Illegal(#[from] IllegalEvent),
}

/// A damaged place, for `journal verify`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damage {
    /// The run.
    pub run: String,
    /// The first bad event.
    pub sequence: u64,
    /// What is wrong.
    pub reason: String,
}

/// The journal file.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    connection: SqliteConnection,
    clock: Clock,
    /// Hash of the last event of the run written last.
    tail: Option<(String, u64, Vec<u8>)>,
}

static MIGRATIONS: sqlx::migrate::Migrator = sqlx::migrate!("src/journal/migrations");

impl Journal {
    /// Opens the file, creating it and its directory for the owner alone.
    pub async fn open(path: &Path, clock: Clock) -> Result<Self, JournalError> {
        let open = |reason: String| JournalError::Open { path: path.into(), reason };
        create_private(path).map_err(|error| open(error.to_string()))?;
        // SQLite's own lock does not cover the change to WAL, nor sqlx's one the migrations.
        let alone = File::open(directory_of(path)).and_then(|directory| directory.lock().map(|()| directory));
        let alone = alone.map_err(|error| open(format!("cannot lock its directory: {error}")))?;
        let mut connection = SqliteConnectOptions::new()
            .filename(path)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            // A log that is soon overwritten is synced in two thirds of the time of one that grows.
            .pragma("wal_autocheckpoint", "400")
            .busy_timeout(std::time::Duration::from_secs(30))
            .disable_statement_logging()
            .connect()
            .await
            .map_err(|error| open(reason(&error)))?;
        MIGRATIONS.run(&mut connection).await.map_err(|error| open(error.to_string()))?;
        drop(alone);
        Ok(Self { path: path.into(), connection, clock, tail: None })
    }

    /// The file's directory; outputs of steps are kept beside it.
    pub fn directory(&self) -> &Path {
        directory_of(&self.path)
    }

    /// Begins a run: the id is new, its first event durable.
    pub async fn begin(&mut self, run: &str, kind: EventKind, redactor: &Redactor) -> Result<RunState, JournalError> {
        let event = Event { sequence: 0, at: self.clock.now(), kind };
        let stored = self.insert(run, vec![event], redactor).await?;
        Ok(RunState::begin(&stored[0])?)
    }

    /// Makes events durable in one commit and applies them to the state, in this order.
    pub async fn append(
        &mut self,
        run: &str,
        state: &mut RunState,
        kinds: Vec<EventKind>,
        redactor: &Redactor,
    ) -> Result<Vec<Event>, JournalError> {
        let at = self.clock.now();
        let events = kinds.into_iter().zip(state.next_sequence..).map(|(kind, sequence)| Event { sequence, at, kind }).collect();
        let stored = self.insert(run, events, redactor).await?;
        for event in &stored {
            state.apply(event)?;
        }
        Ok(stored)
    }

    /// A run's events from a position on, checked against the hash chain when read from the start.
    pub async fn events(&mut self, run: &str, from: u64) -> Result<Vec<Event>, JournalError> {
        let rows = sqlx::query("SELECT sequence, body, hash FROM event WHERE run = ?1 AND sequence >= ?2 ORDER BY sequence")
            .bind(run)
            .bind(from as i64)
            .fetch_all(&mut self.connection)
            .await
            .map_err(|error| self.read_error(&error))?;
        let mut chain = (from == 0).then(Vec::new);
        let mut events = Vec::with_capacity(rows.len());
        for (position, row) in rows.iter().enumerate() {
            let sequence = from + position as u64;
            let body: &str = row.get("body");
            let hash: Vec<u8> = row.get("hash");
            let damaged = |reason: &str| JournalError::Damaged { run: run.into(), sequence, reason: reason.into() };
            if row.get::<i64, _>("sequence") as u64 != sequence {
                return Err(damaged("it is missing"));
            }
            if let Some(previous) = &mut chain {
                if chained(previous, run, body) != hash {
                    return Err(damaged("it is not what was written"));
                }
                previous.clone_from(&hash);
            }
            check_format(run, body)?;
            events.push(serde_json::from_str(body).map_err(|error| damaged(&error.to_string()))?);
            self.tail = Some((run.to_owned(), sequence, hash));
        }
        Ok(events)
    }

    /// A run's state now.
    pub async fn load(&mut self, run: &str) -> Result<Option<RunState>, JournalError> {
        let events = self.events(run, 0).await?;
        Ok(RunState::replay(&events)?)
    }

    /// Applies what other processes appended since; gives the new events.
    pub async fn catch_up(&mut self, run: &str, state: &mut RunState) -> Result<Vec<Event>, JournalError> {
        let events = self.events(run, state.next_sequence).await?;
        for event in &events {
            state.apply(event)?;
        }
        Ok(events)
    }

    /// All runs, newest first. Ids begin with the time, so they sort by it.
    pub async fn run_ids(&mut self) -> Result<Vec<String>, JournalError> {
        let rows = sqlx::query("SELECT run FROM event WHERE sequence = 0 ORDER BY run DESC")
            .fetch_all(&mut self.connection)
            .await
            .map_err(|error| self.read_error(&error))?;
        Ok(rows.iter().map(|row| row.get("run")).collect())
    }

    /// Checks the whole file: every run's chain, and that its events fold.
    pub async fn verify(&mut self) -> Result<Vec<Damage>, JournalError> {
        let mut damage = Vec::new();
        let rows = sqlx::query("SELECT DISTINCT run FROM event ORDER BY run")
            .fetch_all(&mut self.connection)
            .await
            .map_err(|error| self.read_error(&error))?;
        for row in &rows {
            let run: String = row.get("run");
            match self.load(&run).await {
                Ok(_) => {}
                Err(JournalError::Damaged { run, sequence, reason }) => damage.push(Damage { run, sequence, reason }),
                Err(JournalError::Illegal(error)) => damage.push(Damage { run, sequence: error.sequence, reason: error.to_string() }),
                Err(other) => return Err(other),
            }
        }
        Ok(damage)
    }

    async fn insert(&mut self, run: &str, events: Vec<Event>, redactor: &Redactor) -> Result<Vec<Event>, JournalError> {
        let write = |path: &Path, reason: String| JournalError::Write { path: path.into(), reason };
        let Some(first) = events.first().map(|event| event.sequence) else {
            return Ok(events);
        };
        let mut hash = self.tail_hash(run, first).await?;
        let mut rows = Vec::with_capacity(events.len());
        let mut stored = Vec::with_capacity(events.len());
        for event in events {
            let event = event.redacted(redactor).map_err(|error| write(&self.path, error.to_string()))?;
            let body = serde_json::to_string(&event).map_err(|error| write(&self.path, error.to_string()))?;
            hash = chained(&hash, run, &body);
            rows.push((event.sequence, body, hash.clone()));
            stored.push(event);
        }
        let mut statement = sqlx::QueryBuilder::<sqlx::Sqlite>::new("INSERT INTO event (run, sequence, body, hash) ");
        statement.push_values(&rows, |mut row, (sequence, body, hash)| {
            row.push_bind(run).push_bind(*sequence as i64).push_bind(body).push_bind(hash);
        });
        match statement.build().execute(&mut self.connection).await {
            Ok(_) => {
                self.tail = rows.pop().map(|(sequence, _, hash)| (run.to_owned(), sequence, hash));
                Ok(stored)
            }
            Err(sqlx::Error::Database(error)) if error.is_unique_violation() => Err(JournalError::Conflict { run: run.into() }),
            Err(error) => Err(write(&self.path, reason(&error))),
        }
    }

    async fn tail_hash(&mut self, run: &str, next: u64) -> Result<Vec<u8>, JournalError> {
        match &self.tail {
            _ if next == 0 => return Ok(Vec::new()),
            Some((known, sequence, hash)) if known == run && sequence + 1 == next => return Ok(hash.clone()),
            _ => {}
        }
        let row = sqlx::query("SELECT hash FROM event WHERE run = ?1 AND sequence = ?2")
            .bind(run)
            .bind(next as i64 - 1)
            .fetch_optional(&mut self.connection)
            .await
            .map_err(|error| self.read_error(&error))?;
        row.map(|row| row.get("hash")).ok_or_else(|| JournalError::Damaged {
            run: run.into(),
            sequence: next - 1,
            reason: "it is missing".into(),
        })
    }

    fn read_error(&self, error: &sqlx::Error) -> JournalError {
        JournalError::Read { path: self.path.clone(), reason: reason(error) }
    }
}

/// SHA-256 over the previous hash, the run and the body, each of known length or ended by a zero.
fn chained(previous: &[u8], run: &str, body: &str) -> Vec<u8> {
    Sha256::new().chain_update(previous).chain_update(run).chain_update([0]).chain_update(body).finalize().to_vec()
}

fn check_format(run: &str, body: &str) -> Result<(), JournalError> {
    #[derive(serde::Deserialize)]
    struct Form {
        format: Option<u32>,
    }
    match serde_json::from_str::<Form>(body) {
        Ok(Form { format: Some(format) }) if format > super::event::FORMAT => Err(JournalError::Newer { run: run.into(), format }),
        _ => Ok(()),
    }
}

fn directory_of(path: &Path) -> &Path {
    path.parent().filter(|directory| !directory.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

fn create_private(path: &Path) -> std::io::Result<()> {
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(directory_of(path))?;
    let file = std::fs::OpenOptions::new().append(true).create(true).mode(0o600).open(path)?;
    if file.metadata()?.permissions().mode() & 0o077 != 0 {
        file.set_permissions(std::fs::Permissions::from_mode(0o600))?;
    }
    Ok(())
}

/// The reason without sqlx's own wrapping.
fn reason(error: &sqlx::Error) -> String {
    match error {
        sqlx::Error::Database(error) => error.message().to_owned(),
        other => other.to_string(),
    }
}
