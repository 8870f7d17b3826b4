//! Who a target is: what a playbook expects, what `plan` shows, and what resume compares.

use serde::{Deserialize, Serialize};

use super::spec::{ConnectionSpec, Role};

/// What a target says about itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// PostgreSQL or SQLite.
    pub kind: Kind,
    /// The server's version as it writes it, e.g. `15.16 (Debian …)`.
    pub version: String,
    /// Its major version.
    pub major_version: u32,
    /// Database name, or an SQLite file's absolute path.
    pub database: String,
    /// The connected role; empty for SQLite.
    pub user: String,
    /// `host:port` or the socket's directory and port; empty for SQLite.
    pub host: String,
    /// The cluster's id, where the role may read it.
    pub system_identifier: Option<String>,
    /// A standby.
    pub in_recovery: bool,
    /// The environment stamped into the database.
    pub environment: Option<String>,
}

/// Which database system.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// PostgreSQL.
    Postgres,
    /// SQLite.
    Sqlite,
}

/// One way in which a target differs from what is expected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mismatch {
    /// `database`, `role` …
    pub what: &'static str,
    /// What the playbook says.
    pub expected: String,
    /// What the target says.
    pub found: String,
    /// What to do.
    pub hint: Option<String>,
}

impl std::fmt::Display for Mismatch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} is {}, expected {}", self.what, self.found, self.expected)
    }
}

impl Identity {
    /// Everything in which the target differs from what `spec` expects.
    pub fn mismatches(&self, spec: &ConnectionSpec, stamp: &Stamp) -> Vec<Mismatch> {
        let expect = &spec.expect;
        let mut found = Vec::new();
        let mut differs = |what, expected: &dyn ToString, actual: &dyn ToString| {
            found.push(Mismatch { what, expected: expected.to_string(), found: actual.to_string(), hint: None });
        };
        if let Some(database) = &expect.database
            && *database != self.database_name()
        {
            differs("database", database, &self.database_name());
        }
        match (expect.role, self.in_recovery) {
            (Role::Primary, true) => differs("role", &"primary", &"standby"),
            (Role::Standby, false) => differs("role", &"standby", &"primary"),
            _ => {}
        }
        if let Some(version) = expect.min_version
            && version > self.major_version
        {
            differs("version", &format!("{version} or newer"), &self.version);
        }
        if let Some(identifier) = &expect.system_identifier
            && Some(identifier) != self.system_identifier.as_ref()
        {
            differs("system identifier", identifier, &self.system_identifier.as_deref().unwrap_or("not readable by this role"));
        }
        if let Some(user) = &expect.user
            && *user != self.user
        {
            differs("user", user, &self.user);
        }
        if let Some(environment) = &spec.environment {
            found.extend(stamp.mismatch(environment, self));
        }
        found
    }

    /// The database's name; for SQLite the file's.
    pub fn database_name(&self) -> String {
        match self.kind {
            Kind::Postgres => self.database.clone(),
            Kind::Sqlite => {
                let path = std::path::Path::new(&self.database);
                path.file_name().map_or_else(|| self.database.clone(), |name| name.to_string_lossy().into_owned())
            }
        }
    }
}

/// What is known about the environment stamp of a target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stamp {
    /// Nobody has stamped it.
    Missing,
    /// The role may not read it.
    Unreadable,
    /// It came along in a dump of another database.
    Foreign(String),
    /// This database's environment.
    Environment(String),
}

impl Stamp {
    /// The environment, if it is this database's own.
    pub fn environment(&self) -> Option<&str> {
        match self {
            Self::Environment(name) => Some(name),
            _ => None,
        }
    }

    fn mismatch(&self, expected: &str, identity: &Identity) -> Option<Mismatch> {
        let (found, hint) = match self {
            Self::Environment(name) if name == expected => return None,
            Self::Environment(name) => (format!("`{name}`"), None),
            Self::Missing => (
                "not stamped".to_owned(),
                Some(format!("If {} really is {expected}, say so once: runbook stamp {expected} --url URL", identity.database)),
            ),
            Self::Foreign(name) => (
                format!("`{name}`, stamped into another database and restored here from its dump"),
                Some(format!("If {} really is {expected}, say so once: runbook stamp {expected} --url URL", identity.database)),
            ),
            Self::Unreadable => (
                "not readable by this role".to_owned(),
                Some(format!(
                    "Let an administrator run: GRANT USAGE ON SCHEMA runbook TO {user}; GRANT SELECT ON runbook.environment TO {user};",
                    user = super::literal::identifier(&identity.user)
                )),
            ),
        };
        Some(Mismatch { what: "environment", expected: format!("`{expected}`"), found, hint })
    }
}
