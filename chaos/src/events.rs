//! The orchestrator's reading of events.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use dalston_engine_sdk::protocol::{Timestamp, keys};
use redis::RedisResult;
use redis::aio::MultiplexedConnection;
use serde_json::Value;
use tokio::time::sleep;

use crate::orchestrator::Orchestrator;
use crate::rules::{self, Event, Reaction};
use crate::task::time_of;

const GROUP: &str = "orchestrators";

impl Orchestrator {
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
                    self.copies.durable(&id, &fields);
                    self.handle(&id, &fields).await;
                }
                let () = redis::cmd("XACK")
                    .arg(&[stream, GROUP, &id])
                    .query_async(connection)
                    .await?;
            }
        }
    }

    async fn handle(&self, id: &str, fields: &BTreeMap<String, String>) {
        let field = |name: &str| fields.get(name).map_or("", String::as_str);
        let payload: Value = field("payload").parse().unwrap_or_default();
        let text = |name: &str| payload[name].as_str().unwrap_or_default();
        let (kind, task, job) = (field("type"), text("task_id"), text("job_id"));
        let Some(at) = time_of(id) else {
            return self.violation(None, format!("an event with the id {id:?}"));
        };
        if field("timestamp").parse::<Timestamp>().is_err() {
            return self.violation(None, format!("an event without a time: {fields:?}"));
        }
        let hand_backs = match kind {
            "task.failed" => self.hand_backs(task).await,
            _ => 0,
        };
        let event = Event {
            kind,
            job,
            error: text("error"),
            hand_backs,
            at,
        };
        let expects_loss = self.expects_lost_writes();
        let reaction = match self.state().tasks.get_mut(task) {
            Some(task) if expects_loss => rules::apply_after_loss(task, &event),
            Some(task) => rules::apply(task, &event),
            None => Err(format!("an event of a task that was never queued: {kind}")),
        };
        match reaction {
            Err(what) => self.violation(Some(task), what),
            Ok(Reaction::Nothing) => {}
            Ok(Reaction::CheckResult) => self.check_new_result(task).await,
            Ok(Reaction::Retry) => self.queue_again(task).await,
        }
    }

    /// How often workers handed the task back, of the cause with the most.
    async fn hand_backs(&self, task: &str) -> u32 {
        let fields: BTreeMap<String, String> = self.platform.ask(&["HGETALL", &keys::task(task)]).await;
        let counts = fields.iter().filter(|(name, _)| name.starts_with("handed_back_"));
        let counts = counts.filter_map(|(_, count)| count.parse().ok());
        counts.max().unwrap_or(0)
    }
}
