//! The databases acted on: connect, identity, statements, cancel, ledger, lock.
//!
//! Responsible for everything that is said to a target and for what its answers
//! mean. It does not split or judge SQL (`sql` does), decides no expectation, and
//! knows nothing of steps beyond their names.

mod error;
mod identity;
mod libpq;
mod literal;
mod notice;
mod postgres;
mod spec;
mod sqlite;
#[cfg(test)]
pub(crate) mod testing;

use std::sync::Arc;
use std::time::Duration;

use indexmap::IndexMap;
use serde_json::Value;
use sha2::{Digest, Sha256};
use tokio::sync::mpsc::{Receiver, UnboundedSender};

pub use error::{Blocker, SqlError, TargetError};
pub use identity::{Identity, Kind, Mismatch, Stamp};
pub use literal::{bound as value_literal, identifier, literal as text_literal};
pub use notice::{Notice, notice_layer};
pub use spec::{
    Access, ConnectionSpec, CopyChunk, Executed, Expect, Isolation, LedgerMode, Role, RowSink, SessionSettings, Statement, Variables,
};

/// The connections of one run. Opens lazily and keeps idle sessions for reuse.
/// Cheap to clone.
#[derive(Debug, Clone)]
pub struct Targets(Arc<IndexMap<String, Database>>);

#[derive(Debug, Clone)]
enum Database {
    Postgres(Arc<postgres::Database>),
    Sqlite(Arc<sqlite::Database>),
}

/// Who holds, or asks for, a run lock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LockHolder {
    /// The run's id.
    pub run: String,
    /// The machine it runs on.
    pub host: String,
    /// Its process.
    pub pid: u32,
}

/// What is known about the holder of a lock that is not free.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HolderDescription {
    /// The run, the machine (perhaps shortened) and the process, where the holder is a run.
    pub holder: Option<LockHolder>,
    /// The holder's name as the database shows it.
    pub application: String,
    /// The backend that holds it; `None` for SQLite.
    pub backend: Option<i32>,
    /// How long it has been connected, where this role may see that.
    pub age: Option<Duration>,
}

/// The answer to a request for the run lock.
#[derive(Debug)]
pub enum LockOutcome {
    /// It is ours.
    Held(RunLock),
    /// Somebody else has it.
    HeldBy(HolderDescription),
}

/// A run lock that is held. Dropping it keeps it: it ends with the process, or by
/// [`release`](Self::release).
#[derive(Debug)]
pub struct RunLock(Lock);

#[derive(Debug)]
enum Lock {
    Postgres(Arc<postgres::Database>),
    Sqlite(Arc<sqlite::Database>),
}

/// A backend an earlier attempt of a step left behind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Backend {
    /// Its process id.
    pub pid: i32,
    /// `active`, `idle in transaction` …
    pub state: String,
    /// What it runs or ran last.
    pub query: String,
    /// How long ago that began.
    pub age: Duration,
}

/// Variables with which a libpq program (`pg_dump`, `psql`) reaches the same target.
#[derive(Debug, Clone)]
pub struct LibpqEnvironment {
    /// To be set.
    pub set: Vec<(String, String)>,
    /// To be removed, so that nothing inherited interferes.
    pub remove: Vec<&'static str>,
    /// Lines for a file of mode 0600 that `PGPASSFILE` names; without it no password is needed.
    pub passfile: Option<crate::secret::Secret>,
}

/// The longest name PostgreSQL keeps.
const NAME_LIMIT: usize = 63;

/// `runbook/<run>/<step>`, shortened with a hash where PostgreSQL would cut it off.
pub fn application_name(run: &str, step: &str) -> String {
    let name = format!("runbook/{run}/{step}");
    if name.len() <= NAME_LIMIT {
        return name;
    }
    let hash = Sha256::digest(name.as_bytes());
    let suffix: String = hash.iter().take(4).map(|byte| format!("{byte:02x}")).collect();
    let mut end = NAME_LIMIT - suffix.len() - 1;
    while !name.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}~{suffix}", &name[..end])
}

