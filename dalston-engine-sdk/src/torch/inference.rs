//! Inference without gradients.

/// Runs `work` without recording gradients on this thread. A panic restores the recording, too.
///
/// Use it around all computations of `process`: it saves the memory of the intermediate results.
/// Loading weights does not need it.
///
/// ```
/// use dalston_engine_sdk::torch::inference;
/// use tch::{Kind, Tensor};
///
/// let weights = Tensor::ones([2, 2], (Kind::Float, tch::Device::Cpu)).set_requires_grad(true);
///
/// let product = inference(|| weights.matmul(&weights));
/// assert!(!product.requires_grad());
/// ```
pub fn inference<T>(work: impl FnOnce() -> T) -> T {
    let _no_gradients = tch::no_grad_guard();
    work()
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use tch::{Device, Kind, Tensor};

    use super::*;

    #[test]
    fn gradients_are_recorded_again_even_after_a_panic() {
        let weights = Tensor::ones([2], (Kind::Float, Device::Cpu)).set_requires_grad(true);

        let inside = inference(|| (&weights * 2.0).requires_grad());
        let panicked = catch_unwind(AssertUnwindSafe(|| inference(|| panic!("as engines do"))));

        assert!(!inside);
        assert!(panicked.is_err());
        assert!((&weights * 2.0).requires_grad());
    }

    #[test]
    fn scopes_nest() {
        let weights = Tensor::ones([2], (Kind::Float, Device::Cpu)).set_requires_grad(true);

        let after_inner = inference(|| {
            inference(|| ());
            (&weights * 2.0).requires_grad()
        });

        assert!(!after_inner);
    }
}
