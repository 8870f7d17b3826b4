//! Imports that are killed, cut off or lose their server at any moment: resumed until they
//! are done, every row is there once.

use std::time::{Duration, Instant};

use fastrand::Rng;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{HEADER, PLAYBOOK, TABLES, orders};
use crate::crash::history::sqlite_file;
use crate::environment::{Output, TestEnv};
use crate::postgres::Server;

/// How rows get into the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Directly,
    Staged,
    InBatches,
}

/// What breaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Trouble {
    Kill,
    Connections,
    Server,
}

/// A few times in an ordinary run, as often as was promised with `RUNBOOK_TEST_CRASHES=all`.
fn times(all: usize) -> usize {
    match std::env::var("RUNBOOK_TEST_CRASHES").as_deref() {
        Ok("all") => all,
        Ok(count) => count.parse().expect("RUNBOOK_TEST_CRASHES is a number or `all`"),
        Err(_) => (all / 20).max(2),
    }
}

fn rows() -> usize {
    if std::env::var("RUNBOOK_TEST_CRASHES").as_deref() == Ok("all") { 50_000 } else { 20_000 }
}

/// Without the unique constraint: nothing but the ledger and the cursor keeps a row from being
/// there twice.
fn tables() -> String {
    TABLES.replace("order_no varchar(12) NOT NULL UNIQUE", "order_no varchar(12) NOT NULL")
}

/// Staged rows are attributed by their keys, which must be as complete as the rows.
fn playbook(way: Way) -> String {
    let noted = |words: &str| PLAYBOOK.replace("      run_column: import_run\n", words);
    match way {
        Way::Directly => super::direct::plain(),
        Way::Staged => noted(""),
        Way::InBatches => noted(&format!("      batch_size: {}\n", rows() / 20)),
    }
}

fn site(way: Way, file: &str) -> TestEnv {
    let env = TestEnv::new();
    env.write("load.yaml", playbook(way));
    env.write("orders.csv", file);
    env
}

/// Breaks runs until it has happened often enough, and resumes each until it is done.
fn breaks(way: Way, trouble: Trouble, times: usize) {
    let seed = std::env::var("RUNBOOK_TEST_SEED").map_or_else(|_| Rng::new().u64(..), |seed| seed.parse().unwrap());
    let mut random = Rng::with_seed(seed);
    let server = Server::builder().start();
    let file = format!("{HEADER}{}", orders(0, rows()));
    let (mut left, mut round, mut whole) = (times, 0, Duration::ZERO);
    // The first round is left alone, and tells how long one takes.
    while left > 0 {
        let database = server.createdb(&format!("round_{round}"));
        database.psql(&tables());
        let mut env = site(way, &file);
        env.use_database(&database);
        let begun = Instant::now();
        let ended = until_done(&env, times, |running| {
            if round == 0 || left == 0 {
                return;
            }
            left -= 1;
            std::thread::sleep(whole.mul_f64(random.f64()));
            match trouble {
                // It may have ended by itself just now.
                Trouble::Kill => _ = kill(running, Signal::SIGKILL),
                Trouble::Connections => _ = server.psql(
                    "postgres",
                    &format!("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = 'round_{round}' AND application_name LIKE '%load'"),
                ),
                Trouble::Server => server.immediate_restart(),
            }
        });
        whole = whole.max(if round == 0 { begun.elapsed() } else { Duration::ZERO });
        let rows = rows();
        let attributed = match way {
            Way::Directly => "count(DISTINCT import_run) * count(import_run), 0",
            _ => "(SELECT count(DISTINCT key) FROM runbook.imported), (SELECT count(*) FROM runbook.imported) - count(*)",
        };
        let seen = database.psql(&format!("SELECT count(*), count(DISTINCT order_no), {attributed} FROM orders"));
        assert_eq!(seen, format!("{rows}|{rows}|{rows}|0"), "RUNBOOK_TEST_SEED={seed} (round {round})\n{ended}");
        if way == Way::InBatches {
            assert_eq!(database.psql("SELECT count(*) FROM runbook.importing"), "0", "the cursor is gone");
        }
        server.psql("postgres", &format!("DROP DATABASE round_{round} WITH (FORCE)"));
        round += 1;
    }
    println!("{trouble:?}, {way:?}: {times} times in {} runs of {whole:?}, RUNBOOK_TEST_SEED={seed}", round - 1);
}

