//! A session between its client and its worker: [`Proxy`].

use std::future::{Future, pending};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use dalston_telemetry::tower::WebSocketSession;
use tokio::time::timeout;
use tracing::info;

use super::protocol::Protocol;
use super::side::{Broken, Close, Frame, Side};
use super::tally::Tally;

/// How long a worker has for its last messages after the client has left.
const LAST_MESSAGES: Duration = Duration::from_secs(10);

/// A session, with both of its connections.
pub(super) struct Proxy {
    pub(super) protocol: Protocol,
    pub(super) session_id: String,
    pub(super) client: Side,
    pub(super) worker: Side,
    pub(super) seen: Arc<Mutex<Seen>>,
}

/// What was seen of a session.
pub(super) struct Seen {
    pub(super) guard: WebSocketSession,
    pub(super) tally: Tally,
}

/// Why a session ends.
#[derive(Debug, PartialEq)]
pub(super) enum End {
    /// The client has closed its connection.
    ClientLeft(Option<Close>),
    /// The connection to the client was lost.
    ClientLost,
    /// A message of the client was too long.
    TooBig,
    /// The worker has closed its connection.
    WorkerClosed(Option<Close>),
    /// The connection to the worker was lost.
    WorkerLost,
    /// The gateway ends.
    Drained,
}

impl End {
    fn as_str(&self) -> &'static str {
        match self {
            Self::ClientLeft(_) => "client_left",
            Self::ClientLost => "client_lost",
            Self::TooBig => "message_too_big",
            Self::WorkerClosed(_) => "worker_closed",
            Self::WorkerLost => "worker_lost",
            Self::Drained => "gateway_shutdown",
        }
    }
}

impl Proxy {
    /// Passes the message `begin` on, and then messages in both directions until the session ends,
    /// or until `drained` completes.
    ///
    /// Each direction has one message in hand, so a side that is slow slows the other one down.
    pub(super) async fn run(&mut self, begin: String, drained: impl Future<Output = ()>) -> End {
        let protocol = self.protocol;
        let (client, worker, seen) = (&mut self.client, &mut self.worker, &*self.seen);
        let (to_client, to_worker) = (client.outgoing.clone(), worker.outgoing.clone());
        let up = async {
            loop {
                let frame = match client.incoming.next().await {
                    Ok(Frame::Close(close)) => return End::ClientLeft(close),
                    Ok(frame) => frame,
                    Err(Broken::TooBig) => return End::TooBig,
                    Err(Broken::Lost) => return End::ClientLost,
                };
                let audio = protocol.audio(&frame);
                lock(seen).guard.received(frame.size());
                if to_worker.send(frame).await.is_err() {
                    // What the worker has sent before its end is read first.
                    return pending().await;
                }
                lock(seen).tally.audio(audio);
            }
        };
        let down = async {
            lock(seen).guard.sent(begin.len());
            if to_client.send(Frame::Text(begin)).await.is_err() {
                return End::ClientLost;
            }
            loop {
                let frame = match worker.incoming.next().await {
                    Ok(Frame::Close(close)) => return End::WorkerClosed(close),
                    Ok(frame) => frame,
                    Err(_) => return End::WorkerLost,
                };
                {
                    let mut seen = lock(seen);
                    seen.guard.sent(frame.size());
                    seen.tally.frame(&frame);
                }
                if to_client.send(frame).await.is_err() {
                    return End::ClientLost;
                }
            }
        };
        tokio::select! {
            biased;
            end = down => end,
            end = up => end,
            () = drained => End::Drained,
        }
    }

    /// Says the last words to both sides.
    pub(super) async fn finish(&mut self, end: End) {
        let reason = end.as_str();
        match end {
            End::ClientLeft(close) => {
                self.end_worker(false).await;
                lock(&self.seen)
                    .guard
                    .closed(close.map_or(1000, |close| close.code));
            }
            // The worker sees a lost connection, too, so the session can be continued.
            End::ClientLost => {}
            End::TooBig => {
                let text = "a message is longer than 1 MiB: send audio in pieces of 20 to 200 ms";
                let error = self.protocol.error("invalid_message", text, false);
                if self.client.outgoing.send(error).await.is_ok() {
                    self.end_worker(true).await;
                    self.close_client(Close::new(1009, "message too big")).await;
                }
            }
            End::WorkerClosed(close) => self.close_client(passed_on(close)).await,
            End::WorkerLost => {
                let text = "the connection to the worker was lost: open a new session";
                let error = self.protocol.error("internal_error", text, false);
                if self.client.outgoing.send(error).await.is_ok() {
                    self.close_client(Close::new(1011, "worker lost")).await;
                }
            }
            End::Drained => {
                let last_final_ms = lock(&self.seen).tally.last_final_ms().unwrap_or(0);
                let terminated = self.protocol.terminated(&self.session_id, last_final_ms);
                if self.client.outgoing.send(terminated).await.is_ok() {
                    self.close_client(Close::new(1012, "gateway shutdown")).await;
                }
            }
        }
        let seen = lock(&self.seen);
        let audio_seconds = seen.tally.audio_seconds();
        let status = seen.tally.status().as_str();
        info!(reason, status, audio_seconds, "session_ended");
    }

    /// Ends the session at the worker, and waits for `session.end`.
    async fn end_worker(&mut self, is_passed_on: bool) {
        if lock(&self.seen).tally.has_ended() {
            return;
        }
        let Some(end) = self.protocol.end() else {
            lock(&self.seen).tally.left();
            return self.worker.close(Close::new(1000, "session ended")).await;
        };
        if self.worker.outgoing.send(end).await.is_err() {
            return;
        }
        let last_messages = async {
            while let Ok(frame @ Frame::Text(_)) = self.worker.incoming.next().await {
                {
                    let mut seen = lock(&self.seen);
                    seen.tally.frame(&frame);
                    if is_passed_on {
                        seen.guard.sent(frame.size());
                    }
                }
                if is_passed_on && self.client.outgoing.send(frame).await.is_err() {
                    return;
                }
                if lock(&self.seen).tally.has_ended() {
                    return;
                }
            }
        };
        let _ = timeout(LAST_MESSAGES, last_messages).await;
        self.worker.close(Close::new(1000, "session ended")).await;
    }

    async fn close_client(&mut self, close: Close) {
        lock(&self.seen).guard.closed(close.code);
        self.client.close(close).await;
    }
}

/// The close frame of a worker for the client. Some codes say that there was none, and can't be
/// sent.
fn passed_on(close: Option<Close>) -> Close {
    match close {
        Some(close) if matches!(close.code, 1000..=1003 | 1007..=1014 | 3000..=4999) => close,
        Some(_) => Close::new(1011, "worker closed"),
        None => Close::new(1000, "session ended"),
    }
}

pub(super) fn lock(seen: &Mutex<Seen>) -> MutexGuard<'_, Seen> {
    seen.lock().unwrap_or_else(PoisonError::into_inner)
}
