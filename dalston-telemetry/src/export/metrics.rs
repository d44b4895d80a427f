//! Metrics: the series that are scraped, sent at an interval.

use std::sync::{Arc, Mutex, PoisonError, TryLockError};
use std::time::Duration;

use opentelemetry::Context;
use opentelemetry_proto::tonic::collector::metrics::v1::{
    ExportMetricsServiceRequest, ExportMetricsServiceResponse,
};
use opentelemetry_sdk::Resource;
use prost::Message;
use tokio::time::{Instant, sleep_until};

use super::delivery::{
    Accepted, Control, Delivery, Exporter, Failure, Lost, ReportTo, Reporter, Transport, spawn,
};
use super::exporter_config::{ExporterConfig, PushConfig};
use super::transport::{Wire, connect};
use crate::error::{InitError, ShutdownError};
use crate::metrics::{Metrics, Signal, TelemetryMetrics};
use points::Points;

mod points;

/// Starts the exporter of metrics. Opens no connection, so that a collector that is away does not
/// keep a service from starting.
pub(crate) fn start(
    otlp: &ExporterConfig,
    config: PushConfig,
    resource: &Resource,
    metrics: &Metrics,
    report_to: ReportTo,
) -> Result<Arc<dyn Exporter>, InitError> {
    let shared = Arc::new(Shared::new(TelemetryMetrics::register(metrics)));
    let reporter = Reporter::new("metrics", otlp.endpoint.to_string(), &otlp.headers, report_to);
    let connect = connect(otlp)?;
    let timeout = otlp.timeout;
    let source = Points::new(metrics.clone(), resource, config.delta);
    let in_thread = Arc::clone(&shared);
    spawn("dalston-push", EndOnDrop(Arc::clone(&shared)), async move {
        let transport = MetricsOtlp(connect());
        Worker::new(in_thread, config, timeout, transport, source, reporter)
            .run()
            .await;
    })?;
    Ok(shared)
}

/// Reads metrics for an exporter.
trait Source<R>: Send + 'static {
    type Receipt: Send + 'static;

    /// The metrics as they are now, in requests that a collector accepts. Each has a receipt for
    /// [`delivered`](Self::delivered).
    fn requests(&mut self) -> Vec<(R, Self::Receipt)>;

    /// The collector has taken a request.
    fn delivered(&mut self, receipt: Self::Receipt);
}

/// What the export thread shares with the others.
#[derive(Debug)]
struct Shared {
    control: Control,
    metrics: TelemetryMetrics,
    /// The reason why the latest values did not arrive; `None` if they did.
    undelivered: Mutex<Option<String>>,
}

impl Shared {
    fn new(metrics: TelemetryMetrics) -> Self {
        Self {
            control: Control::new(),
            metrics,
            undelivered: Mutex::default(),
        }
    }

    fn set_undelivered(&self, reason: Option<String>) {
        *self.undelivered.lock().unwrap_or_else(PoisonError::into_inner) = reason;
    }
}

impl Exporter for Shared {
    fn control(&self) -> &Control {
        &self.control
    }

    fn request_failed(&self, detail: &str) {
        self.metrics.export_failed(Signal::Metrics);
        self.set_undelivered(Some(detail.to_owned()));
    }

    fn report(&self, reporter: &mut Reporter) {
        reporter.report_failure(Instant::now());
    }

    fn outcome(&self, in_time: bool) -> Result<(), ShutdownError> {
        let undelivered = self.undelivered.lock().unwrap_or_else(PoisonError::into_inner);
        let last_failure = match (&*undelivered, in_time) {
            (Some(reason), _) => reason.clone(),
            (None, false) => "time was up before they were sent".to_owned(),
            (None, true) => return Ok(()),
        };
        Err(ShutdownError::Metrics { last_failure })
    }
}

/// Tells waiting threads that the export thread has ended, also after a panic.
struct EndOnDrop(Arc<Shared>);

impl Drop for EndOnDrop {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // Observable instruments call the program, which can panic.
            self.0
                .set_undelivered(Some("the thread that exports metrics panicked".into()));
        }
        self.0.control.end();
    }
}

/// The loop of the export thread.
struct Worker<T, S> {
    shared: Arc<Shared>,
    config: PushConfig,
    transport: T,
    /// Locked while it is read, which takes as long as the callbacks of observable instruments.
    source: Arc<Mutex<S>>,
    delivery: Delivery<Shared>,
}

