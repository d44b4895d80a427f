//! Collectors that are away, slow, broken or busy: work continues and the process ends in time.

use std::io::Write;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use dalston_telemetry::metrics::DropReason;
use dalston_telemetry::opentelemetry::Context;
use dalston_telemetry::{ExportStats, ShutdownError};
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{Span, SpanData, SpanProcessor};
use testbed::collector::{Answer, Collector, Connection, Protocol, env, nowhere};
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt;

use crate::service::{Caller, Service};

/// Every transport from every kind of thread.
const EVERYWHERE: [(Protocol, Caller); 6] = {
    use Caller::*;
    use Protocol::*;
    [
        (Grpc, MultiThread),
        (Grpc, CurrentThread),
        (Grpc, NoRuntime),
        (Http, MultiThread),
        (Http, CurrentThread),
        (Http, NoRuntime),
    ]
};

/// The shutdown timeout of tests. All other limits are longer: 10 s for requests, 30 s for batches.
const BOUND: Duration = Duration::from_millis(400);

/// The tolerance of a bound on a busy machine.
const MUCH_LATER: Duration = Duration::from_secs(5);

/// Runs a test over every transport and from every kind of thread, all at once because they mostly
/// wait.
fn everywhere(test: impl Fn(Protocol, Caller) + Sync) {
    std::thread::scope(|scope| {
        for (protocol, caller) in EVERYWHERE {
            let test = &test;
            scope.spawn(move || test(protocol, caller));
        }
    });
}

type Ended = (Result<(), ShutdownError>, ExportStats);

/// Ends three spans and the service. The test fails if that takes long.
#[track_caller]
fn end_with_three_spans(caller: Caller, env: Vec<(String, String)>, bound: Duration) -> Ended {
    let started = Instant::now();
    let ended = caller.live(env, bound, |service| service.spans(3));
    assert!(
        started.elapsed() < bound + MUCH_LATER,
        "{caller:?} took {:?}",
        started.elapsed()
    );
    ended
}

#[test]
fn absent_collector_delays_neither_start_nor_work_nor_end() {
    everywhere(|protocol, caller| {
        let env = env(protocol, &format!("http://{}", nowhere()));
        let (result, stats) = end_with_three_spans(caller, env, BOUND);
        assert!(result.is_err(), "{protocol:?} {caller:?}");
        assert_eq!(
            (stats.exported(), stats.dropped_total(), stats.waiting()),
            (0, 3, 0),
            "{protocol:?} {caller:?}"
        );
        assert!(stats.failures() > 0);
    });
}

#[test]
fn shutdown_gives_up_early_on_absent_collector() {
    for protocol in [Protocol::Grpc, Protocol::Http] {
        let env = env(protocol, &format!("http://{}", nowhere()));
        let started = Instant::now();
        let (result, _) = Caller::NoRuntime.live(env, Duration::from_secs(60), |service| service.spans(3));
        assert!(
            matches!(result, Err(ShutdownError::Lost { lost: 3, .. })),
            "{result:?}"
        );
        assert!(
            started.elapsed() < Duration::from_secs(20),
            "{:?}",
            started.elapsed()
        );
    }
}

#[test]
fn shutdown_leaves_hanging_collector_in_time() {
    everywhere(|protocol, caller| {
        // Hangs after it has taken the request, and before it has read anything.
        let hangs = [
            Collector::answering(protocol, [Answer::Hang]),
            Collector::connecting(protocol, [Connection::Hang, Connection::Hang, Connection::Hang]),
        ];
        for collector in hangs {
            let (result, stats) = end_with_three_spans(caller, collector.env(), BOUND);
            assert!(
                matches!(result, Err(ShutdownError::Lost { .. })),
                "{protocol:?} {caller:?} {result:?}"
            );
            assert_eq!(
                (stats.exported(), stats.dropped_total()),
                (0, 3),
                "{protocol:?} {caller:?}"
            );
            assert_eq!(stats.dropped(DropReason::Shutdown), 3, "{protocol:?} {caller:?}");
        }
    });
}

#[test]
fn a_request_that_takes_too_long_is_given_up_and_sent_again() {
    for protocol in [Protocol::Grpc, Protocol::Http] {
        let collector = Collector::answering(protocol, [Answer::Hang]);
        let mut env = collector.env();
        env.push(("OTEL_EXPORTER_OTLP_TIMEOUT".into(), "1500".into()));
        let service = Service::start(env);
        service.spans(1);
        assert_eq!(service.telemetry.flush(Duration::from_secs(30)), Ok(()));
        assert_eq!((service.stats().exported(), service.stats().failures()), (1, 1));
        assert_eq!(collector.rest().len(), 2);
    }
}

