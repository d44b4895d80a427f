//! Matrices of int8 with a scale for 64 weights of a row, for the decoder, whose speed is that of
//! reading its weights.
//!
//! Only the weights lose precision: activations become integers of 16 bits, with a scale for each
//! row. So a row has the same result alone and in a batch.

#![allow(unsafe_code)]

use std::iter;

use tch::{Device, Kind, TchError, Tensor};

use super::native;

/// Weights of a row with the same scale. The sum of so many products fits into 32 bits.
const GROUP: usize = 64;
/// Products that are worth another thread.
const GRAIN: usize = 1 << 18;

/// y = x·Wᵀ + b
#[derive(Debug)]
pub(crate) struct Int8 {
    /// outputs × inputs
    weight: Vec<i8>,
    /// outputs × groups
    scales: Vec<f32>,
    bias: Option<Vec<f32>>,
    inputs: usize,
    outputs: usize,
}

impl Int8 {
    /// Rounds the weight (outputs × inputs) of the CPU.
    pub(super) fn new(weight: &Tensor, bias: Option<&Tensor>) -> Result<Self, TchError> {
        let (outputs, inputs) = weight.size2()?;
        let (outputs, inputs) = (outputs as usize, inputs as usize);
        let values = floats(weight)?;
        let rows = native::parallel(outputs, 1 << 10, |range| {
            let mut rounded = Vec::with_capacity(range.len() * inputs);
            let mut scales = Vec::with_capacity(range.len() * inputs.div_ceil(GROUP));
            let rows = values.get(range.start * inputs..range.end * inputs);
            for row in rows.unwrap_or_default().chunks_exact(inputs) {
                for group in row.chunks(GROUP) {
                    let scale = largest(group) / f32::from(i8::MAX);
                    let inverse = inverse(scale);
                    rounded.extend(group.iter().map(|value| nearest(value * inverse) as i8));
                    scales.push(scale);
                }
            }
            (rounded, scales)
        })?;
        let mut whole = Self {
            weight: Vec::with_capacity(values.len()),
            scales: Vec::new(),
            bias: bias.map(floats).transpose()?,
            inputs,
            outputs,
        };
        for (_, (rounded, scales)) in rows {
            whole.weight.extend(rounded);
            whole.scales.extend(scales);
        }
        Ok(whole)
    }

    /// 1 × rows × inputs, or rows × inputs, to the same with outputs, in float32.
    pub(super) fn forward(&self, input: &Tensor) -> Result<Tensor, TchError> {
        let values = floats(input)?;
        let (inputs, outputs) = (self.inputs, self.outputs);
        let groups = inputs.div_ceil(GROUP);
        let count = values.len() / inputs;
        let mut rows = vec![0_i16; values.len()];
        let mut row_scales = Vec::with_capacity(count);
        for (row, rounded) in values.chunks_exact(inputs).zip(rows.chunks_exact_mut(inputs)) {
            let scale = largest(row) / f32::from(i16::MAX);
            let inverse = inverse(scale);
            for (cell, value) in rounded.iter_mut().zip(row) {
                *cell = nearest(value * inverse);
            }
            row_scales.push(scale);
        }
        let grain = (GRAIN / (inputs * count).max(1)).max(16);
        let parts = native::parallel(outputs, grain, |range| {
            let mut part = vec![0.0_f32; range.len() * count];
            let weight = self.weight.get(range.start * inputs..range.end * inputs);
            let scales = self.scales.get(range.start * groups..range.end * groups);
            let matrix = Matrix {
                weight: weight.unwrap_or_default(),
                scales: scales.unwrap_or_default(),
                inputs,
            };
            products(matrix, &rows, &mut part);
            let bias = self.bias.as_ref().and_then(|bias| bias.get(range));
            let bias = bias.unwrap_or_default().iter().chain(iter::repeat(&0.0));
            for (sums, bias) in part.chunks_exact_mut(count.max(1)).zip(bias) {
                for (sum, row_scale) in sums.iter_mut().zip(&row_scales) {
                    *sum = *sum * row_scale + bias;
                }
            }
            part
        })?;
        let mut shape = input.size();
        if let Some(last) = shape.last_mut() {
            *last = outputs as i64;
        }
        let mut parts = parts.into_iter().map(|(_, part)| part);
        let mut result = parts.next().unwrap_or_default();
        parts.for_each(|part| result.extend(part));
        let result = Tensor::f_from_slice(&result)?.f_view([outputs as i64, count as i64])?;
        result.f_tr()?.f_contiguous()?.f_view(shape.as_slice())
    }

