//! Sessions that were cut off and can be continued: [`Resumptions`].

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, timeout};
use tracing::warn;

use crate::redis::RedisServer;

/// How long a session can be continued.
const LIFETIME: Duration = Duration::from_secs(60);
/// The most sessions in memory.
const MOST: usize = 1_000;
/// How long Redis may take.
const PATIENCE: Duration = Duration::from_secs(1);

/// Where sessions that were cut off go on: in Redis, for other workers, and in memory.
pub(super) struct Resumptions {
    redis: Option<RedisServer>,
    kept: Mutex<VecDeque<Kept>>,
}

struct Kept {
    session_id: String,
    offset: Duration,
    at: Instant,
}

impl Resumptions {
    pub(super) fn new(redis: Option<RedisServer>) -> Self {
        Self {
            redis,
            kept: Mutex::default(),
        }
    }

    /// Keeps the end of the last transcript of a session.
    pub(super) async fn keep(&self, session_id: &str, offset: Duration) {
        {
            let mut kept = self.kept();
            if kept.len() == MOST {
                kept.pop_front();
            }
            kept.push_back(Kept {
                session_id: session_id.to_owned(),
                offset,
                at: Instant::now(),
            });
        }
        let Some(server) = &self.redis else { return };
        let milliseconds = u64::try_from(offset.as_millis()).unwrap_or(u64::MAX);
        let mut command = redis::cmd("SET");
        command
            .arg(key(session_id))
            .arg(milliseconds)
            .arg("EX")
            .arg(LIFETIME.as_secs());
        let mut shared = server.shared();
        let written = timeout(PATIENCE, command.query_async::<()>(&mut shared)).await;
        if !matches!(written, Ok(Ok(()))) {
            warn!(session_id, "session_not_resumable_elsewhere");
        }
    }

    /// Where a session goes on, if it can be continued. That is possible once.
    pub(super) async fn take(&self, session_id: &str) -> Option<Duration> {
        let here = {
            let mut kept = self.kept();
            kept.retain(|kept| kept.at.elapsed() < LIFETIME);
            let place = kept.iter().position(|kept| kept.session_id == session_id);
            place.and_then(|place| kept.remove(place)).map(|kept| kept.offset)
        };
        let there = match &self.redis {
            None => None,
            Some(server) => {
                let mut command = redis::cmd("GETDEL");
                command.arg(key(session_id));
                let mut shared = server.shared();
                let read = timeout(PATIENCE, command.query_async::<Option<u64>>(&mut shared)).await;
                read.ok()
                    .and_then(Result::ok)
                    .flatten()
                    .map(Duration::from_millis)
            }
        };
        here.or(there)
    }

    fn kept(&self) -> MutexGuard<'_, VecDeque<Kept>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A key of this SDK: the platform has none for it.
fn key(session_id: &str) -> String {
    format!("dalston:realtime:resume:{session_id}")
}

impl fmt::Debug for Resumptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Resumptions")
            .field("kept", &self.kept().len())
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn session_is_continued_once_and_within_a_minute() {
        let resumptions = Resumptions::new(None);
        let offset = Duration::from_millis(14_940);
        resumptions.keep("a", offset).await;
        assert_eq!(resumptions.take("b").await, None);
        assert_eq!(resumptions.take("a").await, Some(offset));
        assert_eq!(resumptions.take("a").await, None);
        resumptions.keep("a", offset).await;
        tokio::time::advance(LIFETIME).await;
        assert_eq!(resumptions.take("a").await, None);
    }
}