#[test]
fn a_refusal_is_final_and_counted() {
    everywhere(|protocol, caller| {
        let collector = Collector::answering(protocol, [Answer::Refuse]);
        let (result, stats) = end_with_three_spans(caller, collector.env(), Duration::from_secs(20));
        assert!(
            matches!(result, Err(ShutdownError::Lost { lost: 3, .. })),
            "{protocol:?} {caller:?} {result:?}"
        );
        assert_eq!(stats.dropped(DropReason::ExportFailed), 3);
        assert_eq!(
            (stats.failures(), collector.rest().len()),
            (1, 1),
            "{protocol:?} {caller:?}"
        );
    });
}

#[test]
fn busy_collector_is_asked_again_after_its_pause() {
    let second = Duration::from_secs(1);
    everywhere(|protocol, caller| {
        for busy in [Answer::TooMany(second), Answer::Unavailable(Some(second))] {
            let collector = Collector::answering(protocol, [busy.clone()]);
            let (result, stats) = end_with_three_spans(caller, collector.env(), Duration::from_secs(20));
            assert_eq!(result, Ok(()), "{protocol:?} {caller:?} {busy:?}");
            assert_eq!(
                (stats.exported(), stats.dropped_total(), stats.failures()),
                (3, 0, 1)
            );
            let (first, again) = (collector.next(), collector.next());
            assert!(
                again.at - first.at >= second,
                "{protocol:?} {caller:?} {:?}",
                again.at - first.at
            );
            assert_eq!(first.span_names(), again.span_names());
        }
    });
}

#[test]
fn shutdown_does_not_wait_for_a_long_pause_of_collector() {
    everywhere(|protocol, caller| {
        let answer = Answer::Unavailable(Some(Duration::from_secs(3600)));
        let collector = Collector::answering(protocol, [answer]);
        let started = Instant::now();
        let (result, stats) = caller.live(collector.env(), Duration::from_secs(60), |service| {
            service.spans(3)
        });
        assert!(
            matches!(result, Err(ShutdownError::Lost { lost: 3, .. })),
            "{protocol:?} {caller:?} {result:?}"
        );
        assert!(
            started.elapsed() < Duration::from_secs(20),
            "{:?}",
            started.elapsed()
        );
        assert_eq!(stats.dropped_total(), 3);
        assert_eq!(collector.rest().len(), 1);
    });
}

#[test]
fn an_unavailable_collector_without_a_hint_is_asked_again() {
    for protocol in [Protocol::Grpc, Protocol::Http] {
        let collector =
            Collector::answering(protocol, [Answer::Unavailable(None), Answer::Unavailable(None)]);
        let service = Service::start(collector.env());
        service.spans(1);
        assert_eq!(service.telemetry.flush(Duration::from_secs(30)), Ok(()));
        assert_eq!((service.stats().exported(), service.stats().failures()), (1, 2));
        assert_eq!(collector.answers_left(), 0);
    }
}

#[test]
fn a_connection_that_breaks_in_a_request_is_made_again() {
    everywhere(|protocol, caller| {
        let collector = Collector::connecting(protocol, [Connection::Cut]);
        let (result, stats) = end_with_three_spans(caller, collector.env(), Duration::from_secs(20));
        assert_eq!(result, Ok(()), "{protocol:?} {caller:?}");
        assert_eq!(
            (stats.exported(), stats.dropped_total()),
            (3, 0),
            "{protocol:?} {caller:?}"
        );
        assert!(stats.failures() >= 1);
    });
}

#[test]
fn a_partial_success_is_counted_and_not_sent_again() {
    everywhere(|protocol, caller| {
        let collector = Collector::answering(protocol, [Answer::Partial(2, "quota is used up")]);
        // All spans in one request, also on a busy machine.
        let mut env = collector.env();
        env.push(("OTEL_BSP_SCHEDULE_DELAY".into(), "3600000".into()));
        let (result, stats) = end_with_three_spans(caller, env, Duration::from_secs(20));
        let Err(ShutdownError::Lost {
            items: "spans",
            lost: 2,
            last_failure,
        }) = result
        else {
            panic!("{protocol:?} {result:?}")
        };
        assert!(last_failure.contains("quota is used up"), "{last_failure}");
        assert_eq!(
            (stats.exported(), stats.dropped(DropReason::Rejected)),
            (1, 2),
            "{protocol:?} {caller:?}"
        );
        assert_eq!(collector.rest().len(), 1, "{protocol:?} {caller:?}");
    });
}

