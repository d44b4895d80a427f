//! Keys and values of past tokens and of the window. The memory is allocated once per model.

use tch::{Kind, TchError, Tensor};

use super::Placement;
use crate::config::ModelConfig;

/// The cache of all decoder layers.
#[derive(Debug)]
pub(crate) struct Cache {
    pub(super) layers: Vec<LayerCache>,
    /// Number of tokens in the cache.
    len: i64,
    capacity: i64,
}

impl Cache {
    pub(crate) fn new(config: &ModelConfig, placement: Placement, batch: i64) -> Result<Self, TchError> {
        let capacity = config.max_target_positions;
        let layers = (0..config.decoder_layers)
            .map(|_| LayerCache::new(config, placement, batch))
            .collect::<Result<_, _>>()?;
        Ok(Self {
            layers,
            len: 0,
            capacity,
        })
    }

    /// Removes the tokens and keeps the window.
    pub(crate) fn clear(&mut self) {
        self.len = 0;
    }

    /// Number of tokens in the cache.
    pub(crate) fn len(&self) -> i64 {
        self.len
    }

    pub(super) fn advance(&mut self, tokens: i64) -> Result<(), TchError> {
        if self.len + tokens > self.capacity {
            return Err(TchError::Shape(format!(
                "{} tokens exceed the decoder's {} positions",
                self.len + tokens,
                self.capacity
            )));
        }
        self.len += tokens;
        Ok(())
    }
}

/// The cache of one decoder layer. All tensors are batch × heads × positions × head width.
#[derive(Debug)]
pub(crate) struct LayerCache {
    keys: Tensor,
    values: Tensor,
    window_keys: Tensor,
    window_values: Tensor,
}

impl LayerCache {
    fn new(config: &ModelConfig, placement: Placement, batch: i64) -> Result<Self, TchError> {
        let heads = config.decoder_attention_heads;
        let room = |positions: i64| {
            let options: (Kind, _) = (placement.kind, placement.device);
            Tensor::f_zeros([batch, heads, positions, config.d_model / heads], options)
        };
        Ok(Self {
            keys: room(config.max_target_positions)?,
            values: room(config.max_target_positions)?,
            window_keys: room(config.max_source_positions)?,
            window_values: room(config.max_source_positions)?,
        })
    }

    /// Stores new keys and values at `position` and returns views of all up to and including them.
    pub(super) fn append(
        &mut self,
        key: &Tensor,
        value: &Tensor,
        position: i64,
    ) -> Result<(Tensor, Tensor), TchError> {
        let new = key.size4()?.2;
        self.keys.f_narrow(2, position, new)?.f_copy_(key)?;
        self.values.f_narrow(2, position, new)?.f_copy_(value)?;
        Ok((
            self.keys.f_narrow(2, 0, position + new)?,
            self.values.f_narrow(2, 0, position + new)?,
        ))
    }

    pub(super) fn set_window(&mut self, keys: &Tensor, values: &Tensor) -> Result<(), TchError> {
        self.window_keys.f_copy_(keys)?;
        self.window_values.f_copy_(values)
    }

    pub(super) fn window(&self) -> (&Tensor, &Tensor) {
        (&self.window_keys, &self.window_values)
    }
}
