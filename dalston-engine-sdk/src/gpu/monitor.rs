//! Reads the GPUs periodically, and more often while tasks run.
//!
//! The peak memory of a task is sampled from the driver, because `tch` can't read the peak of
//! libtorch's allocator. libtorch returns little memory to the driver, so a short peak is still
//! visible at the next sample. The figure is that of the whole process, which decides whether
//! another process fits.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::RecvTimeoutError;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use dalston_telemetry::metrics::Metrics;
use dalston_telemetry::services::engine::{GpuMetrics, GpuSample};

use super::device::{Gpu, GpuMemory};
use super::error::GpuError;
use super::nvml::{ANSWER_TIMEOUT, Driver, nvidia_driver_present};

/// How often memory is read while the peak of a task is measured.
const SAMPLE_INTERVAL: Duration = Duration::from_millis(250);
/// The least time between two reads, however many tasks begin.
const SHORTEST_PAUSE: Duration = Duration::from_millis(20);

/// Keeps the [`GpuMetrics`] up to date while it lives. While the driver does not answer there are
/// no series.
pub(crate) struct GpuMonitor {
    reading: GpuReading,
}

impl GpuMonitor {
    /// Reads the driver every `interval` on a thread of its own, and shares the results through
    /// `reading`.
    ///
    /// `None` on a machine without a driver, and if another monitor already writes to `reading`.
    #[must_use = "dropping the monitor stops it"]
    pub(crate) fn start(metrics: &Metrics, interval: Duration, reading: GpuReading) -> Option<Self> {
        if !nvidia_driver_present() || reading.state().wake_up.is_some() {
            return None;
        }
        Self::start_with(
            Driver::of_the_machine(),
            metrics,
            interval,
            ANSWER_TIMEOUT,
            reading,
        )
    }

    pub(super) fn start_with(
        driver: Driver,
        metrics: &Metrics,
        interval: Duration,
        answer_timeout: Duration,
        reading: GpuReading,
    ) -> Option<Self> {
        let (wake_up, wake_ups) = mpsc::sync_channel(1);
        reading.state().wake_up = Some(wake_up);
        let sampler = Sampler {
            driver,
            gauges: GpuMetrics::register(metrics),
            interval,
            answer_timeout,
            reading: reading.clone(),
            last_error: None,
        };
        match thread::Builder::new()
            .name("dalston-gpu".to_owned())
            .spawn(move || sampler.run(&wake_ups))
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
        // Ends the thread. It may wait for the driver, so it is not joined.
        self.reading.state().wake_up = None;
    }
}

/// The thread of a monitor.
struct Sampler {
    driver: Driver,
    gauges: GpuMetrics,
    interval: Duration,
    answer_timeout: Duration,
    reading: GpuReading,
    /// The error that was logged last.
    last_error: Option<GpuError>,
}

impl Sampler {
    /// Reads until the monitor is dropped.
    fn run(mut self, wake_ups: &mpsc::Receiver<()>) {
        let mut updated: Option<Instant> = None;
        loop {
            let measures_peak = self.reading.measures_peak();
            if updated.is_none_or(|updated| updated.elapsed() >= self.interval) {
                self.update_gauges();
                updated = Some(Instant::now());
            } else if measures_peak && self.reading.memory().is_some() {
                self.sample_memory();
            }
            let pause = match measures_peak {
                true => self.interval.min(SAMPLE_INTERVAL),
                false => self.interval,
            };
            thread::sleep(SHORTEST_PAUSE.min(pause));
            match wake_ups.recv_timeout(pause.saturating_sub(SHORTEST_PAUSE)) {
                Ok(()) | Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        self.gauges.update([]);
        self.reading.set(None);
    }

    fn update_gauges(&mut self) {
        let each = self.driver.gpus(self.answer_timeout);
        let error = match &each {
            Ok(each) => each.iter().find_map(|gpu| gpu.as_ref().err()).cloned(),
            Err(error) => Some(error.clone()),
        };
        if let Some(error) = &error
            && self.last_error.as_ref() != Some(error)
        {
            tracing::warn!(%error, advice = "look at the output of nvidia-smi", "gpu_metrics_unavailable");
        }
        self.last_error = error;
        let gpus: Vec<Gpu> = each.into_iter().flatten().flatten().collect();
        self.gauges.update(gpus.iter().map(figures));
        match gpus.is_empty() {
            true => self.reading.set(None),
            false => self.sample_memory(),
        }
    }

    fn sample_memory(&self) {
        self.reading.set(self.driver.memory(self.answer_timeout).ok());
    }
}

fn figures(gpu: &Gpu) -> GpuSample {
    GpuSample {
        index: gpu.index,
        memory_used: gpu.memory_used,
        memory_total: gpu.memory_total,
        utilization: gpu.utilization,
        power_watts: gpu.power_watts,
        temperature_celsius: gpu.temperature_celsius,
    }
}

/// The memory that a monitor read last. Clones share it.
#[derive(Debug, Clone, Default)]
pub(crate) struct GpuReading(Arc<Mutex<ReadingState>>);

#[derive(Debug, Default)]
struct ReadingState {
    memory: Option<GpuMemory>,
    /// Wakes the monitor up. Dropping it ends the monitor; without a monitor it is `None`.
    wake_up: Option<mpsc::SyncSender<()>>,
    peaks: Vec<Weak<AtomicU64>>,
}

impl GpuReading {
    pub(crate) fn memory(&self) -> Option<GpuMemory> {
        self.state().memory
    }

    /// Starts to measure the peak of the memory in use. `None` without a monitor.
    pub(crate) fn watch_peak(&self) -> Option<PeakMemory> {
        let mut state = self.state();
        let wake_up = state.wake_up.clone()?;
        let peak = Arc::new(AtomicU64::new(0));
        state.peaks.push(Arc::downgrade(&peak));
        // A full channel already wakes it.
        let _ = wake_up.try_send(());
        Some(PeakMemory(peak))
    }

    pub(super) fn measures_peak(&self) -> bool {
        let mut state = self.state();
        state.peaks.retain(|peak| peak.strong_count() > 0);
        !state.peaks.is_empty()
    }

    fn set(&self, memory: Option<GpuMemory>) {
        let mut state = self.state();
        state.memory = memory;
        if let Some(memory) = memory {
            for peak in state.peaks.iter().filter_map(Weak::upgrade) {
                peak.fetch_max(memory.used, Ordering::Relaxed);
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, ReadingState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The peak of the GPU memory in use since [`GpuReading::watch_peak`].
#[derive(Debug)]
pub(crate) struct PeakMemory(Arc<AtomicU64>);

impl PeakMemory {
    /// In bytes, counted as [`GpuMemory::used`]. `None` if there was no sample in that time.
    pub(crate) fn bytes(&self) -> Option<u64> {
        Some(self.0.load(Ordering::Relaxed)).filter(|bytes| *bytes > 0)
    }
}
