//! The spans, the metrics and the log lines of tasks.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use dalston_engine_sdk::broker::RedeliveryReason;
use dalston_engine_sdk::protocol::Timestamp;
use dalston_engine_sdk::{Segment, TaskError, TaskPhase, TaskStatus, Transcript, Word};
use dalston_telemetry::CollectedSpan;
use dalston_telemetry::context::LogContext;
use dalston_telemetry::metrics::Metrics;
use dalston_telemetry::tracing::info_span;
use serde_json::json;

use crate::rig::{Closures, Rig, answer, gate};

const PRODUCER: &str = r#"{"traceparent":"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}"#;

#[tokio::test]
async fn cold_trace_has_all_spans_and_warm_trace_has_no_load() {
    let rig = Rig::new();
    let engine = Closures::new(|_, _| {
        info_span!("engine.encode").in_scope(|| {});
        answer()
    });
    let one_after_the_other = async {
        for name in ["cold", "warm"] {
            rig.submit_with(name, |request, metadata, task| {
                let prepared = json!({"channel_files": [{"duration": 8.0}]});
                request.previous_responses.insert("prepare".to_owned(), prepared);
                request.config.insert("language".to_owned(), json!("DE"));
                metadata.stage = "transcribe_ch0".to_owned();
                metadata.request_id = Some("req-7".to_owned());
                metadata.trace_context = Some(PRODUCER.to_owned());
                task
            })
            .await;
            rig.outcome(name).await.unwrap();
        }
    };
    rig.run(rig.runner(engine), one_after_the_other).await.1.unwrap();

    let spans = rig.telemetry.spans();
    assert!(
        spans
            .iter()
            .all(|span| span.trace_id.to_string() == "0af7651916cd43dd8448eb211c80319c")
    );
    for span in &spans {
        if span.name == "engine.queue_wait" || span.name == "engine.test-asr.process" {
            assert_eq!(
                span.parent_span_id.unwrap().to_string(),
                "b7ad6b7169203331",
                "{}",
                span.name
            );
        }
    }
    let instance = rig.broker.events()[0].consumer.instance.clone();
    rig.tree().assert_eq(&format!(
        "
        engine.queue_wait {{dalston.task_id=cold, dalston.engine_id=test-asr, dalston.queue_wait_seconds=*}}
        engine.test-asr.process {{dalston.task_id=cold, dalston.job_id=job-of-cold, dalston.engine_id=test-asr, dalston.stage=transcribe_ch0, dalston.model=tiny, dalston.instance={instance}, dalston.request_id=req-7, dalston.audio_duration_seconds=8, dalston.language=de, dalston.queue_wait_seconds=*, dalston.delivery_count=1, dalston.realtime_factor=*, messaging.system=memory, messaging.destination.name=test-asr, messaging.operation.type=process, messaging.operation.name=process, messaging.message.id=cold, messaging.message.conversation_id=job-of-cold}}
          engine.download_input
          engine.model_acquire {{dalston.model_id=tiny, dalston.in_memory=false}}
            engine.model_load {{dalston.model=tiny}}
          engine.process {{dalston.audio_duration_s=8, dalston.rtf=*}}
            engine.encode
          engine.upload_output
        engine.queue_wait {{dalston.task_id=warm}}
        engine.test-asr.process {{dalston.task_id=warm}}
          engine.download_input
          engine.model_acquire {{dalston.model_id=tiny, dalston.in_memory=true}}
          engine.process
            engine.encode
          engine.upload_output
        "
    ));
    let task = spans
        .iter()
        .find(|span| span.name == "engine.test-asr.process")
        .unwrap();
    assert_eq!(format!("{:?}", task.kind), "Consumer");
}

#[tokio::test]
async fn spans_of_a_transcript_have_the_platforms_attributes() {
    let rig = Rig::new();
    let engine = Closures::new(|_, _| {
        let words = ["one", "two"].map(|word| Word::new(0.0, 1.0, word));
        let timed = Segment::new(0.0, 1.0, "one two three").words(words);
        let other = Segment::new(1.0, 2.0, " four  five six ").words([]);
        let mut transcript = serde_json::to_value(Transcript::from_segments([timed, other]))?;
        transcript["engine_id"] = "test-asr".into();
        Ok(transcript)
    });
    rig.submit_with("t1", |request, _, task| {
        request
            .config
            .insert("audio_duration_seconds".to_owned(), json!(2.5));
        task
    })
    .await;
    rig.run(rig.runner(engine), rig.outcome("t1")).await.1.unwrap();
    rig.tree().assert_eq(
        "
        engine.queue_wait
        engine.test-asr.process {dalston.audio_duration_seconds=2.5, dalston.realtime_factor=*}
          engine.download_input
          engine.model_acquire
            engine.model_load
          engine.process {dalston.audio_duration_s=2.5, dalston.rtf=*, dalston.segment_count=2, dalston.word_count=5}
          engine.upload_output
        ",
    );
}

