//! A worker with a dependency that is broken at times. Healthy peers must not suffer from it, and
//! no task may fail because of it.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rustix::process::Signal;
use tokio::time::{Instant, sleep};

use crate::orchestrator::Orchestrator;
use crate::process::{END_TIMEOUT, KilledBy, Process, killed_by};
use crate::random::Random;

/// The size of a small disk. A large task fits.
const MEBIBYTES: usize = 64;
/// Mounts a disk at the first argument, and runs the others.
const MOUNT: &str = "mount -t tmpfs -o size=64m tmpfs \"$0\" && exec \"$@\"";
/// Where mounting is not allowed: no file may exceed 512 bytes.
const LIMIT: &str = "trap '' XFSZ; ulimit -f 1; exec \"$@\"";
/// Lets `flock` fail, as NFS does. The tracer is a process of its own, so signals reach the worker.
const NO_LOCKS: [&str; 9] = [
    "strace",
    "-D",
    "-f",
    "-o",
    "/dev/null",
    "-e",
    "trace=flock",
    "-e",
    "inject=flock:error=EBADF",
];

/// The broken dependency of a worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Defect {
    /// The temporary directory is a small file system in a namespace of the process, which ends
    /// with it. It is full at times.
    SmallDisk,
    /// Every file is limited.
    LimitedFiles,
    /// Files can't be locked.
    NoLocks,
}

impl Defect {
    /// The defects that this machine allows: one of a disk, and one of the locks.
    pub(crate) fn available(directory: &Path) -> Vec<Self> {
        let works = |defect: &Self| {
            let output = defect.command(directory).arg("true").output();
            output.is_ok_and(|output| output.status.success())
        };
        let disk = match works(&Self::SmallDisk) {
            true => Self::SmallDisk,
            false => Self::LimitedFiles,
        };
        let locks = Some(Self::NoLocks).filter(works);
        [disk].into_iter().chain(locks).collect()
    }

    /// A command that runs the program and arguments that are added to it.
    pub(crate) fn command(self, directory: &Path) -> Command {
        let words: &[&str] = match self {
            Self::SmallDisk => &["unshare", "--map-root-user", "--mount", "sh", "-c", MOUNT],
            Self::LimitedFiles => &["sh", "-c", LIMIT],
            Self::NoLocks => &NO_LOCKS,
        };
        let mut command = Command::new(words[0]);
        command.args(&words[1..]);
        if self != Self::NoLocks {
            command.arg(directory);
        }
        command
    }
}

#[derive(Debug)]
pub(crate) struct BrokenWorker {
    process: Process,
    pub(crate) defect: Defect,
    is_full: bool,
    next: Instant,
    /// How often it was broken.
    pub(crate) breakages: usize,
}

impl BrokenWorker {
    pub(crate) fn new(process: Process, defect: Defect) -> Self {
        Self {
            process,
            defect,
            is_full: false,
            next: Instant::now() + Duration::from_secs(2),
            breakages: usize::from(defect != Defect::SmallDisk),
        }
    }

    /// Fills or empties its disk if that is due. Returns whether it has ended, which is a violation
    /// unless a task killed it or no probe passed for long.
    pub(crate) fn act(&mut self, random: &mut Random, orchestrator: &Orchestrator) -> bool {
        if let Ok(Some(status)) = self.process.child.try_wait() {
            let log = self.process.read_log();
            // If its probes always fail, it gives up after 10 minutes.
            let gave_up = log.contains("could take no tasks for 10 minutes");
            if !gave_up && killed_by(&log) != Some(KilledBy::Task) {
                let (defect, log) = (self.defect, self.process.log.display());
                let what = format!("the worker with {defect:?} ended: {status}; see {log}");
                orchestrator.violation(None, what);
            }
            return true;
        }
        if self.next <= Instant::now() {
            self.next = Instant::now() + Duration::from_secs_f64(random.between(1.0, 6.0));
            match self.is_full {
                true => self.empty(),
                false => self.fill(),
            }
        }
        false
    }

    /// Ends it, and waits for that.
    pub(crate) async fn end(mut self, orchestrator: &Orchestrator) {
        self.empty();
        self.process.signal(Signal::TERM);
        let deadline = Instant::now() + END_TIMEOUT;
        while let Ok(None) = self.process.child.try_wait() {
            if Instant::now() > deadline {
                let what = format!(
                    "the worker with {:?} did not end within {END_TIMEOUT:?}",
                    self.defect
                );
                return orchestrator.violation(None, what);
            }
            sleep(Duration::from_millis(20)).await;
        }
    }

    fn fill(&mut self) {
        if self.defect == Defect::SmallDisk
            && let Ok(mut file) = OpenOptions::new().create(true).append(true).open(self.filler())
        {
            let block = vec![0; 1 << 20];
            let full = (0..=MEBIBYTES).any(|_| file.write_all(&block).is_err());
            self.is_full = full;
            self.breakages += usize::from(full);
        }
    }

    fn empty(&mut self) {
        if self.is_full {
            // The process may have ended.
            let _ = fs::remove_file(self.filler());
            self.is_full = false;
        }
    }

    /// A file in its temporary directory, as its namespace sees it.
    fn filler(&self) -> PathBuf {
        let root = Path::new("/proc")
            .join(self.process.child.id().to_string())
            .join("root");
        let temp = self.process.temp.strip_prefix("/").unwrap_or(&self.process.temp);
        root.join(temp).join("filler")
    }
}
