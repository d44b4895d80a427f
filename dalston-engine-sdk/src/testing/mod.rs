//! Test an engine as it runs in a deployment: [`EngineHarness`]. Test a broker: [`broker_suite`].
//! (Feature `testing`.)
//!
//! The real runner processes the task, with a queue and a storage in memory. The report has the
//! answer, the output files, the spans, the log lines and the metrics that moved. Nothing global is
//! touched, so tests run in parallel.

pub mod broker_suite;
mod files;
mod harness;
mod moved;
mod report;
mod running;
#[cfg(feature = "realtime")]
mod session;
mod worker;

pub use self::harness::EngineHarness;
pub use self::moved::Moved;
pub use self::report::TaskReport;
pub use self::running::RunningTask;
#[cfg(feature = "realtime")]
pub use self::session::RealtimeSession;
pub use self::worker::Worker;

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::{Value, json};

    use super::*;
    use crate::context::{OutputFile, TaskContext};
    use crate::engine::{Engine, EngineInfo};
    use crate::error::TaskError;
    use crate::load::LoadContext;
    use crate::model_id::ModelId;
    use crate::task::TaskRequest;

    /// Answers with the size of its input and the name of its model, and fails if the configuration
    /// says so.
    struct Sizer;

    impl Engine for Sizer {
        type Model = String;
        type Output = Value;

        fn info(&self) -> EngineInfo {
            EngineInfo::new("sizer", "1.0.0").stage("measure".parse().unwrap())
        }

        fn load(&self, model: &ModelId, _cx: &LoadContext) -> Result<String, TaskError> {
            Ok(model.to_string())
        }

        fn process(
            &self,
            model: &mut String,
            task: &TaskRequest,
            cx: &TaskContext,
        ) -> Result<Value, TaskError> {
            if let Some(text) = task.config().get("write").and_then(Value::as_str) {
                let path = cx.temp_dir().join("written.txt");
                std::fs::write(&path, text)?;
                cx.add_output_file(OutputFile::new("notes", "text", path))?;
            }
            if let Some(number) = task.config().get("log") {
                tracing::info!(number = number.as_i64(), "sized");
            }
            if let Some(millis) = task.config().get("sleep_ms").and_then(Value::as_u64) {
                cx.block_on(tokio::time::sleep(Duration::from_millis(millis)))?;
            }
            if task.config().contains_key("wait") {
                cx.block_on(std::future::pending::<()>())?;
            }
            if let Some(reason) = task.config().get("fail") {
                return Err(TaskError::permanent("told_to", reason.to_string()));
            }
            let input = task.inputs().first().map(|input| input.path().to_owned());
            let size = input
                .map(std::fs::metadata)
                .transpose()?
                .map_or(0, |file| file.len());
            Ok(json!({ "size": size, "model": model }))
        }
    }

    #[tokio::test]
    async fn the_second_task_of_a_worker_finds_its_model_loaded() {
        let worker = EngineHarness::new(Sizer)
            .input_text("four")
            .task(|task| task.model("a"))
            .start();
        let cold = worker.run(worker.task()).await;
        let warm = worker.run(worker.task()).await;
        assert_eq!(warm.output(), &json!({ "size": 4, "model": "a" }));
        assert_eq!(
            (cold.output(), warm.task_id() == cold.task_id()),
            (warm.output(), false)
        );
        let names = |report: &TaskReport| report.tree().names().contains(&"engine.model_load");
        assert_eq!((names(&cold), names(&warm)), (true, false));
        assert_eq!(cold.moved("dalston_engine_model_load_seconds_count"), 1.0);
        assert_eq!(warm.moved("dalston_engine_model_load_seconds_count"), 0.0);
        worker.stop().await;
    }

    #[test]
    fn output_files_are_found_by_both_of_their_names() {
        let report = EngineHarness::new(Sizer)
            .config("write", "one two")
            .run_blocking();
        assert_eq!(report.artifact("notes"), b"one two");
        assert_eq!(report.artifact("notes.txt"), b"one two");
        assert_eq!(report.response().produced_artifacts[0].kind, "text");
    }

    #[test]
    #[should_panic(expected = "the task has no output file \"note\", only [\"notes.txt\"]")]
    fn missing_output_file_panics_with_names_of_others() {
        let report = EngineHarness::new(Sizer)
            .config("write", "one two")
            .run_blocking();
        let _ = report.artifact("note");
    }

    #[tokio::test]
    async fn log_lines_of_a_task_are_told_from_those_of_others() {
        let worker = EngineHarness::new(Sizer).start();
        let (one, other) = (worker.task().config("log", 1), worker.task().config("log", 2));
        let (one, other) = (worker.run(one).await, worker.run(other).await);
        assert_eq!(one.log("sized").field("number"), Some(&json!(1)));
        assert_eq!(other.log("sized").field("number"), Some(&json!(2)));
        assert_eq!(other.log("sized").level(), "info");
        worker.stop().await;
    }

    #[tokio::test]
    #[should_panic(expected = "there is not exactly one log line \"sized\", but [")]
    async fn missing_log_line_panics() {
        let report = EngineHarness::new(Sizer).run().await;
        let _ = report.log("sized");
    }

    #[test]
    fn block_on_works_in_the_harness() {
        let report = EngineHarness::new(Sizer).config("sleep_ms", 1).run_blocking();
        assert_eq!(report.output()["size"], 0);
    }

    #[tokio::test]
    async fn running_task_can_be_cancelled() {
        let worker = EngineHarness::new(Sizer).start();
        let running = worker.submit(worker.task().config("wait", true)).await;
        running.started().await;
        running.cancel();
        let report = tokio::time::timeout(Duration::from_secs(20), running.report()).await;
        assert_eq!(report.unwrap().error_code(), "cancelled");
        let next = worker.run(worker.task()).await;
        assert_eq!(next.output()["size"], 0);
        worker.stop().await;
    }

    #[tokio::test]
    #[should_panic(expected = "the runner stopped before the task was started: it was told to stop")]
    async fn start_in_a_stopped_runner_is_not_waited_for() {
        let worker = EngineHarness::new(Sizer).start();
        worker.stop.send_replace(true);
        let running = worker.submit(worker.task()).await;
        let _ = tokio::time::timeout(Duration::from_secs(20), running.started()).await;
    }

    #[tokio::test]
    async fn moved_metrics_show_their_series_and_labels() {
        let worker = EngineHarness::new(Sizer).start();
        let report = worker.run(worker.task().model("a")).await;
        let tasks = report.moved("dalston_engine_tasks_processed_total");
        assert_eq!(tasks, 1.0);
        assert_eq!(tasks.clone().with("model", "a").with("status", "success"), 1.0);
        assert_eq!(tasks.clone().with("status", "failure"), 0.0);
        assert_eq!(tasks.series().len(), 1);
        let shown = format!("{tasks:?}");
        assert!(
            shown.starts_with("1.0: dalston_engine_tasks_processed_total{"),
            "{shown}"
        );
        assert!(
            shown.contains("model=\"a\"") && shown.ends_with("}: 0 -> 1"),
            "{shown}"
        );
        assert_eq!(format!("{:?}", report.moved("no_such_metric")), "0.0");
        worker.stop().await;
    }

    #[tokio::test]
    #[should_panic(expected = "the runner stopped before the task was done: it was told to stop")]
    async fn a_task_of_a_stopped_runner_is_not_waited_for() {
        let worker = EngineHarness::new(Sizer).start();
        worker.stop.send_replace(true);
        let _ = tokio::time::timeout(Duration::from_secs(20), worker.run(worker.task())).await;
    }

    #[tokio::test]
    #[should_panic(expected = "the runner stopped before the task was done: it panicked")]
    async fn a_task_of_an_aborted_runner_is_not_waited_for() {
        let worker = EngineHarness::new(Sizer).start();
        worker.running.abort();
        let _ = tokio::time::timeout(Duration::from_secs(20), worker.run(worker.task())).await;
    }

    #[test]
    fn a_report_prints_the_error_and_the_waterfall() {
        let report = EngineHarness::new(Sizer).config("fail", 7).run_blocking();
        assert_eq!((report.error_code(), report.error()), ("told_to", "7"));
        let text = report.to_string();
        assert!(
            text.starts_with("failed (told_to, permanent): 7\ntrace "),
            "{text}"
        );
        assert!(text.contains("engine.sizer.process"), "{text}");
    }

    #[test]
    #[should_panic(expected = "the task failed: failed (told_to, permanent): \"no\"")]
    fn the_output_of_a_failed_task_panics() {
        let _ = EngineHarness::new(Sizer)
            .config("fail", "no")
            .run_blocking()
            .output();
    }
}
