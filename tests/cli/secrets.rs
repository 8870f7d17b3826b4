//! A declared secret is nowhere: not in the journal, in output files, on the screen, in JSON,
//! in error messages, on a command line.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE};

use crate::crash::history::History;
use crate::crash::hook::Hook;
use crate::crash::wait_until;
use crate::environment::TestEnv;
use crate::postgres::Server;

/// With everything that is written otherwise somewhere: quotes, signs, a space, letters beyond ASCII.
const TOKEN: &str = r#"s3cr3t/to+ken=&"q'uo\te" %41"#;
/// Of several lines, as keys are.
const KEY: &str = "-----BEGIN KEY-----\nTWF0Y2hpbmcgbGluZXM\nSW4gdGhlIG1pZGRsZQ\n-----END KEY-----\n";
const PASSWORD: &str = "correct-horse-battery";

const PLAYBOOK: &str = r#"
version: 1
name: secretive
params:
  hook: {type: string, required: true}
  socket: {type: string, required: true}
secrets:
  token: {env: TOKEN}
  key: {file: key.pem}
  password: {env: DB_PASSWORD}
connections:
  main: {url: "postgres:///app?host={{ params.socket }}&user=app&password={{ secrets.password }}"}
channels:
  hook: {webhook: "{{ params.hook }}/notify?token={{ secrets.token }}"}
