//! Cloud detection, with a metadata service that also hangs, refuses and returns wrong answers.

use std::net::Ipv6Addr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use dalston_telemetry::cloud::{Cloud, MetadataError, Platform};
use dalston_telemetry::opentelemetry::Context;
use dalston_telemetry::opentelemetry_sdk::Resource;
use dalston_telemetry::opentelemetry_sdk::error::OTelSdkResult;
use dalston_telemetry::opentelemetry_sdk::trace::{Span, SpanData, SpanProcessor};
use dalston_telemetry::{Env, LogFormat, LogWriter, Telemetry};
use serde_json::Value;
use testbed::{ImdsFault, TestImds};
use tokio::net::TcpListener;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::registry::Registry;

/// The budget of 2 s, and time for a busy machine.
const AT_MOST: Duration = Duration::from_secs(8);

const DOCUMENT: &str = "GET /latest/dynamic/instance-identity/document";
const TOKEN: &str = "PUT /latest/api/token";

fn env(imds: &TestImds, more: &[(&str, &str)]) -> Env {
    let url = imds.url();
    let endpoint = ("AWS_EC2_METADATA_SERVICE_ENDPOINT", url.as_str());
    Env::from_pairs(more.iter().copied().chain([endpoint]))
}

/// Blocks, like the start of a program. The service runs on other threads.
fn detect(imds: &TestImds, more: &[(&str, &str)]) -> Cloud {
    let start = Instant::now();
    let cloud = Cloud::detect(&env(imds, more)).unwrap();
    assert!(start.elapsed() < AT_MOST, "{:?}", start.elapsed());
    cloud
}

fn known(cloud: &Cloud) -> [Option<&str>; 4] {
    [
        cloud.instance_id(),
        cloud.instance_type(),
        cloud.region(),
        cloud.availability_zone(),
    ]
}

