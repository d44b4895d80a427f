//! libtorch's CUDA back end, loaded while the program runs.
//!
//! A program that uses `tch` does not name `libtorch_cuda.so` among the libraries it needs: the linker drops it, because
//! no symbol of it is used. So one binary starts on machines with and without CUDA, and on the former the back end has
//! to be loaded by name before libtorch is first asked for a GPU.

use std::ffi::{CStr, CString};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use super::libtorch;

/// Why no CUDA device can be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CudaError {
    /// The libtorch that this program runs on was built or installed without CUDA.
    #[error(
        "libtorch in {} has no CUDA back end (libtorch_cuda.so); install the full torch=={} wheel with its CUDA \
         packages and let LD_LIBRARY_PATH name its torch/lib directory",
        .directory.display(),
        libtorch::WANTED_VERSION
    )]
    NotInstalled {
        /// Where libtorch lies.
        directory: PathBuf,
    },
    /// The back end is there and does not load: usually one of CUDA's own libraries is missing.
    #[error(
        "libtorch's CUDA back end does not load: {message}; install the CUDA packages that torch=={} depends on \
         beside it",
        libtorch::WANTED_VERSION
    )]
    NotLoadable {
        /// What the dynamic loader said.
        message: String,
    },
    /// The back end is loaded and sees no GPU.
    #[error(
        "libtorch's CUDA back end sees no GPU; check that the NVIDIA driver is loaded (nvidia-smi), that it is new \
         enough for this libtorch, and that CUDA_VISIBLE_DEVICES does not hide the device"
    )]
    NoDevice,
    /// There are GPUs, but not this one.
    #[error("cuda:{index} was asked for, but the devices are cuda:0 to cuda:{}", .count - 1)]
    NoSuchDevice {
        /// The device asked for.
        index: usize,
        /// How many devices there are, at least one.
        count: usize,
    },
    /// The device is there and a first computation on it fails.
    #[error("cuda:{index} does not work: {message}")]
    Unusable {
        /// The device asked for.
        index: usize,
        /// What libtorch said.
        message: String,
    },
}

/// Loads libtorch's CUDA back end, once in the life of the process; later calls return what the first one did.
///
/// It takes about a second, and must come before libtorch is first asked about GPUs. [`Placement::choose`] calls it
/// when it has reason to, so engines rarely need to.
///
/// # Errors
///
/// [`CudaError::NotInstalled`] or [`CudaError::NotLoadable`]: the program can go on with the CPU.
///
/// [`Placement::choose`]: super::Placement::choose
pub fn load_cuda() -> Result<(), CudaError> {
    static LOADED: OnceLock<Result<(), CudaError>> = OnceLock::new();
    LOADED
        .get_or_init(|| load_from(libtorch::directory().as_deref()))
        .clone()
}

/// `directory` is where the libtorch in use lies. Taking the back end from anywhere else could mix two versions.
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
        // /proc is hidden from us: leave the search to the loader.
        None => PathBuf::from("libtorch_cuda.so"),
    };
    tracing::info!(library = %library.display(), "cuda_backend_loading");
    open_for_ever(&library).map_err(|message| CudaError::NotLoadable { message })
}

#[allow(unsafe_code)]
fn open_for_ever(library: &Path) -> Result<(), String> {
    let path = CString::new(library.as_os_str().as_bytes())
        .map_err(|_| format!("the path {} contains a zero byte", library.display()))?;
    // SAFETY: `path` is a valid C string for the whole call. Loading runs the static initialisers of libtorch_cuda,
    // which register its kernels and need nothing but the libtorch that is already in the process. The handle is
    // never closed: the registered kernels have to stay. `dlerror` returns null or a string that is valid until this
    // thread's next call into the loader, and is copied before that.
    unsafe {
        if !libc::dlopen(path.as_ptr(), libc::RTLD_NOW | libc::RTLD_GLOBAL).is_null() {
            return Ok(());
        }
        let message = libc::dlerror();
        if message.is_null() {
            return Err("the loader gave no reason".to_owned());
        }
        Err(CStr::from_ptr(message).to_string_lossy().into_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_libtorch_without_cuda_is_named_together_with_the_way_out() {
        let empty = tempfile::tempdir().unwrap();

        let error = load_from(Some(empty.path())).unwrap_err();

        let text = error.to_string();
        assert!(text.contains(&empty.path().display().to_string()), "{text}");
        assert!(text.contains("torch==2.11.0"), "{text}");
    }

    #[test]
    fn the_loaders_own_message_reaches_the_reader() {
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
