//! A voice detector from a TorchScript file. The network of the tests hears only loud samples.

use std::path::{Path, PathBuf};

use dalston_engine_sdk::EngineConfig;
use dalston_engine_sdk::audio::VoiceDetector;
use dalston_engine_sdk::testing::EngineHarness;
use dalston_engine_sdk::torch::SileroFile;
use tempfile::TempDir;

use crate::realtime::of_type;
use crate::realtime::tones::{RATE, Tones};
use crate::rig::{Closures, Rig};

/// The probability is the loudest sample of the frame.
const CODE: &str = "\
class Vad(Module):
  __parameters__ = []
  __buffers__ = []
  training : bool
  def forward(self: __torch__.Vad,
    x: Tensor,
    sr: int) -> Tensor:
    _0 = torch.size(x, 0)
    if torch.ne(_0, 512):
      ops.prim.RaiseException(\"a frame has 512 samples\")
    else:
      pass
    return torch.max(torch.abs(x))
  def reset_states(self: __torch__.Vad) -> NoneType:
    return None
";

/// An archive of TorchScript: an uncompressed ZIP file.
fn torch_script(code: &str) -> Vec<u8> {
    // An object of the class without attributes but `training`.
    let object = b"\x80\x02c__torch__\nVad\n)\x81}(X\x08\x00\x00\x00training\x89ub.".to_vec();
    let entries = [
        ("vad/data.pkl", object),
        ("vad/code/__torch__.py", code.as_bytes().to_vec()),
        ("vad/constants.pkl", b"\x80\x02).".to_vec()),
        ("vad/version", b"3\n".to_vec()),
    ];
    let (mut file, mut directory) = (Vec::new(), Vec::new());
    for (name, content) in &entries {
        let at = file.len() as u32;
        // Version, flags, method, time and date; checksum, both sizes, and the length of the name.
        let mut facts = vec![20, 0, 0, 0, 0, 0, 0, 0, 0x21, 0x5a];
        for number in [crc32(content), content.len() as u32, content.len() as u32] {
            facts.extend(number.to_le_bytes());
        }
        facts.extend((name.len() as u16).to_le_bytes());
        facts.extend([0, 0]);
        file.extend(b"PK\x03\x04");
        file.extend(&facts);
        file.extend(name.as_bytes());
        file.extend(content);
        directory.extend(b"PK\x01\x02\x14\0");
        directory.extend(&facts);
        directory.extend([0; 10]);
        directory.extend(at.to_le_bytes());
        directory.extend(name.as_bytes());
    }
    let (start, count) = (file.len() as u32, entries.len() as u16);
    file.extend(&directory);
    file.extend(b"PK\x05\x06\0\0\0\0");
    file.extend([count.to_le_bytes(), count.to_le_bytes()].concat());
    file.extend((directory.len() as u32).to_le_bytes());
    file.extend(start.to_le_bytes());
    file.extend([0, 0]);
    file
}

fn crc32(bytes: &[u8]) -> u32 {
    let mut crc = !0_u32;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg());
        }
    }
    !crc
}

fn written(directory: &TempDir, name: &str, content: &[u8]) -> PathBuf {
    let path = directory.path().join(name);
    std::fs::write(&path, content).unwrap();
    path
}

fn error(path: &Path) -> String {
    SileroFile::read(path).unwrap_err().to_string()
}

#[tokio::test]
async fn sessions_use_the_detector_of_the_configuration() {
    let directory = TempDir::new().unwrap();
    let path = written(&directory, "vad.jit", &torch_script(CODE));
    // The engine's own detector would hear all of it.
    let worker = EngineHarness::new(Tones::default())
        .engine_config(EngineConfig::new().vad_model(path))
        .start();
    let mut session = worker.session("interim_results=false");
    for loudness in [0.3, 0.9, 0.3] {
        session.send_audio(&vec![loudness; RATE as usize]).await;
    }
    let messages = session.finish().await;
    let starts = of_type(&messages, "vad.speech_start");
    let ends = of_type(&messages, "vad.speech_end");
    assert_eq!((starts.len(), ends.len()), (1, 1), "{messages:?}");
    let near = |message: &serde_json::Value, seconds: f64| {
        (message["timestamp"].as_f64().unwrap() - seconds).abs() < 0.05
    };
    assert!(near(starts[0], 1.0) && near(ends[0], 2.0), "{messages:?}");
    worker.stop().await;
}

#[test]
fn detector_hears_frames_of_any_length_and_no_numbers() {
    let directory = TempDir::new().unwrap();
    let file = SileroFile::read(written(&directory, "vad.jit", &torch_script(CODE))).unwrap();
    let mut detector = file.detector().unwrap();
    assert_eq!((detector.sample_rate(), detector.frame_len()), (16_000, 512));
    for (frame, expected) in [
        (vec![0.25; 512], 0.25),
        (vec![0.5; 100], 0.5),
        (vec![-0.75; 9_000], 0.75),
        (vec![], 0.0),
        (vec![f32::NAN; 512], 0.0),
        (vec![f32::INFINITY; 512], 1.0),
    ] {
        assert!(
            (detector.probability(&frame) - expected).abs() < 1e-6,
            "{expected}"
        );
    }
}

#[test]
fn unusable_detector_files_are_named() {
    let directory = TempDir::new().unwrap();
    let none = directory.path().join("none.jit");
    let text = error(&none);
    assert!(
        text.starts_with(&format!("reading the voice detector {}: ", none.display())),
        "{text}"
    );
    let other = CODE.replace("sr: int", "sr: Tensor");
    let stateless = CODE.split("  def reset").next().unwrap().to_owned();
    for (name, content) in [
        ("text.jit", b"text".to_vec()),
        ("other.jit", torch_script(&other)),
        ("stateless.jit", torch_script(&stateless)),
    ] {
        let path = written(&directory, name, &content);
        let text = error(&path);
        let begin = format!("the voice detector {} is not usable: ", path.display());
        assert!(text.starts_with(&begin) && !text.contains('\n'), "{text}");
        assert!(
            text.ends_with("silero_vad.jit of the Python package silero-vad"),
            "{text}"
        );
        // A worker does not start without the detector that it is told to use.
        let config = EngineConfig::new().vad_model(&path);
        let builder = Rig::new().runner(Closures::new(|_, _| Ok(serde_json::json!({}))));
        let error = builder.engine_config(config).build().unwrap_err();
        assert_eq!(error.to_string(), format!("DALSTON_VAD_MODEL: {text}"));
    }
}
