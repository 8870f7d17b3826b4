//! How libpq would read a connection string.
//!
//! Operators' URLs, `PG*` variables, service files and `.pgpass` must mean here what
//! they mean to psql. Parameters whose neglect would weaken a connection and that
//! cannot be honoured are refused, never ignored. Opening connections is
//! `connect`'s business.

mod files;
mod text;
mod tls;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use self::tls::{Tls, TlsMode};
use super::LibpqEnvironment;
use super::spec::Variables;
use crate::secret::Secret;

/// Where Debian's and the original build of PostgreSQL put their socket.
const SOCKET_DIRECTORIES: [&str; 2] = ["/var/run/postgresql", "/tmp"];

/// libpq itself would wait for as long as the network does; nobody wants that.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);

/// Every parameter that is understood, with its variable.
const PARAMETERS: &[(&str, &str)] = &[
    ("application_name", "PGAPPNAME"),
    ("channel_binding", "PGCHANNELBINDING"),
    ("client_encoding", "PGCLIENTENCODING"),
    ("connect_timeout", "PGCONNECT_TIMEOUT"),
    ("dbname", "PGDATABASE"),
    ("fallback_application_name", ""),
    ("gssdelegation", "PGGSSDELEGATION"),
    ("gssencmode", "PGGSSENCMODE"),
    ("gsslib", "PGGSSLIB"),
    ("host", "PGHOST"),
    ("hostaddr", "PGHOSTADDR"),
    ("keepalives", ""),
    ("keepalives_count", ""),
    ("keepalives_idle", ""),
    ("keepalives_interval", ""),
    ("krbsrvname", "PGKRBSRVNAME"),
    ("load_balance_hosts", "PGLOADBALANCEHOSTS"),
    ("options", "PGOPTIONS"),
    ("passfile", "PGPASSFILE"),
    ("password", "PGPASSWORD"),
    ("port", "PGPORT"),
    ("replication", ""),
    ("require_auth", "PGREQUIREAUTH"),
    ("requirepeer", "PGREQUIREPEER"),
    ("service", "PGSERVICE"),
    ("ssl_max_protocol_version", "PGSSLMAXPROTOCOLVERSION"),
    ("ssl_min_protocol_version", "PGSSLMINPROTOCOLVERSION"),
    ("sslcert", "PGSSLCERT"),
    ("sslcertmode", "PGSSLCERTMODE"),
    ("sslcompression", "PGSSLCOMPRESSION"),
    ("sslcrl", "PGSSLCRL"),
    ("sslcrldir", "PGSSLCRLDIR"),
    ("sslkey", "PGSSLKEY"),
    ("sslmode", "PGSSLMODE"),
    ("sslnegotiation", "PGSSLNEGOTIATION"),
    ("sslpassword", ""),
    ("sslrootcert", "PGSSLROOTCERT"),
    ("sslsni", "PGSSLSNI"),
    ("target_session_attrs", "PGTARGETSESSIONATTRS"),
    ("tcp_user_timeout", ""),
    ("user", "PGUSER"),
];

/// Why a connection string cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Unusable {
    /// What is wrong; never contains a password.
    pub message: String,
    /// What would be right.
    pub hint: Option<String>,
}

impl Unusable {
    fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), hint: None }
    }

    fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

/// A connection string, completed from service file, environment and defaults.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parameters {
    /// To be tried in this order.
    pub hosts: Vec<Host>,
    /// Try them in random order instead.
    pub shuffle: bool,
    /// Role to connect as.
    pub user: String,
    /// Database.
    pub database: String,
    /// For each attempt.
    pub connect_timeout: Duration,
    /// Encryption.
    pub tls: Tls,
    /// Which server will do.
    pub session: SessionAttributes,
    /// Command-line options for the server.
    pub options: Option<String>,
    /// What the user should know, e.g. about an ignored password file.
    pub warnings: Vec<String>,
}

