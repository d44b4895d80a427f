//! The platform's side of every task: queues it, follows its events, and decides by the orchestrator's rules how it ended.
//!
//! The state that the orchestrator keeps in its database is kept here in memory: it is what the engines are measured by.

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

/// How often a task that failed is queued again.
const MAX_RETRIES: u32 = 2;
/// Long enough that no task of a storm comes near it.
const TASK_TIMEOUT: Duration = Duration::from_secs(3600);
const GROUP: &str = "orchestrators";
/// What an error of a task says if the storage was away for longer than the engine tries.
const STORAGE_FAILED: &str = "s3://";

/// Queues tasks and reads what becomes of them.
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

/// What a task is to do.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Order {
    pub(crate) kind: Kind,
    pub(crate) takes: Duration,
    pub(crate) artifacts: u64,
    /// Of its input, in lines.
    pub(crate) length: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Plain,
    Fails,
    Panics,
    /// Its job is cancelled at some time. If it was started, it has to be reported as completed, and needs no response.
    Cancelled,
}

#[derive(Debug)]
struct Task {
    job: String,
    order: Order,
    status: Status,
    retries: u32,
    messages: Vec<String>,
    starts: Vec<Timestamp>,
    /// How many of its starts came while it was running already.
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

/// Something that must not happen.
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
    how: How,
}

/// How a task came to need another engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum How {
    /// Its process was killed and its name never came back.
    Killed,
    /// Its process was killed and started anew under the same name.
    KilledAndBack,
    /// Its process handed it back.
    HandedBack,
}

/// What became of all tasks.
#[derive(Debug, Default, Clone)]
pub(crate) struct Counts {
    pub(crate) tasks: usize,
    pub(crate) open: usize,
    pub(crate) completed: usize,
    pub(crate) failed_as_meant: usize,
    pub(crate) failed_by_storage: usize,
    pub(crate) cancelled: usize,
    pub(crate) retries: u32,
    pub(crate) starts: usize,
    pub(crate) duplicates: usize,
    pub(crate) violations: usize,
}

/// What is wrong with a result.
enum Finding {
    /// It is not there, or not whole.
    Missing(String),
    /// It is whole, but its parts are from different attempts.
    Mixed(String),
}

