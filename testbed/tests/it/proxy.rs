//! A proxy in front of an echo server.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use testbed::Proxy;
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

const SOON: Duration = Duration::from_millis(200);

async fn echo() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut from, mut to) = stream.split();
                copy(&mut from, &mut to).await
            });
        }
    });
    port
}

async fn connect(proxy: &Proxy) -> TcpStream {
    TcpStream::connect((Ipv4Addr::LOCALHOST, proxy.port()))
        .await
        .unwrap()
}

/// The answer to one byte, or `None` when the connection closes.
async fn ask(stream: &mut TcpStream) -> Option<u8> {
    stream.write_all(b"x").await.ok()?;
    stream.read_u8().await.ok()
}

#[tokio::test]
async fn connections_can_be_cut_and_refused() {
    let proxy = Proxy::to(echo().await).await;
    let mut first = connect(&proxy).await;
    assert_eq!(ask(&mut first).await, Some(b'x'));
    proxy.cut();
    assert_eq!(ask(&mut first).await, None);

    let mut second = connect(&proxy).await;
    assert_eq!(ask(&mut second).await, Some(b'x'));
    proxy.refuse(true);
    assert_eq!(ask(&mut connect(&proxy).await).await, None);
    assert_eq!(ask(&mut second).await, Some(b'x'));
    proxy.refuse(false);
    assert_eq!(ask(&mut connect(&proxy).await).await, Some(b'x'));
}

#[tokio::test]
async fn stalled_connection_forwards_its_data_later() {
    let proxy = Proxy::to(echo().await).await;
    let mut stream = connect(&proxy).await;
    assert_eq!(ask(&mut stream).await, Some(b'x'));
    proxy.stall(true);
    assert_eq!(timeout(SOON, ask(&mut stream)).await.ok(), None);
    proxy.stall(false);
    assert_eq!(stream.read_u8().await.unwrap(), b'x');
}

#[tokio::test]
async fn delay_applies_in_both_directions() {
    let proxy = Proxy::to(echo().await).await;
    let mut stream = connect(&proxy).await;
    proxy.delay(SOON);
    let started = Instant::now();
    assert_eq!(ask(&mut stream).await, Some(b'x'));
    assert!(started.elapsed() >= 2 * SOON, "{:?}", started.elapsed());
    proxy.delay(Duration::ZERO);
    assert_eq!(ask(&mut stream).await, Some(b'x'));
}

#[tokio::test]
async fn answers_can_be_lost() {
    let proxy = Proxy::to(echo().await).await;
    let mut stream = connect(&proxy).await;
    proxy.lose_answers(true);
    assert_eq!(ask(&mut stream).await, None);
}
