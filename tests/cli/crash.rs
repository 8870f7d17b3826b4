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

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use fastrand::Rng;
use history::History;
use shim::{Access, Stop};
use story::{EveryAction, Place, PreDeploy, Story};

use crate::environment::{Output, PATIENCE};
use crate::postgres::Server;

/// Crashes in an ordinary run of the tests, for each matrix.
const FEW: usize = 12;
const RANDOM_MOMENTS: usize = 300;
/// Where every case's database is copied from.
const TEMPLATE: &str = "crash_template";

/// When the program is killed.
#[derive(Debug, Clone, Copy)]
pub enum Crash {
    Never,
    /// At an exact access of the journal to its file.
    Journal(Access, usize, Stop),
    /// After this time.
    After(Duration),
}

/// Runs `runbook` with these arguments until it ends or is killed.
fn launch(place: &Place, arguments: &[String], crash: Crash) -> Output {
    let invocation = place.env.runbook(arguments);
    match crash {
        Crash::Never => invocation.run(),
        Crash::Journal(access, number, stop) => shim::stopped_at(invocation, access, number, stop).run(),
        Crash::After(time) => {
            let running = invocation.spawn();
            std::thread::sleep(time);
            running.kill()
        }
    }
}

/// An uninterrupted run.
struct Reference {
    world: String,
    writes: usize,
    syncs: usize,
    duration: Duration,
}

impl Reference {
    fn of(server: &Server, story: &dyn Story) -> Self {
        story.template(server, TEMPLATE);
        let place = Place::new(server, TEMPLATE, "uninterrupted");
        story.prepare(&place);
        let begun = Instant::now();
        shim::counted(place.env.runbook(story.arguments(&place)), &place.env).run().exits(5);
        let duration = begun.elapsed();
        let (writes, syncs) = shim::tally(&place.env);
        operator::carry_on(&place, story, &mut Vec::new());
        Self { world: story.world(&place), writes, syncs, duration }
    }

    /// Every boundary between two events, and inside of what is written for one.
    fn boundaries(&self) -> Vec<Crash> {
        let syncs = (1..=self.syncs).flat_map(|number| [Stop::KilledBefore, Stop::KilledAfter].map(|stop| Crash::Journal(Access::Sync, number, stop)));
        let writes = (1..=self.writes).map(|number| Crash::Journal(Access::Write, number, if number % 2 == 0 { Stop::KilledHalfWay } else { Stop::KilledAfter }));
        syncs.chain(writes).collect()
    }

    fn moment(&self, random: &mut Rng) -> Crash {
        Crash::After(self.duration.mul_f64(random.f64() * 1.05))
    }

    /// The crashes of one matrix.
    fn crashes(&self, random: &mut Rng) -> Vec<Crash> {
        let mut boundaries = self.boundaries();
        let wanted = std::env::var("RUNBOOK_TEST_CRASHES").ok();
        let (boundaries, moments) = match wanted.as_deref() {
            Some("all") => (boundaries, RANDOM_MOMENTS),
            other => {
                let count = other.map_or(FEW, |count| count.parse().expect("RUNBOOK_TEST_CRASHES is a number or `all`"));
                random.shuffle(&mut boundaries);
                boundaries.truncate(count.div_ceil(2));
                (boundaries, count / 2)
            }
        };
        let moments: Vec<Crash> = (0..moments).map(|_| self.moment(random)).collect();
        boundaries.into_iter().chain(moments).collect()
    }
}

/// One case: a crash of the run, perhaps further ones of its resumes, and then the end.
fn survive(server: &Server, story: &dyn Story, reference: &Reference, name: &str, crash: Crash, random: &mut Rng) {
    let place = Place::new(server, TEMPLATE, name);
    story.prepare(&place);
    let mut later: Vec<Crash> = (0..random.usize(0..3).saturating_sub(1)).map(|_| reference.moment(random)).collect();
    launch(&place, &story.arguments(&place), crash);
    let done = done_so_far(&place, story);
    operator::carry_on(&place, story, &mut later);
    let traces = story.traces(&place);
    for (step, trace) in done {
        assert_eq!(traces.get(&step), Some(&trace), "{step} was recorded done, and was done again");
    }
    assert_eq!(story.world(&place), reference.world, "the end differs from that of an uninterrupted run");
    let history = History::last(&place.env).expect("a run");
    assert_eq!(history.unsettled(), Vec::<String>::new());
    children::are_gone(&history.run);
}

/// The traces of the steps that the journal calls done.
fn done_so_far(place: &Place, story: &dyn Story) -> BTreeMap<String, String> {
    let done = History::last(&place.env).map(|history| history.done()).unwrap_or_default();
    let traces = story.traces(place);
    traces.into_iter().filter(|(step, _)| done.contains(step)).collect()
}

/// Goes through all cases on all cores; a failure names its seed and its case.
fn matrix(server: &Server, story: &dyn Story) {
    let seed = seed();
    let reference = Reference::of(server, story);
    let crashes = reference.crashes(&mut Rng::with_seed(seed));
    each(&crashes, |index, crash| {
        let mut random = Rng::with_seed(seed ^ (index as u64 + 1));
        survive(server, story, &reference, &format!("case_{index}"), *crash, &mut random);
    })
    .unwrap_or_else(|(index, panic)| {
        println!("case {index} of {}: {:?}; RUNBOOK_TEST_SEED={seed} repeats it", crashes.len(), crashes[index]);
        resume_unwind(panic)
    });
}

type Panic = Box<dyn std::any::Any + Send>;

/// Calls `case` for each item on all cores; stops at the first that panics.
fn each<T: Sync>(items: &[T], case: impl Fn(usize, &T) + Sync) -> Result<(), (usize, Panic)> {
    let next = AtomicUsize::new(0);
    let failed: Mutex<Option<(usize, Panic)>> = Mutex::new(None);
    let workers = std::thread::available_parallelism().map_or(2, usize::from);
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
    matrix(&server(), &EveryAction);
}

#[test]
fn the_pre_deployment_playbook_survives_being_killed() {
    matrix(&server(), &PreDeploy);
}
