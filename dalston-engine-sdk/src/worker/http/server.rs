//! Connections: their number, their age, and the shutdown of the server.
//!
//! `axum::serve` bounds neither the number of connections nor the time of a header or of a
//! connection, and a connection that carries an hour of audio can't end after a minute. So hyper
//! serves each connection, with axum's router as its service.

use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Sleep, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::instrument::WithSubscriber;

use super::connections::{Connections, Place};

/// Connections at the same time, beside those for recordings. See [`Connections`].
const CONNECTIONS: usize = 256;
/// After this time the current request of a connection is its last one, so a few connections that
/// stay open do not exclude others.
const CONNECTION_AGE: Duration = Duration::from_secs(60);
/// The limit for a header, including the wait for the next request.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a client may read nothing of a response.
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);
/// The memory for unread data of a connection, in bytes.
const BUFFER: usize = 64 * 1024;
/// The limit for the last responses at shutdown.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(2);

/// A running server. Dropping it stops the server at once; [`finish`](Self::finish) waits for the
/// last responses.
#[derive(Debug)]
pub(crate) struct Serving {
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Serving {
    /// Starts to serve as soon as there is a `listener`. `max_requests` connections are added for
    /// recordings.
    pub(crate) fn start(
        listener: impl Future<Output = TcpListener> + Send + 'static,
        router: Router,
        max_requests: usize,
    ) -> Self {
        let connections = Connections::new(CONNECTIONS + max_requests);
        let stop = CancellationToken::new();
        let serving = serve(listener, router, connections, stop.clone());
        Self {
            stop,
            task: tokio::spawn(serving.with_current_subscriber()),
        }
    }

    /// Accepts no more connections, and waits for the responses in progress.
    pub(crate) async fn finish(mut self) {
        self.stop.cancel();
        // The task fails only by a panic.
        let _ = (&mut self.task).await;
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(
    listener: impl Future<Output = TcpListener>,
    router: Router,
    connections: Arc<Connections>,
    stop: CancellationToken,
) {
    let listener = tokio::select! {
        () = stop.cancelled() => return,
        listener = listener => listener,
    };
    let mut open = JoinSet::new();
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            Some(_) = open.join_next() => {}
            (stream, place) = accept(&listener, &connections) => {
                let connection = serve_connection(stream, place, router.clone(), stop.clone());
                open.spawn(connection.with_current_subscriber());
            }
        }
    }
    drop(listener);
    let _ = timeout(SHUTDOWN_TIMEOUT, async {
        while open.join_next().await.is_some() {}
    })
    .await;
}

async fn accept(listener: &TcpListener, connections: &Arc<Connections>) -> (TcpStream, Place) {
    loop {
        // Taken first: the caller may drop this future, and an accepted stream would be lost.
        let place = connections.place().await;
        match listener.accept().await {
            Ok((stream, _)) => return (stream, place),
            // There are too many open files, or the client has disconnected.
            Err(_) => {
                connections.close_oldest();
                sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn serve_connection(stream: TcpStream, place: Place, router: Router, stop: CancellationToken) {
    // A failure only costs latency.
    let _ = stream.set_nodelay(true);
    let stream = TokioIo::new(WriteTimeout::new(stream));
    let router = TowerToHyperService::new(router);
    let service = service_fn(|request| {
        let work = place.work();
        let response = router.call(request);
        async move {
            let response = response.await;
            drop(work);
            response
        }
    });
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_buf_size(BUFFER);
    // A connection that is upgraded ends here, and lives on in its handler.
    let mut connection = pin!(builder.serve_connection(stream, service).with_upgrades());
    tokio::select! {
        // An error is the client's fault or a closed connection, so it is not reported.
        _ = &mut connection => return,
        () = place.closed() => return,
        () = sleep(CONNECTION_AGE) => {}
        () = stop.cancelled() => {}
    }
    connection.as_mut().graceful_shutdown();
    tokio::select! {
        _ = connection => {}
        () = place.closed() => {}
    }
}

/// A stream whose writes fail if its peer reads nothing for [`WRITE_TIMEOUT`].
struct WriteTimeout {
    stream: TcpStream,
    stalled: Option<Pin<Box<Sleep>>>,
}

impl WriteTimeout {
    fn new(stream: TcpStream) -> Self {
        Self {
            stream,
            stalled: None,
        }
    }

    fn write<T>(
        &mut self,
        cx: &mut Context<'_>,
        write: impl FnOnce(Pin<&mut TcpStream>, &mut Context<'_>) -> Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        let written = write(Pin::new(&mut self.stream), cx);
        if written.is_ready() {
            self.stalled = None;
            return written;
        }
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(sleep(WRITE_TIMEOUT)));
        if stalled.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        Poll::Pending
    }
}

impl AsyncRead for WriteTimeout {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for WriteTimeout {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.write(cx, |stream, cx| stream.poll_write(cx, bytes))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.write(cx, |stream, cx| stream.poll_write_vectored(cx, slices))
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.write(cx, |stream, cx| stream.poll_flush(cx))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
