//! Connections: their number, their lives, and the end of the server.

use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Sleep, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tracing::instrument::WithSubscriber;

use super::Server;

/// Connections at the same time, beside those that carry recordings. Who comes later waits.
const CONNECTIONS: usize = 64;
/// After this time the request at hand is the last one of its connection: a few who never leave must not keep the others
/// out.
const CONNECTION_LIFE: Duration = Duration::from_secs(60);
/// How long a header may take, also the first line of the next request.
const HEADER_PATIENCE: Duration = Duration::from_secs(10);
/// How long nobody may read of an answer.
const WRITE_PATIENCE: Duration = Duration::from_secs(30);
/// Memory for what a connection has sent and we have not looked at.
const BUFFER: usize = 64 * 1024;
/// How long the last answers may take on their way.
const LAST_ANSWERS: Duration = Duration::from_secs(2);

/// A server that runs. It ends with this value, at once unless it was [finished](Self::finish).
#[derive(Debug)]
pub(crate) struct Serving {
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Serving {
    /// Begins to serve as soon as there is a `listener`.
    pub(crate) fn start(
        listener: impl Future<Output = TcpListener> + Send + 'static,
        server: Server,
    ) -> Self {
        let free = Arc::new(Semaphore::new(CONNECTIONS + server.max_requests));
        let stop = CancellationToken::new();
        let serving = serve(listener, server.router(), free, stop.clone());
        Self {
            stop,
            task: tokio::spawn(serving.with_current_subscriber()),
        }
    }

    /// Takes no more connections, and lets the answers go out that are on their way.
    pub(crate) async fn finish(mut self) {
        self.stop.cancel();
        // It fails only if it panicked.
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
    free: Arc<Semaphore>,
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
            (stream, place) = accept(&listener, &free) => {
                let attended = attend(stream, router.clone(), stop.clone());
                let attended = async move {
                    attended.await;
                    drop(place);
                };
                open.spawn(attended.with_current_subscriber());
            }
        }
    }
    drop(listener);
    let _ = timeout(LAST_ANSWERS, async { while open.join_next().await.is_some() {} }).await;
}

async fn accept(listener: &TcpListener, free: &Arc<Semaphore>) -> (TcpStream, OwnedSemaphorePermit) {
    loop {
        let Ok(place) = Arc::clone(free).acquire_owned().await else {
            // Nobody closes the semaphore.
            return std::future::pending().await;
        };
        match listener.accept().await {
            Ok((stream, _)) => return (stream, place),
            // Too many open files, or the peer is gone again.
            Err(_) => sleep(Duration::from_millis(100)).await,
        }
    }
}

async fn attend(stream: TcpStream, router: Router, stop: CancellationToken) {
    // Only a matter of delay.
    let _ = stream.set_nodelay(true);
    let stream = TokioIo::new(Patient::new(stream));
    let mut builder = http1::Builder::new();
    builder
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_PATIENCE)
        .max_buf_size(BUFFER);
    let mut connection = pin!(builder.serve_connection(stream, TowerToHyperService::new(router)));
    tokio::select! {
        // What a client does wrong, or that it is gone, is nothing to us.
        _ = &mut connection => return,
        () = sleep(CONNECTION_LIFE) => {}
        () = stop.cancelled() => {}
    }
    connection.as_mut().graceful_shutdown();
    let _ = connection.await;
}

/// A stream that fails when nobody reads what is written.
struct Patient {
    stream: TcpStream,
    stalled: Option<Pin<Box<Sleep>>>,
}

impl Patient {
    fn new(stream: TcpStream) -> Self {
        Self {
            stream,
            stalled: None,
        }
    }

    fn unless_stalled<T>(
        &mut self,
        cx: &mut Context<'_>,
        act: impl FnOnce(Pin<&mut TcpStream>, &mut Context<'_>) -> Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        let done = act(Pin::new(&mut self.stream), cx);
        if done.is_ready() {
            self.stalled = None;
            return done;
        }
        let stalled = self
            .stalled
            .get_or_insert_with(|| Box::pin(sleep(WRITE_PATIENCE)));
        if stalled.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        Poll::Pending
    }
}

impl AsyncRead for Patient {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Patient {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.unless_stalled(cx, |stream, cx| stream.poll_write(cx, bytes))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.unless_stalled(cx, |stream, cx| stream.poll_write_vectored(cx, slices))
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.unless_stalled(cx, |stream, cx| stream.poll_flush(cx))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
