//! The schema in an editor: the real yaml-language-server, spoken to as an editor does.

use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};

use serde_json::{Value, json};

use crate::environment::PATIENCE;

/// An editor with one server.
struct Editor {
    server: Child,
    to_server: ChildStdin,
    from_server: Receiver<Value>,
    requests: u64,
}

impl Editor {
    fn start() -> Self {
        let program = project("target/tools/node_modules/yaml-language-server/bin/yaml-language-server");
        assert!(program.exists(), "yaml-language-server is missing: run .ci/setup, which needs npm");
        let mut server = Command::new("node")
            .arg(program)
            .arg("--stdio")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("node starts");
        let to_server = server.stdin.take().expect("piped");
        let mut output = BufReader::new(server.stdout.take().expect("piped"));
        let (sender, from_server) = channel();
        std::thread::spawn(move || {
            while let Some(message) = read_message(&mut output) {
                if sender.send(message).is_err() {
                    break;
                }
            }
        });
        let mut editor = Self { server, to_server, from_server, requests: 0 };
        let markdown = json!(["markdown"]);
        editor.request(
            "initialize",
            json!({
                "processId": std::process::id(),
                "rootUri": null,
                "capabilities": { "textDocument": {
                    "hover": { "contentFormat": markdown },
                    "completion": { "completionItem": { "documentationFormat": markdown, "snippetSupport": true } }
                } }
            }),
        );
        editor.notify("initialized", json!({}));
        let settings = json!({ "yaml": { "validate": true, "hover": true, "completion": true, "schemaStore": { "enable": false } } });
        editor.notify("workspace/didChangeConfiguration", json!({ "settings": settings }));
        editor
    }

    fn send(&mut self, message: &Value) {
        let text = message.to_string();
        write!(self.to_server, "Content-Length: {}\r\n\r\n{text}", text.len()).expect("the server listens");
        self.to_server.flush().expect("the server listens");
    }

    fn notify(&mut self, method: &str, params: Value) {
        self.send(&json!({ "jsonrpc": "2.0", "method": method, "params": params }));
    }

    fn request(&mut self, method: &str, params: Value) -> Value {
        self.requests += 1;
        let id = self.requests;
        self.send(&json!({ "jsonrpc": "2.0", "id": id, "method": method, "params": params }));
        self.wait_for(|message| message["id"] == id && message.get("method").is_none())["result"].clone()
    }

    fn wait_for(&mut self, wanted: impl Fn(&Value) -> bool) -> Value {
        loop {
            let message = self.from_server.recv_timeout(PATIENCE).expect("the server answers");
            if wanted(&message) {
                return message;
            }
            // What the server asks of an editor is not needed; it only wants an answer.
            if message.get("method").is_some() && message.get("id").is_some() {
                self.send(&json!({ "jsonrpc": "2.0", "id": message["id"], "result": null }));
            }
        }
    }

    /// Opens a text that names the schema as the playbooks do; gives its problems, one a line.
    fn open(&mut self, name: &str, text: &str) -> Document {
        let schema = project("schemas/playbook.schema.json");
        let text = format!("# yaml-language-server: $schema={}\n{text}", schema.display());
        let uri = format!("file:///playbooks/{name}");
        self.notify("textDocument/didOpen", json!({ "textDocument": { "uri": uri, "languageId": "yaml", "version": 1, "text": text } }));
        let published = self.wait_for(|message| message["method"] == "textDocument/publishDiagnostics" && message["params"]["uri"] == uri);
        let lines: Vec<&str> = text.lines().collect();
        let mut problems = String::new();
        for problem in published["params"]["diagnostics"].as_array().expect("a list") {
            let line = problem["range"]["start"]["line"].as_u64().expect("a number") as usize;
            writeln!(
                problems,
                "{} → {}",
                lines.get(line).map_or("(end)", |line| line.trim()),
                problem["message"].as_str().expect("text").replace('\n', " ")
            )
            .expect("a string");
        }
        Document { uri, text, problems }
    }

    /// What is offered at the `¦` that was in the text.
    fn completion(&mut self, name: &str, text: &str) -> Vec<(String, String)> {
        let (document, position) = self.open_at(name, text);
        let items = self.request("textDocument/completion", json!({ "textDocument": { "uri": document.uri }, "position": position }));
        let items = items["items"].as_array().expect("a list").clone();
        items
            .iter()
            .map(|item| {
                let told = item["documentation"]["value"].as_str().or(item["documentation"].as_str()).unwrap_or_default();
                (item["label"].as_str().expect("text").to_owned(), told.to_owned())
            })
            .collect()
    }

    /// What is shown over the `¦` that was in the text.
    fn hover(&mut self, name: &str, text: &str) -> String {
        let (document, position) = self.open_at(name, text);
        let hover = self.request("textDocument/hover", json!({ "textDocument": { "uri": document.uri }, "position": position }));
        let text = hover["contents"]["value"].as_str().unwrap_or_default();
        // It ends with the place of the schema, which differs from machine to machine.
        text.split("\n\nSource:").next().unwrap_or_default().to_owned()
    }

