use dalston_engine_sdk::testing::EngineHarness;

use super::*;

#[test]
fn task_counts_words_and_has_all_spans() {
    let report = EngineHarness::new(WordCounter)
        .input_text("one two\n three")
        .run_blocking();
    assert_eq!(report.output(), &json!({ "words": 3 }));
    report.tree().assert_eq(
        "
        engine.queue_wait
        engine.word-counter.process {dalston.stage=count, dalston.engine_id=word-counter}
          engine.download_input
          engine.process
          engine.upload_output
        ",
    );
    assert_eq!(report.moved("dalston_engine_tasks_processed_total"), 1.0);
}

#[test]
fn invalid_utf8_fails_only_its_task() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), [0xff, 0xfe]).unwrap();
    let report = EngineHarness::new(WordCounter)
        .input_file(file.path())
        .run_blocking();
    assert_eq!(report.error(), "stream did not contain valid UTF-8");
    report.tree().assert_eq(
        "
        engine.queue_wait
        engine.word-counter.process !
          engine.download_input
          engine.process !
        ",
    );
}
