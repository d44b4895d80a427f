//! A TCP proxy with injected faults.

use std::io;
use std::net::Ipv4Addr;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::sleep;

/// Forwards connections to a server on this machine. Faults apply to open connections, too, from
/// the next byte.
#[derive(Debug)]
pub struct Proxy {
    port: u16,
    state: watch::Sender<State>,
    _accepting: JoinSet<()>,
}

#[derive(Debug, Clone, Default)]
struct State {
    server: u16,
    loses_answers: bool,
    refuses: bool,
    stalls: bool,
    delay: Duration,
    cuts: u64,
    silences: u64,
}

impl Proxy {
    /// A proxy in front of the server on this port.
    ///
    /// # Panics
    ///
    /// If this machine has no free port.
    pub async fn to(server: u16) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (state, watched) = watch::channel(State {
            server,
            ..State::default()
        });
        let mut accepting = JoinSet::new();
        accepting.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                while connections.try_join_next().is_some() {}
                let State { server, refuses, .. } = *watched.borrow();
                if !refuses {
                    connections.spawn(connect(client, server, watched.clone()));
                }
            }
        });
        Self {
            port,
            state,
            _accepting: accepting,
        }
    }

    /// The port of the proxy on 127.0.0.1.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Forwards requests, and closes the connection instead of forwarding the answer.
    pub fn lose_answers(&self, lose: bool) {
        self.state.send_modify(|state| state.loses_answers = lose);
    }

    /// Connects new connections to the server on this port. Open connections stay.
    pub fn lead_to(&self, server: u16) {
        self.state.send_modify(|state| state.server = server);
    }

    /// Closes all open connections.
    pub fn cut(&self) {
        self.state.send_modify(|state| state.cuts += 1);
    }

    /// Closes new connections at once. Open connections stay; [`cut`](Self::cut) closes them.
    pub fn refuse(&self, refuse: bool) {
        self.state.send_modify(|state| state.refuses = refuse);
    }

    /// Forwards nothing without closing connections, as a disconnected cable does. The data is
    /// forwarded later.
    pub fn stall(&self, stall: bool) {
        self.state.send_modify(|state| state.stalls = stall);
    }

    /// Forwards nothing more on open connections and never closes them, as when the other host has
    /// lost its power. New connections work.
    pub fn silence(&self) {
        self.state.send_modify(|state| state.silences += 1);
    }

    /// Delays data by this time in each direction.
    pub fn delay(&self, delay: Duration) {
        self.state.send_modify(|state| state.delay = delay);
    }
}

async fn connect(client: TcpStream, server: u16, state: watch::Receiver<State>) {
    let Ok(server) = TcpStream::connect((Ipv4Addr::LOCALHOST, server)).await else {
        return;
    };
    // Requests are small and wait for answers.
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let (requests, to_client) = client.into_split();
    let (answers, to_server) = server.into_split();
    let cut = async {
        let mut state = state.clone();
        let cuts = state.borrow().cuts;
        let _ = state.wait_for(|state| state.cuts > cuts).await;
    };
    tokio::select! {
        biased;
        () = cut => {}
        _ = pass(requests, to_server, state.clone(), |_| false) => {}
        _ = pass(answers, to_client, state.clone(), |state| state.loses_answers) => {}
    }
}

async fn pass(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    mut state: watch::Receiver<State>,
    loses: impl Fn(&State) -> bool,
) -> io::Result<()> {
    let mut buffer = vec![0; 64 * 1024];
    let silences = state.borrow().silences;
    loop {
        // A silent connection does not show its end either.
        let length = from.read(&mut buffer).await.unwrap_or(0);
        let passes = |state: &State| !state.stalls && state.silences == silences;
        let delay = match state.wait_for(passes).await {
            Ok(state) if length > 0 && !loses(&state) => state.delay,
            _ => return Ok(()),
        };
        if !delay.is_zero() {
            sleep(delay).await;
        }
        to.write_all(&buffer[..length]).await?;
    }
}
