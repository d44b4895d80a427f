//! A storage server with the protocol of S3.

mod storage;
mod trouble;

use std::convert::Infallible;
use std::future::pending;
use std::net::{Ipv4Addr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use s3s::service::{S3Service, S3ServiceBuilder};
use s3s::{Body, StdError};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::oneshot;
use tokio::time::sleep;
use tokio_rustls::TlsAcceptor;
use tracing::subscriber::NoSubscriber;

pub use self::storage::StoredObject;
use self::storage::{Files, Keys, Storage};
use self::trouble::Troubles;
pub use self::trouble::{Fault, Trouble};
use crate::Authority;

/// A server with its objects in memory, on a free port and its own thread.
///
/// It checks signatures (version 4) as Amazon's server does. It implements single objects,
/// conditions, ranges, multipart uploads, copies and lists. A place is a bucket and a key:
/// `dalston-artifacts/jobs/J/audio/original.wav`.
#[derive(Debug)]
pub struct TestS3 {
    port: u16,
    scheme: &'static str,
    shared: Arc<Shared>,
    stop: Option<oneshot::Sender<Infallible>>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    files: Files,
    troubles: Troubles,
    requests: AtomicU64,
    conditions: AtomicBool,
}

impl TestS3 {
    /// The id of the only credentials that it accepts.
    pub const ACCESS_KEY_ID: &'static str = "test-id";
    /// The secret of the only credentials that it accepts.
    pub const SECRET_ACCESS_KEY: &'static str = "test-secret";
    /// The bucket that exists from the start.
    pub const BUCKET: &'static str = "dalston-artifacts";

    /// Starts a server for plain HTTP.
    ///
    /// # Panics
    ///
    /// If this machine has no free port.
    #[must_use]
    pub fn start() -> Self {
        Self::launch(None)
    }

    /// Starts a server for HTTPS, with a certificate of this authority.
    ///
    /// # Panics
    ///
    /// As [`start`](Self::start).
    #[must_use]
    pub fn start_tls(authority: &Authority) -> Self {
        Self::launch(Some(TlsAcceptor::from(authority.issue().server_config())))
    }

    fn launch(tls: Option<TlsAcceptor>) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        listener.set_nonblocking(true).unwrap();
        let port = listener.local_addr().unwrap().port();
        let scheme = if tls.is_some() { "https" } else { "http" };
        let shared = Arc::new(Shared {
            files: Files::default(),
            troubles: Troubles::default(),
            requests: AtomicU64::default(),
            conditions: AtomicBool::new(true),
        });
        shared.files.make_bucket(Self::BUCKET);
        let (stop, stopped) = oneshot::channel();
        let serving = serve(listener, tls, Arc::clone(&shared));
        // Its own thread, because a test may pause time and collects the spans of its own thread.
        let thread = thread::Builder::new().name("test-s3".to_owned()).spawn(move || {
            tracing::subscriber::with_default(NoSubscriber::new(), || {
                let runtime = tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build()
                    .unwrap();
                runtime.block_on(async {
                    tokio::select! {
                        never = serving => match never {},
                        _ = stopped => {}
                    }
                });
            });
        });
        Self {
            port,
            scheme,
            shared,
            stop: Some(stop),
            thread: Some(thread.unwrap()),
        }
    }

    /// `http://127.0.0.1:…`, or `https://…`.
    #[must_use]
    pub fn url(&self) -> String {
        format!("{}://127.0.0.1:{}", self.scheme, self.port)
    }

    /// The port on 127.0.0.1.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Stores an object without a request, and creates its bucket if necessary.
    ///
    /// # Panics
    ///
    /// If `place` has no key.
    pub fn put(&self, place: &str, content: impl Into<Bytes>) {
        let (bucket, key) = split(place);
        self.shared.files.make_bucket(bucket);
        self.shared.files.put(bucket, key, None, content.into());
    }

    /// The object at a place.
    ///
    /// # Panics
    ///
    /// If `place` has no key.
    #[must_use]
    pub fn get(&self, place: &str) -> Option<StoredObject> {
        let (bucket, key) = split(place);
        self.shared.files.get(bucket, key)
    }

    /// Removes the object at a place.
    ///
    /// # Panics
    ///
    /// If `place` has no key.
    pub fn remove(&self, place: &str) {
        let (bucket, key) = split(place);
        self.shared.files.remove(bucket, key);
    }

    /// The sorted keys of a bucket, or none if the bucket does not exist.
    #[must_use]
    pub fn keys(&self, bucket: &str) -> Vec<String> {
        self.shared.files.keys(bucket)
    }

    /// The number of multipart uploads that are neither complete nor aborted.
    #[must_use]
    pub fn open_uploads(&self) -> usize {
        self.shared.files.open_uploads()
    }

    /// The number of requests so far, including failed ones.
    #[must_use]
    pub fn requests(&self) -> u64 {
        self.shared.requests.load(Ordering::Relaxed)
    }

    /// Refuses conditional writes from now on, as servers without this feature do.
    pub fn refuse_conditions(&self) {
        self.shared.conditions.store(false, Ordering::Relaxed);
    }

    /// Adds a fault from now on.
    pub fn trouble(&self, trouble: Trouble) {
        self.shared.troubles.add(trouble);
    }

    /// Removes all faults. Requests that hang continue to hang.
    pub fn heal(&self) {
        self.shared.troubles.clear();
    }
}

