//! The control loop: [`Runner`].

use std::convert::Infallible;
use std::fmt;
use std::future::{Future, pending};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::try_join_all;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use tracing::instrument::WithSubscriber;

use super::direct::{self, Direct, Submission};
use super::slot::TelemetryScope;
use super::status::{RunnerPhase, RunnerStatus};
use super::sweep;
use super::task::{self, report_panic};
use super::worker::Worker;
use crate::error::{RunError, chain};
use crate::gpu::GpuMonitor;
use crate::interruption::Interruption;

/// Per slot: one task that runs and one that is ready to.
const TURNS_PER_SLOT: usize = 2;
/// How many tasks are asked for at once, at most.
const READ_AT_ONCE: usize = 64;
/// How long one question for a task may wait.
const RECEIVE_WAIT: Duration = Duration::from_secs(30);
/// How old the figures about the GPUs may get. Prometheus usually scrapes at this interval.
const GPU_INTERVAL: Duration = Duration::from_secs(15);
/// How long tasks get to be handed back, and threads to end, after the time for draining is over.
const LAST_SECONDS: Duration = Duration::from_secs(3);
/// More than anyone can mean, and a time that can be added to the clock.
const LONGEST_DRAIN: Duration = Duration::from_secs(365 * 86_400);

/// A worker: one engine, its inference threads, and the loop that feeds them.
///
/// ```
/// use dalston_engine_sdk::broker::MemoryBroker;
/// use dalston_engine_sdk::store::Store;
/// use dalston_engine_sdk::{Engine, Runner};
///
/// async fn serve(engine: impl Engine) -> Result<(), Box<dyn std::error::Error>> {
///     let runner = Runner::builder(engine).broker(MemoryBroker::new()).store(Store::memory()).slots(2).build()?;
///     runner
///         .run_until(async {
///             let _ = tokio::signal::ctrl_c().await;
///         })
///         .await?;
///     Ok(())
/// }
/// ```
pub struct Runner {
    pub(super) worker: Arc<Worker>,
    pub(super) submit: mpsc::Sender<Submission>,
    pub(super) submissions: mpsc::Receiver<Submission>,
}

impl Runner {
    /// The name of this worker, under which it takes tasks.
    #[must_use]
    pub fn instance(&self) -> &str {
        &self.worker.consumer.instance
    }

    /// The engine id, which is also the name of the queue: the engine's own, or the one that the configuration prescribes.
    #[must_use]
    pub fn engine_id(&self) -> &str {
        &self.worker.consumer.engine_id
    }

    /// What the runner is doing, for those who want to know while it runs.
    #[must_use]
    pub fn status(&self) -> RunnerStatus {
        self.worker.status.clone()
    }

    /// A way to have tasks done that are not in the queue, while the runner runs.
    #[must_use]
    pub fn direct(&self) -> Direct {
        Direct::new(Arc::clone(&self.worker), self.submit.clone())
    }

    /// A way to tell the runner, while it runs, that its machine will be taken away.
    #[must_use]
    pub fn interruption(&self) -> Interruption {
        self.worker.interruption.clone()
    }

    /// Takes and processes tasks until `shutdown` is done or an [interruption](Self::interruption) is announced, and then drains: no task is taken any more, tasks that wait for an
    /// inference thread are handed back, those that run get the drain timeout, and whatever is not done then is
    /// cancelled and handed back, too.
    ///
    /// # Errors
    ///
    /// When too many inference threads are stuck in calls that do not return, or the operating system gives us no more. What
    /// can be done is drained first. The process should end then, and be started anew.
    pub async fn run_until(self, shutdown: impl Future<Output = ()>) -> Result<(), RunError> {
        let Self {
            worker, submissions, ..
        } = self;
        let _gpus = GpuMonitor::start(
            &worker.registry,
            GPU_INTERVAL,
            worker.status.gpu_reading().clone(),
        );
        let (temp_root, temp_age) = (worker.config.temp_root.clone(), worker.config.temp_max_age);
        let (mut tasks, mut direct) = (JoinSet::new(), JoinSet::new());
        tracing::info!(
            instance = worker.consumer.instance,
            slots = worker.config.slots,
            "engine_loop_starting"
        );
        let ended = {
            let turns = Turns::none();
            tokio::select! {
                biased;
                () = shutdown => Ok(()),
                () = worker.interruption.announced() => Ok(()),
                error = worker.pool.failed() => Err(error),
                failed = worker.start_slots(&turns) => failed.map(|never| match never {}),
                never = worker.read_tasks(&turns.queue, &mut tasks) => match never {},
                never = direct::serve(&worker, submissions, &turns.direct, &mut direct) => match never {},
                never = worker.sweep_models() => match never {},
                never = worker.tidy_model_cache() => match never {},
                never = sweep::keep_clean(temp_root, temp_age) => match never {},
                never = worker.status.tick() => match never {},
            }
        };
        worker.status.enter(RunnerPhase::Draining);
        if let Err(error) = &ended {
            tracing::error!(error = chain(error), "engine_loop_failed");
        }
        tokio::select! {
            () = worker.drain([tasks, direct]) => {}
            never = worker.status.tick() => match never {},
        }
        worker.status.enter(RunnerPhase::Stopped);
        tracing::info!("engine_loop_stopped");
        ended
    }
}

