//! EC2 takes spot instances back: two minutes after a notice, which somebody has to look for.

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

/// As often as Amazon advises.
const PERIOD: Duration = Duration::from_secs(5);
/// What is between the end of the drain and the end of the process: tasks are handed back, threads end, the worker leaves the
/// registry, the last spans are sent.
const MARGIN: Duration = Duration::from_secs(20);
/// What Amazon promises between notice and interruption.
const USUAL_NOTICE: Duration = Duration::from_secs(120);

/// Looks for notices for as long as it is polled, and announces what it finds.
pub(super) async fn watch(
    metadata: &MetadataService,
    heed: SpotDrain,
    interruption: &Interruption,
) -> Infallible {
    let mut recommendations = Recommendations::default();
    let mut failed = false;
    let mut ticks = interval(PERIOD);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let looked = match metadata.get("meta-data/spot/instance-action").await {
            Ok(Some(text)) if announce_action(&text, interruption) => return pending().await,
            Ok(_) if heed == SpotDrain::All => recommendations.look(metadata, interruption).await,
            Ok(_) => Ok(()),
            Err(error) => Err(error),
        };
        // Once for each time that the service is away.
        if let Err(error) = &looked
            && !failed
        {
            debug!(%error, "spot_check_failed");
        }
        failed = looked.is_err();
    }
}

/// Notices that the instance is likely to be interrupted. Such a notice stays, perhaps for hours and without anything that
/// follows: what a worker finds when it starts is no reason to end again, or it would for ever be started and end.
#[derive(Debug, Default)]
struct Recommendations {
    /// The answer that counts as known; none before the first one.
    known: Option<Option<String>>,
}

impl Recommendations {
    async fn look(
        &mut self,
        metadata: &MetadataService,
        interruption: &Interruption,
    ) -> Result<(), MetadataError> {
        let answer = metadata.get("meta-data/events/recommendations/rebalance").await?;
        let answer = answer.filter(|text| serde_json::from_str::<Recommendation>(text).is_ok());
        let is_first = self.known.is_none();
        let known = self.known.get_or_insert_with(|| answer.clone());
        match answer {
            Some(text) if is_first => {
                debug!(notice = text, "rebalance_recommendation_older_than_this_worker");
            }
            Some(text) if known.as_ref() != Some(&text) => {
                if let Ok(recommendation) = serde_json::from_str::<Recommendation>(&text) {
                    warn!(
                        action = "rebalance",
                        time = recommendation.notice_time,
                        "spot_interruption_notice"
                    );
                    interruption.announce("rebalance", None);
                }
                *known = Some(text);
            }
            _ => {}
        }
        Ok(())
    }
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Recommendation {
    notice_time: String,
}

#[derive(Debug, Deserialize)]
struct Action {
    action: String,
    time: Option<String>,
}

/// Returns whether the answer was a notice.
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

/// What happens, and when. It becomes an attribute of spans, so that nothing but a word will do.
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
    fn an_action_is_a_word_and_perhaps_a_time() {
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
