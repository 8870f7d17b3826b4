//! PostgreSQL as a target: the connections of one entry of `connections:`.
//!
//! Working connections run authors' statements and are reused when idle; one
//! control connection beside them watches, cancels and holds the run lock.

mod answer;
mod command;
mod connect;
mod control;
mod copy;
mod decode;
mod failure;
mod ledger;
mod lock;
mod session;
mod types;

#[cfg(test)]
mod network_tests;
#[cfg(test)]
mod tests;

use std::collections::HashSet;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use sqlx::Connection;
use sqlx::postgres::PgConnection;
use tokio::time::{Instant, sleep};

use self::connect::{About, Connected, text_rows, words};
use self::control::Control;
use self::lock::HeldLock;
pub use self::session::{Canceller, Session};
use self::types::TypeCache;
use super::error::TargetError;
use super::identity::{Identity, Kind, Stamp};
use super::libpq::{Parameters, Unusable};
use super::literal::literal;
use super::spec::{ConnectionSpec, Expect, LedgerMode, SessionSettings, Variables};
use super::{LibpqEnvironment, application_name};

/// One PostgreSQL target of one run.
#[derive(Debug)]
pub struct Database {
    spec: ConnectionSpec,
    run: String,
    parameters: Result<Parameters, Unusable>,
    control: tokio::sync::Mutex<Option<Control>>,
    idle: Mutex<Vec<Wire>>,
    types: TypeCache,
    /// Backends of this process, which are nobody's leftovers.
    own: Mutex<HashSet<i32>>,
    lock: Mutex<Option<HeldLock>>,
    ledger_is_ready: AtomicBool,
}

/// An open working connection and what is known of its state.
#[derive(Debug)]
struct Wire {
    connection: PgConnection,
    pid: i32,
    version_number: u32,
    identity: Identity,
    /// The settings that are in force; `None`: the server's own.
    settings: Option<SessionSettings>,
    /// The name that is in force.
    application: String,
    /// It has run statements that may have left something behind: settings,
    /// temporary tables, prepared statements, locks.
    used: bool,
}

impl Database {
    /// Nothing is opened yet; an unusable URL is reported on first use.
    pub fn new(run: &str, spec: ConnectionSpec, variables: &Variables) -> Self {
        let parameters = Parameters::resolve(spec.url.expose(), variables);
        for warning in parameters.iter().flat_map(|parameters| &parameters.warnings) {
            tracing::warn!(connection = spec.name, "{warning}");
        }
        Self::unopened(run, spec, parameters)
    }

    fn unopened(run: &str, spec: ConnectionSpec, parameters: Result<Parameters, Unusable>) -> Self {
        Self {
            run: run.to_owned(),
            parameters,
            control: tokio::sync::Mutex::new(None),
            idle: Mutex::default(),
            types: TypeCache::default(),
            own: Mutex::default(),
            lock: Mutex::default(),
            ledger_is_ready: AtomicBool::new(false),
            spec,
        }
    }

    /// Another database of the same server. Nothing is expected of it, and nothing recorded there.
    pub fn sibling(&self, database: &str) -> Self {
        let spec = ConnectionSpec { expect: Expect::default(), ledger: LedgerMode::None, environment: None, ..self.spec.clone() };
        let parameters = self.parameters.clone().map(|parameters| Parameters { database: database.to_owned(), ..parameters });
        Self::unopened(&self.run, spec, parameters)
    }

    /// What the playbook says about it.
    pub fn spec(&self) -> &ConnectionSpec {
        &self.spec
    }

    /// Who it is, as expected.
    pub async fn identity(&self) -> Result<Identity, TargetError> {
        let mut control = self.control.lock().await;
        self.ask_once(&mut control, "SELECT 1").await?;
        control.as_ref().map(|control| control.identity.clone()).ok_or_else(|| self.lost("the control connection is closed", None))
    }

    /// A session for one step.
    pub async fn session(this: &Arc<Self>, step: &str, settings: &SessionSettings) -> Result<Session, TargetError> {
        let (wire, reused) = match this.idle_wire().await {
            Some(wire) => (wire, true),
            None => (this.new_wire().await?, false),
        };
        Ok(Session::new(this.clone(), wire, reused, step, settings.clone()))
    }

    /// Variables for a libpq program.
    pub fn libpq_environment(&self, step: &str) -> Result<LibpqEnvironment, TargetError> {
        Ok(self.parameters()?.environment(&application_name(&self.run, step)))
    }

    /// Waits until a backend that may be committing is gone, then reads the ledger.
    pub async fn resolve_commit(
        this: &Arc<Self>,
        step: &str,
        pid: i32,
        patience: Duration,
    ) -> Result<Option<serde_json::Value>, TargetError> {
        let deadline = Instant::now() + patience;
        loop {
            match this.outcome_of(step, pid, deadline).await {
                // The server may be restarting.
                Err(error) if error.is_transient() && Instant::now() < deadline => sleep(Duration::from_millis(200)).await,
                answer => return answer,
            }
        }
    }

    /// Says goodbye on every connection that is not in use.
    pub async fn close(&self) {
        let idle = std::mem::take(&mut *guarded(&self.idle));
        let control = self.control.lock().await.take();
        let connections = idle.into_iter().map(|wire| wire.connection).chain(control.map(|control| control.connection));
        for connection in connections {
            // A connection that is gone already is closed as well.
            let _ = connection.close().await;
        }
    }