/// Runs and resumes, each time with trouble, until there is nothing more to do.
fn until_done(env: &TestEnv, times: usize, mut trouble: impl FnMut(Pid)) -> Output {
    let mut arguments = vec!["run", "load.yaml"];
    for _ in 0..40 + 2 * times {
        let running = env.runbook(arguments.clone()).spawn();
        trouble(Pid::from_raw(running.pid().cast_signed()));
        let output = running.wait();
        // Killed between its last event and its exit, a run has nothing left to resume.
        if matches!(output.code(), Some(0 | 64)) {
            return output;
        }
        if env.runbook(["list", "--json"]).run().stdout.trim().len() > 2 {
            arguments = vec!["resume"];
        }
    }
    panic!("it comes to no end");
}

#[test]
fn killed_imports_load_each_row_once() {
    breaks(Way::Staged, Trouble::Kill, times(200));
}

#[test]
fn killed_copies_load_each_row_once() {
    breaks(Way::Directly, Trouble::Kill, times(200));
}

#[test]
fn killed_batches_load_each_row_once() {
    breaks(Way::InBatches, Trouble::Kill, times(200));
}

#[test]
fn lost_connections_load_each_row_once() {
    breaks(Way::Staged, Trouble::Connections, times(50));
}

#[test]
fn lost_connections_of_copies_load_each_row_once() {
    breaks(Way::Directly, Trouble::Connections, times(50));
}

#[test]
fn lost_connections_in_batches_load_each_row_once() {
    breaks(Way::InBatches, Trouble::Connections, times(50));
}

#[test]
fn restarted_servers_load_each_row_once() {
    breaks(Way::Staged, Trouble::Server, times(10));
}

#[test]
fn restarted_servers_of_copies_load_each_row_once() {
    breaks(Way::Directly, Trouble::Server, times(10));
}

#[test]
fn restarted_servers_in_batches_load_each_row_once() {
    breaks(Way::InBatches, Trouble::Server, times(10));
}

#[test]
fn killed_batches_into_sqlite_load_each_row_once() {
    let file = format!("{HEADER}{}", orders(0, rows()));
    let (mut random, mut left) = (Rng::new(), times(60));
    let mut whole = None;
    while left > 0 {
        let mut env = site(Way::InBatches, &file);
        env.set("DATABASE_URL", "sqlite:shop.db");
        let playbook = env.read("load.yaml").replace("      batch_size", "      run_column: import_run\n      batch_size");
        env.write("load.yaml", playbook);
        sqlite_file(&env.path("shop.db"), "CREATE TABLE customers (id INTEGER PRIMARY KEY)");
        sqlite_file(&env.path("shop.db"), "INSERT INTO customers VALUES (1), (2), (3), (4), (5), (6), (7), (8), (9), (10)");
        let table = "CREATE TABLE orders (order_no TEXT, customer_id INTEGER, amount NUMERIC, state TEXT, placed_on TEXT, note TEXT, import_run TEXT)";
        sqlite_file(&env.path("shop.db"), table);
        let begun = Instant::now();
        until_done(&env, left, |running| {
            let Some(whole) = whole.filter(|_| left > 0) else { return };
            left -= 1;
            std::thread::sleep(Duration::mul_f64(whole, random.f64()));
            let _ = kill(running, Signal::SIGKILL);
        });
        whole = whole.or(Some(begun.elapsed()));
        let seen =
            sqlite_file(&env.path("shop.db"), "SELECT count(*) || ' ' || count(DISTINCT order_no) || ' ' || count(import_run) FROM orders");
        assert_eq!(seen, format!("{0} {0} {0}", rows()));
    }
}
