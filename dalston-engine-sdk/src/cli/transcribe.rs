//! `transcribe FILE…`: files through the runner that works for a deployment, on a platform inside the process.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use console::Term;
use dalston_telemetry::cloud::Cloud;
use dalston_telemetry::metrics::{Metrics, MetricsSnapshot};
use dalston_telemetry::opentelemetry::trace::{Status, TraceContextExt, TraceId};
use dalston_telemetry::services::engine::spans::{attr, span};
use dalston_telemetry::tracing::{Instrument, Span, info_span};
use dalston_telemetry::{Env, EnvError, SpanCollector, TelemetryHandle, propagate};
use futures_util::{StreamExt, stream};
use serde_json::{Map, Value};
use tokio::sync::watch;
use tracing_opentelemetry::OpenTelemetrySpanExt;
use url::Url;

use super::args::TranscribeArgs;
use super::metrics;
use super::output::{self, Finished};
use super::progress::Progress;
use super::terminal::Style;
use super::{FAILED, Failure, complain, print, quiet_telemetry, remark, to_stderr};
use crate::config::RunnerConfig;
use crate::context::TaskContext;
use crate::engine::{Check, Engine, EngineInfo};
use crate::error::TaskError;
use crate::load::LoadContext;
use crate::local::{LocalOutcome, LocalPlatform, LocalTask};
use crate::model_id::ModelId;
use crate::runner::Runner;
use crate::task::{TaskInfo, TaskRequest};

/// Nobody's queue waits behind a person's own files, so a deadline would only do harm.
const TASK_TIMEOUT: Duration = Duration::from_secs(7 * 24 * 3600);
/// How long work that was interrupted may take to notice it.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(2);
/// What shells report for a process that ended by Ctrl-C or by `SIGTERM`.
const INTERRUPTED: u8 = 128 + 2;
#[cfg(unix)]
const TERMINATED: u8 = 128 + 15;

pub(super) fn transcribe<E: Engine>(
    engine: E,
    args: &TranscribeArgs,
    env: &Env,
) -> Result<ExitCode, Failure> {
    let info = engine.info();
    let usage = |error: EnvError| Failure::Usage(error.to_string());
    let mut config = RunnerConfig::from_env(env).map_err(usage)?;
    args.engine.apply(&mut config.options);
    if env.get("DALSTON_DEFAULT_TASK_TIMEOUT_S").is_none() {
        config.task_timeout = TASK_TIMEOUT;
    }
    config.drain_timeout = DRAIN_TIMEOUT;
    // Tasks come from this process alone, under the engine's own name.
    config.engine_id = None;

    let metrics = Metrics::new();
    let collector = args.trace.then(SpanCollector::new);
    let mut builder = quiet_telemetry(&info, env).metrics(metrics.clone());
    // Only what leaves the machine has to name it, and a question that nobody answers would hold up the first file.
    if env.flag("OTEL_ENABLED").map_err(usage)? == Some(true) {
        builder = builder.cloud(Cloud::detect(env).map_err(usage)?);
    }
    if let Some(collector) = &collector {
        builder = builder.span_collector(collector.clone());
    }
    let telemetry = builder
        .install()
        .map_err(|error| Failure::Usage(error.to_string()))?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("runner")
        .enable_all()
        .build()
        .map_err(|error| Failure::Failed(format!("starting the runtime: {error}")))?;

    let before = metrics.snapshot();
    let session = Session {
        platform: LocalPlatform::for_engine(&info),
        files: &args.files,
        config: args.config(),
        watch: Watch::new(&args.files),
        printer: Printer {
            json: args.json,
            several: args.files.len() > 1,
            style: Style::of(&Term::stdout(), env),
            env,
        },
        traces: Vec::new(),
    };
    let ended = runtime.block_on(session.run(engine, config, telemetry.handle()));
    // A thread that is stuck in a native call must not keep the process.
    runtime.shutdown_background();
    // On the way out spans that tell why it failed are sent in any case: telemetry is dropped here.
    let (code, traces) = ended?;
    if let Some(collector) = &collector {
        print_traces(collector, &traces, args.json, env)?;
    }
    if args.metrics {
        print_metrics(&before, &metrics.snapshot(), args.json)?;
    }
    if let Err(error) = telemetry.shutdown_blocking() {
        // The results are there; that nobody will see the trace is worth a line, not a failure.
        remark(&error.to_string(), env);
    }
    Ok(ExitCode::from(code))
}

