//! Ports for servers that can't be told to choose one.

use std::net::{Ipv4Addr, TcpListener};
use std::sync::atomic::{AtomicU32, Ordering};

/// Below the ports that the kernel gives to connections by default: a connection of another test
/// can't take the port before its server does.
const FIRST: u32 = 20_000;
const COUNT: u32 = 12_000;

/// A port that nothing listens on. Each call in a process returns another one.
///
/// # Panics
///
/// If none is free.
#[must_use]
pub fn free_port() -> u16 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    // Processes at the same time begin far apart.
    let first = std::process::id().wrapping_mul(997) % COUNT;
    for _ in 0..COUNT {
        let offset = (first + NEXT.fetch_add(1, Ordering::Relaxed)) % COUNT;
        let port = u16::try_from(FIRST + offset).unwrap();
        if TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).is_ok() {
            return port;
        }
    }
    panic!("no port is free");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn taken_ports_and_earlier_ones_are_passed_over() {
        let first = free_port();
        let next = if u32::from(first) + 1 < FIRST + COUNT {
            first + 1
        } else {
            20_000
        };
        let _taken = TcpListener::bind((Ipv4Addr::LOCALHOST, next));
        let second = free_port();
        assert!(second != first && second != next, "{first} {second}");
    }
}
