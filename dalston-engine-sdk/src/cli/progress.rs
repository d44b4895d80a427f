//! A progress bar for long files, on a terminal.

use std::collections::HashMap;
use std::fmt::Write;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{
    HumanDuration, MultiProgress, ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle,
};

/// A progress bar for each file in progress. It appears only for a file that takes long, and only
/// on a terminal.
#[derive(Debug)]
pub(super) struct Progress {
    state: Mutex<State>,
    /// The lines of all bars.
    lines: MultiProgress,
    visible: bool,
}

#[derive(Debug, Default)]
struct State {
    /// The first report of each file in progress.
    began: HashMap<usize, Instant>,
    /// The bars of files.
    shown: HashMap<usize, ProgressBar>,
}

/// A file that ends earlier has no bar.
const DELAY: Duration = Duration::from_secs(1);
const STEPS: u64 = 1000;

impl Progress {
    /// `visible` says whether standard error is a terminal.
    pub(super) fn new(visible: bool) -> Self {
        Self {
            state: Mutex::default(),
            lines: MultiProgress::with_draw_target(ProgressDrawTarget::stderr()),
            visible,
        }
    }

    /// Reports that the engine has reached `fraction` of the file number `index`.
    pub(super) fn report(&self, index: usize, file: &Path, fraction: f32) {
        self.report_at(Instant::now(), index, file, fraction);
    }

    fn report_at(&self, now: Instant, index: usize, file: &Path, fraction: f32) {
        if !self.visible {
            return;
        }
        let mut state = self.state();
        let elapsed = now.saturating_duration_since(*state.began.entry(index).or_insert(now));
        if elapsed < DELAY {
            return;
        }
        let shown = state.shown.entry(index);
        let bar = shown.or_insert_with(|| self.lines.add(bar(file).with_elapsed(elapsed)));
        bar.set_position((f64::from(fraction) * STEPS as f64) as u64);
    }

    /// Reports the end of the file number `index`.
    pub(super) fn done(&self, index: usize) {
        let mut state = self.state();
        state.began.remove(&index);
        if let Some(bar) = state.shown.remove(&index) {
            bar.finish_and_clear();
        }
    }

    /// Removes the bars, so that something else can be printed.
    pub(super) fn hide(&self) {
        for (_, bar) in self.state().shown.drain() {
            bar.finish_and_clear();
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn bar(file: &Path) -> ProgressBar {
    let name = file
        .file_name()
        .unwrap_or(file.as_os_str())
        .to_string_lossy()
        .into_owned();
    let bar = ProgressBar::with_draw_target(Some(STEPS), ProgressDrawTarget::hidden());
    if let Ok(style) = ProgressStyle::with_template("{msg} {wide_bar} {percent:>3} % {elapsed}{left}") {
        bar.set_style(
            style.with_key("left", |state: &ProgressState, text: &mut dyn Write| {
                let left = left(state.elapsed(), state.fraction());
                // The style has no place for an error.
                let _ = left.map_or(Ok(()), |left| {
                    write!(text, " (about {} left)", HumanDuration(left))
                });
            }),
        );
    }
    bar.set_message(name);
    bar
}

/// The remaining time at the average speed so far. Indicatif's own estimate follows the last
/// moments, but an engine reports only once per window of its model.
fn left(elapsed: Duration, fraction: f32) -> Option<Duration> {
    Duration::try_from_secs_f32(elapsed.as_secs_f32() * (1.0 - fraction) / fraction).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn remaining_time_follows_from_average_speed() {
        let after = |seconds, fraction| left(Duration::from_secs(seconds), fraction);
        assert_eq!(after(30, 0.75), Some(Duration::from_secs(10)));
        assert_eq!(after(30, 1.0), Some(Duration::ZERO));
        assert_eq!(after(2, 0.0), None);
    }

    #[test]
    fn each_file_that_takes_a_second_has_a_bar() {
        let progress = Progress::new(true);
        let shown = || {
            let state = progress.state();
            let mut shown: Vec<_> = state
                .shown
                .iter()
                .map(|(index, bar)| (*index, bar.position()))
                .collect();
            shown.sort_unstable();
            shown
        };
        let began = Instant::now();
        let report = |millis, index, fraction| {
            let now = began + Duration::from_millis(millis);
            progress.report_at(now, index, Path::new("talk.wav"), fraction);
            shown()
        };
        assert_eq!(report(0, 0, 0.1), []);
        assert_eq!(report(500, 1, 0.1), []);
        assert_eq!(report(1000, 0, 0.25), [(0, 250)]);
        assert_eq!(report(1600, 1, 0.3), [(0, 250), (1, 300)]);
        progress.done(0);
        assert_eq!(shown(), [(1, 300)]);
        // The bar returns after other output.
        progress.hide();
        assert_eq!(shown(), []);
        assert_eq!(report(1800, 1, 0.75), [(1, 750)]);
    }
}
