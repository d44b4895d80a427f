//! An engine process: a real worker whose engine sleeps instead of computing. It may kill or
//! suspend itself at fault points.

use std::fs;
use std::path::PathBuf;
use std::process::{self, ExitCode};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use clap::Args;
use dalston_engine_sdk::fault::{self, Point};
use dalston_engine_sdk::{
    Batching, DeploymentConfig, Engine, EngineInfo, LoadContext, ModelId, OutputFile, RunnerConfig, Stage,
    TaskContext, TaskError, TaskRequest, Transcript, worker,
};
use dalston_telemetry::{Env, Telemetry};
use rustix::process::{Signal, getpid, kill_process, set_parent_process_death_signal};
use serde_json::{Value, json};
use testbed::TestS3;
use tokio::signal::unix::{SignalKind, signal};

use crate::random::Random;

/// The engine ids, which are also the names of the queues.
pub(crate) const ENGINES: [&str; 2] = ["chaos", "chaos-b"];
/// The program's own engine id.
const ENGINE: &str = ENGINES[0];
/// The stage of all engines. Only this one has requests over HTTP.
pub(crate) const STAGE: &str = "transcribe";
/// The stage of all tasks. The answers of this one are not checked against a schema.
pub(crate) const TASK_STAGE: &str = "chaos";
/// The number of starts of a task whose workers die before it fails: the default of the SDK.
pub(crate) const MAX_DELIVERIES: u32 = 3;
/// The log text before the name of the fault point at which the process killed itself.
pub(crate) const KILLED_AT: &str = "chaos: killed at ";
/// The log text before the name of the fault point at which the process suspended itself.
pub(crate) const STOPPED_AT: &str = "chaos: stopped at ";

/// The log line of a process that a task kills.
pub(crate) const KILLED_BY_TASK: &str = "chaos: killed by a task";

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
    /// The engine id.
    #[arg(long)]
    pub(crate) engine: String,
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
    /// The cache of models.
    #[arg(long)]
    pub(crate) models: PathBuf,
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
        ("DALSTON_ENGINE_ID", arguments.engine.clone()),
        ("DALSTON_MAX_LOADED_MODELS", MAX_LOADED_MODELS.to_string()),
        ("DALSTON_DEFAULT_MODEL", model_id(0)),
        ("DALSTON_MODEL_TTL_SECONDS", "2".to_owned()),
        ("DALSTON_MODEL_CACHE_DIR", arguments.models.display().to_string()),
        ("DALSTON_MODEL_CACHE_MAX_GB", MODEL_CACHE_GIB.to_string()),
        ("DALSTON_MODEL_CACHE_SCAN_INTERVAL", "1".to_owned()),
        ("DALSTON_WORKER_ID", arguments.name.clone()),
        ("DALSTON_DRAIN_TIMEOUT_SECONDS", arguments.drain.to_string()),
        ("DALSTON_SLOTS", arguments.slots.to_string()),
        ("TMPDIR", arguments.temp.display().to_string()),
        ("DALSTON_LOG_FORMAT", "json".to_owned()),
    ]);
    let config = RunnerConfig::from_env(&env).expect("the variables are valid");
    let mut deployment = DeploymentConfig::from_env(&env).expect("the variables are valid");
    deployment.lease = Duration::from_secs_f64(arguments.lease);
    let telemetry = Telemetry::builder("chaos").env(env).install().expect("telemetry");
    // As the command `run` of an engine.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .expect("a runtime");
    let ended = runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate()).expect("signals");
        let shutdown = async move {
            terminate.recv().await;
        };
        let engine = ChaosEngine {
            takes_batches: arguments.engine == ENGINES[1],
        };
        let worker = worker::run(engine, config, deployment, telemetry.handle(), shutdown);
        // On the runtime's thread; this one only waits.
        tokio::spawn(worker).await.expect("the worker does not panic")
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
struct ChaosEngine {
    takes_batches: bool,
}

impl Engine for ChaosEngine {
    type Model = String;
    type Output = Value;

    fn info(&self) -> EngineInfo {
        let info = EngineInfo::new(ENGINE, "1.0.0").stage(Stage::Transcribe);
        match self.takes_batches {
            true => info.batching(Batching::up_to(BATCH)),
            false => info,
        }
    }

