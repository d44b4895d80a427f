//! The gateway as the collector of the spans of all processes.

use std::io::Write;
use std::net::{SocketAddr, TcpListener};

use flate2::Compression;
use flate2::write::GzEncoder;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_client::TraceServiceClient;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span};
use prost::Message;
use reqwest::{Client, Method, StatusCode};
use serde_json::Value;
use tonic::codec::CompressionEncoding;

use crate::job::STEREO;
use crate::rig::{Rig, free_port, stereo, trace_id};
use crate::tree::{tree, with_services};

const MIB: usize = 1 << 20;

/// A rig whose gateway chooses a port for OTLP over HTTP.
async fn rig() -> Rig {
    let mut rig = Rig::new().await;
    rig.variables.push(("DALSTON_OTLP_HTTP_PORT", "0".to_owned()));
    rig
}

/// The port that a process has chosen for a protocol.
async fn port(rig: &Rig, protocol: &str) -> u16 {
    rig.until("receiver", async || {
        let lines = rig.log_lines();
        let mut listening = lines.iter().filter(|line| line["event"] == "otlp_listening");
        let line = listening.find(|line| line["protocol"] == protocol)?;
        let address: SocketAddr = line["address"].as_str()?.parse().ok()?;
        Some(address.port())
    })
    .await
}

#[tokio::test]
async fn job_is_downloaded_as_one_trace_of_all_processes() {
    let mut rig = rig().await;
    let grpc = free_port();
    rig.variables.push(("DALSTON_OTLP_GRPC_PORT", grpc.to_string()));
    let export = |protocol: &str, port| {
        [
            ("OTEL_EXPORTER_OTLP_PROTOCOL", protocol.to_owned()),
            ("OTEL_EXPORTER_OTLP_ENDPOINT", format!("http://localhost:{port}")),
            ("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip".to_owned()),
        ]
    };
    // The gateway sends its spans to itself, once a second, so that some are left at its end.
    rig.variables.extend(export("grpc", grpc));
    let delay = "OTEL_BSP_SCHEDULE_DELAY";
    rig.variables.push((delay, "1000".to_owned()));
    rig.run("gateway", &[]);
    rig.variables.push((delay, "10".to_owned()));
    rig.run("orchestrator", &[]);
    rig.variables
        .extend(export("http/protobuf", port(&rig, "HTTP").await));
    rig.run("prepare", &[]);
    rig.run("mock-engine", &["--delay", "200"]);
    rig.is_ready(2).await;
    let fields = [("speaker_detection", "per_channel")];
    let response = rig.submit(&stereo(1), &fields).await;
    let trace = trace_id(&response);
    let created: Value = response.json().await.unwrap();
    rig.job_with(created["id"].as_str().unwrap(), "completed").await;

    let path = format!("/v1/traces/{trace}");
    let expected = STEREO.trim().lines().count();
    let spans = rig
        .until("complete trace", async || {
            let file = rig.request(Method::GET, &path).send().await.ok()?;
            let file: ExportTraceServiceRequest = file.json().await.ok()?;
            let spans = with_services(file);
            (spans.len() >= expected).then_some(spans)
        })
        .await;
    tree(&spans).assert_eq(STEREO);

    let response = rig.request(Method::GET, &format!("{path}?format=jaeger"));
    let response = response.send().await.unwrap();
    let name = format!("attachment; filename=\"trace-{trace}.json\"");
    assert_eq!(response.headers()["content-disposition"], name);
    let file: Value = response.json().await.unwrap();
    assert!(file["data"][0]["spans"].as_array().unwrap().len() >= expected);
    assert_eq!(file["data"][0]["processes"].as_object().unwrap().len(), 4);
    let text = rig.request(Method::GET, &format!("{path}?format=text"));
    let text = text.send().await.unwrap().text().await.unwrap();
    assert!(text.contains("orchestrator.mark_job_completed"), "{text}");

    for (path, status, detail) in [
        (
            format!("{path}?format=xml"),
            StatusCode::BAD_REQUEST,
            r#"format is "xml": expected otlp, jaeger or text"#,
        ),
        (
            "/v1/traces/5".to_owned(),
            StatusCode::NOT_FOUND,
            "there is no trace 5",
        ),
        (
            "/v1/traces/odd".to_owned(),
            StatusCode::NOT_FOUND,
            "there is no trace odd",
        ),
    ] {
        let response = rig.request(Method::GET, &path).send().await.unwrap();
        assert_eq!(response.status(), status, "{path}");
        let body: Value = response.json().await.unwrap();
        assert_eq!(body["detail"], detail);
        assert!(body["request_id"].is_string(), "{body}");
    }
    for role in ["mock-engine", "prepare", "orchestrator"] {
        rig.end(role);
    }
    rig.get("/v1/engines").await;
    // Its last spans reach the process itself, so that it ends without loss.
    rig.end("gateway");
}

