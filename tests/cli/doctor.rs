//! `runbook doctor`: what playbooks need, looked for before the day; nothing is changed.

use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;

use crate::environment::{Output, TestEnv};
use crate::postgres::{Server, bin_dir};
use crate::secrets::files;

/// Without what differs from machine to machine.
fn told(output: &Output) -> String {
    let rules = [
        (r"PostgreSQL \d\S* (\([^)]*\) )?at \S+, database \S+, ", "PostgreSQL [VERSION] at [HOST], database [DATABASE], "),
        (r"\S+/pg_(dump|restore), version [^\s;]+", "[BIN]/pg_$1, version [VERSION]"),
        (r"the server has \d+", "the server has [MAJOR]"),
        (r"[\d.]+ [KMGT]?i?B free", "[SIZE] free"),
        (r"20\d{6}-\d{6}-0000", "[RUN]"),
        (r"(/usr)?/bin/(sh|bash|true)\b", "/bin/$2"),
        (r"SQLite \d[\d.]*", "SQLite [VERSION]"),
    ];
    let text = output.stdout.replace(&bin_dir().display().to_string(), "[BIN]");
    rules.iter().fold(text, |text, (pattern, to)| regex::Regex::new(pattern).unwrap().replace_all(&text, *to).into_owned())
}

fn everything(env: &TestEnv) -> Vec<(std::path::PathBuf, Vec<u8>)> {
    let mut all: Vec<_> = files(&env.path("..")).into_iter().map(|file| (file.clone(), std::fs::read(file).unwrap())).collect();
    all.sort();
    all
}

const PLAYBOOK: &str = r#"
version: 1
name: nightly
params:
  dir: {type: path, default: backups}
secrets:
  hook: {env: HOOK_URL}
connections:
  main: {url: "{{ env.DATABASE_URL }}", expect: {role: primary, min_version: 10}}
channels:
  chat: {webhook: "{{ secrets.hook }}"}
steps:
  - id: variables
    env_check: {variables: {NODE_ENV: {one_of: [staging, production]}}}
  - id: backup
    pg_dump: {file: "{{ params.dir }}/{{ run.id }}.dump", verify: archive}
  - id: keep
    env_backup: {file: "{{ params.dir }}/{{ run.id }}.env", variables: [NODE_ENV], baseline: base.json}
  - id: change
    sql: {exec: "UPDATE t SET a = 1"}
    undo: {shell: {run: echo undone, shell: bash}}
  - id: ship
    shell: {argv: ["{{ steps.backup.file }}", "{{ params.dir }}"]}
  - id: deploy
    shell: {argv: [deploy-it, now]}
  - id: page
    http: {url: "{{ secrets.hook }}/health"}
  - id: tell
    notify: {to: [console, chat], message: done}
"#;