    /// The rows of these numbers: 1 × ids × inputs, in float32.
    pub(super) fn rows(&self, ids: &[i64]) -> Result<Tensor, TchError> {
        let mut found = Vec::with_capacity(ids.len() * self.inputs);
        let groups = self.inputs.div_ceil(GROUP);
        for &id in ids {
            let index = id as usize;
            let row = self.weight.get(index * self.inputs..(index + 1) * self.inputs);
            let scales = self.scales.get(index * groups..(index + 1) * groups);
            let (Some(row), Some(scales)) = (row, scales) else {
                return Err(TchError::Shape(format!("there is no row {id}")));
            };
            for (group, scale) in row.chunks(GROUP).zip(scales) {
                found.extend(group.iter().map(|&value| f32::from(value) * scale));
            }
        }
        Tensor::f_from_slice(&found)?.f_view([1, ids.len() as i64, self.inputs as i64])
    }
}

fn floats(tensor: &Tensor) -> Result<Vec<f32>, TchError> {
    let flat = tensor
        .f_to_device(Device::Cpu)?
        .f_to_kind(Kind::Float)?
        .f_contiguous()?;
    let mut values = vec![0.0_f32; flat.numel()];
    let count = values.len();
    flat.f_copy_data(&mut values, count)?;
    Ok(values)
}

/// The nearest integer of a value within ±32767.
fn nearest(value: f32) -> i16 {
    // 1.5 · 2²³: the sum has no bits behind the point, and its last bits are the integer.
    (value + 12_582_912.0).to_bits() as i16
}

fn inverse(scale: f32) -> f32 {
    if scale > 0.0 { scale.recip() } else { 0.0 }
}

/// The largest absolute value, or NaN if there is one.
fn largest(values: &[f32]) -> f32 {
    // Eight at a time, so that the compiler uses vectors.
    let mut most = [0.0_f32; 8];
    let (chunks, rest) = values.as_chunks::<8>();
    for chunk in chunks {
        for (most, value) in most.iter_mut().zip(chunk) {
            *most = if value.abs() <= *most { *most } else { value.abs() };
        }
    }
    most.iter().chain(rest).fold(0.0_f32, |most, value| {
        if most.is_nan() || value.abs() <= most {
            most
        } else {
            value.abs()
        }
    })
}

/// Rows of a matrix.
#[derive(Clone, Copy)]
struct Matrix<'a> {
    weight: &'a [i8],
    scales: &'a [f32],
    inputs: usize,
}

impl<'a> Matrix<'a> {
    /// Each row with its scales.
    fn rows(self) -> impl Iterator<Item = (&'a [i8], &'a [f32])> {
        let scales = self.scales.chunks_exact(self.inputs.div_ceil(GROUP));
        self.weight.chunks_exact(self.inputs).zip(scales)
    }
}

/// For each row of the matrix, its products with all `rows`: `sums` has them one row of the matrix
/// after the other.
fn products(matrix: Matrix<'_>, rows: &[i16], sums: &mut [f32]) {
    #[cfg(target_arch = "x86_64")]
    if matrix.inputs.is_multiple_of(GROUP) {
        if is_x86_feature_detected!("avx512bw") {
            // SAFETY: the processor has the instructions.
            return unsafe { avx512::products(matrix, rows, sums) };
        }
        if is_x86_feature_detected!("avx2") {
            // SAFETY: the processor has the instructions.
            return unsafe { avx2::products(matrix, rows, sums) };
        }
    }
    portable(matrix, rows, sums);
}

