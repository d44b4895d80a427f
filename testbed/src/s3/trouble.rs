//! Injected faults of the server.

use std::sync::Mutex;
use std::time::Duration;

/// A fault of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// The server refuses it with this status and this code of S3.
    Answer {
        /// The HTTP status.
        status: u16,
        /// The code in the error document.
        code: &'static str,
    },
    /// The server answers after this delay.
    Delay(Duration),
    /// The server never answers.
    Hang,
    /// The connection closes after this many bytes of the body. `Content-Length` has the full
    /// length.
    Truncate(usize),
    /// The connection closes, and the request has no effect.
    Cut,
    /// The request takes effect, and the connection closes without an answer.
    LoseAnswer,
}

impl Fault {
    /// 500.
    pub const INTERNAL_ERROR: Self = Self::Answer {
        status: 500,
        code: "InternalError",
    };
    /// 503: too many requests.
    pub const SLOW_DOWN: Self = Self::Answer {
        status: 503,
        code: "SlowDown",
    };
    /// 400: Amazon's answer to expired temporary credentials.
    pub const EXPIRED_TOKEN: Self = Self::Answer {
        status: 400,
        code: "ExpiredToken",
    };
    /// 403.
    pub const ACCESS_DENIED: Self = Self::Answer {
        status: 403,
        code: "AccessDenied",
    };
}

/// A fault and the requests that it applies to: all requests, unless the methods restrict them.
#[derive(Debug, Clone)]
pub struct Trouble {
    fault: Fault,
    method: Option<&'static str>,
    path: Option<String>,
    times: Option<u64>,
    fraction: f64,
}

impl Trouble {
    /// This fault for all requests.
    #[must_use]
    pub fn new(fault: Fault) -> Self {
        Self {
            fault,
            method: None,
            path: None,
            times: None,
            fraction: 1.0,
        }
    }

    /// Only for requests of this method: `GET`.
    #[must_use]
    pub fn method(mut self, method: &'static str) -> Self {
        self.method = Some(method);
        self
    }

    /// Only for requests whose path contains this: `request.json`.
    #[must_use]
    pub fn path(mut self, part: &str) -> Self {
        self.path = Some(part.to_owned());
        self
    }

    /// Only for this number of requests.
    #[must_use]
    pub fn times(mut self, times: u64) -> Self {
        self.times = Some(times);
        self
    }

    /// Only for this share of the requests, at random: 0.1 is every tenth.
    #[must_use]
    pub fn fraction(mut self, fraction: f64) -> Self {
        self.fraction = fraction;
        self
    }

    /// Whether it applies to this request. If so, one of its times is used up.
    fn applies_to(&mut self, method: &str, path: &str) -> bool {
        let concerned = self.method.is_none_or(|wanted| wanted == method)
            && self.path.as_ref().is_none_or(|part| path.contains(&**part))
            && self.times != Some(0)
            && (self.fraction >= 1.0 || fastrand::f64() < self.fraction);
        if let Some(times) = self.times.as_mut().filter(|_| concerned) {
            *times -= 1;
        }
        concerned
    }
}

/// The faults of one request.
#[derive(Debug, Default)]
pub(super) struct Fate {
    pub(super) delay: Duration,
    pub(super) fault: Option<Fault>,
}

#[derive(Debug, Default)]
pub(super) struct Troubles(Mutex<Vec<Trouble>>);

impl Troubles {
    pub(super) fn add(&self, trouble: Trouble) {
        self.0.lock().unwrap().push(trouble);
    }

    pub(super) fn clear(&self) {
        self.0.lock().unwrap().clear();
    }

    /// Delays add up. Of the other faults, the first one that applies to the request is used.
    pub(super) fn fate(&self, method: &str, path: &str) -> Fate {
        let mut fate = Fate::default();
        for trouble in self.0.lock().unwrap().iter_mut() {
            let decided = fate.fault.is_some() && !matches!(trouble.fault, Fault::Delay(_));
            if decided || !trouble.applies_to(method, path) {
                continue;
            }
            match &trouble.fault {
                Fault::Delay(delay) => fate.delay += *delay,
                fault => fate.fault = Some(fault.clone()),
            }
        }
        fate
    }
}
