//! The control connection: asks about, and acts on, backends that are busy.
//!
//! It holds the run lock, so it lives as long as the run, and is never used for an
//! author's statement.

use std::convert::Infallible;
use std::sync::Mutex;
use std::time::Duration;

use sqlx::postgres::PgConnection;
use tokio::time::{Instant, sleep};

use super::connect::{TextRows, code, text_rows, words};
use super::{Database, seconds, settings_sql};
use crate::target::error::{Blocker, TargetError};
use crate::target::identity::Identity;
use crate::target::literal::literal;
use crate::target::spec::SessionSettings;
use crate::target::{Backend, application_name};

/// Bounds a question to the server; each takes milliseconds.
const PATIENCE: Duration = Duration::from_secs(15);

/// How often something that will happen soon is looked for.
const POLL: Duration = Duration::from_millis(50);

/// An open control connection.
#[derive(Debug)]
pub struct Control {
    pub(super) connection: PgConnection,
    pub(super) pid: i32,
    pub(super) identity: Identity,
}

impl Database {
    /// Asks on the control connection, which is opened if need be; a connection
    /// that died in the meantime is replaced once.
    pub(super) async fn ask(&self, sql: &str) -> Result<TextRows, TargetError> {
        let mut control = self.control.lock().await;
        let was_open = control.is_some();
        match self.ask_once(&mut control, sql).await {
            Err(TargetError::Lost { .. }) if was_open => self.ask_once(&mut control, sql).await,
            answer => answer,
        }
    }

    pub(super) async fn ask_once(&self, control: &mut Option<Control>, sql: &str) -> Result<TextRows, TargetError> {
        if control.is_none() {
            *control = Some(Box::pin(self.open_control()).await?);
        }
        let Some(open) = control.as_mut() else { return Err(self.lost("the control connection is closed", None)) };
        let error = match tokio::time::timeout(PATIENCE, text_rows(&mut open.connection, sql)).await {
            Ok(Ok(rows)) => return Ok(rows),
            Ok(Err(error)) => error,
            Err(_) => sqlx::Error::Protocol(format!("no answer within {}", humantime::format_duration(PATIENCE))),
        };
        if super::failure::ends_session(&error) {
            self.forget(open.pid);
            *control = None;
            return Err(self.lost(&words(&error), code(&error)));
        }
        Err(TargetError::Sql(Box::new(super::failure::sql_error(&error))))
    }

    async fn open_control(&self) -> Result<Control, TargetError> {
        let (mut connected, identity, _) = self.open_checked(&application_name(&self.run, "control")).await?;
        let bounds = SessionSettings { statement_timeout: Some(PATIENCE), lock_timeout: Some(PATIENCE / 3), ..SessionSettings::default() };
        let settings = settings_sql(&bounds, connected.about.version_number);
        text_rows(&mut connected.connection, &settings).await.map_err(|error| self.lost(&words(&error), code(&error)))?;
        self.remember(connected.about.pid);
        Ok(Control { connection: connected.connection, pid: connected.about.pid, identity })
    }

    /// While a statement of `pid` runs, keeps the latest list of backends it waits
    /// for; `bound` is the time after which the server gives up. Never ends.
    pub(super) async fn watch_blockers(&self, pid: i32, bound: Option<Duration>, found: &Mutex<Vec<Blocker>>) -> Infallible {
        let Some(bound) = bound else { return std::future::pending().await };
        sleep(bound / 2).await;
        loop {
            if let Ok(blockers) = self.blockers(pid).await
                && !blockers.is_empty()
            {
                *found.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = blockers;
            }
            sleep((bound / 5).clamp(POLL, Duration::from_secs(5))).await;
        }
    }

    async fn blockers(&self, pid: i32) -> Result<Vec<Blocker>, TargetError> {
        let rows = self
            .ask(&format!(
                "SELECT a.pid, a.application_name, a.usename, a.state, a.query, \
                 extract(epoch FROM pg_catalog.clock_timestamp() - a.xact_start) \
                 FROM pg_catalog.pg_stat_activity a WHERE a.pid = ANY (pg_catalog.pg_blocking_pids({pid})) ORDER BY a.xact_start"
            ))
            .await?;
        Ok(rows
            .into_iter()
            .map(|row| {
                let mut row = row.into_iter();
                let mut next = || row.next().flatten();
                Blocker {
                    pid: next().and_then(|pid| pid.parse().ok()).unwrap_or_default(),
                    application: next().unwrap_or_default(),
                    user: next().unwrap_or_default(),
                    state: next().unwrap_or_default(),
                    query: next().unwrap_or_default(),
                    age: seconds(next()),
                }
            })
            .collect())
    }

    /// The backend of an earlier attempt of `step`.
    pub async fn earlier_backend(&self, step: &str) -> Result<Option<Backend>, TargetError> {
        let own = self.own_pids().iter().map(i32::to_string).collect::<Vec<_>>().join(",");
        let rows = self
            .ask(&format!(
                "SELECT pid, state, query, extract(epoch FROM pg_catalog.clock_timestamp() - coalesce(query_start, backend_start)) \
                 FROM pg_catalog.pg_stat_activity WHERE application_name = {} AND datname = pg_catalog.current_database() \
                 AND state IS DISTINCT FROM 'idle' AND pid <> ALL ('{{{own}}}'::int[]) ORDER BY query_start LIMIT 1",
                literal(&application_name(&self.run, step))
            ))
            .await?;
        Ok(rows.into_iter().next().map(|row| {
            let mut row = row.into_iter();
            let mut next = || row.next().flatten();
            Backend {
                pid: next().and_then(|pid| pid.parse().ok()).unwrap_or_default(),
                state: next().unwrap_or_default(),
                query: next().unwrap_or_default(),
                age: seconds(next()).unwrap_or_default(),
            }
        }))
    }

    /// Ends a backend and waits until it is gone.
    pub async fn terminate(&self, pid: i32, patience: Duration) -> Result<bool, TargetError> {
        self.ask(&format!("SELECT pg_catalog.pg_terminate_backend({pid})")).await?;
        self.wait_until_gone(pid, "", patience).await
    }

    /// Whether backend `pid` (one for which `condition` holds: another may have got
    /// its number since) has ended within `patience`.
    pub(super) async fn wait_until_gone(&self, pid: i32, condition: &str, patience: Duration) -> Result<bool, TargetError> {
        let deadline = Instant::now() + patience;
        loop {
            if self.ask(&format!("SELECT 1 FROM pg_catalog.pg_stat_activity WHERE pid = {pid}{condition}")).await?.is_empty() {
                return Ok(true);
            }
            if Instant::now() >= deadline {
                return Ok(false);
            }
            sleep(POLL).await;
        }
    }
}
