//! The layer in servers of other kinds: HTTP/2, and services that fail.

use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::error_handling::HandleError;
use axum::extract::Path;
use axum::response::Response;
use axum::routing::get;
use dalston_telemetry::Env;
use dalston_telemetry::http::{Request, StatusCode};
use dalston_telemetry::services::gateway::GatewayMetrics;
use dalston_telemetry::testing::TestTelemetry;
use dalston_telemetry::tower::HttpLayer;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::{client, server};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::service::TowerToHyperService;
use tower_service::Service;
use tracing::instrument::WithSubscriber;

use crate::http_layer::request;

fn telemetry() -> TestTelemetry {
    TestTelemetry::with(|builder| builder.env(Env::from_pairs([("OTEL_ENABLED", "true")])))
}

#[tokio::test]
async fn streams_of_one_http2_connection_end_on_their_own() {
    let telemetry = telemetry();
    let waiting = || async { std::future::pending::<&'static str>().await };
    let router = Router::new()
        .route("/jobs/{id}", get(|Path(id): Path<String>| async { id }))
        .route("/waiting", get(waiting))
        .layer(HttpLayer::new().metrics(GatewayMetrics::register(telemetry.metrics())));
    let dispatch = telemetry.dispatch().clone();
    let observed = tower::service_fn(move |request: Request<Incoming>| {
        let request = request.map(Body::new);
        router.clone().call(request).with_subscriber(dispatch.clone())
    });
    let (ours, theirs) = tokio::io::duplex(64 << 10);
    let serving = server::conn::http2::Builder::new(TokioExecutor::new())
        .serve_connection(TokioIo::new(theirs), TowerToHyperService::new(observed));
    tokio::spawn(serving);
    let (mut sender, connection) = client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(ours))
        .await
        .unwrap();
    tokio::spawn(connection);

    let get = |path: &str| request("GET", &format!("http://gateway:8000{path}"));
    let left = tokio::spawn(sender.send_request(get("/waiting")));
    let response = sender.send_request(get("/jobs/7")).await.unwrap();
    assert!(response.headers().contains_key("x-trace-id"));
    assert_eq!(&*response.collect().await.unwrap().to_bytes(), b"7");
    left.abort(); // resets the stream
    let counts = || {
        let snapshot = telemetry.metrics().snapshot();
        ["200", "499"]
            .map(|status| snapshot.sum("dalston_gateway_requests_total", &[("status_code", status)]))
    };
    let counted = async {
        while counts() != [1.0, 1.0] {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), counted)
        .await
        .unwrap();

    telemetry.tree().assert_eq(
        "
        \"GET /waiting\" {error.type=client_disconnected}
        \"GET /jobs/{id}\" {network.protocol.version=\"2\", server.address=gateway, server.port=8000, \
            url.scheme=http, http.response.status_code=200, http.response.body.size=1}
        ",
    );
    let snapshot = telemetry.metrics().snapshot();
    assert_eq!(snapshot.value("dalston_gateway_requests_active", &[]), Some(0.0));
}

#[tokio::test]
async fn error_of_a_service_is_recorded_as_its_answer() {
    let telemetry = telemetry();
    let failing = tower::service_fn(|_: Request<Body>| async {
        Err::<Response, _>(std::io::Error::other("the upstream is gone"))
    });
    let answer = |error: std::io::Error| async move { (StatusCode::BAD_GATEWAY, error.to_string()) };
    let mut router: Router = Router::new()
        .route_service("/upstream", HandleError::new(failing, answer))
        .layer(HttpLayer::new().metrics(GatewayMetrics::register(telemetry.metrics())));
    let response = telemetry
        .attach(router.call(request("GET", "/upstream")))
        .await
        .unwrap();
    assert_eq!(response.status(), StatusCode::BAD_GATEWAY);
    assert!(response.headers().contains_key("x-trace-id"));
    telemetry.in_scope(|| drop(response));
    let body = telemetry.tree();
    body.assert_eq("\"GET /upstream\" {http.response.status_code=502} !");
}
