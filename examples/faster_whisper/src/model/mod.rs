//! The network: convolutional stem, encoder, and decoder with key-value cache. All shapes come from
//! `config.json`.

mod attention;
mod cache;
mod decoder;
mod encoder;
mod few_rows;
pub(crate) mod host;
mod int8;
mod native;

use std::borrow::Cow;

use tch::{Device, Kind, TchError, Tensor};
use whisper_kernels::{self as kernels, LAYER_NORM_EPSILON, Matrix};

pub(crate) use cache::Cache;
pub(crate) use decoder::{Decoder, Feed};
pub(crate) use encoder::Encoder;

use few_rows::FewRows;
use int8::Int8;
use native::Packed;

use crate::error::LoadError;
use crate::weights::Weights;

/// Device and precision of a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Placement {
    /// CPU or a GPU.
    pub device: Device,
    /// [`Kind::Float`], [`Kind::Half`] or [`Kind::BFloat16`].
    pub kind: Kind,
    /// Whether the decoder has weights in int8 and computes in float32, on the CPU.
    pub int8: bool,
}

impl Placement {
    /// float32 on the CPU, which every machine has. The goldens were made with it.
    pub const CPU: Self = Self {
        device: Device::Cpu,
        kind: Kind::Float,
        int8: false,
    };

    /// The precision of the decoder's activations.
    pub(crate) fn decoder_kind(self) -> Kind {
        if self.int8 { Kind::Float } else { self.kind }
    }

    /// A device and a precision, without int8.
    #[must_use]
    pub fn new(device: Device, kind: Kind) -> Self {
        Self {
            device,
            kind,
            int8: false,
        }
    }
}

/// y = x·Wᵀ + b
#[derive(Debug)]
pub(crate) enum Linear {
    /// As the file has it.
    Plain {
        weight: Tensor,
        bias: Tensor,
    },
    Packed(Packed),
    FewRows(FewRows),
    Int8(Int8),
}

/// How a layer keeps its weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Storage {
    Plain,
    /// For many rows at once on the CPU.
    Packed,
    /// For a few rows at once on the CPU.
    FewRows,
    Int8,
}

impl Storage {
    /// For the layers that see a whole window.
    pub(crate) fn of_windows(placement: Placement) -> Self {
        if placement.device == Device::Cpu && Packed::can_be_in(placement.kind) {
            Self::Packed
        } else {
            Self::Plain
        }
    }

    /// For the layers that see a few tokens.
    pub(crate) fn of_tokens(placement: Placement) -> Self {
        match placement {
            Placement { int8: true, .. } => Self::Int8,
            Placement {
                device: Device::Cpu, ..
            } => Self::FewRows,
            _ => Self::Plain,
        }
    }
}

impl Linear {
    fn new(weight: Tensor, bias: Tensor, storage: Storage) -> Result<Self, TchError> {
        Ok(match storage {
            Storage::Plain => Self::Plain { weight, bias },
            Storage::Packed => Self::Packed(Packed::new(&weight, bias)?),
            Storage::FewRows if !FewRows::fits(&weight) => Self::Plain { weight, bias },
            Storage::FewRows => Self::FewRows(FewRows::new(weight, bias)?),
            Storage::Int8 => Self::Int8(Int8::new(&weight, Some(&bias))?),
        })
    }

    pub(crate) fn load(
        weights: &Weights,
        name: &str,
        (input, output): (i64, i64),
        storage: Storage,
    ) -> Result<Self, LoadError> {
        let weight = weights.tensor(&format!("{name}.weight"), &[output, input])?;
        let bias = weights.tensor(&format!("{name}.bias"), &[output])?;
        Ok(Self::new(weight, bias, storage)?)
    }

    /// Several projections of the same input as one larger matrix product. Whisper's key
    /// projections have no bias.
    pub(crate) fn load_fused(
        weights: &Weights,
        attention: &str,
        projections: &[&str],
        width: i64,
        storage: Storage,
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
        Ok(Self::new(
            Tensor::f_cat(&parts, 0)?,
            Tensor::f_cat(&biases, 0)?,
            storage,
        )?)
    }

    pub(crate) fn forward(&self, input: &Tensor) -> Result<Tensor, TchError> {
        match self {
            Self::Plain { weight, bias } => input.f_linear(weight, Some(bias)),
            Self::Packed(packed) => packed.forward(input),
            Self::FewRows(layer) => layer.forward(input),
            Self::Int8(int8) => int8.forward(input, None),
        }
    }

