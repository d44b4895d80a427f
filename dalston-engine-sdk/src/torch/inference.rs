//! The scope of inference.

use std::num::NonZeroUsize;

/// Runs `work` without recording what would be needed to compute gradients, on this thread, also if it panics.
///
/// Put around everything that `process` computes: it saves the memory of all intermediate results. Loading weights
/// does not need it.
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

/// Sets how many threads libtorch uses for one operation on the CPU, in the whole process.
///
/// The default is one for each core. With several inference threads, divide the cores among them: they would otherwise
/// get in each other's way.
pub fn set_threads(threads: NonZeroUsize) {
    tch::set_num_threads(i32::try_from(threads.get()).unwrap_or(i32::MAX));
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use tch::{Device, Kind, Tensor};

    use super::*;

    #[test]
    fn gradients_are_recorded_again_afterwards_even_after_a_panic() {
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
