//! Comparison with the numbers in `goldens/`, within the tolerances of `goldens/README.md`.

use std::collections::BTreeMap;
use std::fs;
use std::sync::LazyLock;

use faster_whisper::{
    Hypothesis, Placement, Prompt, RuleConfig, Rules, Sampling, Task, Whisper, Window, compression_ratio,
};
use serde::Deserialize;
use tch::{Device, Kind, Tensor};

use crate::support::{distance, host, load, model_dir, nano, reference_options, root, samples};

#[derive(Deserialize)]
struct Goldens {
    model_sha256: String,
    encoder_rows: Vec<i64>,
    files: Vec<Golden>,
}

#[derive(Deserialize)]
struct Golden {
    file: String,
    native_16k_mono: bool,
    samples_16k: usize,
    language: String,
    language_probs: BTreeMap<String, f64>,
    no_speech_prob: f64,
    mel: Summary,
    encoder: Summary,
    teacher_ids: Vec<i64>,
    teacher_logits: Summary,
    greedy: Greedy,
    greedy_timestamps: Greedy,
    greedy_translate: Translated,
    transcribe: Vec<GoldenSegment>,
}

#[derive(Deserialize)]
struct Summary {
    shape: Vec<i64>,
    mean: f64,
    abs_mean: f64,
    min: f64,
    max: f64,
}

#[derive(Deserialize)]
struct Greedy {
    ids: Vec<i64>,
    text: String,
    ended: bool,
    avg_logprob: f64,
    margins: Vec<f64>,
    compression_ratio: f64,
}

#[derive(Deserialize)]
struct Translated {
    ids: Vec<i64>,
    text: String,
    smallest_margin: f64,
}

#[derive(Deserialize)]
struct GoldenSegment {
    start: f64,
    end: f64,
    text: String,
    ids: Vec<i64>,
    seek: usize,
    avg_logprob: f64,
    compression_ratio: f64,
    no_speech_prob: f64,
}

static GOLDENS: LazyLock<Goldens> = LazyLock::new(|| {
    let text = fs::read_to_string(root().join("goldens/goldens.json")).unwrap();
    serde_json::from_str(&text).unwrap()
});

/// File, language and text of every shipped recording.
pub(crate) fn transcript_texts() -> Vec<(String, String, String)> {
    let text = |golden: &Golden| {
        let texts: Vec<&str> = golden
            .transcribe
            .iter()
            .map(|segment| segment.text.as_str())
            .collect();
        (golden.file.clone(), golden.language.clone(), texts.join(" "))
    };
    GOLDENS.files.iter().map(text).collect()
}

/// The tolerances of a precision.
#[derive(Clone, Copy)]
struct Tolerance {
    encoder: f64,
    logits: f64,
    probability: f64,
    margin: f64,
    avg_logprob: f64,
}

impl Tolerance {
    fn of(placement: Placement) -> Self {
        if placement.int8 {
            let encoder = Self::of(Placement {
                int8: false,
                ..placement
            });
            return Self {
                logits: 0.5,
                probability: 0.04,
                margin: 0.6,
                avg_logprob: 0.1,
                ..encoder
            };
        }
        // A GPU's convolutions use TF32, whose mantissa is as short as float16's.
        match (placement.device, placement.kind) {
            (Device::Cpu, Kind::Float) => Self {
                encoder: 1e-3,
                logits: 2e-3,
                probability: 1e-3,
                margin: 0.01,
                avg_logprob: 1e-3,
            },
            (_, Kind::BFloat16) => Self {
                encoder: 0.15,
                logits: 0.3,
                probability: 0.04,
                margin: 0.6,
                avg_logprob: 0.1,
            },
            _ => Self {
                encoder: 0.02,
                logits: 0.05,
                probability: 0.01,
                margin: 0.1,
                avg_logprob: 0.02,
            },
        }
    }
}

fn native() -> impl Iterator<Item = &'static Golden> {
    GOLDENS.files.iter().filter(|golden| golden.native_16k_mono)
}

fn tensors(golden: &Golden) -> BTreeMap<String, Tensor> {
    let path = root()
        .join("goldens")
        .join(golden.file.replace(".wav", ".safetensors"));
    Tensor::read_safetensors(path).unwrap().into_iter().collect()
}

#[test]
fn goldens_belong_to_the_shipped_weights() {
    let weights = fs::read(model_dir().join("model.safetensors")).unwrap();
    assert_eq!(sha256(&weights), GOLDENS.model_sha256);
}