/// One server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Host {
    /// Name, address, or a directory with a socket.
    pub name: String,
    /// Where to connect instead of resolving `name`.
    pub address: Option<String>,
    /// Port, also part of a socket's name.
    pub port: u16,
    /// The password for it, given or found in a password file.
    pub password: Option<Secret>,
}

impl Host {
    /// A socket on this machine, where nothing is encrypted.
    pub fn is_socket(&self) -> bool {
        self.name.starts_with('/') && self.address.is_none()
    }

    /// What is connected to.
    pub fn endpoint(&self) -> &str {
        self.address.as_deref().unwrap_or(&self.name)
    }
}

impl std::fmt::Display for Host {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.name.contains(':') { write!(f, "[{}]:{}", self.name, self.port) } else { write!(f, "{}:{}", self.name, self.port) }
    }
}

/// libpq's `target_session_attrs`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SessionAttributes {
    /// Any server.
    Any,
    /// Transactions may write by default.
    ReadWrite,
    /// They may not.
    ReadOnly,
    /// Not in recovery.
    Primary,
    /// In recovery.
    Standby,
    /// In recovery if there is one, otherwise any.
    PreferStandby,
}

type Settings = BTreeMap<String, String>;

impl Parameters {
    /// Reads a connection string as libpq does.
    pub fn resolve(text: &str, variables: &Variables) -> Result<Self, Unusable> {
        let settings = completed(text::parse(text)?, variables)?;
        refuse_unsupported(&settings)?;
        let user = settings.get("user").cloned().or_else(|| variables.get("USER").map(str::to_owned)).or_else(system_user);
        let user = user.ok_or_else(|| Unusable::new("no user is given and this process's user has no name"))?;
        let mut warnings = Vec::new();
        let database = settings.get("dbname").unwrap_or(&user).clone();
        let mut parameters = Self {
            hosts: hosts(&settings)?,
            shuffle: settings.get("load_balance_hosts").is_some_and(|value| value == "random"),
            connect_timeout: connect_timeout(&settings)?,
            tls: tls::tls(&settings, variables)?,
            session: session_attributes(&settings)?,
            options: settings.get("options").cloned(),
            warnings: Vec::new(),
            user,
            database,
        };
        let passwords = files::PasswordFile::open(settings.get("passfile").map(PathBuf::from), variables, &mut warnings);
        let given = settings.get("password").map(Secret::new);
        for host in &mut parameters.hosts {
            host.password = given.clone().or_else(|| passwords.find(host, &parameters.database, &parameters.user));
            if parameters.tls.mode == TlsMode::VerifyFull && host.address.is_some() && host.address.as_deref() != Some(&host.name) {
                return Err(Unusable::new("sslmode=verify-full together with hostaddr is not supported")
                    .hint("Leave hostaddr out, or give the name in /etc/hosts."));
            }
        }
        parameters.warnings = warnings;
        Ok(parameters)
    }

    /// The same target for a libpq program.
    pub fn environment(&self, application_name: &str) -> LibpqEnvironment {
        let mut set: Vec<(String, String)> = Vec::new();
        let mut put = |name: &str, value: String| set.push((name.to_owned(), value));
        let each = |value: &dyn Fn(&Host) -> String| self.hosts.iter().map(value).collect::<Vec<_>>().join(",");
        put("PGHOST", each(&|host| host.name.clone()));
        put("PGPORT", each(&|host| host.port.to_string()));
        if self.hosts.iter().any(|host| host.address.is_some()) {
            put("PGHOSTADDR", each(&|host| host.address.clone().unwrap_or_default()));
        }
        put("PGUSER", self.user.clone());
        put("PGDATABASE", self.database.clone());
        put("PGAPPNAME", application_name.to_owned());
        put("PGCONNECT_TIMEOUT", self.connect_timeout.as_secs().to_string());
        put("PGSSLMODE", self.tls.mode.as_str().to_owned());
        match &self.tls.root {
            Some(root) => put("PGSSLROOTCERT", root.display().to_string()),
            // Older client programs do not know `system`; they need it only to verify.
            None if self.tls.mode.verifies() => put("PGSSLROOTCERT", "system".to_owned()),
            None => {}
        }
        if let Some((certificate, key)) = &self.tls.client {
            put("PGSSLCERT", certificate.display().to_string());
            put("PGSSLKEY", key.display().to_string());
        }
        if self.session != SessionAttributes::Any {
            put("PGTARGETSESSIONATTRS", self.session.as_str().to_owned());
        }
        if let Some(options) = &self.options {
            put("PGOPTIONS", options.clone());
        }
        let remove = PARAMETERS.iter().map(|(_, variable)| *variable).filter(|variable| !variable.is_empty());
        let remove = remove.chain(["PGSERVICEFILE"]).filter(|variable| set.iter().all(|(name, _)| name != variable)).collect();
        LibpqEnvironment { remove, passfile: self.passfile(), set }
    }

