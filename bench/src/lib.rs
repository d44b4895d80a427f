//! Benchmarks that need servers or peers: see `benches`.

pub mod machine;

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

/// A server in its own process, so that its processor time and memory are not measured. It ends
/// when this value is dropped.
#[derive(Debug)]
pub struct Server {
    process: Child,
    /// Its address.
    pub url: String,
}

impl Server {
    /// Starts this program again with these arguments. That process prints its address.
    ///
    /// # Panics
    ///
    /// If the process does not start or prints nothing.
    #[must_use]
    pub fn start(arguments: &[&str]) -> Self {
        let program = std::env::current_exe().expect("a program has a path");
        let mut process = Command::new(program)
            .args(arguments)
            .stdout(Stdio::piped())
            .spawn()
            .expect("the server can be started");
        let mut url = String::new();
        let output = process.stdout.take().expect("standard output is piped");
        BufReader::new(output)
            .read_line(&mut url)
            .expect("the server prints its address");
        let url = url.trim().to_owned();
        Self { process, url }
    }
}

impl Server {
    /// The id of its process.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.process.id()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
