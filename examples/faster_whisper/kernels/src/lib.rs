//! Products of a few rows with a matrix, and attention of a few rows, in the widest vectors of the
//! processor.
//!
//! A step of the decoder reads all weights for a few tokens, so its speed is that of reading
//! memory. The kernels read float32, bfloat16 or int8, and compute in float32, or in products of
//! bfloat16 where the processor has them. A row has the same result alone and among others.

#![allow(unsafe_code)] // Vectors of the processor.

mod blocks;
mod vector;
#[cfg(target_arch = "x86_64")]
mod x86;

use std::ops::Range;

use blocks::{mix, products_of};

/// Of all Whisper models.
pub const LAYER_NORM_EPSILON: f64 = 1e-5;

/// Weights of a row of an int8 matrix that have the same scale.
pub const GROUP: usize = 64;

/// Numbers of the widest vector.
const MOST_LANES: usize = 16;
/// Numbers of a vector in bfloat16.
#[cfg(target_arch = "x86_64")]
const PAIR_LANES: usize = 32;

/// Rows of numbers of the same length.
#[derive(Debug, Clone, Copy)]
pub enum Matrix<'a> {
    /// Float32.
    Float(&'a [f32]),
    /// The bits of bfloat16.
    BFloat16(&'a [u16]),
    /// With a scale for each [`GROUP`] of a row.
    Int8(&'a [i8], &'a [f32]),
}

impl Matrix<'_> {
    /// Number of cells.
    #[must_use]
    pub fn cell_count(self) -> usize {
        match self {
            Self::Float(values) => values.len(),
            Self::BFloat16(values) => values.len(),
            Self::Int8(values, _) => values.len(),
        }
    }

    /// Some of its rows, each with `width` numbers. Empty if it does not have all of them.
    #[must_use]
    pub fn rows(self, range: Range<usize>, width: usize) -> Self {
        let cells = range.start * width..range.end * width;
        let groups = width.div_ceil(GROUP);
        let scales_of = |scales: Range<usize>| scales.start * groups..scales.end * groups;
        match self {
            Self::Float(values) => Self::Float(values.get(cells).unwrap_or_default()),
            Self::BFloat16(values) => Self::BFloat16(values.get(cells).unwrap_or_default()),
            Self::Int8(values, scales) => Self::Int8(
                values.get(cells).unwrap_or_default(),
                scales.get(scales_of(range)).unwrap_or_default(),
            ),
        }
    }

    fn has_rows(self, count: usize, width: usize) -> bool {
        let has_scales = match self {
            Self::Int8(_, scales) => scales.len() == count * width.div_ceil(GROUP),
            _ => true,
        };
        has_scales && self.cell_count() == count * width
    }
}

/// Whether this processor has vectors, and rows of this length fill them.
#[must_use]
pub fn has_vectors_for(width: usize) -> bool {
    width.is_multiple_of(MOST_LANES) && Lanes::of_processor() != Lanes::One
}

/// Numbers of a vector.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lanes {
    #[cfg(target_arch = "x86_64")]
    Sixteen,
    #[cfg(target_arch = "x86_64")]
    Eight,
    One,
}

impl Lanes {
    fn of_processor() -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx512f") {
                return Self::Sixteen;
            }
            if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                return Self::Eight;
            }
        }
        Self::One
    }

    /// The widest that rows of this length fill.
    fn for_width(width: usize) -> Self {
        if width.is_multiple_of(MOST_LANES) {
            Self::of_processor()
        } else {
            Self::One
        }
    }
}

/// The products of each of the inputs (rows of `width`) with all rows of the matrix: an output for
/// each input, with a number for each row of the matrix.
///
/// Inputs of a matrix in bfloat16 are rounded to bfloat16 where the processor multiplies it.
///
/// # Panics
/// The lengths do not match.
pub fn products(matrix: Matrix<'_>, width: usize, inputs: &[f32], outputs: &mut [&mut [f32]]) {
    #[cfg(target_arch = "x86_64")]
    if let Matrix::BFloat16(cells) = matrix
        && has_pairs_for(width)
    {
        check(matrix, width, inputs, outputs);
        // SAFETY: the lengths match, vectors divide the width, and the processor has them.
        return unsafe { x86::products_of_pairs(cells, width, inputs, outputs) };
    }
    products_in(Lanes::for_width(width), matrix, width, inputs, outputs);
}