impl<T: Transport<Request: 'static>, S: Source<T::Request>> Worker<T, S> {
    /// `timeout` is for one request.
    fn new(
        shared: Arc<Shared>,
        config: PushConfig,
        timeout: Duration,
        transport: T,
        source: S,
        reporter: Reporter,
    ) -> Self {
        Self {
            delivery: Delivery::new(Arc::clone(&shared), timeout, reporter),
            shared,
            config,
            transport,
            source: Arc::new(Mutex::new(source)),
        }
    }

    /// Runs until the shutdown, exports once more, and takes no longer for that than it allows.
    async fn run(mut self) {
        let mut tick = Instant::now() + self.config.interval;
        loop {
            self.time_to_export(tick).await;
            let flush = self.shared.control.asked();
            let closing = self.shared.control.closing().is_some();
            self.export().await;
            if closing {
                return self.shared.control.end();
            }
            self.shared.control.done(flush);
            tick = (tick + self.config.interval).max(Instant::now());
        }
    }

    async fn time_to_export(&self, tick: Instant) {
        while !self.shared.control.is_urgent() {
            tokio::select! {
                () = self.shared.control.woken() => {}
                () = sleep_until(tick) => return,
            }
        }
    }

    async fn export(&mut self) {
        let until = Instant::now() + self.config.export_timeout;
        let mut all_delivered = true;
        let mut warning = None;
        let Some(requests) = self.read(until).await else {
            return self.delivery.report();
        };
        for (request, receipt) in requests {
            // A request that is lost is not kept: the next values include what it said.
            let accepted = match self.delivery.send(&self.transport, &request, until).await {
                Ok(accepted) => accepted,
                Err(Lost::Refused) => {
                    all_delivered = false;
                    continue;
                }
                Err(Lost::Failed | Lost::Closing) => return self.delivery.report(),
            };
            self.source
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .delivered(receipt);
            if accepted.rejected > 0 {
                all_delivered = false;
                let detail = format!(
                    "the collector rejected {} points: {}",
                    accepted.rejected, accepted.message
                );
                self.delivery.failed(&detail);
            } else if warning.is_none() && !accepted.message.is_empty() {
                warning = Some(accepted);
            }
        }
        if all_delivered {
            self.shared.set_undelivered(None);
            self.delivery.succeeded(&warning.unwrap_or_default());
        }
        self.delivery.report();
    }

    /// Reads the metrics on a thread that may block: callbacks of observable instruments belong to
    /// the program, and one that does not return must not keep the process from ending.
    async fn read(&mut self, until: Instant) -> Option<Vec<(T::Request, S::Receipt)>> {
        const STUCK: &str = "metrics can't be read: the callback of an instrument has not returned";
        if matches!(self.source.try_lock(), Err(TryLockError::WouldBlock)) {
            // An earlier read still waits; a second thread would wait as well.
            self.delivery.failed(STUCK);
            return None;
        }
        let source = Arc::clone(&self.source);
        let reading = tokio::task::spawn_blocking(move || {
            // Spans of callbacks are not exported: each export would make new ones.
            let _suppressed = Context::enter_telemetry_suppressed_scope();
            source.lock().unwrap_or_else(PoisonError::into_inner).requests()
        });
        match self.delivery.bounded(until, reading).await {
            Ok(Ok(requests)) => Some(requests),
            Ok(Err(error)) => match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                Err(_) => None,
            },
            Err(_) => {
                self.delivery.failed(STUCK);
                None
            }
        }
    }
}

/// OTLP for metrics.
struct MetricsOtlp(Wire);

impl Transport for MetricsOtlp {
    type Request = ExportMetricsServiceRequest;

    async fn send(&self, request: &Self::Request) -> Result<Accepted, Failure> {
        const METHOD: &str = "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export";
        let request = request.encode_to_vec().into();
        self.0.send::<ExportMetricsServiceResponse>(METHOD, request).await
    }
}

impl From<ExportMetricsServiceResponse> for Accepted {
    fn from(response: ExportMetricsServiceResponse) -> Self {
        let partial = response.partial_success.unwrap_or_default();
        Self::partly(partial.rejected_data_points, partial.error_message)
    }
}
