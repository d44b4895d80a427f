//! Tests of a whole process: its threads, its sockets, its global subscriber, its output.
//!
//! Every scenario runs in a child: this program starts itself again with the name of the scenario.

#![allow(clippy::print_stdout, clippy::unwrap_used)]

use std::io::{self, Write};
use std::process::{Command, ExitCode, Output, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use dalston_telemetry::metrics::{Counter, DenseFamily, Exemplar, Histogram, Status, buckets};
use dalston_telemetry::services::engine::{Device, EngineLabels, EngineMetrics};
#[cfg(feature = "ec2")]
use dalston_telemetry::{Env, cloud::Cloud};
use dalston_telemetry::{
    InitError, LogWriter, ShutdownError, Telemetry, configure_metrics, configure_tracing,
};
use tracing::info_span;

type Variables = &'static [(&'static str, &'static str)];

struct Scenario {
    name: &'static str,
    variables: Variables,
    /// Whether the standard output of the child is read while it runs.
    is_read: bool,
    /// Runs in the child.
    inside: fn(),
    /// Checks the output of the child.
    outside: fn(&Output),
}

const NOTHING: fn(&Output) = |_| {};

const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "tracing_is_off_by_default_without_exporter_and_socket",
        variables: &[],
        is_read: true,
        inside: off_costs_nothing,
        outside: NOTHING,
    },
    Scenario {
        name: "disabled_sdk_has_no_exporter_thread_and_no_socket",
        variables: &[("OTEL_ENABLED", "true"), ("OTEL_SDK_DISABLED", "true")],
        is_read: true,
        inside: off_costs_nothing,
        outside: NOTHING,
    },
    Scenario {
        name: "tracing_takes_one_thread",
        variables: &[
            ("OTEL_ENABLED", "true"),
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9"),
        ],
        is_read: true,
        inside: on_takes_one_thread,
        outside: NOTHING,
    },
    Scenario {
        name: "pushing_metrics_takes_one_thread",
        variables: &[
            ("OTEL_METRICS_EXPORTER", "otlp"),
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9"),
        ],
        is_read: true,
        inside: pushing_takes_one_thread,
        outside: NOTHING,
    },
    Scenario {
        name: "metrics_allocate_nothing_in_a_span_and_without",
        variables: &[("OTEL_ENABLED", "true"), ("OTEL_TRACES_EXPORTER", "none")],
        is_read: true,
        inside: measuring_allocates_nothing,
        outside: NOTHING,
    },
    Scenario {
        name: "second_install_names_the_first",
        variables: &[],
        is_read: true,
        inside: second_install_names_the_first,
        outside: NOTHING,
    },
    Scenario {
        name: "foreign_subscriber_is_an_error_with_advice",
        variables: &[],
        is_read: true,
        inside: foreign_subscriber,
        outside: NOTHING,
    },
    Scenario {
        name: "install_works_after_an_error",
        variables: &[("OTEL_ENABLED", "perhaps")],
        is_read: true,
        inside: wrong_value,
        outside: NOTHING,
    },
    Scenario {
        name: "setup_and_shutdown_log_one_line",
        variables: &[("OTEL_ENABLED", "true"), ("OTEL_TRACES_EXPORTER", "none")],
        is_read: true,
        inside: || {
            configure_tracing("engine-test")
                .unwrap()
                .shutdown_blocking()
                .unwrap()
        },
        outside: only_the_line_about_signals,
    },
    #[cfg(feature = "ec2")]
    Scenario {
        name: "metadata_service_is_asked_without_proxies",
        variables: &[
            ("http_proxy", "http://127.0.0.1:9"),
            ("HTTP_PROXY", "http://127.0.0.1:9"),
            ("ALL_PROXY", "http://127.0.0.1:9"),
            ("NO_PROXY", ""),
        ],
        is_read: true,
        inside: metadata_without_a_proxy,
        outside: NOTHING,
    },
    #[cfg(feature = "ec2")]
    Scenario {
        name: "missing_metadata_service_is_not_logged",
        variables: &[("AWS_EC2_METADATA_SERVICE_ENDPOINT", "http://127.0.0.1:9")],
        is_read: true,
        inside: || {
            let cloud = Cloud::detect(&Env::from_process()).unwrap();
            let telemetry = Telemetry::builder("engine-test").cloud(cloud).install().unwrap();
            telemetry.shutdown_blocking().unwrap();
        },
        outside: only_the_line_about_signals,
    },
    Scenario {
        name: "environment_of_kubernetes_injector_stops_nothing",
        variables: &[
            ("OTEL_PROPAGATORS", "tracecontext,baggage,b3"),
            ("OTEL_METRICS_EXPORTER", "console"),
            ("OTEL_SDK_DISABLED", "1"),
            ("RUST_LOG", "info,[span]=debug"),
        ],
        is_read: true,
        inside: || drop(configure_tracing("engine-test").unwrap()),
        outside: |output| {
            let lines = String::from_utf8_lossy(&output.stdout);
            // A disabled SDK does not read the exporter of metrics.
            assert_eq!(lines.matches("setting_not_supported").count(), 3, "{lines}");
            assert_eq!(lines.matches("telemetry_configured").count(), 1, "{lines}");
        },
    },
    Scenario {
        name: "the_console_exporter_prints_a_json_object_per_span",
        variables: &[("OTEL_ENABLED", "true"), ("OTEL_TRACES_EXPORTER", "console")],
        is_read: true,
        inside: console,
        outside: console_output,
    },
    Scenario {
        name: "console_exporter_leaves_a_result_on_stdout_alone",
        variables: &[("OTEL_ENABLED", "true"), ("OTEL_TRACES_EXPORTER", "console")],
        is_read: true,
        inside: || {
            let telemetry = Telemetry::builder("transcribe").log_writer(LogWriter::stderr());
            let telemetry = telemetry.install().unwrap();
            info_span!("work").in_scope(|| println!("the result"));
            telemetry.shutdown_blocking().unwrap();
        },
        outside: |output| {
            assert_eq!(String::from_utf8_lossy(&output.stdout), "the result\n");
            let errors = String::from_utf8_lossy(&output.stderr);
            assert!(errors.contains(r#""name":"work""#), "{errors}");
        },
    },
    Scenario {
        name: "records_of_the_log_crate_become_lines_by_the_filter",
        variables: &[("RUST_LOG", "warn,loud=debug")],
        is_read: true,
        inside: || {
            let telemetry = configure_tracing("engine-test").unwrap();
            log::debug!(target: "loud::part", "shown");
            log::info!(target: "quiet", "hidden");
            log::warn!(target: "quiet", "shown too");
            telemetry.shutdown_blocking().unwrap();
        },
        outside: |output| {
            let lines = String::from_utf8_lossy(&output.stdout);
            let events: Vec<_> = lines.lines().map(|line| member(line, "event")).collect();
            assert_eq!(events, ["shown", "shown too"], "{lines}");
            let first = lines.lines().next().unwrap();
            assert_eq!(
                (member(first, "level"), member(first, "target")),
                ("debug".into(), "loud::part".into())
            );
        },
    },
    Scenario {
        name: "output_that_is_not_read_blocks_no_caller",
        variables: &[],
        is_read: false,
        inside: output_is_full,
        outside: beginning_is_whole,
    },
    Scenario {
        name: "held_lock_of_standard_output_stops_no_line",
        variables: &[],
        is_read: true,
        inside: lock_is_held,
        outside: |output| assert_eq!(numbers(output).len(), 20),
    },
    Scenario {
        name: "lines_are_written_in_order_when_the_guard_drops",
        variables: &[],
        is_read: true,
        inside: || {
            let writer = LogWriter::new(Slow);
            let telemetry = Telemetry::builder("engine-test").log_writer(writer).install();
            log_numbers(0..200);
            drop(telemetry.unwrap());
        },
        outside: |output| assert!(numbers(output) == (0..200).collect::<Vec<_>>()),
    },
    Scenario {
        name: "lines_are_written_before_a_panic_ends_the_process",
        variables: &[],
        is_read: true,
        inside: || {
            std::panic::set_hook(Box::new(|_| std::process::exit(0)));
            let _telemetry = configure_tracing("engine-test").unwrap();
            log_numbers(0..5_000);
            panic!("no more");
        },
        outside: |output| {
            assert!(numbers(output) == (0..5_000).collect::<Vec<_>>());
            let text = String::from_utf8_lossy(&output.stdout);
            assert!(text.lines().last().unwrap().contains("panicked"), "{text}");
        },
    },
];

/// A member of a JSON line.
fn member(line: &str, name: &str) -> String {
    let line: serde_json::Value = serde_json::from_str(line).unwrap();
    line[name].as_str().unwrap_or_default().to_owned()
}

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    if let [flag, name] = &arguments[..]
        && flag == "--inside"
    {
        let scenario = SCENARIOS.iter().find(|scenario| scenario.name == name).unwrap();
        (scenario.inside)();
        return ExitCode::SUCCESS;
    }
    let filters: Vec<_> = arguments
        .iter()
        .filter(|argument| !argument.starts_with('-'))
        .collect();
    let wanted =
        |name: &str| filters.is_empty() || filters.iter().any(|filter| name.contains(filter.as_str()));
    let mut failed = false;
    for scenario in SCENARIOS.iter().filter(|scenario| wanted(scenario.name)) {
        let output = run(scenario);
        let outside = std::panic::catch_unwind(|| (scenario.outside)(&output));
        let passed = output.status.success() && outside.is_ok();
        failed |= !passed;
        println!(
            "test {} ... {}",
            scenario.name,
            if passed { "ok" } else { "FAILED" }
        );
        if !passed {
            println!(
                "{}{}",
                String::from_utf8_lossy(&output.stdout),
                String::from_utf8_lossy(&output.stderr)
            );
        }
    }
    if failed {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    }
}