/// Whether the processor multiplies bfloat16, and rows of this length fill its vectors.
#[cfg(target_arch = "x86_64")]
fn has_pairs_for(width: usize) -> bool {
    width.is_multiple_of(PAIR_LANES)
        && is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bf16")
}

/// # Panics
/// The lengths do not match.
fn check(matrix: Matrix<'_>, width: usize, inputs: &[f32], outputs: &[&mut [f32]]) {
    let count = outputs.first().map_or(0, |output| output.len());
    assert!(outputs.iter().all(|output| output.len() == count));
    assert!(inputs.len() == outputs.len() * width && matrix.has_rows(count, width));
}

fn products_in(lanes: Lanes, matrix: Matrix<'_>, width: usize, inputs: &[f32], outputs: &mut [&mut [f32]]) {
    check(matrix, width, inputs, outputs);
    // SAFETY: the lengths match, vectors divide the width, and the processor has them.
    unsafe {
        match lanes {
            #[cfg(target_arch = "x86_64")]
            Lanes::Sixteen => x86::products_16(matrix, width, inputs, outputs),
            #[cfg(target_arch = "x86_64")]
            Lanes::Eight => x86::products_8(matrix, width, inputs, outputs),
            Lanes::One => products_of::<f32, 2>(matrix, width, inputs, outputs),
        }
    }
}

/// The attention of queries (rows of `width`) to the rows of `keys` and `values`. Query `n` sees
/// the first `seen(n)` of them, at least one. `mixed` has a row for each query.
///
/// # Panics
/// The lengths do not match.
pub fn attend(
    (keys, values): (Matrix<'_>, Matrix<'_>),
    width: usize,
    queries: &[f32],
    seen: &dyn Fn(usize) -> usize,
    mixed: &mut [f32],
) {
    let count = queries.len() / width;
    let positions = (0..count).map(seen).max().unwrap_or_default();
    assert!(mixed.len() == queries.len() && values.has_rows(positions, width));
    let mut weights = vec![0.0_f32; count * positions];
    let mut rows: Vec<&mut [f32]> = weights.chunks_exact_mut(positions.max(1)).collect();
    let lanes = Lanes::for_width(width);
    products_in(lanes, keys, width, queries, &mut rows);
    let scale = (width as f32).sqrt().recip();
    for (query, row) in rows.into_iter().enumerate() {
        let (now, later) = row.split_at_mut(seen(query));
        later.fill(0.0);
        // SAFETY: the processor has the vectors.
        unsafe {
            match lanes {
                #[cfg(target_arch = "x86_64")]
                Lanes::Sixteen => x86::softmax_16(now, scale),
                #[cfg(target_arch = "x86_64")]
                Lanes::Eight => x86::softmax_8(now, scale),
                Lanes::One => softmax(now, scale),
            }
        }
    }
    // SAFETY: the lengths match, vectors divide the width, and the processor has them.
    unsafe {
        match lanes {
            #[cfg(target_arch = "x86_64")]
            Lanes::Sixteen => x86::mix_16(values, width, &weights, mixed),
            #[cfg(target_arch = "x86_64")]
            Lanes::Eight => x86::mix_8(values, width, &weights, mixed),
            Lanes::One => mix::<f32, 2>(values, width, &weights, mixed),
        }
    }
}

