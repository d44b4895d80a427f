//! The machine's GPUs, as the NVIDIA driver sees them: what they are, and their memory and utilisation as metrics.
//!
//! Asked of `nvidia-smi`, which comes with the driver, as the platform's other engines do: it answers also when an engine
//! cannot use the GPU, which is when one wants to know, and it counts the memory of all processes.

use std::fmt;
use std::io::Read;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::Duration;

use dalston_telemetry::metrics::Metrics;
use dalston_telemetry::metrics::Registry;
use dalston_telemetry::metrics::prometheus_client::metrics::family::Family;
use dalston_telemetry::metrics::prometheus_client::metrics::gauge::Gauge;

/// A broken driver makes `nvidia-smi` hang rather than fail.
const PATIENCE: Duration = Duration::from_secs(5);
const FIELDS: &str = "index,name,memory.used,memory.total,utilization.gpu,driver_version,compute_cap";

/// One GPU, as the NVIDIA driver sees it at this moment.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Gpu {
    /// The driver's number for it. CUDA counts the same way unless `CUDA_VISIBLE_DEVICES` or `CUDA_DEVICE_ORDER` says
    /// otherwise.
    pub index: usize,
    /// For example `NVIDIA L4`.
    pub name: String,
    /// Memory in use by all processes, in bytes.
    pub memory_used: u64,
    /// Memory of the device, in bytes.
    pub memory_total: u64,
    /// Share of the last sample period in which at least one kernel ran, from 0 to 1; `None` where the driver does not
    /// tell, as on a partitioned GPU.
    pub utilization: Option<f64>,
    /// Version of the driver.
    pub driver_version: String,
    /// CUDA compute capability, for example `8.9`.
    pub compute_capability: String,
}

/// How much memory of a GPU is in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct GpuMemory {
    /// In use, in bytes: by this process where the driver tells it apart from others, else by all processes on the first GPU.
    /// In a container it usually can't, because the numbers of processes differ inside.
    pub used: u64,
    /// Memory of the first GPU, in bytes.
    pub total: u64,
}

/// Asks the driver for its GPUs, waiting at most five seconds.
///
/// # Errors
///
/// Says in one line why it cannot tell, for example that there is no `nvidia-smi`.
pub fn gpus() -> Result<Vec<Gpu>, GpuError> {
    let query = format!("--query-gpu={FIELDS}");
    let output = run("nvidia-smi", &[&query, "--format=csv,noheader,nounits"], PATIENCE)?;
    parse(&output)
}

/// Whether an NVIDIA driver is at work on this machine, told from the files it makes, without loading anything.
#[must_use]
pub fn nvidia_driver_present() -> bool {
    driver_present_under(Path::new("/"))
}

/// Keeps gauges of the GPUs' memory and utilisation up to date while it lives.
///
/// | Metric | Label | Meaning |
/// |---|---|---|
/// | `dalston_engine_gpu_memory_used_bytes` | `gpu` | Memory in use by all processes |
/// | `dalston_engine_gpu_memory_total_bytes` | `gpu` | Memory of the device |
/// | `dalston_engine_gpu_utilization_ratio` | `gpu` | Share of the driver's last sample period in which a kernel ran |
///
/// The label is the driver's number for the GPU. While the driver does not answer there are no series: an old value would
/// look like a new one.
pub struct GpuMonitor {
    /// Closing it ends the thread.
    _stop: mpsc::Sender<()>,
}

impl GpuMonitor {
    /// Asks the driver every `interval` from a thread of its own; `None` on a machine without one.
    #[must_use = "dropping the monitor stops it"]
    pub fn start(metrics: &Metrics, interval: Duration) -> Option<Self> {
        if !nvidia_driver_present() {
            return None;
        }
        Self::start_with(metrics, interval, GpuReading::default(), gpus)
    }

    /// As [`start`](Self::start), and leaves what it found for whoever asks.
    pub(crate) fn start_reading(metrics: &Metrics, interval: Duration, reading: GpuReading) -> Option<Self> {
        if !nvidia_driver_present() {
            return None;
        }
        Self::start_with(metrics, interval, reading, gpus)
    }

