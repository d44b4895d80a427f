//! The network: convolutional stem, encoder, and decoder with key-value cache. All shapes come from
//! `config.json`.

mod attention;
mod cache;
mod decoder;
mod encoder;

use tch::{Device, Kind, TchError, Tensor};

pub(crate) use cache::Cache;
pub(crate) use decoder::Decoder;
pub(crate) use encoder::Encoder;

use crate::error::LoadError;
use crate::weights::Weights;

/// Device and precision of a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Placement {
    /// CPU or a GPU.
    pub device: Device,
    /// [`Kind::Float`], [`Kind::Half`] or [`Kind::BFloat16`].
    pub kind: Kind,
}

impl Placement {
    /// float32 on the CPU, which every machine has. The goldens were made with it.
    pub const CPU: Self = Self {
        device: Device::Cpu,
        kind: Kind::Float,
    };
}

const LAYER_NORM_EPSILON: f64 = 1e-5;

/// y = x·Wᵀ + b
#[derive(Debug)]
pub(crate) struct Linear {
    weight: Tensor,
    bias: Option<Tensor>,
}

impl Linear {
    pub(crate) fn load(weights: &Weights, name: &str, input: i64, output: i64) -> Result<Self, LoadError> {
        Ok(Self {
            weight: weights.tensor(&format!("{name}.weight"), &[output, input])?,
            bias: Some(weights.tensor(&format!("{name}.bias"), &[output])?),
        })
    }

    /// Several projections of the same input as one larger matrix product. Whisper's key
    /// projections have no bias.
    pub(crate) fn load_fused(
        weights: &Weights,
        attention: &str,
        projections: &[&str],
        width: i64,
    ) -> Result<Self, LoadError> {
        let placement = weights.placement();
        let mut parts = Vec::with_capacity(projections.len());
        let mut biases = Vec::with_capacity(projections.len());
        for projection in projections {
            parts.push(weights.tensor(&format!("{attention}.{projection}.weight"), &[width, width])?);
            biases.push(if *projection == "k_proj" {
                Tensor::f_zeros([width], (placement.kind, placement.device))?
            } else {
                weights.tensor(&format!("{attention}.{projection}.bias"), &[width])?
            });
        }
        Ok(Self {
            weight: Tensor::f_cat(&parts, 0)?,
            bias: Some(Tensor::f_cat(&biases, 0)?),
        })
    }

    pub(crate) fn forward(&self, input: &Tensor) -> Result<Tensor, TchError> {
        input.f_linear(&self.weight, self.bias.as_ref())
    }
}

#[derive(Debug)]
pub(crate) struct LayerNorm {
    weight: Tensor,
    bias: Tensor,
    width: i64,
}

impl LayerNorm {
    pub(crate) fn load(weights: &Weights, name: &str, width: i64) -> Result<Self, LoadError> {
        Ok(Self {
            weight: weights.tensor(&format!("{name}.weight"), &[width])?,
            bias: weights.tensor(&format!("{name}.bias"), &[width])?,
            width,
        })
    }

    pub(crate) fn forward(&self, input: &Tensor) -> Result<Tensor, TchError> {
        input.f_layer_norm(
            [self.width],
            Some(&self.weight),
            Some(&self.bias),
            LAYER_NORM_EPSILON,
            true,
        )
    }
}

/// The two-layer perceptron of a transformer block, with exact GELU.
#[derive(Debug)]
pub(crate) struct FeedForward {
    norm: LayerNorm,
    up: Linear,
    down: Linear,
}

impl FeedForward {
    pub(crate) fn load(weights: &Weights, layer: &str, width: i64, inner: i64) -> Result<Self, LoadError> {
        Ok(Self {
            norm: LayerNorm::load(weights, &format!("{layer}.final_layer_norm"), width)?,
            up: Linear::load(weights, &format!("{layer}.fc1"), width, inner)?,
            down: Linear::load(weights, &format!("{layer}.fc2"), inner, width)?,
        })
    }

    /// Includes the residual connection.
    pub(crate) fn forward(&self, input: &Tensor) -> Result<Tensor, TchError> {
        let mut inner = self.up.forward(&self.norm.forward(input)?)?;
        let inner = inner.f_gelu_("none")?;
        self.down.forward(&inner)?.f_add_(input)
    }
}
