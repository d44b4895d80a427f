//! The rows of `doctor` about libtorch and GPUs.

use tch::Device;

use super::libtorch::{Libtorch, WANTED_VERSION, libtorch};
use super::memory::message;
use super::placement::{Placement, probe};
use crate::config::{DeviceChoice, EngineConfig};
use crate::engine::Check;
use crate::gpu::{Gpu, GpuError, gpus, nvidia_driver_present};

/// Checks libtorch, the GPUs, and whether this machine supports the device and precision of
/// `options`.
///
/// An engine on libtorch returns these checks from [`Engine::check`](crate::Engine::check),
/// together with its own:
///
/// ```
/// use dalston_engine_sdk::{Check, LoadContext, torch};
///
/// fn check(cx: &LoadContext) -> Vec<Check> {
///     let mut checks = torch::checks(cx.config());
///     checks.push(Check::ok("vocabulary", "built in"));
///     checks
/// }
/// ```
#[must_use]
pub fn checks(config: &EngineConfig) -> Vec<Check> {
    // First, because it loads the CUDA back end, which must precede other calls about GPUs.
    let placement = Placement::choose(config);
    let mut checks = vec![libtorch_check(&libtorch()), threads_check()];
    checks.extend(gpu_checks(config.device, nvidia_driver_present(), gpus));
    checks.push(match placement {
        Ok(placement) => placement_check(placement),
        Err(error) => Check::missing("device", error.to_string()).advice(
            "choose another --device or --precision (DALSTON_DEVICE, DALSTON_PRECISION), or use auto",
        ),
    });
    #[cfg(feature = "audio")]
    checks.extend(config.vad_model.as_deref().map(detector_check));
    checks
}

#[cfg(feature = "audio")]
fn detector_check(path: &std::path::Path) -> Check {
    match super::silero::SileroFile::read(path) {
        Ok(_) => Check::ok("voice detector", format!("Silero, {}", path.display())),
        Err(error) => Check::missing("voice detector", error.to_string())
            .advice("name another file with DALSTON_VAD_MODEL, or unset it"),
    }
}

fn libtorch_check(found: &Libtorch) -> Check {
    let place = match &found.directory {
        Some(directory) => format!("in {}", directory.display()),
        None => "in an unknown directory (/proc/self/maps can't be read)".to_owned(),
    };
    let advice = format!(
        "install torch=={WANTED_VERSION}, build with its directory in LIBTORCH, and remove others from LD_LIBRARY_PATH"
    );
    match (&found.version, found.version_fits()) {
        (Some(version), Some(true)) => Check::ok("libtorch", format!("{version} {place}")),
        (Some(version), _) => Check::missing(
            "libtorch",
            format!("{version} {place}, but this program was written for {WANTED_VERSION}"),
        )
        .advice(advice),
        (None, _) => Check::warning(
            "libtorch",
            format!("of unknown version {place}; {WANTED_VERSION} is needed"),
        )
        .advice(advice),
    }
}

fn threads_check() -> Check {
    let mut detail = format!("{} for one operation", tch::get_num_threads());
    if tch::utils::has_mkl() {
        detail.push_str(", with MKL");
    }
    if tch::utils::has_mkldnn() {
        detail.push_str(", with oneDNN");
    }
    Check::ok("CPU threads", detail)
}

fn gpu_checks(
    choice: DeviceChoice,
    driver_present: bool,
    gpus: impl FnOnce() -> Result<Vec<Result<Gpu, GpuError>>, GpuError>,
) -> Vec<Check> {
    if !driver_present {
        let check = match choice {
            DeviceChoice::Cuda(_) => Check::missing("GPU", "no NVIDIA driver is running")
                .advice("install the NVIDIA driver, or start the container with access to the GPU"),
            DeviceChoice::Auto | DeviceChoice::Cpu => Check::ok("GPU", "none; no NVIDIA driver is running"),
        };
        return vec![check];
    }
    let unknown = |problem: String| Check::warning("GPU", problem).advice("look at the output of nvidia-smi");
    match gpus() {
        Ok(each) if each.is_empty() => vec![unknown("the NVIDIA driver lists none".to_owned())],
        Ok(each) => {
            let rows = each.iter().map(|gpu| match gpu {
                Ok(gpu) => gpu_check(gpu),
                Err(error) => unknown(error.to_string()),
            });
            rows.collect()
        }
        Err(error) => vec![unknown(error.to_string())],
    }
}

