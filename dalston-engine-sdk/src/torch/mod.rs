//! Help for engines on libtorch (feature `tch`): device, precision, memory, and what `doctor` says about them.
//!
//! ```
//! use dalston_engine_sdk::torch::{self, Placement};
//! use dalston_engine_sdk::{LoadContext, ModelId, TaskError};
//! use tch::Tensor;
//!
//! # fn load(_model: &ModelId, cx: &LoadContext) -> Result<Tensor, TaskError> {
//! // Once, in `load`: where to put the weights, and as what.
//! let placement = Placement::choose(cx.options())?;
//! let weights = Tensor::f_ones([4, 4], (placement.kind(), placement.device()))?;
//! # Ok(weights)
//! # }
//! # fn process(weights: &Tensor) -> Result<f64, TaskError> {
//! // In `process`: no gradients. A failure goes on through `?`; the runner recognises memory that ran out.
//! torch::inference(|| Ok(f64::try_from(weights.f_matmul(weights)?.f_sum(tch::Kind::Float)?)?))
//! # }
//! ```
//!
//! # Which libtorch
//!
//! `tch` 0.24 is written for libtorch 2.11.0 exactly. It is linked when the engine is built (`LIBTORCH` names its
//! directory) and found again when it runs, by the path in the binary or by `LD_LIBRARY_PATH`. A binary links to
//! libtorch's CPU half only; the CUDA half is loaded when a GPU is asked for or, with `auto`, when an NVIDIA driver is
//! at work. So one binary runs on both kinds of machine.
//!
//! # Memory
//!
//! Memory of dropped tensors goes back to libtorch. On the CPU it goes on to the system. On a GPU libtorch keeps it for
//! the next tensors, as other processes will notice; before it reports that memory ran out it gives back all that it
//! kept and tries again, so an engine has nothing to release by hand after it dropped its tensors. How it keeps memory
//! is set by libtorch's own variable `PYTORCH_ALLOC_CONF`.

mod cuda;
mod doctor;
mod inference;
mod libtorch;
mod memory;
mod placement;

pub use self::cuda::{CudaError, load_cuda};
pub use self::doctor::checks;
pub use self::inference::{inference, set_threads};
pub use self::libtorch::{Libtorch, libtorch};
pub use self::memory::{is_out_of_memory, message};
pub use self::placement::{Placement, PlacementError};
