//! What lies between us and a server: TLS, several hosts, passwords, poolers.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use serde_json::{Value, json};

use crate::outcome::StepError;
use crate::target::testing::{
    Server, client, directory, free_port, guard, hand_over, machine_programs, server, spec, standby, start_in, targets,
};
use crate::target::*;

async fn ask(targets: &Targets, text: &str) -> Result<Value, TargetError> {
    let mut session = targets.session("main", "step", &SessionSettings::default()).await?;
    let mut value = Value::Null;
    session.read(&Statement::query(text), None, &mut |_, row| value = row[0].clone()).await?;
    Ok(value)
}

/// What the error says, or whether the connection is encrypted.
async fn encrypted(url: &str) -> Result<Value, String> {
    let answer = ask(&targets(spec(url)), "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()").await;
    answer.map_err(|error| StepError::from(error).message)
}

/// A server that speaks TLS, with the certificates its clients need.
struct Tls {
    _server: Server,
    port: u16,
    files: tempfile::TempDir,
}

impl Tls {
    fn shared() -> &'static Self {
        static TLS: OnceLock<Tls> = OnceLock::new();
        TLS.get_or_init(Self::start)
    }

    fn start() -> Self {
        let files = tempfile::tempdir().unwrap();
        let path = |name: &str| files.path().join(name);
        for authority in ["ca", "stranger"] {
            let (key, certificate) = (path(&format!("{authority}.key")), path(&format!("{authority}.crt")));
            openssl(
                &["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", &format!("/CN={authority}"), "-keyout"],
                &[&key],
                &["-out"],
                &[&certificate],
            );
        }
        signed(files.path(), "server", "subjectAltName=DNS:localhost");
        signed(files.path(), "client", "extendedKeyUsage=clientAuth");
        // The server's own copies: it insists on owning its key.
        let place = directory();
        for name in ["server.key", "server.crt", "ca.crt"] {
            std::fs::copy(path(name), place.join(name)).unwrap();
            std::fs::set_permissions(place.join(name), std::fs::Permissions::from_mode(0o600)).unwrap();
            hand_over(&place.join(name));
        }
        let rules = "local all all trust\nhostssl all only_tls all trust\nhostnossl all never_tls all trust\n\
                     hostssl all client all cert\nhost all locked all scram-sha-256\nhost all postgres all trust\n";
        std::fs::write(place.join("rules"), rules).unwrap();
        std::fs::set_permissions(place.join("rules"), std::fs::Permissions::from_mode(0o644)).unwrap();
        let port = free_port();
        let file = |setting: &str, name: &str| format!("{setting}={}", place.join(name).display());
        let settings = [
            "listen_addresses=127.0.0.1".to_owned(),
            format!("port={port}"),
            "ssl=on".to_owned(),
            file("ssl_cert_file", "server.crt"),
            file("ssl_key_file", "server.key"),
            file("ssl_ca_file", "ca.crt"),
            file("hba_file", "rules"),
        ];
        let settings: Vec<&str> = settings.iter().map(String::as_str).collect();
        let server = start_in(&machine_programs(), place, port, &settings);
        for role in ["only_tls", "never_tls", "client"] {
            server.psql_at(port, "postgres", &format!("CREATE ROLE {role} LOGIN"));
        }
        server.psql_at(port, "postgres", "CREATE ROLE locked LOGIN PASSWORD 'it''s:se\\cret'");
        Self { _server: server, port, files }
    }

    fn url(&self, user: &str, host: &str, rest: &str) -> String {
        format!("host={host} port={} user={user} dbname=postgres {rest}", self.port)
    }

    fn file(&self, name: &str) -> String {
        self.files.path().join(name).display().to_string()
    }
}

fn openssl(first: &[&str], file: &[&Path], then: &[&str], files: &[&Path]) {
    let mut command = Command::new("openssl");
    command.args(first).args(file).args(then).args(files);
    let ended = command.output().unwrap();
    assert!(ended.status.success(), "{command:?}: {}", String::from_utf8_lossy(&ended.stderr));
}

/// A key and a certificate for it that `ca` has signed.
fn signed(files: &Path, name: &str, extension: &str) {
    let path = |suffix: &str| files.join(format!("{name}.{suffix}"));
    std::fs::write(path("ext"), extension).unwrap();
    openssl(
        &["req", "-newkey", "rsa:2048", "-nodes", "-subj", &format!("/CN={name}"), "-keyout"],
        &[&path("key")],
        &["-out"],
        &[&path("csr")],
    );
    let (ca, key): (PathBuf, PathBuf) = (files.join("ca.crt"), files.join("ca.key"));
    let mut command = Command::new("openssl");
    command.args(["x509", "-req", "-days", "2", "-CAcreateserial", "-in"]).arg(path("csr")).arg("-CA").arg(ca).arg("-CAkey").arg(key);
    let ended = command.arg("-extfile").arg(path("ext")).arg("-out").arg(path("crt")).output().unwrap();
    assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
    std::fs::set_permissions(path("key"), std::fs::Permissions::from_mode(0o600)).unwrap();
}

