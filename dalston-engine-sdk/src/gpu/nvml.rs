//! The driver's library, called on a thread of its own.

use std::ffi::OsString;
use std::path::Path;
use std::sync::mpsc::{self, RecvTimeoutError, SyncSender, TrySendError};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread;
use std::time::Duration;

use nvml_wrapper::enum_wrappers::device::TemperatureSensor;
use nvml_wrapper::enums::device::UsedGpuMemory;
use nvml_wrapper::error::NvmlError;
use nvml_wrapper::{Device, Nvml};

use super::device::{Gpu, GpuMemory};
use super::error::GpuError;

/// How long a caller waits for the driver. A broken driver hangs rather than fails.
pub(super) const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// The second is the path in the Windows Subsystem for Linux.
const LIBRARIES: [&str; 2] = ["libnvidia-ml.so.1", "/usr/lib/wsl/lib/libnvidia-ml.so.1"];
/// Requests that may wait for a slow driver. With more of them the driver counts as stuck.
const MAX_REQUESTS: usize = 8;

/// Reads the GPUs from the driver. One that the driver has lost is an error in its place.
///
/// Blocks for at most five seconds.
///
/// # Errors
///
/// If there is no driver, its library can't be loaded, or it does not answer or fails for all GPUs.
pub fn gpus() -> Result<Vec<Result<Gpu, GpuError>>, GpuError> {
    if nvidia_driver_present() {
        Driver::of_the_machine().gpus(ANSWER_TIMEOUT)
    } else {
        Err(GpuError::NoDriver)
    }
}

/// Whether an NVIDIA driver runs on this machine. Looks for its files and loads nothing.
#[must_use]
pub fn nvidia_driver_present() -> bool {
    driver_present_under(Path::new("/"))
}

pub(super) fn driver_present_under(root: &Path) -> bool {
    // The last two belong to the Windows Subsystem for Linux.
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

/// The driver's library. Clones share its thread, which starts with the first request. The thread
/// ends with the last clone, unless it is stuck in a call.
#[derive(Clone)]
pub(super) struct Driver {
    shared: Arc<Shared>,
}

struct Shared {
    libraries: Vec<OsString>,
    thread: Mutex<Option<SyncSender<Request>>>,
}

type Request = Box<dyn FnOnce(&mut Session) + Send>;

impl Driver {
    /// The driver of this machine. All callers share one thread.
    pub(super) fn of_the_machine() -> Self {
        static DRIVER: OnceLock<Driver> = OnceLock::new();
        DRIVER.get_or_init(|| Self::in_libraries(LIBRARIES)).clone()
    }

    /// A driver whose library is the first of these that can be loaded.
    pub(super) fn in_libraries(libraries: impl IntoIterator<Item = impl AsRef<Path>>) -> Self {
        let libraries = libraries.into_iter();
        Self {
            shared: Arc::new(Shared {
                libraries: libraries.map(|library| library.as_ref().into()).collect(),
                thread: Mutex::default(),
            }),
        }
    }

    /// All GPUs. One that can't be read is an error in its place.
    pub(super) fn gpus(&self, limit: Duration) -> Result<Vec<Result<Gpu, GpuError>>, GpuError> {
        self.call(limit, |nvml| {
            let driver_version = nvml.sys_driver_version()?;
            let (mut each, mut any) = (Vec::new(), false);
            for index in 0..nvml.device_count()? {
                let device = nvml.device_by_index(index);
                let gpu = device.and_then(|device| gpu(&device, index as usize, &driver_version));
                any |= gpu.is_ok();
                each.push(gpu);
            }
            // With no readable GPU the error is the driver's.
            if !any && let Some(Err(error)) = each.pop() {
                return Err(error);
            }
            let each = each.into_iter().enumerate().map(|(index, gpu)| {
                gpu.map_err(|error| GpuError::Unreadable {
                    index,
                    message: one_line(&error),
                })
            });
            Ok(each.collect())
        })
    }

    /// The memory in use, by this process if the driver counts it separately.
    pub(super) fn memory(&self, limit: Duration) -> Result<GpuMemory, GpuError> {
        self.call(limit, |nvml| {
            let mut first = None;
            let mut own = Vec::new();
            for index in 0..nvml.device_count()? {
                let Ok(device) = nvml.device_by_index(index) else {
                    continue;
                };
                let Ok(memory) = device.memory_info() else {
                    continue;
                };
                first.get_or_insert(memory);
                own.extend(own_memory(&device));
            }
            let first = first.ok_or(NvmlError::GpuLost)?;
            // One unknown amount makes the sum unknown.
            let own = own.into_iter().reduce(|sum, used| sum?.checked_add(used?));
            Ok(GpuMemory {
                used: own.flatten().unwrap_or(first.used),
                total: first.total,
            })
        })
    }

    /// Waits for the result of `request` on the driver's thread, but no longer than `limit`.
    fn call<T: Send + 'static>(
        &self,
        limit: Duration,
        request: impl FnOnce(&Nvml) -> Result<T, NvmlError> + Send + 'static,
    ) -> Result<T, GpuError> {
        let (reply, answer) = mpsc::sync_channel(1);
        let request: Request = Box::new(move |session| {
            // The caller may have given up.
            let _ = reply.send(session.run(request));
        });
        match self.thread()?.try_send(request) {
            Ok(()) => {}
            // The driver has been stuck for several requests.
            Err(TrySendError::Full(_)) => return Err(GpuError::Timeout(limit)),
            Err(TrySendError::Disconnected(_)) => return Err(self.thread_ended()),
        }
        match answer.recv_timeout(limit) {
            Ok(answer) => answer,
            Err(RecvTimeoutError::Timeout) => Err(GpuError::Timeout(limit)),
            Err(RecvTimeoutError::Disconnected) => Err(self.thread_ended()),
        }
    }

    /// The thread ends early only by a panic. The next request starts another one.
    fn thread_ended(&self) -> GpuError {
        *self.shared.thread.lock().unwrap_or_else(PoisonError::into_inner) = None;
        GpuError::Failed("the thread that calls it has panicked".to_owned())
    }

    fn thread(&self) -> Result<SyncSender<Request>, GpuError> {
        let mut thread = self.shared.thread.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(requests) = &*thread {
            return Ok(requests.clone());
        }
        let (sender, requests) = mpsc::sync_channel::<Request>(MAX_REQUESTS);
        let mut session = Session {
            libraries: self.shared.libraries.clone(),
            nvml: None,
        };
        thread::Builder::new()
            .name("dalston-nvml".to_owned())
            .spawn(move || requests.into_iter().for_each(|request| request(&mut session)))
            .map_err(|error| GpuError::Failed(format!("no thread can be started to call it: {error}")))?;
        *thread = Some(sender.clone());
        Ok(sender)
    }
}

