//! The reasons why this crate delivers telemetry itself, each shown beside `opentelemetry-otlp`.
//!
//! The peer is the SDK's batch processor with the exporter of `opentelemetry-otlp` over gRPC. Both
//! sides get the same situation. A test that fails because the peer has caught up means that the
//! reason can go from `export/mod.rs`.

use std::panic::catch_unwind;
use std::process::Command;
use std::thread;
use std::time::Duration;

use dalston_telemetry::ShutdownError;
use dalston_telemetry::metrics::DropReason;
use dalston_telemetry::opentelemetry::KeyValue;
use dalston_telemetry::opentelemetry::metrics::MeterProvider as _;
use dalston_telemetry::opentelemetry::trace::{Span as _, Tracer as _, TracerProvider as _};
use opentelemetry_otlp::{MetricExporter, SpanExporter, WithExportConfig};
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::metrics::{PeriodicReader, SdkMeterProvider};
use opentelemetry_sdk::trace::{BatchConfigBuilder, BatchSpanProcessor, SdkTracerProvider};
use testbed::collector::{Answer, Collector, Protocol};
use tokio::runtime::Runtime;

use crate::service::Service;

const FLUSH: Duration = Duration::from_secs(30);
const MIB: usize = 1024 * 1024;

/// Limits that both sides get, under the names of their variables.
#[derive(Clone, Copy)]
struct Batching {
    queue: usize,
    batch: usize,
    request_timeout: Duration,
}

impl Batching {
    const DEFAULT: Self = Self {
        queue: 2048,
        batch: 512,
        request_timeout: Duration::from_secs(10),
    };

    fn env(self, collector: &Collector) -> Vec<(String, String)> {
        let mut env = collector.env();
        for (name, value) in [
            ("OTEL_BSP_MAX_QUEUE_SIZE", self.queue.to_string()),
            ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", self.batch.to_string()),
            ("OTEL_BSP_SCHEDULE_DELAY", "3600000".into()),
            (
                "OTEL_EXPORTER_OTLP_TIMEOUT",
                self.request_timeout.as_millis().to_string(),
            ),
        ] {
            env.push((name.into(), value));
        }
        env
    }
}

/// Spans that are exported by the peer.
struct Peer {
    provider: SdkTracerProvider,
    // Its connection lives on this runtime.
    _runtime: Runtime,
}

impl Peer {
    fn start(collector: &Collector, batching: Batching) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let provider = runtime.block_on(async { provider(collector, batching) });
        Self {
            provider,
            _runtime: runtime,
        }
    }

    fn spans(&self, count: usize) {
        spans(&self.provider, count, 0);
    }

    fn flush(&self) -> OTelSdkResult {
        self.provider.force_flush()
    }
}

fn provider(collector: &Collector, batching: Batching) -> SdkTracerProvider {
    let config = BatchConfigBuilder::default()
        .with_max_queue_size(batching.queue)
        .with_max_export_batch_size(batching.batch)
        .with_scheduled_delay(Duration::from_secs(3600))
        .build();
    let processor = BatchSpanProcessor::builder(exporter(collector, batching.request_timeout))
        .with_batch_config(config)
        .build();
    SdkTracerProvider::builder()
        .with_span_processor(processor)
        .build()
}

fn exporter(collector: &Collector, timeout: Duration) -> SpanExporter {
    SpanExporter::builder()
        .with_tonic()
        .with_endpoint(format!("http://{}", collector.address))
        .with_timeout(timeout)
        .build()
        .unwrap()
}

/// Spans with a text of `size` bytes each.
fn spans(provider: &SdkTracerProvider, count: usize, size: usize) {
    let tracer = provider.tracer("peer");
    for _ in 0..count {
        let mut span = tracer.start("work");
        span.set_attribute(KeyValue::new("text", "x".repeat(size)));
        span.end();
    }
}

/// The same spans of ours.
fn our_spans(service: &Service, count: usize, size: usize) {
    service.in_scope(|| {
        for _ in 0..count {
            tracing::info_span!("work", text = "x".repeat(size)).in_scope(|| {});
        }
    });
}

fn arrived(collector: &Collector) -> usize {
    let requests = collector.rest();
    requests.iter().map(|request| request.span_names().len()).sum()
}

