use dalston_engine_sdk::testing::EngineHarness;

use super::*;

#[test]
fn words_are_counted_in_a_task_with_all_its_spans() {
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
fn a_text_that_is_not_utf_8_fails_its_task_only() {
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

#[test]
fn the_guide_shows_this_engine() {
    let source = include_str!("main.rs");
    let program = source
        .find("use dalston_engine_sdk")
        .zip(source.find("\n#[cfg(test)]"));
    let program = program.and_then(|(from, to)| source.get(from..to)).unwrap();
    let guide = include_str!("../../../dalston-engine-sdk/docs/guides/first-engine.md");
    assert!(
        guide.contains(program.trim_end()),
        "the guide first-engine.md shows another program than src/main.rs"
    );
}
