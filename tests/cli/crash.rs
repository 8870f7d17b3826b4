//! The crash matrix: the program, its connections and the server are killed at every
//! moment; the run is resumed until it is over; then everything must be as after an
//! uninterrupted run, and nothing recorded as done was done twice.
//!
//! `RUNBOOK_TEST_CRASHES=300` says how many crashes each matrix tries (boundaries of the
//! journal first: `all` takes every one and 300 random moments more), `RUNBOOK_TEST_SEED=…`
//! repeats a failure's choices.

pub mod children;
pub mod history;
pub mod hook;
mod operator;
pub mod shim;
mod story;

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use fastrand::Rng;
use history::History;
use operator::{Operator, Stretch};
use shim::{Access, Stop};
use story::{EveryAction, Place, PreDeploy, Story};

use crate::environment::{Output, PATIENCE};
use crate::postgres::Server;

/// Crashes in an ordinary run of the tests, for each matrix.
const FEW: usize = 24;
const RANDOM_MOMENTS: usize = 300;
/// Where every case's database is copied from.
const TEMPLATE: &str = "crash_template";

/// When the program is killed.
#[derive(Debug, Clone, Copy)]
pub enum Crash {
    /// At an exact access of the journal to its file.
    Journal(Access, usize, Stop),
    /// After this time.
    After(Duration),
    /// Not the program, but all its connections.
    Connections(Duration),
    /// Not the program, but the server, which comes back.
    Server(Duration),
}

impl Crash {
    /// Runs `runbook` with these arguments until it ends or is killed.
    fn launch(self, place: &Place, arguments: &[String]) -> Output {
        let invocation = place.env.runbook(arguments);
        match self {
            Self::Journal(access, number, stop) => shim::stopped_at(invocation, access, number, stop).run(),
            Self::After(time) => {
                let running = invocation.spawn();
                std::thread::sleep(time);
                running.kill()
            }
            Self::Connections(time) => {
                let running = invocation.spawn();
                std::thread::sleep(time);
                place.server.psql(
                    "postgres",
                    &format!("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{}'", place.database),
                );
                running.wait()
            }
            Self::Server(time) => {
                let running = invocation.spawn();
                std::thread::sleep(time);
                place.server.immediate_restart();
                running.wait()
            }
        }
    }
}

/// An uninterrupted run.
struct Reference {
    world: String,
    /// What it does between its gates.
    stretches: Vec<Stretch>,
}

impl Reference {
    fn of(server: &Server, story: &dyn Story) -> Self {
        story.template(server, TEMPLATE);
        let place = Place::new(server, TEMPLATE, "uninterrupted");
        story.prepare(&place);
        let stretches = Operator::new(&place, story, Vec::new()).measure();
        assert_eq!(stretches.len(), story.answers(&place).len() + 1, "a process up to each gate, and one to the end: {stretches:?}");
        assert!(stretches.iter().all(|stretch| stretch.syncs > 0), "the journal is synced by other calls than the shim knows");
        Self { world: story.world(&place), stretches }
    }

    /// Every boundary between two events, and inside of what is written for one.
    fn boundaries(&self) -> Vec<(usize, Crash)> {
        let mut all = Vec::new();
        for (index, stretch) in self.stretches.iter().enumerate() {
            let syncs = (1..=stretch.syncs)
                .flat_map(|number| [Stop::KilledBefore, Stop::KilledAfter].map(|stop| Crash::Journal(Access::Sync, number, stop)));
            let writes = (1..=stretch.writes)
                .map(|number| Crash::Journal(Access::Write, number, if number % 2 == 0 { Stop::KilledHalfWay } else { Stop::KilledAfter }));
            all.extend(syncs.chain(writes).map(|crash| (index, crash)));
        }
        all
    }

    /// A moment of the run's whole time at work.
    fn moment(&self, random: &mut Rng, crash: fn(Duration) -> Crash) -> (usize, Crash) {
        let total: Duration = self.stretches.iter().map(|stretch| stretch.duration).sum();
        let mut at = total.mul_f64(random.f64());
        for (index, stretch) in self.stretches.iter().enumerate() {
            if at <= stretch.duration {
                return (index, crash(at));
            }
            at -= stretch.duration;
        }
        (0, crash(Duration::ZERO))
    }

    fn moments(&self, random: &mut Rng, count: usize, crash: fn(Duration) -> Crash) -> Vec<(usize, Crash)> {
        (0..count).map(|_| self.moment(random, crash)).collect()
    }

    /// The crashes of one matrix.
    fn kills(&self, random: &mut Rng) -> Vec<(usize, Crash)> {
        let mut boundaries = self.boundaries();
        let mut moments = RANDOM_MOMENTS;
        if let Some(count) = wanted() {
            random.shuffle(&mut boundaries);
            boundaries.truncate(count.div_ceil(2));
            moments = count / 2;
        }
        boundaries.extend(self.moments(random, moments, Crash::After));
        boundaries
    }
}