fn run(scenario: &Scenario) -> Output {
    let mut command = Command::new(std::env::current_exe().unwrap());
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("OTEL_") {
            command.env_remove(name);
        }
    }
    command
        .args(["--inside", scenario.name])
        .envs(scenario.variables.iter().copied());
    if scenario.is_read {
        return command.output().unwrap();
    }
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let begun = Instant::now();
    while child.try_wait().unwrap().is_none() {
        if begun.elapsed() > PATIENCE {
            child.kill().unwrap();
        }
        thread::sleep(Duration::from_millis(5));
    }
    child.wait_with_output().unwrap()
}

/// How long a test waits on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

fn off_costs_nothing() {
    let before = (threads(), sockets());
    let telemetry = configure_tracing("engine-test").unwrap();
    let span = info_span!("work");
    assert!(span.is_disabled(), "no layer wants spans");
    span.in_scope(|| tracing::info!("log lines do not need spans"));
    telemetry.flush(std::time::Duration::from_secs(5)).unwrap();
    assert_eq!((threads(), sockets()), (before.0 + LOG_THREAD, before.1));
    telemetry.shutdown_blocking().unwrap();
}

fn on_takes_one_thread() {
    let before = (threads(), sockets());
    let telemetry = configure_tracing("engine-test").unwrap();
    assert!(!info_span!("work").is_disabled());
    // The checks of the scenarios without an exporter would fail with one.
    assert_eq!(threads(), before.0 + LOG_THREAD + 1);
    drop(telemetry);
}