#[test]
fn features_match_the_reference() {
    let whisper = nano();
    for golden in native() {
        let audio = samples(&golden.file);
        assert_eq!(audio.len(), golden.samples_16k, "{}", golden.file);
        let mel = whisper.features(&audio).unwrap().squeeze_dim(0);
        let expected = &tensors(golden)["mel"];
        let frames = expected.size()[1];
        let off = distance(&mel.narrow(1, 0, frames), expected);
        assert!(off < 2e-4, "{}: mel is off by {off}", golden.file);
        check_summary(&golden.file, &mel, &golden.mel, 2e-4);
    }
}

#[test]
fn encoder_output_matches_the_reference() {
    let mut whisper = nano();
    let tolerance = Tolerance::of(whisper.placement()).encoder;
    for golden in native() {
        check_encoder(&window(&mut whisper, golden), golden, tolerance);
    }
}

#[test]
fn logits_match_the_reference() {
    let mut whisper = nano();
    let tolerance = Tolerance::of(whisper.placement());
    for golden in native() {
        let logits = check_logits(&mut window(&mut whisper, golden), golden, tolerance);
        if whisper.placement() == Placement::CPU {
            let argmax = logits.argmax(-1, false).to_kind(Kind::Int);
            let expected = &tensors(golden)["teacher_logits_argmax"];
            assert_eq!(&argmax, expected, "{}", golden.file);
        }
    }
}

#[test]
fn language_and_no_speech_probabilities_match_the_reference() {
    let mut whisper = nano();
    let tolerance = Tolerance::of(whisper.placement()).probability;
    for golden in native() {
        check_probabilities(&mut window(&mut whisper, golden), golden, tolerance);
    }
}

#[test]
fn greedy_tokens_without_timestamps_match_the_reference() {
    let mut whisper = nano();
    let tolerance = Tolerance::of(whisper.placement());
    for golden in native() {
        let found = greedy(&mut whisper, golden, Task::Transcribe, false);
        check_greedy(
            &golden.file,
            &found,
            &golden.greedy,
            golden.no_speech_prob,
            tolerance,
        );
    }
}

#[test]
fn greedy_tokens_with_timestamps_match_the_reference() {
    let mut whisper = nano();
    let tolerance = Tolerance::of(whisper.placement());
    for golden in native() {
        let found = greedy(&mut whisper, golden, Task::Transcribe, true);
        check_greedy(
            &golden.file,
            &found,
            &golden.greedy_timestamps,
            golden.no_speech_prob,
            tolerance,
        );
    }
}

#[test]
fn greedy_translation_matches_the_reference() {
    let mut whisper = nano();
    let tolerance = Tolerance::of(whisper.placement());
    for golden in native() {
        let expected = &golden.greedy_translate;
        let found = greedy(&mut whisper, golden, Task::Translate, false);
        if expected.smallest_margin > tolerance.margin {
            assert_eq!(
                (&found.ids, &found.text),
                (&expected.ids, &expected.text),
                "{}",
                golden.file
            );
        }
    }
}

#[test]
fn segments_of_recordings_match_the_reference() {
    let mut whisper = nano();
    let tolerance = Tolerance::of(whisper.placement());
    for golden in native() {
        check_transcript(&mut whisper, golden, tolerance);
    }
}

#[test]
fn half_precision_is_within_its_tolerances() {
    for kind in [Kind::BFloat16, Kind::Half] {
        check_all(Placement::new(Device::Cpu, kind));
    }
}

#[test]
fn int8_is_within_its_tolerances() {
    for kind in [Kind::Float, Kind::BFloat16] {
        check_all(Placement {
            int8: true,
            ..Placement::new(Device::Cpu, kind)
        });
    }
}

/// Compares each step with the goldens.
fn check_all(placement: Placement) {
    let mut whisper = load(placement);
    let tolerance = Tolerance::of(placement);
    for golden in native() {
        let (prompt, rules) = beginning(&whisper, golden, Task::Transcribe, true);
        // The encoder is slow in precisions that the processor does not have.
        let mut window = window(&mut whisper, golden);
        check_encoder(&window, golden, tolerance.encoder);
        let _ = check_logits(&mut window, golden, tolerance);
        check_probabilities(&mut window, golden, tolerance.probability);
        let found = greedy_in(&mut window, &prompt, &rules);
        check_greedy(
            &golden.file,
            &found,
            &golden.greedy_timestamps,
            golden.no_speech_prob,
            tolerance,
        );
    }
}

#[test]
fn compression_ratio_is_that_of_zlib() {
    for golden in &GOLDENS.files {
        let off = compression_ratio(&golden.greedy.text) - golden.greedy.compression_ratio;
        assert!(off.abs() < 0.1, "{}: off by {off}", golden.file);
    }
    assert_eq!(compression_ratio(""), 0.0);
}

fn window<'a>(whisper: &'a mut Whisper, golden: &Golden) -> Window<'a> {
    let mel = whisper.features(&samples(&golden.file)).unwrap();
    whisper.window(&mel).unwrap()
}

