//! Messages of a task stream, section 2.2, as deliveries.

use redis::RedisResult;
use tokio::time::Instant;
use tracing::{error, warn};

use super::server::RedisServer;
use crate::broker::{Claim, Consumer, Delivery};
use crate::protocol::{Timestamp, keys};

/// Names and values. Neither need be UTF-8.
pub(super) type Fields = Vec<(Vec<u8>, Vec<u8>)>;

/// A message that was delivered to this process.
#[derive(Debug)]
pub(super) struct Message {
    pub(super) id: String,
    pub(super) delivery_count: u32,
    pub(super) fields: Fields,
}

impl Message {
    /// A message that names no task can't even be reported: it is logged and removed.
    pub(super) async fn into_delivery(
        self,
        server: &RedisServer,
        consumer: &Consumer,
        asked_at: Instant,
    ) -> Option<Delivery> {
        let delivery = self.delivery(consumer, asked_at);
        if delivery.is_none() {
            self.remove(server, consumer).await;
        }
        delivery
    }

    /// The delivery, unless the message names no task and job.
    fn delivery(&self, consumer: &Consumer, asked_at: Instant) -> Option<Delivery> {
        let valid = |name| self.text(name).filter(|id| is_id(id));
        let (task_id, job_id) = (valid("task_id")?, valid("job_id")?);
        let time = |name| self.text(name).and_then(|text| read_time(task_id, name, text));
        let claim = Claim::new(consumer.clone(), &*self.id, task_id, job_id, self.delivery_count);
        let mut delivery = Delivery::new(claim);
        delivery.enqueued_at = time("enqueued_at");
        delivery.timeout_at = time("timeout_at");
        delivery.asked_at = Some(asked_at.into_std());
        Some(delivery)
    }

    /// The first field of this name that is text.
    fn text(&self, name: &str) -> Option<&str> {
        let values = self.fields.iter().filter(|(field, _)| field == name.as_bytes());
        values
            .into_iter()
            .find_map(|(_, value)| std::str::from_utf8(value).ok())
    }

    async fn remove(&self, server: &RedisServer, consumer: &Consumer) {
        let stream = keys::task_stream(&consumer.engine_id);
        error!(stream, message_id = %self.id, problem = "it names no task and job", "task_message_unreadable");
        let mut command = redis::cmd("XACK");
        command.arg(&stream).arg(keys::TASK_GROUP).arg(&self.id);
        let removed: RedisResult<()> = command.query_async(&mut server.shared()).await;
        if let Err(error) = removed {
            // It is found again when it was idle for a lease.
            let address = server.address();
            warn!(stream, message_id = %self.id, address, %error, "task_message_not_removed");
        }
    }
}

/// Ids become parts of keys and paths, so only the characters of a UUID and a few more may pass.
fn is_id(text: &str) -> bool {
    let allowed = |c: u8| c.is_ascii_alphanumeric() || c == b'-' || c == b'_';
    (1..=128).contains(&text.len()) && text.bytes().all(allowed)
}

/// The time of a field, or nothing and a warning.
pub(super) fn read_time(task_id: &str, field: &str, text: &str) -> Option<Timestamp> {
    text.parse()
        .inspect_err(|error| warn!(task_id, field, %error, "task_time_unreadable"))
        .ok()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::protocol::{QueuedTask, TaskRequestData};

    #[tokio::test]
    async fn entry_of_an_orchestrator_becomes_a_delivery() {
        let request = TaskRequestData::new("T", "J");
        let timeout = Duration::from_secs(90);
        let task = QueuedTask::new(&request, "prepare", "audio-prepare", Timestamp::now(), timeout);
        let entry = task.entry();
        let message = Message {
            id: "1-0".to_owned(),
            delivery_count: 1,
            fields: entry.map(|(name, value)| (name.into(), value.into())).into(),
        };
        let consumer = Consumer {
            engine_id: "audio-prepare".to_owned(),
            instance: "audio-prepare-1".to_owned(),
        };
        let delivery = message.delivery(&consumer, Instant::now()).unwrap();
        assert_eq!((&*delivery.claim.task_id, &*delivery.claim.job_id), ("T", "J"));
        // The wire has microseconds.
        let late = delivery.timeout_at.unwrap().seconds_since(task.enqueued_at);
        assert!((late - 90.0).abs() < 0.001, "{late}");
        assert_eq!(
            delivery.enqueued_at.unwrap().to_string(),
            task.enqueued_at.to_string()
        );
    }
}