fn portable(matrix: Matrix<'_>, rows: &[i16], sums: &mut [f32]) {
    let count = rows.len() / matrix.inputs;
    for ((weight, scales), sums) in matrix.rows().zip(sums.chunks_exact_mut(count)) {
        for (row, sum) in rows.chunks_exact(matrix.inputs).zip(sums) {
            let groups = weight.chunks(GROUP).zip(row.chunks(GROUP)).zip(scales);
            *sum = groups
                .map(|((weight, row), scale)| {
                    let pairs = weight.iter().zip(row);
                    let sum: i32 = pairs.map(|(&w, &x)| i32::from(w) * i32::from(x)).sum();
                    sum as f32 * scale
                })
                .sum();
        }
    }
}

/// The same loop for two sizes of vectors. Rows have whole groups.
#[cfg(target_arch = "x86_64")]
macro_rules! kernel {
    ($name:ident, $features:literal, $lanes:literal, $half:ident, $load_half:ident, $load:ident, $zero:ident, $widen:ident,
     $multiply:ident, $add:ident, $floats:ident, $zero_floats:ident, $to_floats:ident, $splat:ident, $multiply_floats:ident,
     $add_floats:ident, $reduce:expr) => {
        mod $name {
            use std::arch::x86_64::*;

            use super::{GROUP, Matrix};

            /// # Safety
            /// The processor has the features.
            #[target_feature(enable = $features)]
            pub(super) fn products(matrix: Matrix<'_>, rows: &[i16], sums: &mut [f32]) {
                let inputs = matrix.inputs;
                let count = rows.len() / inputs;
                for ((weight, scales), sums) in matrix.rows().zip(sums.chunks_exact_mut(count)) {
                    // Several rows at a time, so that the weight is widened once for them.
                    let (mut rows, mut sums) = (rows, sums);
                    while let Some((some, others)) = rows.split_at_checked(4 * inputs) {
                        let (now, later) = sums.split_at_mut(4);
                        now.copy_from_slice(&block::<4>(weight, scales, some));
                        (rows, sums) = (others, later);
                    }
                    for (row, sum) in rows.chunks_exact(inputs).zip(sums) {
                        [*sum] = block::<1>(weight, scales, row);
                    }
                }
            }

            #[target_feature(enable = $features)]
            fn block<const ROWS: usize>(weight: &[i8], scales: &[f32], rows: &[i16]) -> [f32; ROWS] {
                let each: [&[[i16; GROUP]]; ROWS] = std::array::from_fn(|n| {
                    let row = rows.get(n * weight.len()..(n + 1) * weight.len());
                    row.unwrap_or_default().as_chunks().0
                });
                let mut sums: [$floats; ROWS] = [$zero_floats(); ROWS];
                for ((at, group), scale) in weight.as_chunks::<GROUP>().0.iter().enumerate().zip(scales) {
                    let values: [&[i16; GROUP]; ROWS] =
                        std::array::from_fn(|n| each[n].get(at).unwrap_or(&[0; GROUP]));
                    let mut exact = [$zero(); ROWS];
                    for (part, weight) in group.as_chunks::<$lanes>().0.iter().enumerate() {
                        // SAFETY: the chunk has as many bytes as are read.
                        let weight = $widen(unsafe { $load_half(weight.as_ptr().cast::<$half>()) });
                        for (exact, values) in exact.iter_mut().zip(values) {
                            let values = &values.as_chunks::<$lanes>().0[part];
                            // SAFETY: the chunk has as many elements as are read.
                            let values = unsafe { $load(values.as_ptr().cast()) };
                            *exact = $add(*exact, $multiply(values, weight));
                        }
                    }
                    let scale = $splat(*scale);
                    for (sum, exact) in sums.iter_mut().zip(exact) {
                        *sum = $add_floats(*sum, $multiply_floats($to_floats(exact), scale));
                    }
                }
                sums.map($reduce)
            }
        }
    };
}

#[cfg(target_arch = "x86_64")]
kernel!(
    avx512,
    "avx512f,avx512bw",
    32,
    __m256i,
    _mm256_loadu_si256,
    _mm512_loadu_si512,
    _mm512_setzero_si512,
    _mm512_cvtepi8_epi16,
    _mm512_madd_epi16,
    _mm512_add_epi32,
    __m512,
    _mm512_setzero_ps,
    _mm512_cvtepi32_ps,
    _mm512_set1_ps,
    _mm512_mul_ps,
    _mm512_add_ps,
    |sum| _mm512_reduce_add_ps(sum)
);