#[cfg(feature = "ec2")]
fn metadata_without_a_proxy() {
    let server = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    let imds = server.block_on(testbed::TestImds::start());
    let endpoint = ("AWS_EC2_METADATA_SERVICE_ENDPOINT", imds.url());
    let cloud = Cloud::detect(&Env::from_pairs([endpoint])).unwrap();
    assert_eq!(cloud.instance_id(), Some(testbed::TestImds::INSTANCE_ID));
}

fn pushing_takes_one_thread() {
    let before = (threads(), sockets());
    let telemetry = configure_metrics("engine-test").unwrap();
    assert!(!telemetry.handle().traces_enabled());
    assert_eq!(threads(), before.0 + 1);
    drop(telemetry);
}

fn measuring_allocates_nothing() {
    let telemetry = configure_tracing("engine-test").unwrap();
    let engine = EngineMetrics::register(telemetry.metrics(), &EngineLabels::new("asr", "transcribe"));
    let model = engine.model("tiny");
    let closed = DenseFamily::<(Status, Device), Counter>::default();
    let plain = Histogram::new(buckets::QUEUE_WAIT);
    let measure = || {
        let second = Duration::from_secs(1);
        engine.queue_wait(second);
        engine.audio_duration(second);
        model.task_duration(second);
        model.task_processed(Status::Success);
        model.realtime_factor(Device::Cpu, second, second);
        closed
            .with((Status::Failure, Device::Cuda))
            .inc_in(Exemplar::current());
        plain.observe(0.5);
    };
    // A thread allocates when it first asks for its context.
    measure();
    assert_eq!(allocation_counter::measure(measure).count_total, 0);
    let span = info_span!("task").entered();
    assert!(Exemplar::current().is_some());
    assert_eq!(allocation_counter::measure(measure).count_total, 0);
    drop(span);
    assert_ne!(
        allocation_counter::measure(|| drop(vec![0_u8; 10])).count_total,
        0
    );
}

