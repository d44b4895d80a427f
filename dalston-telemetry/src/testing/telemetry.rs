use std::future::Future;

use tracing::dispatcher::{self, Dispatch};
use tracing::instrument::{WithDispatch, WithSubscriber};
use tracing_subscriber::layer::SubscriberExt;

use super::{LogLine, SpanTree};
use crate::env::Env;
use crate::logs::{LogBuffer, LogFormat, LogWriter};
use crate::metrics::{MetricChange, Metrics, MetricsSnapshot};
use crate::setup::builder::TelemetryBuilder;
use crate::setup::telemetry::{Telemetry, TelemetryHandle};
use crate::traces::collector::{CollectedSpan, SpanCollector};

/// Telemetry that keeps everything in memory and belongs to one test.
///
/// It is set up like that of a program, from an empty environment, but reaches no further than
/// [`in_scope`](Self::in_scope) and [`attach`](Self::attach).
///
/// ```
/// use dalston_telemetry::testing::TestTelemetry;
/// use dalston_telemetry::tracing::{error, info_span};
///
/// fn handle_job() {
///     let _job = info_span!("orchestrator.handle_job", dalston.job_id = "j-1").entered();
///     info_span!("orchestrator.build_dag").in_scope(|| {});
///     info_span!("orchestrator.schedule_task").in_scope(|| error!("queue is full"));
/// }
///
/// let telemetry = TestTelemetry::new();
/// telemetry.in_scope(handle_job);
///
/// telemetry.tree().assert_eq(
///     "
///     orchestrator.handle_job {dalston.job_id=j-1}
///       orchestrator.build_dag
///       orchestrator.schedule_task ! \"queue is full\"
///     ",
/// );
/// ```
#[derive(Debug)]
pub struct TestTelemetry {
    telemetry: Telemetry,
    dispatch: Dispatch,
    spans: SpanCollector,
    at_start: MetricsSnapshot,
    logs: LogBuffer,
}

impl TestTelemetry {
    /// Telemetry of a service called `test` in an empty environment.
    #[must_use]
    pub fn new() -> Self {
        Self::with(|builder| builder)
    }

    /// The same with settings of your own, which may also bring an environment.
    ///
    /// # Panics
    ///
    /// If the settings are refused, as [`TelemetryBuilder::into_layer`] would.
    #[must_use]
    #[track_caller]
    pub fn with(configure: impl FnOnce(TelemetryBuilder) -> TelemetryBuilder) -> Self {
        let spans = SpanCollector::new();
        let (writer, logs) = LogWriter::buffer();
        let builder = configure(Telemetry::builder("test").env(Env::default()))
            .span_collector(spans.clone())
            .log_format(LogFormat::Json)
            .log_writer(writer);
        let (layer, telemetry) = match builder.into_layer() {
            Ok(made) => made,
            Err(error) => panic!("the settings of the test's telemetry are refused: {error}"),
        };
        let dispatch = Dispatch::new(tracing_subscriber::registry().with(layer));
        let at_start = telemetry.metrics().snapshot();
        Self {
            telemetry,
            dispatch,
            spans,
            at_start,
            logs,
        }
    }

    /// Runs `work` with this telemetry as the current one of the thread.
    pub fn in_scope<R>(&self, work: impl FnOnce() -> R) -> R {
        dispatcher::with_default(&self.dispatch, work)
    }

    /// Polls `work` with this telemetry as the current one, on any thread.
    ///
    /// Tasks and threads that `work` spawns are not included: attach them as well, or pass them
    /// [`dispatch`](Self::dispatch).
    pub fn attach<F: Future>(&self, work: F) -> WithDispatch<F> {
        work.with_subscriber(self.dispatch.clone())
    }

    /// The subscriber, for code that spawns threads of its own.
    #[must_use]
    pub fn dispatch(&self) -> &Dispatch {
        &self.dispatch
    }

    /// What a library is given so that it can report.
    #[must_use]
    pub fn handle(&self) -> TelemetryHandle {
        self.telemetry.handle()
    }

    /// The telemetry itself, to flush or to change its log filter.
    pub fn telemetry(&self) -> &Telemetry {
        &self.telemetry
    }

    /// The metrics, empty at first: register on them what the test is about.
    #[must_use]
    pub fn metrics(&self) -> &Metrics {
        self.telemetry.metrics()
    }

