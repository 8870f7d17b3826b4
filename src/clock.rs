//! Time and randomness, injected so that tests can hold them still.
//!
//! Everything that is journaled, jittered or named by time asks here; sleeping and
//! timeouts stay with tokio, which tests pause on their own.

use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, Mutex};

use jiff::Timestamp;

/// Where "now" and random numbers come from. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Clock(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    fixed: Option<Timestamp>,
    random: Mutex<fastrand::Rng>,
}

impl Clock {
    /// The system's time and an unpredictable seed.
    pub fn real() -> Self {
        // fastrand's own seed is the moment: two runs that begin together would share their id.
        let seed = RandomState::new().hash_one(std::process::id());
        Self(Arc::new(Inner { fixed: None, random: Mutex::new(fastrand::Rng::with_seed(seed)) }))
    }

    /// Always `now`, and the same random numbers for the same `seed`.
    pub fn fixed(now: Timestamp, seed: u64) -> Self {
        Self(Arc::new(Inner { fixed: Some(now), random: Mutex::new(fastrand::Rng::with_seed(seed)) }))
    }

    /// The present moment.
    pub fn now(&self) -> Timestamp {
        self.0.fixed.unwrap_or_else(Timestamp::now)
    }

    /// A number in `[0, 1)`.
    pub fn random(&self) -> f64 {
        self.with_random(|random| random.f64())
    }

    /// `length` lower-case letters and digits, for names.
    pub fn random_name(&self, length: usize) -> String {
        self.with_random(|random| {
            (0..length).map(|_| random.choice(b"0123456789abcdefghjkmnpqrstvwxyz".iter()).map_or('0', |b| *b as char)).collect()
        })
    }

    fn with_random<T>(&self, draw: impl FnOnce(&mut fastrand::Rng) -> T) -> T {
        draw(&mut self.0.random.lock().unwrap_or_else(std::sync::PoisonError::into_inner))
    }
}
