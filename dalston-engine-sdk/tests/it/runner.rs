//! The way of a task, and what may happen to it.

use crate::rig::{Closures, Rig, answer};

#[tokio::test]
async fn a_task_is_announced_done_and_reported_and_its_answer_is_stored() {
    let rig = Rig::new();
    rig.submit("t1").await;
    let engine = Closures::new(|_, _| answer());
    let (outcome, run) = rig.run(rig.runner(engine), rig.outcome("t1")).await;
    run.unwrap();
    assert_eq!(outcome, Ok(serde_json::json!({"text": "hello"})));
    assert_eq!(rig.events(), ["t1 started", "t1 completed"]);
    assert_eq!(rig.temp_dirs(), 0);
    rig.telemetry.tree().assert_eq(
        "
        engine.queue_wait
        engine.test-asr.process {dalston.task_id=t1}
          engine.download_input
          engine.model_load {dalston.model=tiny}
          engine.process
          engine.upload_output
        ",
    );
}