    fn open_at(&mut self, name: &str, text: &str) -> (Document, Value) {
        let document = self.open(name, &text.replace('¦', ""));
        let before = &text[..text.find('¦').expect("a cursor")];
        let line = before.matches('\n').count() + 1;
        let character = before.rsplit('\n').next().unwrap_or_default().chars().count();
        (document, json!({ "line": line, "character": character }))
    }
}

impl Drop for Editor {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

struct Document {
    uri: String,
    #[allow(dead_code, reason = "seen when a test fails")]
    text: String,
    problems: String,
}

fn read_message(output: &mut impl BufRead) -> Option<Value> {
    let mut length = 0;
    loop {
        let mut header = String::new();
        if output.read_line(&mut header).ok()? == 0 {
            return None;
        }
        match header.trim().split_once(':') {
            Some((name, value)) if name.eq_ignore_ascii_case("content-length") => length = value.trim().parse().ok()?,
            Some(_) => {}
            None => break,
        }
    }
    let mut body = vec![0; length];
    output.read_exact(&mut body).ok()?;
    serde_json::from_slice(&body).ok()
}

fn project(relative: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(relative)
}

fn read(relative: &str) -> String {
    std::fs::read_to_string(project(relative)).expect("a file of the project")
}

#[test]
fn good_playbooks_have_no_problems() {
    let mut editor = Editor::start();
    for name in ["playbooks/pre-deploy.yaml", "playbooks/post-deploy-smoke.yaml", "examples/quickstart.yaml"] {
        let text = read(name);
        assert!(text.starts_with("# yaml-language-server: $schema="), "{name} names its schema for editors");
        assert_eq!(editor.open(&name.replace('/', "-"), &text).problems, "", "{name}");
    }
}

#[test]
fn bad_playbooks_are_explained() {
    let mut editor = Editor::start();
    let mut problems = |name: &str| {
        let text = read(&format!("tests/invalid/{name}.yaml"));
        editor.open(&format!("{name}.yaml"), &text).problems
    };
    insta::assert_snapshot!(problems("shape-unknown-keys"), @r#"
    sql: {qurey: SELECT 1, retry: {max: 1}} → Property retry is not allowed.
    sql: {qurey: SELECT 1, retry: {max: 1}} → Property qurey is not allowed.
    sql: {qurey: SELECT 1, retry: {max: 1}} → Missing property "query".
    nmae: x → Property nmae is not allowed.
    sql: {} → Missing property "query".
    expect: {value: 1} → Property expect is not allowed.
    query: SELECT 1 → Property query is not allowed.
    parameters: {} → Property parameters is not allowed.
    descripton: x → Property descripton is not allowed.
    "#);
    insta::assert_snapshot!(problems("shape-missing-keys"), @r#"
    description: Nothing else → Missing property "version".
    description: Nothing else → Missing property "name".
    description: Nothing else → Missing property "steps".
    "#);
    insta::assert_snapshot!(problems("shape-missing-id-and-action"), @r#"
    - name: no id → Missing property "id".
    - id: no_action → a step has exactly one action
    notify: {to: [console]} → Missing property "message".
    "#);
    insta::assert_snapshot!(problems("shape-two-actions"), @r#"
    - id: a → a step has exactly one action
    shell: {run: "true"} → a step has exactly one action
    http: {url: "http://localhost/"} → a step has exactly one action
    "#);
    insta::assert_snapshot!(problems("shape-wrong-types"), @r#"
    params: [a] → Incorrect type. Expected "object".
    max_parallel: four → Incorrect type. Expected "integer".
    - id: 7 → Incorrect type. Expected "string".
    name: 1.10 → Incorrect type. Expected "string".
    needs: a → Incorrect type. Expected "array".
    idempotent: yes → Incorrect type. Expected "boolean".
    tags: {a: b} → Incorrect type. Expected "array".
    assert: true → Incorrect type. Expected "Assert".
    - just text → Incorrect type. Expected "Step".
    - just text → a step has exactly one action
    "#);
    insta::assert_snapshot!(problems("shape-nothing-written"), @r#"
    description: → Incorrect type. Expected "string".
    timeout: → Incorrect type. Expected one of string, number.
    assert: → Incorrect type. Expected "Assert".
    "#);
    insta::assert_snapshot!(problems("shape-wrong-values"), @r#"
    version: 2 → Value is above the maximum of 1.
    name: Sample Playbook → String does not match the pattern of "^[a-z0-9][a-z0-9-]*$".
    size: {type: int} → Value is not accepted. Valid values: "string", "integer", "number", "boolean", "duration", "enum", "list", "path".
    max_parallel: 0 → Value is below the minimum of 1.
    - id: First Step → String does not match the pattern of "^[a-z][a-z0-9_-]*$".
    retry: {max: -1, on: [transeint]} → Value is below the minimum of 0.
    severity: warn → Value is not accepted. Valid values: "error", "warning".
    shell: {argv: []} → Array has too few items. Expected 1 or more.
    "#);
    insta::assert_snapshot!(problems("shape-no-steps"), @"steps: [] → Array has too few items. Expected 1 or more.");
    insta::assert_snapshot!(problems("shape-undo"), @r#"
    undo: irreversable → Value must be "irreversible".
    undo: {shel: {run: "true"}} → Value must be "irreversible".
    undo: {irreversible: [no, text]} → Incorrect type. Expected "string".
    "#);
    insta::assert_snapshot!(problems("shape-secret-source"), @r#"
    c: PASSWORD → Incorrect type. Expected "SecretSource".
    c: PASSWORD → exactly one of env, file belongs here
    b: {vault: x} → Property vault is not allowed.
    b: {vault: x} → exactly one of env, file belongs here
    a: {env: A, file: /a} → exactly one of env, file belongs here
    "#);
    insta::assert_snapshot!(problems("yaml-duplicate-keys"), @r"
    name: other → Map keys must be unique
    id: b → Map keys must be unique
    ");
    insta::assert_snapshot!(problems("yaml-unclosed-quote"), @r#"
    (end) → Missing closing "quote
    version: 1 → Missing property "steps".
    "#);
}

#[test]
fn keys_and_values_are_completed() {
    let mut editor = Editor::start();
    let mut offered = |name: &str, text: &str| {
        let labels: Vec<String> = editor.completion(name, text).into_iter().map(|(label, _)| label).collect();
        labels.join(", ")
    };
    let head = "version: 1\nname: x\n";
    insta::assert_snapshot!(offered("top.yaml", "version: 1\n¦\n"), @"name, object, description, environment, params, secrets, connections, channels, lock, defaults, max_parallel, max_output, steps, on_failure, on_success, always");
    insta::assert_snapshot!(offered("step.yaml", &format!("{head}steps:\n  - id: a\n    ¦\n")), @"name, description, needs, when, for_each, as, max_parallel, timeout, retry, severity, continue_on_error, confirm, done_when, idempotent, undo, outputs, tags, sql, sql_batch, snapshot, import, pg_dump, sqlite_backup, verify_backup, pg_restore, prune_backups, env_check, env_backup, shell, http, manual, assert, notify, playbook");
    insta::assert_snapshot!(offered("sql.yaml", &format!("{head}steps:\n  - id: a\n    sql:\n      ¦\n")), @"query, exec, file, mode, connection, transaction, isolation, expect, sample, lock_timeout, statement_timeout, ledger");
    insta::assert_snapshot!(offered("value.yaml", &format!("{head}steps:\n  - id: a\n    sql:\n      transaction: ¦\n")), @"single, none");
    insta::assert_snapshot!(offered("check.yaml", &format!("{head}steps:\n  - id: a\n    shell: {{run: x}}\n    done_when:\n      ¦\n")), @"sql, http, shell, index_valid");
}

#[test]
fn keys_are_explained_where_they_stand() {
    let mut editor = Editor::start();
    let head = "version: 1\nname: x\n";
    insta::assert_snapshot!(editor.hover("top.yaml", "version: 1\nname: x\nenviron¦ment: production\nsteps: []\n"), @r"
    The environment this run is for, e.g. `production`. Compared with the stamp in the
    target database (`runbook stamp`); a mismatch refuses the run.
    ");
    insta::assert_snapshot!(editor.hover("step.yaml", &format!("{head}steps:\n  - id: a\n    done_¦when: {{index_valid: i}}\n    shell: {{run: x}}\n")), @"A check that tells whether the effect is in place.");
    insta::assert_snapshot!(editor.hover("action.yaml", &format!("{head}steps:\n  - id: a\n    s¦ql: {{query: SELECT 1}}\n")), @r"
    Runs SQL: `query` reads in a READ ONLY transaction, `exec` may write, `file` is a file of statements.

    ```yaml
    sql:
      query: SELECT count(*) FROM racks WHERE barcode IS NULL
      expect:
        value: 0

    sql:
      exec: UPDATE audit_sessions SET status = 'completed' WHERE id = {{ params.session }}
      expect:
        rows_affected: 1

    sql:
      file: sql/idx_scans.sql
      transaction: none
    ```
    ");
    insta::assert_snapshot!(editor.hover("value.yaml", &format!("{head}steps:\n  - id: a\n    sql: {{query: SELECT 1, isolation: serial¦izable}}\n")), @r"
    The transaction's isolation level. Default: the server's.

    Allowed Values:

    * `serializable`: As if run one after the other.
    * `read_committed`: Each statement sees what was committed before it.
    * `repeatable_read`: All statements see the same snapshot.
    ");
}

#[test]
fn completion_says_what_a_key_is_for() {
    let mut editor = Editor::start();
    let offered = editor.completion("documented.yaml", "version: 1\nname: x\nsteps:\n  - id: a\n    ¦\n");
    let undocumented: Vec<&str> = offered.iter().filter(|(_, told)| told.is_empty()).map(|(label, _)| label.as_str()).collect();
    assert_eq!(undocumented, [""; 0]);
}
