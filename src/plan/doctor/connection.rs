//! A connection: whether it answers, whether it is the right database, and what the role
//! may do there.

use std::collections::HashMap;
use std::time::Duration;

use serde_json::Value;

use super::{Finding, Verdict};
use crate::action::{Class, Inspection, Perform, Recovery};
use crate::plan::{Plan, PlannedStep};
use crate::target::{ConnectionSpec, Identity, Kind, Session, SessionSettings, Stamp, Statement, TargetError, Targets};

/// Nobody may have to wait for a look.
const LOCK_TIMEOUT: Duration = Duration::from_millis(500);
const STATEMENT_TIMEOUT: Duration = Duration::from_secs(20);

/// What is known of a server that answered.
#[derive(Debug, Clone, Copy)]
pub(super) struct Server {
    pub(super) kind: Kind,
    pub(super) major_version: u32,
    /// Of the whole database, in bytes.
    pub(super) size: Option<u64>,
}

/// The servers that answered, by the connection's name.
pub(super) type Servers = HashMap<String, Server>;

/// Every check of one connection.
pub(super) async fn examine(plan: &Plan, spec: &ConnectionSpec, targets: &Targets, servers: &mut Servers) -> Vec<Finding> {
    if spec.url.expose().is_empty() {
        return vec![Finding::new(Verdict::NotCheckable, "database", "its address is not known; see the inputs above")];
    }
    match look(plan, spec, targets, servers).await {
        Ok(findings) => findings,
        Err(error) => vec![Finding::problem("database", error.into())],
    }
}

async fn look(plan: &Plan, spec: &ConnectionSpec, targets: &Targets, servers: &mut Servers) -> Result<Vec<Finding>, TargetError> {
    if let Some((path, true)) = targets.sqlite_file(&spec.name)?.filter(|(path, _)| !path.exists()) {
        let text = format!("{} is not there yet; a run makes it", path.display());
        return Ok(vec![Finding::new(Verdict::NotCheckable, "database", text), super::place::new_file("file", &path, None)]);
    }
    let identity = targets.identity(&spec.name).await?;
    let settings = SessionSettings {
        statement_timeout: Some(STATEMENT_TIMEOUT),
        lock_timeout: Some(LOCK_TIMEOUT),
        idle_in_transaction_timeout: Some(STATEMENT_TIMEOUT),
    };
    // A second connection beside the one that tells the identity: that betrays a pooler.
    let mut session = targets.session(&spec.name, "doctor", &settings).await?;
    let mut findings = vec![reachable(&identity), expected(spec), stamp(spec, &targets.read_stamp(&spec.name).await?)];
    let mut server = Server { kind: identity.kind, major_version: identity.major_version, size: None };
    if identity.kind == Kind::Postgres {
        findings.push(encryption(targets, spec, &identity, &mut session).await?);
        server.size =
            cell(&mut session, "SELECT pg_catalog.pg_database_size(pg_catalog.current_database())").await?.and_then(|size| size.as_u64());
    }
    servers.insert(spec.name.clone(), server);
    let writers: Vec<&PlannedStep> = plan.steps.iter().filter(|step| step.excluded.is_none() && writes(plan, step, &spec.name)).collect();
    findings.push(writable(&identity, &writers, &mut session).await?);
    if !identity.in_recovery && writers.iter().any(|step| step.recovery == Recovery::Ledger) {
        findings.push(ledger(&mut session).await);
    }
    Ok(findings)
}

fn reachable(identity: &Identity) -> Finding {
    let text = match identity.kind {
        Kind::Postgres => {
            format!("PostgreSQL {} at {}, database {}, role {}", identity.version, identity.host, identity.database, identity.user)
        }
        Kind::Sqlite => format!("SQLite {}, {}", identity.version, identity.database),
    };
    Finding::new(Verdict::Ok, "database", text)
}

/// Whatever is not as expected has been an error already.
fn expected(spec: &ConnectionSpec) -> Finding {
    let expect = &spec.expect;
    let mut parts = Vec::new();
    parts.extend(expect.database.as_ref().map(|database| format!("database {database}")));
    parts.extend(match expect.role {
        crate::target::Role::Primary => Some("a primary".to_owned()),
        crate::target::Role::Standby => Some("a standby".to_owned()),
        crate::target::Role::Any => None,
    });
    parts.extend(expect.min_version.map(|version| format!("version {version} or newer")));
    parts.extend(expect.user.as_ref().map(|user| format!("role {user}")));
    parts.extend(expect.system_identifier.as_ref().map(|identifier| format!("system identifier {identifier}")));
    match parts.is_empty() {
        true => Finding::new(Verdict::Ok, "identity", "the playbook expects nothing of it"),
        false => Finding::new(Verdict::Ok, "identity", format!("as expected: {}", parts.join(", "))),
    }
}

fn stamp(spec: &ConnectionSpec, stamp: &Stamp) -> Finding {
    let text = match (&spec.environment, stamp) {
        (Some(environment), _) => format!("`{environment}`, as expected"),
        (None, Stamp::Environment(name)) => format!("`{name}`; the playbook names no environment"),
        (None, Stamp::Missing) => "none, and the playbook names no environment".to_owned(),
        (None, Stamp::Unreadable) => "not readable by this role; the playbook names no environment".to_owned(),
        (None, Stamp::Foreign(name)) => format!("`{name}`, of another database; the playbook names no environment"),
    };
    Finding::new(Verdict::Ok, "stamp", text)
}