/// The library, once it is loaded.
struct Session {
    libraries: Vec<OsString>,
    nvml: Option<Nvml>,
}

impl Session {
    fn run<T>(&mut self, request: impl FnOnce(&Nvml) -> Result<T, NvmlError>) -> Result<T, GpuError> {
        let nvml = match self.nvml.take() {
            Some(nvml) => nvml,
            None => self.load()?,
        };
        let answer = request(&nvml);
        // After an error the library is loaded again: the driver may have been replaced, and the
        // two must match.
        if answer.is_ok() {
            self.nvml = Some(nvml);
        }
        answer.map_err(|error| GpuError::Failed(one_line(&error)))
    }

    fn load(&self) -> Result<Nvml, GpuError> {
        let mut first = None;
        for library in &self.libraries {
            let error = match Nvml::builder().lib_path(library).init() {
                Ok(nvml) => return Ok(nvml),
                Err(NvmlError::LibloadingError(error)) => GpuError::Load {
                    library: library.to_string_lossy().into_owned(),
                    message: error.to_string(),
                },
                Err(error) => return Err(GpuError::Failed(one_line(&error))),
            };
            first.get_or_insert(error);
        }
        Err(first.unwrap_or(GpuError::NoDriver))
    }
}

fn gpu(device: &Device<'_>, index: usize, driver_version: &str) -> Result<Gpu, NvmlError> {
    let memory = device.memory_info()?;
    let capability = device.cuda_compute_capability()?;
    let percent = |percent: u32| f64::from(percent) / 100.0;
    let watts = |milliwatts: u32| f64::from(milliwatts) / 1000.0;
    Ok(Gpu {
        index,
        name: device.name()?,
        memory_used: memory.used,
        memory_total: memory.total,
        // Not every device has these figures.
        utilization: device.utilization_rates().ok().map(|rates| percent(rates.gpu)),
        power_watts: device.power_usage().ok().map(watts),
        temperature_celsius: device.temperature(TemperatureSensor::Gpu).ok().map(f64::from),
        driver_version: driver_version.to_owned(),
        compute_capability: format!("{}.{}", capability.major, capability.minor),
    })
}

/// The memory of this process, one value per partition of the device. `None` where the driver does
/// not report it.
fn own_memory(device: &Device<'_>) -> Vec<Option<u64>> {
    let processes = device.running_compute_processes().unwrap_or_default();
    let own = processes
        .iter()
        .filter(|process| process.pid == std::process::id());
    let used = own.map(|process| match process.used_gpu_memory {
        UsedGpuMemory::Used(bytes) => Some(bytes),
        UsedGpuMemory::Unavailable => None,
    });
    used.collect()
}

fn one_line(error: &NvmlError) -> String {
    error.to_string().replace('\n', " ")
}
