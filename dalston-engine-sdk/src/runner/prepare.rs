//! The steps of a task before inference: its request, its inputs, its audio.

use std::convert::Infallible;
use std::future::{Future, pending};
use std::sync::Arc;

use tokio::time::Instant;
use tracing::Instrument;

use super::attempt::Attempt;
#[cfg(feature = "audio")]
use super::decode::decode;
use super::files;
use super::sweep;
use crate::context::CancelReason;
use crate::error::TaskError;
use crate::model_id::ModelId;
use crate::spans::record_failure;
use crate::task::{TaskInfo, TaskRequest};
use crate::task_dir::TaskFiles;

/// What an engine needs to process a task.
pub(super) struct Prepared {
    pub(super) request: Arc<TaskRequest>,
    pub(super) info: TaskInfo,
    pub(super) files: TaskFiles,
}

impl Attempt<'_> {
    /// Runs a step that comes before inference. When the worker drains, the task goes back to the
    /// queue instead.
    pub(super) async fn before_inference<F: Future>(&self, step: F) -> Result<F::Output, TaskError> {
        let drained = async {
            self.worker.drain.begun.cancelled().await;
            self.stop.set(CancelReason::Shutdown);
            pending::<Infallible>().await
        };
        tokio::select! {
            biased;
            reason = self.stop.stopped() => Err(reason.into_error()),
            never = drained => match never {},
            output = step => Ok(output),
        }
    }

    /// Downloads `request.json` and the inputs, and decodes the audio.
    pub(super) async fn download(&self) -> Result<Prepared, TaskError> {
        let span = self.spans.download_input();
        let begun_at = Instant::now();
        let result = self.fetch().instrument(span.clone()).await;
        self.worker.metrics.s3_download(begun_at.elapsed());
        let prepared = result.inspect_err(|error| record_failure(&span, error))?;
        if let Some(seconds) = prepared.info.audio_seconds {
            self.spans.audio_seconds(seconds);
        }
        Ok(prepared)
    }

    async fn fetch(&self) -> Result<Prepared, TaskError> {
        let worker = self.worker;
        let metadata = self.metadata.as_ref();
        let data = files::read_request(&self.origin.store, self.claim).await?;
        fault_point!(RequestRead);
        let model = metadata
            .and_then(|metadata| metadata.model.as_deref())
            .or_else(|| data.config.get("loaded_model_id")?.as_str())
            .map(ModelId::from);
        let model = model.or_else(|| worker.default_model.clone()).unwrap_or_default();
        self.spans.model(model.as_str());
        let _ = self.model.set(model.clone());

        let files = TaskFiles::new(sweep::TASK, &worker.config.temp_root, &worker.removals)
            .with_input(self.origin.files.clone());
        let stage = self.info.stage.clone();
        let request = files::fetch_inputs(&self.origin.store, stage, data, metadata, &files).await?;
        #[cfg(feature = "audio")]
        let request = decode(request, worker.audio, &files).await?;
        let mut info = self.info.clone();
        info.model = model;
        info.audio_seconds = request.audio_seconds();
        Ok(Prepared {
            request: Arc::new(request),
            info,
            files,
        })
    }
}
