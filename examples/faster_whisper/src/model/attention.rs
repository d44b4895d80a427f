//! Scaled dot-product attention with fused projections.

use tch::{Device, Kind, TchError, Tensor};

use super::cache::{LayerCache, Part};
use super::{LayerNorm, Linear, Storage, few_rows};
use crate::error::LoadError;
use crate::weights::Weights;

/// Positions of a window whose scores are computed at once: with those of Whisper's 1,500, they fit
/// into the cache of a core.
const BLOCK: i64 = 500;

/// Attention of a sequence to itself, with its layer norm and residual connection.
#[derive(Debug)]
pub(crate) struct SelfAttention {
    norm: LayerNorm,
    qkv: Linear,
    out: Linear,
    heads: i64,
}

impl SelfAttention {
    pub(crate) fn load(
        weights: &Weights,
        layer: &str,
        (width, heads): (i64, i64),
        storage: Storage,
    ) -> Result<Self, LoadError> {
        let name = format!("{layer}.self_attn");
        let projections = ["q_proj", "k_proj", "v_proj"];
        Ok(Self {
            norm: LayerNorm::load(weights, &format!("{layer}.self_attn_layer_norm"), width)?,
            qkv: Linear::load_fused(weights, &name, &projections, width, storage)?,
            out: Linear::load(weights, &format!("{name}.out_proj"), (width, width), storage)?,
            heads,
        })
    }

    /// Every position attends to every other.
    pub(crate) fn forward(&self, input: &Tensor) -> Result<Tensor, TchError> {
        let qkv = split(&self.qkv.forward(&self.norm.forward(input)?)?, 3, self.heads)?;
        let (query, key, value) = (qkv.f_select(0, 0)?, qkv.f_select(0, 1)?, qkv.f_select(0, 2)?);
        let mixed = if query.device() == Device::Cpu && query.kind() == Kind::BFloat16 {
            attend_in_blocks(&query, &key, &value)?
        } else {
            attend(&query, &key, &value, false)?
        };
        self.out.forward_add(&merge(&mixed)?, input)
    }

