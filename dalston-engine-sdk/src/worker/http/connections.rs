//! The open connections of the server, of which those that wait for their clients can be closed.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;
use tokio_util::sync::{CancellationToken, DropGuard};

/// The open connections, up to a maximum.
///
/// A connection works while a handler has its request. In all other time it waits for its client:
/// for a header, for the next request, or while a response is not read. Only a waiting connection
/// is closed in favour of another one.
#[derive(Debug)]
pub(super) struct Connections {
    most: usize,
    open: Mutex<Open>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct Open {
    count: usize,
    /// The number of connections and waits so far.
    numbers: u64,
    waiting: HashMap<u64, Waiting>,
}

#[derive(Debug)]
struct Waiting {
    since: u64,
    /// Dropped to close the connection.
    keep: DropGuard,
}

impl Connections {
    pub(super) fn new(most: usize) -> Arc<Self> {
        Arc::new(Self {
            most,
            open: Mutex::default(),
            changed: Notify::new(),
        })
    }

    /// A place for a connection. If all are taken, the connection that has waited longest for its
    /// client is closed.
    pub(super) async fn place(self: &Arc<Self>) -> Place {
        let mut closes = false;
        loop {
            if let Some(place) = self.free_place() {
                return place;
            }
            closes = closes || self.close_oldest();
            self.changed.notified().await;
        }
    }

    /// Closes the connection that has waited longest for its client. Returns whether any waits.
    pub(super) fn close_oldest(&self) -> bool {
        let waiting = &mut self.open().waiting;
        let oldest = waiting.iter().min_by_key(|(_, waiting)| waiting.since);
        let oldest = oldest.map(|(id, _)| *id);
        oldest.and_then(|id| waiting.remove(&id)).is_some()
    }

    fn free_place(self: &Arc<Self>) -> Option<Place> {
        let mut open = self.open();
        if open.count == self.most {
            return None;
        }
        open.count += 1;
        let closed = CancellationToken::new();
        let id = open.number();
        let keep = closed.clone().drop_guard();
        open.waiting.insert(id, Waiting { since: id, keep });
        Some(Place {
            id,
            connections: Arc::clone(self),
            closed,
        })
    }

    fn open(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Open {
    fn number(&mut self) -> u64 {
        self.numbers += 1;
        self.numbers
    }
}

/// The place of one connection, until it is dropped.
#[derive(Debug)]
pub(super) struct Place {
    id: u64,
    connections: Arc<Connections>,
    closed: CancellationToken,
}

impl Place {
    /// Waits until the connection has to be closed.
    pub(super) async fn closed(&self) {
        self.closed.cancelled().await;
    }

    /// A handler has a request of the connection, until the result is dropped.
    pub(super) fn work(&self) -> Work {
        let waiting = self.connections.open().waiting.remove(&self.id);
        Work {
            id: self.id,
            connections: Arc::clone(&self.connections),
            keep: waiting.map(|waiting| waiting.keep),
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut open = self.connections.open();
        open.count -= 1;
        open.waiting.remove(&self.id);
        drop(open);
        self.connections.changed.notify_one();
    }
}

/// See [`Place::work`].
#[derive(Debug)]
pub(super) struct Work {
    id: u64,
    connections: Arc<Connections>,
    /// `None` if the connection is about to be closed.
    keep: Option<DropGuard>,
}

impl Drop for Work {
    fn drop(&mut self) {
        let Some(keep) = self.keep.take() else { return };
        let mut open = self.connections.open();
        let since = open.number();
        open.waiting.insert(self.id, Waiting { since, keep });
        drop(open);
        self.connections.changed.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    fn is_closed(place: &Place) -> bool {
        place.closed().now_or_never().is_some()
    }

    #[tokio::test]
    async fn connection_that_waits_longest_is_closed_first() {
        let connections = Connections::new(3);
        let first = connections.place().await;
        let second = connections.place().await;
        let third = connections.place().await;
        // The wait of the first one begins anew, and the third one does not wait.
        drop(first.work());
        let work = third.work();

        let mut next = std::pin::pin!(connections.place());
        assert!(next.as_mut().now_or_never().is_none());
        assert_eq!([&first, &second, &third].map(is_closed), [false, true, false]);
        drop(second);
        let fourth = next.await;
        connections.close_oldest();
        assert_eq!([&first, &fourth, &third].map(is_closed), [true, false, false]);
        drop(work);
        connections.close_oldest();
        connections.close_oldest();
        assert_eq!([&fourth, &third].map(is_closed), [true, true]);
    }

    #[tokio::test]
    async fn working_connections_keep_their_places() {
        let connections = Connections::new(1);
        let first = connections.place().await;
        let work = first.work();
        let mut next = std::pin::pin!(connections.place());
        assert!(next.as_mut().now_or_never().is_none());
        assert!(!is_closed(&first));
        // It waits for its client now, and the other connection is still there.
        drop(work);
        assert!(next.as_mut().now_or_never().is_none());
        assert!(is_closed(&first));
        drop(first);
        next.await;
    }
}