#[cfg(target_arch = "x86_64")]
kernel!(
    avx2,
    "avx2",
    16,
    __m128i,
    _mm_loadu_si128,
    _mm256_loadu_si256,
    _mm256_setzero_si256,
    _mm256_cvtepi8_epi16,
    _mm256_madd_epi16,
    _mm256_add_epi32,
    __m256,
    _mm256_setzero_ps,
    _mm256_cvtepi32_ps,
    _mm256_set1_ps,
    _mm256_mul_ps,
    _mm256_add_ps,
    |sum| {
        let half = _mm_add_ps(_mm256_castps256_ps128(sum), _mm256_extractf128_ps::<1>(sum));
        let quarter = _mm_add_ps(half, _mm_movehl_ps(half, half));
        _mm_cvtss_f32(_mm_add_ss(quarter, _mm_shuffle_ps::<1>(quarter, quarter)))
    }
);

#[cfg(test)]
mod tests {
    use super::*;

    fn random(shape: [i64; 2]) -> Tensor {
        Tensor::randn(shape, (Kind::Float, Device::Cpu))
    }

    #[test]
    fn product_differs_by_the_rounding_of_weights() {
        // 70 is no multiple of a group, and 6 none of a block of rows.
        for inputs in [70, 128] {
            let (input, weight) = (random([6, inputs]), random([33, inputs]));
            let bias = Tensor::randn([33], (Kind::Float, Device::Cpu));
            let layer = Int8::new(&weight, Some(&bias)).unwrap();
            let ids: Vec<i64> = (0..33).collect();
            let rounded = layer.rows(&ids).unwrap().squeeze_dim(0);
            let of_weight = (&rounded - &weight).abs().max().double_value(&[]);
            assert!(of_weight < 0.02, "{of_weight}");
            let found = layer.forward(&input).unwrap();
            let off = (&found - input.linear(&rounded, Some(&bias))).abs().max();
            assert!(off.double_value(&[]) < 0.002, "{off:?}");
            assert_eq!(found.size(), [6, 33]);
        }
    }

    #[test]
    fn row_has_the_same_result_alone_and_among_others() {
        let (input, weight) = (random([9, 64]), random([40, 64]));
        let layer = Int8::new(&weight, None).unwrap();
        let together = layer.forward(&input).unwrap();
        for row in 0..9 {
            assert_eq!(
                layer.forward(&input.narrow(0, row, 1)).unwrap(),
                together.narrow(0, row, 1)
            );
        }
    }

    #[test]
    fn all_kernels_have_the_same_sums() {
        let weight: Vec<i8> = (0..5 * 128).map(|n| (n * 37 % 255 - 127) as i8).collect();
        let rows: Vec<i16> = (0..7 * 128).map(|n| (n * 1031 % 65535 - 32767) as i16).collect();
        let matrix = Matrix {
            weight: &weight,
            scales: &[1e-4, 1e-3].repeat(5),
            inputs: 128,
        };
        let (mut expected, mut found) = (vec![0.0; 35], vec![1.0; 35]);
        portable(matrix, &rows, &mut expected);
        let check = |found: &[f32]| {
            for (found, expected) in found.iter().zip(&expected) {
                assert!((found - expected).abs() < 0.1, "{found} {expected}");
            }
        };
        products(matrix, &rows, &mut found);
        check(&found);
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx2") {
            found.fill(1.0);
            // SAFETY: the processor has the instructions.
            unsafe { avx2::products(matrix, &rows, &mut found) };
            check(&found);
        }
    }

    #[test]
    fn not_a_number_stays_one() {
        let layer = Int8::new(&random([3, 20]), None).unwrap();
        let input = Tensor::from_slice(&[f32::NAN; 20]).view([1, 20]);
        assert!(layer.forward(&input).unwrap().isnan().all().int64_value(&[]) == 1);
    }

    #[test]
    fn rows_are_those_of_the_weight() {
        let weight = random([8, 16]);
        let found = Int8::new(&weight, None).unwrap().rows(&[5, 0]).unwrap();
        let expected = weight
            .index_select(0, &Tensor::from_slice(&[5_i64, 0]))
            .unsqueeze(0);
        assert!((found - expected).abs().max().double_value(&[]) < 0.02);
    }
}
