//! Metrics that no program of the test has: of GPUs, of services that this workspace lacks, and of
//! containers. The metric types are those of the real programs, except for containers.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use dalston_telemetry::metrics::{BoundedFamily, Counter, Gauge, Metrics, MetricsServer, Status, Unit};
use dalston_telemetry::services::audio_pipeline::AudioPipelineMetrics;
use dalston_telemetry::services::engine::{GpuMetrics, GpuSample};
use dalston_telemetry::services::webhook::{DeliveryStatus, WebhookMetrics};

/// Adds to its metrics until it is dropped.
pub(crate) struct Fixture {
    pub(crate) server: MetricsServer,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Fixture {
    pub(crate) fn start() -> Self {
        let metrics = Metrics::new();
        let server = MetricsServer::start("127.0.0.1:0", metrics.clone()).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = thread::spawn(move || {
            let add = services(&metrics);
            while !stopped.load(Ordering::Relaxed) {
                add();
                thread::sleep(Duration::from_millis(100));
            }
        });
        Self {
            server,
            stop,
            thread: Some(thread),
        }
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// Registers all of them. The call adds one of each.
fn services(metrics: &Metrics) -> impl Fn() + use<> {
    const TIME: Duration = Duration::from_millis(70);
    let audio = AudioPipelineMetrics::register(metrics);
    let gpus = GpuMetrics::register(metrics);
    gpus.update([GpuSample {
        index: 0,
        memory_used: 6_000_000_000,
        memory_total: 24_000_000_000,
        utilization: Some(0.7),
        power_watts: Some(180.0),
        temperature_celsius: Some(64.0),
    }]);
    let webhooks = WebhookMetrics::register(metrics);
    let folded = metrics.open_label("tenant_id", 1);
    let tenants = BoundedFamily::<1, (), Counter>::new([&folded], Counter::default);
    metrics.register(|registry| registry.register("tenants", "Tenants", tenants.clone()));
    for tenant in ["first", "second"] {
        tenants.with([tenant]).with(()).inc();
    }
    let cpu = containers(metrics);
    move || {
        audio.requested();
        audio.encoded(TIME);
        audio.transcribed("tiny", Status::Success, TIME);
        audio.latency(TIME);
        audio.chunk_processed(TIME);
        audio.quality(0.9);
        audio.wake_detection(TIME);
        audio.end_to_end(TIME);
        webhooks.attempted(DeliveryStatus::Success, TIME);
        cpu.with(["gateway"]).with(()).inc();
    }
}

/// The figures of cAdvisor after the rules of `prometheus.yml`.
fn containers(metrics: &Metrics) -> BoundedFamily<1, (), Counter> {
    let label = metrics.open_label("container", 10);
    let cpu = BoundedFamily::new([&label], Counter::default);
    let memory = || BoundedFamily::<1, (), Gauge>::new([&label], Gauge::default);
    let (used, limit) = (memory(), memory());
    used.with(["gateway"]).with(()).set(200_000_000);
    limit.with(["gateway"]).with(()).set(512_000_000);
    metrics.register(|registry| {
        registry.register_with_unit("container_cpu_usage", "CPU time", Unit::Seconds, cpu.clone());
        registry.register_with_unit("container_memory_working_set", "Memory", Unit::Bytes, used);
        registry.register_with_unit("container_spec_memory_limit", "Limit", Unit::Bytes, limit);
    });
    cpu
}
