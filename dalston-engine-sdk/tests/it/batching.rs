//! Several tasks in one call of the engine.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use dalston_engine_sdk::protocol::Timestamp;
use dalston_engine_sdk::testing::{EngineHarness, TaskReport, Worker};
use dalston_engine_sdk::{
    Batch, BatchItem, Batching, Engine, EngineInfo, LoadContext, ModelId, RunnerConfig, Stage, TaskContext,
    TaskError, TaskRequest,
};
use dalston_telemetry::CollectedSpan;
use serde_json::{Value, json};

use crate::rig::{HeldTime, Rig, gate, pass};

/// What the engine does with a batch.
type Whole = Box<dyn Fn(&mut Batch<'_, Value>) -> Result<(), TaskError> + Send + Sync>;
/// What it does with a single task.
type Single = Box<dyn Fn(&TaskRequest, &TaskContext) -> Result<Value, TaskError> + Send + Sync>;

/// An engine that takes batches, and notes the ids of the tasks of each call.
struct Batcher {
    limits: Batching,
    whole: Whole,
    single: Single,
    calls: Calls,
}

type Calls = Arc<Mutex<Vec<Vec<String>>>>;

impl Batcher {
    fn new(tasks: usize) -> Self {
        Self {
            limits: Batching::up_to(tasks),
            whole: Box::new(|batch| {
                finish_all(batch);
                Ok(())
            }),
            single: Box::new(|task, _| Ok(answer(task))),
            calls: Calls::default(),
        }
    }

    fn whole(
        mut self,
        whole: impl Fn(&mut Batch<'_, Value>) -> Result<(), TaskError> + Send + Sync + 'static,
    ) -> Self {
        self.whole = Box::new(whole);
        self
    }

    fn single(
        mut self,
        single: impl Fn(&TaskRequest, &TaskContext) -> Result<Value, TaskError> + Send + Sync + 'static,
    ) -> Self {
        self.single = Box::new(single);
        self
    }

    fn calls(&self) -> Calls {
        Arc::clone(&self.calls)
    }
}

impl Engine for Batcher {
    type Model = String;
    type Output = Value;

    fn info(&self) -> EngineInfo {
        EngineInfo::new("test-asr", "1.0.0")
            .stage(Stage::other("count").unwrap())
            .default_model("tiny")
            .batching(self.limits.clone())
    }

    fn load(&self, model: &ModelId, _: &LoadContext) -> Result<String, TaskError> {
        Ok(model.to_string())
    }

    fn process(&self, _: &mut String, task: &TaskRequest, cx: &TaskContext) -> Result<Value, TaskError> {
        self.calls.lock().unwrap().push(vec![cx.info().task_id.clone()]);
        (self.single)(task, cx)
    }

    fn process_batch(&self, _: &mut String, batch: &mut Batch<'_, Value>) -> Result<(), TaskError> {
        let ids = batch.iter().map(|item| item.cx().info().task_id.clone());
        self.calls.lock().unwrap().push(ids.collect());
        (self.whole)(batch)
    }

    fn batch_key(&self, task: &TaskRequest) -> Option<String> {
        Some(task.config().get("language")?.to_string())
    }
}

fn answer(task: &TaskRequest) -> Value {
    json!({"number": task.config()["number"]})
}

fn number(item: &BatchItem<'_, Value>) -> u64 {
    item.task().config()["number"].as_u64().unwrap()
}

fn finish_all(batch: &mut Batch<'_, Value>) {
    for item in batch.take_all() {
        let answer = answer(item.task());
        item.finish(Ok(answer));
    }
}

/// Runs so many tasks in one batch.
async fn run(engine: Batcher, tasks: u64) -> Vec<TaskReport> {
    let harness = EngineHarness::new(engine);
    let task = harness.default_task().config("language", "en");
    let tasks = (0..tasks).map(|number| task.clone().config("number", number));
    harness.run_batch(tasks).await
}

/// Gives a worker so many tasks at once.
async fn run_on(worker: &Worker, tasks: usize) -> Vec<TaskReport> {
    let mut running = Vec::new();
    for number in 0..tasks {
        let task = worker.task().config("number", number).config("language", "en");
        running.push(worker.submit(task).await);
    }
    let mut reports = Vec::new();
    for task in running {
        reports.push(task.report().await);
    }
    reports
}

fn sizes(calls: &Calls) -> Vec<usize> {
    calls.lock().unwrap().iter().map(Vec::len).collect()
}

fn assert_all_answered(reports: &[TaskReport]) {
    for (number, report) in reports.iter().enumerate() {
        assert_eq!(report.output(), &json!({"number": number}));
    }
}

#[tokio::test]
async fn waiting_tasks_share_a_call_and_keep_their_spans() {
    let engine = Batcher::new(3).whole(|batch| {
        tracing::info_span!("decode_step").in_scope(|| ());
        for item in batch.take_all() {
            item.scope()
                .run(|| tracing::info_span!("detokenize").in_scope(|| ()));
            let answer = answer(item.task());
            item.finish(Ok(answer));
        }
        Ok(())
    });
    // Without it, a slow machine has spans of short waits.
    let held = HeldTime::new();
    let calls = engine.calls();
    let harness = EngineHarness::new(engine).runner(|config| {
        config.batch_wait = Some(Duration::from_secs(10));
    });
    let worker = harness.start();
    let reports = run_on(&worker, 3).await;
    assert_all_answered(&reports);
    assert_eq!(sizes(&calls), [3]);

    reports[1].tree().assert_eq(
        "
        engine.queue_wait
        engine.test-asr.process
          engine.download_input
          engine.model_acquire {dalston.in_memory=true}
          engine.process {dalston.batch.size=3, dalston.batch.index=1}
            detokenize
          engine.upload_output
        ",
    );
    let mut spans = Vec::new();
    // It ends a moment after its last task.
    while !spans.iter().any(is_batch) {
        tokio::task::yield_now().await;
        spans = worker.telemetry().spans();
    }
    let batch = spans.iter().find(|span| is_batch(span)).unwrap();
    assert_eq!(batch.parent_span_id, None);
    assert_eq!(batch.attribute("dalston.batch.size"), Some(&3_i64.into()));
    let linked: Vec<_> = batch
        .links
        .iter()
        .map(|link| link.span_context.span_id())
        .collect();
    for report in &reports {
        let process = report.span("engine.process");
        assert!(linked.contains(&process.span_id));
        assert_eq!(process.links[0].span_context.span_id(), batch.span_id);
    }
    let step = spans.iter().find(|span| span.name == "decode_step").unwrap();
    assert_eq!(step.parent_span_id, Some(batch.span_id));
    assert_eq!(reports[0].moved("dalston_engine_batch_dispatch_total"), 1.0);
    assert_eq!(reports[0].moved("dalston_engine_batch_size_sum"), 3.0);
    let snapshot = worker.telemetry().metrics().snapshot();
    let sum = |name| snapshot.sum(name, &[]);
    assert_eq!(sum("dalston_engine_task_duration_seconds_count"), 3.0);
    drop(held);
    worker.stop().await;
}

fn is_batch(span: &CollectedSpan) -> bool {
    span.name == "engine.batch"
}

#[tokio::test]
async fn time_in_the_engine_is_that_of_tasks_with_counted_audio() {
    const STEP: Duration = Duration::from_millis(60);
    let engine = Batcher::new(3).whole(|batch| {
        let mut items = batch.take_all().into_iter();
        for output in [
            Ok(json!({})),
            Err(TaskError::permanent("bad", "bad input")),
            Ok(json!({})),
        ] {
            std::thread::sleep(STEP);
            items.next().unwrap().finish(output);
        }
        Ok(())
    });
    let harness = EngineHarness::new(engine).runner(|config| {
        config.batch_wait = Some(Duration::from_secs(10));
    });
    let worker = harness.start();
    let mut running = Vec::new();
    for _ in 0..3 {
        let prepared = json!({"source_media": {"duration": 30.0}});
        let task = worker
            .task()
            .config("language", "en")
            .previous("prepare", prepared);
        running.push(worker.submit(task).await);
    }
    for task in running {
        let _ = task.report().await;
    }
    let snapshot = worker.telemetry().metrics().snapshot();
    let sum = |name| snapshot.sum(name, &[]);
    assert_eq!(sum("dalston_engine_audio_duration_seconds_sum"), 60.0);
    // The first task has a third of the first step, and the last one has a third of it, half of the
    // second and all of the third. The durations of both overlap.
    let step = STEP.as_secs_f64();
    let (inference, durations) = (
        sum("dalston_engine_inference_seconds_total"),
        sum("dalston_engine_task_duration_seconds_sum"),
    );
    assert!(inference > step * 2.1, "{inference}");
    assert!(durations - inference > step * 1.8, "{durations} {inference}");
    worker.stop().await;
}

#[tokio::test]
async fn task_without_company_goes_to_process() {
    let engine = Batcher::new(8).whole(|_| panic!("one task is no batch"));
    let reports = run(engine, 1).await;
    assert_all_answered(&reports);
    assert_eq!(
        reports[0].span("engine.process").attribute("dalston.batch.size"),
        None
    );
}

#[tokio::test]
async fn tasks_with_other_options_do_not_share_a_call() {
    // Two tasks are a full batch, so that none depends on the time.
    let engine = Batcher::new(2);
    let calls = engine.calls();
    let harness = EngineHarness::new(engine).runner(|config| {
        config.batch_wait = Some(Duration::from_secs(60));
    });
    let worker = harness.start();
    let mut running = Vec::new();
    for (number, language) in ["en", "de", "en", "de"].into_iter().enumerate() {
        let task = worker
            .task()
            .config("number", number)
            .config("language", language);
        running.push(worker.submit(task).await);
    }
    let alone = worker.submit(worker.task().config("number", 4)).await;
    let ids: Vec<String> = running.iter().map(|task| task.task_id().to_owned()).collect();
    for task in running {
        let _ = task.report().await.output();
    }
    let alone_id = alone.task_id().to_owned();
    let _ = alone.report().await.output();
    worker.stop().await;
    let mut calls = calls.lock().unwrap().clone();
    calls.sort_by_key(|call| (call.len(), call.contains(&ids[0])));
    let group = |at: [usize; 2]| at.map(|at| ids[at].clone()).to_vec();
    assert_eq!(calls, [vec![alone_id], group([1, 3]), group([0, 2])]);
}

#[tokio::test]
async fn task_is_reported_while_the_engine_goes_on() {
    let (closed, opener) = gate();
    let engine = Batcher::new(2).whole(move |batch| {
        for item in batch.take_all() {
            if number(&item) == 1 {
                closed.wait();
            }
            let answer = answer(item.task());
            item.finish(Ok(answer));
        }
        Ok(())
    });
    let rig = Rig::new();
    let act = async {
        assert!(rig.outcome("t0").await.is_ok());
        assert_eq!(rig.broker.held(), 1);
        opener.open();
        assert!(rig.outcome("t1").await.is_ok());
    };
    run_in_rig(&rig, engine, 2, act).await;
}

#[tokio::test]
async fn bad_input_fails_only_its_own_task() {
    for panics in [true, false] {
        let fails = move || match panics {
            true => panic!("a bad input"),
            false => Err(TaskError::permanent("bad_input", "a bad input")),
        };
        let engine = Batcher::new(4)
            .whole(move |batch| {
                if batch.iter().any(|item| number(item) == 2) {
                    fails()?;
                }
                finish_all(batch);
                Ok(())
            })
            .single(move |task, _| {
                if answer(task)["number"] == 2 {
                    fails()?;
                }
                Ok(answer(task))
            });
        let calls = engine.calls();
        let reports = run(engine, 4).await;
        assert_eq!(sizes(&calls), [4, 1, 1, 1, 1]);
        for (number, report) in reports.iter().enumerate() {
            match number {
                2 => assert_eq!(report.error_code(), if panics { "panic" } else { "bad_input" }),
                _ => assert_eq!(report.output(), &json!({"number": number})),
            }
        }
        assert_eq!(reports[0].moved("dalston_engine_batch_splits_total"), 1.0);
    }
}

#[tokio::test]
async fn memory_that_does_not_suffice_halves_this_and_later_batches() {
    let most = 2;
    let engine = Batcher::new(8).whole(move |batch| {
        if batch.len() > most {
            return Err(TaskError::out_of_memory("CUDA out of memory"));
        }
        finish_all(batch);
        Ok(())
    });
    let calls = engine.calls();
    let harness = EngineHarness::new(engine).runner(|config| {
        (config.max_batch, config.batch_wait) = (Some(4), Some(Duration::from_secs(10)));
    });
    let worker = harness.start();
    for _ in 0..2 {
        assert_all_answered(&run_on(&worker, 4).await);
    }
    worker.stop().await;
    assert_eq!(sizes(&calls), [4, 2, 2, 2, 2]);
}

#[tokio::test]
async fn task_that_runs_out_of_memory_alone_fails_alone() {
    let full = || TaskError::out_of_memory("CUDA out of memory");
    let engine = Batcher::new(2)
        .whole(move |batch| {
            for item in batch.take_all() {
                let result = match number(&item) {
                    1 => Err(full()),
                    _ => Ok(answer(item.task())),
                };
                item.finish(result);
            }
            Ok(())
        })
        .single(move |_, _| Err(full()));
    let reports = run(engine, 2).await;
    assert_eq!(reports[0].output(), &json!({"number": 0}));
    assert_eq!(reports[1].error_code(), "out_of_memory");
}

#[tokio::test]
async fn task_that_the_engine_forgets_fails() {
    let engine = Batcher::new(2).whole(|batch| {
        for item in batch.take_all() {
            if number(&item) == 0 {
                let answer = answer(item.task());
                item.finish(Ok(answer));
            }
        }
        Ok(())
    });
    let reports = run(engine, 2).await;
    assert_eq!(reports[0].output(), &json!({"number": 0}));
    assert_eq!(reports[1].error_code(), "batch_unfinished");
}

#[tokio::test]
async fn cancelled_task_leaves_the_batch() {
    let (closed, opener) = gate();
    let engine = Batcher::new(3).whole(move |batch| {
        closed.wait();
        while batch.len() > 2 {
            batch.drop_cancelled();
            std::thread::yield_now();
        }
        assert_eq!(batch.iter().map(number).collect::<Vec<_>>(), [0, 2]);
        finish_all(batch);
        Ok(())
    });
    let rig = Rig::new();
    let act = async {
        started(&rig, 3).await;
        rig.broker.cancel_job(&crate::rig::job_of("t1"));
        opener.open();
        for task in ["t0", "t2"] {
            assert!(rig.outcome(task).await.is_ok());
        }
    };
    run_in_rig(&rig, engine, 3, act).await;
    assert!(
        !rig.events().iter().any(|event| event.starts_with("t1 failed")),
        "{:?}",
        rig.events()
    );
}

#[tokio::test]
async fn deadline_of_one_task_is_kept_and_the_others_go_on() {
    let (closed, opener) = gate();
    let engine = Batcher::new(2).whole(move |batch| {
        closed.wait();
        finish_all(batch);
        Ok(())
    });
    let held = HeldTime::new();
    let rig = Rig::new();
    let act = async {
        started(&rig, 2).await;
        pass(Duration::from_secs(60)).await;
        let failed = rig.outcome("t0").await.unwrap_err();
        assert_eq!(failed.0, "deadline_exceeded");
        // Much longer than a thread may take after the end of its only task.
        for _ in 0..30 {
            pass(Duration::from_secs(1)).await;
        }
        opener.open();
        assert!(rig.outcome("t1").await.is_ok());
    };
    submit(&rig, 2).await;
    run_submitted(&rig, engine, 2, act).await;
    assert!(
        !rig.telemetry
            .logs()
            .iter()
            .any(|line| line.event() == "inference_thread_abandoned"),
        "the thread had a task left"
    );
    drop(held);
}

#[tokio::test]
async fn thread_that_is_stuck_with_the_last_task_is_replaced() {
    let (closed, opener) = gate();
    let engine = Batcher::new(2).whole(move |batch| {
        let mut items = batch.take_all();
        if let Some(second) = items.pop() {
            let answer = answer(second.task());
            second.finish(Ok(answer));
        }
        closed.wait();
        Ok(())
    });
    let engine = engine.single(|_, _| Ok(json!({})));
    let held = HeldTime::new();
    let rig = Rig::new();
    let act = async {
        assert!(rig.outcome("t1").await.is_ok());
        pass(Duration::from_secs(60)).await;
        assert_eq!(rig.outcome("t0").await.unwrap_err().0, "deadline_exceeded");
        for _ in 0..12 {
            pass(Duration::from_secs(1)).await;
        }
        // Another thread takes its place, and ends a task, if with an invalid answer.
        rig.submit("later").await;
        assert_eq!(rig.outcome("later").await.unwrap_err().0, "invalid_output");
    };
    run_in_rig(&rig, engine, 2, act).await;
    drop((opener, held));
}

/// What an engine does with a task, or with a batch that has it: chosen by the test.
fn act(number: u64, alone: bool) -> Result<(), TaskError> {
    match number % 8 {
        1 => panic!("a bad input"),
        2 => Err(TaskError::retryable("model_lost", "the model is gone")),
        3 if !alone => Err(TaskError::out_of_memory("CUDA out of memory")),
        4 => {
            std::thread::sleep(Duration::from_millis(number % 20));
            Ok(())
        }
        _ => Ok(()),
    }
}

/// An engine that panics, runs out of memory, fails, forgets tasks or is slow.
fn unreliable() -> Batcher {
    let whole = |batch: &mut Batch<'_, Value>| {
        if let Some(first) = batch.iter().next() {
            act(number(first) / 8, false)?;
        }
        batch.drop_cancelled();
        for item in batch.take_all() {
            let number = number(&item);
            match number % 16 {
                15 => drop(item),
                _ => {
                    let result = act(number, false).map(|()| answer(item.task()));
                    item.finish(result);
                }
            }
        }
        Ok(())
    };
    Batcher::new(4).whole(whole).single(|task, cx| {
        cx.check_cancelled()?;
        act(answer(task)["number"].as_u64().unwrap(), true)?;
        Ok(answer(task))
    })
}

#[tokio::test]
async fn every_task_of_an_unreliable_engine_ends_exactly_once() {
    let mut seed = 0x2545_f491_4f6c_dd1d_u64;
    let mut next = move |below: u64| {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed % below
    };
    for round in 0..20 {
        let rig = Rig::new();
        let tasks = 24;
        for task in 0..tasks {
            let (number, is_late) = (next(256), next(6) == 0);
            let timeout = Duration::from_millis(if is_late { next(60) } else { 60_000 });
            rig.submit_with(&format!("t{task}"), |request, metadata, queued| {
                request.config.insert("number".to_owned(), number.into());
                request.config.insert("language".to_owned(), (number % 2).into());
                metadata.stage = "count".to_owned();
                queued.timeout_at(Timestamp::now() + timeout)
            })
            .await;
        }
        let mut cancelled = Vec::new();
        // Several workers, each of which is told to end while it works.
        while rig.broker.waiting() > 0 {
            let mut config = RunnerConfig::default();
            config.batch_wait = Some(Duration::from_millis(next(3)));
            config.slots = usize::try_from(1 + next(2)).unwrap();
            config.drain_timeout = Duration::from_millis(next(30));
            let (task, pause) = (next(tasks), Duration::from_millis(next(60)));
            cancelled.push(task);
            let act = async {
                tokio::time::sleep(pause / 2).await;
                rig.broker.cancel_job(&crate::rig::job_of(&format!("t{task}")));
                tokio::time::sleep(pause / 2).await;
            };
            let runner = rig.runner(unreliable()).config(config).temp_root(rig.temp.path());
            rig.run(runner, act).await.1.unwrap();
        }
        assert_eq!(rig.broker.held(), 0);
        let events = rig.events();
        for task in 0..tasks {
            let outcomes = events.iter().filter(|event| {
                let what = event.strip_prefix(&format!("t{task} "));
                what.is_some_and(|what| what != "started")
            });
            match outcomes.count() {
                1 => {}
                // It was not started.
                0 if cancelled.contains(&task) => {}
                count => panic!("round {round}: t{task} ended {count} times: {events:#?}"),
            }
        }
    }
}

/// Queues tasks, of which the first one has a deadline of a minute.
async fn submit(rig: &Rig, tasks: usize) {
    for number in 0..tasks {
        rig.submit_with(&format!("t{number}"), |request, metadata, task| {
            request.config.insert("number".to_owned(), number.into());
            request.config.insert("language".to_owned(), "en".into());
            metadata.stage = "count".to_owned();
            match number {
                0 => task.timeout_at(Timestamp::now() + Duration::from_secs(60)),
                _ => task,
            }
        })
        .await;
    }
}

/// Runs so many tasks in one batch until `act` is done.
async fn run_in_rig(rig: &Rig, engine: Batcher, tasks: usize, act: impl Future<Output = ()>) {
    submit(rig, tasks).await;
    run_submitted(rig, engine, tasks, act).await;
}

async fn run_submitted(rig: &Rig, engine: Batcher, tasks: usize, act: impl Future<Output = ()>) {
    let mut config = RunnerConfig::default();
    (config.max_batch, config.batch_wait) = (Some(tasks), Some(Duration::from_secs(10)));
    let runner = rig.runner(engine).config(config).temp_root(rig.temp.path());
    rig.run(runner, act).await.1.unwrap();
}

/// Waits until so many tasks were started.
async fn started(rig: &Rig, tasks: usize) {
    let is_start = |event: &String| event.ends_with(" started");
    while rig.events().iter().filter(|event| is_start(event)).count() < tasks {
        tokio::task::yield_now().await;
    }
}
