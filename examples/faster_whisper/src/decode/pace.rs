//! Keeps a confused model from crawling, or standing still, for ever.

/// So many slow windows in a row are tolerated.
const MOST_SLOW_WINDOWS: u32 = 3;

/// Watches by how much windows move on.
#[derive(Debug)]
pub(super) struct Pace {
    /// A window that moves on by fewer frames, and not to its end, is slow.
    slow_below: usize,
    slow_windows: u32,
}

impl Pace {
    pub(super) fn new(slow_below: usize) -> Self {
        Self {
            slow_below,
            slow_windows: 0,
        }
    }

    /// By how many frames to move on from a window of `size` frames, of which the model wants to move on by `wanted`.
    /// `None`: it makes no progress, and the rest of the window has to be given up.
    pub(super) fn allow(&mut self, wanted: usize, size: usize) -> Option<usize> {
        if wanted >= size.min(self.slow_below) {
            self.slow_windows = 0;
            return Some(wanted.min(size));
        }
        self.slow_windows += 1;
        if wanted > 0 && self.slow_windows <= MOST_SLOW_WINDOWS {
            return Some(wanted);
        }
        self.slow_windows = 0;
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ordinary_windows_move_on_as_the_model_wants() {
        let mut pace = Pace::new(100);
        for wanted in [2000, 100, 2999, 3000] {
            assert_eq!(pace.allow(wanted, 3000), Some(wanted));
        }
        // The last, short window of a recording.
        assert_eq!(pace.allow(40, 40), Some(40));
        // A timestamp beyond the end of the recording.
        assert_eq!(pace.allow(3000, 40), Some(40));
    }

    #[test]
    fn a_model_that_stands_still_is_moved_on_at_once() {
        let mut pace = Pace::new(100);
        assert_eq!(pace.allow(0, 3000), None);
        assert_eq!(pace.allow(0, 10), None);
    }

    #[test]
    fn a_model_that_crawls_is_moved_on_after_three_windows() {
        let mut pace = Pace::new(100);
        let steps: Vec<_> = (0..5).map(|_| pace.allow(2, 3000)).collect();
        assert_eq!(steps, [Some(2), Some(2), Some(2), None, Some(2)]);
    }

    #[test]
    fn one_good_step_makes_up_for_the_slow_ones() {
        let mut pace = Pace::new(100);
        let steps: Vec<_> = [2, 2, 2, 500, 2, 2, 2, 2]
            .into_iter()
            .map(|wanted| pace.allow(wanted, 3000))
            .collect();
        let some = |n| Some(n);
        assert_eq!(
            steps,
            [
                some(2),
                some(2),
                some(2),
                some(500),
                some(2),
                some(2),
                some(2),
                None
            ]
        );
    }
}