/// The files of one command line, on their way through one runner.
struct Session<'a> {
    platform: LocalPlatform,
    files: &'a [PathBuf],
    config: Map<String, Value>,
    watch: Arc<Watch>,
    printer: Printer<'a>,
    traces: Vec<TraceId>,
}

/// How a file ended: with an answer, or with one line that says why not.
struct Ended {
    index: usize,
    trace_id: TraceId,
    result: Result<(Value, Duration), String>,
}

/// Why no more results are waited for.
enum Stopped {
    Done,
    /// By a signal that stands for this exit status.
    Interrupted(u8),
    Failed(Failure),
}

/// Puts results in the order of the command line.
#[derive(Default)]
struct InOrder {
    next: usize,
    early: BTreeMap<usize, Ended>,
}

impl InOrder {
    /// Takes a result, and gives those whose turn has come.
    fn push(&mut self, ended: Ended) -> Vec<Ended> {
        self.early.insert(ended.index, ended);
        let mut ready = Vec::new();
        while let Some(ended) = self.early.remove(&self.next) {
            self.next += 1;
            ready.push(ended);
        }
        ready
    }

    /// Gives what is left when no more will come: work that is done is not thrown away.
    fn rest(&mut self) -> Vec<Ended> {
        std::mem::take(&mut self.early).into_values().collect()
    }
}

impl Session<'_> {
    async fn run<E: Engine>(
        mut self,
        engine: E,
        config: RunnerConfig,
        telemetry: TelemetryHandle,
    ) -> Result<(u8, Vec<TraceId>), Failure> {
        let slots = config.slots;
        let watched = Watched {
            engine,
            watch: Arc::clone(&self.watch),
        };
        let watch = Arc::clone(&self.watch);
        let runner = Runner::builder(watched)
            .config(config)
            .broker(self.platform.broker().clone())
            .store(self.platform.store().clone())
            .telemetry(telemetry)
            .on_progress(move |task: &TaskInfo, fraction| watch.progress(&task.task_id, fraction))
            .build()
            .map_err(|error| Failure::Failed(error.to_string()))?;
        let (stop, mut stopped) = watch::channel(false);
        let stopped = async move {
            // An error means that the sender is gone, which is as good a reason to stop.
            let _ = stopped.wait_for(|stopped| *stopped).await;
        };
        let mut running = tokio::spawn(runner.run_until(stopped));

        // One file more than there are threads: its input is fetched while the others are worked on.
        let ahead = slots + 1;
        let submissions: Vec<_> = (0..self.files.len()).map(|index| self.process(index)).collect();
        let mut results = stream::iter(submissions).buffer_unordered(ahead);
        // A file that is done frees its place at once, even while the result of a longer one before it is awaited.
        let mut in_order = InOrder::default();
        let mut code = 0;
        let mut interrupt = std::pin::pin!(interrupted());
        let outcome = loop {
            tokio::select! {
                biased;
                by = &mut interrupt => break Stopped::Interrupted(by),
                ended = results.next() => match ended {
                    None => break Stopped::Done,
                    Some(ended) => {
                        if let Err(failure) = self.print(in_order.push(ended), &mut code) {
                            break Stopped::Failed(failure);
                        }
                    }
                },
                // It has no reason to end before it is told to.
                ended = &mut running => {
                    let why = match ended {
                        Ok(Ok(())) => "the runner stopped by itself".to_owned(),
                        Ok(Err(error)) => error.to_string(),
                        Err(error) => error.to_string(),
                    };
                    self.print(in_order.rest(), &mut code)?;
                    return Err(Failure::Failed(why));
                }
            }
        };
        drop(results);
        self.watch.progress.hide();
        let _ = stop.send(true);
        tokio::select! {
            _ = &mut running => {}
            _ = interrupted() => {}
        }
        match outcome {
            Stopped::Done => Ok((code, self.traces)),
            Stopped::Failed(failure) => Err(failure),
            Stopped::Interrupted(by) => {
                self.print(in_order.rest(), &mut code)?;
                complain("interrupted", self.printer.env);
                Ok((by, self.traces))
            }
        }
    }

    fn print(&mut self, results: Vec<Ended>, code: &mut u8) -> Result<(), Failure> {
        for ended in results {
            self.watch.progress.hide();
            self.traces.push(ended.trace_id);
            if ended.result.is_err() {
                *code = FAILED;
            }
            self.printer.print(self.files, &ended)?;
        }
        Ok(())
    }

    /// One file, from the queue to its answer.
    fn process(&self, index: usize) -> impl Future<Output = Ended> + use<> {
        let file = self.files.get(index).cloned().unwrap_or_default();
        let (platform, watch, config) = (
            self.platform.clone(),
            Arc::clone(&self.watch),
            self.config.clone(),
        );
        async move {
            watch.turn_of(index).await;
            let span = info_span!(span::LOCAL_TASK, file.path = %file.display());
            let trace_id = trace_id(&span);
            let work = async {
                readable(&file)?;
                let task = LocalTask::for_file(&file)
                    .configs(config)
                    .parent(propagate::current_context());
                let task_id = platform.submit(task).await.map_err(|error| error.to_string())?;
                watch.follow(&task_id, index);
                match platform
                    .outcome(&task_id)
                    .await
                    .map_err(|error| error.to_string())?
                {
                    LocalOutcome::Completed(response) => Ok((response.data, watch.processing_time(&task_id))),
                    LocalOutcome::Failed { error, .. } => Err(error),
                }
            };
            let result = work.instrument(span.clone()).await;
            if let Err(error) = &result {
                span.set_status(Status::error(error.clone()));
            }
            watch.progress.done(index);
            watch.next_after(index);
            Ended {
                index,
                trace_id,
                result,
            }
        }
    }
}

