//! A network cable that can be made to fail.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt, copy};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

/// Passes connections on to a server of this machine.
#[derive(Debug)]
pub struct Proxy {
    port: u16,
    lossy: Arc<AtomicBool>,
    _accepting: JoinSet<()>,
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
        let lossy = Arc::new(AtomicBool::new(false));
        let shared = Arc::clone(&lossy);
        let mut accepting = JoinSet::new();
        accepting.spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let lossy = Arc::clone(&shared);
                tokio::spawn(async move {
                    let server = TcpStream::connect((Ipv4Addr::LOCALHOST, server)).await?;
                    pass(client, server, &lossy).await
                });
            }
        });
        Self {
            port,
            lossy,
            _accepting: accepting,
        }
    }

    /// Its own port on 127.0.0.1.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Requests still reach the server, but instead of an answer the client sees the connection end.
    pub fn lose_answers(&self, lose: bool) {
        self.lossy.store(lose, Ordering::SeqCst);
    }
}

async fn pass(client: TcpStream, server: TcpStream, lossy: &AtomicBool) -> std::io::Result<()> {
    let (mut requests, mut to_client) = client.into_split();
    let (mut answers, mut to_server) = server.into_split();
    let forward = async { copy(&mut requests, &mut to_server).await.map(drop) };
    let back = async {
        let mut buffer = vec![0; 64 * 1024];
        loop {
            let length = answers.read(&mut buffer).await?;
            if length == 0 || lossy.load(Ordering::SeqCst) {
                return Ok(());
            }
            to_client.write_all(&buffer[..length]).await?;
        }
    };
    tokio::select! {
        ended = forward => ended,
        ended = back => ended,
    }
}