steps:
  - id: printed
    shell:
      run: |
        printf '%s\n' "$TOKEN"
        printf '%s\n' "$TOKEN" >&2
        printf '%s\n' "$KEY"
        printf 'before %s behind\n' "$TOKEN$TOKEN"
        printf '{"token": "%s"}\n' "$TOKEN"
      env: &env {TOKEN: "{{ secrets.token }}", KEY: "{{ secrets.key }}"}
    outputs: {leak: stdout}
  - id: in_pieces
    shell:
      run: |
        whole=$TOKEN
        while [ -n "$whole" ]; do
          rest=${whole#?}
          printf '%s' "${whole%"$rest"}"
          whole=$rest
          sleep 0.002
        done
        echo
        printf '%s' "${TOKEN%????}"; sleep 0.05; printf '%s\n' "${TOKEN#"${TOKEN%????}"}"
      env: *env
  - id: encoded
    shell:
      run: |
        printf '%s' "$TOKEN" | base64
        printf 'user:%s' "$TOKEN" | base64 --wrap=0; echo
        printf 'u:%s' "$TOKEN" | base64 --wrap=0; echo
        printf '%s\n' "$PERCENT"
        printf '%s' "$KEY" | base64
        printf '%s' "$TOKEN" | od -An -tx1 | tr -d ' \n'; echo
      env: {TOKEN: "{{ secrets.token }}", KEY: "{{ secrets.key }}", PERCENT: "{{ env_percent }}"}
  - id: failing
    continue_on_error: true
    shell: {run: 'echo "cannot log in with $TOKEN" >&2; exit 3', env: *env}
  - id: read_again
    shell: {run: 'printf "%s\n" "$LEAK"', env: {LEAK: "{{ steps.printed.outputs.leak }} {{ secrets.token }}"}}
  - id: header
    http:
      url: "{{ params.hook }}/header?token={{ secrets.token }}"
      method: POST
      headers: {Authorization: "Bearer {{ secrets.password }}"}
      json: {token: "{{ secrets.token }}", key: "{{ secrets.key }}"}
  - id: no_answer
    continue_on_error: true
    http: {url: "http://127.0.0.1:1/{{ secrets.token }}?password={{ secrets.password }}"}
  - id: bound
    sql: {query: "SELECT {{ secrets.token }}::text AS token, {{ secrets.key }}::text AS key, length({{ secrets.password }}::text) AS length"}
  - id: written
    sql: {exec: "INSERT INTO kept VALUES ({{ secrets.token }})"}
  - id: noticed
    sql: {query: "SELECT say({{ secrets.token }})"}
  - id: refused
    continue_on_error: true
    sql: {query: "SELECT {{ secrets.token }}::text::int"}
  - id: violated
    continue_on_error: true
    sql: {exec: "INSERT INTO once VALUES ({{ secrets.token }}), ({{ secrets.token }})"}
  - id: unexpected
    continue_on_error: true
    sql: {query: "SELECT {{ secrets.token }}::text AS token", expect: {empty: true}}
  - id: dump
    pg_dump: {file: app.dump, tables: [kept]}
  - id: tell
    notify: {to: [console, hook], title: "With {{ steps.bound.value }}", message: "and {{ steps.printed.stdout }}"}
  - id: agreed
    confirm: "Is {{ steps.read_again.stdout }} right?"
  - id: claimed
    continue_on_error: true
    assert: {that: "secrets.token == 'else'", message: "It is {{ steps.in_pieces.stdout }}."}
  - id: echoes
    for_each: [one]
    shell: {run: 'echo "$TOKEN"; sleep 0.2', env: *env}
"#;

/// Every way a secret may be recognised.
fn forms() -> Vec<String> {
    let mut forms = Vec::new();
    let lines = KEY.lines().filter(|line| !line.starts_with("-----"));
    for secret in [TOKEN, PASSWORD, KEY, KEY.trim_end()].into_iter().chain(lines) {
        forms.push(secret.to_owned());
        forms.push(serde_json::to_string(secret).unwrap().trim_matches('"').to_owned());
        forms.push(percent(secret));
        forms.push(percent(secret).to_lowercase());
        forms.push(secret.replace('\'', "''"));
        for engine in [STANDARD, URL_SAFE] {
            // Whatever stands before it: the characters that depend on the secret alone.
            for before in 0..3 {
                let encoded = engine.encode([&vec![b'x'; before], secret.as_bytes()].concat());
                forms.push(encoded[4..encoded.len() - 4].to_owned());
            }
        }
        forms.push(secret.bytes().map(|byte| format!("{byte:02x}")).collect());
    }
    forms
}

fn percent(text: &str) -> String {
    text.bytes().map(|byte| if byte.is_ascii_alphanumeric() { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect()
}

#[track_caller]
fn assert_absent(place: &str, bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    for form in forms() {
        if let Some(position) = text.find(&form) {
            let from = text[..position].char_indices().rev().nth(60).map_or(0, |(index, _)| index);
            let to = text[position..].char_indices().nth(form.chars().count() + 60).map_or(text.len(), |(index, _)| position + index);
            panic!("a secret, as {form:?}, is in {place}: …{}…", &text[from..to]);
        }
    }
}

pub fn files(directory: &Path) -> Vec<PathBuf> {
    let entries: Vec<PathBuf> = std::fs::read_dir(directory).unwrap().flatten().map(|entry| entry.path()).collect();
    entries.into_iter().flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
}

/// Command lines of all processes on the machine, as any of its users can read them.
fn command_lines() -> BTreeSet<Vec<u8>> {
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    processes.filter_map(|entry| std::fs::read(entry.path().join("cmdline")).ok()).collect()
}

/// A server that asks the playbook's role for its password.
fn guarded() -> Server {
    let server = Server::builder().access("local all postgres trust\nlocal all app scram-sha-256\n").start();
    server.createdb("app");
    server.psql(
        "app",
        &format!(
            "CREATE ROLE app LOGIN PASSWORD '{PASSWORD}'; CREATE TABLE kept (token text); CREATE TABLE once (token text UNIQUE);
             CREATE FUNCTION say(t text) RETURNS void LANGUAGE plpgsql AS $$ BEGIN RAISE NOTICE 'it is %', t; END $$;
             GRANT ALL ON DATABASE app TO app; GRANT ALL ON SCHEMA public TO app; GRANT ALL ON kept, once TO app"
        ),
    );
    server
}

fn secretive(server: &Server, hook: &Hook) -> (TestEnv, Vec<String>) {
    let mut env = TestEnv::new();
    env.set("TOKEN", TOKEN).set("DB_PASSWORD", PASSWORD);
    env.write("key.pem", KEY);
    let environment = "{TOKEN: \"{{ secrets.token }}\", KEY: \"{{ secrets.key }}\"}";
    let playbook = PLAYBOOK.replace("&env ", "").replace("*env", environment).replace("{{ env_percent }}", "{{ params.percent }}");
    let playbook = playbook.replace("params:\n", "params:\n  percent: {type: string, required: true}\n");
    env.write("secretive.yaml", playbook);
    let socket = server.socket_dir().display();
    // Known to the playbook as something else than a secret, and printed by it.
    let params = [format!("hook={}", hook.url()), format!("socket={socket}"), format!("percent={}", percent(TOKEN))];
    let params = params.into_iter().flat_map(|param| ["--param".to_owned(), param]).collect();
    (env, params)
}

#[test]
fn a_secret_is_nowhere() {
    let server = guarded();
    let ways: [&[&str]; 5] = [&[], &["--json"], &["-v", "-v"], &["--quiet"], &["--color", "always"]];
    for way in ways {
        let hook = Hook::start();
        let (mut env, params) = secretive(&server, &hook);
        if way.is_empty() {
            env.set("RUST_LOG", "trace");
        }
        let mut arguments: Vec<String> = ["run", "secretive.yaml", "--yes"].map(Into::into).into();
        arguments.extend(params.iter().cloned());
        arguments.extend(way.iter().map(|argument| (*argument).to_owned()));
        let over = AtomicBool::new(false);
        let (output, seen) = std::thread::scope(|scope| {
            let sampler = scope.spawn(|| {
                let mut seen = BTreeSet::new();
                while !over.load(Ordering::Relaxed) {
                    seen.extend(command_lines());
                }
                seen
            });
            let output = env.runbook(&arguments).run();
            over.store(true, Ordering::Relaxed);
            (output, sampler.join().unwrap())
        });
        // The parameter given here on purpose is no secret to the one who gives it.
        let own = percent(TOKEN);
        let seen: Vec<Vec<u8>> =
            seen.into_iter().filter(|line| !String::from_utf8_lossy(line).contains(&format!("percent={own}"))).collect();
        let output = output.exits(0);
        assert!(seen.iter().any(|line| String::from_utf8_lossy(line).contains("pg_dump")), "the sampler has seen the dump");
        assert_absent("standard output", output.raw_stdout.as_bytes());
        assert_absent("standard error", output.raw_stderr.as_bytes());
        seen.iter().for_each(|line| assert_absent("a command line", line));
        for file in files(&env.state("")) {
            assert_absent(&file.display().to_string(), &std::fs::read(&file).unwrap());
        }
        let run = History::only(&env).run;
        for command in [
            vec!["list"],
            vec!["show", &run],
            vec!["show", &run, "printed"],
            vec!["show", &run, "violated"],
            vec!["show", &run, "no_answer"],
        ] {
            let shown = env.runbook(&command).run().exits(0);
            assert_absent(&format!("{command:?}"), (shown.raw_stdout + &shown.raw_stderr).as_bytes());
        }
        let mut plan = vec!["plan".to_owned(), "secretive.yaml".into()];
        plan.extend(params);
        let plan = env.runbook(&plan).run().exits(0);
        assert_absent("the plan", (plan.raw_stdout + &plan.raw_stderr).as_bytes());

        // Where it belongs it did arrive, unchanged.
        let request = &hook.requests(&format!("/header?token={}", percent_of_url(TOKEN)))[0];
        assert!(request.contains(&format!("Bearer {PASSWORD}")) && request.contains(&serde_json::to_string(TOKEN).unwrap()), "{request}");
        assert_eq!(server.psql("app", "DELETE FROM kept RETURNING token"), TOKEN);
    }
}

/// As the `url` crate writes it in a query.
fn percent_of_url(text: &str) -> String {
    text.replace(' ', "%20").replace('"', "%22").replace('\'', "%27")
}

/// What a killed run leaves on the server shows there; what the resume says of it does not.
#[test]
fn a_secret_in_a_statement_of_an_earlier_run_is_not_shown() {
    let mut env = TestEnv::new();
    let database = env.database();
    database.psql("CREATE TABLE kept (token text)");
    env.set("TOKEN", TOKEN);
    env.write(
        "long.yaml",
        "version: 1\nname: long\nsecrets:\n  token: {env: TOKEN}\nconnections:\n  main: {url: \"{{ env.DATABASE_URL }}\"}\n\
         defaults: {lock_timeout: 10m}\nsteps:\n  - id: slow\n    sql:\n      exec: |\n        SET LOCAL client_connection_check_interval = 0;\n        \
         INSERT INTO kept SELECT {{ secrets.token }} FROM (SELECT pg_advisory_xact_lock(42)) AS waited;\n",
    );
    let mut other = database.session();
    other.run("SELECT pg_advisory_lock(42)");
    let running = env.runbook(["run", "long.yaml"]).spawn();
    let waiting = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name LIKE 'runbook/%' AND wait_event = 'advisory'";
    wait_until("the statement to wait", || database.psql(waiting) == "1");
    running.kill();
    let resumed = env.runbook(["resume"]).spawn();
    resumed.wait_for("still works on the server");
    other.run("SELECT pg_advisory_unlock(42)");
    let output = resumed.wait().exits(0);
    assert_absent("standard error", output.raw_stderr.as_bytes());
    assert_absent("standard output", output.raw_stdout.as_bytes());
    assert_eq!(database.psql("SELECT token FROM kept"), TOKEN);
}

/// A run whose secret is also a word or a number of the program itself works, and can be resumed.
#[test]
fn a_secret_that_is_also_a_common_word_spoils_nothing() {
    for secret in ["done", "step", "ship", "e", "1", "0", "runbook", "status", "true", "root", "postgres"] {
        let mut env = TestEnv::new();
        env.set("TOKEN", secret);
        env.write(
            "ship.yaml",
            "version: 1\nname: ship\nsecrets:\n  token: {env: TOKEN}\nsteps:\n  - id: ship\n    shell: {run: 'echo \"<$TOKEN>\"; echo 1 done', env: {TOKEN: \"{{ secrets.token }}\"}}\n  \
             - id: step\n    for_each: [1, done]\n    shell: {run: echo step}\n  - id: go\n    confirm: {message: Go on?, type_to_confirm: go!}\n  - id: last\n    shell: {run: echo last}\n",
        );
        env.runbook(["run", "ship.yaml"]).run().exits(5);
        let history = History::only(&env);
        env.runbook(["approve", &history.run, "go", "--text", "go!"]).run().exits(0);
        env.runbook(["resume"]).run().exits(0);
        let output = env.state(format!("runbook/output/{}/ship.1.log", history.run));
        assert!(!std::fs::read_to_string(&output).unwrap().contains(&format!("<{secret}>")), "{secret}");
        env.runbook(["show", &history.run]).run().exits(0);
    }
}

/// What is wrong with an address or a password is said without showing either.
#[test]
fn errors_before_the_run_show_no_secret() {
    let server = guarded();
    let socket = server.socket_dir().display().to_string();
    for (url, code) in [
        ("postgres://app:{{ secrets.token }}@127.0.0.1:1/app", 6),
        ("postgres://app:{{ secrets.token }}@127.0.0.1:port/app", 6),
        ("postgres:///app?host=SOCKET&user=app&password={{ secrets.wrong }}", 6),
        ("postgres:///{{ secrets.token }}?host=SOCKET&user=postgres", 6),
        ("postgres:///app?host=SOCKET&user={{ secrets.token }}", 6),
        ("postgres:///app?host=/nowhere/{{ secrets.token }}&user=app", 6),
        ("postgres:///app?host=SOCKET&user=postgres&{{ secrets.token }}=1", 6),
        ("sqlite:/nowhere/{{ secrets.token }}/app.db", 6),
        ("{{ secrets.token }}", 6),
    ] {
        let mut env = TestEnv::new();
        env.set("TOKEN", TOKEN).set("WRONG", "not-the-right-password");
        let url = url.replace("SOCKET", &socket);
        env.write(
            "connect.yaml",
            format!("version: 1\nname: connect\nsecrets:\n  token: {{env: TOKEN}}\n  wrong: {{env: WRONG}}\nconnections:\n  main: {{url: \"{url}\"}}\nsteps:\n  - id: one\n    sql: {{query: SELECT 1}}\n"),
        );
        let output = env.runbook(["run", "connect.yaml"]).run();
        assert_absent(&format!("the output for {url}"), format!("{}{}", output.raw_stdout, output.raw_stderr).as_bytes());
        assert!(!output.raw_stderr.contains("not-the-right-password"), "{output}");
        assert!(output.code() == Some(code) || output.code() == Some(65), "{url}: {output}");
    }
}