impl Targets {
    /// The connections of run `run`; nothing is opened yet.
    pub fn new(run: &str, specs: Vec<ConnectionSpec>, variables: &Variables) -> Self {
        let open = |spec: ConnectionSpec| {
            let name = spec.name.clone();
            let database = if spec.url.expose().starts_with("sqlite:") {
                Database::Sqlite(Arc::new(sqlite::Database::new(run, spec)))
            } else {
                Database::Postgres(Arc::new(postgres::Database::new(run, spec, variables)))
            };
            (name, database)
        };
        Self(Arc::new(specs.into_iter().map(open).collect()))
    }

    /// The same connection to another database of the same server, of which nothing is
    /// expected and in which nothing is recorded.
    pub fn in_database(&self, connection: &str, database: &str) -> Result<Self, TargetError> {
        match self.database(connection)? {
            Database::Postgres(postgres) => {
                let sibling = Database::Postgres(Arc::new(postgres.sibling(database)));
                Ok(Self(Arc::new([(connection.to_owned(), sibling)].into_iter().collect())))
            }
            Database::Sqlite(_) => Err(TargetError::Configuration {
                connection: connection.to_owned(),
                message: "is an SQLite database: a file of its own, with no others beside it".to_owned(),
                hint: None,
            }),
        }
    }

    /// The names of the connections.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }

    /// A session for one step, new or one that became idle.
    pub async fn session(&self, connection: &str, step: &str, settings: &SessionSettings) -> Result<Session, TargetError> {
        match self.database(connection)? {
            Database::Postgres(database) => {
                Ok(Session(Kept::Postgres(Box::new(Box::pin(postgres::Database::session(database, step, settings)).await?))))
            }
            Database::Sqlite(database) => Ok(Session(Kept::Sqlite(Box::new(sqlite::Database::session(database, settings).await?)))),
        }
    }

    /// Who the target is, checked against what the playbook expects.
    pub async fn identity(&self, connection: &str) -> Result<Identity, TargetError> {
        match self.database(connection)? {
            Database::Postgres(database) => Box::pin(database.identity()).await,
            Database::Sqlite(database) => database.identity().await,
        }
    }

    /// Where effects on this connection are recorded.
    pub fn ledger_mode(&self, connection: &str) -> Result<LedgerMode, TargetError> {
        Ok(match self.database(connection)? {
            Database::Postgres(database) => database.spec().ledger,
            Database::Sqlite(database) => database.spec().ledger,
        })
    }

    /// The environment a connection must be stamped with; such a target is protected.
    pub fn environment(&self, connection: &str) -> Result<Option<&str>, TargetError> {
        Ok(match self.database(connection)? {
            Database::Postgres(database) => database.spec().environment.as_deref(),
            Database::Sqlite(database) => database.spec().environment.as_deref(),
        })
    }

    /// Takes the lock `name` if it is free now, or becomes free within `patience`.
    pub async fn lock(&self, connection: &str, name: &str, holder: &LockHolder, patience: Duration) -> Result<LockOutcome, TargetError> {
        Ok(match self.database(connection)? {
            Database::Postgres(database) => match Box::pin(database.lock(name, holder, patience)).await? {
                None => LockOutcome::Held(RunLock(Lock::Postgres(database.clone()))),
                Some(other) => LockOutcome::HeldBy(other),
            },
            Database::Sqlite(database) => match database.lock(name, holder, patience).await? {
                None => LockOutcome::Held(RunLock(Lock::Sqlite(database.clone()))),
                Some(other) => LockOutcome::HeldBy(other),
            },
        })
    }

    /// Writes the environment's name into the target database.
    pub async fn stamp(&self, connection: &str, environment: &str) -> Result<(), TargetError> {
        match self.database(connection)? {
            Database::Postgres(database) => Box::pin(database.stamp(environment)).await,
            Database::Sqlite(database) => database.stamp(environment).await,
        }
    }

    /// Reads the stamp, whatever the playbook expects.
    pub async fn read_stamp(&self, connection: &str) -> Result<Stamp, TargetError> {
        match self.database(connection)? {
            Database::Postgres(database) => Box::pin(database.read_stamp()).await,
            Database::Sqlite(database) => database.read_stamp().await,
        }
    }

