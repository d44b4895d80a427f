//! The GPUs as metrics.

use std::sync::atomic::AtomicU64;

use dalston_telemetry::metrics::Registry;
use dalston_telemetry::metrics::prometheus_client::metrics::family::Family;
use dalston_telemetry::metrics::prometheus_client::metrics::gauge::Gauge;

use super::Gpu;

type GpuLabel = [(&'static str, String); 1];
type FloatGauge = Gauge<f64, AtomicU64>;

#[derive(Clone, Default)]
pub(super) struct Gauges {
    used: Family<GpuLabel, Gauge>,
    total: Family<GpuLabel, Gauge>,
    utilization: Family<GpuLabel, FloatGauge>,
    power: Family<GpuLabel, FloatGauge>,
    temperature: Family<GpuLabel, FloatGauge>,
}

impl Gauges {
    pub(super) fn register(registry: &mut Registry) -> Self {
        let gauges = Self::default();
        let registry = registry.prometheus();
        registry.register(
            "dalston_engine_gpu_memory_used_bytes",
            "Memory of the GPU in use by all processes",
            gauges.used.clone(),
        );
        registry.register(
            "dalston_engine_gpu_memory_total_bytes",
            "Memory of the GPU",
            gauges.total.clone(),
        );
        registry.register(
            "dalston_engine_gpu_utilization_ratio",
            "Share of the driver's last sample period in which a kernel ran",
            gauges.utilization.clone(),
        );
        registry.register(
            "dalston_engine_gpu_power_watts",
            "What the GPU draws",
            gauges.power.clone(),
        );
        registry.register(
            "dalston_engine_gpu_temperature_celsius",
            "Temperature of the GPU's chip",
            gauges.temperature.clone(),
        );
        gauges
    }

    /// Shows these GPUs and no others.
    pub(super) fn show(&self, gpus: &[Gpu], before: &mut Vec<[usize; 4]>) {
        let series: Vec<_> = gpus.iter().map(told).collect();
        // Only then, so that a scrape at this moment does not miss series that stay.
        if series != *before {
            self.clear();
            *before = series;
        }
        for gpu in gpus {
            let label = [("gpu", gpu.index.to_string())];
            let bytes = |bytes| i64::try_from(bytes).unwrap_or(i64::MAX);
            self.used.get_or_create(&label).set(bytes(gpu.memory_used));
            self.total.get_or_create(&label).set(bytes(gpu.memory_total));
            for (family, value) in [
                (&self.utilization, gpu.utilization),
                (&self.power, gpu.power_watts),
                (&self.temperature, gpu.temperature_celsius),
            ] {
                if let Some(value) = value {
                    family.get_or_create(&label).set(value);
                }
            }
        }
    }

    fn clear(&self) {
        self.used.clear();
        self.total.clear();
        self.utilization.clear();
        self.power.clear();
        self.temperature.clear();
    }
}

/// Which series a GPU has.
fn told(gpu: &Gpu) -> [usize; 4] {
    let is_told = |value: Option<f64>| usize::from(value.is_some());
    [
        gpu.index,
        is_told(gpu.utilization),
        is_told(gpu.power_watts),
        is_told(gpu.temperature_celsius),
    ]
}
