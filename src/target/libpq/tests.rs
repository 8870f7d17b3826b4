//! Connection strings, files and variables, read as psql reads them.

use std::os::unix::fs::PermissionsExt;

use super::*;

fn variables(pairs: &[(&str, &str)]) -> Variables {
    Variables::new(pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())))
}

/// One line: `user/database @ host:port[=address]:password … | tls | session`.
fn read(text: &str, environment: &[(&str, &str)]) -> String {
    let environment = [&[("HOME", "/nowhere"), ("USER", "me")], environment].concat();
    match Parameters::resolve(text, &variables(&environment)) {
        Ok(found) => {
            let hosts = found.hosts.iter().map(|host| {
                let address = host.address.as_deref().map_or_else(String::new, |address| format!("={address}"));
                let password = host.password.as_ref().map_or_else(String::new, |password| format!(" ({})", password.expose()));
                format!("{host}{address}{password}")
            });
            let hosts = hosts.collect::<Vec<_>>().join(" ");
            format!("{}/{} @ {hosts} | {} | {}", found.user, found.database, found.tls.mode.as_str(), found.session.as_str())
        }
        Err(error) => format!("{error} {}", error.hint.clone().unwrap_or_default()).trim_end().to_owned(),
    }
}

fn file(directory: &tempfile::TempDir, name: &str, mode: u32, text: &str) -> String {
    let path = directory.path().join(name);
    std::fs::write(&path, text).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
    path.display().to_string()
}

#[test]
fn connection_strings_mean_what_they_mean_to_psql() {
    let cases = [
        ("postgres://db.example/stock", "me/stock @ db.example:5432 | prefer | any"),
        ("postgresql://ann:s%40fe@db:5433/stock", "ann/stock @ db:5433 (s@fe) | prefer | any"),
        ("postgres://ann:p@ss:word@db/stock", "ann/stock @ db:5432 (p@ss:word) | prefer | any"),
        ("postgres://db", "me/me @ db:5432 | prefer | any"),
        ("postgres://%2Fsockets/stock", "me/stock @ /sockets:5432 | prefer | any"),
        ("postgres:///stock?host=/sockets&port=6000", "me/stock @ /sockets:6000 | prefer | any"),
        ("postgres://[2001:db8::1]:5433/stock", "me/stock @ [2001:db8::1]:5433 | prefer | any"),
        ("postgres://a:1,b:2,c/stock?target_session_attrs=primary", "me/stock @ a:1 b:2 c:5432 | prefer | primary"),
        ("postgres://a,b/stock?port=6000", "me/stock @ a:6000 b:6000 | prefer | any"),
        ("postgres://db/stock?ssl=true&sslmode=disable", "me/stock @ db:5432 | disable | any"),
        ("host=db port=6000 dbname = 'my stock' user='o\\'neil' password=a\\ b", "o'neil/my stock @ db:6000 (a b) | prefer | any"),
        ("host=db hostaddr=10.0.0.1 sslmode=require", "me/me @ db:5432=10.0.0.1 | require | any"),
        ("host=db sslmode=allow target_session_attrs=prefer-standby", "me/me @ db:5432 | allow | prefer-standby"),
        ("host=a,b port=1,2,3", "3 ports for 2 hosts"),
        (
            "host=db port=70000",
            "a port in the connection string is not a number from 1 to 65535 In a URL, write / : @ ? and # of a user or password as %2F %3A %40 %3F and %23.",
        ),
        ("host=db pasword=x", "`pasword` is not a connection parameter Did you mean `password`?"),
        ("host=db password='x", "the value of `password` has no closing quote"),
        (
            "host",
            "the connection's url is neither a database URL nor key=value pairs Write postgres://user@host:5432/database, host=… dbname=…, or sqlite:path.",
        ),
        ("host=db sslmode=on", "sslmode `on` is unknown It is disable, allow, prefer, require, verify-ca or verify-full."),
        (
            "host=db sslmode=verify-full",
            "sslmode=verify-full needs trusted certificates, and ~/.postgresql/root.crt does not exist \
             Give sslrootcert=FILE, or sslrootcert=system for those of the operating system.",
        ),
        ("host=db sslrootcert=system", "me/me @ db:5432 | verify-full | any"),
        ("host=db sslmode=prefer sslrootcert=system", "sslmode prefer is too weak for sslrootcert=system Use sslmode=verify-full."),
        ("host=db sslrootcert=/nowhere/ca.crt sslmode=verify-ca", "sslrootcert /nowhere/ca.crt does not exist"),
        (
            "host=db channel_binding=require",
            "the connection parameter channel_binding=require is not supported It is refused rather than ignored, because it asks for a guarantee.",
        ),
        ("host=db channel_binding=prefer keepalives_idle=60", "me/me @ db:5432 | prefer | any"),
        (
            "host=db sslpassword=hunter2",
            "encrypted client keys (sslpassword) are not supported Use a key without a passphrase, of mode 0600.",
        ),
    ];
    for (text, expected) in cases {
        assert_eq!(read(text, &[]), expected, "{text}");
    }
}

