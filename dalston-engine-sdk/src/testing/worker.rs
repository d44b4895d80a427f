//! A worker in a test: [`Worker`].

use std::time::{Duration, Instant};

use dalston_telemetry::opentelemetry::Context;
use dalston_telemetry::opentelemetry::trace::{
    SpanContext, SpanId, TraceContextExt, TraceFlags, TraceId, TraceState,
};
use dalston_telemetry::services::engine::spans;
use dalston_telemetry::testing::TestTelemetry;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use uuid::Uuid;

use super::files::Files;
use super::report::TaskReport;
use super::running::RunningTask;
#[cfg(feature = "realtime")]
use super::session::RealtimeSession;
use crate::error::{RunError, chain};
use crate::local::{LocalPlatform, LocalTask};
#[cfg(feature = "realtime")]
use crate::realtime::RealtimeServer;
use crate::runner::Runner;

/// A running worker in a test. Made by [`EngineHarness::start`](super::EngineHarness::start).
#[derive(Debug)]
pub struct Worker {
    platform: LocalPlatform,
    telemetry: TestTelemetry,
    pub(super) stop: watch::Sender<bool>,
    pub(super) running: JoinHandle<Result<(), RunError>>,
    /// The reason for which the runner has ended.
    ended: watch::Receiver<Option<String>>,
    default_task: LocalTask,
    #[cfg(feature = "realtime")]
    sessions: Option<RealtimeServer>,
    /// The files that tasks may read.
    _files: Files,
}

impl Worker {
    pub(super) fn start(
        runner: Runner,
        platform: LocalPlatform,
        telemetry: TestTelemetry,
        default_task: LocalTask,
        files: Files,
    ) -> Self {
        let (stop, mut stopped) = watch::channel(false);
        let (end, ended) = watch::channel(None);
        let running = async move {
            let result = runner
                .run_until(async {
                    let _ = stopped.wait_for(|stopped| *stopped).await;
                })
                .await;
            end.send_replace(Some(match &result {
                Ok(()) => "it was told to stop".to_owned(),
                Err(error) => chain(error),
            }));
            result
        };
        Self {
            running: tokio::spawn(telemetry.attach(running)),
            platform,
            telemetry,
            stop,
            ended,
            default_task,
            #[cfg(feature = "realtime")]
            sessions: None,
            _files: files,
        }
    }

    #[cfg(feature = "realtime")]
    pub(super) fn with_sessions(mut self, sessions: RealtimeServer) -> Self {
        self.sessions = Some(sessions);
        self
    }

    /// Opens a realtime session with these query parameters: `language=en&enable_vad=false`. There
    /// is no socket between.
    ///
    /// # Panics
    ///
    /// Outside of a runtime.
    #[cfg(feature = "realtime")]
    #[must_use]
    pub fn session(&self, query: &str) -> RealtimeSession {
        match &self.sessions {
            Some(sessions) => RealtimeSession::open(sessions.clone(), query, &self.telemetry),
            None => panic!("the worker has no sessions"),
        }
    }

    /// The task that the harness was given, to be run again or changed.
    #[must_use]
    pub fn task(&self) -> LocalTask {
        self.default_task.clone()
    }

    /// Runs a task and waits for its outcome.
    ///
    /// # Panics
    ///
    /// If the task can't be queued or the runner stops before it is done.
    pub async fn run(&self, task: LocalTask) -> TaskReport {
        self.submit(task).await.report().await
    }

    /// Gives the worker a task, to be cancelled or watched while it runs.
    ///
    /// # Panics
    ///
    /// If the task can't be queued.
    pub async fn submit(&self, task: LocalTask) -> RunningTask<'_> {
        let trace_id = TraceId::from(Uuid::new_v4().as_u128());
        let before = self.telemetry.metrics().snapshot();
        match self.platform.submit_job(task.parent(producer(trace_id))).await {
            Ok((task_id, job_id)) => RunningTask {
                worker: self,
                task_id,
                job_id,
                trace_id,
                before,
            },
            Err(error) => panic!("the task can't be queued: {error}"),
        }
    }

    /// Waits for the end of the runner and returns its reason.
    pub(super) async fn ended(&self) -> String {
        let mut ended = self.ended.clone();
        match ended.wait_for(Option::is_some).await {
            Ok(why) => why.clone().unwrap_or_default(),
            Err(_) => "it panicked".to_owned(),
        }
    }

    /// Waits for the end of the span around the task, a moment after its outcome is known.
    pub(super) async fn last_span(&self, trace_id: TraceId) {
        let name = spans::span::task(self.platform.engine_id());
        let began = Instant::now();
        let ended = || {
            self.telemetry
                .collector()
                .trace(trace_id)
                .iter()
                .any(|span| span.name == name)
        };
        // The clock of the machine, because a test may have paused that of tokio.
        while !ended() && began.elapsed() < Duration::from_secs(5) {
            tokio::task::yield_now().await;
        }
    }

    /// The queue and the storage.
    #[must_use]
    pub fn platform(&self) -> &LocalPlatform {
        &self.platform
    }

    /// The telemetry of the worker.
    #[must_use]
    pub fn telemetry(&self) -> &TestTelemetry {
        &self.telemetry
    }

    /// Drains and ends the worker.
    ///
    /// # Panics
    ///
    /// If the worker ends with an error.
    pub async fn stop(self) {
        let _ = self.stop.send(true);
        match self.running.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => panic!("the worker failed: {error}"),
            Err(error) => panic!("the worker failed: {error}"),
        }
    }
}

/// The context under which a producer would have queued the task: a span of another process.
fn producer(trace_id: TraceId) -> Context {
    let span_id = SpanId::from(1);
    let remote = SpanContext::new(trace_id, span_id, TraceFlags::SAMPLED, true, TraceState::NONE);
    Context::new().with_remote_span_context(remote)
}