/// What an event asks for.
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
    pub(crate) async fn queue(&self, task: &str, job: &str, order: Order) {
        let bindings = json!([{"slot": "text", "selector": {"producer_stage": "prepare", "kind": "text", "required": true}}]);
        let resolved = json!({"text": "P:text"});
        let input = format!("jobs/{job}/audio/original.txt");
        let artifact = json!({"artifact_id": "P:text", "kind": "text", "storage_locator": format!("s3://{}/{input}", TestS3::BUCKET)});
        let request = json!({
            "task_id": task, "job_id": job, "request_bindings": bindings, "resolved_artifact_ids": resolved,
            "artifact_index": {"P:text": artifact}, "previous_responses": {},
            "config": {
                "takes_ms": order.takes.as_millis() as u64, "artifacts": order.artifacts, "length": order.length,
                "fails": u8::from(order.kind == Kind::Fails), "panics": u8::from(order.kind == Kind::Panics),
            },
        });
        let place = |key: &str| format!("{}/{key}", TestS3::BUCKET);
        self.platform.s3.put(&place(&input), input_of(task, order.length));
        self.platform
            .s3
            .put(&place(&key::task_request(job, task)), request.to_string());
        self.state().tasks.insert(
            task.to_owned(),
            Task {
                job: job.to_owned(),
                order,
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

    /// A process was killed while it had these entries.
    pub(crate) fn freed(&self, messages: &[String], since: Timestamp, how: How) {
        let mut state = self.state();
        for message in messages {
            if let Some(task) = state.task_of_message.get(message).cloned() {
                state.freed.push(Freed { task, since, how });
            }
        }
    }

    /// A process said that it handed this task back.
    pub(crate) fn handed_back(&self, task: &str, since: Timestamp) {
        let (task, how) = (task.to_owned(), How::HandedBack);
        self.state().freed.push(Freed { task, since, how });
    }

    /// Seconds from the moment that a task lost its engine to its next start, in order.
    pub(crate) fn takeovers(&self, how: How) -> Vec<f64> {
        let state = self.state();
        let mut took: Vec<f64> = state
            .freed
            .iter()
            .filter(|freed| freed.how == how)
            .filter_map(|freed| {
                let starts = &state.tasks.get(&freed.task)?.starts;
                let next = starts.iter().filter(|start| **start > freed.since).min()?;
                Some(next.seconds_since(freed.since))
            })
            .collect();
        took.sort_by(f64::total_cmp);
        took
    }

    /// Forgets what was measured so far.
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

    /// How often a task was started.
    pub(crate) fn starts(&self, task: &str) -> usize {
        self.state().tasks.get(task).map_or(0, |task| task.starts.len())
    }

    pub(crate) fn is_over(&self, task: &str) -> bool {
        self.state().tasks.get(task).is_some_and(Task::is_over)
    }

    /// Tasks of whose end nothing is known yet. A cancelled one that was never started may end without a word.
    pub(crate) fn open_tasks(&self) -> Vec<String> {
        let state = self.state();
        let open = state.tasks.iter().filter(|(_, task)| {
            !task.is_over() && (task.order.kind, &task.status) != (Kind::Cancelled, &Status::Ready)
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
                Status::Completed if task.order.kind == Kind::Cancelled => counts.cancelled += 1,
                Status::Completed => counts.completed += 1,
                Status::Ready if task.order.kind == Kind::Cancelled => counts.cancelled += 1,
                Status::Failed(error) if error.contains(FAILURE) => counts.failed_as_meant += 1,
                Status::Failed(_) => counts.failed_by_storage += 1,
                Status::Ready | Status::Running => counts.open += 1,
            }
        }
        counts
    }

    /// What is known of a task, for people.
    pub(crate) async fn evidence(&self, task: &str) -> Vec<String> {
        let (mut lines, messages) = {
            let state = self.state();
            let Some(known) = state.tasks.get(task) else {
                return Vec::new();
            };
            let mut lines = vec![format!(
                "{:?}, {:?}, job {}",
                known.order, known.status, known.job
            )];
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

    /// Looks at the results of all completed tasks once more. Returns how many have parts of different attempts.
    pub(crate) async fn check_all_results(&self) -> usize {
        let completed: Vec<String> = {
            let state = self.state();
            let completed = state
                .tasks
                .iter()
                .filter(|(_, task)| task.status == Status::Completed && task.order.kind == Kind::Plain);
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

    /// Follows the events for as long as it is polled.
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
                // What was on its way to us when the last connection ended.
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

    /// The orchestrator's rules, where they are strict; where they forgive what a correct engine never does, that is an error.
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
            // Whoever had it before may have started it; who gets it now can't know.
            ("task.completed", Status::Ready | Status::Running) if task.order.kind == Kind::Cancelled => {
                task.status = Status::Completed;
                Ok(Reaction::Nothing)
            }
            ("task.completed", Status::Running) => {
                task.status = Status::Completed;
                match task.order.kind {
                    Kind::Plain => Ok(Reaction::CheckResult),
                    _ => Err("it is completed, though it was to fail".to_owned()),
                }
            }
            ("task.failed", Status::Running) => {
                let explained = match task.order.kind {
                    _ if error.contains(STORAGE_FAILED) => true,
                    Kind::Fails | Kind::Panics => error.contains(FAILURE),
                    Kind::Plain | Kind::Cancelled => false,
                };
                if !explained {
                    task.status = Status::Failed(error.to_owned());
                    return Err(format!(
                        "it failed for a reason that nothing here explains: {error}"
                    ));
                }
                if task.retries < MAX_RETRIES && task.order.kind != Kind::Cancelled {
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

    /// Adds a message with exactly the four fields. The id is chosen here, so that it can be sent again without harm.
    async fn send(&self, task: &str, job: &str) {
        let stream = keys::task_stream(ENGINE);
        let mut last = self.last_id.lock().await;
        let now = Timestamp::now();
        let millis = now
            .to_system_time()
            .duration_since(std::time::UNIX_EPOCH)
            .map_or(0, |since| since.as_millis() as u64);
        *last = if millis > last.0 {
            (millis, 0)
        } else {
            (last.0, last.1 + 1)
        };
        let id = format!("{}-{}", last.0, last.1);
        {
            let mut state = self.state();
            state.task_of_message.insert(id.clone(), task.to_owned());
            if let Some(known) = state.tasks.get_mut(task) {
                known.messages.push(id.clone());
                known.timeline.push((now, format!("queued as {id}")));
            }
        }
        let timeout_at = Timestamp::from(now.to_system_time() + TASK_TIMEOUT).to_string();
        let enqueued_at = now.to_string();
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
        let give_up = Instant::now() + Duration::from_secs(60);
        loop {
            let added: RedisResult<String> = self.platform.try_ask(&words).await;
            match added {
                Ok(_) => return,
                // It was added, and only the answer was lost.
                Err(error) if error.to_string().contains("equal or smaller") => return,
                Err(error) if Instant::now() > give_up => panic!("queueing a task: {error}"),
                Err(_) => sleep(Duration::from_millis(50)).await,
            }
        }
    }

    /// Whether what the next stage would read is all there.
    async fn check_result(&self, task: &str) -> Result<(), Finding> {
        let missing = |what: String| Err(Finding::Missing(what));
        let Some((job, artifacts)) = self
            .state()
            .tasks
            .get(task)
            .map(|task| (task.job.clone(), task.order.artifacts as usize))
        else {
            return missing("it is unknown".to_owned());
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
            return Err(Finding::Missing(format!("{path} is not there")));
        };
        let value: Value = serde_json::from_slice(&object.content)
            .map_err(|error| Finding::Missing(format!("{path} is no JSON: {error}")))?;
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

impl Task {
    fn is_over(&self) -> bool {
        matches!(self.status, Status::Completed | Status::Failed(_))
    }
}
