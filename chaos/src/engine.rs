//! An engine process: a real worker whose engine sleeps instead of computing. It may kill or
//! suspend itself at fault points.

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use clap::Args;
use dalston_engine_sdk::fault::{self, Point};
use dalston_engine_sdk::{
    DeploymentConfig, Engine, EngineInfo, LoadContext, ModelId, OutputFile, RunnerConfig, Stage, TaskContext,
    TaskError, TaskRequest, worker,
};
use dalston_telemetry::{Env, Telemetry};
use rustix::process::{Signal, getpid, kill_process, set_parent_process_death_signal};
use serde_json::{Value, json};
use testbed::TestS3;
use tokio::signal::unix::{SignalKind, signal};

use crate::random::Random;

/// The engine id, which is also the name of the queue.
pub(crate) const ENGINE: &str = "chaos";
/// The largest number of deliveries of a task. A storm causes many that are not the fault of the
/// task.
const MAX_DELIVERIES: &str = "100000";
/// The log text before the name of the fault point at which the process killed itself.
pub(crate) const KILLED_AT: &str = "chaos: killed at ";
/// The log text before the name of the fault point at which the process suspended itself.
pub(crate) const STOPPED_AT: &str = "chaos: stopped at ";

/// The arguments of an engine process.
#[derive(Debug, Clone, Args)]
pub(crate) struct Arguments {
    #[arg(long)]
    pub(crate) redis: String,
    #[arg(long)]
    pub(crate) s3: String,
    /// The end of its instance name.
    #[arg(long)]
    pub(crate) name: String,
    #[arg(long)]
    pub(crate) lease: f64,
    /// The drain time-out in seconds.
    #[arg(long)]
    pub(crate) drain: f64,
    #[arg(long)]
    pub(crate) slots: usize,
    /// The parent directory of the directories of its tasks.
    #[arg(long)]
    pub(crate) temp: PathBuf,
    #[arg(long)]
    pub(crate) seed: u64,
    /// The probability that it kills itself at a fault point.
    #[arg(long)]
    pub(crate) kill: f64,
    /// The probability that it suspends itself there.
    #[arg(long)]
    pub(crate) stop: f64,
}

/// Runs the worker until `SIGTERM`.
pub(crate) fn run(arguments: &Arguments) -> ExitCode {
    // The engines end with the test.
    let _ = set_parent_process_death_signal(Some(Signal::KILL));
    install_faults(arguments);
    let env = Env::from_pairs([
        ("REDIS_URL", arguments.redis.clone()),
        ("DALSTON_S3_ENDPOINT_URL", arguments.s3.clone()),
        ("AWS_ACCESS_KEY_ID", TestS3::ACCESS_KEY_ID.to_owned()),
        ("AWS_SECRET_ACCESS_KEY", TestS3::SECRET_ACCESS_KEY.to_owned()),
        ("DALSTON_METRICS_PORT", "0".to_owned()),
        ("DALSTON_WORKER_ID", arguments.name.clone()),
        ("DALSTON_DRAIN_TIMEOUT_SECONDS", arguments.drain.to_string()),
        ("DALSTON_SLOTS", arguments.slots.to_string()),
        ("DALSTON_MAX_DELIVERIES", MAX_DELIVERIES.to_owned()),
        ("TMPDIR", arguments.temp.display().to_string()),
        ("DALSTON_LOG_FORMAT", "json".to_owned()),
    ]);
    let config = RunnerConfig::from_env(&env).expect("the variables are valid");
    let mut deployment = DeploymentConfig::from_env(&env).expect("the variables are valid");
    deployment.lease = Duration::from_secs_f64(arguments.lease);
    let telemetry = Telemetry::builder("chaos").env(env).install().expect("telemetry");
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime");
    let ended = runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate()).expect("signals");
        let shutdown = async move {
            terminate.recv().await;
        };
        worker::run(ChaosEngine, config, deployment, telemetry.handle(), shutdown).await
    });
    runtime.shutdown_background();
    let _ = telemetry.shutdown_blocking();
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("chaos: the worker failed: {error}");
            ExitCode::FAILURE
        }
    }
}

fn install_faults(arguments: &Arguments) {
    let random = Mutex::new(Random::new(arguments.seed));
    let (kill, stop) = (arguments.kill, arguments.stop);
    if kill + stop <= 0.0 {
        return;
    }
    fault::install(move |point| {
        // A task rarely passes these points.
        let weight = match point {
            Point::BeforeRelease | Point::AfterRelease => 40.0,
            Point::TakenOver => 10.0,
            _ => 1.0,
        };
        let drawn = random.lock().map_or(1.0, |mut random| random.fraction()) / weight;
        let (text, signal) = if drawn < kill {
            (KILLED_AT, Signal::KILL)
        } else if drawn < kill + stop {
            (STOPPED_AT, Signal::STOP)
        } else {
            return;
        };
        eprintln!("{text}{point}");
        let _ = kill_process(getpid(), signal);
    });
}

/// An engine that does what the configuration of a task says.
struct ChaosEngine;

impl Engine for ChaosEngine {
    type Model = ();
    type Output = Value;

    fn info(&self) -> EngineInfo {
        EngineInfo::new(ENGINE, "1.0.0").stage(Stage::other(ENGINE).expect("a plain name"))
    }

    fn load(&self, _: &ModelId, _: &LoadContext) -> Result<(), TaskError> {
        Ok(())
    }

    fn process(&self, (): &mut (), task: &TaskRequest, cx: &TaskContext) -> Result<Value, TaskError> {
        let number = |name: &str| task.config().get(name).and_then(Value::as_u64).unwrap_or(0);
        let input = task
            .input("text")
            .ok_or_else(|| TaskError::permanent("damaged", "the input is missing"))?;
        let text = fs::read_to_string(input.path())?;
        if text != input_of(&cx.info().task_id, number("length")) {
            return Err(TaskError::permanent("damaged", "the input is damaged"));
        }
        let end = Instant::now() + Duration::from_millis(number("takes_ms"));
        while Instant::now() < end {
            cx.check_cancelled()?;
            thread::sleep(Duration::from_millis(5).min(end.saturating_duration_since(Instant::now())));
        }
        if number("fails") > 0 {
            return Err(TaskError::permanent("intended", FAILURE));
        }
        if number("panics") > 0 {
            panic!("{FAILURE}");
        }
        let info = cx.info();
        // Content and length of a file identify the attempt that wrote it.
        let by = format!("{}/{}", info.instance, info.attempt);
        for name in 0..number("artifacts") {
            let path = cx.temp_dir().join(format!("{name}.json"));
            let filler = "x".repeat(100 + info.attempt as usize);
            fs::write(
                &path,
                json!({"task_id": info.task_id, "by": by, "filler": filler}).to_string(),
            )?;
            let file = OutputFile::new(format!("part{name}"), "text", path).media_type("application/json");
            cx.add_output_file(file)?;
        }
        Ok(json!({"task_id": info.task_id, "by": by}))
    }
}

/// The error of a task whose configuration demands a failure.
pub(crate) const FAILURE: &str = "this task fails by its configuration";

/// The content of a task's input.
pub(crate) fn input_of(task_id: &str, length: u64) -> String {
    format!("{task_id}\n").repeat(length as usize)
}
