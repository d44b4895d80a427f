//! Notices of EC2 that a spot instance will be interrupted, two minutes ahead.
//!
//! A rebalance recommendation that is older than the worker is ignored. It stands for hours, and a
//! worker that drained for it would be restarted on the same machine and drain again.

use std::convert::Infallible;
use std::future::pending;
use std::time::Duration;

use dalston_telemetry::cloud::{MetadataError, MetadataService};
use serde::Deserialize;
use tokio::time::{MissedTickBehavior, interval};
use tracing::{debug, warn};

use crate::config::SpotDrain;
use crate::interruption::Interruption;
use crate::protocol::Timestamp;

/// The interval that Amazon recommends.
const POLL_INTERVAL: Duration = Duration::from_secs(5);
/// The time between the end of the drain and the end of the process, in which tasks are released,
/// threads end, the worker leaves the registry, and the last spans are exported.
const MARGIN: Duration = Duration::from_secs(20);
/// The time between notice and interruption that Amazon promises.
const USUAL_NOTICE: Duration = Duration::from_secs(120);

/// Polls for notices and announces them to the runner.
pub(super) async fn watch(
    metadata: &MetadataService,
    mode: SpotDrain,
    interruption: &Interruption,
) -> Infallible {
    let mut recommendations = Recommendations::default();
    let mut failed = false;
    let mut ticks = interval(POLL_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let polled = match metadata.get("meta-data/spot/instance-action").await {
            Ok(Some(text)) if announce_action(&text, interruption) => return pending().await,
            Ok(_) if mode == SpotDrain::All => recommendations.poll(metadata, interruption).await,
            Ok(_) => Ok(()),
            Err(error) => Err(error),
        };
        // Only the first of several failures in a row.
        if let Err(error) = &polled
            && !failed
        {
            debug!(%error, "spot_check_failed");
        }
        failed = polled.is_err();
    }
}

/// Recommendations to leave the instance, because it is likely to be interrupted.
///
/// A recommendation may stay for hours without an interruption. One that is older than the worker
/// is ignored: otherwise every worker on the instance would start and drain at once.
#[derive(Debug, Default)]
struct Recommendations {
    /// The last answer of the service; `None` before the first one.
    known: Option<Option<Recommendation>>,
}

impl Recommendations {
    async fn poll(
        &mut self,
        metadata: &MetadataService,
        interruption: &Interruption,
    ) -> Result<(), MetadataError> {
        let answer = metadata.get("meta-data/events/recommendations/rebalance").await?;
        let new: Option<Recommendation> = answer.and_then(|text| serde_json::from_str(&text).ok());
        let Some(known) = &self.known else {
            if let Some(old) = &new {
                let time = &old.notice_time;
                debug!(time, "rebalance_recommendation_older_than_this_worker");
            }
            self.known = Some(new);
            return Ok(());
        };
        if let Some(new) = new
            && known.as_ref() != Some(&new)
        {
            warn!(
                action = "rebalance",
                time = new.notice_time,
                "spot_interruption_notice"
            );
            interruption.announce("rebalance", None);
            self.known = Some(Some(new));
        }
        Ok(())
    }
}

#[derive(Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Recommendation {
    notice_time: String,
}

#[derive(Debug, Deserialize)]
struct Action {
    action: String,
    time: Option<String>,
}

/// Announces the notice in `text`; returns whether there was one.
fn announce_action(text: &str, interruption: &Interruption) -> bool {
    let Some((action, time)) = read_action(text) else {
        return false;
    };
    let left = match time {
        Some(time) => Duration::try_from_secs_f64(time.seconds_since(Timestamp::now())).unwrap_or_default(),
        None => USUAL_NOTICE,
    };
    let time = time.map(|time| time.to_string());
    warn!(action, time, "spot_interruption_notice");
    interruption.announce(&action, Some(left.saturating_sub(MARGIN)));
    true
}

/// The action and its time. Only a word is accepted as action, because it becomes an attribute of
/// spans.
fn read_action(text: &str) -> Option<(String, Option<Timestamp>)> {
    const LONGEST: usize = 32;
    let Action { action, time } = serde_json::from_str(text).ok()?;
    let is_word = action
        .bytes()
        .all(|byte| byte.is_ascii_lowercase() || byte == b'-');
    if action.is_empty() || action.len() > LONGEST || !is_word {
        return None;
    }
    Some((action, time.and_then(|time| time.parse().ok())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn action_is_a_word_with_an_optional_time() {
        let read = |text| read_action(text).map(|(action, time)| (action, time.is_some()));
        for (text, expected) in [
            (
                r#"{"action": "terminate", "time": "2026-11-21T14:02:00Z"}"#,
                Some(("terminate", true)),
            ),
            (
                r#"{"action": "hibernate", "time": "soon"}"#,
                Some(("hibernate", false)),
            ),
            (r#"{"action": "stop"}"#, Some(("stop", false))),
            (r#"{"action": ""}"#, None),
            (r#"{"action": "<b>"}"#, None),
            (r#"{"time": "2026-11-21T14:02:00Z"}"#, None),
            ("<html></html>", None),
            ("", None),
        ] {
            let expected = expected.map(|(action, timed)| (action.to_owned(), timed));
            assert_eq!(read(text), expected, "{text}");
        }
    }
}