    fn passfile(&self) -> Option<Secret> {
        let lines: Vec<String> = self
            .hosts
            .iter()
            .filter_map(|host| Some((host, host.password.as_ref()?)))
            .map(|(host, password)| files::password_line(host, &self.user, password))
            .collect();
        (!lines.is_empty()).then(|| Secret::new(lines.concat()))
    }
}

impl SessionAttributes {
    /// As libpq writes it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Any => "any",
            Self::ReadWrite => "read-write",
            Self::ReadOnly => "read-only",
            Self::Primary => "primary",
            Self::Standby => "standby",
            Self::PreferStandby => "prefer-standby",
        }
    }

    /// Whether a server is of this kind; `read_only` is its default for transactions.
    pub fn accepts(self, in_recovery: bool, read_only: bool) -> bool {
        match self {
            Self::Any => true,
            Self::ReadWrite => !in_recovery && !read_only,
            Self::ReadOnly => in_recovery || read_only,
            Self::Primary => !in_recovery,
            Self::Standby | Self::PreferStandby => in_recovery,
        }
    }
}

/// What is written, then the service file, then the environment.
fn completed(mut settings: Settings, variables: &Variables) -> Result<Settings, Unusable> {
    for name in settings.keys() {
        if !PARAMETERS.iter().any(|(known, _)| known == name) {
            let nearest = PARAMETERS
                .iter()
                .map(|(known, _)| *known)
                .max_by(|a, b| strsim::jaro_winkler(a, name).total_cmp(&strsim::jaro_winkler(b, name)));
            // Shown only where it looks like one: it may be a piece of a password.
            let plain = name.chars().all(|letter| letter.is_ascii_lowercase() || letter == '_');
            let shown = if plain { format!("`{name}`") } else { "a name in the connection string".to_owned() };
            let error = Unusable::new(format!("{shown} is not a connection parameter"));
            return Err(match nearest {
                Some(nearest) if strsim::jaro_winkler(nearest, name) > 0.8 => error.hint(format!("Did you mean `{nearest}`?")),
                _ => error,
            });
        }
    }
    if let Some(service) = settings.get("service").cloned().or_else(|| variables.get("PGSERVICE").map(str::to_owned)) {
        for (name, value) in files::service(&service, variables)? {
            settings.entry(name).or_insert(value);
        }
    }
    for (name, variable) in PARAMETERS {
        if let Some(value) = variables.get(variable) {
            settings.entry((*name).to_owned()).or_insert_with(|| value.to_owned());
        }
    }
    settings.retain(|_, value| !value.is_empty());
    Ok(settings)
}

/// Parameters that ask for protection which is not available here.
fn refuse_unsupported(settings: &Settings) -> Result<(), Unusable> {
    let refused = settings.iter().find(|(name, value)| match name.as_str() {
        "sslcrl" | "sslcrldir" | "sslpassword" | "requirepeer" | "require_auth" => true,
        "channel_binding" | "gssencmode" | "sslcertmode" => *value == "require",
        "sslnegotiation" => *value == "direct",
        "ssl_min_protocol_version" => *value == "TLSv1.3",
        "ssl_max_protocol_version" => !matches!(value.as_str(), "TLSv1.2" | "TLSv1.3"),
        "replication" => !matches!(value.as_str(), "false" | "off" | "no" | "0"),
        _ => false,
    });
    match refused {
        Some((name, _)) if name == "sslpassword" => {
            Err(Unusable::new("encrypted client keys (sslpassword) are not supported")
                .hint("Use a key without a passphrase, of mode 0600."))
        }
        Some((name, value)) => Err(Unusable::new(format!("the connection parameter {name}={value} is not supported"))
            .hint("It is refused rather than ignored, because it asks for a guarantee.")),
        None => Ok(()),
    }
}