#[test]
fn pieces_of_a_password_that_was_not_escaped_are_not_shown() {
    for text in
        ["postgres://ann:hun/ter2@db/stock", "postgres://ann:hun?ter2@db", "postgres://ann:x?hun.ter2=@db", "hunter2", "hunter2 host=db"]
    {
        let message = read(text, &[]);
        assert!(!message.contains("hun") && !message.contains("ter2"), "{text}: {message}");
    }
}

#[test]
fn variables_fill_what_the_string_leaves_open() {
    let environment = [
        ("PGHOST", "envhost"),
        ("PGPORT", "7000"),
        ("PGUSER", "envuser"),
        ("PGDATABASE", "envdb"),
        ("PGPASSWORD", "envpw"),
        ("PGSSLMODE", "disable"),
        ("PGTARGETSESSIONATTRS", "standby"),
    ];
    assert_eq!(read("postgres://", &environment), "envuser/envdb @ envhost:7000 (envpw) | disable | standby");
    assert_eq!(read("postgres://ann@db:1/stock", &environment), "ann/stock @ db:1 (envpw) | disable | standby");
    assert_eq!(read("postgres://h", &[("PGHOST", "")]), "me/me @ h:5432 | prefer | any");
}

#[test]
fn a_password_file_gives_the_first_line_that_fits() {
    let directory = tempfile::tempdir().unwrap();
    let passwords = file(
        &directory,
        "pgpass",
        0o600,
        "# comment\nother:*:*:*:no\nbroken line\ndb:5433:stock:ann:exact\ndb:*:*:ann:a\\:b\\\\c\nlocalhost:*:*:*:local\n*:*:\\*:*:star\n*:*:*:*:any:with:colons\n",
    );
    let environment = [("PGPASSFILE", passwords.as_str())];
    let password = |text: &str| {
        let found = Parameters::resolve(text, &variables(&[environment[0], ("USER", "me")])).unwrap();
        found.hosts[0].password.as_ref().map(|password| password.expose().to_owned())
    };
    let cases = [
        ("postgres://ann@db:5433/stock", "exact"),
        ("postgres://ann@db:5433/other", "a:b\\c"),
        ("postgres:///stock?host=/var/run/postgresql", "local"),
        ("postgres://bob@elsewhere/*", "star"),
        ("postgres://bob@elsewhere/stock", "any:with:colons"),
        ("postgres://bob:own@elsewhere/stock", "own"),
    ];
    for (text, expected) in cases {
        assert_eq!(password(text).as_deref(), Some(expected), "{text}");
    }
}