fn second_install_names_the_first() {
    let (line, telemetry) = (line!(), configure_tracing("engine-test").unwrap());
    let error = Telemetry::builder("engine-test").install().unwrap_err();
    let InitError::AlreadyInstalled { first } = error else {
        panic!("{error}")
    };
    assert_eq!((first.file(), first.line()), (file!(), line));
    let expected = format!("telemetry is already installed, by {}:{line}:", file!());
    assert!(error.to_string().starts_with(&expected), "{error}");
    // Also after the first one has ended: its subscriber stays.
    drop(telemetry);
    assert!(configure_tracing("engine-test").is_err());
}

fn foreign_subscriber() {
    tracing::subscriber::set_global_default(tracing_subscriber::registry()).unwrap();
    let error = configure_tracing("engine-test").unwrap_err();
    assert!(matches!(error, InitError::ForeignSubscriber), "{error}");
    assert!(error.to_string().contains("into_layer()"), "{error}");
}

fn wrong_value() {
    let error = configure_tracing("engine-test").unwrap_err();
    assert_eq!(
        error.to_string(),
        r#"OTEL_ENABLED is "perhaps": expected true or false"#
    );
    let env = dalston_telemetry::Env::default();
    Telemetry::builder("engine-test")
        .env(env)
        .install()
        .unwrap()
        .shutdown_blocking()
        .unwrap();
}

fn only_the_line_about_signals(output: &Output) {
    let lines = String::from_utf8_lossy(&output.stdout);
    assert_eq!(lines.lines().count(), 1, "{lines}");
    assert!(lines.contains("\"telemetry_configured\""), "{lines}");
    assert_eq!(output.stderr, b"");
}

fn console() {
    let telemetry = Telemetry::builder("engine-test")
        .without_logs()
        .install()
        .unwrap();
    info_span!("outer", answer = 42).in_scope(|| info_span!("inner").in_scope(|| {}));
    telemetry.shutdown_blocking().unwrap();
}