#[tokio::test]
async fn newest_traces_stay_within_the_bound() {
    let mut rig = rig().await;
    rig.variables.push(("DALSTON_TRACE_STORE_MB", "1".to_owned()));
    rig.run("gateway", &[]);
    rig.is_ready(0).await;
    let http = port(&rig, "HTTP").await;
    for trace in 1..=20 {
        // 100 kB each.
        let response = post(http, &[("content-type", PROTOBUF)], request(trace, 100_000));
        assert_eq!(response.await.0, StatusCode::OK);
    }
    let mut found = Vec::new();
    for trace in 1..=20 {
        let path = format!("/v1/traces/{trace:032x}");
        if rig.request(Method::GET, &path).send().await.unwrap().status() == StatusCode::OK {
            found.push(trace);
        }
    }
    assert_eq!(found, (12..=20).collect::<Vec<u128>>());
    assert_eq!(rig.get("/health").await["dropped_spans"], 11);
}

const PROTOBUF: &str = "application/x-protobuf";

#[tokio::test]
async fn requests_of_other_forms_and_sizes_are_refused() {
    let mut rig = rig().await;
    rig.variables.push(("DALSTON_OTLP_GRPC_PORT", "0".to_owned()));
    rig.run("gateway", &[]);
    rig.is_ready(0).await;
    let (http, grpc) = (port(&rig, "HTTP").await, port(&rig, "gRPC").await);
    let protobuf = ("content-type", PROTOBUF);
    let gzip = ("content-encoding", "gzip");
    // Little more than the limit: a server that answers before the end of a request closes the
    // connection, and the answer may get lost.
    let large = request(1, 16 * MIB);
    for (headers, body, status, answer) in [
        (
            vec![("content-type", "application/json")],
            b"{}".to_vec(),
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            r#"Content-Type is "application/json": expected application/x-protobuf; set OTEL_EXPORTER_OTLP_PROTOCOL"#,
        ),
        (
            vec![protobuf, ("content-encoding", "br")],
            Vec::new(),
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            r#"Content-Encoding is "br": expected gzip"#,
        ),
        (
            vec![protobuf],
            b"odd".to_vec(),
            StatusCode::BAD_REQUEST,
            "the OTLP request is \"3 bytes\"",
        ),
        (
            vec![protobuf, gzip],
            b"odd".to_vec(),
            StatusCode::BAD_REQUEST,
            "the body is not gzip",
        ),
        (vec![protobuf], large.clone(), StatusCode::PAYLOAD_TOO_LARGE, ""),
        (
            vec![protobuf, gzip],
            zip(&large),
            StatusCode::PAYLOAD_TOO_LARGE,
            "the request has more than 16777216 bytes",
        ),
        (vec![protobuf, gzip], zip(&request(2, MIB)), StatusCode::OK, ""),
    ] {
        let (found, text) = post(http, &headers, body).await;
        assert_eq!(found, status, "{headers:?}: {text}");
        assert!(text.starts_with(answer), "{text}");
    }
    let client = TraceServiceClient::connect(format!("http://127.0.0.1:{grpc}")).await;
    let mut client = client.unwrap().send_compressed(CompressionEncoding::Gzip);
    let send = |body: &[u8]| ExportTraceServiceRequest::decode(body).unwrap();
    let refused = client.export(send(&large)).await.unwrap_err();
    assert!(refused.message().contains("limit"), "{refused}");
    client.export(send(&request(3, MIB))).await.unwrap();
    let found = rig.get("/v1/traces/00000000000000000000000000000003").await;
    assert!(found["resourceSpans"].is_array(), "{found}");
}

#[tokio::test]
async fn taken_port_is_a_warning() {
    let mut rig = rig().await;
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let grpc = taken.local_addr().unwrap().port();
    rig.variables.push(("DALSTON_OTLP_GRPC_PORT", grpc.to_string()));
    rig.run("gateway", &[]);
    rig.is_ready(0).await;
    let warning = rig
        .until("warning", async || {
            let mut lines = rig.log_lines().into_iter();
            lines.find(|line| line["event"] == "otlp_not_listening")
        })
        .await;
    assert_eq!(warning["port"], grpc);
    assert_eq!(
        warning["hint"],
        r#"set DALSTON_OTLP_GRPC_PORT to another port, or to "off""#
    );
    let response = post(
        port(&rig, "HTTP").await,
        &[("content-type", PROTOBUF)],
        request(1, 1),
    )
    .await;
    assert_eq!(response.0, StatusCode::OK);
}

/// A request with one span, whose name has this many bytes.
fn request(trace: u128, bytes: usize) -> Vec<u8> {
    let span = Span {
        trace_id: trace.to_be_bytes().to_vec(),
        span_id: vec![1; 8],
        name: "x".repeat(bytes),
        ..Span::default()
    };
    let scope = ScopeSpans {
        spans: vec![span],
        ..ScopeSpans::default()
    };
    let resource = ResourceSpans {
        scope_spans: vec![scope],
        ..ResourceSpans::default()
    };
    let request = ExportTraceServiceRequest {
        resource_spans: vec![resource],
    };
    request.encode_to_vec()
}

fn zip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

async fn post(port: u16, headers: &[(&str, &str)], body: Vec<u8>) -> (StatusCode, String) {
    let request = Client::new().post(format!("http://127.0.0.1:{port}/v1/traces"));
    let request = headers.iter().fold(request.body(body), |request, (name, value)| {
        request.header(*name, *value)
    });
    let response = request.send().await.unwrap();
    (response.status(), response.text().await.unwrap())
}
