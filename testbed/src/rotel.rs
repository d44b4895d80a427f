//! Rotel: an OTLP receiver that shares no code with ours.

use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::collector::Protocol;
use crate::port::free_port;
use crate::warn;

/// A receiver over gRPC and HTTP that forwards what it accepts over HTTP. It ends when this value
/// is dropped.
#[derive(Debug)]
pub struct TestRotel {
    process: Child,
    grpc: SocketAddr,
    http: SocketAddr,
    directory: TempDir,
}

impl TestRotel {
    /// Starts a receiver that forwards to this OTLP server. `None` on a machine without it, but not
    /// in CI: `cargo xtask setup --rotel` installs it.
    ///
    /// # Panics
    ///
    /// If it does not start within half a minute.
    #[must_use]
    pub fn start(forward_to: SocketAddr) -> Option<Self> {
        let Some(program) = installed() else {
            let is_ci = std::env::var("CI").is_ok_and(|value| value == "true");
            assert!(
                !is_ci,
                "Rotel is not installed, and CI must test with it: cargo xtask setup --rotel"
            );
            warn("no other OTLP receiver was tried: Rotel is missing (cargo xtask setup --rotel)");
            return None;
        };
        let directory = tempfile::tempdir().unwrap();
        let [grpc, http] = [free_port(), free_port()].map(|port| (Ipv4Addr::LOCALHOST, port).into());
        let log = File::create(directory.path().join("log")).unwrap();
        let process = Command::new(program)
            .args(["start", "--exporter", "otlp", "--otlp-exporter-protocol", "http"])
            .arg(format!("--otlp-exporter-endpoint=http://{forward_to}"))
            .arg(format!("--otlp-grpc-endpoint={grpc}"))
            .arg(format!("--otlp-http-endpoint={http}"))
            .args(["--batch-timeout=100ms", "--log-format=json"])
            .arg(format!("--pid-file={}", directory.path().join("pid").display()))
            .env_clear()
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        let this = Self {
            process,
            grpc,
            http,
            directory,
        };
        let deadline = Instant::now() + Duration::from_secs(30);
        while [grpc, http].map(TcpStream::connect).iter().any(Result::is_err) {
            assert!(Instant::now() < deadline, "Rotel does not start: {}", this.log());
            sleep(Duration::from_millis(20));
        }
        Some(this)
    }

    /// Where it receives.
    #[must_use]
    pub fn address(&self, protocol: Protocol) -> SocketAddr {
        match protocol {
            Protocol::Grpc => self.grpc,
            Protocol::Http => self.http,
        }
    }

    /// What it has written.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(self.directory.path().join("log")).unwrap()
    }
}

impl Drop for TestRotel {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The program in the Python environment that xtask makes.
fn installed() -> Option<PathBuf> {
    let environment = Path::new(env!("CARGO_MANIFEST_DIR")).join("../.tools/rotel/lib");
    let versions = fs::read_dir(environment).ok()?;
    let programs = versions
        .flatten()
        .map(|version| version.path().join("site-packages/rotel/rotel-agent"));
    // It may be there and lack a library.
    programs.filter(|program| program.exists()).find(|program| {
        Command::new(program)
            .arg("--help")
            .output()
            .is_ok_and(|output| output.status.success())
    })
}