fn console_output(output: &Output) {
    let spans: Vec<serde_json::Value> = String::from_utf8_lossy(&output.stdout)
        .lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{line}: {error}")))
        .collect();
    let [inner, outer] = &spans[..] else {
        panic!("{spans:?}")
    };
    assert_eq!(
        (&inner["name"], &outer["name"]),
        (&"inner".into(), &"outer".into())
    );
    assert_eq!(inner["parent_span_id"], outer["span_id"]);
    assert_eq!(inner["trace_id"], outer["trace_id"]);
    assert_eq!(outer["attributes"]["answer"], 42);
}

/// Far more than a pipe and the queue take.
const TOO_MANY: usize = 30_000;

fn output_is_full() {
    let telemetry = Telemetry::builder("engine-test")
        .shutdown_timeout(Duration::from_millis(100))
        .install()
        .unwrap();
    log_numbers(0..TOO_MANY);
    let series = telemetry.metrics().encode();
    let count = |name: &str| {
        let value = series.lines().find_map(|line| line.strip_prefix(name));
        value.unwrap().trim().parse::<usize>().unwrap()
    };
    let dropped = count("dalston_log_lines_dropped_total");
    let written = count("dalston_log_messages_total{level=\"info\"}");
    let begun = Instant::now();
    for _ in 0..20 {
        std::panic::catch_unwind(|| panic!("again")).unwrap_err();
    }
    // 20 s if each panic waited.
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    let ShutdownError::LogLines { pending } = telemetry.shutdown_blocking().unwrap_err() else {
        panic!("lines should wait")
    };
    // The thread counts the lines of a batch while it is writing them.
    let waiting = TOO_MANY - dropped - written;
    assert!(pending <= 8192 && waiting <= 8192, "{pending} {waiting}");
    assert!(dropped > TOO_MANY / 2, "{dropped}");
}

fn beginning_is_whole(output: &Output) {
    let text = String::from_utf8_lossy(&output.stdout);
    // The end of the process cut the last line.
    let whole = &text[..=text.rfind('\n').unwrap()];
    let found = numbers_in(whole);
    assert!(found.len() > 100 && found == (0..found.len()).collect::<Vec<_>>());
}

fn lock_is_held() {
    let telemetry = configure_tracing("engine-test").unwrap();
    // As a progress bar does.
    let lock = io::stdout().lock();
    let (done, is_done) = mpsc::channel();
    thread::spawn(move || {
        log_numbers(0..20);
        done.send(()).unwrap();
    });
    is_done.recv_timeout(PATIENCE).unwrap();
    telemetry.shutdown_blocking().unwrap();
    drop(lock);
}

/// Standard output that takes a line in a millisecond, so that lines wait.
struct Slow;

impl Write for Slow {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        thread::sleep(Duration::from_millis(1));
        io::stdout().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn log_numbers(numbers: std::ops::Range<usize>) {
    for number in numbers {
        tracing::info!(number, "numbered");
    }
}

fn numbers(output: &Output) -> Vec<usize> {
    numbers_in(&String::from_utf8_lossy(&output.stdout))
}

fn numbers_in(text: &str) -> Vec<usize> {
    let lines = text.lines().map(|line| {
        serde_json::from_str::<serde_json::Value>(line).unwrap_or_else(|error| panic!("{line}: {error}"))
    });
    lines
        .filter_map(|line| usize::try_from(line["number"].as_u64()?).ok())
        .collect()
}

/// The thread that writes log lines.
const LOG_THREAD: usize = 1;

fn threads() -> usize {
    std::fs::read_dir("/proc/self/task").unwrap().count()
}

fn sockets() -> usize {
    let files = std::fs::read_dir("/proc/self/fd").unwrap();
    let is_socket = |entry: &std::fs::DirEntry| {
        std::fs::read_link(entry.path()).is_ok_and(|target| target.to_string_lossy().starts_with("socket:"))
    };
    files.filter_map(Result::ok).filter(is_socket).count()
}