fn trace_id(span: &Span) -> TraceId {
    span.in_scope(|| propagate::current_context().span().span_context().trace_id())
}

/// Finds out before anything else whether there is a file that can be read.
fn readable(file: &Path) -> Result<(), String> {
    // Not opened before it is known what it is: opening a pipe waits for its writer.
    let opened = std::fs::metadata(file).and_then(|metadata| match metadata.is_file() {
        true => File::open(file).map(|_| metadata),
        false => Ok(metadata),
    });
    match opened {
        Ok(metadata) if metadata.is_dir() => Err("is a directory, not a file".to_owned()),
        Ok(metadata) if !metadata.is_file() => Err("is not a regular file".to_owned()),
        Ok(_) => Ok(()),
        Err(error) => Err(match error.kind() {
            io::ErrorKind::NotFound => "there is no such file".to_owned(),
            io::ErrorKind::PermissionDenied => "you may not read it".to_owned(),
            _ => error.to_string(),
        }),
    }
}

/// Waits for Ctrl-C or the polite request to end, and gives the exit status that says so.
async fn interrupted() -> u8 {
    #[cfg(unix)]
    {
        use tokio::signal::unix::{SignalKind, signal};
        if let Ok(mut terminate) = signal(SignalKind::terminate()) {
            return tokio::select! {
                Ok(()) = tokio::signal::ctrl_c() => INTERRUPTED,
                _ = terminate.recv() => TERMINATED,
            };
        }
    }
    if tokio::signal::ctrl_c().await.is_err() {
        std::future::pending::<()>().await;
    }
    INTERRUPTED
}

/// Writes results where they belong.
struct Printer<'a> {
    json: bool,
    several: bool,
    style: Style,
    env: &'a Env,
}

impl Printer<'_> {
    fn print(&self, files: &[PathBuf], ended: &Ended) -> Result<(), Failure> {
        let file = files
            .get(ended.index)
            .map(PathBuf::as_path)
            .unwrap_or(Path::new(""));
        match &ended.result {
            Ok((data, processing)) => {
                let finished = Finished {
                    file,
                    data,
                    processing: *processing,
                };
                if self.json {
                    return print(&(output::json_line(&finished) + "\n"));
                }
                let mut text = String::new();
                if self.several {
                    text = format!("{}\n", self.style.strong(&file.display().to_string()));
                }
                text.push_str(&output::readable(&finished));
                if self.several {
                    text.push('\n');
                }
                print(&text)
            }
            Err(error) => {
                complain(&failure_line(file, error), self.env);
                Ok(())
            }
        }
    }
}

/// One line that names the file once, as the person named it.
fn failure_line(file: &Path, error: &str) -> String {
    let given = match file.display().to_string() {
        empty if empty.is_empty() => "\"\"".to_owned(),
        given => given,
    };
    let error = error.replace(['\n', '\r'], " ");
    // The runner knows the file by its locator, in which `..` has been resolved.
    let known = std::path::absolute(file).ok().and_then(|path| {
        Url::parse(Url::from_file_path(path).ok()?.as_str())
            .ok()?
            .to_file_path()
            .ok()
    });
    // Names are as short as `a` or `file`, so what is looked for is the whole path.
    match known.map(|path| path.display().to_string()) {
        Some(known) if error.contains(&known) => error.replace(&known, &given),
        _ => format!("{given}: {error}"),
    }
}

