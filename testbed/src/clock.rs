//! Programs whose clock is wrong.

use std::path::Path;
use std::process::Command;

/// The variables under which a program has a clock that is so many seconds ahead of that of this
/// machine. Its monotonic clock is right.
///
/// Does not work for programs with an allocator that reads the clock, such as `redis-server`.
///
/// # Panics
///
/// If there is no `faketime` on this machine.
#[must_use]
pub fn clock_ahead(seconds: i64) -> [(&'static str, String); 3] {
    let [library, monotonic] = fake_clock();
    [library, monotonic, ("FAKETIME", format!("{seconds:+}"))]
}

/// As [`clock_ahead`], by the number of seconds in a file, with its sign. The program reads the
/// file again every second.
///
/// # Panics
///
/// If there is no `faketime` on this machine.
#[must_use]
pub fn clock_from(file: &Path) -> [(&'static str, String); 4] {
    let [library, monotonic] = fake_clock();
    let file = ("FAKETIME_TIMESTAMP_FILE", file.display().to_string());
    let period = ("FAKETIME_CACHE_DURATION", "1".to_owned());
    [library, monotonic, file, period]
}

fn fake_clock() -> [(&'static str, String); 2] {
    // `faketime` itself would run the program as a child, which outlives it.
    let preloaded = Command::new("faketime")
        .args(["-m", "-f", "+0", "printenv", "LD_PRELOAD"])
        .output()
        .expect("faketime is needed: apt-get install faketime");
    let library = String::from_utf8_lossy(&preloaded.stdout).trim().to_owned();
    [("LD_PRELOAD", library), ("DONT_FAKE_MONOTONIC", "1".to_owned())]
}
