use std::path::PathBuf;
use std::process::Command;
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use dalston_telemetry::metrics::Metrics;
use dalston_telemetry::services::engine::Device;
use dalston_telemetry::services::engine::spans::attr;
use dalston_telemetry::testing::TestTelemetry;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::nvml::{Driver, driver_present_under};
use super::*;
use crate::local::{LocalPlatform, LocalTask};
use crate::{Engine, EngineInfo, LoadContext, ModelId, Runner, Stage, TaskContext, TaskError, TaskRequest};

/// Longer than anything here takes.
const LONG: Duration = Duration::from_secs(60);

/// A library with the driver's functions, compiled from C for the test.
struct FakeDriver {
    directory: TempDir,
}

impl FakeDriver {
    fn new() -> Self {
        let this = Self {
            directory: tempfile::tempdir().unwrap(),
        };
        this.set_mode("");
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/src/gpu/fake_nvml.c");
        let status = Command::new("cc")
            .args(["-shared", "-fPIC", "-O1", "-w"])
            .arg(format!(
                "-DMODE=\"{}\"",
                this.directory.path().join("mode").display()
            ))
            .arg("-o")
            .arg(this.library())
            .arg(source)
            .status()
            .expect("a C compiler, which Rust also needs to link");
        assert!(status.success());
        this
    }

    fn library(&self) -> PathBuf {
        self.directory.path().join("libnvidia-ml.so.1")
    }

    /// Sets the behaviour from now on, see `fake_nvml.c`.
    fn set_mode(&self, mode: &str) {
        let (new, mode_file) = (
            self.directory.path().join("new"),
            self.directory.path().join("mode"),
        );
        std::fs::write(&new, mode).unwrap();
        std::fs::rename(new, mode_file).unwrap();
    }

    fn driver(&self) -> Driver {
        Driver::in_libraries([self.library()])
    }

    fn monitor(
        &self,
        metrics: &Metrics,
        interval: Duration,
        answer_timeout: Duration,
        reading: &GpuReading,
    ) -> GpuMonitor {
        GpuMonitor::start_with(self.driver(), metrics, interval, answer_timeout, reading.clone()).unwrap()
    }
}

impl Drop for FakeDriver {
    fn drop(&mut self) {
        self.set_mode("");
    }
}

fn l4(index: usize) -> Gpu {
    Gpu {
        index,
        name: "NVIDIA L4".to_owned(),
        memory_used: (index as u64 + 1) << 30,
        memory_total: 23034 << 20,
        utilization: Some(0.37),
        power_watts: Some(31.5),
        temperature_celsius: Some(41.0),
        driver_version: "550.54.15".to_owned(),
        compute_capability: "8.9".to_owned(),
    }
}

fn memory(used_mib: u64) -> GpuMemory {
    GpuMemory {
        used: used_mib << 20,
        total: 23034 << 20,
    }
}

fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < LONG, "{what}");
        thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn driver_library_lists_gpus() {
    let fake = FakeDriver::new();
    let driver = fake.driver();
    assert_eq!(driver.gpus(LONG), Ok(vec![Ok(l4(0)), Ok(l4(1))]));

    fake.set_mode("shy one");
    let shy = Gpu {
        utilization: None,
        power_watts: None,
        temperature_celsius: None,
        ..l4(0)
    };
    assert_eq!(driver.gpus(LONG), Ok(vec![Ok(shy)]));
}

#[test]
fn memory_of_own_process_is_preferred() {
    let fake = FakeDriver::new();
    let driver = fake.driver();
    assert_eq!(driver.memory(LONG), Ok(memory(1024)));
    // On both GPUs.
    fake.set_mode("own=300");
    assert_eq!(driver.memory(LONG), Ok(memory(600)));
    fake.set_mode("own=?");
    assert_eq!(driver.memory(LONG), Ok(memory(1024)));
}

#[test]
fn lost_gpu_is_named_and_others_stay() {
    let fake = FakeDriver::new();
    let driver = fake.driver();
    fake.set_mode("lost=0");
    let each = driver.gpus(LONG).unwrap();
    let lost = each[0].clone().unwrap_err().to_string();
    assert!(
        lost.starts_with("GPU 0 can't be read: device fell off the bus"),
        "{lost}"
    );
    assert_eq!(each[1], Ok(l4(1)));

    fake.set_mode("lost=all");
    let error = driver.gpus(LONG).unwrap_err().to_string();
    assert!(
        error.starts_with("the NVIDIA driver failed: device fell off the bus"),
        "{error}"
    );
    assert!(driver.memory(LONG).is_err());
    fake.set_mode("");
    assert_eq!(driver.memory(LONG), Ok(memory(1024)));
}

