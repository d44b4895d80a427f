use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::time::{Duration, Instant};

use tracing_subscriber::layer::SubscriberExt as _;

use super::*;
use crate::cloud::Cloud;
use crate::{LogWriter, Telemetry};

/// A service that accepts connections and does not answer, as a container sees it that is one hop
/// too far away.
fn silent_service() -> (TcpListener, AwsConfig) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let env = Env::from_pairs([("AWS_EC2_METADATA_SERVICE_ENDPOINT", url)]);
    let mut config = AwsConfig::read(&env).unwrap();
    config.imds.certain = false;
    (listener, config)
}

fn detected(config: AwsConfig, firmware: Firmware) -> Cloud {
    Cloud::of(vec![Box::new(Aws { config, firmware })])
}

fn was_asked(listener: &TcpListener) -> bool {
    listener.set_nonblocking(true).unwrap();
    listener.accept().is_ok()
}

fn log_of(cloud: &Cloud, level: &'static str) -> Vec<String> {
    let (writer, lines) = LogWriter::buffer();
    let (layer, _telemetry) = Telemetry::builder("engine-test")
        .env(Env::from_pairs([("LOG_LEVEL", level)]))
        .log_writer(writer)
        .into_layer()
        .unwrap();
    let subscriber = tracing_subscriber::registry().with(layer);
    tracing::subscriber::with_default(subscriber, || cloud.log());
    lines.lines()
}

#[test]
fn a_machine_of_another_vendor_makes_no_request() {
    let (listener, config) = silent_service();
    let cloud = detected(config, Firmware::of("LENOVO"));
    assert_eq!(cloud, Cloud::unknown());
    assert!(!was_asked(&listener));
    assert_eq!(log_of(&cloud, "info"), [] as [&str; 0]);
    assert!(log_of(&cloud, "debug")[0].contains("the machine belongs to no known cloud"));
}

#[test]
fn firmware_identifies_an_instance_without_metadata_service() {
    let (listener, config) = silent_service();
    let start = Instant::now();
    let cloud = detected(config, Firmware::of("Amazon EC2"));
    assert!(start.elapsed() < Duration::from_secs(8), "{:?}", start.elapsed());
    assert!(was_asked(&listener));
    assert_eq!(cloud.platform(), Some(Platform::EC2));
    assert_eq!(cloud.instance_id(), Some("i-0123456789abcdef0"));
    assert_eq!(cloud.instance_type(), Some("g5.xlarge"));
    assert_eq!(cloud.availability_zone(), None);
    assert!(cloud.metadata().is_none(), "it did not answer");
    let lines = log_of(&cloud, "info");
    assert_eq!(lines.len(), 1, "{lines:?}");
    for part in [
        r#""level":"warning""#,
        "HttpPutResponseHopLimit",
        "gave no answer within 2 s",
    ] {
        assert!(lines[0].contains(part), "{part}: {lines:?}");
    }
}

#[test]
fn unknown_firmware_makes_a_request_and_no_warning() {
    let (listener, config) = silent_service();
    let cloud = detected(config, Firmware::default());
    assert!(was_asked(&listener));
    assert_eq!(cloud, Cloud::unknown());
    assert_eq!(log_of(&cloud, "info"), [] as [&str; 0]);
}

#[test]
fn a_deployment_on_aws_asks_on_any_firmware() {
    let (listener, mut config) = silent_service();
    config.imds.certain = true;
    assert_eq!(detected(config, Firmware::of("LENOVO")), Cloud::unknown());
    assert!(was_asked(&listener));
}

/// Answers every request with this task.
fn ecs_service(launch_type: &'static str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        let (mut connection, _) = listener.accept().unwrap();
        let mut request = [0; 1024];
        let _ = connection.read(&mut request).unwrap();
        let task = format!(r#"{{"LaunchType": "{launch_type}", "Family": "engine"}}"#);
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", task.len());
        connection.write_all((head + &task).as_bytes()).unwrap();
    });
    url
}

fn in_ecs(ecs: &str) -> (TcpListener, AwsConfig) {
    let (listener, mut config) = silent_service();
    let env = Env::from_pairs([("ECS_CONTAINER_METADATA_URI_V4", ecs)]);
    config.ecs = AwsConfig::read(&env).unwrap().ecs;
    (listener, config)
}

#[test]
fn fargate_tasks_do_not_take_the_firmware_of_the_host() {
    let closed_port = "http://127.0.0.1:9".to_owned();
    for ecs in [ecs_service("FARGATE"), closed_port] {
        let (listener, config) = in_ecs(&ecs);
        let cloud = detected(config, Firmware::of("Amazon EC2"));
        assert_eq!(cloud.platform(), Some(Platform::ECS));
        assert_eq!(
            (cloud.instance_id(), cloud.instance_type()),
            (None, None),
            "{ecs}"
        );
        assert!(!was_asked(&listener), "{ecs}");
        assert_eq!(log_of(&cloud, "info"), [] as [&str; 0]);
    }
}

#[test]
fn ecs_tasks_on_instances_take_the_firmware_of_the_instance() {
    let (listener, config) = in_ecs(&ecs_service("EC2"));
    let cloud = detected(config, Firmware::of("Amazon EC2"));
    assert!(was_asked(&listener));
    assert_eq!(cloud.platform(), Some(Platform::ECS));
    assert_eq!(cloud.instance_id(), Some("i-0123456789abcdef0"));
    assert_eq!(cloud.instance_type(), Some("g5.xlarge"));
}
