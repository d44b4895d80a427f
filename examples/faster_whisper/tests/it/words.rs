//! Times of words, compared with those of CTranslate2 and faster-whisper.

use faster_whisper::{Options, Task};
use serde::Deserialize;

use crate::searches::PEER;
use crate::support::{nano, reference_options, root, samples};

#[test]
fn alignments_match_those_of_ctranslate2() {
    let mut whisper = nano();
    let (mut equal, mut all) = (0, 0);
    for file in &PEER.files {
        let Some(expected) = &file.align else { continue };
        let prompt = whisper
            .vocabulary()
            .prompt(&file.language, Task::Transcribe, false, &[], 0)
            .unwrap();
        let mel = whisper.features(&samples(&file.file)).unwrap();
        let mut window = whisper.window(&mel).unwrap();
        let found = window.align(&prompt, &expected.text, expected.frames).unwrap();
        let starts: Vec<usize> = (0..=expected.text.len())
            .map(|token| {
                let of_token = expected.alignments.iter().find(|(text, _)| *text == token);
                of_token.unwrap().1
            })
            .collect();
        assert_eq!(found.starts.len(), starts.len(), "{}", file.file);
        all += starts.len();
        equal += starts.iter().zip(&found.starts).filter(|(a, b)| a == b).count();
        for (found, expected) in found.probabilities.iter().zip(&expected.probabilities) {
            assert!(
                (found - expected).abs() < 1e-3,
                "{}: {found} {expected}",
                file.file
            );
        }
    }
    assert!(all > 60, "{all}");
    assert!(
        equal as f64 >= 0.98 * all as f64,
        "{equal} of {all} tokens start at the same position"
    );
}

#[test]
fn word_times_are_those_of_faster_whisper() {
    let mut whisper = nano();
    let (mut close, mut all) = (0, 0);
    for file in &PEER.files {
        let mut options = Options::default();
        options.language = Some(file.language.clone());
        options.word_timestamps = true;
        options.condition_on_previous_text = false;
        let found = whisper
            .transcribe(&samples(&file.file)[..], &options, &mut ())
            .unwrap();
        let tokens: Vec<_> = found.segments.iter().map(|segment| &segment.tokens).collect();
        let expected: Vec<_> = file.words.iter().map(|segment| &segment.tokens).collect();
        assert_eq!(tokens, expected, "{}", file.file);
        let words = found
            .segments
            .iter()
            .flat_map(|segment| segment.words.iter().flatten());
        let expected = file.words.iter().flat_map(|segment| &segment.words);
        assert_eq!(words.clone().count(), expected.clone().count());
        for (word, expected) in words.zip(expected) {
            assert_eq!(word.text, expected.word, "{}", file.file);
            let off = word.probability - expected.probability;
            assert!(
                off.abs() < 0.01,
                "{}: {word:?}: probability is off by {off}",
                file.file
            );
            for off in [word.start - expected.start, word.end - expected.end] {
                all += 1;
                close += usize::from(off.abs() <= 0.1);
            }
        }
        for segment in &found.segments {
            let words = segment.words.as_ref().unwrap();
            assert!(words.iter().all(|word| word.start <= word.end), "{segment:?}");
        }
    }
    assert!(all > 200, "{all}");
    assert!(
        close as f64 >= 0.95 * all as f64,
        "{close} of {all} boundaries are within 0.1 s"
    );
}

/// `goldens/words.json`.
#[derive(Deserialize)]
struct Transformers {
    files: Vec<TransformersFile>,
}

#[derive(Deserialize)]
struct TransformersFile {
    file: String,
    language: String,
    words: Vec<TransformersWord>,
}

#[derive(Deserialize)]
struct TransformersWord {
    word: String,
    start: f64,
    end: f64,
}