    fn start_with(
        metrics: &Metrics,
        interval: Duration,
        reading: GpuReading,
        mut ask: impl FnMut() -> Result<Vec<Gpu>, GpuError> + Send + 'static,
    ) -> Option<Self> {
        let gauges = metrics.set(Gauges::register);
        let (stop, stopped) = mpsc::channel();
        let watch = move || {
            let mut answering = true;
            let mut shown = Vec::new();
            loop {
                let answer = ask();
                if let Err(error) = &answer
                    && answering
                {
                    tracing::warn!(%error, "gpu_metrics_unavailable");
                }
                answering = answer.is_ok();
                let gpus = answer.unwrap_or_default();
                reading.set(&gpus, own_memory);
                let series: Vec<_> = gpus
                    .iter()
                    .map(|gpu| (gpu.index, gpu.utilization.is_some()))
                    .collect();
                // Only then, so that a scrape at this moment does not miss series that stay.
                if series != shown {
                    gauges.clear();
                }
                shown = series;
                gauges.set(&gpus);
                if !matches!(
                    stopped.recv_timeout(interval),
                    Err(mpsc::RecvTimeoutError::Timeout)
                ) {
                    gauges.clear();
                    reading.set(&[], || None);
                    return;
                }
            }
        };
        match std::thread::Builder::new()
            .name("dalston-gpu".to_owned())
            .spawn(watch)
        {
            Ok(_) => Some(Self { _stop: stop }),
            Err(error) => {
                tracing::warn!(%error, "gpu_metrics_unavailable");
                None
            }
        }
    }
}

impl fmt::Debug for GpuMonitor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GpuMonitor").finish_non_exhaustive()
    }
}

/// The last thing that a monitor saw. Clones share it.
#[derive(Debug, Clone, Default)]
pub(crate) struct GpuReading(Arc<Mutex<Option<GpuMemory>>>);

impl GpuReading {
    pub(crate) fn memory(&self) -> Option<GpuMemory> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, gpus: &[Gpu], own: impl FnOnce() -> Option<u64>) {
        let memory = gpus.first().map(|first| GpuMemory {
            used: own().unwrap_or(first.memory_used),
            total: first.memory_total,
        });
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = memory;
    }
}

/// Why the driver's view of the GPUs cannot be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GpuError {
    /// The program could not be started: usually no NVIDIA driver is installed.
    #[error("nvidia-smi cannot be started: {0}")]
    Start(#[source] std::io::Error),
    /// It did not answer.
    #[error("nvidia-smi gave no answer within {0:?}; the driver may be stuck")]
    Timeout(Duration),
    /// It answered with an error.
    #[error("nvidia-smi failed: {0}")]
    Failed(String),
    /// It answered something else than it was asked for.
    #[error("nvidia-smi answered \"{0}\": expected one line for each GPU with {FIELDS}")]
    Answer(String),
}

