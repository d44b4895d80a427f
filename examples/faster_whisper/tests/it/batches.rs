//! Several recordings at once, and the windows of one recording.

use std::borrow::Cow;
use std::cell::RefCell;
use std::ops::Range;
use std::time::Duration;

use dalston_engine_sdk::testing::{EngineHarness, TaskReport};
use dalston_engine_sdk::{DeviceChoice, EngineConfig, RunnerConfig};
use faster_whisper::{Error, FasterWhisper, Observer, Options, Recording, Samples, Transcription, Whisper};
use serde_json::json;

use crate::goldens::transcript_texts;
use crate::searches::PEER;
use crate::support::{nano, reference_options, root, samples};

const RECORDINGS: [&str; 9] = [
    "en_one.wav",
    "en_three.wav",
    "en_eight.wav",
    "en_noisy_five.wav",
    "en_pauses_25s.wav",
    "en_long_75s.wav",
    "de_four.wav",
    "de_seven.wav",
    "noise_only_6s.wav",
];

/// Greedy, beams, words, speech only, without times, and draws.
fn variant(number: usize) -> Options {
    let mut options = reference_options();
    match number % 6 {
        0 => {}
        1 => options = Options::default(),
        2 => options.word_timestamps = true,
        3 => {
            options.vad_filter = true;
            options.beam_size = 5;
            options.word_timestamps = true;
        }
        4 => {
            options.without_timestamps = true;
            options.language = Some("en".to_owned());
            options.initial_prompt = faster_whisper::TextOrTokens::Text("one two three".to_owned());
        }
        _ => options.temperature = vec![0.4, 0.6],
    }
    options
}

fn together(whisper: &mut Whisper, jobs: Vec<Recording<'_>>) -> Vec<Result<Transcription, Error>> {
    let mut found: Vec<_> = jobs.iter().map(|_| None).collect();
    let mut done = |index: usize, result| assert!(found[index].replace(result).is_none());
    whisper.transcribe_batch(jobs, &mut done).unwrap();
    found.into_iter().map(Option::unwrap).collect()
}

fn job<'a>(recording: &'a [f32], options: Options, observer: impl Observer + 'a) -> Recording<'a> {
    Recording {
        samples: Box::new(recording),
        options,
        observer: Box::new(observer),
        span: tracing::Span::none(),
    }
}

fn assert_same(found: &Transcription, alone: &Transcription, what: &str) {
    let texts = |of: &Transcription| -> Vec<_> {
        let segments = of.segments.iter();
        let text = segments.map(|s| (s.text.clone(), s.tokens.clone(), s.temperature, s.start, s.end));
        text.collect()
    };
    assert_eq!(texts(found), texts(alone), "{what}");
    let words = |of: &Transcription| -> Vec<_> {
        let words = of
            .segments
            .iter()
            .flat_map(|segment| segment.words.iter().flatten());
        words.map(|w| (w.text.clone(), w.start, w.end)).collect()
    };
    assert_eq!(words(found), words(alone), "{what}");
    for (segment, alone) in found.segments.iter().zip(&alone.segments) {
        let off = segment.avg_logprob - alone.avg_logprob;
        assert!(off.abs() < 1e-4, "{what}: avg_logprob is off by {off}");
    }
    assert_eq!(
        (&found.language, found.windows, &found.speech, &found.warnings),
        (&alone.language, alone.windows, &alone.speech, &alone.warnings),
        "{what}"
    );
}

#[test]
fn recordings_have_the_same_transcript_alone_and_in_a_batch() {
    let recordings = RECORDINGS.map(samples);
    let mut whisper = nano();
    for shift in 0..3 {
        let options = |index: usize| variant(2 * shift + index);
        let jobs = recordings.iter().enumerate();
        let jobs = jobs.map(|(index, recording)| job(recording, options(index), ()));
        let found = together(&mut whisper, jobs.collect());
        for (index, found) in found.into_iter().enumerate() {
            let alone = whisper.transcribe(&recordings[index][..], &options(index), &mut ());
            let what = format!("{} {}", RECORDINGS[index], shift);
            assert_same(&found.unwrap(), &alone.unwrap(), &what);
        }
    }
}

