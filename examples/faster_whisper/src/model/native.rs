//! Parts of libtorch that tch does not bind: linear layers whose weights are packed once, the
//! memory of tensors, and the thread pool.
//!
//! The functions belong to the C interface that libtorch 2.11 has for compiled models
//! (`torch/csrc/inductor/aoti_torch/c/shim_cpu.h` and `torch/csrc/stable/c/shim.h`). Its tensor
//! handles are the pointers that tch holds. Each function returns 0, or writes a message to the
//! standard error and returns another number.

#![allow(unsafe_code)]

use std::ffi::{CStr, c_char, c_void};
use std::ops::Range;
use std::sync::{Mutex, PoisonError};
use std::{ptr, slice};

use tch::{Device, Kind, TchError, Tensor};
use torch_sys::C_tensor;
use whisper_kernels::Matrix;

unsafe extern "C" {
    fn aoti_torch_call_dispatcher(name: *const c_char, overload: *const c_char, stack: *mut u64) -> i32;
    fn aoti_torch_cpu__linear_pointwise(
        input: *const C_tensor,
        weight: *const C_tensor,
        bias: *const *const C_tensor,
        attribute: *const c_char,
        scalars: *const *const f64,
        scalars_len: i64,
        algorithm: *const *const c_char,
        result: *mut *mut C_tensor,
    ) -> i32;
    fn aoti_torch_cpu__linear_pointwise_binary(
        input: *const C_tensor,
        other: *const C_tensor,
        weight: *const C_tensor,
        bias: *const *const C_tensor,
        attribute: *const c_char,
        result: *mut *mut C_tensor,
    ) -> i32;
    fn torch_parallel_for(
        begin: i64,
        end: i64,
        grain: i64,
        work: unsafe extern "C" fn(i64, i64, *mut c_void),
        context: *mut c_void,
    ) -> i32;
}

/// A linear layer on the CPU with the weight in the layout of oneDNN's matrix product.
#[derive(Debug)]
pub(crate) struct Packed {
    weight: Tensor,
    bias: Tensor,
}

impl Packed {
    /// Whether oneDNN packs weights in this precision on this processor.
    pub(super) fn can_be_in(kind: Kind) -> bool {
        let has_kind = match kind {
            Kind::Float => true,
            // The check of `mkldnn_bf16_device_check` in libtorch.
            #[cfg(target_arch = "x86_64")]
            Kind::BFloat16 => {
                is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512vl")
                    && is_x86_feature_detected!("avx512dq")
            }
            _ => false,
        };
        has_kind && tch::utils::has_mkldnn()
    }

    /// Packs the weight, in float32 or bfloat16. The result does not refer to the original.
    pub(super) fn new(weight: &Tensor, bias: Tensor) -> Result<Self, TchError> {
        let mut input = weight.shallow_clone();
        // The tensor, and no batch size. The call consumes the handle.
        let mut stack = [input.as_mut_ptr() as u64, 0];
        std::mem::forget(input);
        let name = c"mkldnn::_reorder_linear_weight";
        // SAFETY: the stack has the two arguments of the operator's schema, the first one owned.
        let code = unsafe { aoti_torch_call_dispatcher(name.as_ptr(), c"".as_ptr(), stack.as_mut_ptr()) };
        check(code, name)?;
        // SAFETY: after success, the first cell is the resulting tensor, and the caller owns it.
        let weight = unsafe { Tensor::from_ptr(stack[0] as *mut C_tensor) };
        Ok(Self { weight, bias })
    }

    pub(super) fn forward(&self, input: &Tensor) -> Result<Tensor, TchError> {
        self.apply(input, c"none")
    }

    /// Followed by exact GELU.
    pub(super) fn forward_gelu(&self, input: &Tensor) -> Result<Tensor, TchError> {
        self.apply(input, c"gelu")
    }

    fn apply(&self, input: &Tensor, attribute: &CStr) -> Result<Tensor, TchError> {
        let bias = self.bias.as_ptr();
        let algorithm = c"none".as_ptr();
        let mut result = ptr::null_mut();
        // SAFETY: all pointers are valid during the call, which keeps none of them.
        let code = unsafe {
            aoti_torch_cpu__linear_pointwise(
                input.as_ptr(),
                self.weight.as_ptr(),
                &raw const bias,
                attribute.as_ptr(),
                ptr::null(),
                0,
                &raw const algorithm,
                &raw mut result,
            )
        };
        check(code, c"mkldnn::_linear_pointwise")?;
        // SAFETY: after success, this is the resulting tensor, and the caller owns it.
        Ok(unsafe { Tensor::from_ptr(result) })
    }

