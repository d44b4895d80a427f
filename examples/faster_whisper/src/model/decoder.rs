//! The decoder: from tokens and encoded positions to logits.

use tch::{Kind, TchError, Tensor};

use super::attention::{CrossAttention, SelfAttention};
use super::cache::{Cache, LayerCache};
use super::{FeedForward, LayerNorm, Placement};
use crate::config::ModelConfig;
use crate::error::LoadError;
use crate::weights::Weights;

#[derive(Debug)]
pub(crate) struct Decoder {
    tokens: Tensor,
    positions: Tensor,
    layers: Vec<DecoderLayer>,
    norm: LayerNorm,
    /// `None` if the projection is the token embedding.
    projection: Option<Tensor>,
}

impl Decoder {
    pub(crate) fn load(weights: &Weights, config: &ModelConfig) -> Result<Self, LoadError> {
        let (width, size) = (config.d_model, config.vocab_size);
        let layers = (0..config.decoder_layers)
            .map(|index| DecoderLayer::load(weights, config, &format!("decoder.layers.{index}")))
            .collect::<Result<_, _>>()?;
        let projection = if config.tie_word_embeddings {
            None
        } else {
            weights.outer_tensor("proj_out.weight", &[size, width])?
        };
        let mut tokens = weights.tensor("decoder.embed_tokens.weight", &[size, width])?;
        if weights.placement() == Placement::CPU {
            // A product with one row is up to twice as fast with a column-major matrix, and the
            // output projection takes a third of the time of a token. The lookup of a token's row
            // costs almost the same.
            tokens = tokens.f_tr()?.f_contiguous()?.f_tr()?;
        }
        Ok(Self {
            tokens,
            positions: weights.tensor(
                "decoder.embed_positions.weight",
                &[config.max_target_positions, width],
            )?,
            layers,
            norm: LayerNorm::load(weights, "decoder.layer_norm", width)?,
            projection,
        })
    }

    /// Stores the keys and values of a window in the cache and removes all tokens.
    pub(crate) fn set_window(&self, encoded: &Tensor, cache: &mut Cache) -> Result<(), TchError> {
        cache.clear();
        for (layer, cache) in self.layers.iter().zip(&mut cache.layers) {
            layer.cross.prepare(encoded, cache)?;
        }
        Ok(())
    }

    /// Feeds tokens (batch × n) after those in the cache and returns batch × n × width. More than
    /// one token at a time requires an empty cache.
    pub(crate) fn forward(&self, tokens: &Tensor, cache: &mut Cache) -> Result<Tensor, TchError> {
        let (position, new) = (cache.len(), tokens.size2()?.1);
        cache.advance(new)?;
        let positions = self.positions.f_narrow(0, position, new)?;
        let mut hidden = Tensor::f_embedding(&self.tokens, tokens, -1, false, false)?.f_add_(&positions)?;
        for (layer, cache) in self.layers.iter().zip(&mut cache.layers) {
            hidden = layer.forward(&hidden, cache, position)?;
        }
        self.norm.forward(&hidden)
    }

    /// Logits in float32, for every precision of the model.
    pub(crate) fn logits(&self, hidden: &Tensor) -> Result<Tensor, TchError> {
        let projection = self.projection.as_ref().unwrap_or(&self.tokens);
        hidden
            .f_linear(projection, None::<Tensor>)?
            .f_to_kind(Kind::Float)
    }
}

#[derive(Debug)]
struct DecoderLayer {
    attention: SelfAttention,
    cross: CrossAttention,
    feed_forward: FeedForward,
}

impl DecoderLayer {
    fn load(weights: &Weights, config: &ModelConfig, name: &str) -> Result<Self, LoadError> {
        let (width, heads) = (config.d_model, config.decoder_attention_heads);
        Ok(Self {
            attention: SelfAttention::load(weights, name, width, heads)?,
            cross: CrossAttention::load(weights, name, width, heads)?,
            feed_forward: FeedForward::load(weights, name, width, config.decoder_ffn_dim)?,
        })
    }

    fn forward(&self, input: &Tensor, cache: &mut LayerCache, position: i64) -> Result<Tensor, TchError> {
        let hidden = self.attention.forward_causal(input, cache, position)?;
        let hidden = self.cross.forward(&hidden, cache)?;
        self.feed_forward.forward(&hidden)
    }
}