/// What bounds how many tasks are in hand before their inference ends: apart for the two kinds, so that none has to wait until
/// the other one has nothing to do.
struct Turns {
    queue: Arc<Semaphore>,
    direct: Arc<Semaphore>,
}

impl Turns {
    fn none() -> Self {
        let none = || Arc::new(Semaphore::new(0));
        Self {
            queue: none(),
            direct: none(),
        }
    }
}

impl Worker {
    /// Starts the inference threads. Each gives out its turns when its models are loaded: until then a task is better off
    /// with a peer.
    async fn start_slots(&self, turns: &Turns) -> Result<Infallible, RunError> {
        let scope = TelemetryScope::current();
        let starts = (0..self.config.slots).map(|slot| {
            let scope = scope.clone();
            async move {
                self.pool.start(slot, self.config.preload.clone(), scope).await?;
                turns.queue.add_permits(TURNS_PER_SLOT);
                turns.direct.add_permits(TURNS_PER_SLOT);
                self.status.enter(RunnerPhase::Running);
                Ok(())
            }
        });
        try_join_all(starts).await?;
        pending().await
    }

    async fn read_tasks(self: &Arc<Self>, turns: &Arc<Semaphore>, tasks: &mut JoinSet<()>) -> Infallible {
        let mut failures = 0_u32;
        loop {
            let Ok(first) = Arc::clone(turns).acquire_owned().await else {
                return pending().await;
            };
            // As many tasks as could begin now, but not so many that the others wait long for the first of them.
            let more = turns.available_permits().min(READ_AT_ONCE - 1);
            let more = u32::try_from(more).ok();
            let more = more.and_then(|more| Arc::clone(turns).try_acquire_many_owned(more).ok());
            let mut free = first;
            if let Some(more) = more {
                free.merge(more);
            }
            let deliveries = loop {
                let most = free.num_permits();
                let received = self
                    .origin
                    .broker
                    .receive_several(&self.consumer, most, RECEIVE_WAIT);
                match received.await {
                    Ok(deliveries) if deliveries.is_empty() => failures = 0,
                    Ok(deliveries) => break deliveries,
                    Err(error) => {
                        failures = failures.saturating_add(1);
                        tracing::warn!(error = chain(&error), failures, "broker_read_failed");
                        sleep(read_pause(failures)).await;
                    }
                }
            };
            failures = 0;
            while let Some(ended) = tasks.try_join_next() {
                report_panic(ended);
            }
            for delivery in deliveries {
                let Some(turn) = free.split(1) else {
                    // A broker that gives more than it was asked for. What is not taken comes back when its lease ends.
                    tracing::warn!("broker_gave_too_many_tasks");
                    break;
                };
                let hand = self.status.task(&delivery.claim.task_id);
                let task = task::handle(Arc::clone(self), Arc::clone(&self.origin), delivery, turn, hand);
                tasks.spawn(Box::pin(task).with_current_subscriber());
            }
            // What these tasks have to ask goes first, before the question for more.
            tokio::task::yield_now().await;
        }
    }

    /// Lets go of models that nobody asks for, a little after their time at the latest.
    async fn sweep_models(&self) -> Infallible {
        let period = (self.config.model_ttl / 4).clamp(Duration::from_secs(1), Duration::from_secs(60));
        loop {
            sleep(period).await;
            self.pool.sweep(Instant::now());
        }
    }

    /// Keeps the models on the disk within their limits.
    async fn tidy_model_cache(&self) -> Infallible {
        match &self.model_storage {
            Some(models) => models.evict_periodically().await,
            None => pending().await,
        }
    }

    async fn drain(&self, mut tasks: [JoinSet<()>; 2]) {
        self.drain.begun.cancel();
        let mut all_done = async || {
            for tasks in &mut tasks {
                while let Some(ended) = tasks.join_next().await {
                    report_panic(ended);
                }
            }
        };
        let limit = Instant::now() + self.config.drain_timeout.min(LONGEST_DRAIN);
        let in_time = tokio::select! {
            biased;
            () = all_done() => true,
            () = self.interruption.time_is_up(limit) => false,
        };
        if !in_time {
            self.drain.over.cancel();
            if timeout(LAST_SECONDS, all_done()).await.is_err() {
                tracing::warn!("drain_incomplete");
            }
        }
        self.removals.close();
        if timeout(LAST_SECONDS, self.removals.wait()).await.is_err() {
            tracing::warn!("temporary_files_left");
        }
        // A process that ends while a thread still frees its models crashes in some native libraries.
        if timeout(LAST_SECONDS, self.pool.close()).await.is_err() {
            tracing::warn!("inference_threads_still_busy");
        }
    }
}

fn read_pause(failures: u32) -> Duration {
    let pause = Duration::from_millis(250).saturating_mul(1 << failures.min(6));
    pause.min(Duration::from_secs(5))
}

impl fmt::Debug for Runner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Runner")
            .field("consumer", &self.worker.consumer)
            .field("config", &self.worker.config)
            .finish_non_exhaustive()
    }
}
