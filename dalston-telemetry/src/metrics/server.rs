//! A server of `/metrics`, for programs without an HTTP server.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::net::{SocketAddr, TcpListener as StdListener, ToSocketAddrs};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::task::AbortHandle;
use tokio::time::{sleep, timeout};

use super::Metrics;

/// Concurrent connections. For a further one, the oldest is closed; see [`Connections`].
const CONNECTIONS: usize = 128;
/// The longest duration of a connection.
const CONNECTION_LIFE: Duration = Duration::from_secs(30);
/// The longest wait for a client to close the connection after its answer.
const LONGEST_FAREWELL: Duration = Duration::from_secs(1);
/// The longest wait for the thread at the shutdown of the server.
const LONGEST_END: Duration = Duration::from_secs(1);
/// The longest request line with all headers.
const MAX_HEAD_BYTES: usize = 16 * 1024;

/// Serves `GET /metrics` until it is dropped.
///
/// It has its own thread, so that a program that is busy, stuck or without a runtime can be
/// observed. It has at most 128 connections, each for 30 s at most. For a further one, it closes
/// the oldest whose client has not sent its request, so silent clients do not shut out others.
/// There is no TLS and no password: bind it to an address that only Prometheus reaches.
///
/// ```
/// use dalston_telemetry::metrics::{Metrics, MetricsServer};
///
/// # fn main() -> std::io::Result<()> {
/// let server = MetricsServer::start("127.0.0.1:0", Metrics::new())?;
/// println!("metrics are at http://{}/metrics", server.address());
/// # Ok(())
/// # }
/// ```
#[must_use = "the server ends when this is dropped"]
pub struct MetricsServer {
    address: SocketAddr,
    /// `None` after the shutdown has started.
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl MetricsServer {
    /// Binds the address and starts the server.
    ///
    /// # Errors
    ///
    /// When the address can't be bound or the thread can't be started.
    pub fn start(address: impl ToSocketAddrs, metrics: Metrics) -> io::Result<Self> {
        Self::serve(
            address,
            Pages {
                metrics,
                health: None,
            },
        )
    }

    /// As [`start`](Self::start), with an answer to `GET /health`: JSON with status 200 for `Ok`
    /// and 503 for `Err`. The function runs on the server's thread and must not block.
    ///
    /// # Errors
    ///
    /// As [`start`](Self::start).
    pub fn start_with_health(
        address: impl ToSocketAddrs,
        metrics: Metrics,
        health: impl Fn() -> Result<String, String> + Send + Sync + 'static,
    ) -> io::Result<Self> {
        let health: Option<Health> = Some(Arc::new(health));
        Self::serve(address, Pages { metrics, health })
    }

    fn serve(address: impl ToSocketAddrs, pages: Pages) -> io::Result<Self> {
        let listener = StdListener::bind(address)?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let listener = {
            let _entered = runtime.enter();
            TcpListener::from_std(listener)?
        };
        let (stop, stopped) = oneshot::channel();
        let serve = move || {
            runtime.block_on(async {
                tokio::select! {
                    () = serve(listener, pages) => {}
                    _ = stopped => {}
                }
            });
        };
        let thread = thread::Builder::new()
            .name("dalston-metrics".into())
            .spawn(serve)?;
        Ok(Self {
            address,
            stop: Some(stop),
            thread: Some(thread),
        })
    }

    /// The local address, with the port that the system has chosen for port 0.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for MetricsServer {
    fn drop(&mut self) {
        drop(self.stop.take());
        let Some(thread) = self.thread.take() else { return };
        // An observable instrument or the health function may block, and the process must end
        // anyway.
        let given_up = Instant::now() + LONGEST_END;
        while !thread.is_finished() {
            if Instant::now() >= given_up {
                return;
            }
            thread::sleep(Duration::from_millis(1));
        }
        // The panic hook has reported a panic of the thread.
        let _ = thread.join();
    }
}

impl fmt::Debug for MetricsServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MetricsServer")
            .field("address", &self.address)
            .finish_non_exhaustive()
    }
}

/// The pages of the server.
#[derive(Clone)]
struct Pages {
    metrics: Metrics,
    health: Option<Health>,
}

type Health = Arc<dyn Fn() -> Result<String, String> + Send + Sync>;