#[test]
fn hanging_collector_neither_delays_work_nor_fills_memory() {
    for protocol in [Protocol::Grpc, Protocol::Http] {
        let collector = Collector::answering(protocol, [Answer::Hang]);
        let mut env = collector.env();
        env.push(("OTEL_BSP_MAX_QUEUE_SIZE".into(), "100".into()));
        env.push(("OTEL_BSP_MAX_EXPORT_BATCH_SIZE".into(), "50".into()));
        let service = Service::with(env, |builder| builder.shutdown_timeout(BOUND));
        // The exporter is stuck from now on. A wait for it below would hang the test.
        service.spans(50);
        let _ = collector.next();
        service.spans(20_000);
        let stats = service.stats();
        assert_eq!(
            stats.dropped(DropReason::QueueFull) + stats.waiting() as u64,
            20_050
        );
        assert!(
            stats.waiting() <= 150,
            "a queue of 100 and a batch of 50, not {}",
            stats.waiting()
        );
        // The metrics have the same figures.
        let series = format!(
            "dalston_telemetry_spans_dropped_total{{reason=\"queue_full\"}} {}",
            stats.dropped(DropReason::QueueFull)
        );
        let metrics = service.telemetry.metrics().encode();
        assert!(
            metrics.lines().any(|line| line == series),
            "{series} is not in\n{metrics}"
        );
    }
}

#[test]
fn memory_is_bounded_while_a_retry_is_pending() {
    let collector = Collector::answering(Protocol::Http, [Answer::TooMany(Duration::from_secs(3600))]);
    let mut env = collector.env();
    env.push(("OTEL_BSP_MAX_QUEUE_SIZE".into(), "10".into()));
    let service = Service::with(env, |builder| builder.shutdown_timeout(BOUND));
    service.spans(1);
    let _ = collector.next();
    service.spans(1000);
    let stats = service.stats();
    assert!(stats.waiting() <= 20, "{}", stats.waiting());
    assert_eq!(stats.dropped_total() + stats.waiting() as u64, 1001);
}

#[test]
fn flush_that_times_out_loses_nothing() {
    for protocol in [Protocol::Grpc, Protocol::Http] {
        let collector = Collector::answering(protocol, [Answer::Unavailable(Some(Duration::from_secs(1)))]);
        let service = Service::start(collector.env());
        service.spans(3);
        let flushed = service.telemetry.flush(Duration::from_millis(100));
        assert_eq!(
            flushed,
            Err(ShutdownError::Timeout {
                items: "spans",
                pending: 3
            })
        );
        assert_eq!(service.telemetry.flush(Duration::from_secs(30)), Ok(()));
        assert_eq!(service.stats().exported(), 3);
    }
}

#[test]
fn flushing_on_the_only_thread_of_a_runtime_does_not_deadlock() {
    for protocol in [Protocol::Grpc, Protocol::Http] {
        let collector = Collector::start(protocol);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let service = Service::start(collector.env());
            service.spans(3);
            assert_eq!(service.telemetry.flush(Duration::from_secs(30)), Ok(()));
            // Dropping the service blocks too.
            service.spans(2);
        });
        let names: Vec<_> = collector
            .rest()
            .iter()
            .flat_map(|request| request.span_names())
            .collect();
        assert_eq!(names.len(), 5);
    }
}

#[test]
fn dropping_telemetry_sends_what_is_waiting() {
    let collector = Collector::start(Protocol::Grpc);
    let mut env = collector.env();
    env.push(("OTEL_BSP_SCHEDULE_DELAY".into(), "3600000".into()));
    let service = Service::start(env);
    service.spans(3);
    drop(service);
    assert_eq!(collector.next().span_names().len(), 3);
}

#[test]
fn spans_that_end_after_shutdown_are_counted() {
    let collector = Collector::start(Protocol::Grpc);
    let service = Service::start(collector.env());
    let handle = service.telemetry.handle();
    let late = service.in_scope(|| tracing::info_span!("late"));
    let Service { telemetry, dispatch } = service;
    assert_eq!(telemetry.shutdown_blocking(), Ok(()));
    tracing::dispatcher::with_default(&dispatch, || {
        drop(late);
        tracing::info_span!("after shutdown").in_scope(|| {});
    });
    let stats = handle.export_stats();
    assert_eq!((stats.exported(), stats.dropped(DropReason::Shutdown)), (0, 2));
    assert!(collector.rest().is_empty());
}

/// The log of the service.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Log {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

