//! A connection that breaks in COMMIT: what became of it is looked up, not guessed.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::crash::history::History;
use crate::environment::{Output, TestEnv};
use crate::postgres::Server;

/// Where the connection that writes the ledger breaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Break {
    /// The server never sees the COMMIT.
    BeforeCommit,
    /// The server has committed, and nobody hears of it.
    BeforeTheAnswer,
}

/// Stands between runbook and the server, and breaks one connection once.
struct Proxy {
    port: u16,
    broke: Arc<AtomicBool>,
}

impl Proxy {
    fn new(server_port: u16, at: Break) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let broke = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&broke);
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let server = TcpStream::connect(("127.0.0.1", server_port)).unwrap();
                let flag = Arc::clone(&flag);
                std::thread::spawn(move || forward(&client, &server, at, &flag));
            }
        });
        Self { port, broke }
    }
}

fn forward(client: &TcpStream, server: &TcpStream, at: Break, broke: &AtomicBool) {
    let silent = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut buffer = [0; 65536];
            let (mut from, mut to) = (server, client);
            while let Ok(count @ 1..) = from.read(&mut buffer) {
                if silent.load(Ordering::SeqCst) {
                    // The answer to COMMIT: it was carried out, and this is all anybody learns of it.
                    break;
                }
                if to.write_all(&buffer[..count]).is_err() {
                    break;
                }
            }
            let _ = client.shutdown(Shutdown::Both);
            let _ = server.shutdown(Shutdown::Both);
        });
        let mut buffer = [0; 65536];
        let mut wrote_ledger = false;
        let (mut from, mut to) = (client, server);
        while let Ok(count @ 1..) = from.read(&mut buffer) {
            let text = String::from_utf8_lossy(&buffer[..count]).to_uppercase();
            wrote_ledger |= text.contains("INSERT INTO RUNBOOK.LEDGER");
            if wrote_ledger && text.contains("COMMIT") && !broke.swap(true, Ordering::SeqCst) {
                if at == Break::BeforeCommit {
                    break;
                }
                silent.store(true, Ordering::SeqCst);
            }
            if to.write_all(&buffer[..count]).is_err() {
                break;
            }
        }
        let _ = server.shutdown(Shutdown::Both);
        let _ = client.shutdown(Shutdown::Both);
    });
}

/// Runs one effect through the proxy; gives how often it took place.
fn broken(at: Break, retry: &str) -> (TestEnv, Output, String) {
    let server = Server::builder().tcp().start();
    let database = server.createdb("app");
    database.psql("CREATE TABLE marks (step text)");
    let proxy = Proxy::new(server.port(), at);
    let mut env = TestEnv::new();
    env.set("DATABASE_URL", &format!("postgres://postgres@127.0.0.1:{}/app?sslmode=disable", proxy.port));
    env.write(
        "mark.yaml",
        format!(
            "version: 1\nname: mark\nconnections:\n  main: {{url: \"{{{{ env.DATABASE_URL }}}}\"}}\nsteps:\n  - id: mark\n{retry}    sql: {{exec: INSERT INTO marks VALUES ('mark'), expect: {{rows_affected: 1}}}}\n    \
             outputs: {{rows: rows_affected}}\n  - id: read\n    assert: {{that: steps.mark.outputs.rows == 1}}\n"
        ),
    );
    let output = env.runbook(["run", "mark.yaml"]).run();
    assert!(proxy.broke.load(Ordering::SeqCst), "the connection did not break in COMMIT:\n{output}");
    if output.code() != Some(0) {
        env.runbook(["resume"]).run().exits(0);
    }
    let count = database.psql("SELECT count(*) FROM marks");
    (env, output, count)
}

#[test]
fn a_commit_that_took_place_counts() {
    let (env, output, count) = broken(Break::BeforeTheAnswer, "");
    assert_eq!((output.code(), count.as_str()), (Some(0), "1"), "{output}");
    assert!(History::only(&env).done().contains(&"mark".to_owned()));
}

#[test]
fn a_commit_that_did_not_take_place_is_a_failure_that_a_resume_mends() {
    let (_env, output, count) = broken(Break::BeforeCommit, "");
    assert_eq!((output.code(), count.as_str()), (Some(3), "1"), "{output}");
    assert!(output.stdout.contains("rolled back"), "{output}");
}

#[test]
fn a_commit_that_did_not_take_place_is_retried_where_that_is_allowed() {
    let (_env, output, count) = broken(Break::BeforeCommit, "    retry: {max: 2, delay: 10ms}\n");
    assert_eq!((output.code(), count.as_str()), (Some(0), "1"), "{output}");
}
