//! Restores that are killed at any moment: the target is either old or new, and resumed until
//! they are done, new.

use std::time::{Duration, Instant};

use fastrand::Rng;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{Fleet, playbook};
use crate::postgres::Server;

/// A few times in an ordinary run, 50 times with `RUNBOOK_TEST_CRASHES=all`.
fn times() -> usize {
    match std::env::var("RUNBOOK_TEST_CRASHES").as_deref() {
        Ok("all") => 50,
        Ok(count) => count.parse().expect("RUNBOOK_TEST_CRASHES is a number or `all`"),
        Err(_) => 3,
    }
}

/// Breaks restores over damaged data until it has happened often enough.
fn breaks(fields: &str, mut trouble: impl FnMut(&Fleet, Pid)) {
    let seed = std::env::var("RUNBOOK_TEST_SEED").map_or_else(|_| Rng::new().u64(..), |seed| seed.parse().unwrap());
    let mut random = Rng::with_seed(seed);
    let fleet = Fleet::new(&["--loads", "20000"]);
    let good = fleet.state();
    fleet.backup("a.dump", "");
    fleet.env.write("restore.yaml", playbook(&format!("pg_restore: {{file: a.dump, replace: true{fields}}}")));
    let (mut left, mut whole) = (times(), None::<Duration>);
    let mut both = [0, 0];
    while left > 0 {
        fleet.generate(&["--plant", "wrong-pay"]);
        let bad = fleet.state();
        let begun = Instant::now();
        let mut arguments = vec!["run", "restore.yaml"];
        let runs = || fleet.env.runbook(["list", "--json"]).run().stdout.len();
        let earlier = runs();
        // The first round is left alone, and tells how long one takes.
        while let Some(whole) = whole.filter(|_| left > 0) {
            left -= 1;
            let running = fleet.env.runbook(arguments.clone()).spawn();
            std::thread::sleep(whole.mul_f64(random.f64()));
            trouble(&fleet, Pid::from_raw(running.pid().cast_signed()));
            let ended = running.wait();
            // The killed client's backend may still be at work; whoever reads waits for its locks.
            let now = fleet.state();
            both[usize::from(now == good)] += 1;
            assert!(now == bad || now == good, "RUNBOOK_TEST_SEED={seed}: neither old nor new\n{ended}\n{now}");
            // Killed before it was noted there is nothing to resume.
            if runs() > earlier {
                arguments = vec!["resume"];
            }
            if matches!(ended.code(), Some(0 | 64)) {
                break;
            }
        }
        let ended = fleet.env.runbook(arguments.clone()).run();
        let ended = if matches!(ended.code(), Some(0 | 64)) { ended } else { fleet.env.runbook(["resume"]).run().exits(0) };
        assert_eq!(fleet.state(), good, "RUNBOOK_TEST_SEED={seed}\n{ended}");
        assert_eq!(fleet.database.psql("SELECT count(*) = count(DISTINCT run) FROM runbook.ledger WHERE step = 'it'"), "t");
        whole.get_or_insert(begun.elapsed());
    }
    println!("{} times, old {} and new {} after it, a round takes {whole:?}, RUNBOOK_TEST_SEED={seed}", times(), both[0], both[1]);
}

#[test]
fn a_killed_restore_leaves_the_target_old_or_new() {
    breaks("", |_, pid| _ = kill(pid, Signal::SIGKILL));
}

#[test]
fn killed_rows_leave_the_target_old_or_new() {
    breaks(", tables: [driver_period_calculations, loads, fuel_expenses]", |_, pid| _ = kill(pid, Signal::SIGKILL));
}

#[test]
fn a_lost_connection_leaves_the_target_old_or_new() {
    breaks("", |fleet, _| {
        fleet.database.psql(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND application_name LIKE 'runbook/%/it'",
        );
    });
}

#[test]
fn an_interrupt_ends_a_restore_at_once_and_changes_nothing() {
    let fleet = Fleet::new(&["--loads", "20000"]);
    fleet.backup("a.dump", "");
    fleet.generate(&["--plant", "wrong-pay"]);
    let bad = fleet.state();
    // It waits for this lock, which only an interrupt ends.
    let holder = fleet
        .env
        .command(
            "psql",
            [
                "-X",
                "-q",
                "-d",
                fleet.database.url(),
                "-c",
                "BEGIN",
                "-c",
                "LOCK TABLE loads IN ROW EXCLUSIVE MODE",
                "-c",
                "SELECT 'held'",
                "-c",
                "SELECT pg_sleep(60)",
            ],
        )
        .spawn();
    holder.wait_for("held");
    fleet.env.write("restore.yaml", playbook("pg_restore: {file: a.dump, replace: true, lock_timeout: 1h}"));
    let running = fleet.env.runbook(["run", "restore.yaml"]).spawn();
    let waits = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'";
    while fleet.database.psql(waits) == "0" {
        assert!(!running.has_ended(), "{}", running.wait());
        std::thread::yield_now();
    }
    running.signal(Signal::SIGINT);
    running.wait_for("Once more cancels");
    running.signal(Signal::SIGINT);
    assert_eq!(running.wait().code(), Some(130));
    drop(holder);
    assert_eq!(fleet.state(), bad);
}

/// The server goes away in the middle; it comes back with the old data.
#[test]
fn a_restarted_server_has_the_old_data() {
    let server = Server::builder().start();
    let target = server.createdb("fleet");
    let mut fleet = Fleet::new(&["--loads", "20000"]);
    fleet.backup("a.dump", "");
    fleet.env.use_database(&target);
    fleet.restore(&target, "file: a.dump").exits(0);
    let before = super::state(&target);
    fleet.env.write("restore.yaml", playbook("pg_restore: {file: a.dump, replace: true}"));
    let running = fleet.env.runbook(["run", "restore.yaml"]).spawn();
    let at_work = "SELECT count(*) FROM pg_locks WHERE mode = 'AccessExclusiveLock' AND database = (SELECT oid FROM pg_database WHERE datname = current_database())";
    while target.psql(at_work) == "0" && !running.has_ended() {
        std::thread::yield_now();
    }
    server.immediate_restart();
    running.wait();
    assert_eq!(super::state(&target), before);
    let resumed = fleet.env.runbook(["resume"]).run();
    assert!(matches!(resumed.code(), Some(0 | 64)), "{resumed}");
    assert_eq!(super::state(&target), before);
}