fn print_traces(collector: &SpanCollector, traces: &[TraceId], json: bool, env: &Env) -> Result<(), Failure> {
    // Lines of JSON are for a program, which would not know what to do with a picture.
    let term = if json { Term::stderr() } else { Term::stdout() };
    let shown = [
        "file.path",
        attr::MODEL,
        attr::LANGUAGE,
        attr::AUDIO_DURATION_SECONDS,
        attr::REALTIME_FACTOR,
    ];
    let waterfall = Style::of(&term, env).waterfall().attributes(shown);
    for trace_id in traces {
        let picture = waterfall.render(&collector.take_trace(*trace_id));
        write(&format!("{picture}\n"), json)?;
    }
    if collector.dropped() > 0 {
        remark(
            &format!("the traces lack the {} oldest spans", collector.dropped()),
            env,
        );
    }
    Ok(())
}

fn print_metrics(before: &MetricsSnapshot, after: &MetricsSnapshot, json: bool) -> Result<(), Failure> {
    write(
        &format!("metrics that moved\n{}", metrics::table(&after.diff(before))),
        json,
    )
}

fn write(text: &str, stderr: bool) -> Result<(), Failure> {
    if stderr {
        to_stderr(text);
        return Ok(());
    }
    print(text)
}

/// What the tasks in flight are doing.
#[derive(Debug)]
struct Watch {
    progress: Progress,
    /// How many files have reached the engine, or an end before it. Always the first ones.
    begun: watch::Sender<usize>,
    files: Vec<PathBuf>,
    tasks: Mutex<HashMap<String, Followed>>,
}

#[derive(Debug, Default)]
struct Followed {
    file: Option<usize>,
    begun: bool,
    processing: Duration,
}

impl Watch {
    fn new(files: &[PathBuf]) -> Arc<Self> {
        let progress = Progress::new(Term::stderr().is_term());
        Arc::new(Self {
            progress,
            begun: watch::Sender::new(0),
            files: files.to_vec(),
            tasks: Mutex::default(),
        })
    }

    /// Waits until the file before this one has reached the engine.
    ///
    /// So the engine gets the files in their order, and the next one is fetched while it works on this one.
    async fn turn_of(&self, file: usize) {
        let mut begun = self.begun.subscribe();
        // The sender lives in `self`.
        let _ = begun.wait_for(|begun| *begun >= file).await;
    }

    fn next_after(&self, file: usize) {
        self.begun.send_if_modified(|begun| {
            let before = std::mem::replace(begun, (*begun).max(file + 1));
            before != *begun
        });
    }

    fn follow(&self, task_id: &str, file: usize) {
        let begun = self.with(task_id, |task| {
            task.file = Some(file);
            task.begun
        });
        if begun {
            self.next_after(file);
        }
    }

    fn begun(&self, task_id: &str) {
        let file = self.with(task_id, |task| {
            task.begun = true;
            task.file
        });
        if let Some(file) = file {
            self.next_after(file);
        }
    }

    fn progress(&self, task_id: &str, fraction: f32) {
        let file = self.with(task_id, |task| task.file);
        if let Some((index, file)) = file.and_then(|index| Some((index, self.files.get(index)?))) {
            self.progress.report(index, file, fraction);
        }
    }

    fn processed(&self, task_id: &str, time: Duration) {
        self.with(task_id, |task| task.processing = time);
    }

    fn processing_time(&self, task_id: &str) -> Duration {
        let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        tasks.remove(task_id).unwrap_or_default().processing
    }

    fn with<T>(&self, task_id: &str, change: impl FnOnce(&mut Followed) -> T) -> T {
        let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        change(tasks.entry(task_id.to_owned()).or_default())
    }
}

/// The engine, with a watch on how long it processes: loading its model is not a part of that.
struct Watched<E> {
    engine: E,
    watch: Arc<Watch>,
}

impl<E: Engine> Engine for Watched<E> {
    type Model = E::Model;
    type Output = E::Output;

    fn info(&self) -> EngineInfo {
        self.engine.info()
    }

    fn load(&self, model: &ModelId, cx: &LoadContext) -> Result<Self::Model, TaskError> {
        self.engine.load(model, cx)
    }

    fn process(
        &self,
        model: &mut Self::Model,
        task: &TaskRequest,
        cx: &TaskContext,
    ) -> Result<Self::Output, TaskError> {
        self.watch.begun(&cx.info().task_id);
        let began = Instant::now();
        let result = self.engine.process(model, task, cx);
        self.watch.processed(&cx.info().task_id, began.elapsed());
        result
    }