const ALL: [Option<&str>; 4] = [
    Some(TestImds::INSTANCE_ID),
    Some("g5.xlarge"),
    Some("eu-west-2"),
    Some("eu-west-2a"),
];
const NOTHING: [Option<&str>; 4] = [None; 4];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_instance_is_recognised_with_two_requests() {
    let imds = TestImds::start().await;
    let cloud = detect(&imds, &[]);
    assert_eq!((cloud.platform(), known(&cloud)), (Some(Platform::EC2), ALL));
    assert_eq!(imds.requests(), [TOKEN, DOCUMENT]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_endpoint_can_be_an_ipv6_address() {
    let imds = TestImds::start_on(Ipv6Addr::LOCALHOST.into()).await;
    assert!(imds.url().starts_with("http://[::1]:"));
    assert_eq!(known(&detect(&imds, &[])), ALL);
}

#[test]
fn detection_works_within_and_without_a_runtime() {
    let server = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    let imds = server.block_on(TestImds::start());
    assert_eq!(known(&detect(&imds, &[])), ALL);
    let single = tokio::runtime::Builder::new_current_thread().build().unwrap();
    single.block_on(async { assert_eq!(known(&detect(&imds, &[])), ALL) });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_faulty_service_ends_detection_in_time_without_error() {
    let elsewhere = TestImds::start().await;
    let faults = [
        ImdsFault::Hang,
        ImdsFault::Drip,
        ImdsFault::Status(400),
        ImdsFault::Status(401),
        ImdsFault::Status(403),
        ImdsFault::Status(404),
        ImdsFault::Status(500),
        ImdsFault::Page,
        ImdsFault::Redirect(format!("{}/latest/api/token", elsewhere.url())),
        ImdsFault::Slow(Duration::from_millis(1_500)),
        ImdsFault::Huge,
        ImdsFault::Garbage,
    ];
    let mut detections = Vec::new();
    for fault in faults {
        // For all requests, and for requests after the token.
        for path in ["", "dynamic", "meta-data"] {
            let fault = fault.clone();
            detections.push(tokio::spawn(async move {
                let imds = TestImds::start().await;
                if path == "meta-data" {
                    imds.remove("dynamic/instance-identity/document");
                }
                imds.fault(path, fault.clone());
                let env = env(&imds, &[]);
                let start = Instant::now();
                let cloud = tokio::task::spawn_blocking(move || Cloud::detect(&env)).await;
                let took = start.elapsed();
                (path, fault, cloud.unwrap().unwrap(), took, imds)
            }));
        }
    }
    for detection in detections {
        let (path, fault, cloud, took, imds) = detection.await.unwrap();
        let requests = imds.requests().len();
        let of = format!("{fault:?} at {path:?}: {cloud:?} after {took:?} and {requests} requests");
        assert!(took < AT_MOST, "{of}");
        assert!(requests <= 7, "{of}");
        // The buffers of sockets may be full, but nothing is read from them.
        assert!(imds.huge_bytes_sent() < 32 << 20, "{of}");
        // Single items replace a document that fails quickly.
        if path == "dynamic" && matches!(fault, ImdsFault::Status(404) | ImdsFault::Page) {
            assert_eq!(known(&cloud), ALL, "{of}");
        } else if path == "dynamic" && matches!(fault, ImdsFault::Slow(_)) {
            // Whether the items arrive in time depends on the load of the machine.
        } else {
            assert_eq!(
                (known(&cloud), cloud.metadata().is_some()),
                (NOTHING, false),
                "{of}"
            );
        }
    }
    assert_eq!(
        elsewhere.requests(),
        [] as [&str; 0],
        "a redirect is not followed"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn version_1_is_used_only_if_tokens_are_refused() {
    let imds = TestImds::start().await;
    imds.open();
    assert_eq!(known(&detect(&imds, &[])), ALL);
    assert_eq!(imds.requests(), [TOKEN, DOCUMENT]);
    let forbidden = detect(&imds, &[("AWS_EC2_METADATA_V1_DISABLED", "true")]);
    assert_eq!(known(&forbidden), NOTHING);
    assert_eq!(imds.requests().len(), 3, "{:?}", imds.requests());

    for (fault, speaks_v1) in [
        (ImdsFault::Status(403), true),
        (ImdsFault::Status(404), true),
        (ImdsFault::Status(405), true),
        (ImdsFault::Status(400), false),
        (ImdsFault::Status(500), false),
        (ImdsFault::Page, false),
        (ImdsFault::Hang, false),
    ] {
        let imds = TestImds::start().await;
        imds.open();
        imds.fault("api/token", fault.clone());
        let cloud = detect(&imds, &[]);
        assert_eq!(cloud.instance_id().is_some(), speaks_v1, "{fault:?}");
        assert_eq!(imds.requests().len(), 1 + usize::from(speaks_v1), "{fault:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn single_items_replace_a_missing_document() {
    for document in [
        None,
        Some("not JSON"),
        Some("{}"),
        Some(r#"{"instanceId": "i-<script>"}"#),
    ] {
        let imds = TestImds::start().await;
        match document {
            Some(text) => imds.put("dynamic/instance-identity/document", text),
            None => imds.remove("dynamic/instance-identity/document"),
        }
        assert_eq!(known(&detect(&imds, &[])), ALL, "{document:?}");
    }
    let imds = TestImds::start().await;
    imds.remove("dynamic/instance-identity/document");
    imds.remove("meta-data/placement/region");
    imds.put("meta-data/instance-type", "<html>");
    let partly = [ALL[0], None, None, ALL[3]];
    assert_eq!(known(&detect(&imds, &[])), partly, "a wrong value is left out");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_that_is_refused_is_renewed_once() {
    let imds = TestImds::start().await;
    let cloud = detect(&imds, &[]);
    let service = cloud.metadata().unwrap();
    assert_eq!(
        service.get("meta-data/ami-id").await.unwrap().as_deref(),
        Some("ami-0a1b2c3d4e5f60718")
    );
    assert_eq!(service.get("meta-data/spot/instance-action").await, Ok(None));
    assert_eq!(
        imds.requests().iter().filter(|request| *request == TOKEN).count(),
        1
    );

    imds.forget_tokens();
    let before = imds.requests().len();
    assert!(service.get("meta-data/ami-id").await.unwrap().is_some());
    let ami = "GET /latest/meta-data/ami-id";
    assert_eq!(imds.requests()[before..], [ami, TOKEN, ami]);

    imds.fault("meta-data", ImdsFault::Status(401));
    let before = imds.requests().len();
    assert_eq!(
        service.get("meta-data/ami-id").await,
        Err(MetadataError::Status(401))
    );
    assert_eq!(imds.requests()[before..], [ami, TOKEN, ami]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_request_where_forbidden_or_not_ec2() {
    let imds = TestImds::start().await;
    for variables in [
        &[("AWS_EC2_METADATA_DISABLED", "true")][..],
        &[("DALSTON_DEPLOY_ENV", "local")],
        &[("AWS_LAMBDA_FUNCTION_NAME", "transcribe")],
    ] {
        let cloud = detect(&imds, variables);
        assert_eq!(
            (known(&cloud), cloud.metadata().is_some()),
            (NOTHING, false),
            "{variables:?}"
        );
    }
    assert_eq!(imds.requests(), [] as [&str; 0]);
    assert_eq!(known(&detect(&imds, &[("DALSTON_DEPLOY_ENV", "aws")])), ALL);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fargate_is_recognised_and_has_no_instance() {
    let ecs = TestImds::start().await;
    let imds = TestImds::start().await;
    ecs.open();
    let task = r#"{"Cluster": "arn:aws:ecs:eu-west-2:123456789012:cluster/main", "Family": "engine", "Revision": "7",
        "TaskARN": "arn:aws:ecs:eu-west-2:123456789012:task/main/158d1c8083dd49d6b527399fd6414f5c",
        "AvailabilityZone": "eu-west-2b", "LaunchType": "LAUNCH"}"#;
    let endpoint = format!("{}/latest/v4/a1b2", ecs.url());
    let variables = [("ECS_CONTAINER_METADATA_URI_V4", endpoint.as_str())];

    ecs.put("v4/a1b2/task", task.replace("LAUNCH", "FARGATE"));
    let cloud = detect(&imds, &variables);
    assert_eq!(cloud.platform(), Some(Platform::ECS));
    assert_eq!(known(&cloud), [None, None, Some("eu-west-2"), Some("eu-west-2b")]);
    assert!(
        imds.requests().is_empty() && cloud.metadata().is_none(),
        "{:?}",
        imds.requests()
    );
    let attributes = resource_of(cloud, &[]);
    for (name, expected) in [
        ("cloud.platform", "aws_ecs"),
        ("aws.ecs.launchtype", "fargate"),
        ("aws.ecs.task.family", "engine"),
    ] {
        assert_eq!(attributes(name).as_deref(), Some(expected), "{name}");
    }
    // Attributes that name the customer.
    for name in ["cloud.account.id", "aws.ecs.cluster.arn", "aws.ecs.task.arn"] {
        assert_eq!(attributes(name), None, "{name}");
    }
    assert_eq!(attributes("host.type"), None);

    // An instance of the customer has a metadata service.
    ecs.put("v4/a1b2/task", task.replace("LAUNCH", "EC2"));
    let cloud = detect(&imds, &variables);
    assert_eq!((cloud.platform(), known(&cloud)), (Some(Platform::ECS), ALL));

    // Without an answer, the variable still tells the platform.
    ecs.fault("", ImdsFault::Hang);
    let cloud = detect(&imds, &variables);
    assert_eq!((cloud.platform(), known(&cloud)), (Some(Platform::ECS), NOTHING));
}

#[test]
fn lambda_is_recognised_without_a_request() {
    let env = Env::from_pairs([
        ("AWS_LAMBDA_FUNCTION_NAME", "transcribe"),
        ("AWS_LAMBDA_FUNCTION_VERSION", "7"),
        ("AWS_REGION", "eu-west-2"),
    ]);
    let cloud = Cloud::detect(&env).unwrap();
    assert_eq!(
        (cloud.platform(), cloud.region()),
        (Some(Platform::LAMBDA), Some("eu-west-2"))
    );
    let attributes = resource_of(cloud, &[]);
    let shown = ["cloud.provider", "cloud.platform", "faas.name", "faas.version"].map(attributes);
    let expected = ["aws", "aws_lambda", "transcribe", "7"].map(|text| Some(text.to_owned()));
    assert_eq!(shown, expected);
}

#[test]
fn the_error_names_the_wrong_variable() {
    let env = Env::from_pairs([("AWS_EC2_METADATA_SERVICE_ENDPOINT", "169.254.169.254")]);
    let error = Cloud::detect(&env).unwrap_err().to_string();
    assert!(
        error.starts_with("AWS_EC2_METADATA_SERVICE_ENDPOINT is not valid"),
        "{error}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_token_is_awaited() {
    let imds = TestImds::start().await;
    imds.fault("api/token", ImdsFault::Slow(Duration::from_millis(800)));
    assert_eq!(known(&detect(&imds, &[])), ALL);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_closed_port_ends_detection_without_error() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let env = Env::from_pairs([("AWS_EC2_METADATA_SERVICE_ENDPOINT", url)]);
    assert_eq!(Cloud::detect(&env).unwrap(), Cloud::unknown());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn spans_and_log_lines_have_the_same_instance_type() {
    let imds = TestImds::start().await;
    let cloud = detect(&imds, &[]);
    let attributes = resource_of(cloud.clone(), &[]);
    for (name, expected) in [
        ("cloud.provider", "aws"),
        ("cloud.platform", "aws_ec2"),
        ("cloud.region", "eu-west-2"),
        ("cloud.availability_zone", "eu-west-2a"),
        ("host.id", TestImds::INSTANCE_ID),
        ("host.type", "g5.xlarge"),
        ("host.image.id", "ami-0a1b2c3d4e5f60718"),
    ] {
        assert_eq!(attributes(name).as_deref(), Some(expected), "{name}");
    }
    assert_eq!(attributes("cloud.account.id"), None, "it names the customer");

    type Variables = &'static [(&'static str, &'static str)];
    let table: [(Cloud, Variables, &str, Option<&str>); 5] = [
        (cloud.clone(), &[], "g5.xlarge", Some("g5.xlarge")),
        (
            cloud.clone(),
            &[("INSTANCE_TYPE", "")],
            "g5.xlarge",
            Some("g5.xlarge"),
        ),
        (cloud.clone(), &[("INSTANCE_TYPE", "mine")], "mine", Some("mine")),
        (
            Cloud::unknown(),
            &[("INSTANCE_TYPE", "mine")],
            "mine",
            Some("mine"),
        ),
        (Cloud::unknown(), &[], "unknown", None),
    ];
    for (cloud, variables, in_lines, in_spans) in table {
        assert_eq!(
            line_of(cloud.clone(), variables)["instance_type"],
            in_lines,
            "{variables:?}"
        );
        assert_eq!(
            resource_of(cloud, variables)("host.type").as_deref(),
            in_spans,
            "{variables:?}"
        );
    }
}

fn line_of(cloud: Cloud, variables: &[(&str, &str)]) -> Value {
    let (writer, lines) = LogWriter::buffer();
    let (layer, telemetry) = Telemetry::builder("engine-test")
        .env(Env::from_pairs(variables.iter().copied()))
        .cloud(cloud)
        .log_format(LogFormat::Json)
        .log_writer(writer)
        .into_layer()
        .unwrap();
    let subscriber = tracing_subscriber::registry().with(layer);
    tracing::subscriber::with_default(subscriber, || tracing::info!("hello"));
    let line: Value = serde_json::from_str(&lines.text()).unwrap();
    let handle = telemetry.handle();
    assert_eq!(line["instance_type"], handle.instance_type().unwrap_or("unknown"));
    line
}

/// The resource attributes of exported spans.
fn resource_of(cloud: Cloud, variables: &[(&str, &str)]) -> impl Fn(&str) -> Option<String> + use<> {
    let seen = SeenResource::default();
    let (_layer, _telemetry) = Telemetry::builder("engine-test")
        .env(Env::from_pairs(variables.iter().copied()))
        .cloud(cloud)
        .without_logs()
        .span_processor(seen.clone())
        .into_layer::<Registry>()
        .unwrap();
    move |name| {
        let seen = seen.0.lock().unwrap();
        let value = seen.as_ref().unwrap().get(&name.to_owned().into())?;
        Some(value.to_string())
    }
}

#[derive(Debug, Clone, Default)]
struct SeenResource(Arc<Mutex<Option<Resource>>>);

impl SpanProcessor for SeenResource {
    fn on_start(&self, _: &mut Span, _: &Context) {}

    fn on_end(&self, _: SpanData) {}

    fn force_flush(&self) -> OTelSdkResult {
        Ok(())
    }

    fn shutdown_with_timeout(&self, _: Duration) -> OTelSdkResult {
        Ok(())
    }

    fn set_resource(&mut self, resource: &Resource) {
        *self.0.lock().unwrap() = Some(resource.clone());
    }
}