    /// The backend of an earlier attempt of `step` in this run that still works or
    /// holds a transaction open. Sessions of this process do not count.
    pub async fn earlier_backend(&self, connection: &str, step: &str) -> Result<Option<Backend>, TargetError> {
        match self.database(connection)? {
            Database::Postgres(database) => Box::pin(database.earlier_backend(step)).await,
            // A killed process's SQLite transaction dies with it.
            Database::Sqlite(_) => Ok(None),
        }
    }

    /// Ends a backend and waits until it is gone; `false`: it is still there after `patience`.
    pub async fn terminate(&self, connection: &str, pid: i32, patience: Duration) -> Result<bool, TargetError> {
        match self.database(connection)? {
            Database::Postgres(database) => Box::pin(database.terminate(pid, patience)).await,
            Database::Sqlite(_) => Ok(true),
        }
    }

    /// Finds out how a COMMIT ended that reported [`TargetError::CommitUnknown`]:
    /// waits on a new connection until backend `pid` is gone, then reads the ledger.
    /// `None`: the transaction was rolled back.
    pub async fn resolve_commit(&self, connection: &str, step: &str, pid: i32, patience: Duration) -> Result<Option<Value>, TargetError> {
        match self.database(connection)? {
            Database::Postgres(database) => Box::pin(postgres::Database::resolve_commit(database, step, pid, patience)).await,
            Database::Sqlite(database) => sqlite::Database::resolve_commit(database, step).await,
        }
    }

    /// Variables for a libpq program on behalf of `step`; `None` for SQLite.
    pub fn libpq_environment(&self, connection: &str, step: &str) -> Result<Option<LibpqEnvironment>, TargetError> {
        match self.database(connection)? {
            Database::Postgres(database) => database.libpq_environment(step).map(Some),
            Database::Sqlite(_) => Ok(None),
        }
    }

    /// The file of an SQLite database, and whether connecting would make it; `None` for PostgreSQL.
    pub fn sqlite_file(&self, connection: &str) -> Result<Option<(std::path::PathBuf, bool)>, TargetError> {
        match self.database(connection)? {
            Database::Postgres(_) => Ok(None),
            Database::Sqlite(database) => database.place().map(Some),
        }
    }

    /// Says goodbye on every connection that is not in use; the run lock ends with it.
    pub async fn close(&self) {
        for database in self.0.values() {
            if let Database::Postgres(database) = database {
                database.close().await;
            }
        }
    }

    fn database(&self, connection: &str) -> Result<&Database, TargetError> {
        self.0.get(connection).ok_or_else(|| TargetError::Configuration {
            connection: connection.to_owned(),
            message: "is not declared".to_owned(),
            hint: None,
        })
    }
}

impl RunLock {
    /// Makes sure that it is still held.
    pub async fn check(&self) -> Result<(), TargetError> {
        match &self.0 {
            Lock::Postgres(database) => Box::pin(database.check_lock()).await,
            Lock::Sqlite(database) => database.check_lock(),
        }
    }

    /// Gives it back.
    pub async fn release(self) {
        match &self.0 {
            Lock::Postgres(database) => Box::pin(database.release_lock()).await,
            Lock::Sqlite(database) => database.release_lock(),
        }
    }
}

/// A connection in use by one step. Dropping it gives it back; a transaction that is
/// still open is rolled back, a statement that still runs is cancelled.
#[derive(Debug)]
pub struct Session(Kept);

#[derive(Debug)]
enum Kept {
    Postgres(Box<postgres::Session>),
    Sqlite(Box<sqlite::Session>),
}

/// Calls the same method of either kind of session. The futures behind are large
/// (they may open connections), so callers box them: a step's task must fit on a stack.
macro_rules! either {
    ($self:expr, $session:ident => $call:expr) => {
        match $self {
            Kept::Postgres($session) => $call,
            Kept::Sqlite($session) => $call,
        }
    };
}

impl Session {
    /// Who is at the other end.
    pub fn identity(&self) -> &Identity {
        either!(&self.0, session => session.identity())
    }

    /// The backend's process id; 0 for SQLite.
    pub fn pid(&self) -> i32 {
        either!(&self.0, session => session.pid())
    }