fn hosts(settings: &Settings) -> Result<Vec<Host>, Unusable> {
    let list = |name: &str| -> Vec<&str> { settings.get(name).map_or_else(Vec::new, |value| value.split(',').map(str::trim).collect()) };
    let (names, addresses, ports) = (list("host"), list("hostaddr"), list("port"));
    let count = names.len().max(addresses.len()).max(1);
    if !names.is_empty() && !addresses.is_empty() && names.len() != addresses.len() {
        return Err(Unusable::new(format!("{} host names but {} hostaddr values", names.len(), addresses.len())));
    }
    if ports.len() > 1 && ports.len() != count {
        return Err(Unusable::new(format!("{} ports for {count} hosts", ports.len())));
    }
    (0..count)
        .map(|index| {
            let written = ports.get(index).or(ports.first()).copied().unwrap_or_default();
            let port = port(written)?;
            let address = addresses.get(index).filter(|address| !address.is_empty()).map(|address| (*address).to_owned());
            let name = names.get(index).filter(|name| !name.is_empty()).map(|name| (*name).to_owned());
            let name = name.or_else(|| address.clone()).unwrap_or_else(|| default_host(port));
            Ok(Host { name, address, port, password: None })
        })
        .collect()
}

fn port(written: &str) -> Result<u16, Unusable> {
    match written {
        "" => Ok(5432),
        _ => written
            .parse::<u16>()
            .ok()
            .filter(|port| *port > 0)
            // Not shown: with an unescaped `/` in it, a password may stand here.
            .ok_or_else(|| {
                Unusable::new("a port in the connection string is not a number from 1 to 65535")
                    .hint("In a URL, write / : @ ? and # of a user or password as %2F %3A %40 %3F and %23.")
            }),
    }
}

fn default_host(port: u16) -> String {
    let socket = |directory: &&&str| Path::new(directory).join(format!(".s.PGSQL.{port}")).exists();
    SOCKET_DIRECTORIES.iter().find(socket).map_or_else(|| "localhost".to_owned(), |directory| (*directory).to_owned())
}

fn system_user() -> Option<String> {
    nix::unistd::User::from_uid(nix::unistd::geteuid()).ok().flatten().map(|user| user.name)
}

fn connect_timeout(settings: &Settings) -> Result<Duration, Unusable> {
    let Some(written) = settings.get("connect_timeout") else { return Ok(CONNECT_TIMEOUT) };
    let seconds: i64 =
        written.trim().parse().map_err(|_| Unusable::new(format!("connect_timeout `{written}` is not a number of seconds")))?;
    Ok(match u64::try_from(seconds) {
        Ok(0) | Err(_) => CONNECT_TIMEOUT,
        // As in libpq: one second would often expire by rounding alone.
        Ok(seconds) => Duration::from_secs(seconds.max(2)),
    })
}

fn session_attributes(settings: &Settings) -> Result<SessionAttributes, Unusable> {
    use SessionAttributes::{Any, PreferStandby, Primary, ReadOnly, ReadWrite, Standby};
    let Some(written) = settings.get("target_session_attrs") else { return Ok(Any) };
    [Any, ReadWrite, ReadOnly, Primary, Standby, PreferStandby].into_iter().find(|known| known.as_str() == written).ok_or_else(|| {
        Unusable::new(format!("target_session_attrs `{written}` is unknown"))
            .hint("It is any, read-write, read-only, primary, standby or prefer-standby.")
    })
}

#[cfg(test)]
mod tests;
