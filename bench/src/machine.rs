//! Processor time and memory of processes, as the kernel counts them.

#![allow(clippy::unwrap_used)]

use std::fs;

/// Processor time of all threads of a process so far, in user space and in the kernel.
///
/// # Panics
///
/// If there is no such process.
#[must_use]
pub fn processor_seconds(pid: u32) -> f64 {
    // `USER_HZ`, which is 100 on every architecture.
    const TICKS: f64 = 100.0;
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    // The name of the program is in parentheses and may contain spaces.
    let (_, rest) = stat.rsplit_once(')').unwrap();
    let ticks = rest.split_whitespace().skip(11).take(2);
    ticks.map(|ticks| ticks.parse::<f64>().unwrap()).sum::<f64>() / TICKS
}

/// Resident memory of a process, in MiB.
///
/// # Panics
///
/// If there is no such process.
#[must_use]
pub fn resident_mib(pid: u32) -> f64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .unwrap();
    line.trim().trim_end_matches(" kB").parse::<f64>().unwrap() / 1024.0
}
