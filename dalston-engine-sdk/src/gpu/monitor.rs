//! Looking at the GPUs from time to time, and more often while tasks run.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::RecvTimeoutError;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use dalston_telemetry::metrics::{GpuMetrics, GpuSeen, Metrics};

use super::nvml::Driver;
use super::{Gpu, GpuError, GpuMemory, PATIENCE, nvidia_driver_present, present};

/// How often memory is looked at while a task runs whose peak is wanted.
const SAMPLE: Duration = Duration::from_millis(250);
/// Between two looks, however many tasks begin.
const SHORTEST_PAUSE: Duration = Duration::from_millis(20);

/// Keeps gauges of the GPUs up to date while it lives.
///
/// They are [`GpuMetrics`]. While the driver does not answer there are no series.
pub struct GpuMonitor {
    reading: GpuReading,
}

impl GpuMonitor {
    /// Asks the driver every `interval` from a thread of its own; `None` on a machine without one.
    #[must_use = "dropping the monitor stops it"]
    pub fn start(metrics: &Metrics, interval: Duration) -> Option<Self> {
        Self::start_reading(metrics, interval, GpuReading::default())
    }

    /// As [`start`](Self::start), and leaves what it found for whoever asks.
    pub(crate) fn start_reading(metrics: &Metrics, interval: Duration, reading: GpuReading) -> Option<Self> {
        // Whoever else looks at the same time does it for all.
        if !nvidia_driver_present() || reading.watched().wake.is_some() {
            return None;
        }
        Self::start_with(Driver::of_the_machine(), metrics, interval, PATIENCE, reading)
    }

    pub(super) fn start_with(
        driver: Driver,
        metrics: &Metrics,
        interval: Duration,
        patience: Duration,
        reading: GpuReading,
    ) -> Option<Self> {
        let (wake, woken) = mpsc::sync_channel(1);
        reading.watched().wake = Some(wake);
        let watch = Watch {
            driver,
            gauges: GpuMetrics::register(metrics),
            interval,
            patience,
            reading: reading.clone(),
            complaint: None,
        };
        match thread::Builder::new()
            .name("dalston-gpu".to_owned())
            .spawn(move || watch.until_left(&woken))
        {
            Ok(_) => Some(Self { reading }),
            Err(error) => {
                tracing::warn!(%error, "gpu_metrics_unavailable");
                None
            }
        }
    }
}

impl Drop for GpuMonitor {
    fn drop(&mut self) {
        // Ends the thread, which may be waiting for the driver: it is not waited for.
        self.reading.watched().wake = None;
    }
}

impl fmt::Debug for GpuMonitor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GpuMonitor").finish_non_exhaustive()
    }
}

/// The thread of a monitor.
struct Watch {
    driver: Driver,
    gauges: GpuMetrics,
    interval: Duration,
    patience: Duration,
    reading: GpuReading,
    /// What was last said against the driver.
    complaint: Option<GpuError>,
}

impl Watch {
    fn until_left(mut self, woken: &mpsc::Receiver<()>) {
        let mut looked: Option<Instant> = None;
        loop {
            let is_watched = self.reading.is_watched();
            if looked.is_none_or(|looked| looked.elapsed() >= self.interval) {
                self.look();
                looked = Some(Instant::now());
            } else if is_watched && self.reading.memory().is_some() {
                self.sample();
            }
            let pause = match is_watched {
                true => self.interval.min(SAMPLE),
                false => self.interval,
            };
            thread::sleep(SHORTEST_PAUSE.min(pause));
            match woken.recv_timeout(pause.saturating_sub(SHORTEST_PAUSE)) {
                Ok(()) | Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        self.gauges.seen([]);
        self.reading.set(None);
    }

    /// Everything, for the gauges.
    fn look(&mut self) {
        let each = self.driver.gpus(self.patience);
        let lost = match &each {
            Ok(each) => each.iter().find_map(|gpu| gpu.as_ref().err()).cloned(),
            Err(error) => Some(error.clone()),
        };
        if let Some(error) = &lost
            && self.complaint.as_ref() != Some(error)
        {
            tracing::warn!(%error, "gpu_metrics_unavailable");
        }
        self.complaint = lost;
        let gpus = each.and_then(present).unwrap_or_default();
        self.gauges.seen(gpus.iter().map(shown));
        match gpus.is_empty() {
            true => self.reading.set(None),
            false => self.sample(),
        }
    }

    /// Only the memory, for the tasks.
    fn sample(&self) {
        self.reading.set(self.driver.memory(self.patience).ok());
    }
}

fn shown(gpu: &Gpu) -> GpuSeen {
    GpuSeen {
        index: gpu.index,
        memory_used: gpu.memory_used,
        memory_total: gpu.memory_total,
        utilization: gpu.utilization,
        power_watts: gpu.power_watts,
        temperature_celsius: gpu.temperature_celsius,
    }
}

/// The last thing that a monitor saw. Clones share it.
#[derive(Debug, Clone, Default)]
pub(crate) struct GpuReading(Arc<Mutex<Watched>>);

#[derive(Debug, Default)]
struct Watched {
    memory: Option<GpuMemory>,
    /// Closing it ends the monitor; there is none without it.
    wake: Option<mpsc::SyncSender<()>>,
    /// Who wants to know the most that was seen since they came.
    peaks: Vec<Weak<AtomicU64>>,
}

impl GpuReading {
    pub(crate) fn memory(&self) -> Option<GpuMemory> {
        self.watched().memory
    }

    /// Begins to look for the most memory that is in use, from now on. `None` if nobody looks at all.
    pub(crate) fn watch_peak(&self) -> Option<PeakMemory> {
        let mut watched = self.watched();
        let wake = watched.wake.clone()?;
        let peak = Arc::new(AtomicU64::new(0));
        watched.peaks.push(Arc::downgrade(&peak));
        // It may be awake already.
        let _ = wake.try_send(());
        Some(PeakMemory(peak))
    }

    pub(super) fn is_watched(&self) -> bool {
        let mut watched = self.watched();
        watched.peaks.retain(|peak| peak.strong_count() > 0);
        !watched.peaks.is_empty()
    }

    fn set(&self, memory: Option<GpuMemory>) {
        let mut watched = self.watched();
        watched.memory = memory;
        if let Some(memory) = memory {
            for peak in watched.peaks.iter().filter_map(Weak::upgrade) {
                peak.fetch_max(memory.used, Ordering::Relaxed);
            }
        }
    }

    fn watched(&self) -> MutexGuard<'_, Watched> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The most GPU memory that was seen in use since somebody began to [watch](GpuReading::watch_peak).
#[derive(Debug)]
pub(crate) struct PeakMemory(Arc<AtomicU64>);

impl PeakMemory {
    /// In bytes, counted as [`GpuMemory::used`]; `None` if nobody could look in that time.
    pub(crate) fn bytes(&self) -> Option<u64> {
        Some(self.0.load(Ordering::Relaxed)).filter(|bytes| *bytes > 0)
    }
}
