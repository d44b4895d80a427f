//! The end of the machine: [`Interruption`].

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

/// Tells a [`Runner`](crate::Runner) that its machine will be taken away. Made by
/// [`Runner::interruption`](crate::Runner::interruption); cheap to clone.
#[derive(Clone)]
pub struct Interruption {
    notices: watch::Sender<Option<Notice>>,
}

#[derive(Debug, Clone)]
struct Notice {
    action: Arc<str>,
    /// By when the drain must be over.
    end: Option<Instant>,
}

impl Interruption {
    pub(crate) fn none() -> Self {
        Self {
            notices: watch::Sender::new(None),
        }
    }

    /// Starts the drain, if it has not begun. All spans of tasks that are open or open from now on
    /// get the attribute `dalston.spot_interruption=action`.
    ///
    /// Tasks that still run after `time_left` are handed back, even if the drain timeout is longer.
    /// Of several calls the last one counts.
    pub fn announce(&self, action: &str, time_left: Option<Duration>) {
        let notice = Notice {
            action: action.into(),
            end: time_left.and_then(|left| Instant::now().checked_add(left)),
        };
        self.notices.send_replace(Some(notice));
    }

    /// Waits for the first announcement.
    pub(crate) async fn announced(&self) {
        // Fails only without a sender, which `self` is.
        let _ = self.notices.subscribe().wait_for(Option::is_some).await;
    }

    /// What happens to the machine, by the last announcement.
    pub(crate) fn action(&self) -> Option<Arc<str>> {
        let notice = self.notices.borrow();
        notice.as_ref().map(|notice| Arc::clone(&notice.action))
    }

    /// Waits until `limit`, or until the time left by an announcement is over.
    pub(crate) async fn time_is_up(&self, limit: Instant) {
        let mut notices = self.notices.subscribe();
        loop {
            let end = notices.borrow_and_update().as_ref().and_then(|notice| notice.end);
            let until = end.map_or(limit, |end| end.min(limit));
            tokio::select! {
                () = sleep_until(until) => return,
                changed = notices.changed() => if changed.is_err() {
                    return sleep_until(until).await;
                },
            }
        }
    }
}

impl fmt::Debug for Interruption {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Interruption")
            .field("announced", &self.notices.borrow().is_some())
            .finish()
    }
}
