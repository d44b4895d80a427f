//! The engine processes: starts, kills, suspends and resumes them, and replaces ended ones.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use dalston_engine_sdk::protocol::{Timestamp, keys};
use redis::RedisResult;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tokio::time::{Instant, sleep};

use crate::engine::{ENGINE, KILLED_AT, STOPPED_AT};
use crate::orchestrator::{Cause, Orchestrator};
use crate::platform::Platform;
use crate::random::Random;

/// The longest time from `SIGTERM` to the end of an engine, on a busy machine without Redis and
/// storage.
const END_TIMEOUT: Duration = Duration::from_secs(60);

/// The configuration of all engines.
#[derive(Debug, Clone)]
pub(crate) struct Setup {
    pub(crate) lease: Duration,
    pub(crate) drain: Duration,
    pub(crate) slots: usize,
    /// Whether every second engine keeps its name when it is replaced.
    pub(crate) keep_names: bool,
    /// For the directories of tasks and for logs.
    pub(crate) directory: PathBuf,
    /// The probability that a process kills itself at a fault point.
    pub(crate) kill: f64,
    /// The probability that it suspends itself there.
    pub(crate) stop: f64,
}

/// All engine processes, and counts of their ends.
#[derive(Debug)]
pub(crate) struct Fleet {
    platform: Arc<Platform>,
    orchestrator: Arc<Orchestrator>,
    pub(crate) setup: Setup,
    random: Random,
    engines: Vec<Process>,
    started: usize,
    pub(crate) counts: Counts,
}

/// The faults of the engines.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    /// By the test, at random times.
    pub(crate) killed_anywhere: usize,
    /// By themselves, by fault point.
    pub(crate) killed_at: BTreeMap<String, usize>,
    pub(crate) stopped: usize,
    pub(crate) drained: usize,
    /// Task directories that killed processes left behind.
    pub(crate) directories_left: usize,
}

impl Counts {
    pub(crate) fn kills(&self) -> usize {
        self.killed_anywhere + self.killed_at.values().sum::<usize>()
    }
}

#[derive(Debug)]
struct Process {
    name: String,
    child: Child,
    temp: PathBuf,
    log: PathBuf,
    /// Whether its replacement has the same name.
    keeps_name: bool,
    state: State,
}

#[derive(Debug, Clone, Copy)]
enum State {
    Running,
    /// Until this time.
    Stopped(Instant),
    /// After `SIGTERM`; it must end by this time.
    Ending(Instant),
    Killed(Timestamp),
}

