//! How far a session is behind its audio: [`Lag`].

use std::time::Duration;

use tokio::time::Instant;

/// The limits of a session's lag.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct LagLimits {
    pub(super) warning: Duration,
    pub(super) hard: Duration,
    pub(super) grace: Duration,
}

/// Watches the lag of a session, in seconds of audio.
///
/// A client may send faster than it speaks. Such audio was sent early, so it counts only when its
/// time has come; the client is slowed down instead.
#[derive(Debug)]
pub(super) struct Lag {
    limits: LagLimits,
    began: Instant,
    warned: Option<Instant>,
    /// Since when the lag is above the hard limit.
    over: Option<Instant>,
}

/// What to do about a lag.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LagAction {
    None,
    Warn,
    Terminate,
}

/// A client gets one warning in this time.
const WARNING_INTERVAL: Duration = Duration::from_secs(1);

impl Lag {
    pub(super) fn new(limits: LagLimits, began: Instant) -> Self {
        Self {
            limits,
            began,
            warned: None,
            over: None,
        }
    }

    pub(super) fn limits(&self) -> LagLimits {
        self.limits
    }

    /// The lag at `now`, if this much audio was received since the begin, and everything before
    /// `done` is transcribed.
    pub(super) fn at(&self, now: Instant, received: Duration, done: Duration) -> Duration {
        received.min(now - self.began).saturating_sub(done)
    }

    pub(super) fn check(&mut self, now: Instant, lag: Duration) -> LagAction {
        if lag <= self.limits.hard {
            self.over = None;
        } else if now - *self.over.get_or_insert(now) >= self.limits.grace {
            return LagAction::Terminate;
        }
        let is_due = self.warned.is_none_or(|warned| now - warned >= WARNING_INTERVAL);
        if lag > self.limits.warning && is_due {
            self.warned = Some(now);
            return LagAction::Warn;
        }
        LagAction::None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: LagLimits = LagLimits {
        warning: Duration::from_secs(3),
        hard: Duration::from_secs(5),
        grace: Duration::from_secs(2),
    };

    fn seconds(seconds: f64) -> Duration {
        Duration::from_secs_f64(seconds)
    }

    #[test]
    fn lag_is_warned_of_once_a_second_and_then_terminated() {
        let began = Instant::now();
        let mut lag = Lag::new(LIMITS, began);
        let mut at = |time: f64, behind: f64| lag.check(began + seconds(time), seconds(behind));
        assert_eq!(at(1.0, 2.9), LagAction::None);
        assert_eq!(at(2.0, 3.1), LagAction::Warn);
        assert_eq!(at(2.5, 3.6), LagAction::None);
        assert_eq!(at(3.0, 5.1), LagAction::Warn);
        assert_eq!(at(4.9, 5.1), LagAction::Warn);
        // It recovers within the grace.
        assert_eq!(at(4.95, 1.0), LagAction::None);
        assert_eq!(at(6.0, 5.1), LagAction::Warn);
        assert_eq!(at(8.0, 5.1), LagAction::Terminate);
    }

    #[test]
    fn audio_that_was_sent_early_is_no_lag() {
        let began = Instant::now();
        let lag = Lag::new(LIMITS, began);
        let at = |time: f64, received: f64, done: f64| {
            lag.at(began + seconds(time), seconds(received), seconds(done))
                .as_secs_f64()
        };
        assert_eq!(at(1.0, 60.0, 0.0), 1.0);
        assert_eq!(at(20.0, 60.0, 30.0), 0.0);
        assert_eq!(at(20.0, 20.0, 12.0), 8.0);
    }
}
