//! Opening a connection: hosts in turn, TLS, and what the server says it is.

use sqlx::postgres::{PgConnectOptions, PgConnection, PgDatabaseError, PgSslMode};
use sqlx::{AssertSqlSafe, ConnectOptions, Row, ValueRef};

use crate::target::libpq::{Host, Parameters, SessionAttributes, TlsMode};

/// Rows of text, as the simple protocol gives them.
pub type TextRows = Vec<Vec<Option<String>>>;

/// A connection that fits the parameters.
pub struct Connected {
    /// Ready for statements.
    pub connection: PgConnection,
    /// The host that was chosen.
    pub host: Host,
    /// What the server said.
    pub about: About,
}

/// What a server says about itself and us.
#[derive(Debug, Clone)]
pub struct About {
    /// Our backend.
    pub pid: i32,
    /// `server_version`
    pub version: String,
    /// `server_version_num`
    pub version_number: u32,
    /// `current_database()`
    pub database: String,
    /// Its OID.
    pub database_oid: String,
    /// `current_user`
    pub user: String,
    /// A standby.
    pub in_recovery: bool,
    /// Transactions are read-only by default.
    pub read_only: bool,
    /// Whether the stamp's table exists, and then whether it may be read.
    pub stamp_readable: Option<bool>,
    /// The cluster's id.
    pub system_identifier: Option<String>,
}

/// Why no host would do.
#[derive(Debug, Clone)]
pub struct Refused {
    /// The reasons, host by host.
    pub message: String,
    /// The server's code, if one answered.
    pub sqlstate: Option<String>,
    /// What may help.
    pub hint: Option<String>,
}

/// Opens a connection to the first host that answers and is of the wanted kind.
pub async fn open(parameters: &Parameters, application: &str) -> Result<Connected, Refused> {
    let mut hosts: Vec<&Host> = parameters.hosts.iter().collect();
    if parameters.shuffle {
        fastrand::shuffle(&mut hosts);
    }
    let passes: &[SessionAttributes] = match parameters.session {
        SessionAttributes::PreferStandby => &[SessionAttributes::Standby, SessionAttributes::Any],
        ref other => std::slice::from_ref(other),
    };
    let mut refusals: Vec<(String, Refused)> = Vec::new();
    for wanted in passes {
        for host in &hosts {
            match tokio::time::timeout(parameters.connect_timeout, one_host(parameters, host, application)).await {
                Ok(Ok(found)) if wanted.accepts(found.about.in_recovery, found.about.read_only) => return Ok(found),
                Ok(Ok(_)) => refusals.push((host.to_string(), wrong_kind(*wanted))),
                Ok(Err(refused)) => refusals.push((host.to_string(), refused)),
                Err(_) => refusals.push((host.to_string(), timed_out(parameters))),
            }
        }
    }
    refusals.dedup_by(|a, b| a.0 == b.0 && a.1.message == b.1.message);
    let message = refusals.iter().map(|(host, refused)| format!("{host}: {}", refused.message)).collect::<Vec<_>>().join("; ");
    let last = refusals.pop().map(|(_, refused)| refused);
    Err(Refused { message, sqlstate: last.as_ref().and_then(|last| last.sqlstate.clone()), hint: last.and_then(|last| last.hint) })
}

fn wrong_kind(wanted: SessionAttributes) -> Refused {
    Refused { message: format!("is not {}", wanted.as_str()), sqlstate: None, hint: None }
}

fn timed_out(parameters: &Parameters) -> Refused {
    let time = humantime::format_duration(parameters.connect_timeout);
    Refused { message: format!("no answer within {time} (connect_timeout)"), sqlstate: None, hint: None }
}

/// Tries the encryption that is wanted, then the one that is also acceptable.
async fn one_host(parameters: &Parameters, host: &Host, application: &str) -> Result<Connected, Refused> {
    let modes: &[PgSslMode] = match parameters.tls.mode {
        _ if host.is_socket() => &[PgSslMode::Disable],
        TlsMode::Disable => &[PgSslMode::Disable],
        TlsMode::Allow => &[PgSslMode::Disable, PgSslMode::Require],
        TlsMode::Prefer => &[PgSslMode::Prefer, PgSslMode::Disable],
        TlsMode::Require => &[PgSslMode::Require],
        TlsMode::VerifyCa => &[PgSslMode::VerifyCa],
        TlsMode::VerifyFull => &[PgSslMode::VerifyFull],
    };
    let mut first = None;
    for mode in modes {
        match options(parameters, host, *mode, application)?.connect().await {
            Ok(mut connection) => {
                let about = about(&mut connection).await.map_err(|error| refusal(&error, host))?;
                return Ok(Connected { connection, host: host.clone(), about });
            }
            Err(error) => {
                let other_mode_may_help = matches!(error, sqlx::Error::Tls(_)) || code(&error).is_some_and(|code| code == "28000");
                let refused = first.get_or_insert(refusal(&error, host));
                if !other_mode_may_help {
                    return Err(refused.clone());
                }
            }
        }
    }
    Err(first.unwrap_or_else(|| Refused { message: "no way to connect".to_owned(), sqlstate: None, hint: None }))
}

