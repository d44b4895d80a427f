//! Panics, in child processes: a hook and a global subscriber belong to a whole process.
//!
//! Each test starts itself again. The variable [`CHILD`] marks the child, which panics.

use std::panic;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use dalston_telemetry::context::LogContext;
use dalston_telemetry::{LogFormat, LogWriter, Telemetry};
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::Span;
use opentelemetry_proto::tonic::trace::v1::status::StatusCode;
use testbed::collector::{self, Collector, Protocol};
use tracing::{info_span, warn};

const CHILD: &str = "DALSTON_TEST_PANIC_CHILD";

#[test]
fn panic_is_logged_with_its_span_and_the_span_arrives() {
    if is_child() {
        let _telemetry = install();
        let _context = LogContext::new().task_id("t-1").enter();
        let _span = info_span!("work", dalston.job_id = "j-1").entered();
        panic!("no more: redis://:hunter2@cache/0");
    }
    let collector = Collector::start(Protocol::Http);
    let output = run_child(
        "panic_is_logged_with_its_span_and_the_span_arrives",
        &collector.env(),
    );
    assert!(!output.status.success());
    let stderr = String::from_utf8(output.stderr).unwrap();

    let spans = spans(&collector);
    let work = spans
        .iter()
        .find(|span| span.name == "work")
        .expect("the span should have arrived");
    let status = work.status.as_ref().unwrap();
    assert_eq!(status.code, i32::from(StatusCode::Error));
    assert_eq!(status.message, "panicked: no more: redis://***@cache/0");
    let [exception] = &work.events[..] else {
        panic!("one event, not {:?}", work.events)
    };
    assert_eq!(exception.name, "exception");
    let attribute = |key: &str| {
        let found = exception
            .attributes
            .iter()
            .find(|attribute| attribute.key == key)
            .unwrap();
        match found.value.as_ref().unwrap().value.as_ref().unwrap() {
            Value::StringValue(text) => text.clone(),
            other => panic!("{key} is {other:?}"),
        }
    };
    assert_eq!(attribute("exception.type"), "panic");
    assert_eq!(attribute("exception.message"), "no more: redis://***@cache/0");

    let line = line_of(&stderr, "panicked");
    assert_eq!(line["level"], "error");
    assert_eq!(line["exception"], "no more: redis://***@cache/0");
    assert_eq!(line["trace_id"], hex(&work.trace_id));
    assert_eq!(line["span_id"], hex(&work.span_id));
    assert_eq!(
        (&line["task_id"], &line["job_id"]),
        (&"t-1".into(), &"j-1".into())
    );
    assert!(line["location"].as_str().unwrap().contains("panic.rs:"));
    assert!(line["thread"].as_str().unwrap().contains("the_span_arrives"));
    assert!(stderr.contains("the previous hook"), "{stderr}");
}

#[test]
fn spans_arrive_if_previous_hook_ends_the_process() {
    if is_child() {
        panic::set_hook(Box::new(|_| std::process::exit(3)));
        // Without the hook, the process ends before the first export.
        let _telemetry = install();
        info_span!("finished").in_scope(|| {});
        panic!("no more");
    }
    let collector = Collector::start(Protocol::Grpc);
    let mut env = collector.env();
    env.push(("OTEL_BSP_SCHEDULE_DELAY".into(), "3600000".into()));
    let output = run_child("spans_arrive_if_previous_hook_ends_the_process", &env);
    assert_eq!(output.status.code(), Some(3));
    assert!(spans(&collector).iter().any(|span| span.name == "finished"));
}

#[test]
fn panics_on_other_threads_and_while_unwinding_are_harmless() {
    if is_child() {
        struct LogsWhenDropped;
        impl Drop for LogsWhenDropped {
            fn drop(&mut self) {
                warn!("dropped while unwinding");
            }
        }
        struct Broken;
        impl std::fmt::Debug for Broken {
            fn fmt(&self, _: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                panic!("in a value that was being logged");
            }
        }
        let telemetry = install();
        for _ in 0..2 {
            let thread = std::thread::Builder::new().name("inference-0".into());
            let thread = thread.spawn(|| {
                let _span = info_span!("inference").entered();
                let _logs = LogsWhenDropped;
                warn!(value = ?Broken, "never finished");
            });
            assert!(thread.unwrap().join().is_err());
        }
        warn!("still there");
        telemetry.shutdown_blocking().unwrap();
        return;
    }
    let collector = Collector::start(Protocol::Http);
    let output = run_child(
        "panics_on_other_threads_and_while_unwinding_are_harmless",
        &collector.env(),
    );
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{stderr}");
    assert_eq!(stderr.matches("dropped while unwinding").count(), 2, "{stderr}");
    assert_eq!(stderr.matches("the previous hook").count(), 2, "{stderr}");
    line_of(&stderr, "still there");
    let spans = spans(&collector);
    assert_eq!(spans.iter().filter(|span| span.name == "inference").count(), 2);
}

#[test]
fn absent_collector_delays_only_the_first_of_many_panics() {
    if is_child() {
        let telemetry = install();
        let start = Instant::now();
        for _ in 0..20 {
            info_span!("work").in_scope(|| panic::catch_unwind(|| panic!("again")).unwrap_err());
        }
        // 20 s if each panic waited.
        assert!(start.elapsed() < Duration::from_secs(10));
        drop(telemetry);
        return;
    }
    // Accepts connections and never answers.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mut env = collector::env(
        Protocol::Http,
        &format!("http://{}", silent.local_addr().unwrap()),
    );
    env.push(("OTEL_EXPORTER_OTLP_TIMEOUT".into(), "60000".into()));
    let output = run_child("absent_collector_delays_only_the_first_of_many_panics", &env);
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

fn is_child() -> bool {
    std::env::var_os(CHILD).is_some()
}

/// Telemetry from the environment of the child.
#[expect(clippy::print_stderr, reason = "hooks print")]
fn install() -> Telemetry {
    let previous = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        eprintln!("the previous hook");
        previous(info);
    }));
    Telemetry::builder("panics")
        .log_format(LogFormat::Json)
        .log_writer(LogWriter::stderr())
        .shutdown_timeout(Duration::from_secs(5))
        .install()
        .unwrap()
}

/// Runs a test of this file as a child.
fn run_child(test: &str, env: &[(String, String)]) -> Output {
    Command::new(std::env::current_exe().unwrap())
        .args([
            &format!("panic::{test}"),
            "--exact",
            "--nocapture",
            "--test-threads=1",
        ])
        .env_clear()
        .env(CHILD, "1")
        .envs(env.iter().map(|(name, value)| (name, value)))
        .output()
        .unwrap()
}

/// All spans of a child that has ended.
fn spans(collector: &Collector) -> Vec<Span> {
    let requests = std::iter::once(collector.next()).chain(collector.rest());
    let resources = requests.flat_map(|received| received.request.resource_spans);
    resources
        .flat_map(|resource| resource.scope_spans)
        .flat_map(|scope| scope.spans)
        .collect()
}

#[track_caller]
fn line_of(stderr: &str, event: &str) -> serde_json::Value {
    let lines = stderr
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    let found = lines.into_iter().find(|line| line["event"] == event);
    found.unwrap_or_else(|| panic!("no line says \"{event}\":\n{stderr}"))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
