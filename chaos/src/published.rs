//! Compares the published copy of each event with the durable one.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use dalston_engine_sdk::protocol::keys;
use futures_util::StreamExt;
use redis::RedisResult;
use serde_json::Value;
use tokio::time::sleep;

use crate::platform::Platform;

/// A Redis that is killed may have stored its last events without having published them.
const LAST_MOMENT: u64 = 500;

/// The copies of all events.
#[derive(Debug, Default)]
pub(crate) struct Copies(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// The ids of the durable copies by content.
    durable: HashMap<String, Vec<String>>,
    /// The number of published copies by content.
    published: HashMap<String, usize>,
    /// The times, in milliseconds of Redis, in which no published copy can be missed.
    subscribed: Vec<(u64, u64)>,
}

impl Copies {
    /// Records the durable copy of an event.
    pub(crate) fn durable(&self, id: &str, fields: &BTreeMap<String, String>) {
        let mut event = BTreeMap::new();
        for (name, text) in fields {
            match (name.as_str(), text.parse::<Value>()) {
                ("payload", Ok(Value::Object(payload))) => event.extend(payload),
                ("_trace_context", Ok(value)) => drop(event.insert(name.clone(), value)),
                _ => drop(event.insert(name.clone(), Value::from(text.as_str()))),
            }
        }
        let ids = &mut self.state().durable;
        ids.entry(text_of(event)).or_default().push(id.to_owned());
    }

    /// Reads the published copies until the future is dropped.
    pub(crate) async fn follow(self: Arc<Self>, platform: Arc<Platform>) {
        loop {
            // The connection ends with each restart of Redis.
            let _ = self.read(&platform).await;
            sleep(Duration::from_millis(20)).await;
        }
    }

    async fn read(&self, platform: &Platform) -> RedisResult<()> {
        let mut subscription = platform.subscription().await?;
        subscription.subscribe(keys::EVENT_CHANNEL).await?;
        let begun = now();
        let period = {
            let periods = &mut self.state().subscribed;
            periods.push((begun, 0));
            periods.len() - 1
        };
        let mut messages = subscription.on_message();
        while let Some(message) = messages.next().await {
            let text: String = message.get_payload()?;
            let event = match text.parse::<Value>() {
                Ok(Value::Object(event)) => text_of(event),
                _ => text,
            };
            *self.state().published.entry(event).or_default() += 1;
        }
        self.state().subscribed[period].1 = now().saturating_sub(LAST_MOMENT);
        Ok(())
    }

    /// The differences between the copies, as violations.
    pub(crate) fn differences(&self) -> Vec<String> {
        let state = self.state();
        let mut differences = Vec::new();
        for (event, ids) in &state.durable {
            let published = state.published.get(event).copied().unwrap_or(0);
            let expected = ids.iter().filter(|id| state.is_subscribed_at(id)).count();
            if published < expected {
                let text = format!("{published} published copies of the {expected} events {ids:?}: {event}");
                differences.push(text);
            }
        }
        for (event, published) in &state.published {
            let durable = state.durable.get(event).map_or(0, Vec::len);
            if durable < *published {
                let text = format!("{durable} durable copies of the {published} published events: {event}");
                differences.push(text);
            }
        }
        differences
    }

    /// The number of published copies.
    pub(crate) fn published(&self) -> usize {
        self.state().published.values().sum()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Whether the event with this id must have been received.
    fn is_subscribed_at(&self, id: &str) -> bool {
        let at: u64 = id.split('-').next().unwrap_or_default().parse().unwrap_or(0);
        let open_end = now().saturating_sub(LAST_MOMENT);
        self.subscribed.iter().any(|(begin, end)| {
            let end = if *end == 0 { open_end } else { *end };
            *begin < at && at < end
        })
    }
}

/// The content with its keys in order.
fn text_of(event: impl IntoIterator<Item = (String, Value)>) -> String {
    let ordered: BTreeMap<String, Value> = event.into_iter().collect();
    serde_json::to_string(&ordered).unwrap_or_default()
}

fn now() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.map_or(0, |now| now.as_millis() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAYLOAD: &str = r#"{"task_id":"T","job_id":"J","engine_id":"e"}"#;
    const COPY: &str =
        r#"{"type":"task.started","timestamp":"2026","task_id":"T","job_id":"J","engine_id":"e"}"#;

    fn copies(subscribed: (u64, u64), published: &[&str]) -> Copies {
        let copies = Copies::default();
        let fields = [
            ("type", "task.started"),
            ("timestamp", "2026"),
            ("payload", PAYLOAD),
        ];
        let fields = fields.map(|(name, text)| (name.to_owned(), text.to_owned()));
        copies.durable("1500-0", &BTreeMap::from(fields));
        copies.state().subscribed.push(subscribed);
        for text in published {
            let Ok(Value::Object(event)) = text.parse() else {
                panic!("{text}")
            };
            *copies.state().published.entry(text_of(event)).or_default() += 1;
        }
        copies
    }

    #[test]
    fn equal_copies_have_no_differences() {
        assert_eq!(copies((1000, 2000), &[COPY]).differences(), [""; 0]);
    }

    #[test]
    fn missing_copy_counts_only_while_subscribed() {
        assert_eq!(copies((1000, 2000), &[]).differences().len(), 1);
        assert_eq!(copies((1600, 2000), &[]).differences().len(), 0);
    }

    #[test]
    fn other_or_second_copy_is_a_difference() {
        assert_eq!(copies((1000, 2000), &[COPY, COPY]).differences().len(), 1);
        let other = COPY.replace("started", "completed");
        assert_eq!(copies((1000, 2000), &[&other]).differences().len(), 2);
    }
}
