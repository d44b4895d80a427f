//! Benchmarks that need servers or peers: see `benches`.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

/// A server in a process of its own, so that what it uses is not counted as ours. It serves until this value is gone.
#[derive(Debug)]
pub struct Server {
    process: Child,
    /// Where it listens.
    pub url: String,
}

impl Server {
    /// Starts this program again with these arguments, which has to print where it listens.
    ///
    /// # Panics
    ///
    /// If that is not possible.
    #[must_use]
    pub fn start(arguments: &[&str]) -> Self {
        let program = std::env::current_exe().expect("a program has a path");
        let mut process = Command::new(program)
            .args(arguments)
            .stdout(Stdio::piped())
            .spawn()
            .expect("the server can be started");
        let mut url = String::new();
        let output = process.stdout.take().expect("it was asked for");
        BufReader::new(output)
            .read_line(&mut url)
            .expect("the server says where it listens");
        let url = url.trim().to_owned();
        Self { process, url }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
