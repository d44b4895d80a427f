use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::metrics::label_text::push_label;
use crate::metrics::series::{Family, Kind, Number, Series, Value};
use crate::metrics::shape::{LabelDescription, Shape};
use crate::metrics::{Metrics, Unit};

/// The GPUs of a machine. The engine SDK updates them while an engine runs.
///
/// | Metric, by `gpu` | |
/// |---|---|
/// | `dalston_engine_gpu_memory_used_bytes` | memory in use by all processes |
/// | `dalston_engine_gpu_memory_total_bytes` | memory of the device |
/// | `dalston_engine_gpu_utilization_ratio` | share of the driver's last sample period in which a kernel ran, from 0 to 1 |
/// | `dalston_engine_gpu_power_watts` | power draw of the device |
/// | `dalston_engine_gpu_temperature_celsius` | temperature of the chip |
///
/// A GPU that is missing in the last update has no series, and neither has a value that the driver
/// did not report, because an old value would look like a new one. A registry has one set of these
/// metrics. Cheap to clone.
#[derive(Clone)]
pub struct GpuMetrics {
    samples: Arc<Samples>,
}

/// The state of one GPU.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct GpuSample {
    /// The number of the GPU in the driver.
    pub index: usize,
    /// Memory in use by all processes, in bytes.
    pub memory_used: u64,
    /// Memory of the device, in bytes.
    pub memory_total: u64,
    /// The share of time in which a kernel ran, from 0 to 1.
    pub utilization: Option<f64>,
    /// The power draw, in watts.
    pub power_watts: Option<f64>,
    /// The temperature of the chip, in degrees Celsius.
    pub temperature_celsius: Option<f64>,
}

#[derive(Default)]
struct Samples {
    /// Each GPU with the text of its label.
    gpus: Mutex<Vec<(GpuSample, String)>>,
}

impl GpuMetrics {
    /// The handles of this registry. The first call registers them.
    #[must_use]
    pub fn register(metrics: &Metrics) -> Self {
        metrics.set(|registry| {
            let samples = Arc::<Samples>::default();
            let gauge = |number| GpuGauge {
                samples: samples.clone(),
                number,
            };
            let mut registry = registry.with_prefix("dalston_engine_gpu");
            registry.register_with_unit(
                "memory_used",
                "GPU memory in use by all processes",
                Unit::Bytes,
                gauge(|gpu| Some(Number::Whole(gpu.memory_used))),
            );
            registry.register_with_unit(
                "memory_total",
                "Total GPU memory",
                Unit::Bytes,
                gauge(|gpu| Some(Number::Whole(gpu.memory_total))),
            );
            registry.register_with_unit(
                "utilization",
                "Share of the driver's last sample period in which a kernel ran on the GPU",
                Unit::Ratio,
                gauge(|gpu| gpu.utilization.map(Number::Real)),
            );
            registry.register(
                "power_watts",
                "Power draw of the GPU",
                gauge(|gpu| gpu.power_watts.map(Number::Real)),
            );
            registry.register(
                "temperature_celsius",
                "Temperature of the GPU",
                gauge(|gpu| gpu.temperature_celsius.map(Number::Real)),
            );
            Self { samples }
        })
    }

    /// Replaces all GPUs. Their numbers must differ: Prometheus refuses a scrape with the same
    /// series twice.
    pub fn update(&self, gpus: impl IntoIterator<Item = GpuSample>) {
        let labelled = gpus.into_iter().map(|gpu| {
            let mut text = String::new();
            push_label(&mut text, "gpu", &gpu.index.to_string());
            (gpu, text)
        });
        let labelled = labelled.collect();
        *self.samples.gpus() = labelled;
    }
}

impl fmt::Debug for GpuMetrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GpuMetrics").finish_non_exhaustive()
    }
}

impl Samples {
    fn gpus(&self) -> MutexGuard<'_, Vec<(GpuSample, String)>> {
        self.gpus.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A metric of all GPUs.
struct GpuGauge {
    samples: Arc<Samples>,
    number: fn(&GpuSample) -> Option<Number>,
}

impl Family for GpuGauge {
    fn kind(&self) -> Kind {
        Kind::Gauge
    }

    fn shape(&self) -> Shape {
        Shape::with_labels(vec![LabelDescription::open("gpu")])
    }

    fn visit(&self, each: &mut dyn FnMut(&Series<'_>)) {
        for (gpu, closed) in &*self.samples.gpus() {
            let Some(number) = (self.number)(gpu) else {
                continue;
            };
            each(&Series {
                open: "",
                closed,
                attributes: None,
                value: Value::Gauge(number),
            });
        }
    }
}