/// Layer normalisation of rows that are as long as the weight.
///
/// # Panics
/// The lengths do not match.
pub fn layer_norm(rows: &[f32], weight: &[f32], bias: &[f32], normed: &mut [f32]) {
    assert!(normed.len() == rows.len() && bias.len() == weight.len());
    // SAFETY: the processor has the vectors.
    unsafe {
        match Lanes::of_processor() {
            #[cfg(target_arch = "x86_64")]
            Lanes::Sixteen => x86::layer_norm_16(rows, weight, bias, normed),
            #[cfg(target_arch = "x86_64")]
            Lanes::Eight => x86::layer_norm_8(rows, weight, bias, normed),
            Lanes::One => layer_norm_rows(rows, weight, bias, normed),
        }
    }
}

#[inline(always)]
fn layer_norm_rows(rows: &[f32], weight: &[f32], bias: &[f32], normed: &mut [f32]) {
    let width = weight.len();
    for (row, normed) in rows.chunks_exact(width).zip(normed.chunks_exact_mut(width)) {
        let mean = sum(row, |value| value) / width as f32;
        let variance = sum(row, |value| (value - mean) * (value - mean)) / width as f32;
        let inverse = (variance + LAYER_NORM_EPSILON as f32).sqrt().recip();
        for (((cell, value), weight), bias) in normed.iter_mut().zip(row).zip(weight).zip(bias) {
            *cell = (value - mean) * inverse * weight + bias;
        }
    }
}

/// x · Φ(x) of each number, where Φ is the normal distribution: exact GELU.
pub fn gelu(values: &mut [f32]) {
    // SAFETY: the processor has the vectors.
    unsafe {
        match Lanes::of_processor() {
            #[cfg(target_arch = "x86_64")]
            Lanes::Sixteen => x86::gelu_16(values),
            #[cfg(target_arch = "x86_64")]
            Lanes::Eight => x86::gelu_8(values),
            Lanes::One => gelu_of(values),
        }
    }
}

#[inline(always)]
#[allow(clippy::excessive_precision)]
fn gelu_of(values: &mut [f32]) {
    for value in values {
        let x = *value;
        let z = x.abs() * std::f32::consts::FRAC_1_SQRT_2;
        // Abramowitz and Stegun, 7.1.26: 1 - erf(z) with an error of at most 1.5e-7.
        let t = (1.0 + 0.327_591_1 * z).recip();
        let p = 1.061_405_429_f32;
        let p = p * t - 1.453_152_027;
        let p = p * t + 1.421_413_741;
        let p = p * t - 0.284_496_736;
        let p = p * t + 0.254_829_592;
        let upper = 0.5 * p * t * exp(-z * z);
        *value = x * if x > 0.0 { 1.0 - upper } else { upper };
    }
}

/// Rounds rows of this length to int8, with a scale for each group.
///
/// # Panics
/// The lengths do not match.
pub fn round(values: &[f32], width: usize, cells: &mut [i8], scales: &mut [f32]) {
    assert!(cells.len() == values.len() && scales.len() == values.len() / width * width.div_ceil(GROUP));
    // SAFETY: the processor has the vectors.
    unsafe {
        match Lanes::of_processor() {
            #[cfg(target_arch = "x86_64")]
            Lanes::Sixteen => x86::round_16(values, width, cells, scales),
            #[cfg(target_arch = "x86_64")]
            Lanes::Eight => x86::round_8(values, width, cells, scales),
            Lanes::One => round_rows(values, width, cells, scales),
        }
    }
}

#[inline(always)]
fn round_rows(values: &[f32], width: usize, cells: &mut [i8], scales: &mut [f32]) {
    let rows = values.chunks_exact(width).zip(cells.chunks_exact_mut(width));
    for ((row, cells), scales) in rows.zip(scales.chunks_exact_mut(width.div_ceil(GROUP))) {
        let groups = row.chunks(GROUP).zip(cells.chunks_mut(GROUP));
        for ((group, cells), scale) in groups.zip(scales) {
            *scale = largest_of(group, 0.0, f32::abs) / f32::from(i8::MAX);
            let inverse = if *scale > 0.0 { scale.recip() } else { 0.0 };
            for (cell, value) in cells.iter_mut().zip(group) {
                // 1.5 · 2²³: the sum has no bits behind the point, and its last bits are the
                // integer.
                *cell = (value * inverse + 12_582_912.0).to_bits() as i8;
            }
        }
    }
}

