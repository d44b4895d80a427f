//! Readers written by hand, on one thread and without any safety: what the commands themselves cost.

use redis::{Pipeline, Value as Answer};
use serde_json::Value;

use crate::figures::Stopwatch;
use crate::platform::{Address, ENGINE, GROUP, Platform, STREAM};

const BATCH: usize = 64;
const ME: &str = "bench-minimal";

/// What each reader has beyond the one before it.
pub(crate) const STEPS: [&str; 7] = [
    "read and acknowledge",
    "+ event task.completed (XADD)",
    "+ event task.started (XADD)",
    "+ published copies (PUBLISH)",
    "+ metadata (HGETALL)",
    "+ cancellation (EXISTS)",
    "+ ownership, twice (XPENDING)",
];

struct Task {
    message: String,
    task: String,
    job: String,
}

pub(crate) fn throughput(redis: &str, tasks: usize, steps: usize) -> Value {
    let redis = Address::parse(redis);
    let mut platform = Platform::connect(redis.url, false);
    platform.describe(0..tasks);
    platform.make_group();
    platform.queue(0..tasks);
    let mut connection = redis::Client::open(redis.url).unwrap().get_connection().unwrap();
    let stopwatch = Stopwatch::start(redis.pid);
    let mut done = 0;
    while done < tasks {
        let batch = read(&mut connection);
        done += batch.len();
        let has = |step: usize| steps >= step;
        let mut before = redis::pipe();
        for task in &batch {
            if has(6) {
                owns(&mut before, task);
            }
            if has(5) {
                before
                    .cmd("EXISTS")
                    .arg(format!("dalston:job:cancelled:{}", task.job));
            }
            if has(4) {
                before.cmd("HGETALL").arg(format!("dalston:task:{}", task.task));
            }
            if has(2) {
                event(&mut before, task, "task.started", has(3));
            }
        }
        if !before.is_empty() {
            let _: Vec<Answer> = before.query(&mut connection).unwrap();
        }
        let mut after = redis::pipe();
        for task in &batch {
            if has(6) {
                owns(&mut after, task);
            }
            if has(1) {
                event(&mut after, task, "task.completed", has(3));
            }
            after.cmd("XACK").arg(STREAM).arg(GROUP).arg(&task.message);
        }
        let _: Vec<Answer> = after.query(&mut connection).unwrap();
    }
    stopwatch.stop(tasks)
}

fn read(connection: &mut redis::Connection) -> Vec<Task> {
    type Streams = Vec<(String, Vec<(String, Vec<(String, String)>)>)>;
    let streams: Streams = redis::cmd("XREADGROUP")
        .arg("GROUP")
        .arg(GROUP)
        .arg(ME)
        .arg("COUNT")
        .arg(BATCH)
        .arg("STREAMS")
        .arg(STREAM)
        .arg(">")
        .query(connection)
        .unwrap();
    let (_, entries) = streams.into_iter().next().unwrap();
    let tasks = entries.into_iter().map(|(message, fields)| {
        let field = |name: &str| fields.iter().find(|(field, _)| field == name).unwrap().1.clone();
        let (task, job) = (field("task_id"), field("job_id"));
        Task { message, task, job }
    });
    tasks.collect()
}

fn owns(pipeline: &mut Pipeline, task: &Task) {
    pipeline
        .cmd("XPENDING")
        .arg(STREAM)
        .arg(GROUP)
        .arg(&task.message)
        .arg(&task.message)
        .arg(1);
}

fn event(pipeline: &mut Pipeline, Task { task, job, .. }: &Task, kind: &str, published: bool) {
    let now = dalston_engine_sdk::protocol::Timestamp::now().to_string();
    let ids = format!(r#""task_id":"{task}","job_id":"{job}","engine_id":"{ENGINE}""#);
    pipeline
        .cmd("XADD")
        .arg("dalston:events:stream")
        .arg("MAXLEN")
        .arg("~")
        .arg(10_000)
        .arg("*")
        .arg("type")
        .arg(kind)
        .arg("timestamp")
        .arg(&now)
        .arg("payload")
        .arg(format!("{{{ids}}}"));
    if published {
        pipeline
            .cmd("PUBLISH")
            .arg("dalston:events")
            .arg(format!(r#"{{"type":"{kind}","timestamp":"{now}",{ids}}}"#));
    }
}
