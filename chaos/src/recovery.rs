//! The orchestrator's scanner and reconciler: section 2.7 of the protocol, with shorter times. They
//! also act on tasks that are not lost: workers must tolerate that.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use dalston_engine_sdk::protocol::{Timestamp, keys};
use tokio::sync::oneshot::{self, error::TryRecvError};
use tokio::time::{Instant, sleep};

use crate::engine::ENGINES;
use crate::orchestrator::Orchestrator;
use crate::random::Random;
use crate::task::{Kind, Reason, Status};

/// Idle times after which the platform acts, in leases: 600 s and 120 s for 60 s.
const IDLE_LEASES: u32 = 10;
/// The time for the start of a new process on a busy machine, which is long beside a short lease.
const IDLE_MARGIN: Duration = Duration::from_secs(30);
const READY_LEASES: u32 = 2;
/// The consumer of released tasks, which is never registered.
const RELEASED: &str = "handed-back";

/// Acts until `end` is dropped, and without a cause until `calm`.
pub(crate) async fn run(
    orchestrator: Arc<Orchestrator>,
    lease: Duration,
    mut random: Random,
    calm: Instant,
    mut end: oneshot::Receiver<()>,
) {
    while end.try_recv() == Err(TryRecvError::Empty) {
        sleep(lease.mul_f64(random.between(0.2, 0.6))).await;
        if Instant::now() < calm {
            match random.below(4) {
                0 => orchestrator.fail_any(&mut random),
                1..3 => orchestrator.requeue_any(&mut random).await,
                _ => {}
            }
        }
        for engine in ENGINES {
            orchestrator.reconcile(engine, lease).await;
        }
    }
}

/// A row of `XPENDING`.
type Row = (String, String, u64, u64);

impl Orchestrator {
    /// Fails a running task in the database, as the scanner does. Its worker goes on.
    fn fail_any(&self, random: &mut Random) {
        let Some(task) = self.any_plain(random, &Status::Running) else {
            return;
        };
        self.note(&task, "the scanner fails it");
        if let Some(task) = self.state().tasks.get_mut(&task) {
            task.status = Status::Failed(Reason::Scanner);
        }
    }

    /// Queues a task again that is not lost.
    async fn requeue_any(&self, random: &mut Random) {
        let status = match random.below(2) {
            0 => Status::Ready,
            _ => Status::Running,
        };
        let Some(task) = self.any_plain(random, &status) else {
            return;
        };
        if let Some(before) = self.last_message(&task).await {
            self.note(&task, "the reconciler queues it again");
            self.requeue(&task, &before).await;
        }
    }

    fn any_plain(&self, random: &mut Random, status: &Status) -> Option<String> {
        let state = self.state();
        let mut tasks: Vec<&String> = state
            .tasks
            .iter()
            .filter(|(_, task)| task.plan.kind == Kind::Plain && task.status == *status)
            .map(|(id, _)| id)
            .collect();
        // So that a seed decides.
        tasks.sort();
        let chosen = random.below(tasks.len());
        tasks.get(chosen).map(|task| (*task).clone())
    }

    async fn last_message(&self, task: &str) -> Option<String> {
        let words = ["HGET", &keys::task(task), "stream_message_id"];
        self.platform.ask(&words).await
    }

    /// Acknowledges the messages of tasks that are over, and queues those again that are lost.
    async fn reconcile(&self, engine: &str, lease: Duration) {
        let stream = keys::task_stream(engine);
        let words = ["XPENDING", &stream, keys::TASK_GROUP, "-", "+", "1000"];
        let Ok(rows) = self.platform.try_ask::<Vec<Row>>(&words).await else {
            // The group does not exist yet, or Redis does not answer.
            return;
        };
        let idle_limit = u64::try_from((lease * IDLE_LEASES + IDLE_MARGIN).as_millis()).unwrap_or(u64::MAX);
        let tasks = self.tasks_of_messages(engine);
        for (id, consumer, idle, _) in &rows {
            // Engines add messages, too.
            let Some(task) = tasks.get(id) else { continue };
            let Some((status, is_over)) = self.status(task) else {
                continue;
            };
            if is_over {
                self.acknowledge(&stream, id).await;
            } else if *idle >= idle_limit && self.is_dead(consumer).await {
                match status {
                    Status::Ready => self.requeue(task, id).await,
                    _ if consumer == RELEASED => {}
                    _ => {
                        let what = format!("the scanner would fail it: entry {id} is idle for {idle} ms");
                        self.violation(Some(task), what);
                        self.acknowledge(&stream, id).await;
                    }
                }
            }
        }
        if self.expects_lost_writes() {
            return self.find_lost(engine, &rows, lease * READY_LEASES).await;
        }
        let pending = |message: &String| rows.iter().any(|(id, ..)| id == message);
        for task in self.ready_for(engine, lease * READY_LEASES) {
            if let Some(message) = self.last_message(&task).await
                && !pending(&message)
                && self.was_delivered(&stream, &message).await
                && self
                    .status(&task)
                    .is_some_and(|(status, _)| status == Status::Ready)
            {
                self.note(&task, "the reconciler believes that it is lost");
                self.requeue(&task, &message).await;
            }
        }
    }

