//! Helpers for engines on libtorch (feature `tch`): device, precision, memory, and their rows in
//! `doctor`.
//!
//! ```
//! use dalston_engine_sdk::torch::{self, Placement};
//! use dalston_engine_sdk::{LoadContext, ModelId, TaskError};
//! use tch::Tensor;
//!
//! # fn load(_model: &ModelId, cx: &LoadContext) -> Result<Tensor, TaskError> {
//! // Once, in `load`: the device and the number format of the weights.
//! let placement = Placement::choose(cx.config())?;
//! let weights = Tensor::f_ones([4, 4], (placement.kind(), placement.device()))?;
//! # Ok(weights)
//! # }
//! # fn process(weights: &Tensor) -> Result<f64, TaskError> {
//! // In `process`: no gradients. Pass errors on with `?`; the runner recognises exhausted memory.
//! torch::inference(|| Ok(f64::try_from(weights.f_matmul(weights)?.f_sum(tch::Kind::Float)?)?))
//! # }
//! ```
//!
//! # Which libtorch
//!
//! `tch` 0.24 is written for libtorch 2.11.0 exactly. It is linked when the engine is built
//! (`LIBTORCH` names its directory) and found at run time by the path in the binary or by
//! `LD_LIBRARY_PATH`. A binary links only to libtorch's CPU half. The CUDA half is loaded if the
//! configuration names a GPU or, with `auto`, if an NVIDIA driver runs. So one binary runs on both
//! kinds of machine.
//!
//! # The path of libtorch in a binary
//!
//! With this `build.rs` in the package of an engine, its binary finds at run time the libtorch that
//! it was built with. Without it, `LD_LIBRARY_PATH` must name `$LIBTORCH/lib`. Cargo gives the
//! variable only to packages that depend on `torch-sys` themselves: add it with the version that
//! `tch` has.
//!
//! ```text
//! fn main() {
//!     println!("cargo:rerun-if-env-changed=DEP_TCH_LIBTORCH_LIB");
//!     if let Some(lib) = std::env::var_os("DEP_TCH_LIBTORCH_LIB") {
//!         println!("cargo:rustc-link-arg=-Wl,-rpath,{}", lib.to_string_lossy());
//!     }
//! }
//! ```
//!
//! A build without libtorch ends with *Cannot find a libtorch install* of `torch-sys`. Install
//! 2.11.0, for example with `pip install torch==2.11.0`, and set `LIBTORCH` to its directory
//! `torch`.
//!
//! # Memory
//!
//! Memory of dropped tensors returns to libtorch, and on the CPU to the system. On a GPU libtorch
//! keeps it for the next tensors, so other processes can't use it. Before libtorch reports
//! exhausted memory it frees all that it kept and tries again, so an engine only has to drop its
//! tensors. Libtorch's own variable `PYTORCH_ALLOC_CONF` configures this.

mod cuda;
mod doctor;
mod inference;
mod libtorch;
mod memory;
mod placement;
#[cfg(feature = "audio")]
mod silero;

pub use self::cuda::{CudaError, load_cuda};
pub use self::doctor::checks;
pub use self::inference::inference;
pub use self::memory::is_out_of_memory;
pub use self::placement::{Placement, PlacementError};
#[cfg(feature = "audio")]
pub use self::silero::{Silero, SileroError, SileroFile};