#[test]
fn mismatched_library_is_reported_and_loaded_again() {
    let fake = FakeDriver::new();
    fake.set_mode("mismatch");
    let driver = fake.driver();
    let error = driver.gpus(LONG).unwrap_err().to_string();
    assert_eq!(
        error,
        "the NVIDIA driver failed: RM detects a driver/library version mismatch"
    );
    fake.set_mode("one");
    assert_eq!(driver.gpus(LONG), Ok(vec![Ok(l4(0))]));
}

#[test]
fn replaced_driver_gets_its_new_library() {
    let fake = FakeDriver::new();
    let driver = fake.driver();
    assert_eq!(driver.memory(LONG), Ok(memory(1024)));
    fake.set_mode("since=2");
    driver.memory(LONG).unwrap_err();
    assert_eq!(driver.memory(LONG), Ok(memory(1024)));
}

#[test]
fn missing_or_invalid_library_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let library = directory.path().join("libnvidia-ml.so.1");
    for content in [None, Some("not a library")] {
        if let Some(content) = content {
            std::fs::write(&library, content).unwrap();
        }
        let error = Driver::in_libraries([&library]).gpus(LONG).unwrap_err();
        let GpuError::Load { library: named, .. } = &error else {
            panic!("{error:?}")
        };
        assert_eq!(*named, library.display().to_string());
        assert!(
            error.to_string().contains("NVIDIA_DRIVER_CAPABILITIES"),
            "{error}"
        );
    }
    // An older one, without the functions.
    let source = directory.path().join("empty.c");
    std::fs::write(&source, "int nothing;").unwrap();
    let built = Command::new("cc")
        .args(["-shared", "-o"])
        .arg(&library)
        .arg(source)
        .status();
    assert!(built.unwrap().success());
    let error = Driver::in_libraries([&library])
        .gpus(LONG)
        .unwrap_err()
        .to_string();
    assert!(error.contains("nvmlInit_v2"), "{error}");
}

#[test]
fn hanging_driver_times_out_and_recovers() {
    let fake = FakeDriver::new();
    let driver = fake.driver();
    assert_eq!(driver.memory(LONG), Ok(memory(1024)));
    fake.set_mode("hang");
    let limit = Duration::from_millis(10);
    let stuck = Err(GpuError::Timeout(limit));
    // More requests than may wait.
    for _ in 0..20 {
        assert_eq!(driver.memory(limit), stuck);
    }
    fake.set_mode("");
    until("the driver answers again", || {
        driver.memory(LONG) == Ok(memory(1024))
    });
}

#[test]
fn gauges_follow_driver_and_vanish_when_it_hangs() {
    let fake = FakeDriver::new();
    let (metrics, reading) = (Metrics::new(), GpuReading::default());
    let monitor = fake.monitor(
        &metrics,
        Duration::from_millis(1),
        Duration::from_millis(100),
        &reading,
    );
    let shown = || {
        let text = metrics.encode();
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        let mut lines: Vec<_> = lines.map(str::to_owned).collect();
        lines.sort();
        lines
    };
    let of_gpu = |index: u64| {
        let total = format!("dalston_engine_gpu_memory_total_bytes{{gpu=\"{index}\"}} 24152899584");
        let used = (index + 1) << 30;
        let used = format!("dalston_engine_gpu_memory_used_bytes{{gpu=\"{index}\"}} {used}");
        let power = format!("dalston_engine_gpu_power_watts{{gpu=\"{index}\"}} 31.5");
        let temperature = format!("dalston_engine_gpu_temperature_celsius{{gpu=\"{index}\"}} 41.0");
        let utilization = format!("dalston_engine_gpu_utilization_ratio{{gpu=\"{index}\"}} 0.37");
        [total, used, power, temperature, utilization]
    };
    let mut both: Vec<_> = [of_gpu(0), of_gpu(1)].concat();
    both.sort();
    until("both GPUs are shown", || shown() == both);
    until("memory is known", || reading.memory() == Some(memory(1024)));

    fake.set_mode("lost=1");
    until("only what is left is shown", || shown() == of_gpu(0));
    fake.set_mode("hang");
    until("nothing is shown", || {
        shown().is_empty() && reading.memory().is_none()
    });
    fake.set_mode("");
    until("both are shown again", || shown() == both);

    drop(monitor);
    until("nothing is left behind", || {
        shown().is_empty() && reading.memory().is_none()
    });
}

