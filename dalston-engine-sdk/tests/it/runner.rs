//! The lifecycle of a task: its events, files and results, in their order.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use dalston_engine_sdk::broker::{EventKind, TaskMetadata};
use dalston_engine_sdk::protocol::ArtifactReference;
use dalston_engine_sdk::{OutputFile, RunnerConfig, TaskError};
use dalston_telemetry::metrics::{Counter, DenseFamily, Metrics};
use serde_json::json;
use tokio::sync::Notify;
use tokio::time::timeout;

use crate::rig::{Closures, Rig, answer, gate, job_of};

#[tokio::test]
async fn a_task_is_started_done_and_reported_with_a_stored_answer() {
    let rig = Rig::new();
    rig.submit("t1").await;
    let engine = Closures::new(|_, _| answer());
    let (outcome, run) = rig.run(rig.runner(engine), rig.outcome("t1")).await;
    run.unwrap();
    assert_eq!(outcome, Ok(json!({"text": "hello"})));
    assert_eq!(rig.events(), ["t1 started", "t1 completed"]);
    assert_eq!((rig.broker.waiting(), rig.broker.held()), (0, 0));
    assert_eq!(rig.temp_dirs(), 0);
}

#[tokio::test]
async fn metrics_of_an_engine_exist_before_its_first_load() {
    let rig = Rig::new();
    let words = DenseFamily::<(), Counter>::default();
    let counted = words.clone();
    let started = Arc::new(AtomicUsize::new(0));
    let starts = Arc::clone(&started);
    let engine = Closures::new(|_, cx| Ok(json!(cx.metrics().snapshot().sum("own_words_total", &[]))))
        .load(move |_, cx| {
            // The same registry as that of `start`.
            assert_eq!(cx.metrics().snapshot().value("own_words_total", &[]), Some(0.0));
            counted.with(()).inc_by(3);
            Ok(())
        })
        .start(move |cx| {
            starts.fetch_add(1, Ordering::SeqCst);
            assert_eq!(cx.engine_id(), "asr-2");
            assert_eq!(cx.config().model, Some("tiny".into()));
            let words = words.clone();
            cx.metrics()
                .register(|registry| registry.register("own_words", "Words of the test", words));
        });
    let mut config = RunnerConfig::default();
    config.engine_id = Some("asr-2".to_owned());
    let runner = rig.runner(engine).config(config).slots(2);
    let runner = runner.temp_root(rig.temp.path()).build().unwrap();
    let scraped = rig.telemetry.metrics().encode();
    assert!(scraped.contains("own_words_total 0\n"), "{scraped}");
    rig.submit_with("t1", |_, _, _| {
        dalston_engine_sdk::broker::QueuedTask::new("asr-2", "t1", job_of("t1"))
    })
    .await;
    let (outcome, run) = rig.run_runner(runner, rig.outcome("t1")).await;
    run.unwrap();
    assert_eq!(outcome, Ok(json!(3.0)));
    assert_eq!(started.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn an_unreadable_task_is_started_before_it_fails() {
    let rig = Rig::new();
    rig.submit("whole").await;
    for (name, change) in [
        ("no-metadata", None),
        ("no-request", Some("transcribe")),
        ("odd-stage", Some("Trans cribe")),
    ] {
        let mut task = dalston_engine_sdk::broker::QueuedTask::new("test-asr", name, job_of(name));
        task.metadata = change.map(TaskMetadata::new);
        rig.broker.enqueue(task).unwrap();
    }
    let mut evil = dalston_engine_sdk::broker::QueuedTask::new("test-asr", "../../etc", "..");
    evil.metadata = Some(TaskMetadata::new("transcribe"));
    rig.broker.enqueue(evil).unwrap();
    rig.submit("last").await;
    let all = async {
        for name in [
            "whole",
            "no-metadata",
            "no-request",
            "odd-stage",
            "../../etc",
            "last",
        ] {
            rig.broker.wait_for_outcome(name).await;
        }
    };
    rig.run(rig.runner(Closures::new(|_, _| answer())), all)
        .await
        .1
        .unwrap();
    let mut events = rig.events();
    // Two tasks run at a time, so only the order within a task is certain.
    events.sort_by_key(|event| event.split(' ').next().map(str::to_owned));
    assert_eq!(
        events,
        [
            "../../etc started",
            "../../etc failed invalid_id",
            "last started",
            "last completed",
            "no-metadata started",
            "no-metadata failed metadata_missing",
            "no-request started",
            "no-request failed not_found",
            "odd-stage started",
            "odd-stage failed invalid_stage",
            "whole started",
            "whole completed",
        ]
    );
    assert_eq!(rig.temp_dirs(), 0);
}

#[tokio::test]
async fn a_job_cancelled_in_the_queue_is_removed_without_an_event() {
    let rig = Rig::new();
    let metrics = Metrics::new();
    rig.submit("unwanted").await;
    rig.submit("wanted").await;
    rig.broker.cancel_job(&job_of("unwanted"));
    let builder = rig
        .runner(Closures::new(|_, _| answer()))
        .metrics(metrics.clone());
    rig.run(builder, rig.outcome("wanted")).await.1.unwrap();
    assert_eq!(rig.events(), ["wanted started", "wanted completed"]);
    assert_eq!(rig.broker.held(), 0);
    assert_eq!(
        metrics
            .snapshot()
            .sum("dalston_engine_tasks_skipped_cancelled_total", &[]),
        1.0
    );
}

#[tokio::test]
async fn inputs_have_safe_names_and_follow_the_metadata() {
    let rig = Rig::new();
    let old = rig.store.write("jobs/j/old.wav", "old").await.unwrap();
    let new = rig.store.write("jobs/j/new.wav", "new").await.unwrap();
    rig.submit_with("t1", |request, metadata, task| {
        for (id, locator) in [("P:old", &old), ("../P:new", &new)] {
            let artifact = ArtifactReference::new(id, "audio", locator);
            request.artifact_index.insert(id.to_owned(), artifact);
        }
        request
            .resolved_artifact_ids
            .insert("audio".to_owned(), "P:old".to_owned());
        metadata.resolved_artifact_ids = Some([("audio".to_owned(), "../P:new".to_owned())].into());
        task
    })
    .await;
    let temp = rig.temp.path().to_owned();
    let engine = Closures::new(move |task, cx| {
        let input = task.require_input("audio")?;
        assert!(input.path().starts_with(cx.temp_dir()) && cx.temp_dir().starts_with(&temp));
        let name = input.path().file_name().unwrap().to_str().unwrap();
        Ok(json!({"name": name, "content": std::fs::read_to_string(input.path())?}))
    });
    let (outcome, _) = rig.run(rig.runner(engine), rig.outcome("t1")).await;
    assert_eq!(
        outcome,
        Ok(json!({"name": "0_audio____P_new.wav", "content": "new"}))
    );
    assert_eq!(rig.temp_dirs(), 0);
}

#[tokio::test]
async fn invalid_locators_fail_their_task() {
    let rig = Rig::new();
    let tricks = [
        ("up", "s3://dalston-artifacts/jobs/../../secret"),
        ("bucket", "s3://other-bucket/key"),
        ("host", "file:///etc/passwd"),
        ("scheme", "http://169.254.169.254/latest"),
        ("empty", "s3://dalston-artifacts/"),
    ];
    for (name, locator) in tricks {
        rig.submit_with(name, |request, _, task| {
            let artifact = ArtifactReference::new("a", "audio", locator);
            request.artifact_index.insert("a".to_owned(), artifact);
            request
                .resolved_artifact_ids
                .insert("audio".to_owned(), "a".to_owned());
            task
        })
        .await;
    }
    let all = async {
        let mut codes = Vec::new();
        for (name, _) in tricks {
            codes.push(rig.outcome(name).await.unwrap_err().0);
        }
        codes
    };
    let (codes, _) = rig.run(rig.runner(Closures::new(|_, _| answer())), all).await;
    assert_eq!(codes, ["invalid_locator"; 5]);
}

#[tokio::test]
async fn output_files_are_stored_before_the_outcome_is_reported() {
    let rig = Rig::new();
    rig.submit("t1").await;
    let engine = Closures::new(|_, cx| {
        let path = cx.temp_dir().join("prepared.wav");
        std::fs::write(&path, "RIFF")?;
        let file = OutputFile::new("prepared_audio", "audio", &path)
            .role("prepared")
            .channel(0);
        cx.add_output_file(file.clone())?;
        assert!(cx.add_output_file(file).is_err(), "the same name twice");
        for name in ["../escape", "a/b", "..", "", "a\0b"] {
            let error = cx
                .add_output_file(OutputFile::new(name, "audio", &path))
                .unwrap_err();
            assert_eq!(error.code(), "invalid_artifact", "{name:?}");
        }
        answer()
    });
    rig.run(rig.runner(engine), rig.outcome("t1")).await.1.unwrap();
    let EventKind::Completed { artifacts } = rig.broker.events()[1].kind.clone() else {
        panic!("not completed")
    };
    let locator = "s3://dalston-artifacts/jobs/job-of-t1/tasks/t1/prepared_audio.wav";
    let mut expected = ArtifactReference::new("t1:prepared_audio", "audio", locator)
        .role("prepared")
        .size(4)
        .producer("t1", "transcribe");
    expected.channel = Some(0);
    assert_eq!(artifacts, [expected]);
    assert_eq!(rig.store.read(locator, 10).await.unwrap(), "RIFF");
}

#[tokio::test]
async fn an_answer_with_a_nan_fails_the_task_and_names_the_field() {
    use dalston_engine_sdk::{
        Engine, EngineInfo, LoadContext, ModelId, Stage, StageOutput, TaskContext, TaskRequest,
    };
    #[derive(serde::Serialize)]
    struct Score {
        score: f64,
    }
    impl StageOutput for Score {}
    struct Scorer;
    impl Engine for Scorer {
        type Model = ();
        type Output = Score;
        fn info(&self) -> EngineInfo {
            EngineInfo::new("test-asr", "1").stage(Stage::Transcribe)
        }
        fn load(&self, _: &ModelId, _: &LoadContext) -> Result<(), TaskError> {
            Ok(())
        }
        fn process(&self, (): &mut (), _: &TaskRequest, _: &TaskContext) -> Result<Score, TaskError> {
            Ok(Score { score: f64::NAN })
        }
    }
    let rig = Rig::new();
    rig.submit("t1").await;
    let (outcome, _) = rig.run(rig.runner(Scorer), rig.outcome("t1")).await;
    let (code, error) = outcome.unwrap_err();
    assert_eq!(code, "invalid_output");
    assert!(error.starts_with("the engine's answer: score is NaN"), "{error}");
    // An engine without models has no model loads in its traces.
    rig.tree().assert_eq(
        "
        engine.queue_wait
        engine.test-asr.process {error.type=invalid_output} !
          engine.download_input
          engine.process
        ",
    );
}

#[tokio::test(start_paused = true)]
async fn stale_directories_are_removed_at_start_and_hourly() {
    let rig = Rig::new();
    let root = rig.temp.path();
    let elsewhere = tempfile::tempdir().unwrap();
    let make = |name: &str, days: u64| {
        let path = root.join(name);
        std::fs::create_dir(&path).unwrap();
        std::fs::write(path.join("input.wav"), "RIFF").unwrap();
        let modified = SystemTime::now() - Duration::from_secs(days * 86_400);
        std::fs::File::open(&path)
            .unwrap()
            .set_modified(modified)
            .unwrap();
    };
    make("dalston_task_old", 31);
    make("dalston_http_old", 31);
    make("dalston_task_recent", 29);
    make("other_old", 31);
    std::os::unix::fs::symlink(elsewhere.path(), root.join("dalston_task_link")).unwrap();
    std::fs::write(elsewhere.path().join("precious"), "").unwrap();
    let left = || {
        let entries = std::fs::read_dir(root).unwrap();
        let mut names: Vec<String> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    };
    let kept = ["dalston_task_link", "dalston_task_recent", "other_old"];
    let swept = async || {
        let names = left();
        (names == kept).then_some(names)
    };
    let act = async {
        let until_swept = async || {
            while swept().await.is_none() {
                tokio::time::sleep(Duration::from_secs(60)).await;
            }
        };
        timeout(Duration::from_secs(600), until_swept())
            .await
            .expect("a sweep at the start");
        make("dalston_task_older", 40);
        timeout(Duration::from_secs(3700), until_swept())
            .await
            .expect("a sweep every hour");
    };
    let engine = Closures::new(|_, _| answer());
    rig.run(rig.runner(engine), act).await.1.unwrap();
    assert!(
        elsewhere.path().join("precious").exists(),
        "links are not followed"
    );
}

#[tokio::test]
async fn a_task_keeps_its_directory_however_short_the_age() {
    let rig = Rig::new();
    let mut config = RunnerConfig::default();
    config.temp_max_age = Duration::ZERO;
    config.task_timeout = Duration::from_secs(30 * 86_400);
    config.temp_root = rig.temp.path().to_owned();
    let (begun, go_on) = (Arc::new(Notify::new()), gate());
    let tell = Arc::clone(&begun);
    let engine = Closures::new(move |_, cx| {
        tell.notify_one();
        go_on.0.wait();
        // Fails if the directory is gone.
        std::fs::read_dir(cx.temp_dir())?;
        answer()
    });
    rig.submit("t1").await;
    let act = async {
        let waited = timeout(Duration::from_secs(60), begun.notified()).await;
        waited.expect("the task lost its directory before it began");
        let stale = rig.temp.path().join("dalston_task_stale");
        std::fs::create_dir(&stale).unwrap();
        let yesterday = SystemTime::now() - Duration::from_secs(86_400);
        std::fs::File::open(&stale)
            .unwrap()
            .set_modified(yesterday)
            .unwrap();
        // The task runs during the sweep of a later hour. That hour begins after the first sweep.
        while stale.exists() {
            tokio::time::pause();
            tokio::time::advance(Duration::from_secs(3601)).await;
            tokio::time::resume();
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
        go_on.1.open();
        rig.outcome("t1").await
    };
    let builder = rig.runner(engine).config(config);
    assert_eq!(rig.run(builder, act).await.0, Ok(json!({"text": "hello"})));
}
