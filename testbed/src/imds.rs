//! EC2's instance metadata service, with injected faults.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::sleep;

/// A metadata service of version 2 of a `g5.xlarge` in `eu-west-2a`. It ends when this value is
/// dropped.
#[derive(Debug)]
pub struct TestImds {
    address: SocketAddr,
    shared: Arc<Shared>,
    _accepting: JoinSet<()>,
}

/// A fault of the service.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum ImdsFault {
    /// It reads the request and never answers.
    Hang,
    /// It sends a byte every 20 ms, without end.
    Drip,
    /// It answers with this status.
    Status(u16),
    /// It answers with a login page.
    Page,
    /// It redirects the client.
    Redirect(String),
    /// It answers correctly after this delay.
    Slow(Duration),
    /// It sends an answer of many megabytes.
    Huge,
    /// It answers with bytes that are not HTTP.
    Garbage,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    content: BTreeMap<String, String>,
    /// The service is version 1.
    open: bool,
    faults: Vec<(String, ImdsFault)>,
    tokens: Vec<String>,
    issued: usize,
    sent: usize,
    requests: Vec<String>,
}

impl TestImds {
    /// The id of the instance.
    pub const INSTANCE_ID: &str = "i-0123456789abcdef0";

    /// Starts a service on 127.0.0.1.
    ///
    /// # Panics
    ///
    /// If this machine has no free port.
    pub async fn start() -> Self {
        Self::start_on(Ipv4Addr::LOCALHOST.into()).await
    }

    /// Starts a service on this address.
    ///
    /// # Panics
    ///
    /// If this machine has no such address, or no free port.
    pub async fn start_on(address: IpAddr) -> Self {
        let listener = TcpListener::bind((address, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared::default());
        let serving = Arc::clone(&shared);
        let mut accepting = JoinSet::new();
        accepting.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let shared = Arc::clone(&serving);
                connections.spawn(async move {
                    // A client may disconnect.
                    let _ = serve(stream, &shared).await;
                });
                while connections.try_join_next().is_some() {}
            }
        });
        let service = Self {
            address,
            shared,
            _accepting: accepting,
        };
        for (path, text) in [
            ("dynamic/instance-identity/document", DOCUMENT),
            ("meta-data/instance-id", Self::INSTANCE_ID),
            ("meta-data/instance-type", "g5.xlarge"),
            ("meta-data/placement/availability-zone", "eu-west-2a"),
            ("meta-data/placement/region", "eu-west-2"),
            ("meta-data/ami-id", "ami-0a1b2c3d4e5f60718"),
        ] {
            service.put(path, text);
        }
        service
    }

    /// `http://127.0.0.1:…`
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Answers with this text at a path below `/latest/` from now on.
    pub fn put(&self, path: &str, text: impl Into<String>) {
        self.state().content.insert(path.to_owned(), text.into());
    }

    /// Answers with 404 at a path below `/latest/` from now on.
    pub fn remove(&self, path: &str) {
        self.state().content.remove(path);
    }

    /// Adds a fault for paths below `/latest/` with this prefix. Earlier faults have precedence.
    pub fn fault(&self, path: &str, fault: ImdsFault) {
        self.state().faults.push((path.to_owned(), fault));
    }

    /// Removes all faults.
    pub fn heal(&self) {
        self.state().faults.clear();
    }

    /// Requires no tokens from now on.
    pub fn open(&self) {
        self.state().open = true;
    }

    /// Invalidates the tokens that it has issued.
    pub fn forget_tokens(&self) {
        self.state().tokens.clear();
    }

    /// All requests so far, such as `GET /latest/meta-data/ami-id`.
    #[must_use]
    pub fn requests(&self) -> Vec<String> {
        self.state().requests.clone()
    }

    /// The number of bytes of huge answers that clients have read.
    #[must_use]
    pub fn huge_bytes_sent(&self) -> usize {
        self.state().sent
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.shared.state.lock().unwrap()
    }
}

const HUGE_PART: usize = 64 * 1024;

