//! The files of one command line: [`Session`].

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use dalston_telemetry::opentelemetry::trace::{Status, TraceContextExt, TraceId};
use dalston_telemetry::services::engine::spans::span;
use dalston_telemetry::tracing::{Instrument, Span, info_span};
use dalston_telemetry::{TelemetryHandle, propagate};
use futures_util::{StreamExt, stream};
use tokio::sync::oneshot;
use tracing_opentelemetry::OpenTelemetrySpanExt;

use super::format::Written;
use super::out_dir::OutDir;
use super::printer::{FileResult, Printer};
use super::reorder::ReorderBuffer;
use super::standard_input::{self, StandardInput};
use super::task_parts::TaskParts;
use super::watch::{Watch, WatchedEngine};
use crate::cli::failure::{FAILED, Failure};
use crate::cli::signals::{Received, Signals};
use crate::cli::terminal::complain;
use crate::config::RunnerConfig;
use crate::engine::{Engine, EngineInfo};
use crate::local::{LocalOutcome, LocalPlatform};
use crate::runner::Runner;
use crate::task::TaskInfo;

/// How long the engine waits for files that could share a call with the first one. All of them are
/// known, so this is the time to read them.
const BATCH_WAIT: Duration = Duration::from_millis(500);

/// How many of so many files the engine gets at once, for each of its threads. 1 if it takes no
/// batches.
pub(super) fn files_per_call(info: &EngineInfo, config: &RunnerConfig, files: usize) -> usize {
    let Some(limits) = &info.batching else {
        return 1;
    };
    let most = limits.max_tasks.min(config.max_batch.unwrap_or(usize::MAX));
    most.min(files.div_ceil(config.slots.max(1))).max(1)
}

/// The files of one command line, and the runner that processes them.
pub(super) struct Session<'a> {
    pub(super) platform: LocalPlatform,
    pub(super) files: &'a [PathBuf],
    /// The content of `-` in `files`.
    pub(super) standard_input: Option<&'a StandardInput>,
    pub(super) parts: Arc<TaskParts>,
    pub(super) out: Option<Arc<OutDir>>,
    pub(super) written: Option<Arc<Written>>,
    pub(super) watch: Arc<Watch>,
    pub(super) printer: Printer<'a>,
    /// The traces of the printed results.
    pub(super) traces: Vec<TraceId>,
}

/// A file that was processed, or failed.
struct Ended {
    index: usize,
    trace_id: TraceId,
    result: FileResult,
}

/// Why the session waits for no more results.
enum Stopped {
    Done,
    Interrupted(Received),
    Failed(Failure),
}