/// ln Σ eˣ of at least one number. NaN if one is.
#[must_use]
pub fn log_sum_exp(values: &[f32]) -> f32 {
    // SAFETY: the processor has the vectors.
    unsafe {
        match Lanes::of_processor() {
            #[cfg(target_arch = "x86_64")]
            Lanes::Sixteen => x86::log_sum_exp_16(values),
            #[cfg(target_arch = "x86_64")]
            Lanes::Eight => x86::log_sum_exp_8(values),
            Lanes::One => log_sum_exp_of(values),
        }
    }
}

/// The largest number, or NaN if one is. -∞ if there is none.
#[must_use]
pub fn largest(values: &[f32]) -> f32 {
    // SAFETY: the processor has the vectors.
    unsafe {
        match Lanes::of_processor() {
            #[cfg(target_arch = "x86_64")]
            Lanes::Sixteen => x86::largest_16(values),
            #[cfg(target_arch = "x86_64")]
            Lanes::Eight => x86::largest_8(values),
            Lanes::One => largest_of(values, f32::NEG_INFINITY, |value| value),
        }
    }
}

#[inline(always)]
fn log_sum_exp_of(values: &[f32]) -> f32 {
    let most = largest_of(values, f32::MIN, |value| value);
    most + sum(values, |value| exp(value - most)).ln()
}

/// Softmax of the scaled scores. NaN if a score is.
#[inline(always)]
fn softmax(scores: &mut [f32], scale: f32) {
    let most = largest_of(scores, f32::NEG_INFINITY, |score| score);
    for score in scores.iter_mut() {
        *score = exp((*score - most) * scale);
    }
    let inverse = sum(scores, |score| score).recip();
    for score in scores {
        *score *= inverse;
    }
}

/// The sum of the numbers that `of` makes of the values.
#[inline(always)]
fn sum(values: &[f32], of: impl Fn(f32) -> f32) -> f32 {
    let mut sums = [0.0_f32; MOST_LANES];
    let (chunks, rest) = values.as_chunks::<MOST_LANES>();
    for chunk in chunks {
        for (sum, value) in sums.iter_mut().zip(chunk) {
            *sum += of(*value);
        }
    }
    let rest = rest.iter().map(|value| of(*value));
    sums.into_iter().chain(rest).sum()
}

/// The largest of the numbers that `of` makes of the values, at least `least`. NaN if one is.
#[inline(always)]
fn largest_of(values: &[f32], least: f32, of: impl Fn(f32) -> f32) -> f32 {
    let greater = |most: f32, value: f32| {
        if value > most || value.is_nan() {
            value
        } else {
            most
        }
    };
    let mut most = [least; MOST_LANES];
    let (chunks, rest) = values.as_chunks::<MOST_LANES>();
    for chunk in chunks {
        for (most, value) in most.iter_mut().zip(chunk) {
            *most = greater(*most, of(*value));
        }
    }
    let rest = rest.iter().map(|value| of(*value));
    most.into_iter().chain(rest).fold(least, greater)
}

/// eˣ of a number of at most 0, with a relative error of at most 2⁻²², as Cephes' `expf`.
#[inline(always)]
#[allow(clippy::excessive_precision)]
fn exp(x: f32) -> f32 {
    // Below, the result is less than the smallest normal number. NaN stays.
    let x = if x < -87.0 { -87.0 } else { x };
    // 1.5 · 2²³: the sum has no bits behind the point, and its last bits are the integer.
    let shifted = x * std::f32::consts::LOG2_E + 12_582_912.0;
    let n = shifted - 12_582_912.0;
    // ln 2 in two parts, so that the difference is exact.
    let r = x - n * 0.693_359_375 + n * 2.121_944_4e-4;
    let p = 1.987_569_15e-4_f32;
    let p = p * r + 1.398_199_95e-3;
    let p = p * r + 8.333_451_9e-3;
    let p = p * r + 4.166_579_6e-2;
    let p = p * r + 1.666_666_5e-1;
    let p = p * r + 5.000_000_1e-1;
    let power = f32::from_bits((shifted.to_bits() << 23).wrapping_add(127 << 23));
    (p * r * r + r + 1.0) * power
}