    async fn outcome_of(self: &Arc<Self>, step: &str, pid: i32, deadline: Instant) -> Result<Option<serde_json::Value>, TargetError> {
        let ours = format!(" AND application_name LIKE {}", literal(&format!("runbook/{}/%", self.run)));
        if !self.wait_until_gone(pid, &ours, deadline.saturating_duration_since(Instant::now())).await? {
            let message = format!("backend {pid} still works on it");
            return Err(TargetError::CommitUnknown { connection: self.spec.name.clone(), pid, message });
        }
        let mut session = Self::session(self, step, &SessionSettings::default()).await?;
        session.ledger_find(step).await
    }

    /// A connection somebody gave back, with everything the last user set taken back.
    async fn idle_wire(&self) -> Option<Wire> {
        loop {
            let mut wire = guarded(&self.idle).pop()?;
            if !wire.used {
                return Some(wire);
            }
            if text_rows(&mut wire.connection, "DISCARD ALL").await.is_ok() {
                wire.settings = None;
                wire.application.clear();
                wire.used = false;
                return Some(wire);
            }
            self.forget(wire.pid);
        }
    }

    /// Opens a working connection. The control connection is opened first: two
    /// connections that are given the same backend betray a pooler.
    async fn new_wire(&self) -> Result<Wire, TargetError> {
        let mut control = self.control.lock().await;
        self.ask_once(&mut control, "SELECT 1").await?;
        let (connected, identity, _) = self.open_checked(&format!("runbook/{}", self.run)).await?;
        let About { pid, version_number, .. } = connected.about;
        if control.as_ref().is_some_and(|control| control.pid == pid) {
            return Err(TargetError::Pooled { connection: self.spec.name.clone() });
        }
        self.remember(pid);
        Ok(Wire {
            connection: connected.connection,
            pid,
            version_number,
            identity,
            settings: None,
            application: String::new(),
            used: false,
        })
    }

    /// Opens a connection and compares the target with what is expected.
    async fn open_checked(&self, application: &str) -> Result<(Connected, Identity, Stamp), TargetError> {
        let (connected, identity, stamp) = self.open(application).await?;
        let mismatches = identity.mismatches(&self.spec, &stamp);
        if mismatches.is_empty() {
            Ok((connected, identity, stamp))
        } else {
            Err(TargetError::Identity { connection: self.spec.name.clone(), mismatches })
        }
    }

    async fn open(&self, application: &str) -> Result<(Connected, Identity, Stamp), TargetError> {
        let connected = Box::pin(connect::open(self.parameters()?, application)).await;
        let mut connected = connected.map_err(|refused| TargetError::Connect {
            connection: self.spec.name.clone(),
            message: refused.message,
            sqlstate: refused.sqlstate,
            hint: refused.hint,
        })?;
        let stamp = ledger::stamp(&mut connected.connection, &connected.about).await;
        let stamp = stamp.map_err(|error| self.lost(&words(&error), connect::code(&error)))?;
        let about = &connected.about;
        let identity = Identity {
            kind: Kind::Postgres,
            version: about.version.clone(),
            major_version: about.version_number / 10_000,
            database: about.database.clone(),
            user: about.user.clone(),
            host: connected.host.to_string(),
            system_identifier: about.system_identifier.clone(),
            in_recovery: about.in_recovery,
            environment: stamp.environment().map(str::to_owned),
        };
        Ok((connected, identity, stamp))
    }

    fn parameters(&self) -> Result<&Parameters, TargetError> {
        self.parameters.as_ref().map_err(|unusable| TargetError::Configuration {
            connection: self.spec.name.clone(),
            message: unusable.message.clone(),
            hint: unusable.hint.clone(),
        })
    }

    fn lost(&self, message: &str, sqlstate: Option<&str>) -> TargetError {
        TargetError::Lost {
            connection: self.spec.name.clone(),
            message: message.to_owned(),
            sqlstate: sqlstate.map(str::to_owned),
            effect_unknown: false,
        }
    }

    fn remember(&self, pid: i32) {
        guarded(&self.own).insert(pid);
    }

    fn forget(&self, pid: i32) {
        guarded(&self.own).remove(&pid);
    }

    fn own_pids(&self) -> Vec<i32> {
        guarded(&self.own).iter().copied().collect()
    }
}

/// A lock that is never held across anything that can panic half-way.
fn guarded<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A number of seconds as PostgreSQL writes it.
fn seconds(text: Option<String>) -> Option<Duration> {
    Duration::try_from_secs_f64(text?.parse().ok()?).ok()
}

/// What every connection sets, as one string for the simple protocol.
fn settings_sql(settings: &SessionSettings, version_number: u32) -> String {
    let mut sql = String::from(
        // Results must not depend on how somebody configured the database …
        "SET DateStyle = 'ISO, MDY'; SET IntervalStyle = 'postgres'; SET bytea_output = 'hex'; SET extra_float_digits = 1; \
         SET tcp_keepalives_idle = 30; SET tcp_keepalives_interval = 10; SET tcp_keepalives_count = 6",
    );
    if version_number >= 140_000 {
        // … and a killed client's backend must notice.
        sql.push_str("; SET client_connection_check_interval = '500ms'; SET idle_session_timeout = 0");
    }
    let bounds = [
        ("statement_timeout", settings.statement_timeout),
        ("lock_timeout", settings.lock_timeout),
        ("idle_in_transaction_session_timeout", settings.idle_in_transaction_timeout),
    ];
    for (name, bound) in bounds {
        if let Some(bound) = bound {
            // Rounded up: 0 would mean no bound at all.
            sql.push_str(&format!("; SET {name} = {}", bound.as_micros().div_ceil(1000).clamp(1, i32::MAX as u128)));
        }
    }
    sql
}