impl Session<'_> {
    /// Processes all files; returns the exit status and the traces of the printed results.
    pub(super) async fn run<E: Engine>(
        mut self,
        engine: E,
        mut config: RunnerConfig,
        telemetry: TelemetryHandle,
    ) -> Result<(u8, Vec<TraceId>), Failure> {
        let slots = config.slots;
        let at_once = files_per_call(&engine.info(), &config, self.files.len());
        // A call with as many files as there are does not wait for more.
        config.max_batch = Some(at_once);
        config.batch_wait.get_or_insert(BATCH_WAIT);
        let mut signals = Signals::new().map_err(Failure::of_signals)?;
        let watch = Arc::clone(&self.watch);
        let engine = WatchedEngine {
            engine,
            watch: Arc::clone(&self.watch),
        };
        let runner = Runner::builder(engine)
            .config(config)
            .broker(self.platform.broker().clone())
            .store(self.platform.store().clone())
            .telemetry(telemetry)
            .on_progress(move |task: &TaskInfo, fraction| watch.report(&task.task_id, fraction))
            .build()
            .map_err(|error| Failure::Failed(error.to_string()))?;
        let (stop, stopped) = oneshot::channel::<()>();
        let stopped = async {
            let _ = stopped.await;
        };
        let mut running = tokio::spawn(runner.run_until(stopped));

        // More files than are processed: the input of the next ones is fetched meanwhile.
        let ahead = at_once * (slots + 1);
        let submissions: Vec<_> = (0..self.files.len()).map(|index| self.process(index)).collect();
        let mut results = stream::iter(submissions).buffer_unordered(ahead);
        // The next file is submitted when any file ends, even if the result waits for an earlier
        // one.
        let mut in_order = ReorderBuffer::new();
        let mut code = 0;
        let outcome = loop {
            tokio::select! {
                biased;
                signal = signals.next() => break Stopped::Interrupted(signal),
                ended = results.next() => match ended {
                    None => break Stopped::Done,
                    Some(ended) => {
                        if let Err(failure) = self.print(in_order.push(ended.index, ended), &mut code) {
                            break Stopped::Failed(failure);
                        }
                    }
                },
                // The runner should not end before it is stopped.
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
        drop(stop);
        tokio::select! {
            _ = &mut running => {}
            _ = signals.next() => {}
        }
        match outcome {
            Stopped::Done => Ok((code, self.traces)),
            Stopped::Failed(failure) => Err(failure),
            Stopped::Interrupted(signal) => {
                tracing::info!(signal = signal.name, "shutdown_signal_received");
                self.print(in_order.rest(), &mut code)?;
                complain("interrupted", self.printer.env);
                Ok((signal.exit_status(), self.traces))
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
            let file = self
                .files
                .get(ended.index)
                .map_or(Path::new(""), PathBuf::as_path);
            self.printer.print(file, &ended.result)?;
        }
        Ok(())
    }

    /// Processes one file.
    fn process(&self, index: usize) -> impl Future<Output = Ended> + use<> {
        let file = self.files.get(index).cloned().unwrap_or_default();
        let content = match self.standard_input {
            Some(input) if standard_input::is_named_by(&file) => input.path().to_owned(),
            _ => file.clone(),
        };
        let (platform, watch) = (self.platform.clone(), Arc::clone(&self.watch));
        let (parts, out, written) = (Arc::clone(&self.parts), self.out.clone(), self.written.clone());
        async move {
            watch.until_previous_begun(index).await;
            let span = info_span!(span::LOCAL_TASK, file.path = %file.display());
            let trace_id = trace_id(&span);
            let work = async {
                check_readable(&content)?;
                let task = parts.task(&content).parent(propagate::current_context());
                let task_id = platform.submit(task).await.map_err(|error| error.to_string())?;
                watch.follow(&task_id, index);
                match platform
                    .outcome(&task_id)
                    .await
                    .map_err(|error| error.to_string())?
                {
                    LocalOutcome::Completed(response) => {
                        if let Some(out) = out {
                            out.write(&file, &response, platform.store()).await?;
                        }
                        if let Some(written) = written {
                            written.write(&file, &response.data)?;
                        }
                        Ok((response.data, watch.processing_time(&task_id)))
                    }
                    LocalOutcome::Failed { error, .. } => Err(error),
                }
            };
            let result = work.instrument(span.clone()).await;
            if let Err(error) = &result {
                span.set_status(Status::error(error.clone()));
            }
            watch.progress.done(index);
            watch.release_next(index);
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

/// Checks that there is a regular file that can be read, before a task is queued for it.
pub(super) fn check_readable(file: &Path) -> Result<(), String> {
    // Opening a pipe would wait for its writer, so only a regular file is opened.
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
            io::ErrorKind::PermissionDenied => "permission to read it is denied".to_owned(),
            _ => error.to_string(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Mutex, mpsc};

    use console::Term;
    use dalston_telemetry::Env;
    use serde_json::Value;

    use super::*;
    use crate::cli::terminal::Style;
    use crate::{Batch, Batching, LoadContext, ModelId, StartContext, TaskContext, TaskError, TaskRequest};

    /// An engine that blocks on the file `long` until the file `last` has been processed.
    struct Blocking {
        wait: Mutex<mpsc::Receiver<()>>,
        wake: Mutex<mpsc::Sender<()>>,
    }

    impl Engine for Blocking {
        type Model = ();
        type Output = Value;

        fn info(&self) -> EngineInfo {
            EngineInfo::new("blocking", "1.0.0").stage("wait".parse().unwrap())
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
                    .map_err(|_| TaskError::permanent("alone", "no other file was processed"))?,
                "last" => self.wake.lock().unwrap().send(()).unwrap(),
                _ => {}
            }
            Ok(serde_json::json!({}))
        }
    }

    /// Starts `engine` for these files, as `transcribe` does, and returns the exit status and the
    /// number of traces.
    async fn run<E: Engine>(engine: E, slots: usize, files: &[PathBuf]) -> (u8, usize) {
        let config = RunnerConfig {
            slots,
            ..RunnerConfig::default()
        };
        run_with(engine, config, files).await
    }

    async fn run_with<E: Engine>(engine: E, config: RunnerConfig, files: &[PathBuf]) -> (u8, usize) {
        let telemetry = dalston_telemetry::testing::TestTelemetry::new();
        let env = Env::default();
        let parts = TaskParts {
            main_slot: Some("input"),
            ..TaskParts::default()
        };
        let session = Session {
            platform: LocalPlatform::for_engine(&engine.info()),
            files,
            standard_input: None,
            parts: Arc::new(parts),
            out: None,
            written: None,
            watch: Watch::new(files, files_per_call(&engine.info(), &config, files.len()) > 1),
            printer: Printer {
                json: true,
                format: None,
                several: true,
                style: Style::of(&Term::stdout(), &env),
                env: &env,
            },
            traces: Vec::new(),
        };
        let (code, traces) = session.run(engine, config, telemetry.handle()).await.unwrap();
        (code, traces.len())
    }

    /// An engine that awaits in `load` and in `process`.
    struct Asynchronous {
        started: bool,
    }

    impl Engine for Asynchronous {
        type Model = ();
        type Output = Value;

        fn info(&self) -> EngineInfo {
            EngineInfo::new("asynchronous", "1.0.0").stage("wait".parse().unwrap())
        }

        fn start(&mut self, _: &StartContext) {
            self.started = true;
        }

        fn load(&self, _: &ModelId, cx: &LoadContext) -> Result<(), TaskError> {
            cx.block_on(tokio::time::sleep(Duration::from_millis(1)))
        }

        fn process(&self, _: &mut (), _: &TaskRequest, cx: &TaskContext) -> Result<Value, TaskError> {
            let slept = cx.block_on(async {
                tokio::time::sleep(Duration::from_millis(1)).await;
                true
            })?;
            match slept && self.started {
                true => Ok(serde_json::json!({})),
                false => Err(TaskError::permanent("not_started", "start was not called")),
            }
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn block_on_and_start_work_under_transcribe() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let engine = Asynchronous { started: false };
        assert_eq!(run(engine, 1, &[file.path().to_owned()]).await, (0, 1));
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn long_first_file_does_not_block_other_threads() {
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
        let (wake, wait) = mpsc::channel();
        let engine = Blocking {
            wait: Mutex::new(wait),
            wake: Mutex::new(wake),
        };
        assert_eq!(run(engine, 2, &files).await, (0, files.len()));
    }

    /// An engine that notes how many tasks it gets at once.
    struct Batcher(mpsc::Sender<usize>);

    impl Engine for Batcher {
        type Model = ();
        type Output = Value;

        fn info(&self) -> EngineInfo {
            let info = EngineInfo::new("batcher", "1.0.0").stage("wait".parse().unwrap());
            info.batching(Batching::up_to(4))
        }

        fn load(&self, _: &ModelId, _: &LoadContext) -> Result<(), TaskError> {
            Ok(())
        }

        fn process(&self, _: &mut (), _: &TaskRequest, _: &TaskContext) -> Result<Value, TaskError> {
            let _ = self.0.send(1);
            Ok(serde_json::json!({}))
        }

        fn process_batch(&self, _: &mut (), batch: &mut Batch<'_, Value>) -> Result<(), TaskError> {
            let _ = self.0.send(batch.len());
            for item in batch.take_all() {
                item.finish(Ok(serde_json::json!({})));
            }
            Ok(())
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn files_share_the_calls_of_an_engine() {
        let dir = tempfile::tempdir().unwrap();
        let files: Vec<_> = (0..8).map(|index| dir.path().join(index.to_string())).collect();
        for file in &files {
            std::fs::write(file, "").unwrap();
        }
        for (files, sizes) in [
            (&files[..8], &[4, 4][..]),
            (&files[..3], &[3]),
            (&files[..1], &[1]),
        ] {
            let (sender, calls) = mpsc::channel();
            let config = RunnerConfig {
                batch_wait: Some(Duration::from_secs(10)),
                ..RunnerConfig::default()
            };
            assert_eq!(run_with(Batcher(sender), config, files).await, (0, files.len()));
            assert_eq!(calls.try_iter().collect::<Vec<_>>(), sizes);
        }
    }

    #[test]
    fn unreadable_file_fails_before_it_is_queued() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(
            check_readable(dir.path()),
            Err("is a directory, not a file".to_owned())
        );
        assert_eq!(
            check_readable(&dir.path().join("gone.wav")),
            Err("there is no such file".to_owned())
        );
    }
}
