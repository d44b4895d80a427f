//! The engine in the real runner, in memory.

use std::path::Path;

use dalston_engine_sdk::EngineConfig;
use dalston_engine_sdk::testing::EngineHarness;

use super::*;

/// Samples of a code: dots and dashes, one space between letters, two between words.
fn sound(code: &str) -> Vec<f32> {
    const UNIT: usize = 960;
    let tone = |units: usize| (0..units * UNIT).map(|n| (n as f32 * 0.25).sin() * 0.5);
    let mut samples = vec![0.0; UNIT];
    for symbol in code.chars() {
        match symbol {
            '.' => samples.extend(tone(1)),
            '-' => samples.extend(tone(3)),
            _ => samples.extend([0.0; 2 * UNIT]),
        }
        samples.extend([0.0; UNIT]);
    }
    samples
}

fn harness(code: &str) -> EngineHarness<Morse> {
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("models");
    EngineHarness::new(Morse::default())
        .engine_config(EngineConfig::new().model_root(models))
        .audio(16_000, &sound(code))
}

#[test]
fn first_task_loads_the_model_and_reads_words() {
    let report = harness("... --- ...  .- ..-.").run_blocking();
    let transcript = report.transcript();
    assert_eq!(transcript.text, "SOS AF");
    let words = transcript.segments[0].words.as_ref().unwrap();
    assert!(words[0].start < 0.1 && words[1].start > words[0].end, "{words:?}");
    report.tree().assert_eq(
        "
        engine.queue_wait
        engine.morse.process {dalston.stage=transcribe, dalston.model=international}
          engine.download_input
          engine.model_acquire
            engine.model_load
          engine.process
            morse.marks
            morse.decode
          engine.upload_output
        ",
    );
    assert_eq!(
        report
            .moved("dalston_engine_tasks_processed_total")
            .with("status", "success"),
        1.0
    );
    assert_eq!(report.log("codes_read").field("codes"), Some(&36.into()));
}

#[test]
fn unknown_code_is_counted_and_marked() {
    let report = harness("... ...... ...").run_blocking();
    assert_eq!(report.transcript().text, "S?S");
    assert_eq!(report.moved("morse_unknown_codes_total"), 1.0);
}

#[test]
fn missing_model_fails_the_task_with_its_code() {
    let report = harness(".").task(|task| task.model("klingon")).run_blocking();
    assert_eq!(report.error_code(), "model_not_found");
}

#[tokio::test]
async fn session_sends_the_text_of_an_utterance() {
    let worker = harness("").start();
    let mut session = worker.session("enable_vad=false&interim_results=false");
    assert_eq!(session.next().await["type"], "session.begin");
    session.send_audio(&sound("... --- ...")).await;
    assert_eq!(session.finish().await[0]["text"], "SOS");
    worker.stop().await;
}
