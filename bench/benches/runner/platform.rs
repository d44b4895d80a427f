//! The orchestrator's side of the protocol: the keys of a task, and the events at its end.

use dalston_engine_sdk::protocol::{ArtifactReference, TaskRequestData, Timestamp};
use dalston_engine_sdk::store::{Store, key};
use redis::Commands;

pub(crate) const ENGINE: &str = "bench";
pub(crate) const STREAM: &str = "dalston:stream:bench";
pub(crate) const GROUP: &str = "engines";
/// The trace context of an orchestrator that traces.
const TRACE: &str = r#"{"traceparent":"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"}"#;

/// A server and its process.
pub(crate) struct Address<'a> {
    pub(crate) url: &'a str,
    pub(crate) pid: u32,
}

impl<'a> Address<'a> {
    pub(crate) fn parse(text: &'a str) -> Self {
        let (url, pid) = text.split_once('#').unwrap();
        let pid = pid.parse().unwrap();
        Self { url, pid }
    }
}

pub(crate) struct Platform {
    connection: redis::Connection,
    traced: bool,
}

impl Platform {
    pub(crate) fn connect(url: &str, traced: bool) -> Self {
        let client = redis::Client::open(url).unwrap();
        let connection = client.get_connection().unwrap();
        Self { connection, traced }
    }

    /// Writes the metadata of these tasks.
    pub(crate) fn describe(&mut self, tasks: impl Iterator<Item = usize>) {
        let mut pipeline = redis::pipe();
        for number in tasks {
            let (task, job) = (task_id(number), job_id(number));
            let command = pipeline.cmd("HSET").arg(format!("dalston:task:{task}"));
            command.arg("job_id").arg(&job).arg("stage").arg("transcribe");
            command.arg("engine_id").arg(ENGINE).arg("queue_id").arg(ENGINE);
            command.arg("execution_profile").arg("container");
            command.arg("enqueued_at").arg(Timestamp::now().to_string());
            command.arg("request_bindings_json").arg("[]");
            command.arg("resolved_artifact_ids_json").arg("{}");
            if self.traced {
                command.arg("_trace_context").arg(TRACE);
            }
            pipeline.ignore();
            if pipeline.len() == 1_000 {
                self.send(&pipeline);
                pipeline.clear();
            }
        }
        self.send(&pipeline);
    }

    /// Queues them.
    pub(crate) fn queue(&mut self, tasks: impl Iterator<Item = usize>) {
        let mut pipeline = redis::pipe();
        for number in tasks {
            add_message(&mut pipeline, number);
            if pipeline.len() == 1_000 {
                self.send(&pipeline);
                pipeline.clear();
            }
        }
        self.send(&pipeline);
    }

    /// Queues one.
    pub(crate) fn queue_one(&mut self, number: usize) {
        let mut pipeline = redis::pipe();
        add_message(&mut pipeline, number);
        let () = pipeline.query(&mut self.connection).unwrap();
    }

    fn send(&mut self, pipeline: &redis::Pipeline) {
        if !pipeline.is_empty() {
            let () = pipeline.query(&mut self.connection).unwrap();
        }
    }

    /// Creates the consumer group, as the orchestrator does before it queues a task.
    pub(crate) fn make_group(&mut self) {
        let _: redis::RedisResult<()> = self.connection.xgroup_create_mkstream(STREAM, GROUP, "0");
    }

    /// The number of tasks that were delivered and not acknowledged.
    pub(crate) fn pending(&mut self) -> usize {
        let pending: redis::streams::StreamPendingReply = self.connection.xpending(STREAM, GROUP).unwrap();
        pending.count()
    }

    /// The number of events that were written, including trimmed ones.
    pub(crate) fn events(&mut self) -> usize {
        let info: std::collections::HashMap<String, redis::Value> = redis::cmd("XINFO")
            .arg("STREAM")
            .arg("dalston:events:stream")
            .query(&mut self.connection)
            .unwrap();
        redis::from_redis_value(info["entries-added"].clone()).unwrap()
    }
}

fn add_message(pipeline: &mut redis::Pipeline, number: usize) {
    let now = Timestamp::now();
    let in_an_hour = Timestamp::from(now.to_system_time() + std::time::Duration::from_secs(3_600));
    pipeline
        .cmd("XADD")
        .arg(STREAM)
        .arg("*")
        .arg("task_id")
        .arg(task_id(number))
        .arg("job_id")
        .arg(job_id(number))
        .arg("enqueued_at")
        .arg(now.to_string())
        .arg("timeout_at")
        .arg(in_an_hour.to_string())
        .ignore();
}

/// Writes `request.json` of these tasks. With `artifact`, each task has an input with this content.
pub(crate) async fn write_requests(
    store: &Store,
    tasks: impl Iterator<Item = usize>,
    artifact: Option<&str>,
) {
    for number in tasks {
        let (task, job) = (task_id(number), job_id(number));
        let mut request = TaskRequestData::new(&*task, &*job);
        request.config.insert("language".to_owned(), "auto".into());
        if let Some(content) = artifact {
            let locator = store.write(&original(&job), content.to_owned()).await.unwrap();
            let reference = ArtifactReference::new("audio", "audio", locator);
            request.artifact_index.insert("audio".to_owned(), reference);
            request
                .resolved_artifact_ids
                .insert("audio".to_owned(), "audio".to_owned());
        }
        store
            .write(&key::task_request(&job, &task), request.to_vec())
            .await
            .unwrap();
    }
}

/// The key of the recording of a job.
pub(crate) fn original(job: &str) -> String {
    format!("jobs/{job}/audio/original.wav")
}

/// A UUID with the number at its end.
pub(crate) fn task_id(number: usize) -> String {
    format!("7a5c0de0-1111-4111-8111-{number:012}")
}

pub(crate) fn job_id(number: usize) -> String {
    format!("10b00000-2222-4222-8222-{number:012}")
}

/// The number of a task.
pub(crate) fn number_of(task_id: &str) -> usize {
    task_id[24..].parse().unwrap()
}
