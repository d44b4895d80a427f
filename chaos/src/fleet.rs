//! The engine processes: started, killed, stopped and let go on, and started anew when they have ended.

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
use crate::orchestrator::{How, Orchestrator};
use crate::platform::Platform;
use crate::random::Random;

/// How long an engine that was told to end may take, on a busy machine and with Redis and storage away.
const PATIENCE: Duration = Duration::from_secs(60);

/// What all engines have in common.
#[derive(Debug, Clone)]
pub(crate) struct Setup {
    pub(crate) lease: Duration,
    pub(crate) drain: Duration,
    pub(crate) slots: usize,
    /// Whether every other engine keeps its name when it is started anew.
    pub(crate) keep_names: bool,
    /// For the directories of tasks and for logs.
    pub(crate) directory: PathBuf,
    /// How likely it is at each fault point that a process kills itself.
    pub(crate) kill: f64,
    /// The same for stopping.
    pub(crate) stop: f64,
}

/// All engine processes, and what became of those that are gone.
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

/// What was done to the engines.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    /// By us, at whatever they were doing.
    pub(crate) killed_anywhere: usize,
    /// By themselves, by fault point.
    pub(crate) killed_at: BTreeMap<String, usize>,
    pub(crate) stopped: usize,
    pub(crate) drained: usize,
    /// Directories of tasks that killed processes left.
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
    /// Whether the next one has the same name.
    keeps_name: bool,
    fate: Fate,
}

#[derive(Debug, Clone, Copy)]
enum Fate {
    Running,
    /// It goes on at this time.
    Stopped(Instant),
    /// It was told to end.
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

