//! Programs whose clock is wrong.

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
    // `faketime` itself would run the program as a child, which outlives it.
    let preloaded = Command::new("faketime")
        .args(["-m", "-f", "+0", "printenv", "LD_PRELOAD"])
        .output()
        .expect("faketime is needed: apt-get install faketime");
    let library = String::from_utf8_lossy(&preloaded.stdout).trim().to_owned();
    [
        ("LD_PRELOAD", library),
        ("FAKETIME", format!("{seconds:+}")),
        ("DONT_FAKE_MONOTONIC", "1".to_owned()),
    ]
}