/// How many crashes of a kind are asked for; none: all of them.
fn wanted() -> Option<usize> {
    match std::env::var("RUNBOOK_TEST_CRASHES").as_deref() {
        Ok("all") => None,
        Ok(count) => Some(count.parse().expect("RUNBOOK_TEST_CRASHES is a number or `all`")),
        Err(_) => Some(FEW),
    }
}

/// One case: a crash, perhaps a further one, and then the end.
fn survive(server: &Server, story: &dyn Story, reference: &Reference, name: &str, crashes: Vec<(usize, Crash)>) {
    let place = Place::new(server, TEMPLATE, name);
    story.prepare(&place);
    let mut operator = Operator::new(&place, story, crashes);
    operator.run_to_its_end();
    operator.check_what_was_done();
    let history = History::last(&place.env).expect("a run");
    if history.failures() > 0 {
        story.forget_failures(&place, history.failures());
    }
    assert_eq!(story.world(&place), reference.world, "the end differs from that of an uninterrupted run:\n{}", history.listing());
    assert_eq!(history.unsettled(), Vec::<String>::new());
    children::are_gone(&history.run);
    place.env.runbook(["journal", "verify"]).run().exits(0);
}

/// Goes through all cases; a failure names its seed and its case.
fn matrix(
    server: &Server,
    story: &dyn Story,
    workers: usize,
    crashes: impl Fn(&Reference, &mut Rng) -> Vec<(usize, Crash)>,
    again: impl Fn(&Reference, &mut Rng) -> Option<(usize, Crash)> + Sync,
) {
    let seed = seed();
    let reference = Reference::of(server, story);
    let crashes = crashes(&reference, &mut Rng::with_seed(seed));
    println!("{} cases; uninterrupted, the run's processes do: {:?}", crashes.len(), reference.stretches);
    each(workers, &crashes, |index, crash| {
        let again = again(&reference, &mut Rng::with_seed(seed ^ (index as u64 + 1)));
        survive(server, story, &reference, &format!("case_{index}"), [*crash].into_iter().chain(again).collect());
    })
    .unwrap_or_else(|(index, panic)| {
        println!("case {index}: {:?}; RUNBOOK_TEST_SEED={seed} repeats it", crashes[index]);
        resume_unwind(panic)
    });
}

/// The program is killed at the boundaries of its journal and at random moments, and perhaps again.
fn kill_matrix(story: &dyn Story) {
    let again = |reference: &Reference, random: &mut Rng| random.bool().then(|| reference.moment(random, Crash::After));
    matrix(&server(), story, cores(), Reference::kills, again);
}

/// Something else fails at random moments, twice in a run.
fn failure_matrix(story: &dyn Story, workers: usize, crash: fn(Duration) -> Crash) {
    let count = wanted().map_or(RANDOM_MOMENTS / 3, |count| count.div_ceil(3));
    let again = |reference: &Reference, random: &mut Rng| Some(reference.moment(random, crash));
    matrix(&server(), story, workers, |reference, random| reference.moments(random, count, crash), again);
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(2, usize::from)
}

type Panic = Box<dyn std::any::Any + Send>;

/// Calls `case` for each item; stops at the first that panics.
fn each<T: Sync>(workers: usize, items: &[T], case: impl Fn(usize, &T) + Sync) -> Result<(), (usize, Panic)> {
    let next = AtomicUsize::new(0);
    let failed: Mutex<Option<(usize, Panic)>> = Mutex::new(None);
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                while failed.lock().unwrap().is_none() {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    let Some(item) = items.get(index) else { return };
                    if let Err(panic) = catch_unwind(AssertUnwindSafe(|| case(index, item))) {
                        failed.lock().unwrap().get_or_insert((index, panic));
                    }
                }
            });
        }
    });
    failed.into_inner().unwrap().map_or(Ok(()), Err)
}

/// Waits for something that can be observed.
pub fn wait_until(what: &str, mut met: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !met() {
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(3));
    }
}

fn seed() -> u64 {
    match std::env::var("RUNBOOK_TEST_SEED") {
        Ok(seed) => seed.parse().expect("RUNBOOK_TEST_SEED is a number"),
        Err(_) => Rng::new().u64(..),
    }
}

fn server() -> Server {
    Server::builder().setting("max_connections", "100").start()
}

#[test]
fn every_action_survives_being_killed() {
    kill_matrix(&EveryAction);
}

#[test]
fn the_pre_deployment_playbook_survives_being_killed() {
    kill_matrix(&PreDeploy);
}

#[test]
fn every_action_survives_losing_its_connections() {
    failure_matrix(&EveryAction, cores(), Crash::Connections);
}

#[test]
fn the_pre_deployment_playbook_survives_losing_its_connections() {
    failure_matrix(&PreDeploy, cores(), Crash::Connections);
}

/// One case after the other, for all share the server.
#[test]
fn every_action_survives_restarts_of_the_server() {
    failure_matrix(&EveryAction, 1, Crash::Server);
}

#[test]
fn the_pre_deployment_playbook_survives_restarts_of_the_server() {
    failure_matrix(&PreDeploy, 1, Crash::Server);
}