#[test]
fn short_recording_is_done_before_a_long_one() {
    let (long, short) = (samples("en_long_75s.wav"), samples("en_one.wav"));
    let order = RefCell::new(Vec::new());
    let jobs = vec![
        job(&long, reference_options(), Note("long", &order)),
        job(&short, reference_options(), ()),
    ];
    let mut done = |index: usize, result: Result<Transcription, Error>| {
        result.unwrap();
        order.borrow_mut().push(["long done", "short done"][index]);
    };
    nano().transcribe_batch(jobs, &mut done).unwrap();
    let order = order.into_inner();
    let windows = order.iter().take_while(|&&what| what == "long").count();
    let (before, after) = (&order[..windows], &order[windows..]);
    assert!(before.is_empty() && after[0] == "short done", "{order:?}");
    assert_eq!(order.last(), Some(&"long done"));
}

#[test]
fn stopped_and_broken_recordings_leave_the_batch() {
    struct After(u32);
    impl Observer for After {
        fn keep_going(&mut self) -> bool {
            assert!(self.0 > 0, "asked again");
            self.0 -= 1;
            self.0 > 0
        }
    }
    struct Broken;
    impl Samples for Broken {
        fn len(&self) -> usize {
            40 * 16_000
        }
        fn read(
            &self,
            range: Range<usize>,
        ) -> Result<Cow<'_, [f32]>, Box<dyn std::error::Error + Send + Sync>> {
            match range.start {
                0 => Ok(Cow::Owned(vec![0.0; range.len()])),
                _ => Err("the disk is on fire".into()),
            }
        }
    }
    let recordings = ["en_eight.wav", "en_three.wav", "de_seven.wav"].map(samples);
    let mut poisoned = samples("en_one.wav");
    poisoned[8_000] = f32::NAN;
    // Before the first window, at its start, and in its middle.
    for questions in 1..4 {
        let mut unknown = reference_options();
        unknown.language = Some("tlh".to_owned());
        let broken = Recording {
            samples: Box::new(Broken),
            options: reference_options(),
            observer: Box::new(()),
            span: tracing::Span::none(),
        };
        let jobs = vec![
            job(&recordings[0], reference_options(), After(questions)),
            job(&recordings[1], reference_options(), ()),
            broken,
            job(&poisoned, reference_options(), ()),
            job(&recordings[2], reference_options(), ()),
            job(&recordings[2], unknown, ()),
        ];
        let found = together(&mut nano(), jobs);
        let errors: Vec<_> = found.iter().map(|found| found.as_ref().err()).collect();
        assert!(
            matches!(
                errors[..],
                [
                    Some(Error::Stopped),
                    None,
                    Some(Error::Samples(_)),
                    Some(Error::NotANumber { .. }),
                    None,
                    Some(Error::UnknownLanguage { .. }),
                ]
            ),
            "{errors:?}"
        );
        assert_eq!(found[1].as_ref().unwrap().text(), "seven three three");
        let alone = nano().transcribe(&recordings[2][..], &reference_options(), &mut ());
        assert_same(found[4].as_ref().unwrap(), &alone.unwrap(), "de_seven");
    }
}

#[test]
fn windows_of_a_recording_do_not_depend_on_their_number() {
    for file in ["en_long_75s.wav", "en_pauses_25s.wav"] {
        let recording = samples(file);
        let transcribe = |batch_size, timestamps: bool| {
            let mut options = Options::batched(batch_size);
            options.without_timestamps = !timestamps;
            options.word_timestamps = true;
            options.chunk_length = Some(10);
            nano().transcribe(&recording[..], &options, &mut ()).unwrap()
        };
        for timestamps in [false, true] {
            let (one, four) = (transcribe(1, timestamps), transcribe(4, timestamps));
            assert!(one.windows >= 2, "{}", one.windows);
            assert_same(&four, &one, file);
            let speech = four.speech.unwrap();
            for segment in &four.segments {
                let inside = |at: f64| {
                    speech
                        .iter()
                        .any(|(start, end)| at > start - 0.02 && at < end + 0.02)
                };
                assert!(
                    inside(segment.start) && inside(segment.end),
                    "{segment:?} {speech:?}"
                );
            }
            assert!(
                four.segments.is_sorted_by(|a, b| a.end <= b.start + 1e-9),
                "{:?}",
                four.segments
            );
        }
    }
}

