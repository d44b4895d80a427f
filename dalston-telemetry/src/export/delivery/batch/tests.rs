//! The exporting loop with a transport that answers as told, on a clock that jumps.

use std::sync::Mutex;

use opentelemetry::trace::{SpanContext, SpanId, SpanKind, TraceFlags, TraceId, TraceState};
use opentelemetry::{InstrumentationScope, KeyValue};
use opentelemetry_sdk::trace::{SpanData, SpanEvents, SpanLinks};
use tracing_subscriber::layer::SubscriberExt;

use super::*;
use crate::export::delivery::attempts::ATTEMPTS_WHILE_CLOSING;
use crate::export::delivery::request::{Failure, Retry};
use crate::metrics::{Metrics, TelemetryMetrics};

/// What the spans of a request may take.
const ROOM: usize = 4 * 1024 * 1024 - 100_000;

type Answer = Result<Accepted, Failure>;

/// Notes when it was asked and with how many spans, and answers what is next in the script.
#[derive(Default)]
struct Scripted {
    answers: Mutex<VecDeque<Answer>>,
    sent: Mutex<Vec<(Duration, usize)>>,
    started: Mutex<Option<Instant>>,
}

impl BatchTransport<SpanData> for Arc<Scripted> {
    type Record = ();

    fn room(&self) -> usize {
        ROOM
    }

    fn convert(&self, span: SpanData) -> ((), usize) {
        ((), span.size())
    }

    fn request(&self, spans: Vec<()>) -> usize {
        spans.len()
    }
}

impl Transport for Arc<Scripted> {
    type Request = usize;

    async fn send(&self, request: &usize) -> Answer {
        let started = *self.started.lock().unwrap().get_or_insert_with(Instant::now);
        self.sent.lock().unwrap().push((started.elapsed(), *request));
        let answer = self.answers.lock().unwrap().pop_front();
        answer.unwrap_or_else(|| Ok(Accepted::default()))
    }
}

struct Running {
    shared: Arc<Shared<SpanData>>,
    transport: Arc<Scripted>,
    worker: tokio::task::JoinHandle<()>,
}

fn batching() -> BatchConfig {
    BatchConfig {
        schedule_delay: Duration::from_millis(1),
        max_queue_size: 1000,
        max_batch_size: 10,
        export_timeout: Duration::from_secs(30),
    }
}

fn shared() -> Arc<Shared<SpanData>> {
    let metrics = TelemetryMetrics::register(&Metrics::new());
    Arc::new(Shared::new(&batching(), metrics))
}

fn worker<T: BatchTransport<SpanData>>(
    shared: &Arc<Shared<SpanData>>,
    batching: BatchConfig,
    transport: T,
) -> Worker<SpanData, T> {
    let headers = http::HeaderMap::new();
    let reporter = Reporter::new("spans", "http://otel:4317".into(), &headers, ReportTo::default());
    let timeout = Duration::from_secs(10);
    Worker::new(
        Arc::clone(shared),
        batching,
        timeout,
        Some(transport),
        None,
        reporter,
    )
}

impl Running {
    fn start(answers: impl IntoIterator<Item = Answer>) -> Self {
        let shared = shared();
        let transport = Arc::new(Scripted::default());
        transport.answers.lock().unwrap().extend(answers);
        let worker = worker(&shared, batching(), Arc::clone(&transport));
        Self {
            shared,
            transport,
            worker: tokio::spawn(worker.run()),
        }
    }

    fn push(&self, spans: usize) {
        for _ in 0..spans {
            self.push_one(span(0));
        }
    }

    fn push_one(&self, span: SpanData) {
        self.shared.push(span);
    }

    fn close(&self, in_time: Duration) {
        self.shared.control.close(Instant::now() + in_time);
    }

    /// Seconds since the first request, rounded down, and spans of every request.
    fn sent(&self) -> Vec<(u64, usize)> {
        self.transport
            .sent
            .lock()
            .unwrap()
            .iter()
            .map(|(at, spans)| (at.as_secs(), *spans))
            .collect()
    }

    fn dropped(&self, reason: DropReason) -> u64 {
        self.shared.read_stats().dropped(reason)
    }
}

fn span(text_length: usize) -> SpanData {
    SpanData {
        span_context: SpanContext::new(
            TraceId::from(1),
            SpanId::from(1),
            TraceFlags::SAMPLED,
            false,
            TraceState::default(),
        ),
        parent_span_id: SpanId::INVALID,
        parent_span_is_remote: false,
        span_kind: SpanKind::Internal,
        name: "work".into(),
        start_time: std::time::SystemTime::UNIX_EPOCH,
        end_time: std::time::SystemTime::UNIX_EPOCH,
        attributes: vec![KeyValue::new("text", "x".repeat(text_length))],
        dropped_attributes_count: 0,
        events: SpanEvents::default(),
        links: SpanLinks::default(),
        status: opentelemetry::trace::Status::Unset,
        instrumentation_scope: InstrumentationScope::default(),
    }
}

fn failure(retry: Retry) -> Answer {
    Err(Failure {
        retry,
        detail: "as told".into(),
    })
}

