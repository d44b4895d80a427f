//! Recognition of exhausted memory, and libtorch's messages in one line.

use std::error::Error;

use tch::TchError;

use crate::error::{one_line, says_out_of_memory};

/// Whether `error` or one of its causes reports exhausted memory of the host or of a GPU.
///
/// The runner recognises it in every error and panic of an engine. An engine needs this function
/// only for a reaction of its own, for example to try again with a smaller batch.
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

/// The message of libtorch in one line, without its C++ back-trace.
pub(super) fn message(error: &TchError) -> String {
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
    fn failed_allocation_is_recognised() {
        // 256 TiB exceed the address space, so overcommitment does not matter.
        let error = Tensor::f_zeros([1 << 46], (Kind::Float, Device::Cpu)).unwrap_err();

        assert!(is_out_of_memory(&error), "{error}");
        assert!(is_out_of_memory(&Wrapped(error)));
    }

    #[test]
    fn messages_of_the_cuda_libraries_are_recognised() {
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
    fn other_failures_are_not_recognised() {
        let shapes = Tensor::from_slice(&[1.0, 2.0])
            .f_add(&Tensor::from_slice(&[1.0, 2.0, 3.0]))
            .unwrap_err();
        assert!(!is_out_of_memory(&shapes), "{shapes}");
        assert!(!is_out_of_memory(&std::io::Error::other("out of cheese")));
    }

    #[test]
    fn message_is_one_line_without_the_back_trace() {
        let shapes = Tensor::from_slice(&[1.0, 2.0])
            .f_add(&Tensor::from_slice(&[1.0, 2.0, 3.0]))
            .unwrap_err();
        assert_eq!(
            message(&shapes),
            "The size of tensor a (2) must match the size of tensor b (3) at non-singleton dimension 0"
        );
    }
}
