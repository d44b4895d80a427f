//! Keys and values of past tokens and of a window. The memory is kept for later windows, and grows
//! where more texts are decoded at once than before.

use tch::{Device, Kind, TchError, Tensor};
use whisper_kernels::{self as kernels, Matrix};

use super::Placement;
use super::native;
use crate::config::ModelConfig;

/// The cache of all decoder layers, for one window.
#[derive(Debug)]
pub(crate) struct Cache {
    pub(super) layers: Vec<LayerCache>,
    /// Number of tokens in the cache.
    len: i64,
    capacity: i64,
    device: Device,
}

impl Cache {
    pub(crate) fn new(config: &ModelConfig, placement: Placement) -> Result<Self, TchError> {
        let capacity = config.max_target_positions;
        let layers = (0..config.decoder_layers)
            .map(|_| LayerCache::new(config, placement))
            .collect::<Result<_, _>>()?;
        Ok(Self {
            layers,
            len: 0,
            capacity,
            device: placement.device,
        })
    }

    /// Copies the tokens of the first row to `count` rows.
    pub(crate) fn spread(&mut self, count: i64) -> Result<(), TchError> {
        for layer in &mut self.layers {
            for tensor in [&mut layer.keys, &mut layer.values] {
                let (rows, heads, positions, width) = tensor.size4()?;
                let first = tensor.f_narrow(0, 0, 1)?.f_narrow(2, 0, self.len)?;
                if rows < count {
                    let kind = (tensor.kind(), self.device);
                    *tensor = Tensor::f_zeros([count, heads, positions, width], kind)?;
                    tensor
                        .f_narrow(0, 0, 1)?
                        .f_narrow(2, 0, self.len)?
                        .f_copy_(&first)?;
                }
                let others = tensor.f_narrow(0, 1, count - 1)?;
                others.f_narrow(2, 0, self.len)?.f_copy_(&first)?;
            }
        }
        Ok(())
    }

