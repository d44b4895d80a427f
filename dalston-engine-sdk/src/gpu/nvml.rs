//! The driver's library, on a thread of its own.

use std::ffi::OsString;
use std::fmt;
use std::path::Path;
use std::sync::mpsc::{self, RecvTimeoutError, SyncSender, TrySendError};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread;
use std::time::Duration;

use nvml_wrapper::enum_wrappers::device::TemperatureSensor;
use nvml_wrapper::enums::device::UsedGpuMemory;
use nvml_wrapper::error::NvmlError;
use nvml_wrapper::{Device, Nvml};

use super::{Gpu, GpuError, GpuMemory};

/// The second is where Windows puts it for Linux programs.
const LIBRARIES: [&str; 2] = ["libnvidia-ml.so.1", "/usr/lib/wsl/lib/libnvidia-ml.so.1"];
/// Questions that may wait for a driver that is slow. It is stuck if there are more.
const QUESTIONS: usize = 8;

/// A driver that can be asked. Clones share its thread, which begins with the first question. It ends with the last clone,
/// unless the driver has it.
#[derive(Clone)]
pub(super) struct Driver {
    shared: Arc<Shared>,
}

struct Shared {
    libraries: Vec<OsString>,
    thread: Mutex<Option<SyncSender<Question>>>,
}

type Question = Box<dyn FnOnce(&mut Session) + Send>;

impl Driver {
    /// That of this machine. There is one thread for it, however many ask.
    pub(super) fn of_the_machine() -> Self {
        static DRIVER: OnceLock<Driver> = OnceLock::new();
        DRIVER.get_or_init(|| Self::in_libraries(LIBRARIES)).clone()
    }

    /// One whose library is the first of these that can be loaded.
    pub(super) fn in_libraries(libraries: impl IntoIterator<Item = impl AsRef<Path>>) -> Self {
        let libraries = libraries.into_iter();
        Self {
            shared: Arc::new(Shared {
                libraries: libraries.map(|library| library.as_ref().into()).collect(),
                thread: Mutex::default(),
            }),
        }
    }

    /// All GPUs, each unless it can't be read.
    pub(super) fn gpus(&self, patience: Duration) -> Result<Vec<Result<Gpu, GpuError>>, GpuError> {
        self.ask(patience, |nvml| {
            let driver_version = nvml.sys_driver_version()?;
            let (mut each, mut any) = (Vec::new(), false);
            for index in 0..nvml.device_count()? {
                let device = nvml.device_by_index(index);
                let gpu = device.and_then(|device| gpu(&device, index as usize, &driver_version));
                any |= gpu.is_ok();
                each.push(gpu);
            }
            // It is the driver then.
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

    /// The memory in use, by this process if the driver knows it.
    pub(super) fn memory(&self, patience: Duration) -> Result<GpuMemory, GpuError> {
        self.ask(patience, |nvml| {
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
            // One use that is not known makes the sum unknown.
            let own = own.into_iter().reduce(|sum, used| sum?.checked_add(used?));
            Ok(GpuMemory {
                used: own.flatten().unwrap_or(first.used),
                total: first.total,
            })
        })
    }

    /// Waits for an answer, but no longer than `patience`, whatever the driver does.
    fn ask<T: Send + 'static>(
        &self,
        patience: Duration,
        question: impl FnOnce(&Nvml) -> Result<T, NvmlError> + Send + 'static,
    ) -> Result<T, GpuError> {
        let (reply, answer) = mpsc::sync_channel(1);
        let question: Question = Box::new(move |session| {
            // Whoever asked may have given up meanwhile.
            let _ = reply.send(session.answer(question));
        });
        match self.thread()?.try_send(question) {
            Ok(()) => {}
            // Nothing was answered for long.
            Err(TrySendError::Full(_)) => return Err(GpuError::Timeout(patience)),
            Err(TrySendError::Disconnected(_)) => return Err(self.thread_ended()),
        }
        match answer.recv_timeout(patience) {
            Ok(answer) => answer,
            Err(RecvTimeoutError::Timeout) => Err(GpuError::Timeout(patience)),
            Err(RecvTimeoutError::Disconnected) => Err(self.thread_ended()),
        }
    }

    /// Only a panic does that. The next question begins another one.
    fn thread_ended(&self) -> GpuError {
        *self.shared.thread.lock().unwrap_or_else(PoisonError::into_inner) = None;
        GpuError::Failed("the thread that asks it has panicked".to_owned())
    }

    fn thread(&self) -> Result<SyncSender<Question>, GpuError> {
        let mut thread = self.shared.thread.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(questions) = &*thread {
            return Ok(questions.clone());
        }
        let (sender, questions) = mpsc::sync_channel::<Question>(QUESTIONS);
        let mut session = Session {
            libraries: self.shared.libraries.clone(),
            nvml: None,
        };
        let answer = move || {
            while let Ok(question) = questions.recv() {
                question(&mut session);
            }
        };
        thread::Builder::new()
            .name("dalston-nvml".to_owned())
            .spawn(answer)
            .map_err(|error| GpuError::Failed(format!("no thread can be started to ask it: {error}")))?;
        *thread = Some(sender.clone());
        Ok(sender)
    }
}

impl fmt::Debug for Driver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Driver").finish_non_exhaustive()
    }
}

/// The library, once it is loaded.
struct Session {
    libraries: Vec<OsString>,
    nvml: Option<Nvml>,
}

impl Session {
    fn answer<T>(&mut self, question: impl FnOnce(&Nvml) -> Result<T, NvmlError>) -> Result<T, GpuError> {
        let nvml = match self.nvml.take() {
            Some(nvml) => nvml,
            None => self.load()?,
        };
        let answer = question(&nvml);
        // After an error it is begun anew: the driver may have been replaced, and the library must fit to it.
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
        // What a device does not tell is told by others.
        utilization: device.utilization_rates().ok().map(|rates| percent(rates.gpu)),
        power_watts: device.power_usage().ok().map(watts),
        temperature_celsius: device.temperature(TemperatureSensor::Gpu).ok().map(f64::from),
        driver_version: driver_version.to_owned(),
        compute_capability: format!("{}.{}", capability.major, capability.minor),
    })
}

/// What this process uses of the device, once for each part of it that it uses, or `None` for what the driver does not tell.
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