    fn check(&self, cx: &LoadContext) -> Vec<Check> {
        self.engine.check(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_names_the_file_once_and_as_it_was_given() {
        let file = Path::new("talks/one.wav");
        assert_eq!(failure_line(file, "is empty"), "talks/one.wav: is empty");
        let absolute = std::path::absolute(file).unwrap();
        assert_eq!(
            failure_line(file, &format!("decoding {}:\nno data chunk", absolute.display())),
            "decoding talks/one.wav: no data chunk"
        );
        // The locator has no way back in it.
        let above = Path::new("../talks/one.wav");
        let parent = std::env::current_dir()
            .unwrap()
            .parent()
            .unwrap()
            .join("talks/one.wav");
        assert_eq!(
            failure_line(above, &format!("{} is empty", parent.display())),
            "../talks/one.wav is empty"
        );
    }

    #[test]
    fn a_failure_names_the_file_even_if_its_words_happen_to_contain_the_name() {
        for (file, line) in [
            ("a", "a: is a directory, not a file"),
            ("file", "file: is a directory, not a file"),
            ("", "\"\": is a directory, not a file"),
        ] {
            assert_eq!(failure_line(Path::new(file), "is a directory, not a file"), line);
        }
    }

    #[test]
    fn results_wait_for_those_before_them() {
        let mut in_order = InOrder::default();
        let mut push = |index| {
            let ready = in_order.push(Ended {
                index,
                trace_id: TraceId::INVALID,
                result: Err(String::new()),
            });
            ready.iter().map(|ended| ended.index).collect::<Vec<_>>()
        };
        assert_eq!(
            [push(2), push(1), push(0), push(4), push(5)],
            [vec![], vec![], vec![0, 1, 2], vec![], vec![]]
        );
        let rest = in_order.rest();
        assert_eq!(rest.iter().map(|ended| ended.index).collect::<Vec<_>>(), [4, 5]);
    }

    /// Blocks on the file `long` until the last of the others has been processed.
    struct Patient {
        wait: Mutex<std::sync::mpsc::Receiver<()>>,
        tell: Mutex<std::sync::mpsc::Sender<()>>,
    }

    impl Engine for Patient {
        type Model = ();
        type Output = Value;

        fn info(&self) -> EngineInfo {
            EngineInfo::new("patient", "1.0.0").stage("wait".parse().unwrap())
        }

        fn load(&self, _: &ModelId, _: &LoadContext) -> Result<(), TaskError> {
            Ok(())
        }

        fn process(&self, _: &mut (), task: &TaskRequest, _: &TaskContext) -> Result<Value, TaskError> {
            match std::fs::read_to_string(task.require_input("input")?.path())?.as_str() {
                "long" => self
                    .wait
                    .lock()
                    .unwrap()
                    .recv_timeout(Duration::from_secs(20))
                    .map_err(|_| TaskError::permanent("alone", "nobody else was worked on"))?,
                "last" => self.tell.lock().unwrap().send(()).unwrap(),
                _ => {}
            }
            Ok(serde_json::json!({}))
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn no_thread_idles_behind_a_long_first_file() {
        let dir = tempfile::tempdir().unwrap();
        let files: Vec<_> = ["long", "", "", "", "", "last"]
            .iter()
            .enumerate()
            .map(|(index, text)| {
                let path = dir.path().join(index.to_string());
                std::fs::write(&path, text).unwrap();
                path
            })
            .collect();
        let (tell, wait) = std::sync::mpsc::channel();
        let engine = Patient {
            wait: Mutex::new(wait),
            tell: Mutex::new(tell),
        };
        let telemetry = dalston_telemetry::testing::TestTelemetry::new();
        let env = Env::default();
        let session = Session {
            platform: LocalPlatform::for_engine(&engine.info()),
            files: &files,
            config: Map::new(),
            watch: Watch::new(&files),
            printer: Printer {
                json: true,
                several: true,
                style: Style::of(&Term::stdout(), &env),
                env: &env,
            },
            traces: Vec::new(),
        };
        let config = RunnerConfig {
            slots: 2,
            ..RunnerConfig::default()
        };
        let (code, traces) = session.run(engine, config, telemetry.handle()).await.unwrap();
        assert_eq!((code, traces.len()), (0, files.len()));
    }

    #[test]
    fn what_cannot_be_read_is_said_before_anything_is_queued() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(readable(dir.path()), Err("is a directory, not a file".to_owned()));
        assert_eq!(
            readable(&dir.path().join("gone.wav")),
            Err("there is no such file".to_owned())
        );
    }
}
