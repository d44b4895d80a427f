//! One engine process: its conditions, and what its log says.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, PipeReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use dalston_engine_sdk::protocol::Timestamp;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tokio::time::Instant;

use crate::broken::Defect;
use crate::engine::{KILLED_AT, KILLED_BY_TASK, STOPPED_AT};
use crate::random::Random;

/// The default capacity of a pipe.
const PIPE: usize = 64 * 1024;

/// What differs between the processes of a fleet.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Conditions {
    /// The number of inference threads.
    pub(crate) slots: usize,
    /// Its standard output is a full pipe, so its log is lost.
    pub(crate) full_output: bool,
    pub(crate) clock: Clock,
    pub(crate) defect: Option<Defect>,
}

/// The system clock of a process. The monotonic clock is right.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Clock {
    Right,
    /// Ahead of that of Redis by so many seconds.
    Ahead(i64),
    /// Set to another time again and again.
    Stepping,
}

impl Conditions {
    /// Without faults.
    pub(crate) fn good() -> Self {
        Self {
            slots: 1,
            full_output: false,
            clock: Clock::Right,
            defect: None,
        }
    }

    pub(crate) fn draw(random: &mut Random) -> Self {
        let slots = match random.below(4) {
            0 => 2 + random.below(2),
            _ => 1,
        };
        let clock = match random.below(6) {
            0 => Clock::Ahead(seconds(random)),
            1 => Clock::Stepping,
            _ => Clock::Right,
        };
        Self {
            slots,
            full_output: random.below(6) == 0,
            clock,
            defect: None,
        }
    }
}

/// An error of a clock.
fn seconds(random: &mut Random) -> i64 {
    random.between(-120.0, 120.0) as i64
}

#[derive(Debug)]
pub(crate) struct Process {
    pub(crate) name: String,
    /// The engine id.
    pub(crate) engine: &'static str,
    pub(crate) conditions: Conditions,
    /// When its clock is set the next time.
    clock_steps: Instant,
    /// The port of its HTTP server, once its log shows it.
    http_port: Option<u16>,
    pub(crate) child: Child,
    pub(crate) temp: PathBuf,
    pub(crate) log: PathBuf,
    /// Whether its replacement has the same name.
    pub(crate) keeps_name: bool,
    pub(crate) state: State,
    /// The other end of a full standard output.
    _output: Option<PipeReader>,
}

#[derive(Debug, Clone, Copy)]
pub(crate) enum State {
    Running,
    /// Until this time.
    Stopped(Instant),
    /// After `SIGTERM`; it must end by this time.
    Ending(Instant),
    Killed(Timestamp),
}

/// Why a process killed itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum KilledBy {
    /// At this fault point.
    Point(String),
    /// A task killed it.
    Task,
}

impl Process {
    /// Starts an engine with these options, its files and its log in these places.
    pub(crate) fn start(
        name: String,
        engine: &'static str,
        options: &[(&str, String)],
        temp: PathBuf,
        log: PathBuf,
        conditions: Conditions,
        keeps_name: bool,
    ) -> Self {
        let program = std::env::current_exe().expect("a program has a path");
        let mut command = match conditions.defect {
            None => Command::new(program),
            Some(defect) => {
                let mut command = defect.command(&temp);
                command.arg(program);
                command
            }
        };
        command.arg("engine").arg("--temp").arg(&temp);
        command.arg("--name").arg(&name).arg("--engine").arg(engine);
        command.arg("--slots").arg(conditions.slots.to_string());
        match conditions.clock {
            Clock::Right => {}
            Clock::Ahead(seconds) => drop(command.envs(testbed::clock_ahead(seconds))),
            Clock::Stepping => {
                let file = log.with_extension("clock");
                fs::write(&file, "+0").expect("the clock of an engine is set");
                command.envs(testbed::clock_from(&file));
            }
        }
        for (option, value) in options {
            command.arg(option).arg(value);
        }
        let errors = File::create(&log).expect("the log of an engine is created");
        let mut output = None;
        if conditions.full_output {
            let (reader, writer) = full_pipe().expect("a pipe");
            output = Some(reader);
            command.stdout(writer);
        } else {
            command.stdout(errors.try_clone().expect("the log of an engine is created"));
        }
        let child = command
            .stdin(Stdio::null())
            .stderr(errors)
            .spawn()
            .expect("an engine process starts");
        Self {
            name,
            engine,
            conditions,
            clock_steps: Instant::now(),
            http_port: None,
            child,
            temp,
            log,
            keeps_name,
            state: State::Running,
            _output: output,
        }
    }

