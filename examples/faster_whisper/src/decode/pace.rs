//! Bounds the number of windows, so that every recording ends.

/// Maximum number of slow windows in a row.
const MAX_SLOW_WINDOWS: u32 = 3;

/// Tracks how far each window advances.
#[derive(Debug)]
pub(super) struct Pace {
    /// A window that advances by fewer frames, and not to its end, is slow.
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

    /// The number of frames to advance in a window of `size` frames, given the model's choice
    /// `wanted`. `None` if the model makes no progress; the rest of the window is then skipped.
    pub(super) fn allow(&mut self, wanted: usize, size: usize) -> Option<usize> {
        if wanted >= size.min(self.slow_below) {
            self.slow_windows = 0;
            return Some(wanted.min(size));
        }
        self.slow_windows += 1;
        if wanted > 0 && self.slow_windows <= MAX_SLOW_WINDOWS {
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
    fn ordinary_windows_advance_as_the_model_chooses() {
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
    fn window_without_progress_is_skipped() {
        let mut pace = Pace::new(100);
        assert_eq!(pace.allow(0, 3000), None);
        assert_eq!(pace.allow(0, 10), None);
    }

    #[test]
    fn fourth_slow_window_is_skipped() {
        let mut pace = Pace::new(100);
        let steps: Vec<_> = (0..5).map(|_| pace.allow(2, 3000)).collect();
        assert_eq!(steps, [Some(2), Some(2), Some(2), None, Some(2)]);
    }

    #[test]
    fn ordinary_window_resets_the_count() {
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