    fn batch_key(&self, task: &TaskRequest) -> Option<String> {
        // A request over HTTP has another stage.
        Some(task.stage().to_string())
    }

    fn load(&self, model: &ModelId, cx: &LoadContext) -> Result<String, TaskError> {
        let weights = fs::read(cx.model_dir(model)?.join(WEIGHTS))?;
        if weights != weights_of(model.as_str()) {
            return Err(TaskError::permanent("damaged", "the weights are damaged"));
        }
        Ok(model.to_string())
    }

    fn process(&self, model: &mut String, task: &TaskRequest, cx: &TaskContext) -> Result<Value, TaskError> {
        let number = |name: &str| task.config().get(name).and_then(Value::as_u64).unwrap_or(0);
        if let Some(audio) = task.input(DIRECT_INPUT) {
            // A request over HTTP.
            let echo = Transcript::new(fs::read_to_string(audio.path())?, []);
            return Ok(serde_json::to_value(echo)?);
        }
        let input = task
            .input("text")
            .ok_or_else(|| TaskError::permanent("damaged", "the input is missing"))?;
        let text = fs::read_to_string(input.path())?;
        if text != input_of(&cx.info().task_id, number("length")) {
            return Err(TaskError::permanent("damaged", "the input is damaged"));
        }
        let end = Instant::now() + Duration::from_millis(number("takes_ms"));
        // A task that is late must not end by itself, even if its process was suspended meanwhile.
        while Instant::now() < end || number("late") > 0 {
            cx.check_cancelled()?;
            thread::sleep(Duration::from_millis(5));
        }
        if number("kills") > 0 {
            eprintln!("{KILLED_BY_TASK}");
            let _ = kill_process(getpid(), Signal::KILL);
        }
        if number("fails") > 0 {
            return Err(TaskError::permanent("intended", FAILURE));
        }
        if number("panics") > 0 {
            panic!("{FAILURE}");
        }
        let info = cx.info();
        // Content and length of a file identify the attempt that wrote it. Neither instance nor
        // attempt does: a process may get the name of its predecessor, and a task that is queued
        // again begins with the first attempt.
        let call = CALLS.fetch_add(1, Ordering::Relaxed);
        let by = format!("{} {}.{call}", info.instance, process::id());
        let differs = process::id().wrapping_mul(31).wrapping_add(call * 17) % 900;
        let filler = 100 + (differs as usize) + number("filler") as usize;
        for name in 0..number("artifacts") {
            let path = cx.temp_dir().join(format!("{name}.json"));
            let mut content = json!({"task_id": info.task_id, "by": by})
                .to_string()
                .into_bytes();
            content.push(b'\n');
            content.resize(content.len() + filler, FILLER);
            fs::write(&path, content)?;
            let file = OutputFile::new(format!("part{name}"), "text", path).media_type("application/json");
            cx.add_output_file(file)?;
        }
        Ok(json!({"task_id": info.task_id, "by": by, "model": model}))
    }
}

/// The tasks that the second engine takes at once.
pub(crate) const BATCH: usize = 3;
/// The number of models that an inference thread keeps. Tasks name more.
const MAX_LOADED_MODELS: usize = 2;
pub(crate) const MODELS: usize = 4;
/// The only file of a model.
pub(crate) const WEIGHTS: &str = "weights.bin";
const MODEL_BYTES: usize = 256 << 10;
/// Two models and a half. All engines share the cache on the disk.
const MODEL_CACHE_GIB: f64 = 2.5 * MODEL_BYTES as f64 / (1_u64 << 30) as f64;

pub(crate) fn model_id(number: usize) -> String {
    format!("model-{number}")
}

pub(crate) fn weights_of(model: &str) -> Vec<u8> {
    model.bytes().cycle().take(MODEL_BYTES).collect()
}

/// The slot of the input of a request over HTTP.
const DIRECT_INPUT: &str = "audio";

/// The number of tasks that this process has processed.
static CALLS: AtomicU32 = AtomicU32::new(0);

/// The byte that fills the other lines of an output file.
pub(crate) const FILLER: u8 = b'x';

/// The error of a task whose configuration demands a failure.
pub(crate) const FAILURE: &str = "this task fails by its configuration";

/// The content of a task's input.
pub(crate) fn input_of(task_id: &str, length: u64) -> String {
    format!("{task_id}\n").repeat(length as usize)
}
