//! The public suite on each broker of the SDK.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use dalston_engine_sdk::broker::{Broker, Consumer, EventKind, MemoryBroker, QueuedTask, TaskMetadata};
use dalston_engine_sdk::testing::broker_suite::{ENGINE, Platform, Report, ReportKind};
use futures_util::FutureExt;

/// How long a silent worker keeps a task.
const LEASE: Duration = Duration::from_secs(1);

struct InMemory(MemoryBroker);

#[async_trait]
impl Platform for InMemory {
    fn broker(&self) -> Arc<dyn Broker> {
        Arc::new(self.0.clone())
    }

    async fn enqueue(&self, task_id: &str, job_id: &str, stage: Option<&str>) {
        let mut task = QueuedTask::new(ENGINE, task_id, job_id);
        task.metadata = stage.map(TaskMetadata::new);
        self.0.enqueue(task).unwrap();
    }

    async fn cancel_job(&self, job_id: &str) {
        self.0.cancel_job(job_id);
    }

    async fn reports(&self) -> Vec<Report> {
        let reports = self.0.events().into_iter().map(|event| {
            let kind = match event.kind {
                EventKind::Started => ReportKind::Started,
                EventKind::Completed { .. } => ReportKind::Completed,
                EventKind::Failed { error, .. } => ReportKind::Failed(error),
                other => panic!("{other:?}"),
            };
            Report {
                kind,
                task_id: event.task_id,
                context: event.context,
            }
        });
        reports.collect()
    }

    async fn unfinished_tasks(&self) -> usize {
        self.0.waiting() + self.0.held()
    }
}

mod memory {
    use super::{InMemory, LEASE, MemoryBroker};

    async fn platform() -> InMemory {
        InMemory(MemoryBroker::with(LEASE, 1000))
    }

    dalston_engine_sdk::broker_suite!(platform);
}

#[tokio::test]
async fn busy_worker_leaves_a_task_to_one_that_waits() {
    let broker = MemoryBroker::new();
    let consumer = |name: &str| Consumer {
        engine_id: ENGINE.to_owned(),
        instance: name.to_owned(),
    };
    let wait = Duration::from_secs(20);
    let (busy, idle) = (consumer("busy"), consumer("idle"));
    let (ahead, next) = (broker.receive_ahead(&busy, wait), broker.receive(&idle, wait));
    tokio::pin!(ahead, next);
    // Both wait, the busy one for longer.
    assert!((&mut ahead).now_or_never().is_none());
    assert!((&mut next).now_or_never().is_none());
    broker.enqueue(QueuedTask::new(ENGINE, "T1", "J1")).unwrap();
    let (left, taken) = tokio::join!(tokio::time::timeout(Duration::from_millis(20), ahead), next);
    assert!(left.is_err());
    assert_eq!(taken.unwrap().unwrap().claim.task_id, "T1");
}

#[cfg(feature = "redis")]
mod redis {
    use std::collections::{HashMap, HashSet};

    use dalston_engine_sdk::broker::EventContext;
    use dalston_engine_sdk::redis::{RedisBroker, RedisServer};
    use serde_json::Value;
    use testbed::TestRedis;

    use super::*;

    struct OnRedis(TestRedis);

    async fn platform() -> OnRedis {
        OnRedis(TestRedis::start().await)
    }

    dalston_engine_sdk::broker_suite!(platform);

    #[async_trait]
    impl Platform for OnRedis {
        fn broker(&self) -> Arc<dyn Broker> {
            let server = RedisServer::new(&self.0.url()).unwrap();
            Arc::new(RedisBroker::with_lease(server, LEASE))
        }

        async fn enqueue(&self, task_id: &str, job_id: &str, stage: Option<&str>) {
            if let Some(stage) = stage {
                let key = format!("dalston:task:{task_id}");
                let fields = ["HSET", &key, "stage", stage, "job_id", job_id];
                let () = self.0.send(&fields).await;
            }
            let now = "2026-11-20T18:17:06.690014+00:00";
            let mut message = vec!["XADD", "dalston:stream:my-asr", "*"];
            message.extend(["task_id", task_id, "job_id", job_id]);
            message.extend(["enqueued_at", now, "timeout_at", now]);
            let () = self.0.send(&message).await;
        }

        async fn cancel_job(&self, job_id: &str) {
            let key = format!("dalston:job:cancelled:{job_id}");
            let () = self.0.send(&["SET", &key, "1", "EX", "86400"]).await;
        }

        async fn reports(&self) -> Vec<Report> {
            type Entries = Vec<(String, HashMap<String, String>)>;
            let entries: Entries = self.0.send(&["XRANGE", "dalston:events:stream", "-", "+"]).await;
            entries.into_iter().map(|(_, fields)| report(fields)).collect()
        }

        async fn unfinished_tasks(&self) -> usize {
            type Messages = Vec<(String, HashMap<String, String>)>;
            let stream = "dalston:stream:my-asr";
            let messages: Messages = self.0.send(&["XRANGE", stream, "-", "+"]).await;
            let groups: Vec<HashMap<String, ::redis::Value>> =
                self.0.send(&["XINFO", "GROUPS", stream]).await;
            let mut unfinished = messages;
            if let Some(group) = groups.first() {
                let last = &group["last-delivered-id"];
                let last = ::redis::from_redis_value_ref::<String>(last).unwrap();
                let words = ["XPENDING", stream, "engines", "-", "+", "1000"];
                let pending: Vec<(String, String, u64, u64)> = self.0.send(&words).await;
                unfinished.retain(|(id, _)| {
                    place(id) > place(&last) || pending.iter().any(|(pending, ..)| pending == id)
                });
            }
            let tasks = unfinished.iter().map(|(_, fields)| &fields["task_id"]);
            tasks.collect::<HashSet<_>>().len()
        }
    }

    /// The two numbers of a message id.
    fn place(id: &str) -> (u64, u64) {
        let (time, sequence) = id.split_once('-').unwrap();
        (time.parse().unwrap(), sequence.parse().unwrap())
    }

    fn report(mut fields: HashMap<String, String>) -> Report {
        let payload: Value = fields["payload"].parse().unwrap();
        let text = |key: &str| payload.get(key).map(|value| value.as_str().unwrap().to_owned());
        let kind = match &*fields["type"] {
            "task.started" => ReportKind::Started,
            "task.completed" => ReportKind::Completed,
            "task.failed" => ReportKind::Failed(text("error").unwrap()),
            other => panic!("{other}"),
        };
        Report {
            kind,
            task_id: text("task_id").unwrap(),
            context: EventContext {
                request_id: text("request_id"),
                trace_context: fields.remove("_trace_context"),
            },
        }
    }
}