fn check_encoder(window: &Window<'_>, golden: &Golden, tolerance: f64) {
    let encoded = host(window.encoded()).squeeze_dim(0);
    let rows = encoded.index_select(0, &Tensor::from_slice(&GOLDENS.encoder_rows));
    let off = distance(&rows, &tensors(golden)["encoder_rows"]);
    assert!(off < tolerance, "{}: encoder is off by {off}", golden.file);
    check_summary(&golden.file, &encoded, &golden.encoder, tolerance);
}

fn check_logits(window: &mut Window<'_>, golden: &Golden, tolerance: Tolerance) -> Tensor {
    let expected = tensors(golden);
    let logits = host(&window.logits(&golden.teacher_ids).unwrap());
    let rows = expected["teacher_logits"].size()[0];
    let off = distance(&logits.narrow(0, 0, rows), &expected["teacher_logits"]);
    assert!(off < tolerance.logits, "{}: logits are off by {off}", golden.file);
    check_summary(&golden.file, &logits, &golden.teacher_logits, tolerance.logits);
    logits
}

fn check_probabilities(window: &mut Window<'_>, golden: &Golden, tolerance: f64) {
    let languages = window.languages().unwrap();
    assert_eq!(languages.len(), golden.language_probs.len());
    for language in &languages {
        let off = language.probability - golden.language_probs[&language.code];
        assert!(
            off.abs() < tolerance,
            "{}: {} is off by {off}",
            golden.file,
            language.code
        );
    }
    let off = window.no_speech_probability().unwrap() - golden.no_speech_prob;
    assert!(
        off.abs() < tolerance,
        "{}: no speech is off by {off}",
        golden.file
    );
}

fn check_greedy(file: &str, found: &Hypothesis, expected: &Greedy, no_speech: f64, tolerance: Tolerance) {
    // After the first choice with a small margin, two correct decoders may differ.
    let certain = expected
        .margins
        .iter()
        .take_while(|&&margin| margin > tolerance.margin)
        .count();
    let sure = certain.min(expected.ids.len());
    assert!(found.ids.len() >= sure, "{file}: {:?}", found.ids);
    assert_eq!(found.ids[..sure], expected.ids[..sure], "{file}");
    let off = found.no_speech_prob - no_speech;
    assert!(
        off.abs() < tolerance.probability,
        "{file}: no speech is off by {off}"
    );
    if certain == expected.margins.len() {
        assert_eq!(
            (&found.ids, &found.text, found.ended),
            (&expected.ids, &expected.text, expected.ended),
            "{file}"
        );
        let off = found.avg_logprob - expected.avg_logprob;
        assert!(
            off.abs() < tolerance.avg_logprob,
            "{file}: avg_logprob is off by {off}"
        );
        let off = found.compression_ratio - expected.compression_ratio;
        assert!(off.abs() < 0.1, "{file}: compression ratio is off by {off}");
    } else {
        assert_ne!(
            tolerance.margin, 0.01,
            "{file}: float32 has no doubtful choices in these recordings"
        );
    }
}

fn check_transcript(whisper: &mut Whisper, golden: &Golden, tolerance: Tolerance) {
    let file = &golden.file;
    let mut config = reference_options();
    config.language = Some(golden.language.clone());
    let found = whisper.transcribe(&samples(file)[..], &config, &mut ()).unwrap();
    assert_eq!(found.warnings, Vec::<String>::new());
    assert!((found.duration - golden.samples_16k as f64 / 16_000.0).abs() < 1e-9);
    let doubtful = golden
        .greedy_timestamps
        .margins
        .iter()
        .any(|&margin| margin < tolerance.margin);
    // The goldens contain the margins of the first window only.
    let later = golden.transcribe.iter().any(|segment| segment.seek > 0);
    if whisper.placement() != Placement::CPU && (doubtful || later) {
        return;
    }
    assert_eq!(
        found.segments.len(),
        golden.transcribe.len(),
        "{file}: {:#?}",
        found.segments
    );
    for (segment, expected) in found.segments.iter().zip(&golden.transcribe) {
        assert_eq!(
            (&segment.text, &segment.tokens),
            (&expected.text, &expected.ids),
            "{file}"
        );
        assert!(
            (segment.start - expected.start).abs() < 0.005,
            "{file}: {segment:?}"
        );
        assert!((segment.end - expected.end).abs() < 0.005, "{file}: {segment:?}");
        assert!(
            (segment.avg_logprob - expected.avg_logprob).abs() < tolerance.avg_logprob,
            "{file}: {segment:?}"
        );
        assert!(
            (segment.no_speech_prob - expected.no_speech_prob).abs() < tolerance.probability,
            "{file}"
        );
        assert!(
            (segment.compression_ratio - expected.compression_ratio).abs() < 0.1,
            "{file}"
        );
    }
}