async fn encryption(targets: &Targets, spec: &ConnectionSpec, identity: &Identity, session: &mut Session) -> Result<Finding, TargetError> {
    if identity.host.starts_with('/') {
        return Ok(Finding::new(Verdict::Ok, "encryption", "a socket on this machine"));
    }
    let libpq = targets.libpq_environment(&spec.name, "doctor")?;
    let mode =
        libpq.and_then(|libpq| libpq.set.into_iter().find(|(name, _)| name == "PGSSLMODE")).map(|(_, mode)| mode).unwrap_or_default();
    let query = "SELECT version FROM pg_catalog.pg_stat_ssl WHERE pid = pg_catalog.pg_backend_pid() AND ssl";
    let version = cell(session, query).await?.and_then(|version| version.as_str().map(ToOwned::to_owned));
    let local = ["localhost:", "127.", "[::1]:"].iter().any(|beginning| identity.host.starts_with(beginning));
    Ok(judge_encryption(version.as_deref(), &mode, local))
}

fn judge_encryption(version: Option<&str>, mode: &str, local: bool) -> Finding {
    let verifies = matches!(mode, "verify-ca" | "verify-full");
    let (verdict, text) = match version {
        Some(version) if verifies => (Verdict::Ok, format!("{version}, sslmode={mode}")),
        Some(version) if local => (Verdict::Ok, format!("{version} on this machine, sslmode={mode}")),
        Some(version) => (Verdict::Warning, format!("{version}, but sslmode={mode} takes any server for the right one")),
        None if local => (Verdict::Ok, "none, on this machine".to_owned()),
        None => (Verdict::Warning, format!("NONE: with sslmode={mode} everything can be read on the way")),
    };
    let finding = Finding::new(verdict, "encryption", text);
    if verdict == Verdict::Warning { finding.advise("use sslmode=verify-full") } else { finding }
}

/// Whether the steps that write there may.
async fn writable(identity: &Identity, writers: &[&PlannedStep], session: &mut Session) -> Result<Finding, TargetError> {
    let read_only = match identity.kind {
        Kind::Postgres => {
            let setting = cell(session, "SELECT pg_catalog.current_setting('default_transaction_read_only')").await?;
            setting.is_some_and(|setting| setting == "on")
        }
        Kind::Sqlite => false,
    };
    let state = match (identity.kind, identity.in_recovery, read_only) {
        (_, true, _) => "a standby, which only reads",
        (_, false, true) => "transactions are read-only by default",
        (Kind::Postgres, false, false) => "a primary, which takes writes",
        (Kind::Sqlite, false, false) => "a file",
    };
    if writers.is_empty() {
        return Ok(Finding::new(Verdict::Ok, "writing", format!("{state}; no step writes there")));
    }
    let ids: Vec<&str> = writers.iter().map(|step| step.id.as_str()).collect();
    let refused = identity.in_recovery || read_only;
    let finding = Finding::new(if refused { Verdict::Problem } else { Verdict::Ok }, "writing", state);
    Ok(match refused {
        true => finding
            .advise(format!("these steps write: {}", ids.join(", ")))
            .advise("point the connection at the primary, or expect `role: primary`"),
        false => finding,
    })
}

async fn ledger(session: &mut Session) -> Finding {
    match session.check_ledger().await {
        Ok(true) => Finding::new(Verdict::Ok, "ledger", "is there and may be written"),
        Ok(false) => Finding::new(Verdict::Ok, "ledger", "is not there yet; this role may make it"),
        Err(error) => Finding::problem("ledger", error.into()),
    }
}

/// Whether a step changes something in a database by itself.
fn writes(plan: &Plan, step: &PlannedStep, connection: &str) -> bool {
    let action = &step.step.action.value;
    let changes = matches!(action.class(), Class::Change | Class::NotPreviewable)
        && !matches!(action.key(), "pg_dump" | "sqlite_backup" | "verify_backup");
    let scope = &plan.scopes[step.scope];
    let mut inspection = Inspection::default();
    action.inspect(&mut inspection);
    let names = inspection.connections.iter().map(|name| name.map(|name| name.value.as_str()).or(scope.default_connection.as_deref()));
    changes && names.flatten().any(|name| scope.connections.get(name).is_some_and(|full| full == connection))
}

/// The first value of a query, if it gives one.
async fn cell(session: &mut Session, query: &str) -> Result<Option<Value>, TargetError> {
    let mut found = None;
    let mut keep = |_: &[crate::outcome::Column], row: Vec<Value>| found = found.take().or_else(|| row.into_iter().next());
    session.read(&Statement::query(query), None, &mut keep).await?;
    Ok(found.filter(|value: &Value| !value.is_null()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_open_or_unverified_way_to_another_machine_is_a_warning() {
        for (version, mode, local, expected) in [
            (Some("TLSv1.3"), "verify-full", false, Verdict::Ok),
            (Some("TLSv1.3"), "require", false, Verdict::Warning),
            (Some("TLSv1.3"), "prefer", true, Verdict::Ok),
            (None, "prefer", false, Verdict::Warning),
            (None, "disable", true, Verdict::Ok),
        ] {
            let finding = judge_encryption(version, mode, local);
            assert_eq!(finding.verdict, expected, "{finding:?}");
            assert_eq!(finding.advice.is_empty(), expected == Verdict::Ok);
        }
    }
}