    /// Queues tasks again whose messages were lost. A running one goes on in its worker.
    async fn find_lost(&self, engine: &str, rows: &[Row], time: Duration) {
        let stream = keys::task_stream(engine);
        for (task, message) in self.waiting_for(engine, time) {
            let pending = rows.iter().any(|(id, ..)| *id == message);
            let range = ["XRANGE", &stream, &message, &message];
            let entries: Vec<redis::Value> = self.platform.ask(&range).await;
            let queued = !entries.is_empty() && !self.was_delivered(&stream, &message).await;
            if !pending && !queued && self.status(&task).is_some_and(|(_, is_over)| !is_over) {
                self.note(&task, "the reconciler believes that it is lost");
                self.queue_again(&task).await;
            }
        }
    }

    /// Tasks without an event for so long, and their last messages.
    fn waiting_for(&self, engine: &str, time: Duration) -> Vec<(String, String)> {
        let state = self.state();
        let now = Timestamp::now();
        let waiting = state.tasks.iter().filter(|(_, task)| {
            let since = task.timeline.last().map_or(0.0, |(at, _)| now.seconds_since(*at));
            task.plan.engine == engine
                && task.plan.kind != Kind::Cancelled
                && !task.is_over()
                && since > time.as_secs_f64()
        });
        let waiting = waiting.filter_map(|(id, task)| Some((id.clone(), task.messages.last()?.clone())));
        waiting.collect()
    }

    /// The messages that the orchestrator added to the stream of this engine. A message that an
    /// engine adds to another stream can have the same id.
    fn tasks_of_messages(&self, engine: &str) -> HashMap<String, String> {
        let state = self.state();
        let tasks = state.tasks.iter().filter(|(_, task)| task.plan.engine == engine);
        let messages = tasks.flat_map(|(id, task)| {
            let messages = task.messages.iter();
            messages.map(move |message| (message.clone(), id.clone()))
        });
        messages.collect()
    }

    pub(crate) fn status(&self, task: &str) -> Option<(Status, bool)> {
        let state = self.state();
        let task = state.tasks.get(task)?;
        Some((task.status.clone(), task.is_over()))
    }

    /// Tasks that have been ready for so long. A cancelled one is not ready on the platform.
    fn ready_for(&self, engine: &str, time: Duration) -> Vec<String> {
        let state = self.state();
        let now = Timestamp::now();
        let ready = state.tasks.iter().filter(|(_, task)| {
            let since = task.timeline.last().map_or(0.0, |(at, _)| now.seconds_since(*at));
            task.plan.engine == engine
                && task.status == Status::Ready
                && task.plan.kind != Kind::Cancelled
                && since > time.as_secs_f64()
        });
        ready.map(|(id, _)| id.clone()).collect()
    }

    async fn is_dead(&self, consumer: &str) -> bool {
        let exists: u64 = self.platform.ask(&["EXISTS", &keys::instance(consumer)]).await;
        exists == 0
    }

    /// Whether the group has read so far.
    async fn was_delivered(&self, stream: &str, message: &str) -> bool {
        let groups: Vec<HashMap<String, redis::Value>> =
            self.platform.ask(&["XINFO", "GROUPS", stream]).await;
        let last = groups.first().and_then(|group| group.get("last-delivered-id"));
        let last: Option<String> = last.and_then(|last| redis::from_redis_value(last.clone()).ok());
        last.is_some_and(|last| order(message) <= order(&last))
    }
}

/// The two numbers of an id.
fn order(id: &str) -> Option<(u64, u64)> {
    let (time, number) = id.split_once('-')?;
    Some((time.parse().ok()?, number.parse().ok()?))
}