impl Fleet {
    pub(crate) fn new(
        platform: Arc<Platform>,
        orchestrator: Arc<Orchestrator>,
        setup: Setup,
        random: Random,
    ) -> Self {
        Self {
            platform,
            orchestrator,
            setup,
            random,
            engines: Vec::new(),
            started: 0,
            counts: Counts::default(),
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.engines.len()
    }

    /// Starts engines until this number runs.
    pub(crate) fn fill(&mut self, engines: usize) {
        while self.engines.len() < engines {
            let keeps_name = self.setup.keep_names && self.engines.len() % 2 == 1;
            let process = self.start(None, keeps_name);
            self.engines.push(process);
        }
    }

    fn start(&mut self, name: Option<String>, keeps_name: bool) -> Process {
        self.started += 1;
        let name = name.unwrap_or_else(|| format!("e{}", self.started));
        let directory = &self.setup.directory;
        let temp = directory.join("temp").join(self.started.to_string());
        fs::create_dir_all(&temp).expect("the directory of an engine is created");
        let log = directory.join(format!("{name}.{}.log", self.started));
        let output = File::create(&log).expect("the log of an engine is created");
        let seconds = |duration: Duration| duration.as_secs_f64().to_string();
        let arguments = [
            ("--redis", self.platform.proxy_url()),
            ("--s3", self.platform.s3.url()),
            ("--name", name.clone()),
            ("--lease", seconds(self.setup.lease)),
            ("--drain", seconds(self.setup.drain)),
            ("--slots", self.setup.slots.to_string()),
            ("--temp", temp.display().to_string()),
            ("--seed", self.random.number().to_string()),
            ("--kill", self.setup.kill.to_string()),
            ("--stop", self.setup.stop.to_string()),
        ];
        let mut command = Command::new(std::env::current_exe().expect("a program has a path"));
        command.arg("engine");
        for (option, value) in arguments {
            command.arg(option).arg(value);
        }
        let child = command
            .stdin(Stdio::null())
            .stdout(output.try_clone().expect("the log of an engine is created"))
            .stderr(output)
            .spawn()
            .expect("an engine process starts");
        Process {
            name,
            child,
            temp,
            log,
            keeps_name,
            state: State::Running,
        }
    }

    /// The engine with this instance name.
    pub(crate) fn find(&self, instance: &str) -> Option<usize> {
        self.engines
            .iter()
            .position(|process| process.instance() == instance)
    }

    pub(crate) fn kill(&mut self, index: usize) {
        if let Some(process) = self.engines.get_mut(index)
            && !matches!(process.state, State::Killed(_))
        {
            process.state = State::Killed(Timestamp::now());
            process.signal(Signal::KILL);
        }
    }

    /// Sends `SIGTERM` to an engine, which drains and ends.
    pub(crate) fn end(&mut self, index: usize) {
        if let Some(process) = self.engines.get_mut(index)
            && matches!(process.state, State::Running)
        {
            process.state = State::Ending(Instant::now() + END_TIMEOUT);
            process.signal(Signal::TERM);
        }
    }

    /// Suspends an engine for this time, unless it is the last one that runs.
    pub(crate) fn stop(&mut self, index: usize, pause: Duration) {
        let running = self
            .engines
            .iter()
            .filter(|process| matches!(process.state, State::Running))
            .count();
        if let Some(process) = self.engines.get_mut(index)
            && matches!(process.state, State::Running)
            && running > 1
        {
            process.state = State::Stopped(Instant::now() + pause);
            process.signal(Signal::STOP);
            self.counts.stopped += 1;
        }
    }

    /// Resumes suspended engines that are due, and replaces ended ones.
    pub(crate) async fn supervise(&mut self) {
        self.check_processes(true).await;
    }

    /// Ends all engines and waits for them.
    pub(crate) async fn end_all(&mut self) {
        while !self.engines.is_empty() {
            for index in 0..self.engines.len() {
                self.end(index);
            }
            self.check_processes(false).await;
            sleep(Duration::from_millis(20)).await;
        }
    }

    async fn check_processes(&mut self, replace: bool) {
        let mut index = 0;
        while let Some(process) = self.engines.get_mut(index) {
            if let Some(status) = process.child.try_wait().expect("the process is a child") {
                let name = self.record_exit(index, status).await;
                let keeps_name = self.engines[index].keeps_name;
                if replace {
                    self.engines[index] = self.start(name, keeps_name);
                } else {
                    self.engines.remove(index);
                    continue;
                }
            } else {
                self.watch(index);
            }
            index += 1;
        }
    }

    fn watch(&mut self, index: usize) {
        let pause = self.setup.lease.mul_f64(self.random.between(0.1, 2.5));
        let process = &mut self.engines[index];
        let now = Instant::now();
        match process.state {
            State::Stopped(until) if until <= now => {
                process.state = State::Running;
                process.signal(Signal::CONT);
            }
            State::Stopped(_) | State::Killed(_) => {}
            State::Running if is_stopped(process.child.id()) => {
                process.state = State::Stopped(now + pause);
                self.counts.stopped += 1;
            }
            // It may also suspend itself while it drains.
            State::Ending(_) if is_stopped(process.child.id()) => {
                process.state = State::Ending(now + END_TIMEOUT);
                process.signal(Signal::CONT);
                self.counts.stopped += 1;
            }
            State::Ending(until) if until <= now => {
                let what = format!(
                    "engine {} did not end within {END_TIMEOUT:?} of SIGTERM",
                    process.name
                );
                self.orchestrator.violation(None, what);
                self.kill(index);
            }
            State::Running | State::Ending(_) => {}
        }
    }

    /// Records the end of a process. Returns the name of the replacement if it is the same.
    async fn record_exit(&mut self, index: usize, status: ExitStatus) -> Option<String> {
        let now = Timestamp::now();
        let process = &self.engines[index];
        let keeps_name = process.keeps_name;
        let log = fs::read_to_string(&process.log).unwrap_or_default();
        let killed_at = log
            .lines()
            .rev()
            .take(20)
            .find_map(|line| line.strip_prefix(KILLED_AT));
        let left = fs::read_dir(&process.temp).map_or(0, Iterator::count);
        let instance = process.instance();
        let is_killed = status.signal() == Some(Signal::KILL.as_raw());
        let mut since = now;
        match (is_killed, process.state, killed_at) {
            (true, _, Some(point)) => *self.counts.killed_at.entry(point.to_owned()).or_default() += 1,
            (true, State::Killed(at), None) => {
                since = at;
                self.counts.killed_anywhere += 1;
            }
            // It had not installed its signal handler yet.
            (false, State::Ending(_), _) if status.signal() == Some(Signal::TERM.as_raw()) => {}
            (false, State::Ending(_), _) if status.success() => {
                self.counts.drained += 1;
                if left > 0 {
                    let what = format!(
                        "engine {} ended and left {left} task directories behind",
                        process.name
                    );
                    self.orchestrator.violation(None, what);
                }
            }
            _ => {
                let log = process.log.display();
                let what = format!("engine {} ended unexpectedly: {status}; see {log}", process.name);
                self.orchestrator.violation(None, what);
            }
        }
        if is_killed {
            self.counts.directories_left += left;
            let cause = if keeps_name {
                Cause::KilledAndRestarted
            } else {
                Cause::Killed
            };
            // Without Redis, this takeover is not measured.
            let entries = pending(&self.platform, &instance).await.unwrap_or_default();
            self.orchestrator.freed(&entries, since, cause);
        }
        for (task, at) in released(&log) {
            self.orchestrator.released(&task, at);
        }
        keeps_name.then(|| self.engines[index].name.clone())
    }
}

impl Process {
    fn instance(&self) -> String {
        format!("{ENGINE}-{}", self.name)
    }

    fn signal(&self, signal: Signal) {
        // The process may have ended.
        let _ = kill_process(Pid::from_child(&self.child), signal);
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

async fn pending(platform: &Platform, instance: &str) -> RedisResult<Vec<String>> {
    let stream = keys::task_stream(ENGINE);
    let words = ["XPENDING", &stream, keys::TASK_GROUP, "-", "+", "1000", instance];
    let rows: Vec<(String, String, u64, u64)> = platform.try_ask(&words).await?;
    Ok(rows.into_iter().map(|row| row.0).collect())
}

/// The state of a process follows its name, which is in parentheses and may contain every
/// character.
fn is_stopped(process: u32) -> bool {
    let stat =
        fs::read_to_string(Path::new("/proc").join(process.to_string()).join("stat")).unwrap_or_default();
    stat.rsplit_once(')')
        .is_some_and(|(_, rest)| rest.trim_start().starts_with('T'))
}

/// The tasks that a process released, and the times, from its log.
fn released(log: &str) -> Vec<(String, Timestamp)> {
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