#[test]
fn a_password_file_others_may_read_is_ignored_with_a_warning() {
    let directory = tempfile::tempdir().unwrap();
    file(&directory, ".pgpass", 0o640, "*:*:*:*:secret\n");
    let home = directory.path().display().to_string();
    let found = Parameters::resolve("postgres://db", &variables(&[("HOME", &home), ("USER", "me")])).unwrap();
    assert_eq!(found.hosts[0].password, None);
    let warning = found.warnings[0].replace(&home, "HOME");
    insta::assert_snapshot!(warning, @"password file HOME/.pgpass may be read by others and was ignored; run: chmod 0600 HOME/.pgpass");
}

#[test]
fn a_service_stands_between_the_string_and_the_variables() {
    let directory = tempfile::tempdir().unwrap();
    let services =
        file(&directory, "services", 0o644, "# ours\n[stock]\nhost=svc\nport=6001\nuser=svcuser\n\n[next]\nhost=next\n[bad]\nldap://x\n");
    let environment = [("PGSERVICEFILE", services.as_str()), ("PGPORT", "9"), ("PGDATABASE", "envdb"), ("PGSYSCONFDIR", "/nowhere")];
    assert_eq!(read("service=stock", &environment), "svcuser/envdb @ svc:6001 | prefer | any");
    assert_eq!(read("postgres://ann@/db?service=stock", &environment), "ann/db @ svc:6001 | prefer | any");
    assert_eq!(read("postgres://", &[&environment[..], &[("PGSERVICE", "next")]].concat()), "me/envdb @ next:9 | prefer | any");
    assert_eq!(read("service=bad", &environment).replace(&services, "FILE"), "FILE:10: there is no `=` in this line");
    let missing = read("service=gone", &environment).replace(&services, "FILE");
    assert_eq!(missing, "there is no service `gone` Looked in FILE and /nowhere/pg_service.conf.");
}

#[test]
fn files_in_the_home_directory_raise_the_protection_as_in_libpq() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::create_dir(directory.path().join(".postgresql")).unwrap();
    file(&directory, ".postgresql/root.crt", 0o644, "");
    let home = directory.path().display().to_string();
    assert_eq!(read("host=db sslmode=require", &[("HOME", &home)]), "me/me @ db:5432 | verify-ca | any");
    assert_eq!(read("host=db", &[("HOME", &home)]), "me/me @ db:5432 | prefer | any");
    file(&directory, ".postgresql/postgresql.crt", 0o644, "");
    file(&directory, ".postgresql/postgresql.key", 0o644, "");
    insta::assert_snapshot!(read("host=db", &[("HOME", &home)]).replace(&home, "HOME"), @"the client key HOME/.postgresql/postgresql.key may be read by others Run: chmod 0600 HOME/.postgresql/postgresql.key");
}

#[test]
fn a_client_program_gets_the_same_target_and_no_password_in_its_environment() {
    let environment = variables(&[("HOME", "/nowhere"), ("PGOPTIONS", "-c geqo=off")]);
    let found = Parameters::resolve("postgres://ann:se:cret@a:1,b:2/stock?target_session_attrs=primary", &environment).unwrap();
    let given = found.environment("runbook/r1/backup");
    let set: Vec<String> = given.set.iter().map(|(name, value)| format!("{name}={value}")).collect();
    insta::assert_snapshot!(set.join("\n"), @r"
    PGHOST=a,b
    PGPORT=1,2
    PGUSER=ann
    PGDATABASE=stock
    PGAPPNAME=runbook/r1/backup
    PGCONNECT_TIMEOUT=30
    PGSSLMODE=prefer
    PGTARGETSESSIONATTRS=primary
    PGOPTIONS=-c geqo=off
    ");
    assert_eq!(given.passfile.unwrap().expose(), "a:1:*:ann:se\\:cret\nb:2:*:ann:se\\:cret\n");
    assert!(given.remove.contains(&"PGPASSWORD") && given.remove.contains(&"PGSERVICE") && !given.remove.contains(&"PGHOST"));
}
