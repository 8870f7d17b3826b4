//! Servers that can't be reached over HTTP: what `http` and `notify` say of them.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _};
use std::net::TcpListener;
use std::process::{Child, ChildStdout, Command, Stdio};

use crate::environment::{Output, TestEnv};
use crate::stock_audit::stable;

/// What is said of a request to a server.
fn asked(env: &TestEnv, server: &str) -> String {
    env.write("ask.yaml", format!("version: 1\nname: ask\nsteps:\n  - id: page\n    http: {{url: '{server}/health'}}\n"));
    failure(&env.runbook(["run", "ask.yaml"]).run().exits(3))
}

/// The block about the failure, without the commands that come next.
fn failure(output: &Output) -> String {
    let block = output.stdout.lines().skip_while(|line| !line.starts_with("FAILED")).skip(1);
    let lines: Vec<&str> = block.take_while(|line| !line.starts_with("  next ")).collect();
    stable(&lines.join("\n"))
}

fn nobody_listens() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().to_string()
}

#[test]
fn nobody_listens_there() {
    insta::assert_snapshot!(asked(&TestEnv::new(), &format!("http://{}", nobody_listens())), @"
    no connection to 127.0.0.1:[PORT]: connection refused
    step      page
    where     ask.yaml:[PLACE]
              [LINE] |     http: {url: 'http://127.0.0.1:[PORT]/health'}
    state     this step changed nothing, or what it changed was rolled back
    hint      nothing accepts connections there: see whether the service runs, and check the port
    ");
}

#[test]
fn the_name_is_unknown() {
    let said = asked(&TestEnv::new(), "https://runbook.invalid");
    // Machines without a network have no name servers to ask.
    if said.contains("the name servers do not answer") {
        assert!(said.contains("no connection to runbook.invalid:443: "), "{said}");
        return;
    }
    insta::assert_snapshot!(said, @"
    no connection to runbook.invalid:443: the host's name is not known
    step      page
    where     ask.yaml:[PLACE]
              [LINE] |     http: {url: 'https://runbook.invalid/health'}
    state     this step changed nothing, or what it changed was rolled back
    hint      check the spelling, and that this machine's name servers know the name
    ");
}

#[test]
fn nobody_trusts_the_certificate_or_it_is_for_another_name() {
    let (server, mut env) = (Secured::start(), TestEnv::new());
    env.set("SSL_CERT_FILE", &server.file("stranger.crt"));
    insta::assert_snapshot!(asked(&env, &format!("https://{}", server.address)), @"
    no secure connection to 127.0.0.1:[PORT]: its certificate is signed by nobody this machine trusts
    step      page
    where     ask.yaml:[PLACE]
              [LINE] |     http: {url: 'https://127.0.0.1:[PORT]/health'}
    state     this step changed nothing, or what it changed was rolled back
    hint      let this machine trust its authority (update-ca-certificates), or name a file with it in SSL_CERT_FILE
    ");
    let mut env = TestEnv::new();
    env.set("SSL_CERT_FILE", &server.file("server.crt"));
    insta::assert_snapshot!(asked(&env, &format!("https://{}", server.address)), @"
    no secure connection to 127.0.0.1:[PORT]: its certificate is for another name
    step      page
    where     ask.yaml:[PLACE]
              [LINE] |     http: {url: 'https://127.0.0.1:[PORT]/health'}
    state     this step changed nothing, or what it changed was rolled back
    hint      use the name the certificate was issued for, or have one issued for this name
    ");
}

#[test]
fn a_channel_is_told_of_in_the_same_words() {
    let mut env = TestEnv::new();
    env.set("HOOK", &format!("http://{}/hook/s3cret-key", nobody_listens()));
    env.write(
        "tell.yaml",
        "version: 1
name: tell
secrets: {hook: {env: HOOK}}
channels: {chat: {webhook: '{{ secrets.hook }}'}, pager: {webhook: '{{ secrets.hook }}'}}
steps:
  - {id: tell, notify: {to: [console, chat, pager], message: Scanning stops.}}
",
    );
    let output = env.runbook(["run", "tell.yaml"]).run().exits(3);
    insta::assert_snapshot!(failure(&output), @"
    the message did not reach chat, pager
    step      tell
    where     tell.yaml:[PLACE]
              6 |   - {id: tell, notify: {to: [console, chat, pager], message: Scanning stops.}}
    reached   console
    chat      no connection to 127.0.0.1:[PORT]: connection refused
    pager     no connection to 127.0.0.1:[PORT]: connection refused
    state     part of this step's effect may be in place
    hint      nothing accepts connections there: see whether the service runs, and check the port
    ");
    assert!(!format!("{output}").contains("s3cret"), "{output}");
}

/// A server with a certificate it has signed itself, for another name than its address.
struct Secured {
    directory: tempfile::TempDir,
    server: Child,
    address: String,
    /// It ends when nobody reads what it says.
    _said: BufReader<ChildStdout>,
}

impl Secured {
    fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        for name in ["server", "stranger"] {
            let [key, certificate] = ["key", "crt"].map(|suffix| directory.path().join(format!("{name}.{suffix}")));
            let names =
                ["-subj", "/CN=app.example.com", "-addext", "subjectAltName=DNS:app.example.com", "-addext", "basicConstraints=CA:FALSE"];
            let mut command = Command::new("openssl");
            command.args(["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]).args(names);
            let ended = command.arg("-keyout").arg(key).arg("-out").arg(certificate).output().unwrap();
            assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
        }
        let mut command = Command::new("openssl");
        command.args(["s_server", "-accept", "127.0.0.1:0", "-cert", "server.crt", "-key", "server.key", "-www"]);
        let pipes = command.current_dir(directory.path()).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut server = pipes.spawn().unwrap();
        let mut said = BufReader::new(server.stdout.take().unwrap());
        let address = said.by_ref().lines().find_map(|line| line.unwrap().strip_prefix("ACCEPT ").map(str::to_owned));
        Self { directory, server, address: address.expect("it says where it listens"), _said: said }
    }

    fn file(&self, name: &str) -> String {
        fs::canonicalize(self.directory.path().join(name)).unwrap().display().to_string()
    }
}

impl Drop for Secured {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}
