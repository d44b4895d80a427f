//! The platform's side of the protocol: queues tasks, follows their events, and applies the
//! orchestrator's rules.
//!
//! The orchestrator keeps its state in a database. This one is in memory.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use dalston_engine_sdk::protocol::{Timestamp, keys};
use dalston_engine_sdk::store::key;
use redis::RedisResult;
use serde_json::{Value, json};
use testbed::TestS3;
use tokio::time::{Instant, sleep};

use crate::engine::{TASK_STAGE, input_of};
use crate::measures::Freed;
use crate::platform::Platform;
use crate::published::Copies;
use crate::task::{Kind, Task, TaskPlan};

/// Queues tasks and follows their events.
#[derive(Debug)]
pub(crate) struct Orchestrator {
    pub(crate) platform: Arc<Platform>,
    pub(crate) copies: Arc<Copies>,
    state: Mutex<State>,
    /// The last id in the stream: milliseconds and a number.
    last_id: tokio::sync::Mutex<(u64, u64)>,
}

#[derive(Debug, Default)]
pub(crate) struct State {
    pub(crate) tasks: HashMap<String, Task>,
    /// The ids of the handled events.
    pub(crate) seen: HashSet<String>,
    pub(crate) violations: Vec<Violation>,
    pub(crate) freed: Vec<Freed>,
    /// Whether Redis may lose writes that it has answered.
    expects_lost_writes: bool,
}

/// A violation of the rules.
#[derive(Debug, Clone)]
pub(crate) struct Violation {
    pub(crate) task: Option<String>,
    pub(crate) what: String,
}

impl Orchestrator {
    pub(crate) fn new(platform: Arc<Platform>) -> Arc<Self> {
        Arc::new(Self {
            platform,
            copies: Arc::default(),
            state: Mutex::default(),
            last_id: tokio::sync::Mutex::default(),
        })
    }

    /// From now on, Redis may lose writes that it has answered.
    pub(crate) fn expect_lost_writes(&self) {
        self.state().expects_lost_writes = true;
    }

    pub(crate) fn expects_lost_writes(&self) -> bool {
        self.state().expects_lost_writes
    }

    /// Queues a new task of a new job.
    pub(crate) async fn queue(&self, task: &str, job: &str, plan: TaskPlan) {
        let (bindings, resolved) = bindings();
        let input = format!("jobs/{job}/audio/original.txt");
        let artifact = json!({"artifact_id": "P:text", "kind": "text", "storage_locator": format!("s3://{}/{input}", TestS3::BUCKET)});
        let request = json!({
            "task_id": task, "job_id": job, "request_bindings": bindings, "resolved_artifact_ids": resolved,
            "artifact_index": {"P:text": artifact}, "previous_responses": {},
            "config": {
                "loaded_model_id": plan.model_id(),
                "takes_ms": plan.duration.as_millis() as u64, "artifacts": plan.artifacts, "length": plan.length,
                "filler": plan.filler,
                "fails": u8::from(plan.kind == Kind::Fails), "panics": u8::from(plan.kind == Kind::Panics),
                "late": u8::from(plan.kind == Kind::Late), "kills": u8::from(plan.kind == Kind::Kills),
            },
        });
        let place = |key: &str| format!("{}/{key}", TestS3::BUCKET);
        self.platform.s3.put(&place(&input), input_of(task, plan.length));
        self.platform
            .s3
            .put(&place(&key::task_request(job, task)), request.to_string());
        let known = Task::new(job, plan);
        self.state().tasks.insert(task.to_owned(), known);
        self.write_metadata(task, job, &plan).await;
        match plan.twice {
            true => self.send_twice(task, job).await,
            false => self.send(task, job).await,
        }
    }

    async fn write_metadata(&self, task: &str, job: &str, plan: &TaskPlan) {
        let (bindings, resolved) = bindings();
        let () = self
            .platform
            .ask(&[
                "HSET",
                &keys::task(task),
                "job_id",
                job,
                "stage",
                TASK_STAGE,
                "engine_id",
                plan.engine,
                "queue_id",
                plan.engine,
                "execution_profile",
                "container",
                "enqueued_at",
                &Timestamp::now().to_string(),
                "request_bindings_json",
                &bindings.to_string(),
                "resolved_artifact_ids_json",
                &resolved.to_string(),
            ])
            .await;
    }

