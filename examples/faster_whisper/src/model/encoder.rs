//! The encoder: from features to encoded positions.

use tch::{Kind, TchError, Tensor};

use super::attention::SelfAttention;
use super::{FeedForward, LayerNorm, Placement, Storage};
use crate::config::ModelConfig;
use crate::error::LoadError;
use crate::weights::Weights;

/// The largest float16, less a margin for the next addition.
const HALF_LIMIT: f64 = 65504.0 - 1000.0;

#[derive(Debug)]
pub(crate) struct Encoder {
    conv1: Convolution,
    conv2: Convolution,
    positions: Tensor,
    layers: Vec<EncoderLayer>,
    norm: LayerNorm,
    placement: Placement,
}

impl Encoder {
    pub(crate) fn load(weights: &Weights, config: &ModelConfig) -> Result<Self, LoadError> {
        let width = config.d_model;
        let layers = (0..config.encoder_layers)
            .map(|index| EncoderLayer::load(weights, config, &format!("encoder.layers.{index}")))
            .collect::<Result<_, _>>()?;
        Ok(Self {
            conv1: Convolution::load(weights, "encoder.conv1", config.num_mel_bins, width, 1)?,
            conv2: Convolution::load(weights, "encoder.conv2", width, width, 2)?,
            positions: weights.tensor(
                "encoder.embed_positions.weight",
                &[config.max_source_positions, width],
            )?,
            layers,
            norm: LayerNorm::load(weights, "encoder.layer_norm", width)?,
            placement: weights.placement(),
        })
    }

    /// From batch × bins × frames in any precision to batch × positions × width in the precision of
    /// the model.
    pub(crate) fn forward(&self, features: &Tensor) -> Result<Tensor, TchError> {
        let input = features
            .f_to_device(self.placement.device)?
            .f_to_kind(self.placement.kind)?;
        let stem = self.conv2.forward(&self.conv1.forward(&input)?)?;
        let mut hidden = stem.f_transpose(1, 2)?.f_contiguous()?.f_add_(&self.positions)?;
        for layer in &self.layers {
            hidden = layer.forward(&hidden)?;
            if self.placement.kind == Kind::Half {
                // The residual stream of large models can overflow float16, and infinity would
                // become NaN.
                let _ = hidden.f_clamp_(-HALF_LIMIT, HALF_LIMIT)?;
            }
        }
        self.norm.forward(&hidden)
    }
}

#[derive(Debug)]
struct EncoderLayer {
    attention: SelfAttention,
    feed_forward: FeedForward,
}

impl EncoderLayer {
    fn load(weights: &Weights, config: &ModelConfig, name: &str) -> Result<Self, LoadError> {
        let (width, heads) = (config.d_model, config.encoder_attention_heads);
        let storage = Storage::of_windows(weights.placement());
        Ok(Self {
            attention: SelfAttention::load(weights, name, (width, heads), storage)?,
            feed_forward: FeedForward::load(weights, name, (width, config.encoder_ffn_dim), storage)?,
        })
    }

    fn forward(&self, input: &Tensor) -> Result<Tensor, TchError> {
        self.feed_forward.forward(&self.attention.forward(input)?)
    }
}

/// A convolution over time of width 3, followed by GELU.
#[derive(Debug)]
struct Convolution {
    weight: Tensor,
    bias: Tensor,
    stride: i64,
}

impl Convolution {
    fn load(weights: &Weights, name: &str, input: i64, output: i64, stride: i64) -> Result<Self, LoadError> {
        Ok(Self {
            weight: weights.tensor(&format!("{name}.weight"), &[output, input, 3])?,
            bias: weights.tensor(&format!("{name}.bias"), &[output])?,
            stride,
        })
    }

    fn forward(&self, input: &Tensor) -> Result<Tensor, TchError> {
        input
            .f_conv1d(&self.weight, Some(&self.bias), [self.stride], [1], [1], 1)?
            .f_gelu_("none")
    }
}
