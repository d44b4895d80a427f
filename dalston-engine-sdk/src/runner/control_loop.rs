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
#[cfg(feature = "realtime")]
use super::live::Live;
use super::report::public_text;
use super::slot::TelemetryScope;
use super::status::{RunnerPhase, RunnerStatus};
use super::sweep;
use super::task::{self, report_panic};
use super::worker::Worker;
use crate::broker::{BrokerError, Delivery};
use crate::error::{RunError, chain};
use crate::gpu::GpuMonitor;
use crate::interruption::Interruption;
use crate::log_limit::is_logged;

/// Per slot: one task or batch that runs, and one that is ready to run.
const TURNS_PER_SLOT: usize = 2;
/// How long one read waits for a task.
const RECEIVE_WAIT: Duration = Duration::from_secs(30);
/// How often the GPUs are read. Prometheus usually scrapes at this interval.
const GPU_INTERVAL: Duration = Duration::from_secs(15);
/// How long tasks get to be handed back, and threads to end, after the drain timeout.
const LAST_SECONDS: Duration = Duration::from_secs(3);
/// A drain timeout that can still be added to the clock.
const LONGEST_DRAIN: Duration = Duration::from_secs(365 * 86_400);

/// A worker: one engine, its inference threads, and the control loop that feeds them.
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
#[doc(alias = "EngineRunner")]
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

    /// The engine id, which is also the name of the queue: the engine's own, or the one that the
    /// configuration prescribes.
    #[must_use]
    pub fn engine_id(&self) -> &str {
        &self.worker.consumer.engine_id
    }

    /// A view of what the runner is doing.
    #[must_use]
    pub fn status(&self) -> RunnerStatus {
        self.worker.status.clone()
    }

    /// Hands tasks to the running runner that are not in the queue.
    #[must_use]
    pub fn direct(&self) -> Direct {
        Direct::new(Arc::clone(&self.worker), self.submit.clone())
    }

    /// Has the running runner transcribe the audio of sessions.
    #[cfg(feature = "realtime")]
    pub(crate) fn live(&self) -> Live {
        Live::new(Arc::clone(&self.worker))
    }

    /// Tells the running runner that its machine will be taken away.
    #[must_use]
    pub fn interruption(&self) -> Interruption {
        self.worker.interruption.clone()
    }

    /// Takes and processes tasks until `shutdown` is done or an [interruption](Self::interruption)
    /// is announced. Then the worker drains: it takes no more tasks, hands back the tasks that wait
    /// for an inference thread, gives running tasks the drain timeout, and cancels and hands back
    /// those that are not done by then.
    ///
    /// # Errors
    ///
    /// If too many inference threads are stuck in calls that do not return, the operating system
    /// refuses another thread, or the [probes](crate::RunnerBuilder::probe) fail for 10 minutes.
    /// The worker has drained as far as possible. The process must be restarted.
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
            let permits = Permits::none();
            tokio::select! {
                biased;
                () = shutdown => Ok(()),
                () = worker.interruption.announced() => Ok(()),
                error = worker.pool.failed() => Err(error),
                failed = worker.start_slots(&permits) => failed.map(|never| match never {}),
                failed = worker.read_tasks(&permits.queue, &mut tasks) => failed.map(|never| match never {}),
                never = direct::serve(&worker, submissions, &permits.direct, &mut direct) => match never {},
                never = worker.sweep_models() => match never {},
                never = worker.evict_models() => match never {},
                never = sweep::purge_periodically(temp_root, temp_age) => match never {},
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

/// Bound how many tasks the worker holds whose inference has not ended. Tasks of the queue and
/// direct ones have permits of their own, so that neither kind starves the other.
struct Permits {
    queue: Arc<Semaphore>,
    direct: Arc<Semaphore>,
}

impl Permits {
    fn none() -> Self {
        let none = || Arc::new(Semaphore::new(0));
        Self {
            queue: none(),
            direct: none(),
        }
    }
}

impl Worker {
    /// Starts the inference threads. The permits of a slot are given out when its models are
    /// loaded: until then a peer processes a task sooner.
    async fn start_slots(&self, permits: &Permits) -> Result<Infallible, RunError> {
        let scope = TelemetryScope::current();
        let starts = (0..self.config.slots).map(|slot| {
            let scope = scope.clone();
            async move {
                let preload = self.config.preload.clone();
                if let Some(error) = self.pool.start(slot, preload, scope).await? {
                    self.breaker.preload_failed(public_text(&error));
                }
                let tasks = self
                    .batches
                    .as_ref()
                    .map_or(1, |batches| batches.limits.max_tasks);
                permits.queue.add_permits(TURNS_PER_SLOT * tasks);
                permits.direct.add_permits(TURNS_PER_SLOT * tasks);
                self.status.enter(RunnerPhase::Running);
                Ok(())
            }
        });
        try_join_all(starts).await?;
        pending().await
    }

    /// Reads a task for every permit and takes it through its steps, beside the others. Reads none
    /// while a dependency of the worker is broken.
    async fn read_tasks(
        self: &Arc<Self>,
        permits: &Arc<Semaphore>,
        tasks: &mut JoinSet<()>,
    ) -> Result<Infallible, RunError> {
        self.breaker.start().await?;
        loop {
            let Ok(permit) = Arc::clone(permits).acquire_owned().await else {
                return pending().await;
            };
            let delivery = tokio::select! {
                biased;
                () = self.breaker.opened() => {
                    drop(permit);
                    self.breaker.retry().await?;
                    continue;
                }
                delivery = self.receive() => delivery,
            };
            while let Some(ended) = tasks.try_join_next() {
                report_panic(ended);
            }
            let status = self.status.task(&delivery.claim.task_id);
            let task = task::handle(
                Arc::clone(self),
                Arc::clone(&self.origin),
                delivery,
                permit,
                status,
            );
            tasks.spawn(task.with_current_subscriber());
            if self.breaker.is_on_trial() {
                let all_ended = async {
                    while let Some(ended) = tasks.join_next().await {
                        report_panic(ended);
                    }
                };
                tokio::select! {
                    () = self.breaker.tried() => {}
                    () = all_ended => {}
                }
            }
        }
    }

    /// Waits for a task, also while the broker fails.
    async fn receive(&self) -> Delivery {
        let mut failures = 0_u32;
        loop {
            match self.receive_once().await {
                Ok(Some(delivery)) => return delivery,
                Ok(None) => failures = 0,
                Err(error) => {
                    failures = failures.saturating_add(1);
                    if is_logged(u64::from(failures)) {
                        tracing::warn!(error = chain(&error), failures, "broker_read_failed");
                    }
                    sleep(read_pause(failures)).await;
                }
            }
        }
    }

    /// Waits for a task for a while. Without a free inference thread it takes none that an idle
    /// peer could begin at once.
    async fn receive_once(&self) -> Result<Option<Delivery>, BrokerError> {
        let (broker, slots) = (&self.origin.broker, self.config.slots);
        if self.status.unprocessed_tasks() < slots {
            return broker.receive(&self.consumer, RECEIVE_WAIT).await;
        }
        tokio::select! {
            ahead = broker.receive_ahead(&self.consumer, RECEIVE_WAIT) => ahead,
            () = self.status.has_fewer_than(slots) => Ok(None),
        }
    }

    /// Drops models from memory that were not used for their time to live.
    async fn sweep_models(&self) -> Infallible {
        let period = (self.config.model_ttl / 4).clamp(Duration::from_secs(1), Duration::from_secs(60));
        loop {
            sleep(period).await;
            self.pool.sweep(Instant::now());
        }
    }

    /// Keeps the models on the disk within their limits.
    async fn evict_models(&self) -> Infallible {
        match &self.model_storage {
            Some(models) => models.evict_periodically().await,
            None => pending().await,
        }
    }

    async fn drain_tasks(&self, mut tasks: [JoinSet<()>; 2]) {
        let mut all_done = async || {
            for tasks in &mut tasks {
                while let Some(ended) = tasks.join_next().await {
                    report_panic(ended);
                }
            }
            self.sessions.close();
            self.sessions.wait().await;
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
    }

    async fn drain(&self, tasks: [JoinSet<()>; 2]) {
        self.drain.begun.cancel();
        // A read may take a task although its caller is gone, also one that is handed back here.
        let stop_reading = timeout(LAST_SECONDS, self.origin.broker.stop_reading());
        let (stopped, ()) = tokio::join!(stop_reading, self.drain_tasks(tasks));
        if stopped.is_err() {
            tracing::warn!("read_not_ended");
        }
        self.removals.close();
        if timeout(LAST_SECONDS, self.removals.wait()).await.is_err() {
            tracing::warn!("temporary_files_left");
        }
        // A process that ends while a thread still frees its models crashes in some native
        // libraries.
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
