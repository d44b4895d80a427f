//! Shared by the tests: paths, one loaded model, and a reader for the shipped recordings.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};

use faster_whisper::{Options, Placement, Whisper};
use tch::{Device, Kind, Tensor};

/// Device and precision of the goldens: `cpu`, `cuda` or `cuda:1`, then `float32`, `float16`,
/// `bfloat16`, `int8_float32` or `int8_bfloat16`, as in `cuda:0/float16`.
const PLACEMENT_VARIABLE: &str = "FASTER_WHISPER_TEST_PLACEMENT";

/// The directory of the example. Cargo sets it at run time, because another machine may have
/// compiled the test.
pub(crate) fn root() -> &'static Path {
    static ROOT: LazyLock<PathBuf> = LazyLock::new(|| {
        std::env::var_os("CARGO_MANIFEST_DIR")
            .map_or_else(|| env!("CARGO_MANIFEST_DIR").into(), PathBuf::from)
    });
    &ROOT
}

pub(crate) fn model_dir() -> PathBuf {
    root().join("models/whisper-nano-digits")
}

/// The shipped model, loaded once.
pub(crate) fn nano() -> MutexGuard<'static, Whisper> {
    static NANO: LazyLock<Mutex<Whisper>> = LazyLock::new(|| Mutex::new(load(placement())));
    // The model remains usable after a failed assertion of another test.
    NANO.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(crate) fn load(placement: Placement) -> Whisper {
    // Tests run in parallel, and a second thread slows models of this size down.
    tch::set_num_threads(1);
    Whisper::load(&model_dir(), placement).unwrap()
}

/// Device and precision of the comparison with the goldens.
pub(crate) fn placement() -> Placement {
    let text = std::env::var(PLACEMENT_VARIABLE).unwrap_or_else(|_| "cpu/float32".to_owned());
    let (device, kind) = text.split_once('/').expect("DEVICE/PRECISION");
    let device = match device {
        "cpu" => Device::Cpu,
        "cuda" => Device::Cuda(0),
        other => Device::Cuda(
            other
                .strip_prefix("cuda:")
                .and_then(|n| n.parse().ok())
                .expect("cpu or cuda[:N]"),
        ),
    };
    if device != Device::Cpu {
        dalston_engine_sdk::torch::load_cuda().unwrap();
    }
    let int8 = kind.starts_with("int8_");
    let kind = match kind.trim_start_matches("int8_") {
        "float32" => Kind::Float,
        "float16" => Kind::Half,
        "bfloat16" => Kind::BFloat16,
        other => panic!("unknown precision {other}"),
    };
    Placement {
        int8,
        ..Placement::new(device, kind)
    }
}

/// The samples of a shipped 16 kHz mono PCM file.
pub(crate) fn samples(file: &str) -> Vec<f32> {
    let bytes = fs::read(root().join("audio").join(file)).unwrap();
    assert_eq!((&bytes[..4], &bytes[8..12]), (&b"RIFF"[..], &b"WAVE"[..]));
    let mut at = 12;
    loop {
        let size = u32::from_le_bytes(bytes[at + 4..at + 8].try_into().unwrap()) as usize;
        if &bytes[at..at + 4] == b"data" {
            let data = &bytes[at + 8..at + 8 + size];
            return data
                .chunks_exact(2)
                .map(|pair| f32::from(i16::from_le_bytes([pair[0], pair[1]])) / 32768.0)
                .collect();
        }
        at += 8 + size + size % 2;
    }
}

/// The options of the transcripts in `goldens/`: greedy, at temperature 0, without earlier text.
pub(crate) fn reference_options() -> Options {
    let mut options = Options::default();
    options.beam_size = 1;
    options.temperature = vec![0.0];
    options.condition_on_previous_text = false;
    options
}

/// The largest absolute difference.
pub(crate) fn distance(a: &Tensor, b: &Tensor) -> f64 {
    assert_eq!(a.size(), b.size());
    let (a, b) = (host(a), host(b));
    (a - b).abs().max().double_value(&[])
}

pub(crate) fn host(tensor: &Tensor) -> Tensor {
    tensor.to_device(Device::Cpu).to_kind(Kind::Float)
}
