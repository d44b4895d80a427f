//! libtorch's CUDA back end, loaded at run time.
//!
//! The linker drops `libtorch_cuda.so` from the needed libraries of a program that uses `tch`,
//! because the program uses no symbol of it. So one binary starts on machines with and without
//! CUDA. With CUDA, the back end must be loaded by name before the first call of libtorch about
//! GPUs.

use std::ffi::{CStr, CString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use super::libtorch;

/// Why no CUDA device can be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CudaError {
    /// The libtorch of this process was built or installed without CUDA.
    #[error(
        "libtorch in {} has no CUDA back end (libtorch_cuda.so); install the full torch=={} wheel with its CUDA \
         packages, and set LD_LIBRARY_PATH to its torch/lib directory",
        .directory.display(),
        libtorch::WANTED_VERSION
    )]
    NotInstalled {
        /// The directory of libtorch.
        directory: PathBuf,
    },
    /// The back end does not load. Usually one of CUDA's own libraries is missing.
    #[error(
        "libtorch's CUDA back end does not load: {message}; install the CUDA packages that torch=={} depends on",
        libtorch::WANTED_VERSION
    )]
    NotLoadable {
        /// The message of the dynamic loader.
        message: String,
    },
    /// The back end is loaded but finds no GPU.
    #[error(
        "libtorch's CUDA back end finds no GPU; check that the NVIDIA driver is loaded (nvidia-smi), that it is new \
         enough for this libtorch, and that CUDA_VISIBLE_DEVICES does not hide the device"
    )]
    NoDevice,
    /// There are GPUs, but not this one.
    #[error("cuda:{index} does not exist: the devices are cuda:0 to cuda:{}", .count - 1)]
    NoSuchDevice {
        /// The index of the device.
        index: usize,
        /// The number of devices, at least one.
        count: usize,
    },
    /// A first computation on the device fails.
    #[error("a computation on cuda:{index} fails: {message}")]
    Unusable {
        /// The index of the device.
        index: usize,
        /// The message of libtorch.
        message: String,
    },
}

/// Loads libtorch's CUDA back end once per process. Later calls return the result of the first one.
///
/// The first call takes about a second, and must precede all calls of libtorch about GPUs.
/// [`Placement::choose`] makes it where needed, so engines rarely do.
///
/// # Errors
///
/// [`CudaError::NotInstalled`] or [`CudaError::NotLoadable`]. The program can continue on the CPU.
///
/// [`Placement::choose`]: super::Placement::choose
pub fn load_cuda() -> Result<(), CudaError> {
    static LOADED: OnceLock<Result<(), CudaError>> = OnceLock::new();
    LOADED
        .get_or_init(|| load_from(libtorch::directory().as_deref()))
        .clone()
}

/// `directory` is that of the libtorch in use. A back end from another directory could have another
/// version.
fn load_from(directory: Option<&Path>) -> Result<(), CudaError> {
    let library = match directory {
        Some(directory) => {
            let library = directory.join("libtorch_cuda.so");
            if !library.exists() {
                return Err(CudaError::NotInstalled {
                    directory: directory.to_owned(),
                });
            }
            library
        }
        // Without /proc the dynamic loader has to search.
        None => PathBuf::from("libtorch_cuda.so"),
    };
    tracing::info!(library = %library.display(), "cuda_backend_loading");
    open(&library).map_err(|message| CudaError::NotLoadable { message })
}

#[allow(unsafe_code)]
fn open(library: &Path) -> Result<(), String> {
    let path = CString::new(library.as_os_str().as_bytes())
        .map_err(|_| format!("the path {} contains a zero byte", library.display()))?;
    // SAFETY: `path` is a valid C string for the whole call. Loading runs the static initialisers
    // of libtorch_cuda, which register its kernels and need only the libtorch that is already in
    // the process. The handle is never closed, because the registered kernels have to stay.
    // `dlerror` returns null or a string that is valid until this thread's next call into the
    // loader, and it is copied before that.
    unsafe {
        if !libc::dlopen(path.as_ptr(), libc::RTLD_NOW | libc::RTLD_GLOBAL).is_null() {
            return Ok(());
        }
        let message = libc::dlerror();
        if message.is_null() {
            return Err("the dynamic loader gave no reason".to_owned());
        }
        Err(CStr::from_ptr(message).to_string_lossy().into_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libtorch_without_cuda_is_named_with_advice() {
        let empty = tempfile::tempdir().unwrap();

        let error = load_from(Some(empty.path())).unwrap_err();

        let text = error.to_string();
        assert!(text.contains(&empty.path().display().to_string()), "{text}");
        assert!(text.contains("torch==2.11.0"), "{text}");
    }

    #[test]
    fn error_has_the_message_of_the_loader() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("libtorch_cuda.so"), "not a library").unwrap();

        let error = load_from(Some(directory.path())).unwrap_err();

        let CudaError::NotLoadable { message } = &error else {
            panic!("{error:?}")
        };
        assert!(message.contains("libtorch_cuda.so"), "{message}");
        assert!(error.to_string().contains(message.as_str()));
    }
}
