//! Test an engine as it runs in a deployment: [`EngineHarness`]. Test a broker: [`broker_suite`].
//! (Feature `testing`.)
//!
//! The real runner processes the task, with a queue and a storage in memory. The report has the
//! answer, the spans and the metrics that moved. Nothing global is touched, so tests run in
//! parallel.

pub mod broker_suite;
mod files;
mod harness;
mod report;
mod worker;

pub use self::harness::EngineHarness;
pub use self::report::TaskReport;
pub use self::worker::Worker;

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use serde_json::{Value, json};

    use super::*;
    use crate::context::TaskContext;
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
            _cx: &TaskContext,
        ) -> Result<Value, TaskError> {
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