type GpuLabel = [(&'static str, String); 1];
type FloatGauge = Gauge<f64, AtomicU64>;

#[derive(Clone)]
struct Gauges {
    used: Family<GpuLabel, Gauge>,
    total: Family<GpuLabel, Gauge>,
    utilization: Family<GpuLabel, FloatGauge>,
}

impl Gauges {
    fn register(registry: &mut Registry) -> Self {
        let gauges = Self {
            used: Family::default(),
            total: Family::default(),
            utilization: Family::default(),
        };
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
        gauges
    }

    fn clear(&self) {
        self.used.clear();
        self.total.clear();
        self.utilization.clear();
    }

    fn set(&self, gpus: &[Gpu]) {
        for gpu in gpus {
            let label = [("gpu", gpu.index.to_string())];
            let bytes = |bytes| i64::try_from(bytes).unwrap_or(i64::MAX);
            self.used.get_or_create(&label).set(bytes(gpu.memory_used));
            self.total.get_or_create(&label).set(bytes(gpu.memory_total));
            if let Some(utilization) = gpu.utilization {
                self.utilization.get_or_create(&label).set(utilization);
            }
        }
    }
}

fn driver_present_under(root: &Path) -> bool {
    // The last two are how Windows hands its driver to Linux programs.
    [
        "dev/nvidiactl",
        "dev/nvidia0",
        "proc/driver/nvidia/version",
        "dev/dxg",
        "usr/lib/wsl/lib/libcuda.so.1",
    ]
    .iter()
    .any(|path| root.join(path).exists())
}

fn run(program: &str, arguments: &[&str], patience: Duration) -> Result<String, GpuError> {
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(GpuError::Start)?;
    let Some(mut stdout) = child.stdout.take() else {
        return Err(GpuError::Failed("its output is not readable".to_owned()));
    };
    let (sender, receiver) = mpsc::sync_channel(1);
    std::thread::spawn(move || {
        let mut text = String::new();
        let read = stdout.read_to_string(&mut text);
        let _ = sender.send(read.map(|_| text));
    });
    let answer = receiver.recv_timeout(patience);
    if answer.is_err() {
        // Past its time. Killing it ends the reading thread, too.
        let _ = child.kill();
    }
    let status = child.wait();
    match (answer, status) {
        (Err(_), _) => Err(GpuError::Timeout(patience)),
        (Ok(Err(error)), _) | (_, Err(error)) => Err(GpuError::Failed(error.to_string())),
        // It writes its errors to standard output.
        (Ok(Ok(text)), Ok(status)) if !status.success() => Err(GpuError::Failed(
            text.lines()
                .next()
                .map_or_else(|| status.to_string(), str::to_owned),
        )),
        (Ok(Ok(text)), Ok(_)) => Ok(text),
    }
}

/// GPU memory of this process in bytes, over all GPUs, if the driver knows the process.
fn own_memory() -> Option<u64> {
    let query = "--query-compute-apps=pid,used_gpu_memory";
    let output = run("nvidia-smi", &[query, "--format=csv,noheader,nounits"], PATIENCE).ok()?;
    memory_of(std::process::id(), &output)
}

fn memory_of(process: u32, text: &str) -> Option<u64> {
    let uses = text.lines().filter_map(|line| {
        let (id, used) = line.split_once(',')?;
        let ours = id.trim().parse() == Ok(process);
        ours.then(|| used.trim().parse::<u64>().ok()?.checked_mul(1 << 20))
    });
    // One use that is not known makes the sum unknown.
    uses.reduce(|sum, used| sum?.checked_add(used?)).flatten()
}

fn parse(text: &str) -> Result<Vec<Gpu>, GpuError> {
    text.lines()
        .filter(|line| !line.trim().is_empty())
        .map(|line| parse_line(line).ok_or_else(|| GpuError::Answer(line.to_owned())))
        .collect()
}

fn parse_line(line: &str) -> Option<Gpu> {
    let fields: Vec<&str> = line.split(',').map(str::trim).collect();
    let [index, name, used, total, utilization, driver, capability] = fields.as_slice() else {
        return None;
    };
    let mebibytes = |text: &str| text.parse::<u64>().ok()?.checked_mul(1 << 20);
    Some(Gpu {
        index: index.parse().ok()?,
        name: (*name).to_owned(),
        memory_used: mebibytes(used)?,
        memory_total: mebibytes(total)?,
        utilization: utilization.parse::<f64>().ok().map(|percent| percent / 100.0),
        driver_version: (*driver).to_owned(),
        compute_capability: (*capability).to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[test]
    fn each_line_is_a_gpu() {
        let answer =
            "0, NVIDIA L4, 1024, 23034, 37, 550.54.15, 8.9\n1, NVIDIA L4, 3, 23034, [N/A], 550.54.15, 8.9\n";

        let gpus = parse(answer).unwrap();

        let first = Gpu {
            index: 0,
            name: "NVIDIA L4".to_owned(),
            memory_used: 1 << 30,
            memory_total: 23034 << 20,
            utilization: Some(0.37),
            driver_version: "550.54.15".to_owned(),
            compute_capability: "8.9".to_owned(),
        };
        let second = Gpu {
            index: 1,
            memory_used: 3 << 20,
            utilization: None,
            ..first.clone()
        };
        assert_eq!(gpus, [first, second]);
    }

    #[test]
    fn a_driver_shows_by_the_files_it_makes() {
        let root = tempfile::tempdir().unwrap();
        assert!(!driver_present_under(root.path()));

        std::fs::create_dir(root.path().join("dev")).unwrap();
        std::fs::write(root.path().join("dev/nvidiactl"), "").unwrap();
        assert!(driver_present_under(root.path()));
    }

    #[test]
    fn gauges_follow_the_driver_and_vanish_when_it_falls_silent() {
        let metrics = Metrics::new();
        let (asked, was_asked) = mpsc::channel();
        let (answer, answers) = mpsc::channel();
        let ask = move || {
            asked.send(()).unwrap();
            answers.recv().unwrap_or(Err(GpuError::Timeout(PATIENCE)))
        };
        let reading = GpuReading::default();
        let monitor =
            GpuMonitor::start_with(&metrics, Duration::from_millis(1), reading.clone(), ask).unwrap();

        // When it asks for the second time, the first answer is in place.
        was_asked.recv().unwrap();
        answer
            .send(parse("0, NVIDIA L4, 1024, 23034, 37, 550.54.15, 8.9\n"))
            .unwrap();
        was_asked.recv().unwrap();
        let text = metrics.encode();
        assert!(
            text.contains("dalston_engine_gpu_memory_used_bytes{gpu=\"0\"} 1073741824\n"),
            "{text}"
        );
        assert!(
            text.contains("dalston_engine_gpu_memory_total_bytes{gpu=\"0\"} 24152899584\n"),
            "{text}"
        );
        assert!(
            text.contains("dalston_engine_gpu_utilization_ratio{gpu=\"0\"} 0.37\n"),
            "{text}"
        );

        let memory = GpuMemory {
            used: 1 << 30,
            total: 23034 << 20,
        };
        assert_eq!(reading.memory(), Some(memory));

        answer.send(Err(GpuError::Timeout(PATIENCE))).unwrap();
        was_asked.recv().unwrap();
        assert!(!metrics.encode().contains("gpu=\"0\""));
        assert_eq!(reading.memory(), None);
        drop((answer, monitor));
    }

    #[test]
    fn a_process_uses_what_the_driver_says_of_it_on_all_gpus() {
        let answer = "77, 512\n4242, 1024\n4242, 2\n9, [N/A]\n";
        assert_eq!(memory_of(4242, answer), Some(1026 << 20));
        assert_eq!(memory_of(9, answer), None);
        assert_eq!(memory_of(1, answer), None);
        assert_eq!(memory_of(1, "No running processes found\n"), None);
    }

    #[test]
    fn an_answer_in_another_form_is_shown() {
        let error = parse("No devices were found\n").unwrap_err();
        assert!(error.to_string().contains("No devices were found"), "{error}");
    }

    #[test]
    fn a_program_that_hangs_is_given_up() {
        let started = Instant::now();

        let error = run("sleep", &["60"], Duration::from_millis(50)).unwrap_err();

        assert!(matches!(error, GpuError::Timeout(_)), "{error}");
        assert!(started.elapsed() < Duration::from_secs(30));
    }

    #[test]
    fn a_program_that_fails_or_is_missing_is_reported() {
        let failed = run("sh", &["-c", "echo the driver is gone; exit 9"], PATIENCE).unwrap_err();
        assert_eq!(failed.to_string(), "nvidia-smi failed: the driver is gone");

        let missing = run("/nonexistent/nvidia-smi", &[], PATIENCE).unwrap_err();
        assert!(matches!(missing, GpuError::Start(_)), "{missing}");
    }
}
