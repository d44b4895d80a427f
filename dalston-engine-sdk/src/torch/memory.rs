//! Telling that memory ran out from what libtorch says, and what it says in one line.

use std::error::Error;

use tch::TchError;

use crate::error::{one_line, says_out_of_memory};

/// Whether `error`, or anything that caused it, is libtorch saying that the memory of the host or of the GPU ran out.
///
/// The runner looks for it itself in every error and panic of an engine: an engine needs this only to do something about
/// it on its own, for example to try again with a smaller batch.
///
/// ```
/// use dalston_engine_sdk::torch::is_out_of_memory;
/// use tch::TchError;
///
/// let error = TchError::Torch("CUDA out of memory. Tried to allocate 2.00 GiB.".to_owned());
/// assert!(is_out_of_memory(&error));
/// ```
#[must_use]
pub fn is_out_of_memory(error: &(dyn Error + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        if says_out_of_memory(&error.to_string()) {
            return true;
        }
        next = error.source();
    }
    false
}

/// What libtorch said, in one line: its messages carry a C++ back-trace that helps nobody outside libtorch.
///
/// ```
/// use dalston_engine_sdk::torch::message;
/// use tch::TchError;
///
/// let error = TchError::Torch("expected 3 dimensions\nException raised from f at g.cpp:1\nframe #0: …".to_owned());
/// assert_eq!(message(&error), "expected 3 dimensions");
/// ```
#[must_use]
pub fn message(error: &TchError) -> String {
    match error {
        TchError::Torch(text) => one_line(text),
        other => one_line(&other.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use tch::{Device, Kind, Tensor};

    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("the encoder failed")]
    struct Wrapped(#[source] TchError);

    #[test]
    fn more_memory_than_any_machine_has_is_recognised() {
        // 256 TiB is beyond the address space, whatever the machine's policy on overcommitment.
        let error = Tensor::f_zeros([1 << 46], (Kind::Float, Device::Cpu)).unwrap_err();

        assert!(is_out_of_memory(&error), "{error}");
        assert!(is_out_of_memory(&Wrapped(error)));
    }

    #[test]
    fn what_the_cuda_libraries_say_is_recognised() {
        for text in [
            "CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 79.11 GiB",
            "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported",
            "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
            "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
        ] {
            assert!(is_out_of_memory(&TchError::Torch(text.to_owned())), "{text}");
        }
    }

    #[test]
    fn any_other_failure_is_not_taken_for_it() {
        let shapes = Tensor::from_slice(&[1.0, 2.0])
            .f_add(&Tensor::from_slice(&[1.0, 2.0, 3.0]))
            .unwrap_err();
        assert!(!is_out_of_memory(&shapes), "{shapes}");
        assert!(!is_out_of_memory(&std::io::Error::other("out of cheese")));
    }

    #[test]
    fn a_message_is_one_line_without_the_back_trace() {
        let shapes = Tensor::from_slice(&[1.0, 2.0])
            .f_add(&Tensor::from_slice(&[1.0, 2.0, 3.0]))
            .unwrap_err();
        assert_eq!(
            message(&shapes),
            "The size of tensor a (2) must match the size of tensor b (3) at non-singleton dimension 0"
        );
    }
}
