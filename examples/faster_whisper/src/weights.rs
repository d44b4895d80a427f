//! Tensors of safetensors files, which are mapped into memory: a tensor in the precision of the
//! file is not copied, and other tensors are read without a copy in between.

use std::collections::{BTreeSet, HashMap};
use std::fs::{self, File};
use std::io::Read;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use safetensors::tensor::{Dtype, Metadata};
use serde::Deserialize;
use tch::{Device, Kind, Tensor};

use crate::error::LoadError;
use crate::model::Placement;

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
/// The limit of the safetensors library itself.
const MAX_HEADER_BYTES: u64 = 100_000_000;

/// The weights of a model directory: a single file or shards with an index.
#[derive(Debug, Clone)]
pub(crate) struct Weights {
    /// The single file or the index, for errors about a missing tensor.
    listing: PathBuf,
    shards: Arc<[Shard]>,
    /// Which shard holds a tensor.
    place: Arc<HashMap<String, usize>>,
    /// `model.` in most directories; empty if only the inner model was saved.
    prefix: &'static str,
    placement: Placement,
    /// Checks the tensors without reading their values.
    without_values: bool,
}

impl Weights {
    /// Opens the weights in `dir` and reads the headers of the files.
    ///
    /// # Errors
    /// There are no weights, or a file is truncated or not safetensors.
    pub(crate) fn open(dir: &Path, placement: Placement) -> Result<Self, LoadError> {
        let single = dir.join(SINGLE);
        let index = dir.join(INDEX);
        let (listing, files, wanted) = if single.exists() {
            (single.clone(), vec![single], None)
        } else if index.exists() {
            let map = read_index(&index)?;
            let names: BTreeSet<&String> = map.values().collect();
            let files = names.iter().map(|name| dir.join(name)).collect();
            (index, files, Some(map))
        } else {
            let hint = if dir.join("pytorch_model.bin").exists() {
                "in that directory, convert pytorch_model.bin with `python3 -c \"from transformers import \
                 WhisperForConditionalGeneration as W; W.from_pretrained('.').save_pretrained('.')\"`"
            } else {
                "is this a Hugging Face Whisper directory?"
            };
            return Err(LoadError::NoWeights {
                path: dir.to_owned(),
                hint,
            });
        };

        let mut shards = Vec::with_capacity(files.len());
        let mut place = HashMap::new();
        for path in files {
            let shard = Shard::open(path)?;
            for name in shard.metadata.offset_keys() {
                place.insert(name, shards.len());
            }
            shards.push(shard);
        }
        if let Some(name) = wanted
            .iter()
            .flat_map(|map| map.keys())
            .find(|name| !place.contains_key(name.as_str()))
        {
            return Err(LoadError::MissingTensor {
                path: listing,
                name: name.clone(),
            });
        }
        let prefix = if place.keys().any(|name| name.starts_with("encoder.")) {
            ""
        } else {
            "model."
        };
        Ok(Self {
            listing,
            shards: shards.into(),
            place: Arc::new(place),
            prefix,
            placement,
            without_values: false,
        })
    }

    /// Reads no values from now on: tensors have the right shape, contain zeros and take no memory.
    pub(crate) fn without_values(mut self) -> Self {
        self.without_values = true;
        self
    }

    /// The same weights in another precision.
    pub(crate) fn in_kind(&self, kind: Kind) -> Self {
        let mut other = self.clone();
        other.placement.kind = kind;
        other
    }

    /// The bytes of all tensors, and the number of files that hold them.
    pub(crate) fn extent(&self) -> (usize, usize) {
        let bytes = self.shards.iter().map(|shard| shard.metadata.data_len());
        (bytes.sum(), self.shards.len())
    }

    /// Reads one tensor of the model (named without the leading `model.`), in the placement's
    /// precision and on its device.
    ///
    /// # Errors
    /// It is missing, or has another shape than `shape`, or an unusable element type.
    pub(crate) fn tensor(&self, name: &str, shape: &[i64]) -> Result<Tensor, LoadError> {
        self.read(format!("{}{name}", self.prefix), shape)
    }

    /// As [`tensor`](Self::tensor), for an optional tensor outside the inner model.
    ///
    /// # Errors
    /// It has another shape than `shape`, or an unusable element type.
    pub(crate) fn outer_tensor(&self, name: &str, shape: &[i64]) -> Result<Option<Tensor>, LoadError> {
        if !self.place.contains_key(name) {
            return Ok(None);
        }
        self.read(name.to_owned(), shape).map(Some)
    }

    /// Device and precision of the tensors.
    #[must_use]
    pub(crate) fn placement(&self) -> Placement {
        self.placement
    }

