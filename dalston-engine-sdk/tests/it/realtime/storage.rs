//! The audio and the transcript of a session in the storage.

use dalston_engine_sdk::audio::{AudioFormat, decode_file, probe};
use dalston_engine_sdk::testing::EngineHarness;
use serde_json::{Value, json};
use testbed::{Fault, TestS3, Trouble};

use super::deployment::Deployment;
use super::s16;
use super::times::companded;
use super::tones::{RATE, Tones, audio};
use super::{Client, of_type, session};
use crate::support::until;

#[tokio::test]
async fn audio_is_stored_as_it_came_in_each_encoding() {
    let worker = EngineHarness::new(Tones::default()).start();
    let floats = |samples: Vec<f32>| samples.iter().flat_map(|sample| sample.to_le_bytes()).collect();
    let stereo = |samples: Vec<f32>| samples.iter().flat_map(|sample| [*sample; 2]).collect();
    let word = |rate| audio(rate, &[(0.5, 3), (0.1, 0)]);
    let cases: [(&str, &str, usize, Vec<u8>); 5] = [
        ("", "PCM, 16 bits", 1, s16(&word(RATE))),
        (
            "sample_rate=16000&client_sample_rate=24000",
            "PCM, 16 bits",
            1,
            s16(&word(24_000)),
        ),
        (
            "encoding=pcm_f32le&channels=2&sample_rate=48000",
            "PCM, 32 bits floating point",
            2,
            floats(stereo(word(48_000))),
        ),
        (
            "encoding=mulaw&sample_rate=8000",
            "µ-law",
            1,
            companded(&word(8_000), true),
        ),
        // An odd number of bytes.
        (
            "encoding=alaw&sample_rate=11025",
            "A-law",
            1,
            companded(&word(11_025)[1..], false),
        ),
    ];
    let folder = tempfile::tempdir().unwrap();
    for (number, (query, codec, channels, bytes)) in cases.into_iter().enumerate() {
        let mut session = worker.session(&format!("session_id=s{number}&{query}"));
        for piece in bytes.chunks(3_001) {
            session.send_bytes(piece.to_vec()).await;
        }
        // The begin of a sample that never ends.
        if codec.starts_with("PCM") {
            session.send_bytes(vec![1]).await;
        }
        let end = session.finish().await.pop().unwrap();
        let uri = format!("s3://dalston-artifacts/sessions/s{number}/audio.wav");
        assert_eq!(end["audio_uri"], uri, "{query}");
        let file = worker.platform().store().read(&uri, 1 << 20).await.unwrap();
        let path = folder.path().join("audio.wav");
        std::fs::write(&path, &file).unwrap();
        let info = probe(&path).unwrap();
        assert_eq!((&*info.codec, info.channels), (codec, Some(channels)), "{query}");
        let head = file.len() - bytes.len() - bytes.len() % 2;
        assert!(
            matches!(head, 44 | 58) && file[head..].starts_with(&bytes),
            "{query}"
        );
        let decoded = decode_file(&path, AudioFormat::MONO_16K, folder.path()).unwrap();
        assert_eq!(decoded.warnings(), &[] as &[String], "{query}");
        assert!((decoded.duration().as_secs_f64() - 0.6).abs() < 0.001, "{query}");
    }
    worker.stop().await;
}

#[tokio::test]
async fn transcript_is_stored_with_times_and_words() {
    let worker = EngineHarness::new(Tones::default()).start();
    let mut session = worker.session("session_id=s1&word_timestamps=true&language=en&interim_results=false");
    session
        .send_audio(&audio(RATE, &[(1.0, 0), (0.5, 3), (1.0, 0), (0.4, 4), (0.1, 0)]))
        .await;
    let messages = session.finish().await;
    let uri = "s3://dalston-artifacts/sessions/s1/transcript.json";
    assert_eq!(messages.last().unwrap()["transcript_uri"], uri);
    let stored = worker.platform().store().read(uri, 1 << 20).await.unwrap();
    let stored: Value = serde_json::from_slice(&stored).unwrap();
    let finals = of_type(&messages, "transcript.final");
    let utterance = |number: usize, id: &str, text: &str| {
        let sent = finals[number];
        json!({"id": id, "start": sent["start"], "end": sent["end"], "text": text, "words": sent["words"]})
    };
    let expected = json!({
        "session_id": "s1", "language": "en", "duration_seconds": 3.0, "text": "w3 w4",
        "utterances": [utterance(0, "utt_0001", "w3"), utterance(1, "utt_0002", "w4")],
    });
    assert_eq!(stored, expected);
    assert_eq!(stored["utterances"][1]["words"][0]["word"], "w4");

    // What is not wanted is not stored.
    for (query, has_audio, has_transcript) in [
        ("store_audio=false", false, true),
        ("store_transcript=0", true, false),
        ("store_audio=no&store_transcript=no", false, false),
    ] {
        let mut session = worker.session(query);
        session.send_audio(&audio(RATE, &[(0.5, 3)])).await;
        let end = session.finish().await.pop().unwrap();
        let has = |key: &str| end.get(key).is_some();
        assert_eq!(
            (has("audio_uri"), has("transcript_uri")),
            (has_audio, has_transcript),
            "{query}"
        );
    }
    worker.stop().await;
}

