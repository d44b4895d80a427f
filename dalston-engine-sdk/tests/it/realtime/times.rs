//! Times are seconds of received audio: with each encoding and rate, and messages of each length.

use serde_json::Value;

use super::deployment::Deployment;
use super::tones::{RATE, Tones, audio};
use super::{of_type, s16, session};

/// A word at 3.0 s and two at 5.7 s.
const RECORDING: [(f64, u32); 7] = [
    (3.0, 0),
    (0.7, 3),
    (2.0, 0),
    (0.4, 5),
    (0.2, 0),
    (0.4, 7),
    (1.0, 0),
];

fn near(value: &Value, expected: f64) -> bool {
    (value.as_f64().unwrap() - expected).abs() < 0.1
}

fn check(messages: &[Value], what: &str) {
    let finals = of_type(messages, "transcript.final");
    let texts: Vec<_> = finals
        .iter()
        .map(|message| message["text"].as_str().unwrap())
        .collect();
    assert_eq!(texts, ["w3", "w5 w7"], "{what}");
    let times = [(3.0, 3.7), (5.7, 6.7)];
    let marks = ["vad.speech_start", "vad.speech_end"].map(|kind| of_type(messages, kind));
    for (number, (start, end)) in times.into_iter().enumerate() {
        let message = finals[number];
        assert!(
            near(&message["start"], start) && near(&message["end"], end),
            "{what}: {message}"
        );
        assert!(near(&marks[0][number]["timestamp"], start), "{what}: {marks:?}");
        assert!(near(&marks[1][number]["timestamp"], end), "{what}: {marks:?}");
    }
    let words = finals[1]["words"].as_array().unwrap();
    assert!(
        near(&words[0]["start"], 5.7) && near(&words[1]["start"], 6.3),
        "{what}: {words:?}"
    );
    let end = messages.last().unwrap();
    assert_eq!(end["type"], "session.end");
    assert!(near(&end["total_audio_seconds"], 7.7), "{what}: {end}");
    assert!(near(&end["total_speech_duration"], 1.7), "{what}: {end}");
    assert!(near(&end["segments"][1]["start"], 5.7), "{what}: {end}");
}

/// ITU-T G.711, the other way round by search.
pub(super) fn companded(samples: &[f32], is_mu_law: bool) -> Vec<u8> {
    let expand = |code: u8| -> i32 {
        let code = if is_mu_law { !code } else { code ^ 0x55 };
        let (exponent, mantissa) = (i32::from(code >> 4 & 7), i32::from(code & 15));
        let magnitude = match (is_mu_law, exponent) {
            (true, _) => (((mantissa << 3) + 132) << exponent) - 132,
            (false, 0) => (mantissa << 4) + 8,
            (false, _) => ((mantissa << 4) + 0x108) << (exponent - 1),
        };
        let is_negative = (code & 0x80 == 0) != is_mu_law;
        if is_negative { -magnitude } else { magnitude }
    };
    let nearest = |sample: &f32| {
        let wanted = (sample * 32_767.0) as i32;
        (0..=255)
            .min_by_key(|code| (expand(*code) - wanted).abs())
            .unwrap()
    };
    samples.iter().map(nearest).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn times_are_those_of_the_recording_in_each_encoding() {
    let deployment = Deployment::start().await;
    let worker = deployment.worker(Tones::default(), "times", &[], None).await;
    let stereo = |samples: Vec<f32>| {
        samples
            .into_iter()
            .flat_map(|sample| [sample, sample])
            .collect::<Vec<_>>()
    };
    let f32_bytes = |samples: &[f32]| {
        samples
            .iter()
            .flat_map(|sample| sample.to_le_bytes())
            .collect::<Vec<_>>()
    };
    let at = |rate| audio(rate, &RECORDING);
    let cases = [
        ("", s16(&at(RATE))),
        // Only the rate is declared, as the platform's gateway does it.
        ("sample_rate=44100", s16(&at(44_100))),
        ("sample_rate=16000&client_sample_rate=24000", s16(&at(24_000))),
        ("sample_rate=8000&encoding=mulaw", companded(&at(8_000), true)),
        ("sample_rate=8000&encoding=alaw", companded(&at(8_000), false)),
        (
            "sample_rate=48000&encoding=pcm_f32le&resample_quality=high",
            f32_bytes(&at(48_000)),
        ),
        ("channels=2&sample_rate=22050", s16(&stereo(at(22_050)))),
    ];
    for (query, bytes) in cases {
        let mut client = session(worker.port, &format!("word_timestamps=true&{query}")).await;
        // Pieces that end in the middle of samples.
        for piece in bytes.chunks(4_801) {
            assert!(client.send_bytes(piece.to_vec()).await);
        }
        check(&client.finish().await, query);
        assert_eq!(client.closed, Some(1000));
    }
    let resampled = |from| {
        format!(r#"dalston_realtime_resample_duration_seconds_count{{from_rate="{from}",to_rate="16000"}}"#)
    };
    assert_eq!(worker.metric(&resampled(16_000)).await, None);
    for from in [8_000, 22_050, 24_000, 44_100, 48_000] {
        assert!(worker.metric(&resampled(from)).await > Some(50.0), "{from}");
    }
    worker.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn last_milliseconds_are_transcribed() {
    let deployment = Deployment::start().await;
    let worker = deployment.worker(Tones::default(), "tail", &[], None).await;
    for query in ["", "enable_vad=false", "sample_rate=8000"] {
        let rate = if query.contains("8000") { 8_000 } else { RATE };
        let mut client = session(worker.port, query).await;
        // The last word ends with the audio, and has no whole chunk.
        let samples = audio(rate, &[(0.5, 0), (0.4, 3), (0.1, 0), (0.055, 9)]);
        assert!(client.send_bytes(s16(&samples)).await);
        let messages = client.finish().await;
        let end = messages.last().unwrap();
        assert_eq!(end["transcript"], "w3 w9", "{query}: {messages:?}");
        assert!(near(&end["total_audio_seconds"], 1.055), "{query}: {end}");
    }
    worker.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fast_client_at_24_khz_is_neither_warned_nor_closed() {
    let deployment = Deployment::start().await;
    let worker = deployment.worker(Tones::default(), "fast", &[], None).await;
    let query = "sample_rate=16000&client_sample_rate=24000&interim_results=false";
    let mut client = session(worker.port, query).await;
    let minute: Vec<(f64, u32)> = (0..60).flat_map(|word| [(0.5, 2 + word % 7), (0.5, 0)]).collect();
    for piece in s16(&audio(24_000, &minute)).chunks(4_800) {
        assert!(client.send_bytes(piece.to_vec()).await);
    }
    let messages = client.finish().await;
    assert_eq!(of_type(&messages, "warning"), Vec::<&Value>::new());
    assert_eq!(of_type(&messages, "transcript.final").len(), 60);
    assert_eq!(client.closed, Some(1000));
    worker.finish().await;
}