#[test]
fn peak_is_maximum_since_watch_began() {
    let fake = FakeDriver::new();
    fake.set_mode("own=5000");
    let (metrics, reading) = (Metrics::new(), GpuReading::default());
    // Without a monitor there is no peak.
    assert!(reading.watch_peak().is_none());
    // The interval is longer than the test, so only the peak causes further samples.
    let monitor = fake.monitor(&metrics, LONG * 60, LONG, &reading);
    until("memory is known", || reading.memory() == Some(memory(10_000)));
    fake.set_mode("own=100");
    let peak = reading.watch_peak().unwrap();
    until("a sample was taken", || peak.bytes() == Some(200 << 20));
    fake.set_mode("own=3000");
    until("more is seen", || peak.bytes() == Some(6000 << 20));
    fake.set_mode("own=100");
    until("less is in use", || reading.memory() == Some(memory(200)));
    assert_eq!(peak.bytes(), Some(6000 << 20));
    // Earlier samples do not count.
    let later = reading.watch_peak().unwrap();
    until("a sample was taken", || later.bytes() == Some(200 << 20));
    drop((peak, later));
    assert!(!reading.measures_peak());
    drop(monitor);
}

/// An engine on a GPU whose task runs until the monitor has sampled it.
struct OnGpu {
    /// The reading of its runner.
    reading: Arc<OnceLock<GpuReading>>,
}

impl Engine for OnGpu {
    type Model = ();
    type Output = Value;

    fn info(&self) -> EngineInfo {
        EngineInfo::new("on-gpu", "1.0.0").stage(Stage::other("count").unwrap())
    }

    fn load(&self, _: &ModelId, cx: &LoadContext) -> Result<(), TaskError> {
        cx.set_device(Device::Cuda);
        Ok(())
    }

    fn process(&self, _: &mut (), _: &TaskRequest, _: &TaskContext) -> Result<Value, TaskError> {
        until("a sample of the task is seen", || {
            self.reading.get().and_then(GpuReading::memory) == Some(memory(1400))
        });
        Ok(json!({}))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn span_of_gpu_task_has_peak_memory() {
    let fake = FakeDriver::new();
    let shared = Arc::new(OnceLock::new());
    let engine = OnGpu {
        reading: shared.clone(),
    };
    let telemetry = TestTelemetry::new();
    let platform = LocalPlatform::for_engine(&engine.info());
    let runner = Runner::builder(engine)
        .broker(platform.broker().clone())
        .store(platform.store().clone())
        .telemetry(telemetry.handle())
        .build()
        .unwrap();
    let (status, reading) = (runner.status(), runner.status().gpu_reading().clone());
    shared.set(reading.clone()).unwrap();
    let _monitor = fake.monitor(telemetry.metrics(), LONG * 60, LONG, &reading);
    until("memory is known", || reading.memory() == Some(memory(1024)));
    fake.set_mode("own=700");
    let task_id = platform.submit(LocalTask::new()).await.unwrap();
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let running = tokio::spawn(telemetry.attach(runner.run_until(async {
        let _ = stopped.await;
    })));
    platform.outcome(&task_id).await.unwrap();
    drop(stop);
    running.await.unwrap().unwrap();
    assert_eq!(status.gpu_memory(), Some(memory(1400)));
    let task = telemetry.span("engine.on-gpu.process");
    let mut attributes = task.attributes.iter();
    let peak = attributes.find(|attribute| attribute.key.as_str() == attr::GPU_MEMORY_PEAK_BYTES);
    assert_eq!(peak.unwrap().value.to_string(), (1400_u64 << 20).to_string());
}

#[test]
fn driver_is_detected_by_its_files() {
    let root = tempfile::tempdir().unwrap();
    assert!(!driver_present_under(root.path()));

    std::fs::create_dir(root.path().join("dev")).unwrap();
    std::fs::write(root.path().join("dev/nvidiactl"), "").unwrap();
    assert!(driver_present_under(root.path()));
}
