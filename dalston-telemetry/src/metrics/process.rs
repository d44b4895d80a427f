//! Figures of the process under the names of Prometheus' clients. Linux only: elsewhere the
//! families have no series.

use super::Metrics;
use super::registry::{Registry, Unit};
use super::series::{Family, Kind, Number, Series, Value};
use super::shape::Shape;

/// The names of the figures begin with this.
pub(super) const PREFIX: &str = "process_";

/// Registers `process_cpu_seconds_total`, `process_resident_memory_bytes`,
/// `process_virtual_memory_bytes`, `process_start_time_seconds`, `process_open_fds` and
/// `process_max_fds`.
pub(crate) fn register(metrics: &Metrics) {
    metrics.set(|registry: &mut Registry| {
        for (name, help, unit, figure) in FIGURES {
            let name = format!("{PREFIX}{name}");
            match unit {
                Some(unit) => registry.register_with_unit(&name, help, unit, figure),
                None => registry.register(&name, help, figure),
            }
        }
        Registered
    });
}

/// Marks that the figures are registered.
#[derive(Clone)]
struct Registered;

const FIGURES: [(&str, &str, Option<Unit>, Figure); 6] = [
    (
        "cpu",
        "User and system CPU time of the process",
        Some(Unit::Seconds),
        Figure::Cpu,
    ),
    (
        "resident_memory",
        "Memory of the process that is in RAM",
        Some(Unit::Bytes),
        Figure::ResidentMemory,
    ),
    (
        "virtual_memory",
        "Address space of the process",
        Some(Unit::Bytes),
        Figure::VirtualMemory,
    ),
    (
        "start_time",
        "Start of the process, in seconds since 1970",
        Some(Unit::Seconds),
        Figure::StartTime,
    ),
    ("open_fds", "Open file descriptors", None, Figure::OpenFds),
    ("max_fds", "Limit of open file descriptors", None, Figure::MaxFds),
];

#[derive(Clone, Copy, Debug)]
enum Figure {
    Cpu,
    ResidentMemory,
    VirtualMemory,
    StartTime,
    OpenFds,
    MaxFds,
}

impl Family for Figure {
    fn kind(&self) -> Kind {
        match self {
            Self::Cpu => Kind::Counter,
            _ => Kind::Gauge,
        }
    }

    fn shape(&self) -> Shape {
        Shape::default()
    }

    fn visit(&self, each: &mut dyn FnMut(&Series<'_>)) {
        // A figure that can't be read is absent.
        let Some(number) = self.read() else { return };
        let value = match self {
            Self::Cpu => Value::Counter(number, None),
            _ => Value::Gauge(number),
        };
        each(&Series {
            open: "",
            closed: "",
            attributes: None,
            value,
        });
    }
}

#[cfg(target_os = "linux")]
impl Figure {
    fn read(self) -> Option<Number> {
        use procfs::process::{LimitValue, Process};

        let process = Process::myself().ok()?;
        let ticks = |ticks: u64| ticks as f64 / procfs::ticks_per_second() as f64;
        Some(match self {
            Self::Cpu => {
                let stat = process.stat().ok()?;
                Number::Real(ticks(stat.utime + stat.stime))
            }
            Self::ResidentMemory => {
                let pages = process.stat().ok()?.rss;
                Number::Whole(pages.saturating_mul(procfs::page_size()))
            }
            Self::VirtualMemory => Number::Whole(process.stat().ok()?.vsize),
            Self::StartTime => {
                let booted = procfs::boot_time_secs().ok()?;
                Number::Real(booted as f64 + ticks(process.stat().ok()?.starttime))
            }
            Self::OpenFds => Number::Whole(u64::try_from(process.fd_count().ok()?).ok()?),
            Self::MaxFds => match process.limits().ok()?.max_open_files.soft_limit {
                LimitValue::Value(limit) => Number::Whole(limit),
                LimitValue::Unlimited => return None,
            },
        })
    }
}

#[cfg(not(target_os = "linux"))]
impl Figure {
    fn read(self) -> Option<Number> {
        None
    }
}

#[cfg(test)]
#[cfg(target_os = "linux")]
mod tests {
    use std::fs::File;
    use std::time::{Instant, SystemTime, UNIX_EPOCH};

    use super::*;

    fn value(metrics: &Metrics, name: &str) -> f64 {
        metrics.snapshot().value(name, &[]).unwrap()
    }

    #[test]
    fn figures_are_those_of_this_process() {
        let metrics = Metrics::new();
        register(&metrics);
        // The second call of a process must not register them again.
        register(&metrics);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        let age = now.as_secs_f64() - value(&metrics, "process_start_time_seconds");
        assert!((-2.0..3600.0).contains(&age), "{age}");
        let resident = value(&metrics, "process_resident_memory_bytes");
        assert!(resident > 1e6, "{resident}");
        assert!(value(&metrics, "process_virtual_memory_bytes") >= resident);
        assert!(value(&metrics, "process_max_fds") >= value(&metrics, "process_open_fds"));
    }

    #[test]
    fn work_and_open_files_are_counted() {
        let metrics = Metrics::new();
        register(&metrics);
        let before = value(&metrics, "process_cpu_seconds_total");
        let open = value(&metrics, "process_open_fds");
        let files: Vec<File> = (0..100).map(|_| File::open("/dev/null").unwrap()).collect();
        // Other tests of the process open and close files meanwhile.
        assert!(value(&metrics, "process_open_fds") > open + 50.0);
        drop(files);
        let started = Instant::now();
        while value(&metrics, "process_cpu_seconds_total") < before + 0.05 {
            assert!(started.elapsed().as_secs() < 60, "no CPU time is counted");
        }
    }

    #[test]
    fn figures_are_no_change_that_a_task_has_made() {
        let metrics = Metrics::new();
        register(&metrics);
        let before = metrics.snapshot();
        let _file = File::open("/dev/null").unwrap();
        assert_eq!(metrics.snapshot().diff(&before), []);
    }
}