    /// The lines that were logged, oldest first; without a filter of its own everything from `INFO`
    /// up.
    ///
    /// # Panics
    ///
    /// If a line is not a JSON object, which is what the test's telemetry writes.
    #[must_use]
    #[track_caller]
    pub fn logs(&self) -> Vec<LogLine> {
        self.logs
            .lines()
            .iter()
            .map(|line| LogLine::parse(line))
            .collect()
    }

    /// The series that have moved since the beginning, in alphabetical order; of histograms count
    /// and sum.
    #[must_use]
    pub fn moved(&self) -> Vec<MetricChange> {
        self.metrics().snapshot().diff(&self.at_start)
    }

    /// The spans that have ended, in the order in which they did.
    #[must_use]
    pub fn spans(&self) -> Vec<CollectedSpan> {
        self.spans.spans()
    }

    /// The only span of that name.
    ///
    /// # Panics
    ///
    /// If none or more than one has ended, with the tree of those that have.
    #[must_use]
    #[track_caller]
    pub fn span(&self, name: &str) -> CollectedSpan {
        let mut named = self.spans();
        named.retain(|span| span.name == name);
        let count = named.len();
        match (named.pop(), count) {
            (Some(span), 1) => span,
            _ => panic!(
                "{count} spans are called {name:?}, not one; there are\n{}",
                self.tree().with_attributes([])
            ),
        }
    }

    /// The spans that have ended, as a tree.
    #[must_use]
    pub fn tree(&self) -> SpanTree {
        SpanTree::of(&self.spans())
    }

    /// The store of finished spans.
    #[must_use]
    pub fn collector(&self) -> &SpanCollector {
        &self.spans
    }
}

impl Default for TestTelemetry {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use tracing::{Instrument, info_span};

    use super::*;

    #[tokio::test]
    async fn spans_are_seen_across_awaits_and_only_inside_the_scope() {
        let telemetry = TestTelemetry::new();
        let work = async {
            tokio::task::yield_now().await;
            info_span!("inner").in_scope(|| {});
        };
        telemetry
            .attach(work.instrument(telemetry.in_scope(|| info_span!("outer"))))
            .await;
        info_span!("outside").in_scope(|| {});
        telemetry.tree().assert_eq("outer\n  inner");
    }

    #[test]
    fn two_tests_do_not_see_each_other() {
        let (one, other) = (TestTelemetry::new(), TestTelemetry::new());
        one.in_scope(|| info_span!("one").in_scope(|| {}));
        other.in_scope(|| info_span!("other").in_scope(|| {}));
        assert_eq!(one.tree().names(), ["one"]);
        assert_eq!(other.tree().names(), ["other"]);
        assert_ne!(one.span("one").trace_id, other.span("other").trace_id);
    }

    #[test]
    fn lines_carry_the_ids_of_the_span_around_them() {
        let telemetry = TestTelemetry::new();
        telemetry.in_scope(|| {
            info_span!("job", dalston.job_id = "j-1").in_scope(|| tracing::warn!(depth = 7, "queue_is_long"));
            tracing::debug!("too_detailed");
        });
        let span = telemetry.span("job");
        let lines = telemetry.logs();
        let [line] = lines.as_slice() else {
            panic!("{lines:?}")
        };
        assert_eq!((line.level(), line.event()), ("warning", "queue_is_long"));
        assert_eq!(line.field("depth"), Some(&7.into()));
        assert_eq!(line.field("trace_id"), Some(&span.trace_id.to_string().into()));
        assert_eq!(line.field("span_id"), Some(&span.span_id.to_string().into()));
    }

    #[test]
    fn what_moved_is_told_apart_from_what_is_there() {
        use crate::metrics::Status;
        use crate::services::engine::{EngineLabels, EngineMetrics};

        let telemetry = TestTelemetry::new();
        let engine = EngineMetrics::register(telemetry.metrics(), &EngineLabels::new("my-asr", "transcribe"));
        engine.model("tiny").task_processed(Status::Success);
        let moved: Vec<String> = telemetry.moved().iter().map(ToString::to_string).collect();
        assert_eq!(moved.len(), 1, "{moved:?}");
        assert!(
            moved[0].starts_with("dalston_engine_tasks_processed_total{"),
            "{moved:?}"
        );
    }

    #[test]
    #[should_panic(expected = "2 spans are called \"twice\", not one; there are\ntwice\ntwice\n")]
    fn a_span_that_is_not_the_only_one_is_not_given() {
        let telemetry = TestTelemetry::new();
        telemetry.in_scope(|| (0..2).for_each(|_| info_span!("twice").in_scope(|| {})));
        let _ = telemetry.span("twice");
    }
}