    fn read(&self, name: String, shape: &[i64]) -> Result<Tensor, LoadError> {
        let found = self.place.get(&name).and_then(|&index| self.shards.get(index));
        let Some(shard) = found else {
            return Err(LoadError::MissingTensor {
                path: self.listing.clone(),
                name,
            });
        };
        if self.without_values {
            shard.check(&name, shape)?;
            let zero = Tensor::f_zeros([1], (self.placement.kind, self.placement.device))?;
            return Ok(zero.f_expand(shape, false)?);
        }
        let tensor = shard.read(&name, shape)?;
        Ok(tensor
            .f_to_device(self.placement.device)?
            .f_to_kind(self.placement.kind)?)
    }
}

/// One safetensors file.
#[derive(Debug)]
struct Shard {
    path: PathBuf,
    /// The bytes of the file behind its header.
    data: Tensor,
    metadata: Metadata,
}

impl Shard {
    fn open(path: PathBuf) -> Result<Self, LoadError> {
        let invalid = |problem: String| LoadError::Invalid {
            path: path.clone(),
            problem,
        };
        let unreadable = |source| LoadError::Read {
            path: path.clone(),
            source,
        };

        let mut file = File::open(&path).map_err(unreadable)?;
        let length = file.metadata().map_err(unreadable)?.len();
        let mut prefix = [0; 8];
        if length < 8 {
            return Err(invalid(format!(
                "truncated: {length} bytes are too few for a safetensors header"
            )));
        }
        file.read_exact(&mut prefix).map_err(unreadable)?;
        let header = u64::from_le_bytes(prefix);
        if header > MAX_HEADER_BYTES || header > length - 8 {
            return Err(invalid(format!(
                "not a safetensors file, or truncated: its header claims {header} of {length} bytes"
            )));
        }
        let mut json = vec![0; header as usize];
        file.read_exact(&mut json).map_err(unreadable)?;
        let metadata: Metadata = serde_json::from_slice(&json)
            .map_err(|error| invalid(format!("not a safetensors file: malformed header: {error}")))?;
        let start = 8 + header;
        let expected = start.saturating_add(metadata.data_len() as u64);
        if length != expected {
            let what = if length < expected {
                "truncated"
            } else {
                "trailing bytes"
            };
            return Err(invalid(format!(
                "{what}: {length} bytes where the header calls for {expected}"
            )));
        }
        // The open file also if another one has its path by now.
        let name = format!("/proc/self/fd/{}", file.as_raw_fd());
        let whole = Tensor::f_from_file(&name, false, length as i64, (Kind::Uint8, Device::Cpu))?;
        Ok(Self {
            path,
            data: whole.f_narrow(0, start as i64, metadata.data_len() as i64)?,
            metadata,
        })
    }

    fn read(&self, name: &str, shape: &[i64]) -> Result<Tensor, LoadError> {
        let (kind, bytes) = self.check(name, shape)?;
        let mut data = self.data.f_narrow(0, bytes.start as i64, bytes.len() as i64)?;
        if !(data.data_ptr() as usize).is_multiple_of(kind.elt_size_in_bytes()) {
            // The header of an old file may have any length.
            data = data.f_detach_copy()?;
        }
        Ok(data.f_view_dtype(kind)?.f_view(shape)?)
    }

    /// The element type and the bytes of a tensor, if its shape is as expected.
    fn check(&self, name: &str, shape: &[i64]) -> Result<(Kind, Range<usize>), LoadError> {
        let (path, name) = (self.path.clone(), name.to_owned());
        let Some(info) = self.metadata.info(&name) else {
            return Err(LoadError::MissingTensor { path, name });
        };
        let kind = match info.dtype {
            Dtype::F32 => Kind::Float,
            Dtype::F16 => Kind::Half,
            Dtype::BF16 => Kind::BFloat16,
            Dtype::F64 => Kind::Double,
            other => {
                return Err(LoadError::UnsupportedDtype {
                    path,
                    name,
                    dtype: format!("{other:?}"),
                });
            }
        };
        let found: Vec<i64> = info.shape.iter().map(|&n| n as i64).collect();
        if found != shape {
            return Err(LoadError::WrongShape {
                path,
                name,
                expected: shape.to_vec(),
                found,
            });
        }
        // The metadata was validated when the file was opened: the range has the size of the shape.
        let (begin, end) = info.data_offsets;
        Ok((kind, begin..end))
    }
}

#[derive(Deserialize)]
struct Index {
    weight_map: HashMap<String, String>,
}

fn read_index(path: &Path) -> Result<HashMap<String, String>, LoadError> {
    let text = fs::read_to_string(path).map_err(|source| LoadError::Read {
        path: path.to_owned(),
        source,
    })?;
    let index: Index = serde_json::from_str(&text).map_err(|source| LoadError::Json {
        path: path.to_owned(),
        source,
    })?;
    // The index is untrusted: it may only name files in its own directory.
    let outside = index
        .weight_map
        .values()
        .find(|name| Path::new(name.as_str()).file_name() != Some(name.as_ref()));
    if let Some(name) = outside {
        let problem = format!("weight_map names {name:?}: expected the name of a file in the same directory");
        return Err(LoadError::Invalid {
            path: path.to_owned(),
            problem,
        });
    }
    Ok(index.weight_map)
}