    /// Queues a failed task again.
    pub(crate) async fn queue_again(&self, task: &str) {
        let (job, plan) = {
            let state = self.state();
            let Some(task) = state.tasks.get(task) else { return };
            (task.job.clone(), task.plan)
        };
        self.write_metadata(task, &job, &plan).await;
        self.send(task, &job).await;
    }

    /// Cancels the job of a task.
    pub(crate) async fn cancel(&self, task: &str, job: &str) {
        self.note(task, "its job is cancelled");
        let () = self
            .platform
            .ask(&["SET", &keys::job_cancelled(job), "1", "EX", "86400"])
            .await;
    }

    pub(crate) fn note(&self, task: &str, what: impl Into<String>) {
        if let Some(task) = self.state().tasks.get_mut(task) {
            task.timeline.push((Timestamp::now(), what.into()));
        }
    }

    /// The history of a task, as lines of text.
    pub(crate) async fn evidence(&self, task: &str) -> Vec<String> {
        let (mut lines, messages, stream) = {
            let state = self.state();
            let Some(known) = state.tasks.get(task) else {
                return Vec::new();
            };
            let mut lines = vec![format!("{:?}, {:?}, job {}", known.plan, known.status, known.job)];
            lines.extend(known.timeline.iter().map(|(at, what)| format!("{at}  {what}")));
            (lines, known.messages.clone(), known.plan.stream())
        };
        for id in messages {
            let rows: Vec<(String, String, u64, u64)> = self
                .platform
                .ask(&["XPENDING", &stream, keys::TASK_GROUP, &id, &id, "1"])
                .await;
            lines.push(match rows.first() {
                Some((_, consumer, idle, deliveries)) => {
                    format!("entry {id}: pending with {consumer}, idle for {idle} ms, delivered {deliveries} times")
                }
                None => format!("entry {id}: not pending"),
            });
        }
        lines
    }

    /// Notes what the server knows of a task: its metadata, messages and events. A later phase
    /// removes them.
    pub(crate) async fn note_server_state(&self, task: &str) {
        type Entries = Vec<(String, BTreeMap<String, String>)>;
        let Some(stream) = self.state().tasks.get(task).map(|known| known.plan.stream()) else {
            return;
        };
        let metadata: BTreeMap<String, String> = self.platform.ask(&["HGETALL", &keys::task(task)]).await;
        let marks = [
            "owner",
            "stream_message_id",
            "waiting_message",
            "handed_back",
            "started_by",
            "inference_starts",
            "ended",
        ];
        for mark in marks {
            if let Some(value) = metadata.get(mark) {
                self.note(task, format!("metadata: {mark} {value}"));
            }
        }
        let messages: Entries = self.platform.ask(&["XRANGE", &stream, "-", "+"]).await;
        for (id, _) in messages
            .iter()
            .filter(|(_, fields)| fields.get("task_id").is_some_and(|id| id == task))
        {
            let pending: Vec<(String, String, u64, u64)> = self
                .platform
                .ask(&["XPENDING", &stream, keys::TASK_GROUP, id, id, "1"])
                .await;
            self.note(task, format!("message: {id} {pending:?}"));
        }
        // A storm has many events.
        let mut from = "-".to_owned();
        loop {
            let words = ["XRANGE", keys::EVENT_STREAM, &from, "+", "COUNT", "500"];
            let events: Entries = self.platform.ask(&words).await;
            let Some((last, _)) = events.last() else { break };
            from = format!("({last}");
            for (id, fields) in &events {
                let field = |name: &str| fields.get(name).map_or("", String::as_str);
                if field("payload").contains(task) {
                    self.note(task, format!("event: {id} {}", field("type")));
                }
            }
        }
    }

    /// Queues a task.
    async fn send(&self, task: &str, job: &str) {
        let mut last = self.last_id.lock().await;
        let id = next_id(&mut last);
        self.add(&mut last, id, task, job).await;
    }

    /// Queues a task under two messages. Both are older than every outcome.
    async fn send_twice(&self, task: &str, job: &str) {
        let mut last = self.last_id.lock().await;
        for id in [next_id(&mut last), next_id(&mut last)] {
            let id = self.add(&mut last, id, task, job).await;
            self.note_copy(task, id);
        }
    }

