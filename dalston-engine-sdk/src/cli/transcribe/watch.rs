//! The tasks in flight: their order, progress and processing time.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use console::Term;
use tokio::sync::watch;

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
    pub(super) fn new(files: &[PathBuf]) -> Arc<Self> {
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
        if begun {
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

    fn check(&self, cx: &LoadContext) -> Vec<Check> {
        self.engine.check(cx)
    }
}