    /// Adds `other`, which has the shape of the result.
    pub(super) fn forward_add(&self, input: &Tensor, other: &Tensor) -> Result<Tensor, TchError> {
        let bias = self.bias.as_ptr();
        let mut result = ptr::null_mut();
        // SAFETY: all pointers are valid during the call, which keeps none of them.
        let code = unsafe {
            aoti_torch_cpu__linear_pointwise_binary(
                input.as_ptr(),
                other.as_ptr(),
                self.weight.as_ptr(),
                &raw const bias,
                c"add".as_ptr(),
                &raw mut result,
            )
        };
        check(code, c"mkldnn::_linear_pointwise.binary")?;
        // SAFETY: after success, this is the resulting tensor, and the caller owns it.
        Ok(unsafe { Tensor::from_ptr(result) })
    }
}

/// The memory of a contiguous tensor of the CPU, in float32 or bfloat16.
pub(super) fn cells(tensor: &Tensor) -> Option<Matrix<'_>> {
    if tensor.device() != Device::Cpu || !tensor.is_contiguous() {
        return None;
    }
    let (memory, count) = (tensor.data_ptr(), tensor.numel());
    if count == 0 {
        return None;
    }
    // SAFETY: the tensor has so many elements of this type. All work on a model is done by one
    // thread at a time, so the elements do not change while they are borrowed.
    match tensor.kind() {
        Kind::Float => Some(Matrix::Float(unsafe {
            slice::from_raw_parts(memory.cast(), count)
        })),
        Kind::BFloat16 => Some(Matrix::BFloat16(unsafe {
            slice::from_raw_parts(memory.cast(), count)
        })),
        _ => None,
    }
}

/// The memory of a contiguous tensor of the CPU in float32, which only the caller uses.
pub(super) fn floats_mut(tensor: &mut Tensor) -> Result<&mut [f32], TchError> {
    if tensor.kind() != Kind::Float || tensor.device() != Device::Cpu || !tensor.is_contiguous() {
        return Err(TchError::Kind(
            "expected contiguous float32 of the CPU".to_owned(),
        ));
    }
    if tensor.numel() == 0 {
        return Ok(&mut []);
    }
    // SAFETY: the tensor has so many elements of this type. All work on a model is done by one
    // thread at a time, and other tensors with this memory are not read while it is borrowed.
    Ok(unsafe { slice::from_raw_parts_mut(tensor.data_ptr().cast(), tensor.numel()) })
}

/// Writes numbers to the memory of a contiguous tensor of the CPU, in float32 or bfloat16.
pub(super) fn store(tensor: &mut Tensor, at: usize, numbers: &[f32]) -> Result<(), TchError> {
    let is_usable = tensor.device() == Device::Cpu && tensor.is_contiguous();
    if !is_usable || at + numbers.len() > tensor.numel() {
        return Err(TchError::Shape(format!(
            "{} numbers at {at} do not fit into a tensor of {:?}",
            numbers.len(),
            tensor.size()
        )));
    }
    // SAFETY: the tensor has so many elements of this type.
    match tensor.kind() {
        Kind::Float => unsafe {
            let memory = tensor.data_ptr().cast::<f32>().add(at);
            slice::from_raw_parts_mut(memory, numbers.len()).copy_from_slice(numbers);
        },
        Kind::BFloat16 => {
            let memory =
                unsafe { slice::from_raw_parts_mut(tensor.data_ptr().cast::<u16>().add(at), numbers.len()) };
            for (cell, number) in memory.iter_mut().zip(numbers) {
                *cell = to_bfloat16(*number);
            }
        }
        kind => return Err(TchError::Kind(format!("no numbers are stored in {kind:?}"))),
    }
    Ok(())
}

/// The bits of the nearest number, of two the even one.
fn to_bfloat16(number: f32) -> u16 {
    let bits = number.to_bits();
    if number.is_nan() {
        return (bits >> 16) as u16 | 1 << 6;
    }
    ((bits + 0x7fff + (bits >> 16 & 1)) >> 16) as u16
}

