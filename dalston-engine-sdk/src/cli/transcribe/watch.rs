//! The tasks in flight: their order, progress and processing time.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use console::Term;
use tokio::sync::watch;

use crate::batch::Batch;
use crate::cli::progress::Progress;
use crate::context::TaskContext;
use crate::engine::{Check, Engine, EngineInfo};
use crate::error::TaskError;
use crate::load::LoadContext;
use crate::model_id::ModelId;
use crate::start::StartContext;
use crate::task::TaskRequest;

/// The state of the tasks in flight.
#[derive(Debug)]
pub(super) struct Watch {
    pub(super) progress: Progress,
    /// How many files have reached the engine or failed before. They are always the first ones.
    begun: watch::Sender<usize>,
    /// Whether files wait for each other only until they are queued.
    share_calls: bool,
    files: Vec<PathBuf>,
    tasks: Mutex<HashMap<String, Watched>>,
}

/// The state of one task. The engine may begin it before its file is known.
#[derive(Debug, Default)]
struct Watched {
    file: Option<usize>,
    begun: bool,
    processing: Duration,
}

impl Watch {
    /// `share_calls` says whether the engine gets several files at once.
    pub(super) fn new(files: &[PathBuf], share_calls: bool) -> Arc<Self> {
        let progress = Progress::new(Term::stderr().is_term());
        Arc::new(Self {
            progress,
            begun: watch::Sender::new(0),
            share_calls,
            files: files.to_vec(),
            tasks: Mutex::default(),
        })
    }

    /// Waits until the file before this one has reached the engine, or is queued if files share
    /// calls.
    ///
    /// So the engine gets the files in their order, and the input of the next one is fetched
    /// meanwhile.
    pub(super) async fn until_previous_begun(&self, file: usize) {
        let mut begun = self.begun.subscribe();
        // This fails only without a sender, which is in `self`.
        let _ = begun.wait_for(|begun| *begun >= file).await;
    }

    /// Lets the next file go to the engine.
    pub(super) fn release_next(&self, file: usize) {
        self.begun.send_modify(|begun| *begun = (*begun).max(file + 1));
    }

    pub(super) fn follow(&self, task_id: &str, file: usize) {
        let begun = self.with(task_id, |task| {
            task.file = Some(file);
            task.begun
        });
        if begun || self.share_calls {
            self.release_next(file);
        }
    }

    fn begun(&self, task_id: &str) {
        let file = self.with(task_id, |task| {
            task.begun = true;
            task.file
        });
        if let Some(file) = file {
            self.release_next(file);
        }
    }

    pub(super) fn report(&self, task_id: &str, fraction: f32) {
        let file = self.with(task_id, |task| task.file);
        if let Some((index, file)) = file.and_then(|index| Some((index, self.files.get(index)?))) {
            self.progress.report(index, file, fraction);
        }
    }

    fn processed(&self, task_id: &str, time: Duration) {
        self.with(task_id, |task| task.processing = time);
    }

    /// How long the engine processed a task, which is then forgotten.
    pub(super) fn processing_time(&self, task_id: &str) -> Duration {
        let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        tasks.remove(task_id).unwrap_or_default().processing
    }

    fn with<T>(&self, task_id: &str, change: impl FnOnce(&mut Watched) -> T) -> T {
        let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        change(tasks.entry(task_id.to_owned()).or_default())
    }
}

/// An engine whose processing time is measured, without the time for loading its model.
pub(super) struct WatchedEngine<E> {
    pub(super) engine: E,
    pub(super) watch: Arc<Watch>,
}

impl<E: Engine> Engine for WatchedEngine<E> {
    type Model = E::Model;
    type Output = E::Output;

    fn info(&self) -> EngineInfo {
        self.engine.info()
    }

    fn start(&mut self, cx: &StartContext) {
        self.engine.start(cx);
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

    fn process_batch(
        &self,
        model: &mut Self::Model,
        batch: &mut Batch<'_, Self::Output>,
    ) -> Result<(), TaskError> {
        let shares = Arc::new(Mutex::new(Shares::new(batch.len())));
        let items = batch.take_all().into_iter().map(|item| {
            let (watch, shares) = (Arc::clone(&self.watch), Arc::clone(&shares));
            let task_id = item.cx().info().task_id.clone();
            watch.begun(&task_id);
            item.before_finish(move || {
                let mut shares = shares.lock().unwrap_or_else(PoisonError::into_inner);
                watch.processed(&task_id, shares.end(Instant::now()));
            })
        });
        *batch = Batch::new(items.collect());
        self.engine.process_batch(model, batch)
    }

    fn batch_key(&self, task: &TaskRequest) -> Option<String> {
        self.engine.batch_key(task)
    }

    fn check(&self, cx: &LoadContext) -> Vec<Check> {
        self.engine.check(cx)
    }
}

/// The time of a batch, divided at each moment among the tasks that are not over.
#[derive(Debug)]
struct Shares {
    open: u32,
    share: Duration,
    until: Instant,
}

impl Shares {
    fn new(tasks: usize) -> Self {
        Self {
            open: u32::try_from(tasks).unwrap_or(u32::MAX),
            share: Duration::ZERO,
            until: Instant::now(),
        }
    }

    /// One task is over. Returns its part.
    fn end(&mut self, now: Instant) -> Duration {
        let passed = now.saturating_duration_since(self.until);
        self.share += passed.checked_div(self.open).unwrap_or_default();
        self.until = now;
        self.open = self.open.saturating_sub(1);
        self.share
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_of_a_batch_is_divided_among_its_open_tasks() {
        let mut shares = Shares::new(3);
        let begun = shares.until;
        let mut end = |seconds| shares.end(begun + Duration::from_secs(seconds)).as_secs();
        assert_eq!([end(3), end(5), end(9)], [1, 2, 6]);
    }
}