fn gpu_check(gpu: &Gpu) -> Check {
    const GIB: f64 = (1_u64 << 30) as f64;
    let detail = format!(
        "{}, {:.1} of {:.1} GiB in use, compute capability {}, driver {}",
        gpu.name,
        gpu.memory_used as f64 / GIB,
        gpu.memory_total as f64 / GIB,
        gpu.compute_capability,
        gpu.driver_version,
    );
    Check::ok(format!("GPU {}", gpu.index), detail)
}

fn placement_check(placement: Placement) -> Check {
    match probe(placement.device()) {
        Ok(()) if placement.device() == Device::Cpu && nvidia_driver_present() => Check::warning(
            "device",
            format!("{placement}, although there is an NVIDIA driver"),
        )
        .advice("run with --device cuda to see what is missing"),
        Ok(()) => Check::ok("device", format!("{placement}; a small computation succeeds")),
        Err(error) => Check::missing("device", format!("{placement}: {}", message(&error))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::PrecisionChoice;
    use crate::engine::CheckStatus;

    fn l4() -> Gpu {
        Gpu {
            index: 0,
            name: "NVIDIA L4".to_owned(),
            memory_used: 3 << 29,
            memory_total: 24 << 30,
            utilization: Some(0.0),
            power_watts: Some(31.5),
            temperature_celsius: Some(41.0),
            driver_version: "550.54.15".to_owned(),
            compute_capability: "8.9".to_owned(),
        }
    }

    #[test]
    fn nothing_is_missing_on_the_cpu() {
        let checks = checks(&EngineConfig::new().device(DeviceChoice::Cpu));

        let names: Vec<_> = checks.iter().map(|check| check.name.as_str()).collect();
        assert_eq!(names.first(), Some(&"libtorch"));
        assert_eq!(names.last(), Some(&"device"));
        assert!(
            checks.iter().all(|check| check.status != CheckStatus::Missing),
            "{checks:#?}"
        );
    }

    #[test]
    fn unsupported_precision_is_missing_with_advice() {
        let config = EngineConfig::new()
            .device(DeviceChoice::Cpu)
            .precision(PrecisionChoice::Float16);

        let checks = checks(&config);

        let device = checks.last().unwrap();
        assert_eq!(device.status, CheckStatus::Missing);
        assert!(device.detail.contains("float16"), "{device:?}");
        assert!(device.advice.is_some());
    }

    #[test]
    fn libtorch_of_another_version_is_missing() {
        let old = Libtorch {
            directory: Some("/opt/torch/lib".into()),
            version: Some("2.7.1+cu126".to_owned()),
        };

        let check = libtorch_check(&old);

        assert_eq!(check.status, CheckStatus::Missing);
        assert_eq!(
            check.detail,
            "2.7.1+cu126 in /opt/torch/lib, but this program was written for 2.11.0"
        );
    }

    #[test]
    fn each_gpu_is_a_row() {
        let checks = gpu_checks(DeviceChoice::Auto, true, || {
            let lost = GpuError::Unreadable {
                index: 1,
                message: "it fell off the bus".to_owned(),
            };
            Ok(vec![Ok(l4()), Err(lost), Ok(Gpu { index: 2, ..l4() })])
        });

        assert_eq!(
            checks,
            [
                Check::ok(
                    "GPU 0",
                    "NVIDIA L4, 1.5 of 24.0 GiB in use, compute capability 8.9, driver 550.54.15"
                ),
                Check::warning("GPU", "GPU 1 can't be read: it fell off the bus")
                    .advice("look at the output of nvidia-smi"),
                Check::ok(
                    "GPU 2",
                    "NVIDIA L4, 1.5 of 24.0 GiB in use, compute capability 8.9, driver 550.54.15"
                ),
            ]
        );
    }

    #[test]
    fn missing_driver_matters_only_for_a_named_gpu() {
        let unasked = || -> Result<Vec<Result<Gpu, GpuError>>, GpuError> {
            panic!("without a driver it must not be called")
        };

        let status = |choice| gpu_checks(choice, false, unasked)[0].status;

        assert_eq!(status(DeviceChoice::Cpu), CheckStatus::Ok);
        assert_eq!(status(DeviceChoice::Auto), CheckStatus::Ok);
        assert_eq!(status(DeviceChoice::Cuda(0)), CheckStatus::Missing);
    }

    #[test]
    fn stuck_driver_is_a_warning() {
        let checks = gpu_checks(DeviceChoice::Auto, true, || {
            Err(GpuError::Timeout(std::time::Duration::from_secs(5)))
        });

        assert_eq!(checks[0].status, CheckStatus::Warning);
        assert!(checks[0].detail.contains("no answer"), "{checks:?}");
    }
}