#[test]
fn everything_that_is_there_is_said_to_be() {
    let mut env = TestEnv::new();
    let database = env.database();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    env.set("NODE_ENV", "staging").set("HOOK_URL", &format!("http://{}/s3cret", listener.local_addr().unwrap()));
    env.program("deploy-it", "#!/bin/sh\n");
    env.write("nightly.yaml", PLAYBOOK);
    let before = everything(&env);
    let output = env.runbook(["doctor", "nightly.yaml"]).run().exits(0);
    insta::assert_snapshot!(told(&output), @"
    nightly  nightly.yaml

    inputs
      ok             secret  hook has a value

    connection main
      ok             database    PostgreSQL [VERSION] at [HOST], database [DATABASE], role postgres
      ok             identity    as expected: a primary, version 10 or newer
      ok             stamp       none, and the playbook names no environment
      ok             encryption  a socket on this machine
      ok             writing     a primary, which takes writes
      ok             ledger      is not there yet; this role may make it

    step variables
      ok             variables  1 variable as it must be

    step backup
      ok             program  [BIN]/pg_dump, version [VERSION]; the server has [MAJOR]
      ok             program  [BIN]/pg_restore, version [VERSION]; the server has [MAJOR]
      ok             dump     [DIR]/backups/[RUN].dump can be written (makes [DIR]/backups), [SIZE] free

    step keep
      ok             variables  1 variable
      ok             backup     [DIR]/backups/[RUN].env can be written (makes [DIR]/backups), [SIZE] free
      ok             baseline   [DIR]/base.json can be written, [SIZE] free

    step change
      ok             program  /bin/bash; which programs its script starts is not known

    step ship
      not checkable  program  `{{ steps.backup.file }}` is known only in a run

    step deploy
      ok             program  [DIR]/bin/deploy-it

    step page
      ok             server  127.0.0.1:[PORT] answers

    step tell
      ok             channel chat  127.0.0.1:[PORT] answers

    journal
      ok             file  [ROOT]/state/runbook/journal.db can be written (makes [ROOT]/state/runbook), [SIZE] free

    20 checks: 1 not checkable before a run, 19 ok
    ");
    assert_eq!(output.stderr, "");
    assert!(!output.raw_stdout.contains("s3cret"));
    assert!(everything(&env) == before, "a file was changed");
    assert_eq!(database.psql("SELECT count(*) FROM pg_namespace WHERE nspname = 'runbook'"), "0");
    let quiet = env.runbook(["doctor", "--quiet", "nightly.yaml"]).run().exits(0);
    insta::assert_snapshot!(told(&quiet), @"
    nightly  nightly.yaml

    step ship
      not checkable  program  `{{ steps.backup.file }}` is known only in a run

    20 checks: 1 not checkable before a run, 19 ok
    ");
    let json = env.runbook(["doctor", "--json", "nightly.yaml"]).run().exits(0);
    let json: serde_json::Value = serde_json::from_str(&json.raw_stdout).unwrap();
    assert_eq!(json[0]["playbook"], "nightly");
    assert_eq!(
        json[0]["groups"][0],
        serde_json::json!({"title": "inputs", "checks": [{"verdict": "ok", "subject": "secret", "text": "hook has a value"}]})
    );
}

#[test]
fn everything_that_is_missing_is_said_with_what_to_do() {
    let mut env = TestEnv::new();
    let server = Server::builder().start();
    let database = server.createdb("app");
    database.psql("CREATE ROLE limited LOGIN; REVOKE CREATE ON DATABASE app FROM PUBLIC");
    env.set("DATABASE_URL", &database.url_as("limited"));
    env.set("HOOK_URL", "http://127.0.0.1:1").set("NODE_ENV", "prod");
    // An older one in PATH does not hide the right one.
    env.program("pg_restore", "#!/bin/sh\necho 'pg_restore (PostgreSQL) 9.6.24'\n");
    env.write("backups", "a file, not a directory");
    env.write("base.json", "somebody's");
    env.write("nightly.yaml", PLAYBOOK);
    let before = everything(&env);
    insta::assert_snapshot!(told(&env.runbook(["doctor", "nightly.yaml"]).run().exits(6)), @"
    nightly  nightly.yaml

    inputs
      ok             secret  hook has a value

    connection main
      ok             database    PostgreSQL [VERSION] at [HOST], database [DATABASE], role limited
      ok             identity    as expected: a primary, version 10 or newer
      ok             stamp       none, and the playbook names no environment
      ok             encryption  a socket on this machine
      ok             writing     a primary, which takes writes
      PROBLEM        ledger      role `limited` may not write runbook's tables on `main`: it may not create anything in the database
                     Let an administrator run once: CREATE SCHEMA runbook; CREATE TABLE runbook.ledger (run text, step text, result json NOT NULL, recorded_at timestamptz NOT NULL DEFAULT now(), recorded_by text NOT NULL DEFAULT current_user, PRIMARY KEY (run, step)); GRANT USAGE ON SCHEMA runbook TO limited; GRANT SELECT, INSERT ON runbook.ledger TO limited;
                     Or set `ledger: none` on the connection; an interrupted write is then reported `unknown`.

    step variables
      PROBLEM        variables  1 of 1 variable in the environment is not as it must be
                     NODE_ENV: is none of staging, production

    step backup
      ok             program  [BIN]/pg_dump, version [VERSION]; the server has [MAJOR]
      ok             program  [BIN]/pg_restore, version [VERSION]; the server has [MAJOR]
      PROBLEM        dump     [DIR]/backups/[RUN].dump cannot be written: [DIR]/backups is not a directory

    step keep
      ok             variables  1 variable
      PROBLEM        backup     [DIR]/backups/[RUN].env cannot be written: [DIR]/backups is not a directory
      PROBLEM        baseline   [DIR]/base.json exists already and is never overwritten
                     give each run a name of its own, e.g. with `{{ run.id }}`, or move the file away

    step change
      ok             program  /bin/bash; which programs its script starts is not known

    step ship
      not checkable  program  `{{ steps.backup.file }}` is known only in a run

    step deploy
      PROBLEM        program  there is no program `deploy-it` in PATH ([DIR]/bin:[BIN]:/usr/bin:/bin)
                     install it, or add its directory to PATH

    step page
      PROBLEM        server  no connection to 127.0.0.1:[PORT]: connection refused
                     see whether the service runs, and check the port

    step tell
      PROBLEM        channel chat  no connection to 127.0.0.1:[PORT]: connection refused
                     see whether the service runs, and check the port

    journal
      ok             file  [ROOT]/state/runbook/journal.db can be written (makes [ROOT]/state/runbook), [SIZE] free

    20 checks: 8 problems, 1 not checkable before a run, 11 ok
    ");
    assert!(everything(&env) == before, "a file was changed");
}

#[test]
fn inputs_without_a_value_are_problems_and_the_rest_is_looked_at() {
    let env = TestEnv::new();
    env.write("nightly.yaml", PLAYBOOK);
    insta::assert_snapshot!(told(&env.runbook(["doctor", "nightly.yaml", "--only", "backup"]).run().exits(6)), @"
    nightly  nightly.yaml

    inputs
      PROBLEM        secret   secret `hook` has no value: environment variable HOOK_URL is not set
                     nightly.yaml:7
      PROBLEM        address  connection `main` has no address: environment variable DATABASE_URL is not set
                     set the environment variable, or give the parameter it reads
                     nightly.yaml:9
      PROBLEM        channel  channel `chat`: `secrets.hook` has no value: secrets.hook is not defined here
                     nightly.yaml:11

    connection main
      not checkable  database  its address is not known; see the inputs above

    step backup
      not checkable  program  [BIN]/pg_dump, version [VERSION]; the server's is not known
      not checkable  program  [BIN]/pg_restore, version [VERSION]; the server's is not known
      ok             dump     [DIR]/backups/[RUN].dump can be written (makes [DIR]/backups), [SIZE] free

    journal
      ok             file  [ROOT]/state/runbook/journal.db can be written (makes [ROOT]/state/runbook), [SIZE] free

    8 checks: 3 problems, 3 not checkable before a run, 2 ok
    ");
}

#[test]
fn a_standby_and_a_wrong_target_are_told_apart() {
    let primary = Server::builder().start();
    primary.createdb("app");
    let standby = primary.standby();
    let mut env = TestEnv::new();
    env.set("DATABASE_URL", &standby.url("app"));
    let playbook = "version: 1\nname: write\nconnections: {main: {url: '{{ env.DATABASE_URL }}'}}\nsteps:\n  - {id: change, sql: {exec: UPDATE t SET a = 1}}\n";
    env.write("write.yaml", playbook);
    insta::assert_snapshot!(told(&env.runbook(["doctor", "write.yaml"]).run().exits(6)), @"
    write  write.yaml

    connection main
      ok             database    PostgreSQL [VERSION] at [HOST], database [DATABASE], role postgres
      ok             identity    the playbook expects nothing of it
      ok             stamp       none, and the playbook names no environment
      ok             encryption  a socket on this machine
      PROBLEM        writing     a standby, which only reads
                     these steps write: change
                     point the connection at the primary, or expect `role: primary`

    journal
      ok             file  [ROOT]/state/runbook/journal.db can be written (makes [ROOT]/state/runbook), [SIZE] free

    6 checks: 1 problem, 5 ok
    ");
    env.write("write.yaml", playbook.replace("URL }}'}", "URL }}', expect: {database: other, role: primary}}"));
    insta::assert_snapshot!(told(&env.runbook(["doctor", "write.yaml"]).run().exits(6)), @"
    write  write.yaml

    connection main
      PROBLEM        database  connection `main` is not the expected target
                     database: expected other, found app
                     role: expected primary, found standby

    journal
      ok             file  [ROOT]/state/runbook/journal.db can be written (makes [ROOT]/state/runbook), [SIZE] free

    2 checks: 1 problem, 1 ok
    ");
    env.set("DATABASE_URL", "postgres://app@127.0.0.1:1/app");
    let unreached = env.runbook(["doctor", "write.yaml"]).run().exits(6);
    assert!(unreached.stdout.contains("PROBLEM        database  cannot connect to `main`"), "{unreached}");
}

#[test]
fn a_role_that_cannot_write_its_ledger_is_given_the_grants() {
    let mut env = TestEnv::new();
    let database = env.database();
    env.write("write.yaml", "version: 1\nname: write\nconnections: {main: {url: '{{ env.DATABASE_URL }}'}}\nsteps:\n  - {id: change, sql: {exec: CREATE TABLE t (a int)}}\n");
    let ledger = |env: &TestEnv, code: i32| {
        let output = env.runbook(["doctor", "write.yaml"]).run().exits(code);
        let lines: Vec<&str> =
            output.raw_stdout.lines().skip_while(|line| !line.contains("ledger")).take_while(|line| !line.is_empty()).collect();
        lines.join("\n")
    };
    assert_eq!(ledger(&env, 0), "  ok             ledger      is not there yet; this role may make it");
    env.runbook(["run", "write.yaml"]).run().exits(0);
    assert_eq!(ledger(&env, 0), "  ok             ledger      is there and may be written");
    let role = format!("limited_{}", database.name());
    database.psql(&format!("CREATE ROLE {role} LOGIN"));
    env.set("DATABASE_URL", &database.url_as(&role));
    let said = ledger(&env, 6);
    insta::assert_snapshot!(said.replace(&role, "limited"), @"
    PROBLEM        ledger      role `limited` may not write runbook's tables on `main`: permission denied for table runbook.ledger
                   Let an administrator run once: GRANT USAGE ON SCHEMA runbook TO limited; GRANT SELECT, INSERT ON runbook.ledger TO limited;
                   Or set `ledger: none` on the connection; an interrupted write is then reported `unknown`.
    ");
    // What it says to run is enough.
    for statement in ["GRANT USAGE ON SCHEMA runbook TO ", "GRANT SELECT, INSERT ON runbook.ledger TO "] {
        assert!(said.contains(&format!("{statement}\"{role}\";")) || said.contains(&format!("{statement}{role};")), "{said}");
        database.psql(&format!("{statement}{role}"));
    }
    assert_eq!(ledger(&env, 0), "  ok             ledger      is there and may be written");
}

#[test]
fn files_of_earlier_steps_are_not_missed() {
    let env = TestEnv::new();
    env.write("made.env", "A='1'\n");
    let playbook = "version: 1
name: files
steps:
  - {id: early, env_check: {file: gone.env, variables: {A: {}}}}
  - {id: record, env_check: {variables: {HOME: {fixed: true}}, baseline: 'b-{{ run.id }}.json', record: true}}
  - {id: compare, env_check: {variables: {HOME: {fixed: true}}, baseline: 'b-{{ run.id }}.json'}}
  - {id: fetch, shell: {run: 'true', dir: nowhere}}
  - {id: fetched, env_check: {file: fetched.env, variables: {A: {}}}}
  - {id: of_run, env_check: {file: '{{ run.id }}.env', variables: {A: {}}}}
  - {id: of_step, env_check: {file: '{{ steps.fetch.stdout }}', variables: {A: {}}}}
  - {id: there, env_check: {file: made.env, variables: {A: {secret: true}}}}
";
    env.write("files.yaml", playbook);
    insta::assert_snapshot!(told(&env.runbook(["doctor", "files.yaml"]).run().exits(6)), @"
    files  files.yaml

    step early
      PROBLEM        dotenv file  [DIR]/gone.env cannot be read: No such file or directory

    step record
      ok             variables  1 variable as it must be
      ok             baseline   [DIR]/b-[RUN].json can be written, [SIZE] free

    step compare
      ok             variables  1 variable as it must be
      not checkable  baseline   [DIR]/b-[RUN].json is written by `record`

    step fetch
      PROBLEM        directory  [DIR]/nowhere is no directory that can be entered
                     it is named from where runbook is run
      ok             program    /bin/sh; which programs its script starts is not known

    step fetched
      warning        dotenv file  [DIR]/fetched.env is not there yet
                     it must come from a step before this one, such as `fetch`

    step of_run
      not checkable  dotenv file  [DIR]/[RUN].env has its name from the run; `fetch` may write it

    step of_step
      not checkable  dotenv file  `{{ steps.fetch.stdout }}` is known only in a run

    step there
      PROBLEM        variables  1 of 1 variable in `[DIR]/made.env` is not as it must be
                     A: looks like a placeholder, not like a secret

    journal
      ok             file  [ROOT]/state/runbook/journal.db can be written (makes [ROOT]/state/runbook), [SIZE] free

    12 checks: 3 problems, 1 warning, 3 not checkable before a run, 5 ok
    ");
}

#[test]
fn sqlite_files_are_neither_made_nor_written() {
    let env = TestEnv::new();
    let playbook = |url: &str| {
        format!(
            "version: 1\nname: lite\nconnections: {{main: {{url: '{url}'}}}}\nsteps:\n  - {{id: change, sql: {{exec: CREATE TABLE t (a int)}}}}\n"
        )
    };
    env.write("lite.yaml", playbook("sqlite:new.db?mode=rwc"));
    insta::assert_snapshot!(told(&env.runbook(["doctor", "lite.yaml"]).run().exits(0)), @"
    lite  lite.yaml

    connection main
      not checkable  database  [DIR]/new.db is not there yet; a run makes it
      ok             file      [DIR]/new.db can be written, [SIZE] free

    journal
      ok             file  [ROOT]/state/runbook/journal.db can be written (makes [ROOT]/state/runbook), [SIZE] free

    3 checks: 1 not checkable before a run, 2 ok
    ");
    assert!(!env.path("new.db").exists());
    env.runbook(["run", "lite.yaml"]).run().exits(0);
    let before = std::fs::read(env.path("new.db")).unwrap();
    insta::assert_snapshot!(told(&env.runbook(["doctor", "lite.yaml"]).run().exits(0)), @"
    lite  lite.yaml

    connection main
      ok             database  SQLite [VERSION], [DIR]/new.db
      ok             identity  the playbook expects nothing of it
      ok             stamp     none, and the playbook names no environment
      ok             writing   a file
      ok             ledger    is there and may be written

    journal
      ok             file  [ROOT]/state/runbook/journal.db can be written, [SIZE] free

    6 checks: 6 ok
    ");
    assert!(std::fs::read(env.path("new.db")).unwrap() == before);
}

#[test]
fn several_playbooks_get_the_parameters_they_declare() {
    let env = TestEnv::new();
    env.write(
        "a.yaml",
        "version: 1\nname: a\nparams: {x: {type: string, required: true}}\nsteps:\n  - {id: one, shell: {argv: ['{{ params.x }}']}}\n",
    );
    env.write("b.yaml", "version: 1\nname: b\nsteps:\n  - {id: one, shell: {argv: ['true']}}\n");
    env.write("c.yaml", "version: 1\nname: c\nsteps: []\n");
    insta::assert_snapshot!(told(&env.runbook(["doctor", "a.yaml", "b.yaml", "--param", "x=no-such-program"]).run().exits(6)), @"
    a  a.yaml

    step one
      PROBLEM        program  there is no program `no-such-program` in PATH ([BIN]:/usr/bin:/bin)
                     install it, or add its directory to PATH

    journal
      ok             file  [ROOT]/state/runbook/journal.db can be written (makes [ROOT]/state/runbook), [SIZE] free

    2 checks: 1 problem, 1 ok

    b  b.yaml

    step one
      ok             program  /bin/true

    journal
      ok             file  [ROOT]/state/runbook/journal.db can be written (makes [ROOT]/state/runbook), [SIZE] free

    2 checks: 2 ok
    ");
    let unknown = env.runbook(["doctor", "a.yaml", "b.yaml", "--param", "y=1"]).run().exits(64);
    assert_eq!(unknown.stderr, "error: none of these playbooks declares a parameter `y`\n");
    let invalid = env.runbook(["doctor", "c.yaml", "b.yaml"]).run().exits(65);
    assert!(invalid.stdout.contains("b  b.yaml") && invalid.stderr.contains("c.yaml"), "{invalid}");
    env.runbook(["doctor", "missing.yaml"]).run().exits(64);
}

#[test]
fn a_journal_that_cannot_be_written_is_a_problem() {
    let env = TestEnv::new();
    env.write("a.yaml", "version: 1\nname: a\nsteps:\n  - {id: one, shell: {argv: ['true']}}\n");
    env.write("file", "");
    let output = env.runbook(["doctor", "a.yaml", "--journal", "file/journal.db"]).run().exits(6);
    assert!(told(&output).contains("PROBLEM        file  file/journal.db cannot be written: file is not a directory"), "{output}");
    if !nix::unistd::geteuid().is_root() {
        std::fs::set_permissions(env.state(""), std::fs::Permissions::from_mode(0o500)).unwrap();
        let output = env.runbook(["doctor", "a.yaml"]).run().exits(6);
        assert!(output.stdout.contains("is closed to this user"), "{output}");
        std::fs::set_permissions(env.state(""), std::fs::Permissions::from_mode(0o700)).unwrap();
    }
}
