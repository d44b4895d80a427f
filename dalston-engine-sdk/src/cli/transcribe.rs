//! `transcribe FILE…`: processes files with a deployment's runner, on a platform inside the
//! process.

pub(super) mod format;
mod out_dir;
mod printer;
mod reorder;
mod session;
mod standard_input;
mod task_parts;
mod watch;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use console::Term;
use dalston_telemetry::cloud::Cloud;
use dalston_telemetry::metrics::Metrics;
use dalston_telemetry::settings::OTEL_ENABLED;
use dalston_telemetry::{Env, SpanCollector};

use self::format::Written;
use self::out_dir::OutDir;
use self::printer::{Printer, print_metrics, print_traces};
use self::session::{Session, files_per_call};
use self::standard_input::StandardInput;
use self::task_parts::TaskParts;
use self::watch::Watch;
use super::args::TranscribeArgs;
use super::failure::Failure;
use super::setup;
use super::terminal::{Style, remark};
use crate::config::RunnerConfig;
use crate::config::settings::DALSTON_DEFAULT_TASK_TIMEOUT_S;
use crate::engine::Engine;
use crate::local::LocalPlatform;

/// No other work waits behind local files, so a short time limit would only do harm.
const TASK_TIMEOUT: Duration = Duration::from_secs(7 * 24 * 3600);
/// How long an interrupted engine may take to notice it.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(2);
pub(super) fn transcribe<E: Engine>(
    engine: E,
    args: &TranscribeArgs,
    env: &Env,
) -> Result<ExitCode, Failure> {
    let info = engine.info();
    let parts = TaskParts::new(args, &info)?;
    // Without FILE, the first other file takes its place in the output.
    let files = match args.files.as_slice() {
        [] => {
            let others = args.inputs.iter().chain(&args.previous);
            others.take(1).map(|input| PathBuf::from(&input.value)).collect()
        }
        files => files.to_vec(),
    };
    let mut config = RunnerConfig::from_env(env)?;
    args.engine.apply(&mut config.engine);
    if !DALSTON_DEFAULT_TASK_TIMEOUT_S.is_set(env) {
        config.task_timeout = TASK_TIMEOUT;
    }
    config.drain_timeout = DRAIN_TIMEOUT;
    // The tasks come from this process, which queues them for the engine's own id.
    config.engine_id = None;

    let metrics = Metrics::new();
    let collector = args.trace.then(SpanCollector::new);
    let mut builder = setup::quiet_telemetry(&info, env).metrics(metrics.clone());
    // Only exported telemetry needs the identity of the machine. Without a metadata service the
    // detection would delay the first file.
    if OTEL_ENABLED.read_or_default(env)? {
        builder = builder.cloud(Cloud::detect(env)?);
    }
    if let Some(collector) = &collector {
        builder = builder.span_collector(collector.clone());
    }
    let telemetry = builder
        .install()
        .map_err(|error| Failure::Usage(error.to_string()))?;
    let runtime = setup::runtime(2)?;

    let standard_input = StandardInput::read(&args.files, &config.temp_root)?;
    let out = args
        .out
        .as_deref()
        .map(|root| OutDir::new(root, &files))
        .transpose()?;
    let written = args
        .output_dir
        .as_deref()
        .map(|root| Written::new(root, &args.output_format, &files))
        .transpose()?;
    let before = metrics.snapshot();
    let session = Session {
        platform: LocalPlatform::for_engine(&info),
        files: &files,
        standard_input: standard_input.as_ref(),
        parts: Arc::new(parts),
        out: out.map(Arc::new),
        written: written.map(Arc::new),
        watch: Watch::new(&files, files_per_call(&info, &config, files.len()) > 1),
        printer: Printer {
            json: args.json,
            format: args.printed_format()?,
            several: files.len() > 1,
            style: Style::of(&Term::stdout(), env),
            env,
        },
        traces: Vec::new(),
    };
    let ended = runtime.block_on(session.run(engine, config, telemetry.handle()));
    // A thread that is stuck in a native call must not block the exit.
    runtime.shutdown_background();
    // After a failure, dropping the telemetry exports the spans that explain it.
    let (code, traces) = ended?;
    if let Some(collector) = &collector {
        print_traces(collector, &traces, args.json, env)?;
    }
    if args.metrics {
        print_metrics(&before, &metrics.snapshot(), args.json)?;
    }
    if let Err(error) = telemetry.shutdown_blocking() {
        // The results are complete, so a lost trace is only a warning.
        remark(&error.to_string(), env);
    }
    Ok(ExitCode::from(code))
}
