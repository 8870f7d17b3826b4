//! How large the next batch is: from how long the last ones took.

use crate::units::Duration;

/// How long a batch should take where the author says nothing.
pub(super) const TARGET: Duration = Duration(std::time::Duration::from_millis(500));
/// Rows of the first batch.
pub(super) const FIRST: f64 = 1_000.0;
/// Rows of a batch, at least where no timeout says otherwise, and at most.
pub(super) const SMALLEST: f64 = 100.0;
pub(super) const LARGEST: f64 = 100_000.0;
/// Weight of the newest measurement.
const NEWEST: f64 = 0.4;

/// One worker's pace. A size is in keys, or for pages in the rows they would hold.
#[derive(Debug, Clone)]
pub(super) struct Pace {
    target: std::time::Duration,
    size: f64,
    /// Smoothed seconds a row.
    per_row: Option<f64>,
}

impl Pace {
    pub(super) fn new(target: Duration, first: f64) -> Self {
        Self { target: target.0, size: first, per_row: None }
    }

    pub(super) fn size(&self) -> u64 {
        self.size as u64
    }

    /// How long a batch of `size` took, which may have been measured out some batches ago.
    /// Steps of half to one and a half, so that one slow batch does not decide alone.
    pub(super) fn took(&mut self, time: std::time::Duration, size: u64) {
        let now = time.as_secs_f64() / (size as f64).max(1.0);
        let smoothed = self.per_row.map_or(now, |before| before + NEWEST * (now - before));
        self.per_row = Some(smoothed);
        let wanted = self.target.as_secs_f64() / smoothed.max(1e-9);
        self.size = wanted.clamp(self.size * 0.5, self.size * 1.5).clamp(SMALLEST, LARGEST);
    }

    /// The server stopped a batch that took too long. Below the usual smallest size, for
    /// single rows may be slow.
    pub(super) fn halve(&mut self) {
        self.size = (self.size / 2.0).max(1.0);
        self.per_row = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_size_approaches_the_target_in_bounded_steps() {
        let mut pace = Pace::new(TARGET, FIRST);
        pace.took(std::time::Duration::from_millis(10), pace.size());
        assert_eq!(pace.size(), 1_500);
        for _ in 0..20 {
            pace.took(std::time::Duration::from_secs_f64(pace.size() as f64 / 50_000.0), pace.size());
        }
        assert!((20_000..30_000).contains(&pace.size()), "{}", pace.size());
        pace.took(std::time::Duration::from_secs(50), pace.size());
        assert!(pace.size() < 13_000, "{}", pace.size());
        for _ in 0..20 {
            pace.took(std::time::Duration::from_secs(50), pace.size());
        }
        assert_eq!(pace.size(), 100);
        (0..10).for_each(|_| pace.halve());
        assert_eq!(pace.size(), 1);
    }
}
