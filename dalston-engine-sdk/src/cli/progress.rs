//! A progress bar for long files, on a terminal.

use std::collections::HashMap;
use std::fmt::Write;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{HumanDuration, ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle};

/// A progress bar for a file in progress. It appears only for a file that takes long, and only on a
/// terminal.
#[derive(Debug)]
pub(super) struct Progress {
    state: Mutex<State>,
    visible: bool,
}

#[derive(Debug, Default)]
struct State {
    /// The first report of each file in progress.
    began: HashMap<usize, Instant>,
    /// The bar, and the file that has it until its end.
    shown: Option<(usize, ProgressBar)>,
}

/// A file that ends earlier has no bar.
const DELAY: Duration = Duration::from_secs(1);
const STEPS: u64 = 1000;

impl Progress {
    /// `visible` says whether standard error is a terminal.
    pub(super) fn new(visible: bool) -> Self {
        Self {
            state: Mutex::default(),
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
        if state.shown.is_none() && elapsed >= DELAY {
            state.shown = Some((index, bar(file).with_elapsed(elapsed)));
        }
        match &state.shown {
            Some((shown, bar)) if *shown == index => {
                bar.set_position((f64::from(fraction) * STEPS as f64) as u64)
            }
            _ => {}
        }
    }

    /// Reports the end of the file number `index`.
    pub(super) fn done(&self, index: usize) {
        let mut state = self.state();
        state.began.remove(&index);
        if let Some((_, bar)) = state.shown.take_if(|(shown, _)| *shown == index) {
            bar.finish_and_clear();
        }
    }

    /// Removes the bar, so that something else can be printed.
    pub(super) fn hide(&self) {
        if let Some((_, bar)) = self.state().shown.take() {
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
    let bar = ProgressBar::with_draw_target(Some(STEPS), ProgressDrawTarget::stderr());
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
    fn bar_appears_after_a_second_and_stays_with_its_file() {
        let progress = Progress::new(true);
        let shown = || {
            progress
                .state()
                .shown
                .as_ref()
                .map(|(index, bar)| (*index, bar.position()))
        };
        let began = Instant::now();
        let report = |millis, index, fraction| {
            let now = began + Duration::from_millis(millis);
            progress.report_at(now, index, Path::new("talk.wav"), fraction);
            shown()
        };
        assert_eq!(report(0, 0, 0.1), None);
        assert_eq!(report(500, 1, 0.1), None);
        assert_eq!(report(1000, 0, 0.25), Some((0, 250)));
        // The bar stays with its file until the end.
        assert_eq!(report(1600, 1, 0.25), Some((0, 250)));
        progress.done(0);
        assert_eq!(report(1700, 1, 0.5), Some((1, 500)));
        // The bar returns after other output.
        progress.hide();
        assert_eq!(shown(), None);
        assert_eq!(report(1800, 1, 0.75), Some((1, 750)));
    }
}
