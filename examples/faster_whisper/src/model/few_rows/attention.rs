//! Attention of a few tokens to the keys and values of a cache.

use std::ops::Range;

use tch::TchError;
use whisper_kernels::{self as kernels, Matrix};

use super::GRAIN;
use crate::model::cache::Part;
use crate::model::native;

/// Causal attention of the new tokens of all parts, whose keys and values it stores in their
/// caches. `qkv` has tokens × (3 · width) numbers, and the result tokens × width.
pub(in crate::model) fn attend_causal(
    qkv: &[f32],
    parts: &mut [Part<'_>],
    heads: i64,
) -> Result<Vec<f32>, TchError> {
    let shape = Shape::new(qkv, parts, 3, heads);
    let mut tokens = qkv.chunks_exact(shape.stride);
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
                let (keys, values) = cells.of_head(row, head, before + new).ok_or_else(no_memory)?;
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
    shape.attend(&jobs, qkv)
}

/// Attention of the tokens of all parts to their windows. `query` has tokens × width numbers, as
/// the result.
pub(in crate::model) fn attend_window(
    query: &[f32],
    parts: &[Part<'_>],
    heads: i64,
) -> Result<Vec<f32>, TchError> {
    let shape = Shape::new(query, parts, 1, heads);
    let mut jobs = Vec::new();
    let mut first = 0;
    for part in parts {
        let count = part.tokens().count();
        let (cells, positions) = part.cache.window_cells();
        for head in 0..shape.heads {
            let (keys, values) = cells.of_head(0, head, positions).ok_or_else(no_memory)?;
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
    shape.attend(&jobs, query)
}

fn no_memory() -> TchError {
    TchError::Kind("expected keys and values in contiguous float32 or bfloat16 of the CPU".to_owned())
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
    /// Of the tokens of all parts, each with `blocks` · width numbers. The queries are first.
    fn new(projected: &[f32], parts: &[Part<'_>], blocks: usize, heads: i64) -> Self {
        let tokens = parts.iter().map(|part| part.tokens().count()).sum::<usize>();
        let stride = projected.len() / tokens.max(1);
        Self {
            tokens,
            stride,
            width: stride / blocks,
            heads: heads as usize,
        }
    }

    fn head_width(&self) -> usize {
        self.width / self.heads
    }

    /// tokens × width
    fn attend(&self, jobs: &[Job<'_>], all: &[f32]) -> Result<Vec<f32>, TchError> {
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
        let mut mixed = vec![0.0; self.tokens * self.width];
        for (job, rows) in jobs.iter().zip(done.iter().flat_map(|(_, rows)| rows)) {
            for (token, row) in job.tokens.clone().zip(rows.chunks_exact(head_width)) {
                let at = token * self.width + job.head * head_width;
                if let Some(place) = mixed.get_mut(at..at + head_width) {
                    place.copy_from_slice(row);
                }
            }
        }
        Ok(mixed)
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

#[cfg(test)]
mod tests {
    use tch::{Device, Kind, Tensor};

    use super::*;
    use crate::config::ModelConfig;
    use crate::model::Placement;
    use crate::model::cache::Cache;
    use crate::model::few_rows::floats;

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
            let qkv = Tensor::randn([1, 7, 3 * width], (Kind::Float, Device::Cpu));
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
            let found = attend_causal(&floats(&qkv).unwrap(), &mut parts, heads).unwrap();
            let found = Tensor::from_slice(&found).view([1, 7, width]);
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
                let off = (found.narrow(1, at, new) - expected)
                    .abs()
                    .max()
                    .double_value(&[]);
                assert!(off < 1e-5, "{off}");
            }
        }
    }
}