/// The settings of a worker with this storage.
fn on<'a>(url: &'a str, retry_budget: &'a str) -> [(&'a str, &'a str); 5] {
    [
        ("DALSTON_STORAGE_DIR", ""),
        ("DALSTON_S3_ENDPOINT_URL", url),
        ("AWS_ACCESS_KEY_ID", TestS3::ACCESS_KEY_ID),
        ("AWS_SECRET_ACCESS_KEY", TestS3::SECRET_ACCESS_KEY),
        ("DALSTON_S3_RETRY_BUDGET_SECONDS", retry_budget),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn long_audio_is_sent_in_parts_while_it_comes() {
    const SENT: usize = 13 << 20;
    let (deployment, s3) = (Deployment::start().await, TestS3::start());
    let url = s3.url();
    let worker = deployment
        .worker(Tones::default(), "parts", &on(&url, "5"), None)
        .await;
    let query = "session_id=long&encoding=pcm_f32le&channels=2&sample_rate=48000&interim_results=false";
    let mut client = session(worker.port, query).await;
    for _ in 0..SENT >> 20 {
        assert!(client.send_bytes(vec![0; 1 << 20]).await);
    }
    // The second part is there before the session ends, and the file is not.
    until("an upload", async || (s3.open_uploads() == 1).then_some(())).await;
    assert!(s3.get("dalston-artifacts/sessions/long/audio.wav").is_none());
    let end = client.finish().await.pop().unwrap();
    assert_eq!(end["audio_uri"], "s3://dalston-artifacts/sessions/long/audio.wav");
    let stored = s3.get("dalston-artifacts/sessions/long/audio.wav").unwrap();
    assert_eq!(stored.content.len(), SENT + 58);
    assert_eq!(stored.content[54..58], u32::try_from(SENT).unwrap().to_le_bytes());
    assert_eq!(s3.open_uploads(), 0);

    // The parts of an audio that can't be stored to its end are removed.
    s3.trouble(Trouble::new(Fault::ACCESS_DENIED).method("PUT").path("broken"));
    let mut client = session(worker.port, &query.replace("long", "broken")).await;
    for _ in 0..SENT >> 20 {
        assert!(client.send_bytes(vec![0; 1 << 20]).await);
    }
    let end = client.finish().await.pop().unwrap();
    assert_eq!(
        (end.get("audio_uri"), &end["total_audio_seconds"]),
        (None, &json!(35.499))
    );
    until("no upload", async || (s3.open_uploads() == 0).then_some(())).await;
    let failures = r#"dalston_realtime_storage_failures_total{file="audio"}"#;
    let counted = async || (worker.metric(failures).await == Some(1.0)).then_some(());
    until("a failure", counted).await;
    worker.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn session_outlives_a_storage_that_fails() {
    let (deployment, s3) = (Deployment::start().await, TestS3::start());
    let url = s3.url();
    let worker = deployment
        .worker(Tones::default(), "away", &on(&url, "1"), None)
        .await;
    s3.trouble(Trouble::new(Fault::Cut));
    let mut client = session(worker.port, "interim_results=false").await;
    client.send_audio(&audio(RATE, &[(0.5, 3), (0.6, 0)])).await;
    client.until("transcript.final").await;
    client.send_audio(&audio(RATE, &[(0.5, 4)])).await;
    let end = client.finish().await.pop().unwrap();
    assert_eq!(
        (&end["type"], &end["transcript"]),
        (&json!("session.end"), &json!("w3 w4"))
    );
    assert_eq!((end.get("audio_uri"), end.get("transcript_uri")), (None, None));
    assert_eq!(client.closed, Some(1000));
    for file in ["audio", "transcript"] {
        let series = format!(r#"dalston_realtime_storage_failures_total{{file="{file}"}}"#);
        let counted = async || (worker.metric(&series).await == Some(1.0)).then_some(());
        until("a failure", counted).await;
    }
    worker.finish().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn transcript_of_a_lost_client_has_its_last_words() {
    let (deployment, s3) = (Deployment::start().await, TestS3::start());
    let url = s3.url();
    let worker = deployment
        .worker(Tones::default(), "lost", &on(&url, "5"), None)
        .await;
    let mut client = session(worker.port, "session_id=lost&interim_results=false").await;
    client.send_audio(&audio(RATE, &[(0.5, 3), (0.6, 0)])).await;
    client.until("transcript.final").await;
    client.send_audio(&audio(RATE, &[(0.5, 4)])).await;
    drop(client);
    let stored = async || s3.get("dalston-artifacts/sessions/lost/transcript.json");
    let stored = until("a transcript", stored).await;
    let stored: Value = serde_json::from_slice(&stored.content).unwrap();
    assert_eq!(stored["text"], "w3 w4");
    // The client has not heard of the last utterance, so it goes on before it.
    let path = "/session?resume_session_id=lost&store_audio=no&store_transcript=no";
    // It is kept for that after its transcript is stored.
    let resumed = async || {
        let mut client = Client::open(worker.port, path, &[]).await;
        (client.next().await["resumed_from"] == "lost").then_some(client)
    };
    let mut client = until("a resumption", resumed).await;
    client.send_audio(&audio(RATE, &[(0.5, 4)])).await;
    let messages = client.finish().await;
    let start = of_type(&messages, "transcript.final")[0]["start"]
        .as_f64()
        .unwrap();
    assert!((0.4..0.6).contains(&start), "{start}");
    worker.finish().await;
}