    /// Every position attends to itself and to earlier positions of its row, including those in
    /// the cache.
    pub(crate) fn forward_causal(&self, input: &Tensor, parts: &mut [Part<'_>]) -> Result<Tensor, TchError> {
        let qkv = self.qkv.forward(&self.norm.forward(input)?)?;
        let mixed = each(parts, &qkv, |part, qkv| {
            let size = qkv.size3()?;
            let qkv = qkv.f_view([part.rows, part.new, size.2])?;
            let qkv = split(&qkv, 3, self.heads)?;
            let (query, key, value) = (qkv.f_select(0, 0)?, qkv.f_select(0, 1)?, qkv.f_select(0, 2)?);
            let (keys, values) = part.cache.append(&key, &value, part.position)?;
            // A single new token attends to all positions, so it needs no mask.
            let mixed = merge(&attend(&query, &keys, &values, part.new > 1)?)?;
            mixed.f_view([1, size.1, size.2 / 3])
        })?;
        self.out.forward_add(&mixed, input)
    }

    /// As [`forward_causal`](Self::forward_causal), with [`few_rows`].
    pub(crate) fn forward_rows(&self, rows: &[f32], parts: &mut [Part<'_>]) -> Result<Vec<f32>, TchError> {
        let qkv = self.qkv.forward_rows(&self.norm.forward_rows(rows), None)?;
        let mixed = few_rows::attend_causal(&qkv, parts, self.heads)?;
        self.out.forward_rows(&mixed, Some(rows))
    }

    pub(crate) fn has_kernels(&self) -> bool {
        self.qkv.has_kernel() && self.out.has_kernel()
    }
}

/// Attention of the decoder to the encoder's output, with its layer norm and residual connection.
#[derive(Debug)]
pub(crate) struct CrossAttention {
    norm: LayerNorm,
    query: Linear,
    key_value: Linear,
    out: Linear,
    heads: i64,
}

impl CrossAttention {
    /// `windows` has the precision of the encoder.
    pub(crate) fn load(
        (weights, windows): (&Weights, &Weights),
        layer: &str,
        (width, heads): (i64, i64),
        storage: Storage,
    ) -> Result<Self, LoadError> {
        let name = format!("{layer}.encoder_attn");
        let key_value = Storage::of_windows(windows.placement());
        Ok(Self {
            norm: LayerNorm::load(weights, &format!("{layer}.encoder_attn_layer_norm"), width)?,
            query: Linear::load(weights, &format!("{name}.q_proj"), (width, width), storage)?,
            key_value: Linear::load_fused(windows, &name, &["k_proj", "v_proj"], width, key_value)?,
            out: Linear::load(weights, &format!("{name}.out_proj"), (width, width), storage)?,
            heads,
        })
    }

    /// Computes the keys and values of a window, once for all its tokens.
    pub(crate) fn prepare(&self, encoded: &Tensor, cache: &mut LayerCache) -> Result<(), TchError> {
        let both = split(&self.key_value.forward(encoded)?, 2, self.heads)?;
        cache.set_window(&both.f_select(0, 0)?, &both.f_select(0, 1)?)
    }

    /// The scores of these heads before the softmax, for one row: 1 × heads × tokens × positions.
    pub(crate) fn scores(&self, input: &Tensor, part: &Part<'_>, heads: &[i64]) -> Result<Tensor, TchError> {
        let query = split(&self.query.forward(&self.norm.forward(input)?)?, 1, self.heads)?.f_select(0, 0)?;
        let heads = Tensor::f_from_slice(heads)?.f_to_device(input.device())?;
        let query = query.f_index_select(1, &heads)?;
        let (keys, _) = part.cache.window(query.kind())?;
        let keys = keys.f_index_select(1, &heads)?;
        let scale = 1.0 / (query.size4()?.3 as f64).sqrt();
        query.f_mul_scalar(scale)?.f_matmul(&keys.f_transpose(-2, -1)?)
    }

    /// All rows of a part attend to the same window, so they are positions of one row here.
    pub(crate) fn forward(&self, input: &Tensor, parts: &mut [Part<'_>]) -> Result<Tensor, TchError> {
        let query = self.query.forward(&self.norm.forward(input)?)?;
        let mixed = each(parts, &query, |part, query| {
            let query = split(query, 1, self.heads)?.f_select(0, 0)?;
            let (keys, values) = part.cache.window(query.kind())?;
            merge(&attend(&query, &keys, &values, false)?)
        })?;
        self.out.forward_add(&mixed, input)
    }

    /// As [`forward`](Self::forward), with [`few_rows`].
    pub(crate) fn forward_rows(&self, rows: &[f32], parts: &[Part<'_>]) -> Result<Vec<f32>, TchError> {
        let query = self.query.forward_rows(&self.norm.forward_rows(rows), None)?;
        let mixed = few_rows::attend_window(&query, parts, self.heads)?;
        self.out.forward_rows(&mixed, Some(rows))
    }

    pub(crate) fn has_kernels(&self) -> bool {
        self.query.has_kernel() && self.out.has_kernel()
    }
}

/// Applies `mix` to the positions of each part: 1 × positions × width.
fn each(
    parts: &mut [Part<'_>],
    all: &Tensor,
    mut mix: impl FnMut(&mut Part<'_>, &Tensor) -> Result<Tensor, TchError>,
) -> Result<Tensor, TchError> {
    if let [only] = parts {
        return mix(only, all);
    }
    let mut at = 0;
    let mut mixed = Vec::with_capacity(parts.len());
    for part in parts {
        let positions = part.rows * part.new;
        mixed.push(mix(part, &all.f_narrow(1, at, positions)?)?);
        at += positions;
    }
    Tensor::f_cat(&mixed, 1)
}

fn attend(query: &Tensor, key: &Tensor, value: &Tensor, causal: bool) -> Result<Tensor, TchError> {
    Tensor::f_scaled_dot_product_attention(query, key, value, None::<Tensor>, 0.0, causal, None, false)
}

/// As [`attend`] without a mask, head by head, in bfloat16 on the CPU. Libtorch's attention
/// multiplies with MKL there, whose products in bfloat16 are slow on some processors: on AMD's, this
/// takes 0.4 of its time, because oneDNN multiplies.
fn attend_in_blocks(query: &Tensor, key: &Tensor, value: &Tensor) -> Result<Tensor, TchError> {
    let (batch, heads, positions, width) = query.size4()?;
    let [query, key, value] = [query, key, value].map(|all| all.f_flatten(0, 1));
    let (query, key, value) = (
        query?.f_mul_scalar((width as f64).sqrt().recip())?,
        key?.f_transpose(1, 2)?,
        value?,
    );
    let mut mixed = Vec::new();
    for head in 0..batch * heads {
        let (key, value) = (key.f_select(0, head)?, value.f_select(0, head)?);
        for rows in query.f_select(0, head)?.f_split(BLOCK, 0)? {
            // Libtorch computes the softmax in float32.
            let weights = rows.f_matmul(&key)?.f_softmax(-1, None)?;
            mixed.push(weights.f_matmul(&value)?);
        }
    }
    Tensor::f_cat(&mixed, 0)?.f_view([batch, heads, positions, width])
}

/// batch × positions × (parts · width) to parts × batch × heads × positions × head width, without
/// copying.
fn split(projected: &Tensor, parts: i64, heads: i64) -> Result<Tensor, TchError> {
    let (batch, positions, width) = projected.size3()?;
    projected
        .f_view([batch, positions, parts, heads, width / (parts * heads)])?
        .f_permute([2, 0, 3, 1, 4])
}

/// batch × heads × positions × head width back to batch × positions × width.
fn merge(mixed: &Tensor) -> Result<Tensor, TchError> {
    let (batch, heads, positions, head) = mixed.size4()?;
    mixed
        .f_transpose(1, 2)?
        .f_reshape([batch, positions, heads * head])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attention_in_blocks_is_that_of_libtorch() {
        let _no_grad = tch::no_grad_guard();
        // One full block and a part of another, of two windows.
        let random = || Tensor::randn([2, 3, BLOCK + 70, 32], (Kind::Float, Device::Cpu));
        let [query, key, value] = [random(), random(), random()];
        let expected = attend(&query, &key, &value, false).unwrap();
        let [query, key, value] = [query, key, value].map(|all| all.to_kind(Kind::BFloat16));
        let found = attend_in_blocks(&query, &key, &value).unwrap();
        assert_eq!(found.size(), expected.size());
        let off = (found.to_kind(Kind::Float) - expected)
            .abs()
            .max()
            .double_value(&[]);
        assert!(off < 0.01, "{off}");
    }
}
