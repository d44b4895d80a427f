//! A download in progress, and the threads that wait for it.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use dalston_telemetry::context::{LogContext, WithLogContext};
use tokio::runtime::Handle;
use tokio::task::AbortHandle;
use tokio_util::sync::CancellationToken;
use tracing::instrument::WithSubscriber;

use super::cache::LocalModel;
use super::error::{Kind, ModelError};
use crate::context::{CancelFlag, CancelReason};
use crate::error::TaskError;
use crate::model_id::ModelId;

/// How often a waiting inference thread checks whether its task is still wanted.
const STOP_INTERVAL: Duration = Duration::from_millis(50);

/// A model that has arrived.
#[derive(Debug, Clone)]
pub(super) struct Arrived {
    pub(super) model: Arc<LocalModel>,
    /// The number of bytes that were downloaded.
    pub(super) bytes: u64,
    /// The source of the download. `None` if another process did it.
    pub(super) source: Option<&'static str>,
}

/// A download that threads wait for. It is aborted when no thread waits any more.
#[derive(Debug)]
pub(super) struct Download {
    result: Arc<SharedResult>,
    task: AbortHandle,
}

#[derive(Debug, Default)]
struct SharedResult {
    value: Mutex<Option<Result<Arrived, ModelError>>>,
    done: Condvar,
}

impl SharedResult {
    fn value(&self) -> MutexGuard<'_, Option<Result<Arrived, ModelError>>> {
        self.value.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Download {
    pub(super) fn start(
        runtime: &Handle,
        work: impl Future<Output = Result<Arrived, ModelError>> + Send + 'static,
    ) -> Self {
        let result = Arc::new(SharedResult::default());
        let shared = Arc::clone(&result);
        let work = async move {
            let value = work.await;
            *shared.value() = Some(value);
            shared.done.notify_all();
        };
        let work = work
            .with_log_context(LogContext::current())
            .with_current_subscriber();
        let task = runtime.spawn(work).abort_handle();
        Self { result, task }
    }

    pub(super) fn is_done(&self) -> bool {
        self.result.value().is_some()
    }

    /// Blocks until the download ends, or `stop` says that the model is not needed any more.
    pub(super) fn wait(&self, model: &ModelId, stop: &LoadStop) -> Result<Arrived, TaskError> {
        let mut value = self.result.value();
        loop {
            if let Some(value) = &*value {
                return value.clone().map_err(|error| error.into_task_error(model));
            }
            // A panic, or the end of the runtime.
            if self.task.is_finished() {
                let error = ModelError::new(Kind::Source, "the download was aborted");
                return Err(error.into_task_error(model));
            }
            stop.check()?;
            let waited = self.result.done.wait_timeout(value, STOP_INTERVAL);
            value = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl Drop for Download {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The events that end the loading of a model early.
#[derive(Debug, Clone, Default)]
pub(crate) struct LoadStop {
    task: CancelFlag,
    draining: CancellationToken,
}

impl LoadStop {
    pub(crate) fn new(task: CancelFlag, draining: CancellationToken) -> Self {
        Self { task, draining }
    }

    /// Waits for the first of the events.
    pub(crate) async fn wait(&self) -> CancelReason {
        tokio::select! {
            biased;
            reason = self.task.wait() => reason,
            () = self.draining.cancelled() => {
                // The task has not begun without its model, so a peer can take it.
                self.task.set(CancelReason::Shutdown);
                self.task.wait().await
            }
        }
    }

    fn check(&self) -> Result<(), TaskError> {
        if self.draining.is_cancelled() {
            // The task has not begun without its model, so a peer can take it.
            self.task.set(CancelReason::Shutdown);
        }
        match self.task.reason() {
            None => Ok(()),
            Some(reason) => Err(reason.into_error()),
        }
    }
}