    /// Starts engines until there are so many.
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
        fs::create_dir_all(&temp).expect("a directory for an engine");
        let log = directory.join(format!("{name}.{}.log", self.started));
        let output = File::create(&log).expect("a log for an engine");
        let seconds = |duration: Duration| duration.as_secs_f64().to_string();
        let arguments = [
            ("--redis", self.platform.cable_url()),
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
        let mut command = Command::new(std::env::current_exe().expect("the path of this program"));
        command.arg("engine");
        for (option, value) in arguments {
            command.arg(option).arg(value);
        }
        let child = command
            .stdin(Stdio::null())
            .stdout(output.try_clone().expect("a log for an engine"))
            .stderr(output)
            .spawn()
            .expect("an engine process");
        Process {
            name,
            child,
            temp,
            log,
            keeps_name,
            fate: Fate::Running,
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
            && !matches!(process.fate, Fate::Killed(_))
        {
            process.fate = Fate::Killed(Timestamp::now());
            process.signal(Signal::KILL);
        }
    }

    /// Tells an engine to drain and end.
    pub(crate) fn end(&mut self, index: usize) {
        if let Some(process) = self.engines.get_mut(index)
            && matches!(process.fate, Fate::Running)
        {
            process.fate = Fate::Ending(Instant::now() + PATIENCE);
            process.signal(Signal::TERM);
        }
    }

    /// Stops an engine for a while, unless that would leave none that runs.
    pub(crate) fn stop(&mut self, index: usize, pause: Duration) {
        let running = self
            .engines
            .iter()
            .filter(|process| matches!(process.fate, Fate::Running))
            .count();
        if let Some(process) = self.engines.get_mut(index)
            && matches!(process.fate, Fate::Running)
            && running > 1
        {
            process.fate = Fate::Stopped(Instant::now() + pause);
            process.signal(Signal::STOP);
            self.counts.stopped += 1;
        }
    }

    /// Lets stopped engines go on when it is time, and starts those anew that have ended.
    pub(crate) async fn look_after(&mut self) {
        self.mind(true).await;
    }

    /// Tells all engines to end, and waits until they have.
    pub(crate) async fn end_all(&mut self) {
        while !self.engines.is_empty() {
            for index in 0..self.engines.len() {
                self.end(index);
            }
            self.mind(false).await;
            sleep(Duration::from_millis(20)).await;
        }
    }

    async fn mind(&mut self, replace: bool) {
        let mut index = 0;
        while let Some(process) = self.engines.get_mut(index) {
            if let Some(status) = process.child.try_wait().expect("a process of ours") {
                let name = self.bury(index, status).await;
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
        match process.fate {
            Fate::Stopped(until) if until <= now => {
                process.fate = Fate::Running;
                process.signal(Signal::CONT);
            }
            Fate::Stopped(_) | Fate::Killed(_) => {}
            Fate::Running if is_stopped(process.child.id()) => {
                process.fate = Fate::Stopped(now + pause);
                self.counts.stopped += 1;
            }
            // It may stop itself while it drains, too.
            Fate::Ending(_) if is_stopped(process.child.id()) => {
                process.fate = Fate::Ending(now + PATIENCE);
                process.signal(Signal::CONT);
                self.counts.stopped += 1;
            }
            Fate::Ending(until) if until <= now => {
                let what = format!(
                    "engine {} was told to end and did not in {PATIENCE:?}",
                    process.name
                );
                self.orchestrator.violation(None, what);
                self.kill(index);
            }
            Fate::Running | Fate::Ending(_) => {}
        }
    }

    /// Notes how a process ended. Returns the name for the next one, if that is its own.
    async fn bury(&mut self, index: usize, status: ExitStatus) -> Option<String> {
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
        let killed = status.signal() == Some(Signal::KILL.as_raw());
        let mut since = now;
        match (killed, process.fate, killed_at) {
            (true, _, Some(point)) => *self.counts.killed_at.entry(point.to_owned()).or_default() += 1,
            (true, Fate::Killed(at), None) => {
                since = at;
                self.counts.killed_anywhere += 1;
            }
            // Before it listened to signals.
            (false, Fate::Ending(_), _) if status.signal() == Some(Signal::TERM.as_raw()) => {}
            (false, Fate::Ending(_), _) if status.success() => {
                self.counts.drained += 1;
                if left > 0 {
                    let what = format!(
                        "engine {} ended and left {left} directories of tasks",
                        process.name
                    );
                    self.orchestrator.violation(None, what);
                }
            }
            _ => {
                let log = process.log.display();
                let what = format!("engine {} ended by itself: {status}; see {log}", process.name);
                self.orchestrator.violation(None, what);
            }
        }
        if killed {
            self.counts.directories_left += left;
            let how = if keeps_name {
                How::KilledAndBack
            } else {
                How::Killed
            };
            // Redis may be away just now; then this one is not measured.
            let entries = pending(&self.platform, &instance).await.unwrap_or_default();
            self.orchestrator.freed(&entries, since, how);
        }
        for (task, at) in handed_back(&log) {
            self.orchestrator.handed_back(&task, at);
        }
        keeps_name.then(|| self.engines[index].name.clone())
    }
}

impl Process {
    fn instance(&self) -> String {
        format!("{ENGINE}-{}", self.name)
    }

    fn signal(&self, signal: Signal) {
        // It may have ended meanwhile.
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

/// The state of a process stands behind its name, which is in parentheses and may hold anything.
fn is_stopped(process: u32) -> bool {
    let stat =
        fs::read_to_string(Path::new("/proc").join(process.to_string()).join("stat")).unwrap_or_default();
    stat.rsplit_once(')')
        .is_some_and(|(_, rest)| rest.trim_start().starts_with('T'))
}

/// The tasks that a process handed back, and when, by its own log.
fn handed_back(log: &str) -> Vec<(String, Timestamp)> {
    let lines = log.lines().filter(|line| line.contains("task_handed_back"));
    lines
        .filter_map(|line| {
            let line: Value = line.parse().ok()?;
            let at = line["timestamp"].as_str()?.parse().ok()?;
            Some((line["task_id"].as_str()?.to_owned(), at))
        })
        .collect()
}

/// The points at which processes stopped themselves, by their logs.
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