#[test]
fn spans_rejected_in_a_partial_success_are_reported() {
    let partial = || Collector::answering(Protocol::Grpc, [Answer::Partial(2, "quota is used up")]);

    let collector = partial();
    let service = Service::start(collector.env());
    service.spans(3);
    assert!(matches!(
        service.telemetry.flush(FLUSH),
        Err(ShutdownError::Lost { lost: 2, .. })
    ));
    let stats = service.stats();
    assert_eq!((stats.exported(), stats.dropped(DropReason::Rejected)), (1, 2));

    let collector = partial();
    let peer = Peer::start(&collector, Batching::DEFAULT);
    peer.spans(3);
    assert!(peer.flush().is_ok());
    assert_eq!(collector.answers_left(), 0);
}

#[test]
fn a_batch_refused_at_shutdown_is_reported() {
    let collector = Collector::answering(Protocol::Grpc, [Answer::Refuse]);
    let service = Service::start(collector.env());
    service.spans(3);
    assert!(matches!(
        service.telemetry.shutdown_blocking(),
        Err(ShutdownError::Lost { lost: 3, .. })
    ));

    let collector = Collector::answering(Protocol::Grpc, [Answer::Refuse]);
    let peer = Peer::start(&collector, Batching::DEFAULT);
    peer.spans(3);
    assert!(peer.provider.shutdown().is_ok());
    assert_eq!(collector.answers_left(), 0);
}

#[test]
fn a_refused_batch_is_reported_after_a_later_success() {
    let batching = Batching {
        batch: 2,
        ..Batching::DEFAULT
    };
    let collector = Collector::answering(Protocol::Grpc, [Answer::Refuse]);
    let service = Service::start(batching.env(&collector));
    service.spans(3);
    assert!(matches!(
        service.telemetry.flush(FLUSH),
        Err(ShutdownError::Lost { lost: 2, .. })
    ));

    let collector = Collector::answering(Protocol::Grpc, [Answer::Refuse]);
    let peer = Peer::start(&collector, batching);
    peer.spans(3);
    assert!(peer.flush().is_ok());
    assert_eq!(arrived(&collector), 3);
}

#[test]
fn spans_that_find_a_full_queue_are_reported() {
    let batching = Batching {
        queue: 10,
        batch: 10,
        // How long the first request blocks the queue.
        request_timeout: Duration::from_secs(1),
    };
    let collector = Collector::answering(Protocol::Grpc, [Answer::Hang]);
    let service = Service::start(batching.env(&collector));
    service.spans(10);
    let _ = collector.next();
    service.spans(1000);
    let flushed = service.telemetry.flush(FLUSH);
    let dropped = service.stats().dropped(DropReason::QueueFull);
    assert!(dropped > 0);
    assert!(
        matches!(flushed, Err(ShutdownError::Lost { lost, .. }) if lost == dropped),
        "{flushed:?}"
    );

    let collector = Collector::answering(Protocol::Grpc, [Answer::Hang]);
    let peer = Peer::start(&collector, batching);
    peer.spans(10);
    let _ = collector.next();
    peer.spans(1000);
    assert!(peer.flush().is_ok());
    assert!(arrived(&collector) < 1000);
}

#[test]
fn one_bound_ends_all_signals() {
    const BOUND: Duration = Duration::from_secs(2);
    let hanging = || Collector::answering(Protocol::Grpc, [Answer::Hang, Answer::Hang]);

    let peers = hanging();
    let runtime = Runtime::new().unwrap();
    let (spans, metrics) = runtime.block_on(async {
        let exporter = MetricExporter::builder()
            .with_tonic()
            .with_endpoint(format!("http://{}", peers.address))
            .build()
            .unwrap();
        let reader = PeriodicReader::builder(exporter).build();
        (
            provider(&peers, Batching::DEFAULT),
            SdkMeterProvider::builder().with_reader(reader).build(),
        )
    });
    self::spans(&spans, 1, 0);
    metrics.meter("peer").u64_counter("tasks").build().add(1, &[]);
    let peer = thread::spawn(move || {
        let spans = spans.shutdown_with_timeout(BOUND);
        // `PeriodicReader` ignores the timeout and waits for 5 s.
        (spans, metrics.shutdown_with_timeout(BOUND))
    });

    let collector = hanging();
    let mut env = collector.env();
    env.push(("OTEL_METRICS_EXPORTER".into(), "otlp".into()));
    let service = Service::with(env, |builder| builder.shutdown_timeout(BOUND));
    service.spans(1);
    assert!(service.telemetry.shutdown_blocking().is_err());
    let _ = (collector.next(), collector.next_metrics());
    assert!(!peer.is_finished());

    let (spans, metrics) = peer.join().unwrap();
    assert!(spans.is_err() && metrics.is_err(), "{spans:?} {metrics:?}");
}

