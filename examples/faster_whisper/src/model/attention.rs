//! Scaled dot-product attention with fused projections.

use tch::{TchError, Tensor};

use super::cache::LayerCache;
use super::{LayerNorm, Linear};
use crate::error::LoadError;
use crate::weights::Weights;

/// Attention of a sequence to itself, with its layer norm and residual connection.
#[derive(Debug)]
pub(crate) struct SelfAttention {
    norm: LayerNorm,
    qkv: Linear,
    out: Linear,
    heads: i64,
}

impl SelfAttention {
    pub(crate) fn load(weights: &Weights, layer: &str, width: i64, heads: i64) -> Result<Self, LoadError> {
        let name = format!("{layer}.self_attn");
        Ok(Self {
            norm: LayerNorm::load(weights, &format!("{layer}.self_attn_layer_norm"), width)?,
            qkv: Linear::load_fused(weights, &name, &["q_proj", "k_proj", "v_proj"], width)?,
            out: Linear::load(weights, &format!("{name}.out_proj"), width, width)?,
            heads,
        })
    }

    /// Every position attends to every other.
    pub(crate) fn forward(&self, input: &Tensor) -> Result<Tensor, TchError> {
        let (query, key, value) = self.project(input)?;
        let mixed = attend(&query, &key, &value, false)?;
        self.out.forward(&merge(&mixed)?)?.f_add_(input)
    }

    /// Every position attends to itself and to earlier positions, including those in the cache.
    pub(crate) fn forward_causal(
        &self,
        input: &Tensor,
        cache: &mut LayerCache,
        position: i64,
    ) -> Result<Tensor, TchError> {
        let (query, key, value) = self.project(input)?;
        let (keys, values) = cache.append(&key, &value, position)?;
        // A single new token attends to all positions, so it needs no mask.
        let mixed = attend(&query, &keys, &values, query.size4()?.2 > 1)?;
        self.out.forward(&merge(&mixed)?)?.f_add_(input)
    }

    fn project(&self, input: &Tensor) -> Result<(Tensor, Tensor, Tensor), TchError> {
        let qkv = split(&self.qkv.forward(&self.norm.forward(input)?)?, 3, self.heads)?;
        Ok((qkv.f_select(0, 0)?, qkv.f_select(0, 1)?, qkv.f_select(0, 2)?))
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
    pub(crate) fn load(weights: &Weights, layer: &str, width: i64, heads: i64) -> Result<Self, LoadError> {
        let name = format!("{layer}.encoder_attn");
        Ok(Self {
            norm: LayerNorm::load(weights, &format!("{layer}.encoder_attn_layer_norm"), width)?,
            query: Linear::load(weights, &format!("{name}.q_proj"), width, width)?,
            key_value: Linear::load_fused(weights, &name, &["k_proj", "v_proj"], width)?,
            out: Linear::load(weights, &format!("{name}.out_proj"), width, width)?,
            heads,
        })
    }

    /// Computes the keys and values of a window, once for all its tokens.
    pub(crate) fn prepare(&self, encoded: &Tensor, cache: &mut LayerCache) -> Result<(), TchError> {
        let both = split(&self.key_value.forward(encoded)?, 2, self.heads)?;
        cache.set_window(&both.f_select(0, 0)?, &both.f_select(0, 1)?)
    }

    pub(crate) fn forward(&self, input: &Tensor, cache: &LayerCache) -> Result<Tensor, TchError> {
        let query = split(&self.query.forward(&self.norm.forward(input)?)?, 1, self.heads)?.f_select(0, 0)?;
        let (keys, values) = cache.window();
        let mixed = attend(&query, keys, values, false)?;
        self.out.forward(&merge(&mixed)?)?.f_add_(input)
    }
}

fn attend(query: &Tensor, key: &Tensor, value: &Tensor, causal: bool) -> Result<Tensor, TchError> {
    Tensor::f_scaled_dot_product_attention(query, key, value, None::<Tensor>, 0.0, causal, None, false)
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