fn after(seconds: u64) -> Answer {
    failure(Retry::After(Duration::from_secs(seconds)))
}

#[tokio::test(start_paused = true)]
async fn batch_is_sent_again_when_collector_asked() {
    let running = Running::start([after(7), after(9)]);
    running.push(3);
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(running.sent(), [(0, 3), (7, 3), (16, 3)]);
    assert_eq!(running.shared.read_stats().exported(), 3);
}

#[tokio::test(start_paused = true)]
async fn pause_beyond_batch_timeout_delays_next_batch() {
    let running = Running::start([after(40)]);
    running.push(3);
    tokio::time::sleep(Duration::from_secs(20)).await;
    assert_eq!(running.dropped(DropReason::ExportFailed), 3);
    running.push(2);
    tokio::time::sleep(Duration::from_secs(30)).await;
    assert_eq!(running.sent(), [(0, 3), (40, 2)]);
}

#[tokio::test(start_paused = true)]
async fn pause_lasts_a_minute_at_most() {
    let running = Running::start([after(100_000)]);
    running.push(1);
    tokio::time::sleep(Duration::from_secs(50)).await;
    running.push(2);
    tokio::time::sleep(Duration::from_secs(50)).await;
    assert_eq!(running.sent(), [(0, 1), (60, 2)]);
}

#[tokio::test(start_paused = true)]
async fn batch_is_given_up_at_its_timeout_and_next_one_sent() {
    let running = Running::start((0..1000).map(|_| failure(Retry::Backoff)));
    running.push(3);
    tokio::time::sleep(Duration::from_secs(31)).await;
    let attempts = running.sent().len();
    assert!((7..20).contains(&attempts), "{attempts} attempts in 30 s");
    assert!(running.sent().iter().all(|(at, _)| *at < 30));
    assert_eq!(running.dropped(DropReason::ExportFailed), 3);
    running.transport.answers.lock().unwrap().clear();
    running.push(2);
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(running.shared.read_stats().exported(), 2);
}

#[tokio::test(start_paused = true)]
async fn refused_request_is_not_sent_again() {
    let running = Running::start([failure(Retry::Never)]);
    running.push(3);
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(running.sent(), [(0, 3)]);
    assert_eq!(running.dropped(DropReason::ExportFailed), 3);
}

#[tokio::test(start_paused = true)]
async fn shutdown_ends_backoff_and_tries_a_few_times() {
    let running = Running::start((0..1000).map(|_| failure(Retry::Backoff)));
    running.push(25);
    tokio::time::sleep(Duration::from_millis(1100)).await;
    let before = running.sent().len();
    let closed = Instant::now();
    running.close(Duration::from_secs(60));
    let Running {
        worker,
        shared,
        transport,
    } = running;
    worker.await.unwrap();
    let attempts = transport.sent.lock().unwrap().len() - before;
    assert_eq!(attempts, ATTEMPTS_WHILE_CLOSING as usize);
    assert!(
        closed.elapsed() < Duration::from_secs(10),
        "{:?}",
        closed.elapsed()
    );
    assert_eq!(shared.read_stats().dropped_total(), 25);
    assert_eq!(shared.queue.len(), 0);
}

#[tokio::test(start_paused = true)]
async fn shutdown_does_not_wait_for_pause_beyond_its_bound() {
    let running = Running::start([after(20)]);
    running.push(3);
    tokio::time::sleep(Duration::from_secs(1)).await;
    let closed = Instant::now();
    running.close(Duration::from_secs(5));
    let Running { worker, shared, .. } = running;
    worker.await.unwrap();
    assert_eq!(closed.elapsed(), Duration::ZERO);
    assert_eq!(shared.read_stats().dropped(DropReason::Shutdown), 3);
}

#[tokio::test(start_paused = true)]
async fn shutdown_waits_for_pause_within_its_bound() {
    let running = Running::start([after(4)]);
    running.push(3);
    tokio::time::sleep(Duration::from_secs(1)).await;
    running.close(Duration::from_secs(5));
    let Running { worker, shared, .. } = running;
    worker.await.unwrap();
    assert_eq!(shared.read_stats().exported(), 3);
}

#[tokio::test(start_paused = true)]
async fn request_is_cut_at_the_size_that_collectors_accept() {
    let running = Running::start([]);
    // Three fit, four do not; and one that fits nowhere.
    for size in [1, 1, 1, 1, 1].map(|mebibytes| mebibytes * 1024 * 1024) {
        running.push_one(span(size));
    }
    running.push_one(span(5 * 1024 * 1024));
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(running.sent(), [(0, 3), (0, 2)]);
    assert_eq!(running.dropped(DropReason::TooLarge), 1);
}

#[tokio::test(start_paused = true)]
async fn queue_is_bounded_by_bytes_too() {
    let running = Running::start([after(29)]);
    running.push(1);
    tokio::time::sleep(Duration::from_secs(1)).await;
    for _ in 0..100 {
        running.push_one(span(1024 * 1024));
    }
    assert!(
        running.shared.queue.len() < 64,
        "{} MiB",
        running.shared.queue.len()
    );
    assert_eq!(
        running.dropped(DropReason::QueueFull) as usize + running.shared.queue.len(),
        100
    );
    // The room comes back.
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(running.shared.queue.len(), 0);
    running.push(1000);
    assert_eq!(running.shared.queue.len(), 1000);
}

