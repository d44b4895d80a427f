//! The body of a request as a stream, with limits on its memory and size.

use std::io;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::{Body, BodyDataStream};
use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use tokio::time::{Instant, timeout};

/// The most bytes that may arrive without being content of a field: boundaries, headers, and text
/// between them.
const MAX_OVERHEAD: u64 = 512 * 1024;
/// The bytes that have to arrive in [`PERIOD`], so that slow clients do not keep permits for long:
/// 8 KiB/s.
const LEAST_PER_PERIOD: u64 = 8 * 1024 * PERIOD.as_secs();
const PERIOD: Duration = Duration::from_secs(30);
/// How much, and for how long, the rest of a refused request is read. A client that still sends
/// does not see the response.
const MAX_DRAINED: usize = 64 * 1024 * 1024;
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);

/// The body of a request. Clones share it, so the rest can be drained after the form has failed.
#[derive(Clone)]
pub(super) struct RequestBody(Arc<Mutex<BodyDataStream>>);

impl RequestBody {
    pub(super) fn new(body: Body) -> Self {
        Self(Arc::new(Mutex::new(body.into_data_stream())))
    }

    /// Reads the rest, within limits.
    pub(super) async fn drain(mut self) {
        let rest = async {
            let mut room = MAX_DRAINED;
            while let Some(Ok(bytes)) = self.next().await {
                room = room.saturating_sub(bytes.len());
                if room == 0 {
                    break;
                }
            }
        };
        let _ = timeout(DRAIN_TIMEOUT, rest).await;
    }
}

impl Stream for RequestBody {
    type Item = Result<Bytes, axum::Error>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let mut body = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        Pin::new(&mut *body).poll_next(cx)
    }
}

/// A body for the parser of multipart forms.
///
/// The parser buffers every chunk that is ready before it looks for the end of a header. So this
/// stream yields after each chunk, and ends with an error when too much has arrived that is no
/// content.
pub(super) struct LimitedBody {
    body: RequestBody,
    limits: Arc<BodyLimits>,
    yields: bool,
}

impl LimitedBody {
    pub(super) fn new(body: RequestBody, limits: Arc<BodyLimits>) -> Self {
        Self {
            body,
            limits,
            yields: false,
        }
    }
}

impl Stream for LimitedBody {
    type Item = io::Result<Bytes>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if std::mem::take(&mut self.yields) {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let next = ready!(Pin::new(&mut self.body).poll_next(cx));
        self.yields = true;
        Poll::Ready(next.map(|next| self.limits.check(next.map_err(io::Error::other)?)))
    }
}

/// Counts the bytes that have arrived, those of them that were content, and the time in which they
/// arrived.
pub(super) struct BodyLimits {
    max_file: u64,
    arrived: AtomicU64,
    overhead: AtomicU64,
    too_large: AtomicBool,
    period: Mutex<Period>,
}

/// The time since the speed was checked last, without the time in which the worker was not ready
/// for more bytes.
#[derive(Default)]
struct Period {
    waited: Duration,
    /// The bytes that had arrived at its start.
    arrived: u64,
}

impl BodyLimits {
    pub(super) fn new(max_file: u64) -> Self {
        Self {
            max_file,
            arrived: AtomicU64::new(0),
            overhead: AtomicU64::new(0),
            too_large: AtomicBool::new(false),
            period: Mutex::default(),
        }
    }

    /// The most bytes of a file.
    pub(super) fn max_file(&self) -> u64 {
        self.max_file
    }

    /// Whether the body ended because it is too large.
    pub(super) fn is_exceeded(&self) -> bool {
        self.too_large.load(Ordering::Relaxed)
    }

    /// Waits for the next part of the body. `None` if the body arrives too slowly.
    pub(super) async fn wait<T>(&self, next: impl Future<Output = T>) -> Option<T> {
        let mut next = pin!(next);
        loop {
            let rest =
                PERIOD.saturating_sub(self.period.lock().unwrap_or_else(PoisonError::into_inner).waited);
            let begun = Instant::now();
            let next = timeout(rest, next.as_mut()).await;
            let mut period = self.period.lock().unwrap_or_else(PoisonError::into_inner);
            period.waited += begun.elapsed();
            if period.waited >= PERIOD {
                let arrived = self.arrived.load(Ordering::Relaxed);
                if arrived - period.arrived < LEAST_PER_PERIOD {
                    return None;
                }
                *period = Period {
                    waited: Duration::ZERO,
                    arrived,
                };
            }
            if let Ok(next) = next {
                return Some(next);
            }
        }
    }

    fn check(&self, bytes: Bytes) -> io::Result<Bytes> {
        let size = bytes.len() as u64;
        let arrived = self.arrived.fetch_add(size, Ordering::Relaxed) + size;
        let overhead = self.overhead.fetch_add(size, Ordering::Relaxed) + size;
        // The text fields of a form are small compared with a file.
        if arrived > self.max_file.saturating_add(MAX_OVERHEAD) {
            self.too_large.store(true, Ordering::Relaxed);
            return Err(io::ErrorKind::FileTooLarge.into());
        }
        if overhead > MAX_OVERHEAD {
            return Err(io::ErrorKind::InvalidData.into());
        }
        Ok(bytes)
    }

    /// Takes the content of a field out of the overhead.
    pub(super) fn content(&self, bytes: &Bytes) {
        self.overhead.fetch_sub(bytes.len() as u64, Ordering::Relaxed);
    }
}