    /// Copies the tokens of one row to another one, except the first `shared`, which are the same.
    pub(crate) fn copy_row(&mut self, from: i64, to: i64, shared: i64) -> Result<(), TchError> {
        let new = self.len - shared;
        if new == 0 {
            return Ok(());
        }
        for layer in &self.layers {
            for tensor in [&layer.keys, &layer.values] {
                let row = |row| tensor.f_select(0, row)?.f_narrow(1, shared, new);
                row(to)?.f_copy_(&row(from)?)?;
            }
        }
        Ok(())
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

/// The cache of one decoder layer. All tensors are rows × heads × positions × head width. Those of
/// the window have one row, which all texts share.
#[derive(Debug)]
pub(crate) struct LayerCache {
    keys: Tensor,
    values: Tensor,
    window_keys: Tensor,
    window_values: Tensor,
}

impl LayerCache {
    fn new(config: &ModelConfig, placement: Placement) -> Result<Self, TchError> {
        let heads = config.decoder_attention_heads;
        let room = |positions: i64, kind: Kind| {
            let shape = [1, heads, positions, config.d_model / heads];
            Tensor::f_zeros(shape, (kind, placement.device))
        };
        let (tokens, window) = (config.max_target_positions, config.max_source_positions);
        let kind = placement.decoder_kind();
        // Each step reads all of them, for each window of a batch. Libtorch would widen them each
        // time.
        let has_kernels = kernels::has_vectors_for((config.d_model / heads) as usize);
        let window_kind = match placement.int8 && has_kernels {
            true => Kind::BFloat16,
            false => kind,
        };
        Ok(Self {
            keys: room(tokens, kind)?,
            values: room(tokens, kind)?,
            window_keys: room(window, window_kind)?,
            window_values: room(window, window_kind)?,
        })
    }

    /// Stores new keys and values of the first rows at `position` and returns views of all up to
    /// and including them.
    pub(super) fn append(
        &mut self,
        key: &Tensor,
        value: &Tensor,
        position: i64,
    ) -> Result<(Tensor, Tensor), TchError> {
        let (rows, _, new, _) = key.size4()?;
        let (keys, values) = (self.keys.f_narrow(0, 0, rows)?, self.values.f_narrow(0, 0, rows)?);
        keys.f_narrow(2, position, new)?.f_copy_(key)?;
        values.f_narrow(2, position, new)?.f_copy_(value)?;
        Ok((
            keys.f_narrow(2, 0, position + new)?,
            values.f_narrow(2, 0, position + new)?,
        ))
    }

    /// Stores the key and the value of a token, of all heads, at its row and position.
    pub(super) fn store(
        &mut self,
        (row, position): (usize, usize),
        key: &[f32],
        value: &[f32],
    ) -> Result<(), TchError> {
        for (tensor, numbers) in [(&mut self.keys, key), (&mut self.values, value)] {
            let (_, heads, capacity, width) = tensor.size4()?;
            for (head, numbers) in numbers.chunks_exact(width as usize).enumerate() {
                let place = (row * heads as usize + head) * capacity as usize + position;
                native::store(tensor, place * width as usize, numbers)?;
            }
        }
        Ok(())
    }

    /// The memory of the tokens.
    pub(super) fn cells(&self) -> CacheCells<'_> {
        CacheCells::new(&self.keys, &self.values)
    }

    /// The memory of the window, and its number of positions.
    pub(super) fn window_cells(&self) -> (CacheCells<'_>, usize) {
        let cells = CacheCells::new(&self.window_keys, &self.window_values);
        let positions = cells.capacity;
        (cells, positions)
    }

    pub(super) fn set_window(&mut self, keys: &Tensor, values: &Tensor) -> Result<(), TchError> {
        self.window_keys.f_copy_(keys)?;
        self.window_values.f_copy_(values)
    }

    /// The keys and the values of the window, in this precision.
    pub(super) fn window(&self, kind: Kind) -> Result<(Tensor, Tensor), TchError> {
        Ok((
            self.window_keys.f_to_kind(kind)?,
            self.window_values.f_to_kind(kind)?,
        ))
    }
}

/// The memory of keys and values.
pub(super) struct CacheCells<'a> {
    both: Option<(Matrix<'a>, Matrix<'a>)>,
    heads: usize,
    capacity: usize,
    width: usize,
}

impl<'a> CacheCells<'a> {
    fn new(keys: &'a Tensor, values: &'a Tensor) -> Self {
        let size = keys.size();
        let size = |dimension| size.get(dimension).map_or(0, |size| *size as usize);
        Self {
            both: native::cells(keys).zip(native::cells(values)),
            heads: size(1),
            capacity: size(2),
            width: size(3),
        }
    }

    /// The first keys and values of a row and a head. `None` if they are not in memory that the
    /// kernels can read.
    pub(super) fn of_head(
        &self,
        row: usize,
        head: usize,
        positions: usize,
    ) -> Option<(Matrix<'a>, Matrix<'a>)> {
        let (keys, values) = self.both?;
        let first = (row * self.heads + head) * self.capacity;
        let range = first..first + positions;
        Some((
            keys.rows(range.clone(), self.width),
            values.rows(range, self.width),
        ))
    }
}

/// The tokens of one window in a layer of the decoder.
#[derive(Debug)]
pub(crate) struct Part<'a> {
    pub(super) cache: &'a mut LayerCache,
    /// Texts of the window.
    pub(super) rows: i64,
    /// Tokens of each row.
    pub(super) new: i64,
    /// Tokens of each row before them.
    pub(super) position: i64,
}

impl Part<'_> {
    /// The row and the position of each token.
    pub(super) fn tokens(&self) -> impl Iterator<Item = (usize, usize)> + use<> {
        let (new, position) = (self.new as usize, self.position as usize);
        (0..self.rows as usize).flat_map(move |row| (position..position + new).map(move |at| (row, at)))
    }
}