    /// Queues a task again that may not be lost, as the reconciler does. The message `before` is
    /// acknowledged.
    pub(crate) async fn requeue(&self, task: &str, before: &str) {
        let (job, stream) = {
            let state = self.state();
            let Some(task) = state.tasks.get(task) else { return };
            (task.job.clone(), task.plan.stream())
        };
        let mut last = self.last_id.lock().await;
        let id = next_id(&mut last);
        let id = self.add(&mut last, id, task, &job).await;
        self.note_copy(task, id.clone());
        let (key, now) = (keys::task(task), Timestamp::now().to_string());
        let words = [
            "HSET",
            &key,
            "reconciler_requeued_at",
            &now,
            "reconciler_previous_message_id",
            before,
        ];
        let () = self.platform.ask(&words).await;
        self.acknowledge(&stream, before).await;
    }

    pub(crate) async fn acknowledge(&self, stream: &str, message: &str) {
        let () = self
            .platform
            .ask(&["XACK", stream, keys::TASK_GROUP, message])
            .await;
    }

    fn note_copy(&self, task: &str, id: String) {
        self.note(task, format!("{id} is a copy"));
        if let Some(task) = self.state().tasks.get_mut(task) {
            task.copies.push(id);
        }
    }

    /// Adds a message with exactly the four fields. This side chooses the id, so that a retry adds
    /// no second message. Returns the id, which differs if an engine was faster.
    async fn add(&self, last: &mut (u64, u64), id: String, task: &str, job: &str) -> String {
        let plan = self.state().tasks[task].plan;
        let (stream, timeout) = (plan.stream(), plan.timeout);
        let now = Timestamp::now();
        let timeout_at = Timestamp::from(now.to_system_time() + timeout).to_string();
        let enqueued_at = now.to_string();
        let give_up = Instant::now() + Duration::from_secs(60);
        let (mut id, mut unanswered, mut may_be_copy) = (id, false, false);
        loop {
            {
                let mut state = self.state();
                if let Some(known) = state.tasks.get_mut(task) {
                    known.messages.push(id.clone());
                    known.timeline.push((now, format!("queued as {id}")));
                }
            }
            let words = [
                "XADD",
                &stream,
                &id,
                "task_id",
                task,
                "job_id",
                job,
                "enqueued_at",
                &enqueued_at,
                "timeout_at",
                &timeout_at,
            ];
            let added: RedisResult<String> = self.platform.try_ask(&words).await;
            match added {
                Ok(_) => break,
                // The message was added, and the answer was lost.
                Err(error) if is_old_id(&error) && unanswered && self.is_about(&stream, &id, task).await => {
                    break;
                }
                // An engine queued a task again at the same moment.
                Err(error) if is_old_id(&error) => {
                    if let Some(known) = self.state().tasks.get_mut(task) {
                        known.messages.retain(|message| *message != id);
                    }
                    id = next_id(last);
                    // Workers may have done and removed it already.
                    may_be_copy |= unanswered;
                }
                Err(error) if Instant::now() > give_up => panic!("queueing a task: {error}"),
                Err(_) => {
                    unanswered = true;
                    sleep(Duration::from_millis(50)).await;
                }
            }
        }
        let words = ["HSET", &keys::task(task), "stream_message_id", &id];
        let () = self.platform.ask(&words).await;
        if may_be_copy {
            self.note_copy(task, id.clone());
        }
        id
    }

    /// Whether the message with this id is about the task.
    async fn is_about(&self, stream: &str, id: &str, task: &str) -> bool {
        let entries: Vec<(String, HashMap<String, String>)> =
            self.platform.ask(&["XRANGE", stream, id, id]).await;
        entries
            .first()
            .is_some_and(|(_, fields)| fields.get("task_id").is_some_and(|id| id == task))
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The bindings of a task's input, and its resolved artifacts.
fn bindings() -> (Value, Value) {
    let selector = json!({"producer_stage": "prepare", "kind": "text", "required": true});
    let bindings = json!([{"slot": "text", "selector": selector}]);
    (bindings, json!({"text": "P:text"}))
}

fn is_old_id(error: &redis::RedisError) -> bool {
    error.to_string().contains("equal or smaller")
}

/// A message id of the current time, later than the last one.
fn next_id(last: &mut (u64, u64)) -> String {
    let now = Timestamp::now().to_system_time();
    let millis = now
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |since| since.as_millis() as u64);
    *last = if millis > last.0 {
        (millis, 0)
    } else {
        (last.0, last.1 + 1)
    };
    format!("{}-{}", last.0, last.1)
}
