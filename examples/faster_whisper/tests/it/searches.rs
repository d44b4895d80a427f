//! Comparison with CTranslate2's and faster-whisper's results in `tests/goldens`, within the
//! tolerances of its README.

use std::collections::BTreeMap;
use std::fs;
use std::sync::LazyLock;

use faster_whisper::{Hypothesis, Options, RuleConfig, Rules, Sampling, Task, Whisper};
use serde::Deserialize;
use serde_json::Value;

use crate::support::{nano, placement, root, samples};

#[derive(Deserialize)]
pub(crate) struct Peer {
    /// The options of each search.
    searches: BTreeMap<String, BTreeMap<String, Value>>,
    pub(crate) files: Vec<PeerFile>,
}

#[derive(Deserialize)]
pub(crate) struct PeerFile {
    pub(crate) file: String,
    pub(crate) language: String,
    searches: BTreeMap<String, Found>,
    /// CTranslate2's alignment of the text of the default search.
    pub(crate) align: Option<Aligned>,
    /// A transcript with the times of words.
    pub(crate) words: Vec<PeerSegment>,
    /// A whole transcript with faster-whisper's defaults.
    prompted: Vec<PeerSegment>,
    pub(crate) batched: Vec<PeerBatched>,
}

/// A transcript of BatchedInferencePipeline.
#[derive(Deserialize)]
pub(crate) struct PeerBatched {
    pub(crate) chunk_length: usize,
    /// The parts of speech that it was given, in samples.
    pub(crate) speech: Vec<(usize, usize)>,
    pub(crate) segments: Vec<PeerSegment>,
}

#[derive(Deserialize)]
struct Found {
    ids: Vec<i64>,
    avg_logprob: f64,
    no_speech_prob: f64,
}

#[derive(Deserialize)]
pub(crate) struct Aligned {
    pub(crate) text: Vec<i64>,
    pub(crate) frames: usize,
    /// Pairs of token and position.
    pub(crate) alignments: Vec<(usize, usize)>,
    pub(crate) probabilities: Vec<f64>,
}

#[derive(Deserialize)]
pub(crate) struct PeerWord {
    pub(crate) word: String,
    pub(crate) start: f64,
    pub(crate) end: f64,
    pub(crate) probability: f64,
}

#[derive(Deserialize)]
pub(crate) struct PeerSegment {
    start: f64,
    end: f64,
    text: String,
    pub(crate) tokens: Vec<i64>,
    pub(crate) avg_logprob: f64,
    temperature: f64,
    pub(crate) words: Vec<PeerWord>,
}

pub(crate) static PEER: LazyLock<Peer> = LazyLock::new(|| {
    let text = fs::read_to_string(root().join("tests/goldens/faster_whisper.json")).unwrap();
    serde_json::from_str(&text).unwrap()
});

#[test]
fn searches_match_those_of_ctranslate2() {
    let mut whisper = nano();
    let mut compared = 0;
    for file in &PEER.files {
        for (name, expected) in &file.searches {
            let found = search(&mut whisper, file, &PEER.searches[name]);
            let what = format!("{} {name}", file.file);
            assert_eq!(found.ids, expected.ids, "{what}");
            let off = found.avg_logprob - expected.avg_logprob;
            assert!(off.abs() < 1e-3, "{what}: avg_logprob is off by {off}");
            let off = found.no_speech_prob - expected.no_speech_prob;
            assert!(off.abs() < 1e-3, "{what}: no_speech_prob is off by {off}");
            compared += 1;
        }
    }
    assert!(compared >= 90, "{compared}");
}

#[test]
fn transcripts_with_the_defaults_match_faster_whisper() {
    let mut whisper = nano();
    for file in &PEER.files {
        let mut options = Options::default();
        options.language = Some(file.language.clone());
        let found = whisper
            .transcribe(&samples(&file.file)[..], &options, &mut ())
            .unwrap();
        // Random draws differ, and so does all that follows them.
        let drawn = |temperature: f64| temperature > 0.0;
        let expected: Vec<_> = file
            .prompted
            .iter()
            .take_while(|segment| !drawn(segment.temperature))
            .collect();
        let certain = &found.segments[..expected.len()];
        assert_eq!(
            found.segments.len() > expected.len(),
            file.prompted.len() > expected.len()
        );
        for (segment, expected) in certain.iter().zip(expected) {
            assert_eq!(
                (segment.text.as_str(), &segment.tokens),
                (expected.text.trim(), &expected.tokens)
            );
            assert!(
                (segment.start - expected.start).abs() < 0.011,
                "{}: {segment:?}",
                file.file
            );
            assert!(
                (segment.end - expected.end).abs() < 0.011,
                "{}: {segment:?}",
                file.file
            );
            let off = segment.avg_logprob - expected.avg_logprob;
            assert!(off.abs() < 1e-3, "{}: avg_logprob is off by {off}", file.file);
        }
    }
}

fn search(whisper: &mut Whisper, file: &PeerFile, given: &BTreeMap<String, Value>) -> Hypothesis {
    let (mut options, mut timestamps, mut max_tokens) = (Options::default(), true, 224);
    for (name, value) in given {
        match name.as_str() {
            "timestamps" => timestamps = value.as_bool().unwrap(),
            "max_tokens" => max_tokens = value.as_u64().unwrap() as usize,
            _ => assert!(options.set(name, value).unwrap(), "{name}"),
        }
    }
    let generation = whisper.config().generation.clone();
    let config = RuleConfig {
        suppress: generation.suppress_tokens.unwrap(),
        suppress_first: generation.begin_suppress_tokens.unwrap(),
        timestamps,
        max_initial_timestamp: Some(50),
        repetition_penalty: options.repetition_penalty,
        no_repeat_ngram_size: options.no_repeat_ngram_size,
    };
    let rules = Rules::new(whisper.vocabulary(), &config, placement().device).unwrap();
    let prompt = whisper
        .vocabulary()
        .prompt(&file.language, Task::Transcribe, timestamps, &[], 0)
        .unwrap();
    let mel = whisper.features(&samples(&file.file)).unwrap();
    let how = Sampling::new(&options, 0.0, max_tokens);
    let mut window = whisper.window(&mel).unwrap();
    window.decode(&prompt, &rules, how, &mut || true).unwrap()
}