impl Drop for TestS3 {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn split(place: &str) -> (&str, &str) {
    place
        .split_once('/')
        .unwrap_or_else(|| panic!("{place:?} has no key: expected bucket/key"))
}

async fn serve(listener: TcpListener, tls: Option<TlsAcceptor>, shared: Arc<Shared>) -> Infallible {
    let listener = tokio::net::TcpListener::from_std(listener).unwrap();
    let mut service = S3ServiceBuilder::new(Storage(Arc::clone(&shared)));
    service.set_auth(Keys);
    let service = service.build();
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            // Too many open files. Other connections will close theirs.
            sleep(Duration::from_millis(20)).await;
            continue;
        };
        let _ = stream.set_nodelay(true);
        let (tls, service, shared) = (tls.clone(), service.clone(), Arc::clone(&shared));
        tokio::spawn(async move {
            match tls {
                Some(tls) => {
                    if let Ok(stream) = tls.accept(stream).await {
                        converse(stream, service, shared).await;
                    }
                }
                None => converse(stream, service, shared).await,
            }
        });
    }
}

async fn converse(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    service: S3Service,
    shared: Arc<Shared>,
) {
    let answer = service_fn(|request| answer(&service, &shared, request));
    // A client may disconnect.
    let _ = http1::Builder::new()
        .serve_connection(TokioIo::new(stream), answer)
        .await;
}

/// An error ends the connection.
async fn answer(
    service: &S3Service,
    shared: &Shared,
    request: Request<Incoming>,
) -> Result<Response<Body>, StdError> {
    shared.requests.fetch_add(1, Ordering::Relaxed);
    let fate = shared
        .troubles
        .fate(request.method().as_str(), request.uri().path());
    if !fate.delay.is_zero() {
        sleep(fate.delay).await;
    }
    let ask = async |request: Request<Incoming>| {
        service
            .call(request.map(Body::from))
            .await
            .map_err(StdError::from)
    };
    match fate.fault {
        None => ask(request).await,
        Some(Fault::Answer { status, code }) => {
            let _ = request.into_body().collect().await;
            let text = format!(
                "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Error><Code>{code}</Code><Message>as the test wishes</Message></Error>"
            );
            let response = Response::builder()
                .status(status)
                .header("content-type", "application/xml");
            Ok(response.body(Body::from(text))?)
        }
        Some(Fault::Truncate(length)) => Ok(truncate(ask(request).await?, length).await?),
        Some(Fault::Cut) => Err("cut".into()),
        Some(Fault::LoseAnswer) => {
            ask(request).await?;
            Err("cut".into())
        }
        Some(Fault::Hang) => pending().await,
        Some(Fault::Delay(_)) => unreachable!("part of the fate"),
    }
}

/// Sends the full `Content-Length`, and closes the connection after a part of the body.
async fn truncate(response: Response<Body>, length: usize) -> Result<Response<Body>, StdError> {
    let (mut head, body) = response.into_parts();
    let content = BodyExt::collect(body).await?.to_bytes();
    head.headers.insert("content-length", content.len().into());
    let part = content.slice(..length.min(content.len()));
    // The client receives only the data before the error.
    let end = async {
        sleep(Duration::from_millis(20)).await;
        Err(StdError::from("cut"))
    };
    let frames = stream::iter([Ok(Frame::data(part))]).chain(stream::once(end));
    Ok(Response::from_parts(
        head,
        Body::http_body_unsync(StreamBody::new(frames)),
    ))
}