async fn serve(listener: TcpListener, pages: Pages) {
    let connections = Connections::default();
    let mut id = 0;
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                id += 1;
                let place = Place {
                    connections: connections.clone(),
                    id,
                };
                let pages = pages.clone();
                let serving = tokio::spawn(async move {
                    // A client that sends no request or does not read is disconnected.
                    let _ = timeout(CONNECTION_LIFE, answer(stream, &pages, &place)).await;
                });
                // The task has not begun: this thread is the only one of its runtime.
                connections.add(id, serving.abort_handle());
            }
            // There are too many open files, or the client has gone.
            Err(_) => {
                connections.close_oldest();
                sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

/// The open connections. The oldest one that has sent no complete request comes first, and then the
/// oldest one whose answer is not read yet.
#[derive(Clone, Default)]
struct Connections(Arc<Mutex<BTreeMap<(Phase, u64), AbortHandle>>>);

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Phase {
    Request,
    Answer,
}

impl Connections {
    /// Adds a connection, and closes the first one if there are too many.
    fn add(&self, id: u64, serving: AbortHandle) {
        self.open().insert((Phase::Request, id), serving);
        if self.open().len() > CONNECTIONS {
            self.close_oldest();
        }
    }

    fn close_oldest(&self) {
        let oldest = self.open().pop_first();
        if let Some((_, serving)) = oldest {
            serving.abort();
        }
    }

    fn open(&self) -> MutexGuard<'_, BTreeMap<(Phase, u64), AbortHandle>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The place of a connection among the others, until it is dropped.
struct Place {
    connections: Connections,
    id: u64,
}

impl Place {
    /// The request has arrived.
    fn answers(&self) {
        let mut open = self.connections.open();
        if let Some(serving) = open.remove(&(Phase::Request, self.id)) {
            open.insert((Phase::Answer, self.id), serving);
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut open = self.connections.open();
        open.remove(&(Phase::Request, self.id));
        open.remove(&(Phase::Answer, self.id));
    }
}

async fn answer(mut stream: TcpStream, pages: &Pages, place: &Place) -> io::Result<()> {
    let head = read_head(&mut stream).await?;
    place.answers();
    let response = match head {
        Some(head) => respond(&head, pages),
        None => response("431 Request Header Fields Too Large", "", "", true),
    };
    stream.write_all(response.as_bytes()).await?;
    stream.shutdown().await?;
    // A close with unread input would reset the connection, and the client would lose the answer.
    let rest = async { while matches!(stream.read(&mut [0; 1024]).await, Ok(1..)) {} };
    let _ = timeout(LONGEST_FAREWELL, rest).await;
    Ok(())
}

/// The request up to the empty line; `None` if it is too long.
async fn read_head(stream: &mut TcpStream) -> io::Result<Option<String>> {
    let mut head = Vec::new();
    let mut chunk = [0; 1024];
    loop {
        let read = stream.read(&mut chunk).await?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        head.extend_from_slice(&chunk[..read]);
        if head.windows(4).any(|end| end == b"\r\n\r\n") {
            return Ok(Some(String::from_utf8_lossy(&head).into_owned()));
        }
        if head.len() > MAX_HEAD_BYTES {
            return Ok(None);
        }
    }
}

fn respond(head: &str, pages: &Pages) -> String {
    let mut lines = head.lines();
    let mut request = lines.next().unwrap_or_default().split(' ');
    let (method, target) = (
        request.next().unwrap_or_default(),
        request.next().unwrap_or_default(),
    );
    if !request.next().unwrap_or_default().starts_with("HTTP/1.") {
        return response("400 Bad Request", "", "", true);
    }
    let health = match (path(target), &pages.health) {
        ("/metrics", _) => None,
        ("/health", Some(health)) => Some(health),
        _ => return response("404 Not Found", "", "", true),
    };
    if !matches!(method, "GET" | "HEAD") {
        return response("405 Method Not Allowed", "Allow: GET, HEAD\r\n", "", true);
    }
    let with_body = method == "GET";
    if let Some(health) = health {
        let (status, body) = match health() {
            Ok(body) => ("200 OK", body),
            Err(body) => ("503 Service Unavailable", body),
        };
        return response(status, "Content-Type: application/json\r\n", &body, with_body);
    }
    let accept = lines
        .filter_map(|line| line.split_once(':'))
        .filter(|(name, _)| name.eq_ignore_ascii_case("accept"))
        .map(|(_, value)| value);
    let (content_type, text) = pages.metrics.encode_for(accept);
    let content_type = format!("Content-Type: {content_type}\r\n");
    response("200 OK", &content_type, &text, with_body)
}

/// The path of a request target. A client of a proxy sends the whole URL (RFC 9112, 3.2.2).
fn path(target: &str) -> &str {
    let path = match target.split_once("://") {
        Some((scheme, rest)) if scheme.eq_ignore_ascii_case("http") => {
            rest.find('/').map_or("/", |begin| &rest[begin..])
        }
        _ => target,
    };
    path.split('?').next().unwrap_or_default()
}

fn response(status: &str, headers: &str, body: &str, with_body: bool) -> String {
    let length = body.len();
    let body = if with_body { body } else { "" };
    format!("HTTP/1.1 {status}\r\n{headers}Content-Length: {length}\r\nConnection: close\r\n\r\n{body}")
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpStream;
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::super::{Counter, DenseFamily};
    use super::*;

    fn server() -> MetricsServer {
        let metrics = Metrics::new();
        let jobs = DenseFamily::<(), Counter>::default();
        metrics.register(|registry| registry.register("jobs", "Jobs", jobs.clone()));
        jobs.with(()).inc_by(3);
        MetricsServer::start("127.0.0.1:0", metrics).unwrap()
    }

    fn ask(server: &MetricsServer, request: &str) -> String {
        let mut stream = TcpStream::connect(server.address()).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    #[test]
    fn metrics_are_served_in_the_accepted_format() {
        let server = server();
        let older = ask(&server, "GET /metrics?x=1 HTTP/1.1\r\nHost: x\r\n\r\n");
        assert_eq!(
            older,
            "HTTP/1.1 200 OK\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\nContent-Length: 63\r\n\
             Connection: close\r\n\r\n\
             # HELP jobs_total Jobs.\n# TYPE jobs_total counter\njobs_total 3\n"
        );
        let newer = ask(
            &server,
            "GET /metrics HTTP/1.1\r\naccept: application/openmetrics-text;version=1.0.0\r\n\r\n",
        );
        assert!(
            newer.contains("Content-Type: application/openmetrics-text; version=1.0.0; charset=utf-8\r\n")
        );
        assert!(newer.ends_with("# TYPE jobs counter\njobs_total 3\n# EOF\n"));
        // As a client of a proxy sends it.
        let through_proxy = ask(
            &server,
            "GET http://engine:9100/metrics?x=1 HTTP/1.1\r\nHost: x\r\n\r\n",
        );
        assert_eq!(through_proxy, older);
        let head = ask(&server, "HEAD /metrics HTTP/1.0\r\n\r\n");
        assert!(head.contains("Content-Length: 63\r\n") && head.ends_with("\r\n\r\n"));
    }

    #[test]
    fn health_is_served_only_with_a_health_function() {
        let healthy = Arc::new(AtomicBool::new(true));
        let says = healthy.clone();
        let health = move || match says.load(Ordering::Relaxed) {
            true => Ok(r#"{"status":"healthy"}"#.into()),
            false => Err(r#"{"status":"unhealthy"}"#.into()),
        };
        let with = MetricsServer::start_with_health("127.0.0.1:0", Metrics::new(), health).unwrap();
        assert_eq!(
            ask(&with, "GET /health HTTP/1.1\r\n\r\n"),
            "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 20\r\nConnection: close\r\n\r\n\
             {\"status\":\"healthy\"}"
        );
        healthy.store(false, Ordering::Relaxed);
        let ill = ask(&with, "HEAD /health?now HTTP/1.1\r\n\r\n");
        assert!(ill.starts_with("HTTP/1.1 503 Service Unavailable\r\n") && ill.ends_with("\r\n\r\n"));
        assert!(ask(&with, "GET /metrics HTTP/1.1\r\n\r\n").starts_with("HTTP/1.1 200 "));
        assert!(ask(&server(), "GET /health HTTP/1.1\r\n\r\n").starts_with("HTTP/1.1 404 "));
    }

    #[test]
    fn a_blocked_health_function_does_not_block_shutdown() {
        let (asked, is_asked) = std::sync::mpsc::channel();
        let health = move || {
            let _ = asked.send(());
            loop {
                thread::park();
            }
        };
        let server = MetricsServer::start_with_health("127.0.0.1:0", Metrics::new(), health).unwrap();
        let mut stream = TcpStream::connect(server.address()).unwrap();
        stream.write_all(b"GET /health HTTP/1.1\r\n\r\n").unwrap();
        is_asked.recv().unwrap();
        drop(server);
    }

    #[test]
    fn other_requests_are_refused() {
        let server = server();
        for (request, status) in [
            ("GET / HTTP/1.1\r\n\r\n", "404"),
            ("POST /metrics HTTP/1.1\r\n\r\n", "405"),
            ("GET /metrics\r\n\r\n", "400"),
            ("\r\n\r\n", "400"),
            (
                &*format!("GET /metrics HTTP/1.1\r\nX: {}", "x".repeat(20_000)),
                "431",
            ),
        ] {
            let answer = ask(&server, request);
            assert!(
                answer.starts_with(&format!("HTTP/1.1 {status} ")),
                "{request:.40}: {answer}"
            );
        }
    }

    #[test]
    fn silent_clients_shut_out_neither_others_nor_the_port() {
        let server = server();
        let silent: Vec<_> = (0..320)
            .map(|number| {
                let mut client = TcpStream::connect(server.address()).unwrap();
                if number >= 200 {
                    client.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\n").unwrap();
                }
                client
            })
            .collect();
        let mut client = TcpStream::connect(server.address()).unwrap();
        // Less than any timeout of the server: an answer needs none of them to pass.
        client.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        client.write_all(b"GET /metrics HTTP/1.1\r\n\r\n").unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
        let address = server.address();
        drop((server, silent));
        assert!(TcpStream::connect(address).is_err());
    }

    #[test]
    fn answers_under_way_are_closed_last() {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let connections = Connections::default();
        let place = Place {
            connections: connections.clone(),
            id: 0,
        };
        let mut tasks = Vec::new();
        for id in 0..=CONNECTIONS {
            let task = runtime.spawn(std::future::pending::<()>());
            connections.add(id as u64, task.abort_handle());
            place.answers();
            tasks.push(task);
        }
        runtime.block_on(tokio::task::yield_now());
        let ended = tasks.iter().enumerate().filter(|(_, task)| task.is_finished());
        assert_eq!(ended.map(|(id, _)| id).collect::<Vec<_>>(), [1]);
    }
}
