//! The delay before the next attempt.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::time::Duration;

/// Delays that double. Each is spread over half of itself, so that a fleet of workers does not come
/// back at the same moment.
#[derive(Debug)]
pub(super) struct Backoff {
    next: Duration,
}

impl Backoff {
    const FIRST: Duration = Duration::from_millis(250);
    const LONGEST: Duration = Duration::from_secs(5);

    pub(super) fn new() -> Self {
        Self { next: Self::FIRST }
    }

    pub(super) fn delay(&mut self) -> Duration {
        let delay = self.next;
        self.next = (delay * 2).min(Self::LONGEST);
        delay / 2 + (delay / 2).mul_f64(random())
    }
}

/// A number from 0 to 1. Each `RandomState` has other keys, which is random enough to spread load.
fn random() -> f64 {
    let bits = RandomState::new().build_hasher().finish() >> 11;
    bits as f64 / (1u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_double_up_to_the_longest() {
        let mut backoff = Backoff::new();
        for full in [250, 500, 1000, 2000, 4000, 5000, 5000].map(Duration::from_millis) {
            let delay = backoff.delay();
            assert!(delay >= full / 2 && delay <= full, "{delay:?} of {full:?}");
        }
    }

    #[test]
    fn two_clients_wait_for_different_times() {
        let delays: std::collections::HashSet<_> = (0..20).map(|_| Backoff::new().delay()).collect();
        assert!(delays.len() > 1);
    }
}