    /// Sends the notices of everything executed from now on to `receiver`; needs
    /// [`notice_layer`] in the process's subscriber.
    pub fn forward_notices(&mut self, receiver: UnboundedSender<Notice>) {
        either!(&mut self.0, session => session.forward_notices(receiver));
    }

    /// Something that can stop the running statement from another task.
    pub fn canceller(&self) -> Canceller {
        either!(&self.0, session => session.canceller())
    }

    /// Runs one statement in a read-only transaction of its own, in as few round
    /// trips as possible.
    pub async fn read(
        &mut self,
        statement: &Statement<'_>,
        isolation: Option<Isolation>,
        rows: RowSink<'_>,
    ) -> Result<Executed, TargetError> {
        either!(&mut self.0, session => Box::pin(session.read(statement, isolation, rows)).await)
    }

    /// Opens a transaction.
    pub async fn begin(&mut self, access: Access, isolation: Option<Isolation>) -> Result<(), TargetError> {
        either!(&mut self.0, session => Box::pin(session.begin(access, isolation)).await)
    }

    /// Runs one statement; every row goes to `rows` as it arrives. Without an open
    /// transaction the statement commits by itself.
    pub async fn execute(&mut self, statement: &Statement<'_>, rows: RowSink<'_>) -> Result<Executed, TargetError> {
        either!(&mut self.0, session => Box::pin(session.execute(statement, rows)).await)
    }

    /// Streams rows into a table by `COPY … FROM STDIN`, which PostgreSQL has; `None`: their
    /// source stopped without [`CopyChunk::End`], and none was kept.
    pub async fn copy(&mut self, statement: &str, chunks: &mut Receiver<CopyChunk>) -> Result<Option<u64>, TargetError> {
        either!(&mut self.0, session => Box::pin(session.copy(statement, chunks)).await)
    }

    /// Commits. A connection lost here gives [`TargetError::CommitUnknown`].
    pub async fn commit(&mut self) -> Result<(), TargetError> {
        either!(&mut self.0, session => Box::pin(session.commit()).await)
    }

    /// Rolls back; a session that cannot is closed, which rolls back too.
    pub async fn rollback(&mut self) {
        either!(&mut self.0, session => Box::pin(session.rollback()).await);
    }

    /// Creates the ledger if it is missing; to be called outside of a transaction.
    pub async fn ensure_ledger(&mut self) -> Result<(), TargetError> {
        either!(&mut self.0, session => Box::pin(session.ensure_ledger()).await)
    }

    /// Makes sure that [`ensure_ledger`](Self::ensure_ledger) will succeed, changing nothing;
    /// whether the ledger is there already.
    pub async fn check_ledger(&mut self) -> Result<bool, TargetError> {
        either!(&mut self.0, session => Box::pin(session.check_ledger()).await)
    }

    /// What this run has recorded for `step`, if its effect is in place.
    pub async fn ledger_find(&mut self, step: &str) -> Result<Option<Value>, TargetError> {
        either!(&mut self.0, session => Box::pin(session.ledger_find(step)).await)
    }

    /// A condition that holds while the run lock does, for a row whose writing stands
    /// for an effect; once it was read the transaction may commit under that lock only.
    pub fn lock_condition(&self) -> Result<String, TargetError> {
        either!(&self.0, session => session.lock_condition())
    }

    /// Records `step` in the open transaction, and makes sure that the run lock is
    /// held until it commits.
    pub async fn ledger_record(&mut self, step: &str, result: &Value) -> Result<(), TargetError> {
        either!(&mut self.0, session => Box::pin(session.ledger_record(step, result)).await)
    }
}

/// Stops the statement a session is running. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Canceller(Cancel);

#[derive(Debug, Clone)]
enum Cancel {
    Postgres(postgres::Canceller),
    Sqlite(sqlite::Canceller),
}

impl Canceller {
    /// Asks the server to stop; the statement then ends with [`TargetError::Cancelled`].
    pub async fn cancel(&self) -> Result<(), TargetError> {
        match &self.0 {
            Cancel::Postgres(canceller) => Box::pin(canceller.cancel()).await,
            Cancel::Sqlite(canceller) => {
                canceller.cancel();
                Ok(())
            }
        }
    }
}