#[tokio::test(start_paused = true)]
async fn rejected_part_is_counted_up_to_the_batch() {
    let partial = |rejected| {
        Ok(Accepted {
            rejected,
            message: "quota".into(),
        })
    };
    let running = Running::start([partial(2), partial(99), partial(0)]);
    for _ in 0..3 {
        running.push(3);
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    let stats = running.shared.read_stats();
    assert_eq!(
        (
            stats.exported(),
            stats.dropped(DropReason::Rejected),
            stats.failures()
        ),
        (1 + 3, 2 + 3, 2)
    );
}

#[tokio::test(start_paused = true)]
async fn absent_collector_is_logged_once_a_minute() {
    #[derive(Clone, Default)]
    struct Log(Arc<Mutex<String>>);
    impl std::io::Write for Log {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().push_str(&String::from_utf8_lossy(bytes));
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let log = Log::default();
    let writer = log.clone();
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(move || writer.clone())
        .with_ansi(false);
    // A second subscriber: with only one, threads of other tests decide whether it gets an event
    // (tracing-core 0.1.36, `Rebuilder::JustOne`).
    let _second = tracing::Dispatch::new(tracing_subscriber::registry());
    let _guard = tracing::subscriber::set_default(tracing_subscriber::registry().with(lines));

    let running = Running::start((0..100_000).map(|_| failure(Retry::Backoff)));
    for _ in 0..600 {
        running.push(1);
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    let failed = running.shared.read_stats().failures();
    assert!(failed > 100, "{failed}");
    let warnings = log.0.lock().unwrap().matches("WARN").count();
    assert!(
        (9..=11).contains(&warnings),
        "{warnings} lines\n{}",
        log.0.lock().unwrap()
    );

    // And one more when it is back.
    running.transport.answers.lock().unwrap().clear();
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(
        log.0
            .lock()
            .unwrap()
            .matches("telemetry_export_recovered")
            .count(),
        1
    );
}

#[tokio::test(start_paused = true)]
async fn spans_of_panicked_exporter_are_counted_as_lost() {
    /// Breaks at the first request.
    struct Broken;
    impl BatchTransport<SpanData> for Broken {
        type Record = ();

        fn room(&self) -> usize {
            ROOM
        }

        fn convert(&self, _: SpanData) -> ((), usize) {
            ((), 1)
        }

        fn request(&self, _: Vec<()>) {}
    }

    impl Transport for Broken {
        type Request = ();

        async fn send(&self, (): &()) -> Answer {
            panic!("a bug");
        }
    }
    let shared = shared();
    for _ in 0..25 {
        shared.push(span(0));
    }
    let worker = worker(&shared, batching(), Broken);
    assert!(tokio::spawn(worker.run()).await.is_err());
    let stats = shared.read_stats();
    assert_eq!((stats.dropped(DropReason::Shutdown), stats.waiting()), (25, 0));
}

#[tokio::test(start_paused = true)]
async fn missing_answer_is_reported_with_the_time_waited() {
    struct Silent;
    impl BatchTransport<SpanData> for Silent {
        type Record = ();

        fn room(&self) -> usize {
            ROOM
        }

        fn convert(&self, _: SpanData) -> ((), usize) {
            ((), 1)
        }

        fn request(&self, _: Vec<()>) {}
    }

    impl Transport for Silent {
        type Request = ();

        async fn send(&self, (): &()) -> Answer {
            std::future::pending().await
        }
    }
    let shared = shared();
    shared.push(span(0));
    let batching = BatchConfig {
        export_timeout: Duration::from_secs(3),
        ..batching()
    };
    tokio::spawn(worker(&shared, batching, Silent).run());
    tokio::time::sleep(Duration::from_secs(5)).await;
    let detail = shared.stats.last_failure().unwrap();
    assert!(detail.starts_with("no answer within 3"), "{detail}");
}

#[test]
fn reason_of_loss_is_that_of_most_items() {
    let shared = shared();
    let before = shared.read_stats();
    shared.stats.dropped(DropReason::QueueFull, 2);
    let full = shared.read_stats();
    shared.stats.dropped(DropReason::TooLarge, 1);
    let too_large = shared.read_stats();
    assert_eq!(full.main_loss_since(&before), "the queue was full");
    assert_eq!(
        too_large.main_loss_since(&full),
        "they were larger than a collector takes in one request"
    );
}

#[test]
fn no_span_is_added_to_a_closed_queue() {
    for _ in 0..50 {
        let queue = Queue::new(100_000);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| while queue.push(span(0), SpanData::size).is_ok() {});
            }
            queue.close();
            let mut last = VecDeque::new();
            queue.take_all(&mut last);
            let bytes = last.iter().map(|span| span.bytes).sum();
            queue.release(last.len(), bytes);
        });
        assert_eq!(queue.len(), 0);
    }
}