fn greedy(whisper: &mut Whisper, golden: &Golden, task: Task, timestamps: bool) -> Hypothesis {
    let (prompt, rules) = beginning(whisper, golden, task, timestamps);
    greedy_in(&mut window(whisper, golden), &prompt, &rules)
}

fn greedy_in(window: &mut Window<'_>, prompt: &Prompt, rules: &Rules) -> Hypothesis {
    window
        .decode(prompt, rules, Sampling::greedy(224), &mut || true)
        .unwrap()
}

/// What is decoded first, and the rules for the rest.
fn beginning(whisper: &Whisper, golden: &Golden, task: Task, timestamps: bool) -> (Prompt, Rules) {
    let generation = whisper.config().generation.clone();
    let config = RuleConfig {
        suppress: generation.suppress_tokens.unwrap(),
        suppress_first: generation.begin_suppress_tokens.unwrap(),
        timestamps,
        max_initial_timestamp: generation.max_initial_timestamp_index,
        ..RuleConfig::default()
    };
    let rules = Rules::new(whisper.vocabulary(), &config, whisper.placement().device).unwrap();
    let prompt = whisper
        .vocabulary()
        .prompt(&golden.language, task, timestamps, &[], 0)
        .unwrap();
    (prompt, rules)
}

fn check_summary(file: &str, tensor: &Tensor, expected: &Summary, tolerance: f64) {
    let tensor = tensor.to_kind(Kind::Double);
    assert_eq!(tensor.size(), expected.shape, "{file}");
    for (what, found, wanted) in [
        ("mean", tensor.mean(None), expected.mean),
        ("abs_mean", tensor.abs().mean(None), expected.abs_mean),
        ("min", tensor.min(), expected.min),
        ("max", tensor.max(), expected.max),
    ] {
        let off = found.double_value(&[]) - wanted;
        assert!(off.abs() < tolerance, "{file}: {what} is off by {off}");
    }
}

/// SHA-256 (FIPS 180-4), so that one comparison needs no dependency.
fn sha256(data: &[u8]) -> String {
    let primes: Vec<u32> = (2..312).filter(|n| (2..*n).all(|d| n % d != 0)).collect();
    let fraction = |root: f64| ((root - root.floor()) * 4_294_967_296.0) as u32;
    let k: Vec<u32> = primes
        .iter()
        .take(64)
        .map(|&p| fraction(f64::from(p).cbrt()))
        .collect();
    let mut state: Vec<u32> = primes
        .iter()
        .take(8)
        .map(|&p| fraction(f64::from(p).sqrt()))
        .collect();
    let mut message = data.to_vec();
    message.push(0x80);
    message.resize(
        message.len().next_multiple_of(64) + if message.len() % 64 > 56 { 64 } else { 0 },
        0,
    );
    let end = message.len() - 8;
    message[end..].copy_from_slice(&(data.len() as u64 * 8).to_be_bytes());
    for block in message.chunks_exact(64) {
        let mut w: Vec<u32> = block
            .chunks_exact(4)
            .map(|b| u32::from_be_bytes(b.try_into().unwrap()))
            .collect();
        for i in 16..64 {
            let (a, b) = (w[i - 15], w[i - 2]);
            let s0 = a.rotate_right(7) ^ a.rotate_right(18) ^ (a >> 3);
            let s1 = b.rotate_right(17) ^ b.rotate_right(19) ^ (b >> 10);
            w.push(w[i - 16].wrapping_add(s0).wrapping_add(w[i - 7]).wrapping_add(s1));
        }
        let mut s = state.clone();
        for i in 0..64 {
            let s1 = s[4].rotate_right(6) ^ s[4].rotate_right(11) ^ s[4].rotate_right(25);
            let choice = (s[4] & s[5]) ^ (!s[4] & s[6]);
            let t1 = s[7]
                .wrapping_add(s1)
                .wrapping_add(choice)
                .wrapping_add(k[i])
                .wrapping_add(w[i]);
            let s0 = s[0].rotate_right(2) ^ s[0].rotate_right(13) ^ s[0].rotate_right(22);
            let majority = (s[0] & s[1]) ^ (s[0] & s[2]) ^ (s[1] & s[2]);
            s.rotate_right(1);
            s[4] = s[4].wrapping_add(t1);
            s[0] = t1.wrapping_add(s0).wrapping_add(majority);
        }
        for (sum, word) in state.iter_mut().zip(s) {
            *sum = sum.wrapping_add(word);
        }
    }
    state.iter().map(|word| format!("{word:08x}")).collect()
}
