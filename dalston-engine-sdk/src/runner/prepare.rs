//! The steps of a task before inference: its request, its inputs, its audio.

use std::convert::Infallible;
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;

use tokio::time::Instant;

use super::attempt::Attempt;
#[cfg(feature = "audio")]
use super::decode::decode;
use super::files;
use super::lease::at_once;
use super::sweep;
use crate::context::CancelReason;
use crate::error::TaskError;
use crate::model_id::ModelId;
use crate::spans::{record_failure, within};
use crate::task::{TaskInfo, TaskRequest};
use crate::task_dir::TaskFiles;

/// What a task needs to be processed.
pub(super) struct Prepared {
    pub(super) request: Arc<TaskRequest>,
    pub(super) info: TaskInfo,
    pub(super) files: TaskFiles,
}

impl Attempt<'_> {
    /// Runs a step that comes before inference. When the worker drains, the task goes back instead.
    pub(super) async fn before_inference<F: Future>(&self, step: F) -> Result<F::Output, TaskError> {
        let mut step = pin!(step);
        if self.stop.reason().is_none()
            && !self.worker.drain.begun.is_cancelled()
            && let Some(output) = at_once(step.as_mut()).await
        {
            return Ok(output);
        }
        let drained = async {
            self.worker.drain.begun.cancelled().await;
            self.stop.set(CancelReason::Shutdown);
            std::future::pending::<Infallible>().await
        };
        tokio::select! {
            biased;
            reason = self.stop.stopped() => Err(reason.into_error()),
            never = drained => match never {},
            output = step => Ok(output),
        }
    }

    /// Brings `request.json` and the inputs here, and decodes the audio.
    pub(super) async fn download(&self) -> Result<Prepared, TaskError> {
        let span = self.spans.download_input();
        let begun = Instant::now();
        let result = within(&span, self.fetch()).await;
        self.worker.metrics.s3_download(begun.elapsed());
        let prepared = result.inspect_err(|error| record_failure(&span, error))?;
        if let Some(seconds) = prepared.info.audio_seconds {
            self.spans.audio_seconds(seconds);
        }
        Ok(prepared)
    }

    pub(super) async fn fetch(&self) -> Result<Prepared, TaskError> {
        let worker = self.worker;
        let metadata = self.metadata.as_ref();
        let data = files::read_request(&self.origin.store, self.claim).await?;
        fault_point!(RequestRead);
        let model = metadata.and_then(|metadata| metadata.model.clone());
        let model = model.map(ModelId::from);
        let model = model.or_else(|| Some(ModelId::from(data.config.get("loaded_model_id")?.as_str()?)));
        let model = model.or_else(|| worker.default_model.clone()).unwrap_or_default();
        self.spans.model(model.as_str());
        let _ = self.model.set(model.clone());

        let files = TaskFiles::new(sweep::TASK, &worker.config.temp_root, &worker.removals)
            .with_input(self.origin.files.clone());
        let stage = self.info.stage.clone();
        let request = Box::pin(files::fetch_inputs(
            &self.origin.store,
            stage,
            data,
            metadata,
            &files,
        ))
        .await?;
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
