//! Layers of the decoder for a few rows on the CPU: the tokens of a step, and short prompts.

use std::borrow::Cow;
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use tch::{Device, Kind, TchError, Tensor};

use super::attention::Part;
use super::kernels::{self, Matrix};
use super::native;

/// With more rows, libtorch's matrix products are faster.
const MOST_ROWS: i64 = 48;
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

    /// Adds `other`, which has the shape of the result, if there is one.
    pub(super) fn forward(&self, input: &Tensor, other: Option<&Tensor>) -> Result<Tensor, TchError> {
        if let Some(matrix) = native::cells(&self.weight)
            && has_few_rows(input)
        {
            return multiply(matrix, &self.bias_values, input, other)?.f_to_kind(input.kind());
        }
        let product = input.f_linear(&self.weight, Some(&self.bias))?;
        match other {
            Some(other) => product.f_add(other),
            None => Ok(product),
        }
    }
}

/// Whether the kernels are the faster way to multiply this tensor (… × rows × width).
pub(super) fn has_few_rows(input: &Tensor) -> bool {
    let size = input.size();
    let rows = size.split_last().map_or(0, |(_, rows)| rows.iter().product());
    rows <= MOST_ROWS
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
    let outputs = matrix.len() / width.max(1);
    if let Some(last) = shape.last_mut() {
        *last = outputs as i64;
    }
    let inputs = floats(input)?;
    let other = other.map(floats).transpose()?;
    let mut result = Tensor::f_empty(shape.as_slice(), (Kind::Float, Device::Cpu))?;
    let cost = inputs.len();
    by_columns(native::floats_mut(&mut result)?, outputs, cost, |range, rows| {
        let start = range.start;
        kernels::products(matrix.rows(range, width), width, &inputs, rows);
        for (index, row) in rows.iter_mut().enumerate() {
            for (sum, bias) in row.iter_mut().zip(bias.iter().skip(start)) {
                *sum += bias;
            }
            let other = other
                .iter()
                .flat_map(|other| other.iter().skip(index * outputs + start));
            for (sum, other) in row.iter_mut().zip(other) {
                *sum += other;
            }
        }
    })?;
    Ok(result)
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

/// The largest logarithms of the softmax of each row, with their places, from the largest to the
/// smallest.
pub(crate) fn top_log_softmax(rows: &Tensor, most: usize) -> Result<Vec<Vec<(usize, f32)>>, TchError> {
    let (_, size) = rows.size2()?;
    let most = most.min(size as usize);
    let Some(Matrix::Float(all)) = native::cells(rows) else {
        let (values, places) = rows
            .f_log_softmax(-1, Kind::Float)?
            .f_topk(most as i64, -1, true, true)?;
        let values = Vec::<f32>::try_from(&values.f_flatten(0, -1)?)?;
        let places = Vec::<i64>::try_from(&places.f_flatten(0, -1)?)?;
        let all: Vec<(usize, f32)> = places.iter().map(|place| *place as usize).zip(values).collect();
        return Ok(all.chunks(most.max(1)).map(<[_]>::to_vec).collect());
    };
    let of_row = |row: &[f32]| {
        let mut best: Vec<(usize, f32)> = Vec::with_capacity(most + 1);
        let mut least = f32::NEG_INFINITY;
        for (place, &value) in row.iter().enumerate() {
            if value > least || best.len() < most {
                let rank = best.partition_point(|(_, other)| *other >= value);
                best.insert(rank, (place, value));
                best.truncate(most);
                if let (Some((_, last)), true) = (best.last(), best.len() == most) {
                    least = *last;
                }
            }
        }
        let sum = kernels::log_sum_exp(row);
        best.iter_mut().for_each(|(_, value)| *value -= sum);
        best
    };
    Ok(all.chunks_exact(size as usize).map(of_row).collect())
}

/// Causal attention of the new tokens of all parts, whose keys and values it stores in their
/// caches. `qkv` is 1 × tokens × (3 · width). `None` if libtorch is faster.
pub(super) fn attend_causal(
    qkv: &Tensor,
    parts: &mut [Part<'_>],
    heads: i64,
) -> Result<Option<Tensor>, TchError> {
    let shape = Shape::of(qkv, 3, heads)?;
    if !shape.is_for_kernels(qkv) {
        return Ok(None);
    }
    let all = floats(qkv)?;
    let mut tokens = all.chunks_exact(shape.stride);
    for part in parts.iter_mut() {
        for (row, token) in part.tokens().zip(&mut tokens) {
            let (keys, values) = token.split_at(shape.width).1.split_at(shape.width);
            part.cache.store(row, keys, values)?;
        }
    }
    let mut jobs = Vec::new();
    let mut first = 0;
    for part in parts.iter() {
        let (new, before) = (part.new as usize, part.position as usize);
        let cells = part.cache.cells();
        for row in 0..part.rows as usize {
            for head in 0..shape.heads {
                let Some((keys, values)) = cells.of_head(row, head, before + new) else {
                    return Ok(None);
                };
                jobs.push(Job {
                    keys,
                    values,
                    positions: before + new,
                    tokens: first..first + new,
                    head,
                    is_causal: true,
                });
            }
            first += new;
        }
    }
    shape.attend(&jobs, &all)?.f_to_kind(qkv.kind()).map(Some)
}

/// Attention of the tokens of all parts to their windows. `query` is 1 × tokens × width. `None` if
/// libtorch is faster.
pub(super) fn attend_window(
    query: &Tensor,
    parts: &[Part<'_>],
    heads: i64,
) -> Result<Option<Tensor>, TchError> {
    let shape = Shape::of(query, 1, heads)?;
    if !shape.is_for_kernels(query) {
        return Ok(None);
    }
    let all = floats(query)?;
    let mut jobs = Vec::new();
    let mut first = 0;
    for part in parts {
        let count = (part.rows * part.new) as usize;
        let (cells, positions) = part.cache.window_cells();
        for head in 0..shape.heads {
            let Some((keys, values)) = cells.of_head(0, head, positions) else {
                return Ok(None);
            };
            jobs.push(Job {
                keys,
                values,
                positions,
                tokens: first..first + count,
                head,
                is_causal: false,
            });
        }
        first += count;
    }
    shape.attend(&jobs, &all)?.f_to_kind(query.kind()).map(Some)
}

/// The attention of some tokens to the same keys.
struct Job<'a> {
    keys: Matrix<'a>,
    values: Matrix<'a>,
    positions: usize,
    tokens: Range<usize>,
    head: usize,
    /// Whether the tokens are those of the last keys, and each one sees no later ones.
    is_causal: bool,
}

/// The shape of the queries of an attention.
struct Shape {
    tokens: usize,
    /// Numbers of a token.
    stride: usize,
    width: usize,
    heads: usize,
}

impl Shape {
    /// Of 1 × tokens × (parts · width), where the queries are first.
    fn of(projected: &Tensor, parts: usize, heads: i64) -> Result<Self, TchError> {
        let (_, tokens, stride) = projected.size3()?;
        Ok(Self {
            tokens: tokens as usize,
            stride: stride as usize,
            width: stride as usize / parts,
            heads: heads as usize,
        })
    }

    fn head_width(&self) -> usize {
        self.width / self.heads
    }

    fn is_for_kernels(&self, projected: &Tensor) -> bool {
        let has_kind = matches!(projected.kind(), Kind::Float | Kind::BFloat16);
        let has_place = projected.device() == Device::Cpu && has_few_rows(projected);
        has_kind && has_place && kernels::has_vectors_for(self.head_width())
    }

    /// 1 × tokens × width
    fn attend(&self, jobs: &[Job<'_>], all: &[f32]) -> Result<Tensor, TchError> {
        let head_width = self.head_width();
        let costs = jobs
            .iter()
            .map(|job| job.positions * job.tokens.len() * head_width);
        let cost = costs.sum::<usize>() / jobs.len().max(1);
        let grain = GRAIN.div_ceil(cost.max(1));
        let done = native::parallel(jobs.len(), grain, |range| {
            let jobs = jobs.get(range).unwrap_or_default();
            jobs.iter().map(|job| self.job(job, all)).collect::<Vec<_>>()
        })?;
        let mut result = Tensor::f_empty(
            [1, self.tokens as i64, self.width as i64],
            (Kind::Float, Device::Cpu),
        )?;
        let mixed = native::floats_mut(&mut result)?;
        for (job, rows) in jobs.iter().zip(done.iter().flat_map(|(_, rows)| rows)) {
            for (token, row) in job.tokens.clone().zip(rows.chunks_exact(head_width)) {
                let at = token * self.width + job.head * head_width;
                if let Some(place) = mixed.get_mut(at..at + head_width) {
                    place.copy_from_slice(row);
                }
            }
        }
        Ok(result)
    }

    /// tokens × head width
    fn job(&self, job: &Job<'_>, all: &[f32]) -> Vec<f32> {
        let head_width = self.head_width();
        let count = job.tokens.len();
        let mut queries = Vec::with_capacity(count * head_width);
        for token in job.tokens.clone() {
            let at = token * self.stride + job.head * head_width;
            queries.extend_from_slice(all.get(at..at + head_width).unwrap_or_default());
        }
        let mut mixed = vec![0.0; queries.len()];
        let seen = |index: usize| match job.is_causal {
            true => job.positions - count + index + 1,
            false => job.positions,
        };
        kernels::attend((job.keys, job.values), head_width, &queries, &seen, &mut mixed);
        mixed
    }
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
    use crate::config::ModelConfig;
    use crate::model::Placement;
    use crate::model::cache::Cache;

    const FLOAT: (Kind, Device) = (Kind::Float, Device::Cpu);

    /// The largest difference.
    fn off(found: &Tensor, expected: &Tensor) -> f64 {
        (found.to_kind(Kind::Float) - expected.to_kind(Kind::Float))
            .abs()
            .max()
            .double_value(&[])
    }

    #[test]
    fn product_is_that_of_libtorch() {
        let _no_grad = tch::no_grad_guard();
        // A sum up to 64 in bfloat16 has steps of 0.25 to 0.5.
        for (kind, most) in [(Kind::Float, 1e-4), (Kind::BFloat16, 0.6)] {
            // Enough for several threads, and more rows than are multiplied here.
            for rows in [1, 7, MOST_ROWS, MOST_ROWS + 1] {
                let random = |shape: &[i64]| Tensor::randn(shape, FLOAT).to_kind(kind);
                let (weight, bias) = (random(&[1201, 256]), random(&[1201]));
                let (input, other) = (random(&[1, rows, 256]), random(&[1, rows, 1201]));
                let expected = input.linear(&weight, Some(&bias)) + &other;
                assert_eq!(FewRows::fits(&weight), kernels::has_vectors_for(256));
                let layer = FewRows::new(weight, bias).unwrap();
                let found = layer.forward(&input, Some(&other)).unwrap();
                assert_eq!((found.kind(), found.size()), (kind, expected.size()));
                assert!(
                    off(&found, &expected) < most,
                    "{kind:?}: {}",
                    off(&found, &expected)
                );
            }
        }
    }

    #[test]
    fn top_of_each_row_is_that_of_libtorch() {
        let _no_grad = tch::no_grad_guard();
        let rows = Tensor::randn([3, 1000], FLOAT);
        let _ = rows.narrow(1, 0, 500).fill_(f64::NEG_INFINITY);
        let (values, places) = rows.log_softmax(-1, Kind::Float).topk(10, -1, true, true);
        for (row, found) in top_log_softmax(&rows, 10).unwrap().into_iter().enumerate() {
            assert_eq!(found.len(), 10);
            for (rank, (place, value)) in found.into_iter().enumerate() {
                let at = [row as i64, rank as i64];
                assert_eq!(place as i64, places.int64_value(&at));
                assert!((f64::from(value) - values.double_value(&at)).abs() < 1e-5);
            }
        }
    }

    #[test]
    fn tokens_attend_to_earlier_ones_of_their_row() {
        let _no_grad = tch::no_grad_guard();
        let config: ModelConfig = serde_json::from_str(include_str!(concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/models/whisper-nano-digits/config.json"
        )))
        .unwrap();
        let (heads, width) = (config.decoder_attention_heads, config.d_model);
        let mut caches = [0, 1].map(|_| Cache::new(&config, Placement::CPU).unwrap());
        caches[1].spread(2).unwrap();
        // Three tokens of one row, and then two of each of two rows, twice.
        let mut past = Vec::new();
        for step in 0..2 {
            let qkv = Tensor::randn([1, 7, 3 * width], FLOAT);
            let [first, second] = &mut caches;
            let mut parts = [
                Part {
                    cache: &mut first.layers[0],
                    rows: 1,
                    new: 3,
                    position: 3 * step,
                },
                Part {
                    cache: &mut second.layers[0],
                    rows: 2,
                    new: 2,
                    position: 2 * step,
                },
            ];
            let Some(found) = attend_causal(&qkv, &mut parts, heads).unwrap() else {
                assert!(!kernels::has_vectors_for(32));
                return;
            };
            past.push(qkv);
            for (at, new) in [(0, 3), (3, 2), (5, 2)] {
                let rows = past.iter().map(|qkv| qkv.narrow(1, at, new));
                let all = Tensor::cat(&rows.collect::<Vec<_>>(), 1);
                let split = all
                    .view([1, -1, 3, heads, width / heads])
                    .permute([2, 0, 3, 1, 4]);
                let query = split.get(0).narrow(2, step * new, new);
                let mask = Tensor::ones([new, (step + 1) * new], (Kind::Bool, Device::Cpu)).tril(step * new);
                let mixed = Tensor::scaled_dot_product_attention(
                    &query,
                    &split.get(1),
                    &split.get(2),
                    Some(mask),
                    0.0,
                    false,
                    None,
                    false,
                );
                let expected = mixed.transpose(1, 2).reshape([1, new, width]);
                let off = off(&found.narrow(1, at, new), &expected);
                assert!(off < 1e-5, "{off}");
            }
        }
    }
}
