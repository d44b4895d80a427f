//! The decoder: from tokens and encoded positions to logits.

use tch::{Device, Kind, TchError, Tensor};
use whisper_kernels as kernels;

use super::attention::{CrossAttention, SelfAttention};
use super::cache::{Cache, Part};
use super::few_rows::{self, MOST_ROWS};
use super::int8::Int8;
use super::{FeedForward, LayerNorm, Placement, Storage, native};
use crate::config::ModelConfig;
use crate::error::LoadError;
use crate::weights::Weights;

#[derive(Debug)]
pub(crate) struct Decoder {
    tokens: Tokens,
    positions: Tensor,
    layers: Vec<DecoderLayer>,
    norm: LayerNorm,
    /// `None` if the projection is the token embedding.
    projection: Option<Tokens>,
    /// Whether all layers can be computed by [`few_rows`].
    has_kernels: bool,
}

/// A row for each token.
#[derive(Debug)]
enum Tokens {
    Plain(Tensor),
    Int8(Int8),
}

impl Tokens {
    fn new(weight: Tensor, placement: Placement) -> Result<Self, TchError> {
        Ok(match placement {
            Placement { int8: true, .. } => Self::Int8(Int8::new(&weight, None)?),
            _ => Self::Plain(weight),
        })
    }

    /// The rows of tokens: 1 × tokens × width.
    fn embed(&self, ids: &[i64], device: Device) -> Result<Tensor, TchError> {
        match self {
            Self::Plain(weight) => {
                let ids = upload(ids, device)?.f_unsqueeze(0)?;
                Tensor::f_embedding(weight, &ids, -1, false, false)
            }
            Self::Int8(int8) => int8.rows(ids),
        }
    }

    fn project(&self, hidden: &Tensor) -> Result<Tensor, TchError> {
        match self {
            Self::Plain(weight) => match native::cells(weight) {
                Some(matrix) if few_rows::has_few_rows(hidden) => {
                    few_rows::multiply(matrix, &[], hidden, None)
                }
                _ => hidden.f_linear(weight, None::<Tensor>),
            },
            Self::Int8(int8) => int8.forward(hidden, None),
        }
    }
}

fn upload(values: &[i64], device: Device) -> Result<Tensor, TchError> {
    Tensor::f_from_slice(values)?.f_to_device(device)
}