#[cfg(test)]
mod tests {
    use super::*;

    fn random(count: usize) -> Vec<f32> {
        let mut random = fastrand::Rng::with_seed(count as u64);
        (0..count).map(|_| random.f32() * 2.0 - 1.0).collect()
    }

    fn all_lanes() -> Vec<Lanes> {
        let mut all = vec![Lanes::One];
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                all.push(Lanes::Eight);
            }
            if is_x86_feature_detected!("avx512f") {
                all.push(Lanes::Sixteen);
            }
        }
        all
    }

    /// The cell of a matrix.
    fn cell(matrix: Matrix<'_>, width: usize, row: usize, at: usize) -> f64 {
        let index = row * width + at;
        match matrix {
            Matrix::Float(cells) => f64::from(cells[index]),
            Matrix::BFloat16(cells) => f64::from(f32::from_bits(u32::from(cells[index]) << 16)),
            Matrix::Int8(cells, scales) => {
                f64::from(cells[index]) * f64::from(scales[row * width.div_ceil(GROUP) + at / GROUP])
            }
        }
    }

    #[test]
    fn products_are_the_same_in_all_vectors() {
        // Rows and inputs that are multiples of no block.
        let (width, rows, inputs) = (80, 11, 8);
        let floats = random(rows * width);
        let bits: Vec<u16> = floats
            .iter()
            .map(|value| (value.to_bits() >> 16) as u16)
            .collect();
        let int8: Vec<i8> = floats.iter().map(|value| (value * 127.0) as i8).collect();
        let scales = random(rows * 2);
        let values = random(inputs * width);
        for matrix in [
            Matrix::Float(&floats),
            Matrix::BFloat16(&bits),
            Matrix::Int8(&int8, &scales),
        ] {
            for lanes in all_lanes() {
                let mut found = vec![0.0; inputs * rows];
                let mut outputs: Vec<&mut [f32]> = found.chunks_mut(rows).collect();
                products_in(lanes, matrix, width, &values, &mut outputs);
                for (n, found) in found.iter().enumerate() {
                    let (input, row) = (n / rows, n % rows);
                    let expected: f64 = (0..width)
                        .map(|at| cell(matrix, width, row, at) * f64::from(values[input * width + at]))
                        .sum();
                    let off = (f64::from(*found) - expected).abs();
                    assert!(off < 1e-3, "{lanes:?}: {found} {expected}");
                }
                let mut alone = vec![0.0; rows];
                products_in(lanes, matrix, width, &values[..width], &mut [&mut alone]);
                assert_eq!(alone, found[..rows]);
            }
        }
    }

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn products_of_bfloat16_round_the_inputs() {
        // Rows and inputs that are multiples of no block, and half a group.
        let (width, rows, inputs) = (96, 11, 8);
        let bits = |values: &[f32]| -> Vec<u16> {
            let upper = values.iter().map(|value| (value.to_bits() >> 16) as u16);
            upper.collect()
        };
        let weights = bits(&random(rows * width));
        // Half of a bfloat16's last place decides.
        let values: Vec<f32> = random(inputs * width)
            .iter()
            .map(|value| f32::from_bits(value.to_bits() & 0xffff_0000 | 0x8001))
            .collect();
        let rounded = |value: f32| match has_pairs_for(width) {
            true => f32::from_bits((value.to_bits() & 0xffff_0000) + 0x1_0000),
            false => value,
        };
        let mut found = vec![0.0; inputs * rows];
        let mut outputs: Vec<&mut [f32]> = found.chunks_mut(rows).collect();
        products(Matrix::BFloat16(&weights), width, &values, &mut outputs);
        for (n, found) in found.iter().enumerate() {
            let (input, row) = (n / rows, n % rows);
            let products = (0..width).map(|at| {
                let value = rounded(values[input * width + at]);
                cell(Matrix::BFloat16(&weights), width, row, at) * f64::from(value)
            });
            let expected: f64 = products.sum();
            assert!((f64::from(*found) - expected).abs() < 1e-4, "{found} {expected}");
        }
        for input in 0..inputs {
            let mut alone = vec![0.0; rows];
            let values = &values[input * width..(input + 1) * width];
            products(Matrix::BFloat16(&weights), width, values, &mut [&mut alone]);
            assert_eq!(alone, found[input * rows..(input + 1) * rows]);
        }
    }

    #[test]
    fn exp_is_that_of_the_standard_library() {
        for step in 0..87_000 {
            let x = -(step as f32) / 1000.0;
            let expected = f64::from(x).exp();
            let off = (f64::from(exp(x)) / expected - 1.0).abs();
            assert!(off < 2.4e-7, "{x}: {off}");
        }
        assert!(exp(f32::NEG_INFINITY) < 1e-37 && exp(f32::NAN).is_nan());
    }

    #[test]
    fn log_sum_exp_is_that_of_doubles() {
        let values: Vec<f32> = random(1000).iter().map(|value| value * 30.0).collect();
        let expected: f64 = values.iter().map(|value| f64::from(*value).exp()).sum();
        assert!((f64::from(log_sum_exp(&values)) - expected.ln()).abs() < 1e-5);
        let suppressed = [f32::NEG_INFINITY, 2.0];
        assert_eq!(log_sum_exp(&suppressed), 2.0);
        assert!(log_sum_exp(&[1.0, f32::NAN]).is_nan());
    }

    #[test]
    fn layer_norm_is_that_of_doubles() {
        let (width, rows) = (80, random(240));
        let (weight, bias) = (random(width), random(width + 1));
        let mut normed = vec![0.0; rows.len()];
        layer_norm(&rows, &weight, &bias[1..], &mut normed);
        for (row, normed) in rows.chunks(width).zip(normed.chunks(width)) {
            let row: Vec<f64> = row.iter().map(|value| f64::from(*value)).collect();
            let mean = row.iter().sum::<f64>() / width as f64;
            let variance = row.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / width as f64;
            for (at, found) in normed.iter().enumerate() {
                let unit = (row[at] - mean) / (variance + LAYER_NORM_EPSILON).sqrt();
                let expected = unit * f64::from(weight[at]) + f64::from(bias[at + 1]);
                assert!((f64::from(*found) - expected).abs() < 1e-5, "{found} {expected}");
            }
        }
    }

    #[test]
    fn queries_attend_to_what_they_see() {
        let (width, positions, count) = (32, 21, 7);
        let (keys, values) = (random(positions * width), random(positions * width + 1));
        let queries = random(count * width);
        let mut mixed = vec![0.0; count * width];
        let seen = |query| positions - count + 1 + query;
        let both = (Matrix::Float(&keys), Matrix::Float(&values[1..]));
        attend(both, width, &queries, &seen, &mut mixed);
        for query in 0..count {
            let dot = |position: usize| -> f64 {
                let pairs = (0..width).map(|at| (queries[query * width + at], keys[position * width + at]));
                pairs.map(|(q, k)| f64::from(q) * f64::from(k)).sum()
            };
            let scale = (width as f64).sqrt().recip();
            let weights: Vec<f64> = (0..seen(query)).map(|n| (dot(n) * scale).exp()).collect();
            let sum: f64 = weights.iter().sum();
            for at in 0..width {
                let weighted = weights.iter().enumerate();
                let expected: f64 = weighted
                    .map(|(n, weight)| weight / sum * f64::from(values[1 + n * width + at]))
                    .sum();
                let found = f64::from(mixed[query * width + at]);
                assert!((found - expected).abs() < 1e-5, "{found} {expected}");
            }
        }
    }
}