const DOCUMENT: &str = r#"{
  "accountId" : "123456789012",
  "architecture" : "x86_64",
  "availabilityZone" : "eu-west-2a",
  "billingProducts" : null,
  "imageId" : "ami-0a1b2c3d4e5f60718",
  "instanceId" : "i-0123456789abcdef0",
  "instanceType" : "g5.xlarge",
  "kernelId" : null,
  "pendingTime" : "2026-11-20T09:00:00Z",
  "privateIp" : "10.0.0.7",
  "region" : "eu-west-2",
  "version" : "2017-09-30"
}"#;

struct Request {
    method: String,
    path: String,
    headers: BTreeMap<String, String>,
}

async fn serve(mut stream: TcpStream, shared: &Shared) -> std::io::Result<()> {
    let Some(request) = read_request(&mut stream).await? else {
        return Ok(());
    };
    let fault = {
        let mut state = shared.state.lock().unwrap();
        state
            .requests
            .push(format!("{} {}", request.method, request.path));
        let path = request.path.strip_prefix("/latest/").unwrap_or_default();
        let fault = state.faults.iter().find(|(start, _)| path.starts_with(start));
        fault.map(|(_, fault)| fault.clone())
    };
    match fault {
        None => {}
        Some(ImdsFault::Slow(time)) => sleep(time).await,
        Some(ImdsFault::Hang) => return std::future::pending().await,
        Some(ImdsFault::Drip) => {
            stream
                .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 4000\r\n\r\n")
                .await?;
            loop {
                stream.write_all(b"A").await?;
                sleep(Duration::from_millis(20)).await;
            }
        }
        Some(ImdsFault::Status(code)) => return answer(&mut stream, code, "").await,
        Some(ImdsFault::Page) => {
            return answer(&mut stream, 200, "<html><body>Please log in.</body></html>").await;
        }
        Some(ImdsFault::Redirect(to)) => {
            let head = format!("HTTP/1.1 302 Found\r\nLocation: {to}\r\nContent-Length: 0\r\n\r\n");
            return stream.write_all(head.as_bytes()).await;
        }
        Some(ImdsFault::Huge) => {
            stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await?;
            loop {
                stream.write_all(&[b'A'; HUGE_PART]).await?;
                shared.state.lock().unwrap().sent += HUGE_PART;
            }
        }
        Some(ImdsFault::Garbage) => return stream.write_all(b"220 mail.example ESMTP\r\n\r\n").await,
    }
    let (code, body) = shared.state.lock().unwrap().answer(&request);
    answer(&mut stream, code, &body).await
}

impl State {
    fn answer(&mut self, request: &Request) -> (u16, String) {
        let header = |name: &str| request.headers.get(name);
        let Some(path) = request.path.strip_prefix("/latest/") else {
            return (404, String::new());
        };
        match (request.method.as_str(), path) {
            ("PUT", "api/token") if self.open => (405, String::new()),
            ("PUT", "api/token") => {
                let ttl = header("x-aws-ec2-metadata-token-ttl-seconds").and_then(|ttl| ttl.parse().ok());
                if !ttl.is_some_and(|ttl: u32| (1..=21_600).contains(&ttl)) {
                    return (400, String::new());
                }
                self.issued += 1;
                let token = format!("AQAEAtoken{}==", self.issued);
                self.tokens.push(token.clone());
                (200, token)
            }
            ("GET", path) => {
                let token = header("x-aws-ec2-metadata-token");
                if !self.open && !token.is_some_and(|token| self.tokens.contains(token)) {
                    return (401, String::new());
                }
                match self.content.get(path) {
                    Some(text) => (200, text.clone()),
                    None => (404, String::new()),
                }
            }
            _ => (405, String::new()),
        }
    }
}

async fn read_request(stream: &mut TcpStream) -> std::io::Result<Option<Request>> {
    let mut lines = BufReader::new(stream).lines();
    let Some(first) = lines.next_line().await? else {
        return Ok(None);
    };
    let mut words = first.split(' ').map(str::to_owned);
    let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let mut headers = BTreeMap::new();
    while let Some(line) = lines.next_line().await? {
        let Some((name, value)) = line.split_once(':') else {
            break;
        };
        headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
    }
    Ok(Some(Request {
        method,
        path,
        headers,
    }))
}

async fn answer(stream: &mut TcpStream, code: u16, body: &str) -> std::io::Result<()> {
    let length = body.len();
    let head =
        format!("HTTP/1.1 {code} Status\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}");
    stream.write_all(head.as_bytes()).await
}