/// Runs `work` on ranges that make up `0..count`, on libtorch's threads. A range has at least
/// `grain` elements if there are so many. Returns the results in order.
pub(super) fn parallel<T, F>(count: usize, grain: usize, work: F) -> Result<Vec<(Range<usize>, T)>, TchError>
where
    T: Send,
    F: Fn(Range<usize>) -> T + Sync,
{
    struct Context<'a, T, F> {
        work: &'a F,
        done: Mutex<Vec<(Range<usize>, T)>>,
    }

    unsafe extern "C" fn call<T, F: Fn(Range<usize>) -> T>(begin: i64, end: i64, context: *mut c_void) {
        // SAFETY: `parallel` passes a context of these types, which outlives the call.
        let context = unsafe { &*context.cast::<Context<'_, T, F>>() };
        let range = begin as usize..end as usize;
        let result = (context.work)(range.clone());
        let mut done = context.done.lock().unwrap_or_else(PoisonError::into_inner);
        done.push((range, result));
    }

    if count <= grain {
        return Ok(vec![(0..count, work(0..count))]);
    }
    let context = Context {
        work: &work,
        done: Mutex::new(Vec::new()),
    };
    // SAFETY: the call returns after all ranges are done. `F` is `Sync`, and `T` is `Send`.
    let code = unsafe {
        torch_parallel_for(
            0,
            count as i64,
            grain as i64,
            call::<T, F>,
            (&raw const context).cast_mut().cast(),
        )
    };
    check(code, c"parallel_for")?;
    let mut done = context.done.into_inner().unwrap_or_else(PoisonError::into_inner);
    done.sort_unstable_by_key(|(range, _)| range.start);
    Ok(done)
}

fn check(code: i32, operation: &CStr) -> Result<(), TchError> {
    if code == 0 {
        return Ok(());
    }
    let name = operation.to_string_lossy();
    Err(TchError::Torch(format!(
        "{name} failed; libtorch has written its message to the standard error"
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packed_layer_computes_what_linear_does() {
        let _no_grad = tch::no_grad_guard();
        let options = (Kind::Float, Device::Cpu);
        let (input, weight) = (
            Tensor::randn([1, 9, 32], options),
            Tensor::randn([48, 32], options),
        );
        let (bias, other) = (Tensor::randn([48], options), Tensor::randn([1, 9, 48], options));
        let packed = Packed::new(&weight, bias.shallow_clone()).unwrap();
        let plain = input.linear(&weight, Some(&bias));
        for (found, expected) in [
            (packed.forward(&input).unwrap(), plain.shallow_clone()),
            (packed.forward_gelu(&input).unwrap(), plain.gelu("none")),
            (packed.forward_add(&input, &other).unwrap(), &plain + &other),
        ] {
            let off = (found - expected).abs().max().double_value(&[]);
            assert!(off < 1e-4, "{off}");
        }
        // The original is neither consumed nor changed.
        assert_eq!(weight.size(), [48, 32]);
    }

    #[test]
    fn stored_numbers_are_rounded_as_libtorch_does() {
        let numbers = [
            1.0,
            1.003_906_3,
            1.011_718_8,
            -3.3e-5,
            f32::MAX,
            f32::INFINITY,
            1e-40,
        ];
        let mut stored = Tensor::zeros([7], (Kind::BFloat16, Device::Cpu));
        store(&mut stored, 0, &numbers).unwrap();
        assert_eq!(stored, Tensor::from_slice(&numbers).to_kind(Kind::BFloat16));
        store(&mut stored, 0, &[f32::NAN]).unwrap();
        assert!(stored.double_value(&[0]).is_nan());
    }

    #[test]
    fn ranges_make_up_the_whole_in_order() {
        let found = parallel(1000, 10, |range| range.sum::<usize>()).unwrap();
        assert_eq!(found.iter().map(|(_, sum)| sum).sum::<usize>(), 999 * 1000 / 2);
        let ends: Vec<usize> = found.iter().map(|(range, _)| range.end).collect();
        assert!(ends.is_sorted() && ends.last() == Some(&1000), "{found:?}");
    }
}
