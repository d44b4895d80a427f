//! How far a long recording is, on a terminal.

use std::path::Path;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// A bar for the file that is being worked on. It appears when a file takes long, and only on a terminal.
#[derive(Debug)]
pub(super) struct Progress {
    current: Mutex<Option<Current>>,
    visible: bool,
}

#[derive(Debug)]
struct Current {
    index: usize,
    began: Instant,
    bar: Option<ProgressBar>,
}

/// Files that are done sooner have no bar.
const PATIENCE: Duration = Duration::from_secs(1);
const STEPS: u64 = 1000;

impl Progress {
    /// `visible` says whether a person looks at standard error.
    pub(super) fn new(visible: bool) -> Self {
        Self {
            current: Mutex::new(None),
            visible,
        }
    }

    /// The engine has reached `fraction` of the file number `index`.
    pub(super) fn report(&self, index: usize, file: &Path, fraction: f32) {
        if !self.visible {
            return;
        }
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        if current.as_ref().is_none_or(|current| current.index != index) {
            clear(current.take());
            *current = Some(Current {
                index,
                began: Instant::now(),
                bar: None,
            });
        }
        let Some(current) = current.as_mut() else { return };
        if current.bar.is_none() && current.began.elapsed() >= PATIENCE {
            current.bar = Some(bar(file));
        }
        if let Some(bar) = &current.bar {
            bar.set_position((f64::from(fraction) * STEPS as f64) as u64);
        }
    }

    /// Takes the bar away, so that something else can be printed.
    pub(super) fn hide(&self) {
        clear(self.current.lock().unwrap_or_else(PoisonError::into_inner).take());
    }
}

fn bar(file: &Path) -> ProgressBar {
    let name = file
        .file_name()
        .unwrap_or(file.as_os_str())
        .to_string_lossy()
        .into_owned();
    let bar = ProgressBar::with_draw_target(Some(STEPS), ProgressDrawTarget::stderr());
    if let Ok(style) =
        ProgressStyle::with_template("{msg} {wide_bar} {percent:>3} % {elapsed} (about {eta} left)")
    {
        bar.set_style(style);
    }
    bar.set_message(name);
    bar
}

fn clear(current: Option<Current>) {
    if let Some(bar) = current.and_then(|current| current.bar) {
        bar.finish_and_clear();
    }
}
