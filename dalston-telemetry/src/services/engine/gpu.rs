use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::metrics::label_text::push_label;
use crate::metrics::series::{Family, Kind, Number, Series, Value};
use crate::metrics::shape::{LabelDescription, Shape};
use crate::metrics::{Metrics, Unit};

/// The GPUs of a machine, as somebody found them: the SDK's `GpuMonitor` is who looks.
///
/// | Metric, by `gpu` | |
/// |---|---|
/// | `dalston_engine_gpu_memory_used_bytes` | memory in use by all processes |
/// | `dalston_engine_gpu_memory_total_bytes` | memory of the device |
/// | `dalston_engine_gpu_utilization_ratio` | share of the driver's last sample period in which a kernel ran, from 0 to 1 |
/// | `dalston_engine_gpu_power_watts` | what the device draws |
/// | `dalston_engine_gpu_temperature_celsius` | temperature of the chip |
///
/// There are no series of a GPU that was not seen the last time, and none of what the driver did not tell: an old value would look
/// like a new one. Unlike other metrics, these are one set of a registry with one source. Cheap to clone.
#[derive(Clone)]
pub struct GpuMetrics {
    board: Arc<Board>,
}

/// What was found of one GPU.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct GpuSeen {
    /// The driver's number for it.
    pub index: usize,
    /// Memory in use by all processes, in bytes.
    pub memory_used: u64,
    /// Memory of the device, in bytes.
    pub memory_total: u64,
    /// From 0 to 1.
    pub utilization: Option<f64>,
    /// In watts.
    pub power_watts: Option<f64>,
    /// In degrees Celsius.
    pub temperature_celsius: Option<f64>,
}

#[derive(Default)]
struct Board {
    /// With the label as it stands in a line.
    gpus: Mutex<Vec<(GpuSeen, String)>>,
}

impl GpuMetrics {
    /// The handles in this registry; registered when first asked for.
    #[must_use]
    pub fn register(metrics: &Metrics) -> Self {
        metrics.set(|registry| {
            let board = Arc::<Board>::default();
            let gauge = |number| View {
                board: board.clone(),
                number,
            };
            let mut registry = registry.with_prefix("dalston_engine_gpu");
            registry.register_with_unit(
                "memory_used",
                "Memory of the GPU in use by all processes",
                Unit::Bytes,
                gauge(|gpu| Some(Number::Whole(gpu.memory_used))),
            );
            registry.register_with_unit(
                "memory_total",
                "Memory of the GPU",
                Unit::Bytes,
                gauge(|gpu| Some(Number::Whole(gpu.memory_total))),
            );
            registry.register_with_unit(
                "utilization",
                "Share of the driver's last sample period in which a kernel ran",
                Unit::Ratio,
                gauge(|gpu| gpu.utilization.map(Number::Real)),
            );
            registry.register(
                "power_watts",
                "What the GPU draws",
                gauge(|gpu| gpu.power_watts.map(Number::Real)),
            );
            registry.register(
                "temperature_celsius",
                "Temperature of the GPU's chip",
                gauge(|gpu| gpu.temperature_celsius.map(Number::Real)),
            );
            Self { board }
        })
    }

    /// Shows these GPUs, in this order, and no others. Of two with the same number, Prometheus refuses the whole scrape.
    pub fn seen(&self, gpus: impl IntoIterator<Item = GpuSeen>) {
        let labelled = gpus.into_iter().map(|gpu| {
            let mut text = String::new();
            push_label(&mut text, "gpu", &gpu.index.to_string());
            (gpu, text)
        });
        let labelled = labelled.collect();
        *self.board.gpus() = labelled;
    }
}

impl fmt::Debug for GpuMetrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GpuMetrics").finish_non_exhaustive()
    }
}

impl Board {
    fn gpus(&self) -> MutexGuard<'_, Vec<(GpuSeen, String)>> {
        self.gpus.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One metric of the board.
struct View {
    board: Arc<Board>,
    number: fn(&GpuSeen) -> Option<Number>,
}

impl Family for View {
    fn kind(&self) -> Kind {
        Kind::Gauge
    }

    fn shape(&self) -> Shape {
        Shape::with_labels(vec![LabelDescription::open("gpu")])
    }

    fn visit(&self, each: &mut dyn FnMut(&Series<'_>)) {
        for (gpu, closed) in &*self.board.gpus() {
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