impl Decoder {
    pub(crate) fn load(windows: &Weights, config: &ModelConfig) -> Result<Self, LoadError> {
        let (width, size) = (config.d_model, config.vocab_size);
        let placement = windows.placement();
        let weights = &windows.in_kind(placement.decoder_kind());
        let layers = (0..config.decoder_layers)
            .map(|index| DecoderLayer::load(weights, windows, config, &format!("decoder.layers.{index}")))
            .collect::<Result<Vec<_>, _>>()?;
        let head_width = width / config.decoder_attention_heads;
        let has_kernels =
            kernels::has_vectors_for(head_width as usize) && layers.iter().all(DecoderLayer::has_kernels);
        let projection = if config.tie_word_embeddings {
            None
        } else {
            weights.outer_tensor("proj_out.weight", &[size, width])?
        };
        let tokens = weights.tensor("decoder.embed_tokens.weight", &[size, width])?;
        Ok(Self {
            tokens: Tokens::new(tokens, placement)?,
            positions: weights.tensor(
                "decoder.embed_positions.weight",
                &[config.max_target_positions, width],
            )?,
            layers,
            has_kernels,
            norm: LayerNorm::load(weights, "decoder.layer_norm", width)?,
            projection: projection
                .map(|projection| Tokens::new(projection, placement))
                .transpose()?,
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

    /// Reads the tokens of all feeds, and returns 1 × tokens × width, in their order.
    ///
    /// The weights are read once for all of them. Each window attends to its own cache, so that
    /// prompts and texts of different lengths need no padding.
    pub(crate) fn forward(&self, feeds: &mut [Feed<'_>]) -> Result<Tensor, TchError> {
        self.forward_with(feeds, None)
    }

    /// As [`forward`](Self::forward) with one feed of one row, with the scores of heads of the
    /// cross-attention, `(layer, head)`, before their softmax: for each layer with such heads, 1 ×
    /// heads × tokens × positions.
    pub(crate) fn forward_with_scores(
        &self,
        feed: Feed<'_>,
        heads: &[(i64, i64)],
    ) -> Result<(Tensor, Vec<Tensor>), TchError> {
        let mut scores = Vec::new();
        let hidden = self.forward_with(
            &mut [feed],
            Some(&mut |layer, hidden, parts| {
                let heads: Vec<i64> = heads
                    .iter()
                    .filter(|(of, _)| *of == layer)
                    .map(|(_, head)| *head)
                    .collect();
                if let (Some(layer), [part]) = (self.layers.get(layer as usize), parts)
                    && !heads.is_empty()
                {
                    scores.push(layer.cross.scores(hidden, part, &heads)?);
                }
                Ok(())
            }),
        )?;
        Ok((hidden, scores))
    }

    fn forward_with(
        &self,
        feeds: &mut [Feed<'_>],
        mut before_cross: Option<&mut BeforeCross<'_>>,
    ) -> Result<Tensor, TchError> {
        let (mut ids, mut positions) = (Vec::new(), Vec::new());
        for feed in feeds.iter() {
            let (position, new) = (feed.cache.len(), feed.row_len());
            ids.extend_from_slice(feed.ids);
            for _ in 0..feed.rows {
                positions.extend(position..position + new);
            }
        }
        for feed in feeds.iter_mut() {
            let new = feed.row_len();
            feed.cache.advance(new)?;
        }
        let device = self.positions.device();
        let positions = self.positions.f_index_select(0, &upload(&positions, device)?)?;
        let mut hidden = self.tokens.embed(&ids, device)?.f_add_(&positions)?;
        if self.has_kernels && ids.len() <= MOST_ROWS {
            return self.forward_rows(&hidden, feeds, before_cross);
        }
        for (index, layer) in self.layers.iter().enumerate() {
            let mut parts = parts(feeds, index);
            hidden = layer.attention.forward_causal(&hidden, &mut parts)?;
            if let Some(call) = &mut before_cross {
                call(index as i64, &hidden, &parts)?;
            }
            hidden = layer.cross.forward(&hidden, &mut parts)?;
            hidden = layer.feed_forward.forward(&hidden)?;
        }
        self.norm.forward(&hidden)
    }

    /// As [`forward_with`](Self::forward_with), with [`few_rows`], from embedded tokens. The result
    /// is in float32.
    fn forward_rows(
        &self,
        embedded: &Tensor,
        feeds: &mut [Feed<'_>],
        mut before_cross: Option<&mut BeforeCross<'_>>,
    ) -> Result<Tensor, TchError> {
        let tensor = |rows: &[f32]| Tensor::f_from_slice(rows)?.f_view(embedded.size().as_slice());
        let mut rows = few_rows::floats(embedded)?.into_owned();
        for (index, layer) in self.layers.iter().enumerate() {
            let mut parts = parts(feeds, index);
            rows = layer.attention.forward_rows(&rows, &mut parts)?;
            if let Some(call) = &mut before_cross {
                call(index as i64, &tensor(&rows)?.f_to_kind(embedded.kind())?, &parts)?;
            }
            rows = layer.cross.forward_rows(&rows, &parts)?;
            rows = layer.feed_forward.forward_rows(&rows)?;
        }
        tensor(&self.norm.forward_rows(&rows))
    }

    /// Logits in float32, for every precision of the model.
    pub(crate) fn logits(&self, hidden: &Tensor) -> Result<Tensor, TchError> {
        let projection = self.projection.as_ref().unwrap_or(&self.tokens);
        projection.project(hidden)?.f_to_kind(Kind::Float)
    }
}

/// Tokens that the decoder reads for a window, after those in its cache.
#[derive(Debug)]
pub(crate) struct Feed<'a> {
    pub(crate) cache: &'a mut Cache,
    /// As many for each row, one row after the other. More than one for each requires an empty
    /// cache.
    pub(crate) ids: &'a [i64],
    pub(crate) rows: usize,
}

impl Feed<'_> {
    /// Number of tokens of a row.
    fn row_len(&self) -> i64 {
        (self.ids.len() / self.rows.max(1)) as i64
    }

    /// Its part in a layer. The tokens are counted in the cache already.
    fn part(&mut self, layer: usize) -> Option<Part<'_>> {
        let (rows, new) = (self.rows as i64, self.row_len());
        let position = self.cache.len() - new;
        Some(Part {
            cache: self.cache.layers.get_mut(layer)?,
            rows,
            new,
            position,
        })
    }
}

/// The parts of all feeds in a layer.
fn parts<'a>(feeds: &'a mut [Feed<'_>], layer: usize) -> Vec<Part<'a>> {
    feeds.iter_mut().filter_map(|feed| feed.part(layer)).collect()
}

/// Called with the index of a layer, the input of its cross-attention, and the parts.
type BeforeCross<'a> = dyn FnMut(i64, &Tensor, &[Part<'_>]) -> Result<(), TchError> + 'a;

#[derive(Debug)]
struct DecoderLayer {
    attention: SelfAttention,
    cross: CrossAttention,
    feed_forward: FeedForward,
}

impl DecoderLayer {
    fn load(
        weights: &Weights,
        windows: &Weights,
        config: &ModelConfig,
        name: &str,
    ) -> Result<Self, LoadError> {
        let (width, heads) = (config.d_model, config.decoder_attention_heads);
        let storage = Storage::of_tokens(weights.placement());
        Ok(Self {
            attention: SelfAttention::load(weights, name, (width, heads), storage)?,
            cross: CrossAttention::load((weights, windows), name, (width, heads), storage)?,
            feed_forward: FeedForward::load(weights, name, (width, config.decoder_ffn_dim), storage)?,
        })
    }

    fn has_kernels(&self) -> bool {
        self.attention.has_kernels() && self.cross.has_kernels() && self.feed_forward.has_kernels()
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn few_rows_are_computed_as_libtorch_does() {
        let _no_grad = tch::no_grad_guard();
        let dir = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/models/whisper-nano-digits"));
        let text = std::fs::read_to_string(dir.join("config.json")).unwrap();
        let config: ModelConfig = serde_json::from_str(&text).unwrap();
        let encoded = Tensor::randn(
            [1, config.max_source_positions, config.d_model],
            (Kind::Float, Device::Cpu),
        );
        // A step in bfloat16 rounds after each operation of libtorch.
        for (kind, int8, most) in [
            (Kind::Float, false, 1e-4),
            (Kind::Float, true, 1e-4),
            (Kind::BFloat16, false, 0.3),
        ] {
            let placement = Placement {
                int8,
                ..Placement::new(Device::Cpu, kind)
            };
            let weights = Weights::open(dir, placement).unwrap();
            let mut decoder = Decoder::load(&weights, &config).unwrap();
            let has_kernels = decoder.has_kernels;
            assert_eq!(has_kernels, kernels::has_vectors_for(32));
            let mut results = [false, has_kernels].map(|has_kernels| {
                decoder.has_kernels = has_kernels;
                let mut cache = Cache::new(&config, placement).unwrap();
                decoder.set_window(&encoded.to_kind(kind), &mut cache).unwrap();
                // A prompt, and then a token.
                [&[7, 11, 13, 17][..], &[19]].map(|ids| {
                    let cache = &mut cache;
                    let feed = Feed { cache, ids, rows: 1 };
                    decoder.forward(&mut [feed]).unwrap().to_kind(Kind::Float)
                })
            });
            let [expected, found] = &mut results;
            for (found, expected) in found.iter().zip(expected) {
                let off = (found - &*expected).abs().max().double_value(&[]);
                assert!(off < most, "{kind:?} int8 {int8}: {off}");
            }
        }
    }
}
