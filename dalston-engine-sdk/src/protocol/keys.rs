//! Section 2.1: the names of keys, streams and channels in Redis.

/// The consumer group of every task stream.
pub const TASK_GROUP: &str = "engines";
/// The stream of events that the orchestrator reads.
pub const EVENT_STREAM: &str = "dalston:events:stream";
/// A stream that does not exist. A write to it shows whether the server has memory for an event.
#[cfg(feature = "redis")]
pub(crate) const UNUSED_STREAM: &str = "dalston:events:stream:none";
/// The approximate number of events in the stream. Each writer trims it.
pub const EVENT_STREAM_MAX_LEN: usize = 10_000;
/// The consumer group with which the orchestrator reads that stream.
pub const ORCHESTRATOR_GROUP: &str = "orchestrators";
/// The stream of events that the orchestrator could not handle. Its length is that of
/// [`EVENT_STREAM_MAX_LEN`].
pub const EVENT_DEAD_LETTERS: &str = "dalston:events:dlq";
/// The channel with a copy of every event.
pub const EVENT_CHANNEL: &str = "dalston:events";
/// The set of tasks that were queued while no engine could take them.
pub const WAITING_TASKS: &str = "dalston:waiting_engine_tasks";
/// The set of all registered instances.
pub const INSTANCES: &str = "dalston:engine:instances";

/// The field of a task's metadata with the id of its latest entry in the stream. The orchestrator
/// sets it after it added the entry.
pub const STREAM_MESSAGE_ID: &str = "stream_message_id";

/// Fields of a task's metadata that an engine removes when it takes a task that waited for an
/// engine.
pub const WAIT_MARKERS: [&str; 4] = [
    "waiting_for_engine",
    "wait_enqueued_at",
    "wait_timeout_s",
    "wait_deadline_at",
];

/// The stream of tasks for an engine.
///
/// ```
/// use dalston_engine_sdk::protocol::keys::task_stream;
///
/// assert_eq!(task_stream("faster-whisper"), "dalston:stream:faster-whisper");
/// ```
#[must_use]
pub fn task_stream(engine_id: &str) -> String {
    format!("dalston:stream:{engine_id}")
}

/// The hash with a task's metadata.
#[must_use]
pub fn task(task_id: &str) -> String {
    format!("dalston:task:{task_id}")
}

/// The key that exists if the attempt of a task with this number of retries was queued. With it, an
/// orchestrator queues no attempt twice.
#[must_use]
pub fn retry_enqueue(task_id: &str, retry_count: u32) -> String {
    format!("dalston:task:retry-enqueue:{task_id}:{retry_count}")
}

/// The hash with the artifacts of a job's tasks, by artifact id.
#[must_use]
pub fn job_artifacts(job_id: &str) -> String {
    format!("dalston:job:{job_id}:artifacts")
}

/// How long the key of a cancelled job exists, in seconds.
pub const JOB_CANCELLED_SECONDS: u64 = 86_400;

/// The key that exists if the job is cancelled. Its value is `1`, its lifetime
/// [`JOB_CANCELLED_SECONDS`].
#[must_use]
pub fn job_cancelled(job_id: &str) -> String {
    format!("dalston:job:cancelled:{job_id}")
}

/// The hash with the registry record of an instance.
#[must_use]
pub fn instance(instance: &str) -> String {
    format!("dalston:engine:instance:{instance}")
}

/// The set of instances of an engine.
#[must_use]
pub fn engine_instances(engine_id: &str) -> String {
    format!("dalston:engine:engine_id:{engine_id}")
}

/// The set of instances that can do a stage.
#[must_use]
pub fn stage_instances(stage: &str) -> String {
    format!("dalston:engine:stage:{stage}")
}

/// The set of those instances of an engine that join all sets again when their record is gone.
///
/// The set belongs to this SDK, not to the platform. Only its members may be removed from the
/// platform's sets as stale: an engine of another kind would never return to them.
#[must_use]
pub fn rejoining_instances(engine_id: &str) -> String {
    format!("dalston:engine:rejoining:{engine_id}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_match_the_platform() {
        let keys = [
            task_stream("faster-whisper"),
            task("9b2e"),
            retry_enqueue("9b2e", 1),
            job_artifacts("51c0"),
            job_cancelled("51c0"),
            instance("faster-whisper-0f37d5acd7e8"),
            engine_instances("faster-whisper"),
            stage_instances("transcribe"),
            rejoining_instances("faster-whisper"),
        ];
        let expected = [
            "dalston:stream:faster-whisper",
            "dalston:task:9b2e",
            "dalston:task:retry-enqueue:9b2e:1",
            "dalston:job:51c0:artifacts",
            "dalston:job:cancelled:51c0",
            "dalston:engine:instance:faster-whisper-0f37d5acd7e8",
            "dalston:engine:engine_id:faster-whisper",
            "dalston:engine:stage:transcribe",
            "dalston:engine:rejoining:faster-whisper",
        ];
        assert_eq!(keys, expected);
    }
}
