//! The engine processes: starts, kills, suspends and resumes them, and replaces ended ones.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::sync::Arc;
use std::time::Duration;

use dalston_engine_sdk::protocol::{Timestamp, keys};
use redis::RedisResult;
use rustix::process::Signal;
use tokio::time::{Instant, sleep};

use crate::broken::{BrokenWorker, Defect};
use crate::engine::ENGINES;
use crate::measures::Cause;
use crate::orchestrator::Orchestrator;
use crate::platform::Platform;
use crate::process::{Clock, Conditions, END_TIMEOUT, KilledBy, Process, State, killed_by, released};
use crate::random::Random;

/// The configuration of all engines.
#[derive(Debug, Clone)]
pub(crate) struct Setup {
    pub(crate) lease: Duration,
    pub(crate) drain: Duration,
    /// Whether every second engine keeps its name when it is replaced.
    pub(crate) keep_names: bool,
    /// Whether the conditions of the engines differ.
    pub(crate) varied: bool,
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
    broken: Vec<BrokenWorker>,
    /// When each process was started.
    pub(crate) starts: Vec<Instant>,
    pub(crate) counts: Counts,
}

/// The faults of the engines.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    /// By the test, at random times.
    pub(crate) killed_anywhere: usize,
    /// By themselves, by fault point.
    pub(crate) killed_at: BTreeMap<String, usize>,
    /// By tasks that are made for it.
    pub(crate) killed_by_tasks: usize,
    pub(crate) stopped: usize,
    pub(crate) drained: usize,
    /// Processes whose standard output was a full pipe.
    pub(crate) full_outputs: usize,
    pub(crate) wrong_clocks: usize,
    pub(crate) several_slots: usize,
    /// How often a worker was broken.
    pub(crate) breakages: usize,
    /// Task directories that killed processes left behind.
    pub(crate) directories_left: usize,
}

impl Counts {
    /// How often a process lost its tasks, or may have.
    pub(crate) fn losses(&self) -> usize {
        self.kills() + self.stopped + self.drained
    }