    /// Followed by exact GELU.
    pub(crate) fn forward_gelu(&self, input: &Tensor) -> Result<Tensor, TchError> {
        match self {
            Self::Packed(packed) => packed.forward_gelu(input),
            _ => self.forward(input)?.f_gelu_("none"),
        }
    }

    /// Adds `other`, which has the shape of the result.
    pub(crate) fn forward_add(&self, input: &Tensor, other: &Tensor) -> Result<Tensor, TchError> {
        match self {
            Self::Packed(packed) => packed.forward_add(input, other),
            Self::Int8(int8) => int8.forward(input, Some(other)),
            Self::Plain { .. } | Self::FewRows(_) => self.forward(input)?.f_add_(other),
        }
    }

    /// The weight and the bias, if [`forward_rows`](Self::forward_rows) can have them.
    fn kernel(&self) -> Option<(Matrix<'_>, &[f32])> {
        match self {
            Self::FewRows(layer) => layer.layer(),
            Self::Int8(int8) => Some(int8.layer()),
            Self::Plain { .. } | Self::Packed(_) => None,
        }
    }

    pub(crate) fn has_kernel(&self) -> bool {
        self.kernel().is_some()
    }

    /// As [`forward`](Self::forward), or as [`forward_add`](Self::forward_add) with `other`, with
    /// [`few_rows`].
    pub(crate) fn forward_rows(&self, rows: &[f32], other: Option<&[f32]>) -> Result<Vec<f32>, TchError> {
        let Some((matrix, bias)) = self.kernel() else {
            return Err(TchError::Kind(
                "this layer has no kernel for a few rows".to_owned(),
            ));
        };
        let outputs = bias.len().max(1);
        let width = matrix.cell_count() / outputs;
        let mut table = vec![0.0; rows.len() / width.max(1) * outputs];
        few_rows::multiply_rows(matrix, bias, (rows, width), other, &mut table)?;
        Ok(table)
    }
}

#[derive(Debug)]
pub(crate) struct LayerNorm {
    weight: Tensor,
    bias: Tensor,
    /// The weight and the bias in float32.
    values: (Vec<f32>, Vec<f32>),
    width: i64,
}

impl LayerNorm {
    pub(crate) fn load(weights: &Weights, name: &str, width: i64) -> Result<Self, LoadError> {
        let weight = weights.tensor(&format!("{name}.weight"), &[width])?;
        let bias = weights.tensor(&format!("{name}.bias"), &[width])?;
        let values = |tensor| few_rows::floats(tensor).map(Cow::into_owned);
        Ok(Self {
            values: (values(&weight)?, values(&bias)?),
            weight,
            bias,
            width,
        })
    }

    /// As [`forward`](Self::forward), with [`few_rows`].
    pub(crate) fn forward_rows(&self, rows: &[f32]) -> Vec<f32> {
        let mut normed = vec![0.0; rows.len()];
        let (weight, bias) = &self.values;
        kernels::layer_norm(rows, weight, bias, &mut normed);
        normed
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
    pub(crate) fn load(
        weights: &Weights,
        layer: &str,
        (width, inner): (i64, i64),
        storage: Storage,
    ) -> Result<Self, LoadError> {
        Ok(Self {
            norm: LayerNorm::load(weights, &format!("{layer}.final_layer_norm"), width)?,
            up: Linear::load(weights, &format!("{layer}.fc1"), (width, inner), storage)?,
            down: Linear::load(weights, &format!("{layer}.fc2"), (inner, width), storage)?,
        })
    }

    /// Includes the residual connection.
    pub(crate) fn forward(&self, input: &Tensor) -> Result<Tensor, TchError> {
        let inner = self.up.forward_gelu(&self.norm.forward(input)?)?;
        self.down.forward_add(&inner, input)
    }

    /// As [`forward`](Self::forward), with [`few_rows`].
    pub(crate) fn forward_rows(&self, rows: &[f32]) -> Result<Vec<f32>, TchError> {
        let mut inner = self.up.forward_rows(&self.norm.forward_rows(rows), None)?;
        kernels::gelu(&mut inner);
        self.down.forward_rows(&inner, Some(rows))
    }

    pub(crate) fn has_kernels(&self) -> bool {
        self.up.has_kernel() && self.down.has_kernel()
    }
}
