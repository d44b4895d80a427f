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
use redis::aio::MultiplexedConnection;
use serde_json::{Value, json};
use testbed::TestS3;
use tokio::time::{Instant, sleep};

use crate::engine::{ENGINE, FAILURE, input_of};
use crate::platform::Platform;

/// The number of retries of a failed task.
const MAX_RETRIES: u32 = 2;
/// Longer than every task of a storm.
const TASK_TIMEOUT: Duration = Duration::from_secs(3600);
const GROUP: &str = "orchestrators";
/// A part of the error of a task if the storage failed for longer than the engine retries.
const STORAGE_FAILED: &str = "s3://";

/// Queues tasks and follows their events.
#[derive(Debug)]
pub(crate) struct Orchestrator {
    platform: Arc<Platform>,
    state: Mutex<State>,
    /// The last id in the stream: milliseconds and a number.
    last_id: tokio::sync::Mutex<(u64, u64)>,
}

#[derive(Debug, Default)]
struct State {
    tasks: HashMap<String, Task>,
    task_of_message: HashMap<String, String>,
    seen: HashSet<String>,
    violations: Vec<Violation>,
    freed: Vec<Freed>,
}

/// The configuration of a task.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TaskPlan {
    pub(crate) kind: Kind,
    pub(crate) duration: Duration,
    pub(crate) artifacts: u64,
    /// The length of its input in lines.
    pub(crate) length: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Plain,
    Fails,
    Panics,
    /// Its job is cancelled at some time. If it was started, it must be reported as completed, and
    /// needs no response.
    Cancelled,
}

#[derive(Debug)]
struct Task {
    job: String,
    plan: TaskPlan,
    status: Status,
    retries: u32,
    messages: Vec<String>,
    starts: Vec<Timestamp>,
    /// The number of starts while it was running.
    duplicates: usize,
    timeline: Vec<(Timestamp, String)>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Status {
    Ready,
    Running,
    Completed,
    Failed(String),
}

/// A violation of the rules.
#[derive(Debug, Clone)]
pub(crate) struct Violation {
    pub(crate) task: Option<String>,
    pub(crate) what: String,
}

/// A task that lost its engine.
#[derive(Debug)]
struct Freed {
    task: String,
    since: Timestamp,
    cause: Cause,
}

/// The reason why a task lost its engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Cause {
    /// Its process was killed, and the replacement has another name.
    Killed,
    /// Its process was killed, and the replacement has the same name.
    KilledAndRestarted,
    /// Its process released it.
    Released,
}

/// The state of all tasks.
#[derive(Debug, Default, Clone)]
pub(crate) struct Counts {
    pub(crate) tasks: usize,
    pub(crate) open: usize,
    pub(crate) completed: usize,
    pub(crate) failed_as_planned: usize,
    pub(crate) failed_by_storage: usize,
    pub(crate) cancelled: usize,
    pub(crate) retries: u32,
    pub(crate) starts: usize,
    pub(crate) duplicates: usize,
    pub(crate) violations: usize,
}

/// A defect of a result.
enum Finding {
    /// It is missing or incomplete.
    Missing(String),
    /// It is complete, but its parts are from different attempts.
    Mixed(String),
}

/// The reaction to an event.
enum Reaction {
    Nothing,
    CheckResult,
    Retry,
}

impl Orchestrator {
    pub(crate) fn new(platform: Arc<Platform>) -> Arc<Self> {
        Arc::new(Self {
            platform,
            state: Mutex::default(),
            last_id: tokio::sync::Mutex::default(),
        })
    }

