//! The drain of a runner whose machine will be taken away.

use std::time::Duration;

use dalston_engine_sdk::{RunnerPhase, TaskError};
use tokio::sync::mpsc::unbounded_channel;

use crate::rig::{Closures, Rig, answer, gate};

#[tokio::test]
async fn an_interruption_starts_the_drain_and_marks_all_spans() {
    let rig = Rig::new();
    let (engine_waits, open) = gate();
    let (begun, mut begins) = unbounded_channel();
    let engine = Closures::new(move |_, _| {
        begun.send(()).unwrap();
        engine_waits.wait();
        answer()
    });
    let runner = rig.runner(engine).build().unwrap();
    let (interruption, status) = (runner.interruption(), runner.status());
    let act = async {
        rig.submit("running").await;
        begins.recv().await.unwrap();
        interruption.announce("rebalance", None);
        while status.phase() != RunnerPhase::Draining {
            tokio::task::yield_now().await;
        }
        interruption.announce("terminate", Some(Duration::from_secs(60)));
        tokio::task::yield_now().await;
        open.open();
        // The runner ends by itself.
        std::future::pending::<()>().await;
    };
    let run = rig.telemetry.attach(runner.run_until(std::future::pending()));
    tokio::select! {
        ended = run => ended.unwrap(),
        () = act => {}
    }
    assert_eq!(rig.events(), ["running started", "running completed"]);
    for (span, expected) in [
        ("engine.download_input", None),
        ("engine.model_load", None),
        ("engine.process", Some("terminate")),
        ("engine.upload_output", Some("terminate")),
        ("engine.test-asr.process", Some("terminate")),
    ] {
        let span = rig.telemetry.span(span);
        let shown = span.attribute("dalston.spot_interruption");
        assert_eq!(
            shown.map(ToString::to_string).as_deref(),
            expected,
            "{}",
            span.name
        );
    }
}

#[tokio::test]
async fn the_time_left_shortens_the_drain() {
    let rig = Rig::new();
    let (begun, mut begins) = unbounded_channel();
    let engine = Closures::new(move |_, cx| {
        begun.send(()).unwrap();
        loop {
            cx.check_cancelled()?;
            std::thread::sleep(Duration::from_millis(1));
        }
    });
    let runner = rig
        .runner(engine)
        .drain_timeout(Duration::from_secs(3_600))
        .build()
        .unwrap();
    let interruption = runner.interruption();
    let act = async {
        rig.submit("running").await;
        begins.recv().await.unwrap();
        interruption.announce("rebalance", None);
        interruption.announce("stop", Some(Duration::ZERO));
        std::future::pending::<()>().await;
    };
    let run = rig.telemetry.attach(runner.run_until(std::future::pending()));
    tokio::select! {
        ended = tokio::time::timeout(Duration::from_secs(60), run) => ended.expect("much sooner than an hour").unwrap(),
        () = act => {}
    }
    assert_eq!(rig.events(), ["running started"]);
    let task = rig.telemetry.span("engine.test-asr.process");
    assert_eq!(
        task.attribute("dalston.spot_interruption").unwrap().to_string(),
        "stop"
    );

    // A peer gets it at once.
    let builder = rig.runner(Closures::new(|_, _| answer()));
    let (outcome, _) = rig.run(builder, rig.outcome("running")).await;
    outcome.unwrap();
}

#[tokio::test]
async fn an_interruption_before_the_start_lets_no_task_begin() {
    let rig = Rig::new();
    let runner = rig
        .runner(Closures::new(|_, _| {
            Err(TaskError::permanent("begun", "it should not be"))
        }))
        .build()
        .unwrap();
    runner.interruption().announce("hibernate", None);
    rig.submit("waiting").await;
    rig.telemetry
        .attach(runner.run_until(std::future::pending()))
        .await
        .unwrap();
    assert_eq!(rig.events(), [] as [&str; 0]);
}