#[test]
fn word_times_are_those_of_transformers() {
    const NEAR: f64 = 0.1;
    let text = std::fs::read_to_string(root().join("goldens/words.json")).unwrap();
    let transformers: Transformers = serde_json::from_str(&text).unwrap();
    let mut whisper = nano();
    let (mut close, mut all, mut disputed) = (0, 0, 0);
    for file in transformers.files {
        let mut options = reference_options();
        options.language = Some(file.language);
        options.word_timestamps = true;
        let found = whisper
            .transcribe(&samples(&file.file)[..], &options, &mut ())
            .unwrap();
        let segments = found.segments.iter();
        let words: Vec<_> = segments
            .flat_map(|segment| segment.words.iter().flatten())
            .collect();
        let texts: Vec<_> = words.iter().map(|word| word.text.trim()).collect();
        let expected: Vec<_> = file.words.iter().map(|word| word.word.as_str()).collect();
        assert_eq!(texts, expected, "{}", file.file);
        let peer = PEER.files.iter().find(|peer| peer.file == file.file).unwrap();
        let peer: Vec<_> = peer.words.iter().flat_map(|segment| &segment.words).collect();
        let same_text = peer.iter().map(|word| word.word.trim()).eq(expected);
        for (at, (word, expected)) in words.iter().zip(&file.words).enumerate() {
            let peer = same_text.then(|| peer[at]);
            for (found, expected, peer) in [
                (word.start, expected.start, peer.map(|word| word.start)),
                (word.end, expected.end, peer.map(|word| word.end)),
            ] {
                // Where the two references disagree, faster-whisper's decides, in another test.
                if peer.is_some_and(|peer| (peer - expected).abs() > NEAR) {
                    disputed += 1;
                    continue;
                }
                all += 1;
                close += usize::from((found - expected).abs() <= NEAR);
            }
        }
    }
    assert!(all > 50, "{all} boundaries, {disputed} disputed");
    assert!(
        close as f64 >= 0.95 * all as f64,
        "{close} of {all} boundaries are within {NEAR} s"
    );
}

#[test]
fn words_have_the_text_of_their_segment() {
    let mut options = reference_options();
    options.word_timestamps = true;
    options.language = Some("de".to_owned());
    let found = nano()
        .transcribe(&samples("de_seven.wav")[..], &options, &mut ())
        .unwrap();
    assert_eq!(found.segments.len(), 1);
    let words = found.segments[0].words.iter().flatten();
    let text: String = words.map(|word| word.text.as_str()).collect();
    assert_eq!(text.trim(), found.segments[0].text);
}

#[test]
fn words_of_languages_without_blanks_are_characters() {
    let whisper = nano();
    let vocabulary = whisper.vocabulary();
    let ids = vocabulary.encode(" ab\u{4f60}, c.").unwrap();
    let words = |language| {
        let words = vocabulary.words(&ids, language).unwrap();
        assert_eq!(words.iter().map(|(_, tokens)| tokens).sum::<usize>(), ids.len());
        words.into_iter().map(|(text, _)| text).collect::<Vec<_>>()
    };
    assert_eq!(words("en"), [" ab\u{4f60}", ",", " c", "."]);
    assert!(words("zh").contains(&"\u{4f60}".to_owned()), "{:?}", words("zh"));
}

#[test]
fn threshold_of_silence_leaves_inventions_out() {
    // Noise between two recordings of speech: without thresholds, the model hears words in it.
    let mut recording = samples("en_three.wav");
    recording.extend(vec![0.0; 6 * 16_000]);
    recording.extend(samples("noise_only_6s.wav"));
    let mut options = reference_options();
    options.word_timestamps = true;
    options.language = Some("en".to_owned());
    options.no_speech_threshold = None;
    options.log_prob_threshold = None;
    let all = nano().transcribe(&recording[..], &options, &mut ()).unwrap();
    options.hallucination_silence_threshold = Some(1.0);
    let found = nano().transcribe(&recording[..], &options, &mut ()).unwrap();
    assert!(found.segments.len() <= all.segments.len(), "{all:?} {found:?}");
    assert!(found.text().starts_with("seven three three"), "{found:?}");
}