fn options(parameters: &Parameters, host: &Host, mode: PgSslMode, application: &str) -> Result<PgConnectOptions, Refused> {
    let options = match &parameters.options {
        // Only a URL can hold options that are not `name=value`. The password in it
        // keeps sqlx from looking for one; the right one follows.
        Some(options) => {
            let encoded = percent_encoding::utf8_percent_encode(options, percent_encoding::NON_ALPHANUMERIC);
            let url = format!("postgres://localhost/?password=x&options={encoded}");
            url.parse().map_err(|_| Refused { message: "the connection's options are unusable".into(), sqlstate: None, hint: None })?
        }
        None => PgConnectOptions::new_without_pgpass(),
    };
    let mut options = options
        .port(host.port)
        .username(&parameters.user)
        .database(&parameters.database)
        .password(host.password.as_ref().map_or("", |password| password.expose()))
        .application_name(application)
        // Poolers do not know it; the session sets it itself.
        .extra_float_digits(None)
        .ssl_mode(mode)
        .disable_statement_logging();
    options = if host.is_socket() { options.socket(&host.name) } else { options.host(host.endpoint()) };
    options = match &parameters.tls.root {
        Some(root) => options.ssl_root_cert(root),
        // No file: nothing beside the system's certificates, whatever the environment says.
        None => options.ssl_root_cert_from_pem(Vec::new()),
    };
    if let Some((certificate, key)) = &parameters.tls.client {
        options = options.ssl_client_cert(certificate).ssl_client_key(key);
    }
    Ok(options)
}

/// The server's code of an error, if it is a server's.
pub fn code(error: &sqlx::Error) -> Option<&str> {
    match error {
        sqlx::Error::Database(error) => error.try_downcast_ref::<PgDatabaseError>().map(PgDatabaseError::code),
        _ => None,
    }
}

/// An error in a few words, without sqlx's or PostgreSQL's source lines.
pub fn words(error: &sqlx::Error) -> String {
    match error {
        sqlx::Error::Database(error) => error.message().to_owned(),
        sqlx::Error::Io(error) if is_hangup(error.kind()) => "the server closed the connection".to_owned(),
        sqlx::Error::Io(error) => {
            let text = error.to_string();
            // The number says nothing that the words do not.
            text.split(" (os error").next().unwrap_or_default().to_owned()
        }
        sqlx::Error::Tls(error) => format!("TLS: {error}"),
        sqlx::Error::Protocol(text) => text.clone(),
        other => other.to_string(),
    }
}

/// The other side is gone; which of these the system reports is chance.
fn is_hangup(kind: std::io::ErrorKind) -> bool {
    use std::io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
    matches!(kind, BrokenPipe | ConnectionAborted | ConnectionReset | UnexpectedEof)
}

fn refusal(error: &sqlx::Error, host: &Host) -> Refused {
    let sqlstate = code(error).map(str::to_owned);
    let hint = match (&sqlstate, error) {
        (Some(code), _) if code == "28P01" && host.password.is_none() => {
            Some("No password was found: put it into ~/.pgpass (mode 0600), PGPASSWORD or a service file.".to_owned())
        }
        (Some(code), _) if code == "53300" => Some("All of the server's connections are in use.".to_owned()),
        (_, sqlx::Error::Io(error)) if error.kind() == std::io::ErrorKind::ConnectionRefused => {
            Some("Is the server running there, and does it accept connections?".to_owned())
        }
        _ => None,
    };
    Refused { message: words(error), sqlstate, hint }
}

/// Sends one string by the simple protocol and gives all rows as text.
pub async fn text_rows(connection: &mut PgConnection, sql: &str) -> Result<TextRows, sqlx::Error> {
    use sqlx::Executor;
    let rows = connection.fetch_all(sqlx::raw_sql(AssertSqlSafe(sql.to_owned()))).await?;
    rows.iter()
        .map(|row| {
            (0..row.len())
                .map(|index| {
                    let value = row.try_get_raw(index)?;
                    if value.is_null() {
                        return Ok(None);
                    }
                    value.as_str().map(|text| Some(text.to_owned())).map_err(sqlx::Error::Decode)
                })
                .collect()
        })
        .collect()
}

/// What the server says, in one round trip where the role may read everything.
async fn about(connection: &mut PgConnection) -> Result<About, sqlx::Error> {
    let rows = match text_rows(connection, &about_query("(SELECT system_identifier FROM pg_catalog.pg_control_system())")).await {
        Err(error) if code(&error) == Some("42501") => text_rows(connection, &about_query("NULL")).await?,
        answer => answer?,
    };
    let mut row = rows.into_iter().flatten();
    let mut next = || row.next().flatten();
    let malformed = || sqlx::Error::Protocol("the server's answer about itself is incomplete".to_owned());
    Ok(About {
        pid: next().and_then(|text| text.parse().ok()).ok_or_else(malformed)?,
        version: next().ok_or_else(malformed)?,
        version_number: next().and_then(|text| text.parse().ok()).ok_or_else(malformed)?,
        database: next().ok_or_else(malformed)?,
        database_oid: next().ok_or_else(malformed)?,
        user: next().ok_or_else(malformed)?,
        in_recovery: next().is_some_and(|text| text == "t"),
        read_only: next().is_some_and(|text| text == "on"),
        stamp_readable: next().map(|text| text == "t"),
        system_identifier: next(),
    })
}

/// The catalogue is asked instead of `to_regclass`, which fails on a schema that the
/// role may not use.
fn about_query(system_identifier: &str) -> String {
    format!(
        "SELECT pg_catalog.pg_backend_pid(), pg_catalog.current_setting('server_version'), \
         pg_catalog.current_setting('server_version_num'), pg_catalog.current_database(), \
         (SELECT oid FROM pg_catalog.pg_database WHERE datname = pg_catalog.current_database()), current_user, \
         pg_catalog.pg_is_in_recovery(), pg_catalog.current_setting('default_transaction_read_only'), \
         (SELECT pg_catalog.has_schema_privilege(n.oid, 'USAGE') AND pg_catalog.has_table_privilege(c.oid, 'SELECT') \
            FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace \
           WHERE n.nspname = 'runbook' AND c.relname = 'environment'), \
         {system_identifier}"
    )
}