#[test]
fn windows_of_a_recording_match_batched_faster_whisper() {
    let mut whisper = nano();
    let (mut close, mut all) = (0, 0);
    for file in &PEER.files {
        for peer in &file.batched {
            let mut options = Options::batched(8);
            options.language = Some(file.language.clone());
            options.word_timestamps = true;
            options.chunk_length = Some(peer.chunk_length);
            // It does not decode again.
            options.temperature = vec![0.0];
            options.no_speech_threshold = None;
            let found = whisper
                .transcribe(&samples(&file.file)[..], &options, &mut ())
                .unwrap();
            let what = format!("{} {}", file.file, peer.chunk_length);
            let sample = |seconds: f64| (seconds * 16_000.0).round() as usize;
            let speech = found.speech.iter().flatten();
            let speech: Vec<_> = speech
                .map(|(start, end)| (sample(*start), sample(*end)))
                .collect();
            assert_eq!(speech, peer.speech, "{what}");
            let tokens: Vec<_> = found.segments.iter().map(|segment| &segment.tokens).collect();
            let expected: Vec<_> = peer.segments.iter().map(|segment| &segment.tokens).collect();
            assert_eq!(tokens, expected, "{what}");
            for (segment, expected) in found.segments.iter().zip(&peer.segments) {
                let off = segment.avg_logprob - expected.avg_logprob;
                assert!(off.abs() < 1e-3, "{what}: avg_logprob is off by {off}");
                let words = segment.words.iter().flatten();
                assert_eq!(words.clone().count(), expected.words.len(), "{what}");
                for (word, expected) in words.zip(&expected.words) {
                    assert_eq!(word.text, expected.word, "{what}");
                    for off in [word.start - expected.start, word.end - expected.end] {
                        all += 1;
                        close += usize::from(off.abs() <= 0.1);
                    }
                }
            }
        }
    }
    assert!(all > 400, "{all}");
    assert!(
        close as f64 >= 0.95 * all as f64,
        "{close} of {all} boundaries are within 0.1 s"
    );
}

#[test]
fn long_recording_needs_parts() {
    let long = samples("en_long_75s.wav");
    let mut options = Options::batched(4);
    options.vad_filter = false;
    let error = nano().transcribe(&long[..], &options, &mut ()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "batch_size is 4: expected vad_filter, clip_timestamps, or a recording of at most 30 s"
    );
    let short = samples("en_eight.wav");
    let found = nano().transcribe(&short[..], &options, &mut ()).unwrap();
    assert_eq!(found.text(), "zero seven two eight zero four six nine");
    options.set("clip_timestamps", &json!([0, 9, 12, 40])).unwrap();
    let found = nano().transcribe(&long[..], &options, &mut ()).unwrap();
    let starts: Vec<f64> = found.segments.iter().map(|segment| segment.start).collect();
    assert_eq!((starts, found.speech), (vec![0.0, 12.0], None));
}

/// Says when a window is done.
struct Note<'a>(&'static str, &'a RefCell<Vec<&'static str>>);

impl Observer for Note<'_> {
    fn advanced(&mut self, _fraction: f32) {
        self.1.borrow_mut().push(self.0);
    }
}

#[tokio::test]
async fn batched_tasks_transcribe_as_the_reference() {
    let harness = harness();
    let config = json!({"beam_size": 1, "temperature": 0, "condition_on_previous_text": false});
    let texts: Vec<_> = transcript_texts().into_iter().collect();
    let texts: Vec<_> = texts
        .into_iter()
        .filter(|(file, ..)| !file.contains("75s"))
        .take(8)
        .collect();
    let tasks = texts.iter().map(|(file, language, _)| {
        let task = harness
            .default_task()
            .input("audio", root().join("audio").join(file));
        task.config("language", language.as_str())
            .configs(config.as_object().unwrap().clone())
    });
    let tasks: Vec<_> = tasks.collect();
    let reports = harness.run_batch(tasks).await;
    assert_eq!(reports.len(), 8);
    for (report, (file, _, text)) in reports.iter().zip(&texts) {
        assert_eq!(&report.transcript().text, text, "{file}");
        assert_eq!(batch_size(report), Some(8));
    }
    // Each task has its own spans, although it shares the work.
    let report = &reports[1];
    let recognize = report.span("engine.recognize");
    let process = report.span("engine.process");
    assert_eq!(recognize.parent_span_id, Some(process.span_id));
    for name in [
        "whisper.features",
        "whisper.encode",
        "whisper.decode",
        "whisper.align",
    ] {
        assert_eq!(
            report.span(name).parent_span_id,
            Some(recognize.span_id),
            "{name}"
        );
    }
}