#[test]
fn settings_come_from_the_map_alone() {
    const NAME: &str = "peer::settings_come_from_the_map_alone";
    const HEADERS: &str = "OTEL_EXPORTER_OTLP_HEADERS";
    if std::env::var_os(HEADERS).is_none() {
        // The variables of a process are the same for all its tests.
        let program = std::env::current_exe().unwrap();
        let child = Command::new(program)
            .args(["--exact", NAME])
            .env(HEADERS, "x-tenant=process")
            .output()
            .unwrap();
        let output = String::from_utf8_lossy(&child.stdout);
        assert!(child.status.success() && output.contains("1 passed"), "{output}");
        return;
    }
    let collector = Collector::start(Protocol::Grpc);
    let service = Service::start(collector.env());
    service.spans(1);
    service.telemetry.flush(FLUSH).unwrap();
    assert_eq!(collector.next().header("x-tenant"), None);

    let peer = Peer::start(&collector, Batching::DEFAULT);
    peer.spans(1);
    peer.flush().unwrap();
    assert_eq!(collector.next().header("x-tenant"), Some("process"));
}

#[test]
fn no_runtime_is_needed() {
    let collector = Collector::start(Protocol::Grpc);
    let service = Service::start(collector.env());
    service.spans(1);
    assert_eq!(service.telemetry.shutdown_blocking(), Ok(()));
    assert_eq!(arrived(&collector), 1);

    let address = collector.address;
    let without_runtime = catch_unwind(|| {
        SpanExporter::builder()
            .with_tonic()
            .with_endpoint(format!("http://{address}"))
            .build()
    });
    assert!(without_runtime.is_err());
}

#[test]
fn the_only_thread_of_a_runtime_can_end_it() {
    let runtime = || {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap()
    };
    let collector = Collector::start(Protocol::Grpc);
    let ended = runtime().block_on(async {
        let service = Service::start(collector.env());
        service.spans(1);
        service.telemetry.shutdown_blocking()
    });
    assert_eq!((ended, arrived(&collector)), (Ok(()), 1));

    let bound = Duration::from_secs(1);
    let ended = runtime().block_on(async {
        let provider = provider(&collector, Batching::DEFAULT);
        spans(&provider, 1, 0);
        provider.shutdown_with_timeout(bound)
    });
    assert!(ended.is_err());
    assert_eq!(arrived(&collector), 0);
}

#[test]
fn a_batch_larger_than_a_collector_takes_is_split() {
    // A gRPC server refuses messages of more than 4 MiB unless told otherwise.
    const SPANS: usize = 6;
    let collector = Collector::start(Protocol::Grpc);
    let service = Service::start(Batching::DEFAULT.env(&collector));
    our_spans(&service, SPANS, MIB);
    assert_eq!(service.telemetry.flush(FLUSH), Ok(()));
    assert_eq!(arrived(&collector), SPANS);

    let collector = Collector::start(Protocol::Grpc);
    let peer = Peer::start(&collector, Batching::DEFAULT);
    spans(&peer.provider, SPANS, MIB);
    assert!(peer.flush().is_err());
    assert_eq!(arrived(&collector), 0);
}

#[test]
fn the_queue_is_bounded_by_bytes() {
    // More than the 64 MiB that our queue holds, far fewer spans than it may hold.
    const SPANS: usize = 80;
    let batching = Batching {
        batch: 1,
        ..Batching::DEFAULT
    };
    let busy = |seconds| {
        let later = Answer::Unavailable(Some(Duration::from_secs(seconds)));
        Collector::answering(Protocol::Grpc, [later])
    };
    // So long that the spans are made in this time on a slow machine.
    let collector = busy(30);
    let service = Service::with(batching.env(&collector), |builder| {
        builder.shutdown_timeout(Duration::from_millis(100))
    });
    service.spans(1);
    let _ = collector.next();
    our_spans(&service, SPANS, MIB);
    assert!(service.stats().dropped(DropReason::QueueFull) > 0);

    let collector = busy(1);
    let peer = Peer::start(&collector, batching);
    peer.spans(1);
    let _ = collector.next();
    spans(&peer.provider, SPANS, MIB);
    // Its queue has taken them all: they arrive, after the span before.
    for _ in 0..=SPANS {
        let _ = collector.next();
    }
}