#[tokio::test]
async fn tls_modes_protect_as_much_as_they_promise() {
    let tls = Tls::shared();
    let (ours, strangers) = (format!("sslrootcert={}", tls.file("ca.crt")), format!("sslrootcert={}", tls.file("stranger.crt")));
    let yes = [
        ("only_tls", "localhost", format!("sslmode=verify-full {ours}"), true),
        ("only_tls", "127.0.0.1", format!("sslmode=verify-ca {ours}"), true),
        ("only_tls", "127.0.0.1", "sslmode=require".to_owned(), true),
        ("only_tls", "127.0.0.1", "sslmode=prefer".to_owned(), true),
        ("only_tls", "127.0.0.1", "sslmode=allow".to_owned(), true),
        ("never_tls", "127.0.0.1", "sslmode=prefer".to_owned(), false),
        ("never_tls", "127.0.0.1", "sslmode=allow".to_owned(), false),
        ("never_tls", "127.0.0.1", "sslmode=disable".to_owned(), false),
    ];
    for (user, host, mode, expected) in yes {
        assert_eq!(encrypted(&tls.url(user, host, &mode)).await, Ok(json!(expected)), "{user} {host} {mode}");
    }
    let no = [
        ("only_tls", "127.0.0.1", format!("sslmode=verify-full {ours}"), "not valid for name"),
        ("only_tls", "localhost", format!("sslmode=verify-full {strangers}"), "invalid peer certificate"),
        ("only_tls", "localhost", format!("sslmode=verify-ca {strangers}"), "invalid peer certificate"),
        ("only_tls", "localhost", format!("sslmode=require {strangers}"), "invalid peer certificate"),
        ("only_tls", "127.0.0.1", "sslmode=disable".to_owned(), "no pg_hba.conf entry"),
        ("never_tls", "127.0.0.1", "sslmode=require".to_owned(), "no pg_hba.conf entry"),
    ];
    for (user, host, mode, expected) in no {
        let message = encrypted(&tls.url(user, host, &mode)).await.unwrap_err();
        assert!(message.contains(expected), "{user} {host} {mode}: {message}");
    }
}

#[tokio::test]
async fn a_client_certificate_takes_the_place_of_a_password() {
    let tls = Tls::shared();
    let certificate = format!("sslmode=require sslcert={} sslkey={}", tls.file("client.crt"), tls.file("client.key"));
    assert_eq!(encrypted(&tls.url("client", "127.0.0.1", &certificate)).await, Ok(json!(true)));
    let message = encrypted(&tls.url("client", "127.0.0.1", "sslmode=require")).await.unwrap_err();
    assert!(message.contains("certificate"), "{message}");
}