    pub(crate) fn kills(&self) -> usize {
        self.killed_anywhere + self.killed_by_tasks + self.killed_at.values().sum::<usize>()
    }
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
            broken: Vec::new(),
            starts: Vec::new(),
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
            let process = self.start(None, self.engines.len(), keeps_name);
            self.engines.push(process);
        }
    }

    fn start(&mut self, name: Option<String>, index: usize, keeps_name: bool) -> Process {
        let name = name.unwrap_or_else(|| format!("e{}", self.starts.len() + 1));
        let (engine, conditions) = match self.setup.varied {
            // Two thirds of the engines have the first id.
            true => (
                ENGINES[usize::from(index / 2 % 3 == 1)],
                Conditions::draw(&mut self.random),
            ),
            false => (ENGINES[0], Conditions::good()),
        };
        self.counts.full_outputs += usize::from(conditions.full_output);
        self.counts.wrong_clocks += usize::from(conditions.clock != Clock::Right);
        self.counts.several_slots += usize::from(conditions.slots > 1);
        let faults = (self.setup.kill, self.setup.stop);
        self.start_with(name, engine, conditions, keeps_name, faults)
    }

    /// Starts a worker with each defect that this machine allows. They are not killed and not
    /// counted.
    pub(crate) fn start_broken(&mut self) {
        for defect in Defect::available(&self.setup.directory) {
            let worker = self.broken_worker(defect);
            self.broken.push(worker);
        }
    }

    fn broken_worker(&mut self, defect: Defect) -> BrokenWorker {
        let conditions = Conditions {
            defect: Some(defect),
            ..Conditions::good()
        };
        let name = format!("broken{}", self.broken.len());
        let process = self.start_with(name, ENGINES[0], conditions, true, (0.0, 0.0));
        BrokenWorker::new(process, defect)
    }

    fn start_with(
        &mut self,
        name: String,
        engine: &'static str,
        conditions: Conditions,
        keeps_name: bool,
        (kill, stop): (f64, f64),
    ) -> Process {
        self.starts.push(Instant::now());
        let number = self.starts.len();
        let directory = &self.setup.directory;
        let temp = directory.join("temp").join(number.to_string());
        fs::create_dir_all(&temp).expect("the directory of an engine is created");
        let log = directory.join(format!("{name}.{number}.log"));
        // Others would remove a model that it can't lock.
        let models = match conditions.defect {
            Some(Defect::NoLocks) => "models-without-locks",
            _ => "models",
        };
        let seconds = |duration: Duration| duration.as_secs_f64().to_string();
        let options = [
            ("--redis", self.platform.proxy_url()),
            ("--s3", self.platform.s3.url()),
            ("--lease", seconds(self.setup.lease)),
            ("--drain", seconds(self.setup.drain)),
            ("--models", directory.join(models).display().to_string()),
            ("--seed", self.random.number().to_string()),
            ("--kill", kill.to_string()),
            ("--stop", stop.to_string()),
        ];
        Process::start(name, engine, &options, temp, log, conditions, keeps_name)
    }

    /// The port of the HTTP server of an engine.
    pub(crate) fn http_port(&mut self, index: usize) -> Option<u16> {
        let process = self.engines.get_mut(index)?;
        matches!(process.state, State::Running | State::Ending(_))
            .then(|| process.http_port())
            .flatten()
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

    /// Suspends an engine for this time, unless it is the last one of its id that runs.
    pub(crate) fn stop(&mut self, index: usize, pause: Duration) {
        let engine = self.engines.get(index).map(|process| process.engine);
        let runs =
            |process: &&Process| matches!(process.state, State::Running) && Some(process.engine) == engine;
        let running = self.engines.iter().filter(runs).count();
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
        for process in &mut self.engines {
            process.step_clock(&mut self.random);
        }
        for index in 0..self.broken.len() {
            if self.broken[index].act(&mut self.random, &self.orchestrator) {
                self.counts.breakages += self.broken[index].breakages;
                self.broken[index] = self.broken_worker(self.broken[index].defect);
            }
        }
        self.check_processes(true).await;
    }

    /// Ends all engines and waits for them.
    pub(crate) async fn end_all(&mut self) {
        for broken in std::mem::take(&mut self.broken) {
            self.counts.breakages += broken.breakages;
            broken.end(&self.orchestrator).await;
        }
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
                    self.engines[index] = self.start(name, index, keeps_name);
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
            State::Running if process.is_stopped() => {
                process.state = State::Stopped(now + pause);
                self.counts.stopped += 1;
            }
            // It may also suspend itself while it drains.
            State::Ending(_) if process.is_stopped() => {
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
        let log = process.read_log();
        let left = fs::read_dir(&process.temp).map_or(0, Iterator::count);
        let instance = process.instance();
        let is_killed = status.signal() == Some(Signal::KILL.as_raw());
        let mut since = now;
        match (is_killed, process.state, killed_by(&log)) {
            (true, _, Some(KilledBy::Point(point))) => {
                *self.counts.killed_at.entry(point).or_default() += 1;
            }
            (true, _, Some(KilledBy::Task)) => self.counts.killed_by_tasks += 1,
            (true, State::Killed(at), None) => {
                since = at;
                self.counts.killed_anywhere += 1;
            }
            // It had not installed its signal handler yet.
            (false, State::Ending(_), _) if status.signal() == Some(Signal::TERM.as_raw()) => {}
            // The kill may come after its end.
            (false, State::Ending(_) | State::Killed(_), _) if status.success() => {
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
            let tasks = pending_tasks(&self.platform, process.engine, &instance)
                .await
                .unwrap_or_default();
            self.orchestrator.freed(tasks, since, cause);
        }
        // The times in the log are by the clock of the process.
        if process.conditions.clock == Clock::Right {
            for (task, at) in released(&log) {
                self.orchestrator.released(&task, at);
            }
        }
        keeps_name.then(|| self.engines[index].name.clone())
    }
}

/// The tasks that an instance holds.
async fn pending_tasks(platform: &Platform, engine: &str, instance: &str) -> RedisResult<Vec<String>> {
    let stream = keys::task_stream(engine);
    let words = ["XPENDING", &stream, keys::TASK_GROUP, "-", "+", "1000", instance];
    let rows: Vec<(String, String, u64, u64)> = platform.try_ask(&words).await?;
    let mut tasks = Vec::new();
    for (id, ..) in rows {
        let entries: Vec<(String, BTreeMap<String, String>)> =
            platform.try_ask(&["XRANGE", &stream, &id, &id]).await?;
        let fields = entries.into_iter().next().map(|(_, fields)| fields);
        tasks.extend(fields.and_then(|mut fields| fields.remove("task_id")));
    }
    Ok(tasks)
}
