//! The decoder for a few rows on the CPU: the tokens of a step, and short prompts.
//!
//! Rows are slices in float32, one after the other. An operation of libtorch takes longer than the
//! arithmetic of a small layer, so a layer has none, and uses only libtorch's threads.

mod attention;

use std::borrow::Cow;
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use tch::{Device, Kind, TchError, Tensor};
use whisper_kernels::{self as kernels, Matrix};

pub(super) use attention::{attend_causal, attend_window};

use super::native;

/// With more rows, libtorch's matrix products are faster.
pub(super) const MOST_ROWS: usize = 48;
/// Products that are worth another thread.
const GRAIN: usize = 1 << 17;

/// y = x·Wᵀ + b, with the weight as the file has it.
#[derive(Debug)]
pub(crate) struct FewRows {
    weight: Tensor,
    bias: Tensor,
    /// The bias in float32.
    bias_values: Vec<f32>,
}

impl FewRows {
    /// Whether a layer with this weight can be one.
    pub(super) fn fits(weight: &Tensor) -> bool {
        let width = weight.size().last().copied().unwrap_or_default();
        kernels::has_vectors_for(width as usize) && native::cells(weight).is_some()
    }

    pub(super) fn new(weight: Tensor, bias: Tensor) -> Result<Self, TchError> {
        let bias_values = floats(&bias)?.into_owned();
        Ok(Self {
            weight,
            bias,
            bias_values,
        })
    }

    /// For many rows.
    pub(super) fn forward(&self, input: &Tensor) -> Result<Tensor, TchError> {
        input.f_linear(&self.weight, Some(&self.bias))
    }

    /// The weight and the bias. `None` if the weight does not [fit](Self::fits).
    pub(super) fn layer(&self) -> Option<(Matrix<'_>, &[f32])> {
        Some((native::cells(&self.weight)?, &self.bias_values))
    }
}

/// Whether a tensor (… × rows × width) has a few rows.
pub(super) fn has_few_rows(input: &Tensor) -> bool {
    let size = input.size();
    let rows = size.split_last().map_or(0, |(_, rows)| rows.iter().product());
    rows <= MOST_ROWS as i64
}

/// The products of the rows of `input` (… × width) with all rows of the matrix, plus `bias` unless
/// it is empty, plus `other` if there is one; in float32.
pub(super) fn multiply(
    matrix: Matrix<'_>,
    bias: &[f32],
    input: &Tensor,
    other: Option<&Tensor>,
) -> Result<Tensor, TchError> {
    let mut shape = input.size();
    let width = shape.last().copied().unwrap_or_default() as usize;
    let outputs = matrix.cell_count() / width.max(1);
    if let Some(last) = shape.last_mut() {
        *last = outputs as i64;
    }
    let rows = floats(input)?;
    let other = other.map(floats).transpose()?;
    let mut result = Tensor::f_empty(shape.as_slice(), (Kind::Float, Device::Cpu))?;
    let table = native::floats_mut(&mut result)?;
    multiply_rows(matrix, bias, (&rows, width), other.as_deref(), table)?;
    Ok(result)
}

/// As [`multiply`], of rows with `width` numbers, into a table with a row for each of them.
pub(super) fn multiply_rows(
    matrix: Matrix<'_>,
    bias: &[f32],
    (rows, width): (&[f32], usize),
    other: Option<&[f32]>,
    table: &mut [f32],
) -> Result<(), TchError> {
    let outputs = matrix.cell_count() / width.max(1);
    by_columns(table, outputs, rows.len(), |range, results| {
        let start = range.start;
        kernels::products(matrix.rows(range, width), width, rows, results);
        for (index, result) in results.iter_mut().enumerate() {
            for (sum, bias) in result.iter_mut().zip(bias.iter().skip(start)) {
                *sum += bias;
            }
            let other = other
                .iter()
                .flat_map(|other| other.iter().skip(index * outputs + start));
            for (sum, other) in result.iter_mut().zip(other) {
                *sum += other;
            }
        }
    })
}