#[tokio::test]
async fn passwords_are_found_and_never_shown() {
    let tls = Tls::shared();
    let passwords = tls.files.path().join("pgpass");
    std::fs::write(&passwords, format!("127.0.0.1:{}:*:locked:it's\\:se\\\\cret\n", tls.port)).unwrap();
    std::fs::set_permissions(&passwords, std::fs::Permissions::from_mode(0o600)).unwrap();
    let good = tls.url("locked", "127.0.0.1", &format!("passfile={}", passwords.display()));
    assert_eq!(ask(&targets(spec(&good)), "SELECT current_user").await.unwrap(), json!("locked"));
    let error: StepError = ask(&targets(spec(&tls.url("locked", "127.0.0.1", "passfile=/nowhere"))), "SELECT 1").await.unwrap_err().into();
    let text = format!("{}\n{}", error.message, error.hints.join("\n")).replace(&tls.port.to_string(), "PORT");
    insta::assert_snapshot!(text, @r#"
    cannot connect to `main`: 127.0.0.1:PORT: password authentication failed for user "locked"
    No password was found: put it into ~/.pgpass (mode 0600), PGPASSWORD or a service file.
    "#);
    let wrong = ask(&targets(spec(&tls.url("locked", "127.0.0.1", "password=hunter2"))), "SELECT 1").await.unwrap_err();
    assert!(!format!("{wrong:?} {wrong}").contains("hunter2"));
    // pg_dump reaches the same target by what we hand it.
    let given = targets(spec(&good)).libpq_environment("main", "backup").unwrap().unwrap();
    let lines = tls.files.path().join("handed");
    std::fs::write(&lines, given.passfile.unwrap().expose()).unwrap();
    std::fs::set_permissions(&lines, std::fs::Permissions::from_mode(0o600)).unwrap();
    let mut psql = Command::new(client("psql"));
    let psql = psql
        .env_clear()
        .envs(given.set)
        .env("PGPASSFILE", lines)
        .args(["-XAtc", "SELECT current_user || ' ' || current_setting('application_name')"]);
    let answer = psql.output().unwrap();
    assert_eq!(String::from_utf8_lossy(&answer.stdout).trim(), "locked runbook/r1/backup", "{}", String::from_utf8_lossy(&answer.stderr));
}

#[tokio::test]
async fn the_first_host_of_the_wanted_kind_is_taken() {
    let standby = standby();
    let (primary, standby) = (server().socket.display().to_string(), standby.socket.display().to_string());
    let cases = [
        (format!("/nowhere,{primary}"), "any", Ok(false)),
        (format!("{standby},{primary}"), "primary", Ok(false)),
        (format!("{standby},{primary}"), "read-write", Ok(false)),
        (format!("{primary},{standby}"), "standby", Ok(true)),
        (format!("{primary},{standby}"), "read-only", Ok(true)),
        (format!("{primary},{standby}"), "prefer-standby", Ok(true)),
        (primary.clone(), "prefer-standby", Ok(false)),
        (primary.clone(), "standby", Err(())),
    ];
    for (hosts, wanted, expected) in cases {
        let url = format!("host={hosts} user=postgres dbname=postgres target_session_attrs={wanted}");
        let found = targets(spec(&url)).identity("main").await.map(|identity| identity.in_recovery);
        assert_eq!(found.clone().map_err(|_| ()), expected, "{hosts} {wanted}: {found:?}");
    }
    let mut wanted = spec(&format!("host={standby} user=postgres dbname=postgres"));
    wanted.expect.role = Role::Primary;
    let error: StepError = targets(wanted).identity("main").await.unwrap_err().into();
    assert_eq!(error.facts, [("role".to_owned(), "expected primary, found standby".to_owned())]);
}

#[tokio::test]
async fn a_server_that_is_not_there_is_named() {
    let port = free_port();
    let error: StepError = ask(&targets(spec(&format!("host=127.0.0.1 port={port} user=me"))), "SELECT 1").await.unwrap_err().into();
    assert!(error.transient);
    let text = format!("{}\n{}", error.message, error.hints.join("\n")).replace(&port.to_string(), "PORT");
    insta::assert_snapshot!(text, @r"
    cannot connect to `main`: 127.0.0.1:PORT: Connection refused
    Is the server running there, and does it accept connections?
    ");
}

/// A pooler in front of the shared server.
fn pooler(mode: &str) -> Server {
    let place = directory();
    let users = place.join("users");
    std::fs::write(&users, "\"postgres\" \"\"\n").unwrap();
    let text = format!(
        "[databases]\n* = host={} user=postgres\n[pgbouncer]\nlisten_port=6432\nunix_socket_dir={}\nauth_type=trust\nauth_file={}\npool_mode={mode}\n",
        server().socket.display(),
        place.display(),
        users.display(),
    );
    std::fs::write(place.join("pgbouncer.ini"), text).unwrap();
    for file in ["users", "pgbouncer.ini"] {
        hand_over(&place.join(file));
    }
    let configuration = place.join("pgbouncer.ini").display().to_string();
    guard(place, "/usr/sbin/pgbouncer", &[configuration], "TERM", 6432)
}

#[tokio::test]
async fn a_pooler_that_shares_backends_is_refused_and_one_in_session_mode_is_not() {
    let database = server().database();
    let url = |pooler: &Server| format!("host={} port=6432 user=postgres dbname={database}", pooler.socket.display());
    let shared = pooler("transaction");
    let error: StepError = ask(&targets(spec(&url(&shared))), "SELECT 1").await.unwrap_err().into();
    insta::assert_snapshot!(format!("{}\n{}", error.message, error.hints.join("\n")), @r"
    connection `main` goes through a pooler that shares backends between transactions
    Transaction pooling (PgBouncer's `pool_mode = transaction`) loses locks and settings between statements. Point the connection at the server itself, or at a pool in session mode.
    ");
    let own = pooler("session");
    let targets = targets(spec(&url(&own)));
    assert_eq!(ask(&targets, "SELECT current_setting('application_name')").await.unwrap(), json!("runbook/r1/step"));
}