    pub(crate) fn instance(&self) -> String {
        format!("{}-{}", self.engine, self.name)
    }

    /// Sets its clock if that is due.
    pub(crate) fn step_clock(&mut self, random: &mut Random) {
        if self.conditions.clock == Clock::Stepping && self.clock_steps <= Instant::now() {
            self.clock_steps = Instant::now() + Duration::from_secs_f64(random.between(0.5, 3.0));
            let file = self.log.with_extension("clock");
            // A half-written file would be no time. The program may have ended.
            let new = self.log.with_extension("step");
            let _ = fs::write(&new, format!("{:+}", seconds(random)));
            let _ = fs::rename(new, file);
        }
    }

    /// The port of its HTTP server, if its log shows it.
    pub(crate) fn http_port(&mut self) -> Option<u16> {
        if self.http_port.is_none() {
            let log = self.read_log();
            let line = log.lines().find(|line| line.contains("http_server_listening"))?;
            let line: Value = line.parse().ok()?;
            self.http_port = line["address"].as_str()?.rsplit(':').next()?.parse().ok();
        }
        self.http_port
    }

    pub(crate) fn signal(&self, signal: Signal) {
        // The process may have ended.
        let _ = kill_process(Pid::from_child(&self.child), signal);
    }

    /// The state of a process follows its name, which is in parentheses and may contain every
    /// character.
    pub(crate) fn is_stopped(&self) -> bool {
        let stat = Path::new("/proc").join(self.child.id().to_string()).join("stat");
        let stat = fs::read_to_string(stat).unwrap_or_default();
        stat.rsplit_once(')')
            .is_some_and(|(_, rest)| rest.trim_start().starts_with('T'))
    }

    pub(crate) fn read_log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if self.conditions.clock != Clock::Right {
            // `faketime` removes them only when its process exits by itself.
            for name in ["faketime_shm_", "sem.faketime_sem_"] {
                let _ = fs::remove_file(format!("/dev/shm/{name}{}", self.child.id()));
            }
        }
    }
}

/// A pipe that takes no further byte.
fn full_pipe() -> io::Result<(PipeReader, io::PipeWriter)> {
    let (reader, mut writer) = io::pipe()?;
    writer.write_all(&[b'\n'; PIPE])?;
    Ok((reader, writer))
}

/// Why the process of this log killed itself, if it did.
pub(crate) fn killed_by(log: &str) -> Option<KilledBy> {
    log.lines().rev().take(20).find_map(|line| {
        let point = line.strip_prefix(KILLED_AT);
        point
            .map(|point| KilledBy::Point(point.to_owned()))
            .or_else(|| (line == KILLED_BY_TASK).then_some(KilledBy::Task))
    })
}

/// The tasks that a process released, and the times, from its log.
pub(crate) fn released(log: &str) -> Vec<(String, Timestamp)> {
    let lines = log.lines().filter(|line| line.contains("task_handed_back"));
    lines
        .filter_map(|line| {
            let line: Value = line.parse().ok()?;
            let at = line["timestamp"].as_str()?.parse().ok()?;
            Some((line["task_id"].as_str()?.to_owned(), at))
        })
        .collect()
}

/// The fault points at which processes suspended themselves, from their logs.
pub(crate) fn stops(directory: &Path) -> BTreeMap<String, usize> {
    let mut stops = BTreeMap::new();
    let logs = fs::read_dir(directory).into_iter().flatten().flatten();
    for log in logs {
        let log = fs::read_to_string(log.path()).unwrap_or_default();
        for point in log.lines().filter_map(|line| line.strip_prefix(STOPPED_AT)) {
            *stops.entry(point.to_owned()).or_default() += 1;
        }
    }
    stops
}

/// The longest time from `SIGTERM` to the end of an engine, on a busy machine without Redis and
/// storage.
pub(crate) const END_TIMEOUT: Duration = Duration::from_secs(60);
