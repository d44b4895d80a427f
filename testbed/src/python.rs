//! Python with the packages that tests need.

use std::path::{Path, PathBuf};

use crate::warn;

/// The Python that `cargo xtask setup --python` makes. `None` with a warning where it is not
/// installed.
///
/// # Panics
///
/// If it is not installed in CI.
#[must_use]
pub fn python() -> Option<PathBuf> {
    let place = Path::new(env!("CARGO_MANIFEST_DIR")).join("../.tools/python");
    if place.join("installed").exists() {
        return Some(place.join("bin/python"));
    }
    let problem = format!("{} is not installed: cargo xtask setup --python", place.display());
    let is_ci = std::env::var("CI").is_ok_and(|value| value == "true");
    assert!(!is_ci, "{problem}");
    warn(&problem);
    None
}