#[tokio::test]
async fn cancelled_late_and_unreadable_tasks_spare_the_others() {
    let directory = tempfile::tempdir().unwrap();
    let garbage = directory.path().join("garbage.wav");
    std::fs::write(&garbage, "RIFF, but no audio").unwrap();
    let batched = |config: &mut RunnerConfig| {
        config.max_batch = Some(5);
        config.batch_wait = Some(Duration::from_secs(5));
    };
    let worker = harness().runner(batched).start();
    let task = |file: &str| {
        let task = worker.task().input("audio", root().join("audio").join(file));
        task.config("language", if file.starts_with("de") { "de" } else { "en" })
    };
    // No text ends or passes at any temperature, so that it is decoded for many seconds.
    let mut endless = task("en_pauses_25s.wav");
    for (key, value) in [
        ("temperature", json!(vec![0.5; 20])),
        ("best_of", json!(16)),
        ("suppress_tokens", json!([-1, nano().vocabulary().end_of_text()])),
        ("log_prob_threshold", json!(1)),
        ("no_speech_threshold", json!(null)),
    ] {
        endless = endless.config(key, value);
    }
    let texts = [
        ("en_three.wav", "seven three three"),
        ("de_seven.wav", "acht zwei sieben acht sechs neun null"),
        ("en_eight.wav", "zero seven two eight zero four six nine"),
    ];
    let cancelled = worker.submit(endless.clone()).await;
    let late = worker.submit(endless.timeout(Duration::from_secs(6))).await;
    let mut others = Vec::new();
    for (file, _) in texts {
        others.push(worker.submit(task(file)).await);
    }
    let unreadable = worker.submit(worker.task().input("audio", &garbage)).await;

    cancelled.started().await;
    cancelled.cancel();

    for (running, (file, text)) in others.into_iter().zip(texts) {
        let report = running.report().await;
        assert_eq!(report.transcript().text, text, "{file}");
        assert!(batch_size(&report) > Some(1), "{file}");
    }
    assert_eq!(cancelled.report().await.error_code(), "cancelled");
    assert_eq!(late.report().await.error_code(), "deadline_exceeded");
    let unreadable = unreadable.report().await;
    assert!(
        unreadable.error().contains("garbage.wav"),
        "{}",
        unreadable.error()
    );
    worker.stop().await;
}

#[tokio::test]
async fn task_with_a_batch_of_its_own_runs_alone() {
    let batched = |config: &mut RunnerConfig| {
        config.max_batch = Some(2);
        config.batch_wait = Some(Duration::from_secs(5));
    };
    let worker = harness().runner(batched).start();
    let file = root().join("audio/en_three.wav");
    let task = worker.task().input("audio", file);
    let mut running = vec![worker.submit(task.clone().config("batch_size", 2)).await];
    for beam_size in [1, 5] {
        let task = task.clone().config("beam_size", beam_size);
        running.push(worker.submit(task).await);
    }
    let mut reports = Vec::new();
    for running in running {
        let report = running.report().await;
        assert_eq!(report.transcript().text, "seven three three");
        assert_eq!(report.transcript().warnings, Vec::<String>::new());
        reports.push(report);
    }
    let sizes: Vec<_> = reports.iter().map(batch_size).collect();
    assert_eq!(sizes, [None, Some(2), Some(2)]);
    let span = reports[0].span("engine.recognize");
    assert_eq!(span.attribute("whisper.batch_size"), Some(&2.into()));
    assert_eq!(span.attribute("dalston.mode"), Some(&"vad".into()));
    worker.stop().await;
}

fn batch_size(report: &TaskReport) -> Option<i64> {
    let size = report.span("engine.process").attribute("dalston.batch.size")?;
    size.to_string().parse().ok()
}

fn harness() -> EngineHarness<FasterWhisper> {
    // As in support::load.
    tch::set_num_threads(1);
    EngineHarness::new(FasterWhisper).engine_config(
        EngineConfig::new()
            .device(DeviceChoice::Cpu)
            .model("whisper-nano-digits"),
    )
}