/// Gives ranges of the columns of a table to threads: `work` gets a range, and that part of each
/// row. A column costs this many products.
fn by_columns(
    table: &mut [f32],
    columns: usize,
    cost: usize,
    work: impl Fn(Range<usize>, &mut [&mut [f32]]) + Sync,
) -> Result<(), TchError> {
    let threads = tch::get_num_threads().max(1) as usize;
    let parts = (columns * cost / GRAIN).clamp(1, threads);
    // A multiple of the rows that a kernel reads side by side.
    let size = columns.div_ceil(parts).next_multiple_of(16).max(1);
    let mut shares: Vec<Vec<&mut [f32]>> = (0..columns.div_ceil(size)).map(|_| Vec::new()).collect();
    for row in table.chunks_exact_mut(columns.max(1)) {
        for (share, part) in shares.iter_mut().zip(row.chunks_mut(size)) {
            share.push(part);
        }
    }
    let shares: Vec<Mutex<Vec<&mut [f32]>>> = shares.into_iter().map(Mutex::new).collect();
    native::parallel(shares.len(), 1, |indices| {
        for (index, share) in shares.iter().enumerate().take(indices.end).skip(indices.start) {
            let mut share = share.lock().unwrap_or_else(PoisonError::into_inner);
            work(index * size..(index * size + size).min(columns), &mut share);
        }
    })?;
    Ok(())
}

/// The numbers of a tensor in float32, without a copy if they are.
pub(super) fn floats(tensor: &Tensor) -> Result<Cow<'_, [f32]>, TchError> {
    if let Some(Matrix::Float(values)) = native::cells(tensor) {
        return Ok(Cow::Borrowed(values));
    }
    let flat = tensor
        .f_to_device(Device::Cpu)?
        .f_to_kind(Kind::Float)?
        .f_contiguous()?;
    let mut values = vec![0.0_f32; flat.numel()];
    let count = values.len();
    flat.f_copy_data(&mut values, count)?;
    Ok(Cow::Owned(values))
}

#[cfg(test)]
mod tests {
    use super::*;

    const FLOAT: (Kind, Device) = (Kind::Float, Device::Cpu);

    #[test]
    fn product_is_that_of_libtorch() {
        let _no_grad = tch::no_grad_guard();
        for kind in [Kind::Float, Kind::BFloat16] {
            // Enough for several threads.
            for rows in [1, 7, MOST_ROWS as i64] {
                let random = |shape: &[i64]| Tensor::randn(shape, FLOAT);
                let (weight, bias) = (random(&[1201, 256]).to_kind(kind), random(&[1201]).to_kind(kind));
                // Inputs that are not rounded: see `kernels::products`.
                let input = random(&[rows, 256]).to_kind(kind).to_kind(Kind::Float);
                let other = random(&[rows, 1201]);
                let (exact_weight, exact_bias) = (weight.to_kind(Kind::Float), bias.to_kind(Kind::Float));
                let expected = input.linear(&exact_weight, Some(&exact_bias)) + &other;
                assert_eq!(FewRows::fits(&weight), kernels::has_vectors_for(256));
                let layer = FewRows::new(weight, bias).unwrap();
                let (matrix, bias) = layer.layer().unwrap();
                let found = multiply(matrix, bias, &input, Some(&other)).unwrap();
                assert_eq!(found.size(), expected.size());
                let off = (found - expected).abs().max().double_value(&[]);
                assert!(off < 1e-4, "{kind:?}: {off}");
            }
        }
    }

    #[test]
    fn gelu_is_that_of_libtorch() {
        let values: Vec<f32> = (-800..=800).map(|step| step as f32 / 100.0).collect();
        let expected = Tensor::from_slice(&values).gelu("none");
        let mut found = values;
        kernels::gelu(&mut found);
        let off = (Tensor::from_slice(&found) - expected).abs().max();
        assert!(off.double_value(&[]) < 1e-6, "{off:?}");
        let mut special = [f32::INFINITY, f32::NAN, 0.0];
        kernels::gelu(&mut special);
        assert!(special[0] == f32::INFINITY && special[1].is_nan() && special[2] == 0.0);
    }
}
