//! A task that a worker of a test has in hand: [`RunningTask`].

use dalston_telemetry::metrics::MetricsSnapshot;
use dalston_telemetry::opentelemetry::trace::TraceId;

use super::report::{StoredFile, TaskReport};
use super::worker::Worker;
use crate::broker::EventKind;
use crate::local::LocalOutcome;

/// A task that was given to a [`Worker`]. Made by [`Worker::submit`].
///
/// ```
/// use dalston_engine_sdk::testing::EngineHarness;
/// # use dalston_engine_sdk::{Engine, EngineInfo, LoadContext, ModelId, Stage, TaskContext, TaskError, TaskRequest};
/// # use serde_json::{Value, json};
/// # struct Endless;
/// # impl Engine for Endless {
/// #     type Model = ();
/// #     type Output = Value;
/// #     fn info(&self) -> EngineInfo {
/// #         EngineInfo::new("endless", "1.0.0").stage(Stage::other("wait").expect("a plain name"))
/// #     }
/// #     fn load(&self, _: &ModelId, _: &LoadContext) -> Result<(), TaskError> { Ok(()) }
/// #     fn process(&self, _: &mut (), _: &TaskRequest, cx: &TaskContext) -> Result<Value, TaskError> {
/// #         cx.block_on(std::future::pending::<()>())?;
/// #         Ok(json!({}))
/// #     }
/// # }
/// # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
///
/// let worker = EngineHarness::new(Endless).start();
/// let running = worker.submit(worker.task()).await;
/// running.started().await;
/// running.cancel();
/// assert_eq!(running.report().await.error_code(), "cancelled");
/// worker.stop().await;
/// # });
/// ```
#[derive(Debug)]
#[must_use = "the task ends with its report"]
pub struct RunningTask<'a> {
    pub(super) worker: &'a Worker,
    pub(super) task_id: String,
    pub(super) job_id: String,
    pub(super) trace_id: TraceId,
    pub(super) before: MetricsSnapshot,
}

impl RunningTask<'_> {
    /// The task's id.
    #[must_use]
    pub fn task_id(&self) -> &str {
        &self.task_id
    }

    /// Waits until the task has an inference thread.
    ///
    /// # Panics
    ///
    /// If the runner stops before.
    pub async fn started(&self) {
        let broker = self.worker.platform().broker();
        let started = broker.wait_for_event(|event| {
            let is_start = event.task_id == self.task_id && matches!(event.kind, EventKind::Started);
            is_start.then_some(())
        });
        tokio::select! {
            biased;
            () = started => {}
            why = self.worker.ended() => panic!("the runner stopped before the task was started: {why}"),
        }
    }

    /// Cancels the job of the task. The engine learns of it within half a second, in
    /// [`TaskContext::check_cancelled`](crate::TaskContext::check_cancelled).
    pub fn cancel(&self) {
        self.worker.platform().broker().cancel_job(&self.job_id);
    }

    /// Waits for the outcome. That of a cancelled task is a failure with the code `cancelled`.
    ///
    /// # Panics
    ///
    /// If the runner stops before the task is done.
    pub async fn report(self) -> TaskReport {
        let Self { worker, task_id, .. } = self;
        let platform = worker.platform();
        tokio::select! {
            // An outcome counts even if the runner has ended since then.
            biased;
            _ = platform.broker().wait_for_outcome(&task_id) => {}
            why = worker.ended() => panic!("the runner stopped before the task was done: {why}"),
        }
        let outcome = match platform.outcome(&task_id).await {
            Ok(outcome) => outcome,
            Err(error) => panic!("the task's answer can't be read: {error}"),
        };
        let mut files = Vec::new();
        if let LocalOutcome::Completed(response) = &outcome {
            for reference in &response.produced_artifacts {
                // The file is in memory already: a limit would protect nothing.
                match platform
                    .store()
                    .read(&reference.storage_locator, usize::MAX)
                    .await
                {
                    Ok(content) => files.push(StoredFile::new(&task_id, reference, content)),
                    Err(error) => panic!("an output file of the task can't be read: {error}"),
                }
            }
        }
        worker.last_span(self.trace_id).await;
        let telemetry = worker.telemetry();
        let mut logs = telemetry.logs();
        logs.retain(|line| line.field("task_id").and_then(|id| id.as_str()) == Some(&task_id));
        TaskReport {
            task_id,
            outcome,
            files,
            logs,
            spans: telemetry.collector().trace(self.trace_id),
            before: self.before,
            after: telemetry.metrics().snapshot(),
        }
    }
}
