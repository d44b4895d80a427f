//! The ends of HTTP requests: each is counted once, in any order of drops.

use std::time::Duration;

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use dalston_telemetry::Env;
use dalston_telemetry::http::Request;
use dalston_telemetry::services::gateway::GatewayMetrics;
use dalston_telemetry::testing::TestTelemetry;
use dalston_telemetry::tower::HttpLayer;
use http_body::{Body as _, Frame};
use tokio::sync::mpsc;
use tower_layer::Layer as _;
use tower_service::Service;

use crate::http_layer::{Stream, request};

/// A service and a body that stop at the step that the test chooses.
#[derive(Clone, Copy, Debug)]
enum End {
    Unpolled,
    InHandler,
    Error,
    Panic,
    BeforeBody,
    InBody,
    BodyError,
    Complete,
    Empty,
}

const ENDS: [End; 9] = [
    End::Unpolled,
    End::InHandler,
    End::Error,
    End::Panic,
    End::BeforeBody,
    End::InBody,
    End::BodyError,
    End::Complete,
    End::Empty,
];

#[tokio::test]
async fn every_request_ends_exactly_once_however_it_ends() {
    let telemetry = TestTelemetry::with(|builder| builder.env(Env::from_pairs([("OTEL_ENABLED", "true")])));
    let metrics = GatewayMetrics::register(telemetry.metrics());
    let layer = HttpLayer::new().metrics(metrics).route(|_| Some("/x".to_owned()));
    // A fixed sequence of pseudo-random ends; several requests are open at the same time.
    let mut seed = 0x2545_f491_4f6c_dd1d_u64;
    let mut next = move |below: usize| {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        usize::try_from(seed % below as u64).unwrap()
    };
    let mut open: Vec<Box<dyn std::any::Any>> = Vec::new();
    let total = 400;
    for _ in 0..total {
        let end = ENDS[next(ENDS.len())];
        open.push(telemetry.attach(send(&layer, end)).await);
        if next(3) == 0 {
            let at = next(open.len());
            telemetry.in_scope(|| drop(open.swap_remove(at)));
        }
    }
    telemetry.in_scope(|| open.clear());

    let snapshot = telemetry.metrics().snapshot();
    assert_eq!(snapshot.value("dalston_gateway_requests_active", &[]), Some(0.0));
    assert_eq!(
        snapshot.sum("dalston_gateway_requests_total", &[]),
        f64::from(total)
    );
    assert_eq!(
        snapshot.sum("dalston_gateway_request_duration_seconds_count", &[]),
        f64::from(total)
    );
    assert_eq!(telemetry.spans().len(), usize::try_from(total).unwrap());
}

/// Sends a request that ends so, and returns what is left of it.
async fn send(layer: &HttpLayer, end: End) -> Box<dyn std::any::Any> {
    let handler = tower::service_fn(move |_: Request<_>| async move {
        tokio::task::yield_now().await;
        let body = match end {
            End::InHandler => std::future::pending().await,
            End::Error => return Err("no handler"),
            End::Panic => std::panic::resume_unwind(Box::new("a panic")),
            End::Empty => Body::empty(),
            End::BodyError => {
                let (chunks, receiver) = mpsc::channel(2);
                let _ = chunks.try_send(Ok(Frame::data(Bytes::from_static(b"a"))));
                let _ = chunks.try_send(Err(std::io::Error::other("gone")));
                Body::new(Stream(receiver))
            }
            _ => {
                let (chunks, receiver) = mpsc::channel(2);
                for _ in 0..2 {
                    let _ = chunks.try_send(Ok(Frame::data(Bytes::from_static(b"a"))));
                }
                Body::new(Stream(receiver))
            }
        };
        Ok::<_, &str>(Response::new(body))
    });
    let mut response = Box::pin(layer.layer(handler).call(request("GET", "/x")));
    match end {
        End::Unpolled => return Box::new(response),
        End::InHandler => {
            let _ = tokio::time::timeout(Duration::ZERO, &mut response).await;
            return Box::new(response);
        }
        _ => {}
    }
    let Ok(response) = response.await else {
        return Box::new(());
    };
    let mut body = Box::pin(response.into_body());
    let reads = match end {
        End::BeforeBody => 0,
        End::InBody => 1,
        _ => 3,
    };
    for _ in 0..reads {
        let _ = std::future::poll_fn(|cx| body.as_mut().poll_frame(cx)).await;
    }
    Box::new(body)
}