#[tokio::test]
async fn exactly_the_series_of_a_task_move() {
    let rig = Rig::new();
    let metrics = Metrics::new();
    for name in ["cold", "warm"] {
        rig.submit_with(name, |request, _, task| {
            let prepared = json!({"source_media": {"duration": 8.0}});
            request.previous_responses.insert("prepare".to_owned(), prepared);
            task
        })
        .await;
    }
    let builder = rig
        .runner(Closures::new(|_, _| answer()))
        .metrics(metrics.clone());
    let before = metrics.snapshot();
    let both = async {
        rig.outcome("cold").await.unwrap();
        rig.outcome("warm").await.unwrap();
    };
    rig.run(builder, both).await.1.unwrap();
    let moved: Vec<String> = metrics
        .snapshot()
        .diff(&before)
        .iter()
        .map(ToString::to_string)
        .collect();
    let moved: Vec<&str> = moved
        .iter()
        .map(String::as_str)
        .filter(|line| !line.contains("_sum"))
        .collect();
    let engine = r#"engine_id="test-asr",execution_profile="container",instance_type="unknown""#;
    let model = format!(r#"{engine},model="tiny""#);
    let expected = [
        r#"dalston_engine_audio_duration_seconds_count{engine_id="test-asr",instance_type="unknown"}: 0 -> 2"#.to_owned(),
        r#"dalston_engine_inference_busy_ratio{engine_id="test-asr",slot="0"}"#.to_owned(),
        format!("dalston_engine_inference_seconds_total{{{model}}}: 0 -> "),
        r#"dalston_engine_model_acquire_seconds_count{engine_id="test-asr",in_memory="false",model="tiny"}: 0 -> 1"#.to_owned(),
        r#"dalston_engine_model_acquire_seconds_count{engine_id="test-asr",in_memory="true",model="tiny"}: 0 -> 1"#.to_owned(),
        r#"dalston_engine_model_cache_hits_total{engine_id="test-asr",model="tiny"}: 0 -> 1"#.to_owned(),
        format!("dalston_engine_model_load_seconds_count{{{model}}}: 0 -> 1"),
        format!("dalston_engine_queue_wait_seconds_count{{{engine}}}: 0 -> 2"),
        r#"dalston_engine_realtime_factor_ratio_count{device="unknown",engine_id="test-asr",model="tiny"}: 0 -> 2"#.to_owned(),
        r#"dalston_engine_recognize_seconds_count{device="unknown",engine_id="test-asr",model="tiny"}: 0 -> 2"#.to_owned(),
        format!("dalston_engine_s3_download_seconds_count{{{engine}}}: 0 -> 2"),
        format!("dalston_engine_s3_upload_seconds_count{{{engine}}}: 0 -> 2"),
        format!("dalston_engine_slot_wait_seconds_count{{{engine}}}: 0 -> 2"),
        format!("dalston_engine_task_duration_seconds_count{{{model}}}: 0 -> 2"),
        format!(r#"dalston_engine_tasks_processed_total{{{model},status="success"}}: 0 -> 2"#),
    ];
    assert_eq!(moved.len(), expected.len(), "{moved:#?}");
    for (moved, expected) in moved.iter().zip(&expected) {
        assert!(moved.starts_with(expected.as_str()), "{moved} is not {expected}");
    }
}

#[tokio::test]
async fn model_load_and_clock_skew_do_not_change_task_times() {
    const LOAD: Duration = Duration::from_millis(300);
    let rig = Rig::new();
    let metrics = Metrics::new();
    rig.submit_with("from-tomorrow", |_, _, task| {
        let tomorrow = SystemTime::now() + Duration::from_secs(86_400);
        task.enqueued_at(Timestamp::from(tomorrow))
    })
    .await;
    let engine = Closures::new(|_, _| answer()).load(|_, _| {
        std::thread::sleep(LOAD);
        Ok(())
    });
    let begun = Instant::now();
    let builder = rig.runner(engine).metrics(metrics.clone());
    rig.run(builder, rig.outcome("from-tomorrow")).await.1.unwrap();
    let all = begun.elapsed().as_secs_f64();
    let snapshot = metrics.snapshot();
    let sum = |name: &str| snapshot.sum(&format!("dalston_engine_{name}"), &[]);
    assert!(sum("model_load_seconds_sum") >= LOAD.as_secs_f64());
    // The time of the load is not part of the time of the task, however slow the machine is.
    let both = sum("model_load_seconds_sum") + sum("task_duration_seconds_sum");
    assert!(both <= all, "{both} s of {all} s");
    assert_eq!(sum("task_duration_seconds_count"), 1.0);
    assert_eq!(sum("queue_wait_seconds_count"), 1.0);
    assert_eq!(sum("queue_wait_seconds_sum"), 0.0);
}

#[tokio::test]
async fn a_failed_task_counts_as_a_failure_and_nothing_else() {
    let rig = Rig::new();
    let metrics = Metrics::new();
    rig.submit_with("t1", |request, _, task| {
        request
            .previous_responses
            .insert("prepare".to_owned(), json!({"source_media": {"duration": 8.0}}));
        task
    })
    .await;
    let engine = Closures::new(|_, _| Err(TaskError::permanent("no_speech", "there is nothing to hear")));
    let builder = rig.runner(engine).metrics(metrics.clone());
    rig.run(builder, rig.outcome("t1")).await.1.unwrap();
    let snapshot = metrics.snapshot();
    let count = |name: &str| snapshot.sum(name, &[]);
    assert_eq!(
        snapshot.sum("dalston_engine_tasks_processed_total", &[("status", "failure")]),
        1.0
    );
    assert_eq!(
        snapshot.sum("dalston_engine_tasks_processed_total", &[("status", "success")]),
        0.0
    );
    assert_eq!(count("dalston_engine_task_duration_seconds_count"), 0.0);
    assert_eq!(count("dalston_engine_audio_duration_seconds_count"), 0.0);
    assert_eq!(count("dalston_engine_realtime_factor_ratio_count"), 0.0);
}

#[tokio::test]
async fn the_log_lines_of_an_engine_carry_the_ids_of_its_task() {
    let rig = Rig::new();
    rig.submit_with("t1", |_, metadata, task| {
        metadata.request_id = Some("req-7".to_owned());
        task
    })
    .await;
    let seen = Arc::new(Mutex::new(Vec::new()));
    let note = Arc::clone(&seen);
    let engine = Closures::new(move |_, _| {
        let log = LogContext::current();
        let get = |name| log.get(name).unwrap_or_default().to_owned();
        *note.lock().unwrap() = ["task_id", "job_id", "request_id", "engine_id"].map(get).to_vec();
        answer()
    });
    rig.run(rig.runner(engine), rig.outcome("t1")).await.1.unwrap();
    assert_eq!(*seen.lock().unwrap(), ["t1", "job-of-t1", "req-7", "test-asr"]);
}

#[tokio::test]
async fn events_carry_the_request_id_and_the_task_span() {
    let rig = Rig::new();
    rig.submit_with("t1", |_, metadata, task| {
        metadata.request_id = Some("req-7".to_owned());
        metadata.trace_context = Some(PRODUCER.to_owned());
        task
    })
    .await;
    rig.run(rig.runner(Closures::new(|_, _| answer())), rig.outcome("t1"))
        .await
        .1
        .unwrap();
    let span = rig.telemetry.span("engine.test-asr.process");
    let carried = format!(r#"{{"traceparent":"00-{}-{}-01"}}"#, span.trace_id, span.span_id);
    for event in rig.broker.events() {
        assert_eq!(event.context.request_id.as_deref(), Some("req-7"));
        assert_eq!(event.context.trace_context.as_deref(), Some(carried.as_str()));
    }
}

#[tokio::test]
async fn with_tracing_off_the_producers_context_passes_through() {
    let rig = Rig::new();
    rig.submit_with("t1", |_, metadata, task| {
        metadata.trace_context = Some(PRODUCER.to_owned());
        task
    })
    .await;
    let builder = rig
        .runner(Closures::new(|_, _| answer()))
        .telemetry(dalston_telemetry::TelemetryHandle::disabled());
    rig.run(builder, rig.outcome("t1")).await.1.unwrap();
    let carried: Vec<_> = rig
        .broker
        .events()
        .into_iter()
        .map(|event| event.context.trace_context)
        .collect();
    assert_eq!(carried, [Some(PRODUCER.to_owned()), Some(PRODUCER.to_owned())]);
}

#[tokio::test]
async fn a_negative_queue_wait_is_zero_with_the_raw_value() {
    let rig = Rig::new();
    let ahead = Timestamp::now() + Duration::from_secs(60);
    rig.submit_with("t1", |_, _, task| task.enqueued_at(ahead)).await;
    rig.run(rig.runner(Closures::new(|_, _| answer())), rig.outcome("t1"))
        .await
        .1
        .unwrap();
    let wait = rig.telemetry.span("engine.queue_wait");
    assert_eq!(wait.duration(), Duration::ZERO);
    assert_eq!(
        wait.attribute("dalston.queue_wait_seconds").unwrap().to_string(),
        "0"
    );
    let raw: f64 = wait
        .attribute("dalston.clock_skew_seconds")
        .unwrap()
        .to_string()
        .parse()
        .unwrap();
    assert!((-60.0..-30.0).contains(&raw), "{raw}");
}

#[tokio::test]
async fn a_queue_wait_of_more_than_a_week_is_left_out() {
    let rig = Rig::new();
    let metrics = Metrics::new();
    rig.submit_with("t1", |_, _, task| {
        task.enqueued_at("2001-01-01T00:00:00Z".parse().unwrap())
    })
    .await;
    let builder = rig
        .runner(Closures::new(|_, _| answer()))
        .metrics(metrics.clone());
    rig.run(builder, rig.outcome("t1")).await.1.unwrap();
    assert!(
        rig.telemetry
            .spans()
            .iter()
            .all(|span| span.name != "engine.queue_wait")
    );
    assert_eq!(
        metrics
            .snapshot()
            .sum("dalston_engine_queue_wait_seconds_count", &[]),
        0.0
    );
}

#[tokio::test]
async fn a_redelivered_task_stays_in_the_trace_with_its_count() {
    let rig = Rig::new();
    let metrics = Metrics::new();
    rig.submit_with("t1", |_, metadata, task| {
        metadata.trace_context = Some(PRODUCER.to_owned());
        task.enqueued_at("2020-01-01T00:00:00Z".parse().unwrap())
    })
    .await;
    // A worker that takes the task and then stops.
    use dalston_engine_sdk::broker::{Broker, Consumer};
    let silent = Consumer {
        engine_id: "test-asr".to_owned(),
        instance: "test-asr-silent".to_owned(),
    };
    let delivery = rig
        .broker
        .receive(&silent, Duration::ZERO)
        .await
        .unwrap()
        .unwrap();
    let _ = rig.broker.release(&delivery.claim).await.unwrap();

    let builder = rig
        .runner(Closures::new(|_, _| answer()))
        .metrics(metrics.clone());
    rig.run(builder, rig.outcome("t1")).await.1.unwrap();
    let task = rig.telemetry.span("engine.test-asr.process");
    assert_eq!(task.trace_id.to_string(), "0af7651916cd43dd8448eb211c80319c");
    assert_eq!(task.attribute("dalston.delivery_count").unwrap().to_string(), "2");
    // The second wait begins with the hand-back, not with the enqueue six years ago.
    assert!(rig.telemetry.span("engine.queue_wait").duration() < Duration::from_secs(60));
    let reason = RedeliveryReason::Deferred.as_str();
    assert_eq!(
        metrics
            .snapshot()
            .sum("dalston_engine_task_redelivery_total", &[("reason", reason)]),
        1.0
    );
}

#[tokio::test]
async fn wait_for_an_inference_thread_has_a_span() {
    let rig = Rig::new();
    let metrics = Metrics::new();
    let (first, end_first) = gate();
    let engine = Closures::new(move |_, cx| {
        if cx.info().task_id == "first" {
            first.wait();
        }
        answer()
    });
    rig.submit("first").await;
    rig.submit("second").await;
    let begun = Instant::now();
    let runner = rig.runner(engine).metrics(metrics.clone()).build().unwrap();
    let status = runner.status();
    let act = async {
        let waits = |task: &TaskStatus| task.phase == TaskPhase::Waiting && &*task.task_id == "second";
        while !status.tasks().iter().any(waits) {
            tokio::task::yield_now().await;
        }
        tokio::time::sleep(Duration::from_millis(30)).await;
        end_first.open();
        rig.outcome("second").await.unwrap();
    };
    rig.run_runner(runner, act).await.1.unwrap();

    let all = begun.elapsed().as_secs_f64();
    let spans = rig.telemetry.spans();
    let of = |task: &str| {
        let is_of = |span: &&CollectedSpan| {
            let id = span.attribute("dalston.task_id").map(ToString::to_string);
            span.name == "engine.test-asr.process" && id.as_deref() == Some(task)
        };
        let parent = Some(spans.iter().find(is_of).unwrap().span_id);
        let is_wait =
            |span: &&CollectedSpan| span.name == "engine.slot_wait" && span.parent_span_id == parent;
        spans.iter().find(is_wait).map(CollectedSpan::duration)
    };
    let wait = of("second").unwrap();
    assert!(wait >= Duration::from_millis(20), "{wait:?}");
    let moved = metrics.snapshot();
    assert_eq!(moved.sum("dalston_engine_slot_wait_seconds_count", &[]), 2.0);
    // The first task has a wait, too, if the machine was slow to start the thread.
    let waits = wait + of("first").unwrap_or_default();
    let seconds = moved.sum("dalston_engine_slot_wait_seconds_sum", &[]);
    assert!(
        seconds >= waits.as_secs_f64() - 0.01 && seconds <= all,
        "{seconds} of {all}: {waits:?}"
    );
}