    /// Queues a new task of a new job.
    pub(crate) async fn queue(&self, task: &str, job: &str, plan: TaskPlan) {
        let bindings = json!([{"slot": "text", "selector": {"producer_stage": "prepare", "kind": "text", "required": true}}]);
        let resolved = json!({"text": "P:text"});
        let input = format!("jobs/{job}/audio/original.txt");
        let artifact = json!({"artifact_id": "P:text", "kind": "text", "storage_locator": format!("s3://{}/{input}", TestS3::BUCKET)});
        let request = json!({
            "task_id": task, "job_id": job, "request_bindings": bindings, "resolved_artifact_ids": resolved,
            "artifact_index": {"P:text": artifact}, "previous_responses": {},
            "config": {
                "takes_ms": plan.duration.as_millis() as u64, "artifacts": plan.artifacts, "length": plan.length,
                "fails": u8::from(plan.kind == Kind::Fails), "panics": u8::from(plan.kind == Kind::Panics),
            },
        });
        let place = |key: &str| format!("{}/{key}", TestS3::BUCKET);
        self.platform.s3.put(&place(&input), input_of(task, plan.length));
        self.platform
            .s3
            .put(&place(&key::task_request(job, task)), request.to_string());
        self.state().tasks.insert(
            task.to_owned(),
            Task {
                job: job.to_owned(),
                plan,
                status: Status::Ready,
                retries: 0,
                messages: Vec::new(),
                starts: Vec::new(),
                duplicates: 0,
                timeline: Vec::new(),
            },
        );
        let () = self
            .platform
            .ask(&[
                "HSET",
                &keys::task(task),
                "job_id",
                job,
                "stage",
                ENGINE,
                "engine_id",
                ENGINE,
                "queue_id",
                ENGINE,
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
        self.send(task, job).await;
    }

    /// Cancels the job of a task.
    pub(crate) async fn cancel(&self, task: &str, job: &str) {
        self.note(task, "its job is cancelled");
        let () = self
            .platform
            .ask(&["SET", &keys::job_cancelled(job), "1", "EX", "86400"])
            .await;
    }

    /// Records that a process with these pending entries was killed.
    pub(crate) fn freed(&self, messages: &[String], since: Timestamp, cause: Cause) {
        let mut state = self.state();
        for message in messages {
            if let Some(task) = state.task_of_message.get(message).cloned() {
                state.freed.push(Freed { task, since, cause });
            }
        }
    }

    /// Records that a process released this task.
    pub(crate) fn released(&self, task: &str, since: Timestamp) {
        let (task, cause) = (task.to_owned(), Cause::Released);
        self.state().freed.push(Freed { task, since, cause });
    }

    /// The sorted seconds from the loss of its engine to the next start of each task.
    pub(crate) fn takeovers(&self, cause: Cause) -> Vec<f64> {
        let state = self.state();
        let mut took: Vec<f64> = state
            .freed
            .iter()
            .filter(|freed| freed.cause == cause)
            .filter_map(|freed| {
                let starts = &state.tasks.get(&freed.task)?.starts;
                let next = starts.iter().filter(|start| **start > freed.since).min()?;
                Some(next.seconds_since(freed.since))
            })
            .collect();
        took.sort_by(f64::total_cmp);
        took
    }

    /// The sorted seconds from the queueing of each task to its first start.
    pub(crate) fn waits(&self, tasks: &[String]) -> Vec<f64> {
        let state = self.state();
        let wait = |task: &String| {
            let task = state.tasks.get(task)?;
            let (queued, _) = task
                .timeline
                .iter()
                .find(|(_, what)| what.starts_with("queued"))?;
            Some(task.starts.iter().min()?.seconds_since(*queued))
        };
        let mut waits: Vec<f64> = tasks.iter().filter_map(wait).collect();
        waits.sort_by(f64::total_cmp);
        waits
    }

    /// Discards the measured takeovers.
    pub(crate) fn forget_takeovers(&self) {
        self.state().freed.clear();
    }

    pub(crate) fn violation(&self, task: Option<&str>, what: impl Into<String>) {
        let (task, what) = (task.map(str::to_owned), what.into());
        self.state().violations.push(Violation { task, what });
    }

    pub(crate) fn violations(&self) -> Vec<Violation> {
        self.state().violations.clone()
    }

    pub(crate) fn note(&self, task: &str, what: impl Into<String>) {
        if let Some(task) = self.state().tasks.get_mut(task) {
            task.timeline.push((Timestamp::now(), what.into()));
        }
    }

    /// The number of starts of a task.
    pub(crate) fn starts(&self, task: &str) -> usize {
        self.state().tasks.get(task).map_or(0, |task| task.starts.len())
    }

    pub(crate) fn is_over(&self, task: &str) -> bool {
        self.state().tasks.get(task).is_some_and(Task::is_over)
    }

    /// Tasks without a known end. A cancelled task that was never started may end without an event.
    pub(crate) fn open_tasks(&self) -> Vec<String> {
        let state = self.state();
        let open = state.tasks.iter().filter(|(_, task)| {
            !task.is_over() && (task.plan.kind, &task.status) != (Kind::Cancelled, &Status::Ready)
        });
        open.map(|(id, _)| id.clone()).collect()
    }

    pub(crate) fn counts(&self) -> Counts {
        let state = self.state();
        let mut counts = Counts {
            tasks: state.tasks.len(),
            violations: state.violations.len(),
            ..Counts::default()
        };
        for task in state.tasks.values() {
            counts.retries += task.retries;
            counts.starts += task.starts.len();
            counts.duplicates += task.duplicates;
            match &task.status {
                Status::Completed if task.plan.kind == Kind::Cancelled => counts.cancelled += 1,
                Status::Completed => counts.completed += 1,
                Status::Ready if task.plan.kind == Kind::Cancelled => counts.cancelled += 1,
                Status::Failed(error) if error.contains(FAILURE) => counts.failed_as_planned += 1,
                Status::Failed(_) => counts.failed_by_storage += 1,
                Status::Ready | Status::Running => counts.open += 1,
            }
        }
        counts
    }

    /// The history of a task, as lines of text.
    pub(crate) async fn evidence(&self, task: &str) -> Vec<String> {
        let (mut lines, messages) = {
            let state = self.state();
            let Some(known) = state.tasks.get(task) else {
                return Vec::new();
            };
            let mut lines = vec![format!("{:?}, {:?}, job {}", known.plan, known.status, known.job)];
            lines.extend(known.timeline.iter().map(|(at, what)| format!("{at}  {what}")));
            (lines, known.messages.clone())
        };
        let stream = keys::task_stream(ENGINE);
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

    /// Checks the results of all completed tasks again. Returns the number of results with parts of
    /// different attempts.
    pub(crate) async fn check_all_results(&self) -> usize {
        let completed: Vec<String> = {
            let state = self.state();
            let completed = state
                .tasks
                .iter()
                .filter(|(_, task)| task.status == Status::Completed && task.plan.kind == Kind::Plain);
            completed.map(|(id, _)| id.clone()).collect()
        };
        let mut mixed = 0;
        for task in completed {
            match self.check_result(&task).await {
                Ok(()) => {}
                Err(Finding::Missing(problem)) => {
                    self.violation(Some(&task), format!("at the end, {problem}"))
                }
                Err(Finding::Mixed(problem)) => {
                    mixed += 1;
                    self.violation(Some(&task), format!("at the end, {problem}"));
                }
            }
        }
        mixed
    }

    /// Follows the events until the future is dropped.
    pub(crate) async fn follow(self: Arc<Self>) {
        let mut connection = None;
        loop {
            if let Err(error) = self.read_events(&mut connection).await {
                connection = None;
                if error.code() == Some("NOGROUP") {
                    panic!("the event stream is gone: {error}");
                }
                sleep(Duration::from_millis(50)).await;
            }
        }
    }

    async fn read_events(&self, connection: &mut Option<MultiplexedConnection>) -> RedisResult<()> {
        let stream = keys::EVENT_STREAM;
        let (connection, mut from) = match connection {
            Some(connection) => (connection, ">"),
            none => {
                let new = none.insert(self.platform.blocking().await?);
                let made: RedisResult<()> = redis::cmd("XGROUP")
                    .arg(&["CREATE", stream, GROUP, "0", "MKSTREAM"])
                    .query_async(new)
                    .await;
                made.or_else(|error| {
                    if error.code() == Some("BUSYGROUP") {
                        Ok(())
                    } else {
                        Err(error)
                    }
                })?;
                // Entries that were delivered to the lost connection.
                (new, "0")
            }
        };
        loop {
            type Answer = Option<Vec<(String, Vec<(String, BTreeMap<String, String>)>)>>;
            let answer: Answer = redis::cmd("XREADGROUP")
                .arg(&[
                    "GROUP", GROUP, "chaos", "COUNT", "100", "BLOCK", "200", "STREAMS", stream, from,
                ])
                .query_async(connection)
                .await?;
            let events = answer
                .and_then(|mut streams| Some(streams.pop()?.1))
                .unwrap_or_default();
            if events.is_empty() {
                from = ">";
            }
            for (id, fields) in events {
                if self.state().seen.insert(id.clone()) {
                    self.handle(&fields).await;
                }
                let () = redis::cmd("XACK")
                    .arg(&[stream, GROUP, &id])
                    .query_async(connection)
                    .await?;
            }
        }
    }

    async fn handle(&self, fields: &BTreeMap<String, String>) {
        let field = |name: &str| fields.get(name).map_or("", String::as_str);
        let payload: Value = field("payload").parse().unwrap_or_default();
        let text = |name: &str| payload[name].as_str().unwrap_or_default();
        let (kind, task) = (field("type"), text("task_id"));
        let Ok(at) = field("timestamp").parse::<Timestamp>() else {
            return self.violation(None, format!("an event without a time: {fields:?}"));
        };
        match self.decide(kind, task, text("job_id"), text("error"), at) {
            Err(what) => self.violation(Some(task), what),
            Ok(Reaction::Nothing) => {}
            Ok(Reaction::CheckResult) => match self.check_result(task).await {
                Ok(()) => {}
                Err(Finding::Missing(problem) | Finding::Mixed(problem)) => {
                    self.violation(Some(task), format!("it is reported as completed, but {problem}"));
                }
            },
            Ok(Reaction::Retry) => {
                let () = self
                    .platform
                    .ask(&[
                        "HSET",
                        &keys::task(task),
                        "enqueued_at",
                        &Timestamp::now().to_string(),
                    ])
                    .await;
                self.send(task, text("job_id")).await;
            }
        }
    }

    /// Applies the orchestrator's rules. An event that the orchestrator tolerates and a correct
    /// engine never sends is an error.
    fn decide(
        &self,
        kind: &str,
        id: &str,
        job: &str,
        error: &str,
        at: Timestamp,
    ) -> Result<Reaction, String> {
        let mut state = self.state();
        let Some(task) = state.tasks.get_mut(id) else {
            return Err(format!("an event of a task that was never queued: {kind}"));
        };
        task.timeline.push((at, format!("{kind} {error}")));
        if task.job != job {
            return Err(format!("{kind} names the job {job:?}"));
        }
        match (kind, &task.status) {
            ("task.started", Status::Ready) => {
                task.starts.push(at);
                task.status = Status::Running;
                Ok(Reaction::Nothing)
            }
            ("task.started", Status::Running) => {
                task.starts.push(at);
                task.duplicates += 1;
                Ok(Reaction::Nothing)
            }
            // An earlier delivery may have started it, which the current worker cannot know.
            ("task.completed", Status::Ready | Status::Running) if task.plan.kind == Kind::Cancelled => {
                task.status = Status::Completed;
                Ok(Reaction::Nothing)
            }
            ("task.completed", Status::Running) => {
                task.status = Status::Completed;
                match task.plan.kind {
                    Kind::Plain => Ok(Reaction::CheckResult),
                    _ => Err("it is completed, and its configuration demands a failure".to_owned()),
                }
            }
            ("task.failed", Status::Running) => {
                let is_expected = match task.plan.kind {
                    _ if error.contains(STORAGE_FAILED) => true,
                    Kind::Fails | Kind::Panics => error.contains(FAILURE),
                    Kind::Plain | Kind::Cancelled => false,
                };
                if !is_expected {
                    task.status = Status::Failed(error.to_owned());
                    return Err(format!("it failed for an unexpected reason: {error}"));
                }
                if task.retries < MAX_RETRIES && task.plan.kind != Kind::Cancelled {
                    task.retries += 1;
                    task.status = Status::Ready;
                    return Ok(Reaction::Retry);
                }
                task.status = Status::Failed(error.to_owned());
                Ok(Reaction::Nothing)
            }
            ("task.started", _) => Err("it was started after its end".to_owned()),
            (_, Status::Ready) => Err(format!("{kind} without a start")),
            ("task.completed" | "task.failed", _) => Err(format!("{kind} after its end: a second outcome")),
            _ => Err(format!("an event of an unknown kind: {kind}")),
        }
    }

    /// Adds a message with exactly the four fields. This side chooses the id, so that a retry adds
    /// no second message.
    async fn send(&self, task: &str, job: &str) {
        let stream = keys::task_stream(ENGINE);
        let mut last = self.last_id.lock().await;
        let now = Timestamp::now();
        let timeout_at = Timestamp::from(now.to_system_time() + TASK_TIMEOUT).to_string();
        let enqueued_at = now.to_string();
        let give_up = Instant::now() + Duration::from_secs(60);
        let mut unanswered = None;
        loop {
            let id = unanswered.clone().unwrap_or_else(|| next_id(&mut last));
            {
                let mut state = self.state();
                state.task_of_message.insert(id.clone(), task.to_owned());
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
                Ok(_) => return,
                Err(error) if error.to_string().contains("equal or smaller") => {
                    if unanswered.is_some() {
                        // The message was added, and the answer was lost.
                        return;
                    }
                    // An engine queued a task again at the same moment.
                }
                Err(error) if Instant::now() > give_up => panic!("queueing a task: {error}"),
                Err(_) => {
                    unanswered = Some(id);
                    sleep(Duration::from_millis(50)).await;
                }
            }
        }
    }

    /// Checks that the next stage finds everything that it reads.
    async fn check_result(&self, task: &str) -> Result<(), Finding> {
        let missing = |what: String| Err(Finding::Missing(what));
        let Some((job, artifacts)) = self
            .state()
            .tasks
            .get(task)
            .map(|task| (task.job.clone(), task.plan.artifacts as usize))
        else {
            return missing("the task is unknown".to_owned());
        };
        let response = self.read_json(&key::task_response(&job, task), task)?;
        let data = &response["data"];
        if data["task_id"] != task {
            return missing(format!("its response has the data {data}"));
        }
        let references = response["produced_artifacts"]
            .as_array()
            .cloned()
            .unwrap_or_default();
        if references.len() != artifacts {
            return missing(format!(
                "its response names {} of {artifacts} artifacts",
                references.len()
            ));
        }
        let index: HashMap<String, String> =
            self.platform.ask(&["HGETALL", &keys::job_artifacts(&job)]).await;
        for reference in references {
            let id = reference["artifact_id"].as_str().unwrap_or_default();
            let locator = reference["storage_locator"].as_str().unwrap_or_default();
            let path = locator
                .strip_prefix(&format!("s3://{}/", TestS3::BUCKET))
                .unwrap_or_default();
            let file = self.read_json(path, task)?;
            let Some(indexed) = index.get(id).and_then(|text| text.parse::<Value>().ok()) else {
                return missing(format!("its artifact {id} is not in the index"));
            };
            if indexed["storage_locator"] != reference["storage_locator"] {
                return missing(format!("the index has its artifact {id} as {indexed}"));
            }
            let size = self
                .platform
                .s3
                .get(&format!("{}/{path}", TestS3::BUCKET))
                .map(|object| object.content.len());
            let sizes =
                [&reference["size"], &indexed["size"]].map(|size| size.as_u64().map(|size| size as usize));
            if file["by"] != data["by"] || sizes != [size; 2] {
                return Err(Finding::Mixed(format!(
                    "its response is by {}, its artifact {id} by {}: {size:?} bytes, of which the response says {:?} and the index {:?}",
                    data["by"], file["by"], sizes[0], sizes[1]
                )));
            }
        }
        Ok(())
    }

    fn read_json(&self, path: &str, task: &str) -> Result<Value, Finding> {
        let Some(object) = self.platform.s3.get(&format!("{}/{path}", TestS3::BUCKET)) else {
            return Err(Finding::Missing(format!("{path} is missing")));
        };
        let value: Value = serde_json::from_slice(&object.content)
            .map_err(|error| Finding::Missing(format!("{path} is not JSON: {error}")))?;
        if value["task_id"] != task {
            return Err(Finding::Missing(format!(
                "{path} is about the task {}",
                value["task_id"]
            )));
        }
        Ok(value)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
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

impl Task {
    fn is_over(&self) -> bool {
        matches!(self.status, Status::Completed | Status::Failed(_))
    }
}
