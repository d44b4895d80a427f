//! Server-sent events: the parts of a page that have changed.
//!
//! A stream renders its page again after a change of the database, and sends what differs from what
//! it sent before. It renders only when the connection takes more, so a slow browser gets the
//! newest state and no queue. After a reconnect the browser gets everything once, and keeps what it
//! has.

use std::collections::{HashMap, VecDeque};
use std::convert::Infallible;
use std::time::Duration;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::stream::unfold;
use serde_json::json;
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio::time::{Instant, sleep};
use tracing::warn;

use super::Shared;
use super::view::View;
use crate::db::version;
use crate::platform::Platform;

/// The most browsers that follow a page at once.
pub(super) const MAX_STREAMS: usize = 32;
/// The time between two looks at the database.
const TICK: Duration = Duration::from_millis(300);
/// The time between two looks at what is not in the database.
const SLOW_TICK: Duration = Duration::from_secs(2);
/// The time after which a browser connects again.
const RECONNECT: Duration = Duration::from_secs(1);

pub(super) fn follow(State(page): Shared, view: View) -> Response {
    let Ok(permit) = page.streams.clone().try_acquire_owned() else {
        return (
            StatusCode::SERVICE_UNAVAILABLE,
            "too many browsers follow the page",
        )
            .into_response();
    };
    let follower = Follower {
        platform: page.platform.clone(),
        closed: page.closed.clone(),
        view,
        sent: HashMap::new(),
        pending: VecDeque::from([Event::default().retry(RECONNECT)]),
        seen: None,
        rendered_at: Instant::now(),
        _permit: permit,
    };
    let events = unfold(follower, |mut follower| async move {
        let event = follower.next().await?;
        Some((Ok::<_, Infallible>(event), follower))
    });
    Sse::new(events).keep_alive(KeepAlive::default()).into_response()
}

struct Follower {
    platform: Platform,
    closed: watch::Receiver<bool>,
    view: View,
    /// The versions of the parts that the browser has.
    sent: HashMap<&'static str, String>,
    pending: VecDeque<Event>,
    /// The version of the database at the last look; `None` before the first one.
    seen: Option<(i64, i64)>,
    rendered_at: Instant,
    _permit: OwnedSemaphorePermit,
}

impl Follower {
    /// The next event; `None` if the process ends or the job is gone.
    async fn next(&mut self) -> Option<Event> {
        loop {
            if let Some(event) = self.pending.pop_front() {
                return Some(event);
            }
            if self.seen.is_some() {
                tokio::select! {
                    () = sleep(TICK) => {}
                    _ = self.closed.wait_for(|is_closed| *is_closed) => return None,
                }
            }
            if !self.is_due().await {
                continue;
            }
            self.rendered_at = Instant::now();
            match self.view.render(&self.platform).await {
                Ok(Some(parts)) => {
                    for part in parts {
                        let version = part.version();
                        if self.sent.get(part.name) != Some(&version) {
                            let data = json!({"part": part.name, "version": version, "html": part.html});
                            self.pending
                                .push_back(Event::default().event("part").data(data.to_string()));
                            self.sent.insert(part.name, version);
                        }
                    }
                }
                Ok(None) if self.sent.contains_key("") => return None,
                Ok(None) => {
                    self.sent.insert("", String::new());
                    return Some(Event::default().event("gone").data(""));
                }
                // The next change, or the next connection, tries again.
                Err(error) => warn!(error = format!("{error:#}"), "page_not_followed"),
            }
        }
    }

    async fn is_due(&mut self) -> bool {
        let now = self.platform.db.read(|db| version(db)).await.unwrap_or_default();
        let has_changed = self.seen.replace(now) != Some(now);
        has_changed || self.view.changes_with_time() && self.rendered_at.elapsed() >= SLOW_TICK
    }
}
