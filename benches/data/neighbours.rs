//! What others feel of a batch migration: how long its longest transaction is, and how long
//! the longest statement of sessions that change single rows of the same table meanwhile.
//!
//! A session of its own looks into `pg_stat_activity` about every 10 ms for the transactions
//! of runbook; the neighbours' statements are timed where they are sent from, so what the
//! machine lacks of processors counts as well.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{JoinHandle, spawn};
use std::time::{Duration, Instant};

use crate::Workshop;
use crate::batch::{ROWS, playbook, template};
use crate::postgres::Database;
use crate::programs::{median, run, verdict};

const ROUNDS: usize = 3;
/// Sessions that change rows.
const NEIGHBOURS: u64 = 2;
/// Between two of a session's changes.
const PAUSE: Duration = Duration::from_millis(2);
/// Between two looks at the transactions.
const LOOK: Duration = Duration::from_millis(10);
/// No transaction may be longer.
const LONGEST: Duration = Duration::from_secs(2);
/// `target_duration`, where the author says nothing.
const TARGET: Duration = Duration::from_millis(500);

/// Where a neighbour's row begins to be chosen from; any odd number walks over all rows.
const STRIDE: u64 = 7_368_787;

pub fn key_2(workshop: &Workshop) -> String {
    felt(workshop, "key", "neighbours-key-2")
}

pub fn physical_2(workshop: &Workshop) -> String {
    felt(workshop, "physical", "neighbours-physical-2")
}

/// What one migration was like for others.
struct Felt {
    transaction: Duration,
    statement: Duration,
    statements: usize,
}

fn felt(workshop: &Workshop, order: &str, name: &str) -> String {
    let template = template(workshop, &format!("template_{name}"), ROWS);
    let rounds: Vec<Felt> = (0..ROUNDS).map(|round| once(workshop, &template, order, &format!("{name}-{round}"))).collect();
    let all = |of: fn(&Felt) -> Duration| rounds.iter().map(of).collect::<Vec<_>>();
    let (transactions, statements) = (all(|felt| felt.transaction), all(|felt| felt.statement));
    let (transaction, statement) = (longest(&transactions), longest(&statements));
    let limit = TARGET + transaction;
    format!(
        "{name:<22} longest transaction {} (median of {ROUNDS}: {}), goal {}\n\
         {name:<22} longest of {} neighbours' statements {} (median {}), goal: target and the longest batch, {}",
        shown(transaction),
        shown(median(&transactions)),
        verdict(transaction <= LONGEST, &shown(LONGEST)),
        rounds.iter().map(|felt| felt.statements).sum::<usize>(),
        shown(statement),
        shown(median(&statements)),
        verdict(statement <= limit, &shown(limit)),
    )
}

fn once(workshop: &Workshop, template: &Database, order: &str, name: &str) -> Felt {
    let name = name.replace('-', "_");
    let control = workshop.database(&format!("control_{name}"));
    let database = workshop.database(&name);
    control.psql(&format!("DROP DATABASE {name}"));
    control.psql(&format!("CREATE DATABASE {name} TEMPLATE {} STRATEGY file_copy", template.name()));
    let file = workshop.write(&format!("{name}.yaml"), &playbook(database.url(), order, "2"));
    let over = Arc::new(AtomicBool::new(false));
    let sampler = sampler(&control, &name, &over);
    let neighbours: Vec<_> = (1..=NEIGHBOURS).map(|number| neighbour(&database, number, &over)).collect();
    run(&mut workshop.run(&file)());
    over.store(true, Ordering::SeqCst);
    let times: Vec<Duration> = neighbours.into_iter().flat_map(|neighbour| neighbour.join().unwrap()).collect();
    let transaction = sampler.join().unwrap();
    let wrong = "SELECT count(*) FROM racks WHERE barcode IS DISTINCT FROM 'R-' || lpad(id::text, 9, '0')";
    assert_eq!(database.psql(wrong), "0");
    control.psql(&format!("DROP DATABASE {name} (FORCE)"));
    Felt { transaction, statement: longest(&times), statements: times.len() }
}

/// The age of runbook's oldest transaction, again and again.
fn sampler(control: &Database, database: &str, over: &Arc<AtomicBool>) -> JoinHandle<Duration> {
    let (mut session, over) = (control.session(), over.clone());
    let look = format!(
        "SELECT coalesce(max(extract(epoch FROM clock_timestamp() - xact_start)), 0) FROM pg_stat_activity \
         WHERE datname = '{database}' AND application_name LIKE 'runbook%'"
    );
    spawn(move || {
        let mut longest = Duration::ZERO;
        while !over.load(Ordering::SeqCst) {
            let seconds: f64 = session.run(&look).parse().unwrap();
            longest = longest.max(Duration::from_secs_f64(seconds));
            std::thread::sleep(LOOK);
        }
        longest
    })
}

/// Changes one row after another; gives how long each took.
fn neighbour(database: &Database, number: u64, over: &Arc<AtomicBool>) -> JoinHandle<Vec<Duration>> {
    let (mut session, over) = (database.session(), over.clone());
    spawn(move || {
        let (mut times, mut row) = (Vec::new(), number * ROWS / NEIGHBOURS);
        while !over.load(Ordering::SeqCst) {
            row = (row + STRIDE) % ROWS;
            let begun = Instant::now();
            session.run(&format!("UPDATE racks SET scanned_at = now() WHERE id = {}", row + 1));
            times.push(begun.elapsed());
            std::thread::sleep(PAUSE);
        }
        times
    })
}

fn longest(times: &[Duration]) -> Duration {
    times.iter().copied().max().unwrap_or_default()
}

fn shown(time: Duration) -> String {
    format!("{} ms", time.as_millis())
}