#[test]
fn export_failures_are_logged_once_a_minute_without_secrets() {
    let collector = Collector::answering(
        Protocol::Http,
        [
            Answer::Partial(1, "no more for key hunter2hunter2"),
            Answer::Refuse,
            Answer::Refuse,
        ],
    );
    let mut env = collector.env();
    env.push((
        "OTEL_EXPORTER_OTLP_HEADERS".into(),
        "authorization=Bearer%20hunter2hunter2".into(),
    ));
    let builder = dalston_telemetry::Telemetry::builder("engine-test").without_logs();
    let (layer, telemetry) = builder
        .env(dalston_telemetry::Env::from_pairs(env))
        .into_layer()
        .unwrap();
    let log = Log::default();
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(log.clone())
        .with_ansi(false);
    let service = Service {
        telemetry,
        dispatch: tracing::Dispatch::new(tracing_subscriber::registry().with(layer).with(lines)),
    };
    for _ in 0..3 {
        service.spans(1);
        assert!(service.telemetry.flush(Duration::from_secs(30)).is_err());
    }
    assert_eq!(service.stats().failures(), 3);

    let log = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    let reports: Vec<_> = log
        .lines()
        .filter(|line| line.contains("dalston_telemetry::export"))
        .collect();
    assert_eq!(reports.len(), 1, "{log}");
    assert!(
        reports[0].contains("WARN") && reports[0].contains("rejected 1 of 1 spans"),
        "{log}"
    );
    assert!(reports[0].contains(&collector.address.to_string()), "{log}");
    assert!(!log.contains("hunter2"), "{log}");
    // The log events of the exporter are not exported.
    assert!(
        collector
            .rest()
            .iter()
            .all(|request| request.span_names() == ["work"])
    );
}

#[test]
fn long_message_of_partial_success_is_read() {
    for protocol in [Protocol::Grpc, Protocol::Http] {
        let message = "x".repeat(200 * 1024).leak();
        let collector = Collector::answering(protocol, [Answer::Partial(2, message)]);
        let (result, stats) =
            end_with_three_spans(Caller::NoRuntime, collector.env(), Duration::from_secs(20));
        assert!(
            matches!(result, Err(ShutdownError::Lost { lost: 2, .. })),
            "{protocol:?} {result:?}"
        );
        assert_eq!(
            (stats.exported(), stats.dropped(DropReason::Rejected)),
            (1, 2),
            "{protocol:?}"
        );
        assert_eq!(collector.rest().len(), 1, "{protocol:?}");
    }
}

#[test]
fn accepted_request_with_endless_answer_is_not_sent_again() {
    let collector = Collector::answering(Protocol::Http, [Answer::Endless]);
    let mut env = collector.env();
    env.push(("OTEL_EXPORTER_OTLP_TIMEOUT".into(), "2000".into()));
    let service = Service::start(env);
    service.spans(1);
    assert_eq!(service.telemetry.flush(Duration::from_secs(30)), Ok(()));
    assert_eq!((service.stats().exported(), service.stats().failures()), (1, 0));
    assert_eq!(collector.rest().len(), 1);
}

#[test]
fn longest_timeouts_are_accepted() {
    for protocol in [Protocol::Grpc, Protocol::Http] {
        let collector = Collector::start(protocol);
        for timeout in [Duration::MAX, Duration::ZERO] {
            let service = Service::with(collector.env(), |builder| {
                builder
                    .otlp(dalston_telemetry::OtlpConfig::new().timeout(timeout))
                    .shutdown_timeout(Duration::MAX)
            });
            service.spans(1);
            assert_eq!(service.telemetry.flush(Duration::MAX), Ok(()));
            assert_eq!(service.telemetry.shutdown_blocking(), Ok(()));
            assert_eq!(collector.rest().len(), 1, "{protocol:?} {timeout:?}");
        }
    }
}

/// A processor of the program whose shutdown takes the whole timeout.
#[derive(Debug)]
struct Slow;

impl SpanProcessor for Slow {
    fn on_start(&self, _: &mut Span, _: &Context) {}

    fn on_end(&self, _: SpanData) {}

    fn force_flush(&self) -> OTelSdkResult {
        Ok(())
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        std::thread::sleep(timeout);
        Ok(())
    }
}

#[test]
fn exporters_and_processors_share_the_shutdown_timeout() {
    let bound = Duration::from_secs(2);
    // The exporter needs all of the time, or none. One after the other, they take 8 s or 6 s.
    for answer in [Answer::Hang, Answer::Accept] {
        let collector = Collector::answering(Protocol::Grpc, [answer.clone()]);
        let service = Service::with(collector.env(), |builder| {
            builder
                .shutdown_timeout(bound)
                .span_processor(Slow)
                .span_processor(Slow)
                .span_processor(Slow)
        });
        service.spans(1);
        let started = Instant::now();
        let _ = service.telemetry.shutdown_blocking();
        assert!(
            started.elapsed() < bound * 5 / 2,
            "{answer:?} {:?}",
            started.elapsed()
        );
    }
}
