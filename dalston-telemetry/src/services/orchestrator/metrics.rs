use std::fmt;
use std::time::Duration;

use crate::metrics::{
    BoundedFamily, Counter, DenseFamily, Exemplar, Gauge, Histogram, Label, LabelSet, Metrics, OTHER,
    OpenLabel, Status, Unit, buckets,
};

crate::label! {
    /// The end of a job.
    pub enum JobStatus = "status" {
        Completed => "completed",
        Failed => "failed",
        Cancelled => "cancelled",
    }
}

crate::label! {
    /// The way in which the platform runs an engine.
    pub enum ExecutionProfile = "execution_profile" {
        Container => "container",
        Venv => "venv",
        /// In the process of the orchestrator.
        InProcess => "inproc",
        /// The engine is not in the catalogue.
        Unknown => "unknown",
    }
}

crate::label! {
    /// The type of an event of the platform.
    pub enum EventType = "event_type" {
        JobCreated => "job.created",
        JobCompleted => "job.completed",
        JobFailed => "job.failed",
        JobCancelled => "job.cancelled",
        JobCancelRequested => "job.cancel_requested",
        TaskStarted => "task.started",
        TaskCompleted => "task.completed",
        TaskFailed => "task.failed",
        TaskWaitTimeout => "task.wait_timeout",
        EngineNeeded => "engine.needed",
        /// Another type.
        Other => "__other__",
    }
}

impl EventType {
    const ALL: [Self; 11] = [
        Self::JobCreated,
        Self::JobCompleted,
        Self::JobFailed,
        Self::JobCancelled,
        Self::JobCancelRequested,
        Self::TaskStarted,
        Self::TaskCompleted,
        Self::TaskFailed,
        Self::TaskWaitTimeout,
        Self::EngineNeeded,
        Self::Other,
    ];

    /// The type of this name.
    #[must_use]
    pub fn of(name: &str) -> Self {
        let known = Self::ALL.into_iter().find(|known| known.as_str() == name);
        known.unwrap_or(Self::Other)
    }
}

crate::label! {
    /// The reason for which an event could not be handled.
    pub enum FailureReason = "failure_reason" {
        InvalidPayloadJson => "invalid_payload_json",
        InvalidEventSchema => "invalid_event_schema",
        UnknownEventType => "unknown_event_type",
        HandlerException => "handler_exception",
        DispatchError => "dispatch_error",
    }
}

/// The decision about an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventDecision {
    /// The event was handled: `decision="ack",failure_reason="none"`.
    Ack,
    /// The event will be handled again: `decision="retry"`.
    Retry(FailureReason),
    /// The event went to the dead letters: `decision="dlq"`.
    DeadLetter(FailureReason),
}

/// The labels of a decision, of which only the combinations that occur have series.
#[derive(Clone, Copy)]
struct Decided {
    decision: EventDecision,
    event: EventType,
}

impl LabelSet for Decided {
    const CARDINALITY: usize = (1 + 2 * FailureReason::CARDINALITY) * EventType::CARDINALITY;

    fn position(self) -> usize {
        let decision = match self.decision {
            EventDecision::Ack => 0,
            EventDecision::Retry(reason) => 1 + reason.position(),
            EventDecision::DeadLetter(reason) => 1 + FailureReason::CARDINALITY + reason.position(),
        };
        decision * EventType::CARDINALITY + self.event.position()
    }

    fn labels_at(position: usize, each: &mut dyn FnMut(&'static str, &'static str)) {
        let (decision, event) = (
            position / EventType::CARDINALITY,
            position % EventType::CARDINALITY,
        );
        let (decision, reason) = match decision.checked_sub(1) {
            None => ("ack", "none"),
            Some(reason) if reason < FailureReason::CARDINALITY => ("retry", FailureReason::VALUES[reason]),
            Some(reason) => ("dlq", FailureReason::VALUES[reason - FailureReason::CARDINALITY]),
        };
        each("decision", decision);
        each(FailureReason::NAME, reason);
        each(EventType::NAME, EventType::VALUES[event]);
    }
}

crate::label! {
    /// The result of a scan for stuck tasks.
    pub enum ScanStatus = "status" {
        Success => "success",
        Error => "error",
        /// Another orchestrator scans.
        SkippedNotLeader => "skipped_not_leader",
    }
}

/// The metrics of the orchestrator. Cheap to clone.
///
/// | What | PromQL |
/// |---|---|
/// | Jobs completed per hour | `sum(increase(dalston_orchestrator_jobs_total{status="completed"}[1h]))` |
/// | Share of failed jobs | `sum(rate(dalston_orchestrator_jobs_total{status="failed"}[1h])) / sum(rate(dalston_orchestrator_jobs_total[1h]))` |
/// | 95th percentile of the duration of jobs | `histogram_quantile(0.95, sum by (le) (rate(dalston_orchestrator_job_duration_seconds_bucket[1h])))` |
/// | Hours of audio per hour | `sum(rate(dalston_orchestrator_audio_duration_seconds_sum[1h]))` |
/// | Engines that receive tasks faster than they complete them | `sum by (engine_id) (rate(dalston_orchestrator_tasks_scheduled_total[30m])) > sum by (engine_id) (rate(dalston_orchestrator_tasks_completed_total[30m]))` |
/// | Events that went to the dead letters | `sum by (event_type, failure_reason) (increase(dalston_orchestrator_event_decisions_total{decision="dlq",event_type!="engine.needed"}[1h]))` |
/// | No scan for stuck tasks | `sum(increase(dalston_orchestrator_scanner_scans_total{status="success"}[15m])) == 0` |
#[derive(Clone)]
pub struct OrchestratorMetrics {
    jobs: DenseFamily<JobStatus, Counter>,
    jobs_in_progress: DenseFamily<(), Gauge>,
    job_duration: BoundedFamily<3, (), Histogram>,
    audio_duration: BoundedFamily<2, (), Histogram>,
    tasks_scheduled: BoundedFamily<3, (), Counter>,
    tasks_completed: BoundedFamily<2, Status, Counter>,
    events: DenseFamily<EventType, Counter>,
    decisions: DenseFamily<Decided, Counter>,
    dag_build: DenseFamily<(), Histogram>,
    timed_out: BoundedFamily<1, (), Counter>,
    scans: DenseFamily<ScanStatus, Counter>,
}

impl OrchestratorMetrics {
    /// The handles of this registry. The first call registers them.
    #[must_use]
    pub fn register(metrics: &Metrics) -> Self {
        let room = metrics.combinations();
        let engine = &metrics.label("engine_id");
        let model = &metrics.label("model");
        let stage = &metrics.label("stage");
        metrics.set(|registry| {
            let stage_count = &OpenLabel::closed("stage_count", &STAGE_COUNTS);
            let profile = &OpenLabel::of::<ExecutionProfile>();
            let mut registry = registry.with_prefix("dalston_orchestrator");
            let job_duration = || Histogram::with_exemplars(buckets::JOB_DURATION);
            let audio_duration = || Histogram::new(buckets::AUDIO_DURATION);
            Self {
                jobs: registry.keep("jobs", "Jobs that have ended, by status", DenseFamily::default()),
                jobs_in_progress: registry.keep(
                    "jobs_in_progress",
                    "Jobs that were started and have not ended",
                    DenseFamily::default(),
                ),
                job_duration: registry.keep_with_unit(
                    "job_duration",
                    "Time from the creation of a job to its end",
                    Unit::Seconds,
                    BoundedFamily::with_room_for(room, [engine, model, stage_count], job_duration),
                ),
                audio_duration: registry.keep_with_unit(
                    "audio_duration",
                    "Length of the audio of a job",
                    Unit::Seconds,
                    BoundedFamily::with_room_for(room, [engine, model], audio_duration),
                ),
                tasks_scheduled: registry.keep(
                    "tasks_scheduled",
                    "Queued tasks",
                    BoundedFamily::with_room_for(room, [engine, stage, profile], Counter::default),
                ),
                tasks_completed: registry.keep(
                    "tasks_completed",
                    "Tasks that an engine has completed, by status",
                    BoundedFamily::with_room_for(room, [engine, profile], Counter::default),
                ),
                events: registry.keep(
                    "events_processed",
                    "Events that were read, by type",
                    DenseFamily::default(),
                ),
                decisions: registry.keep(
                    "event_decisions",
                    "Decisions about events",
                    DenseFamily::default(),
                ),
                dag_build: registry.keep_with_unit(
                    "dag_build_duration",
                    "Time to plan the tasks of a job",
                    Unit::Seconds,
                    DenseFamily::new(|| Histogram::with_exemplars(buckets::DAG_BUILD)),
                ),
                timed_out: registry.keep(
                    "tasks_timed_out",
                    "Tasks that failed because they did not end in time",
                    BoundedFamily::new([stage], Counter::default),
                ),
                scans: registry.keep(
                    "scanner_scans",
                    "Scans for stuck tasks, by result",
                    DenseFamily::default(),
                ),
            }
        })
    }

    /// The metrics of jobs for this model of an engine, with this number of stages. Numbers above
    /// 32 share [`OTHER`].
    #[must_use]
    pub fn jobs_of(&self, engine_id: &str, model: &str, stage_count: usize) -> JobMetrics {
        let stages = match stage_count {
            0 => OTHER,
            count => STAGE_COUNTS.get(count - 1).copied().unwrap_or(OTHER),
        };
        JobMetrics {
            ended: self.jobs.clone(),
            duration: self.job_duration.with([engine_id, model, stages]),
            audio_duration: self.audio_duration.with([engine_id, model]),
        }
    }

    /// Counts a job that ended before an engine was selected: `dalston_orchestrator_jobs_total`.
    pub fn job_ended(&self, status: JobStatus) {
        self.jobs.with(status).inc_in(Exemplar::current());
    }

    /// Sets the number of jobs that were started and have not ended:
    /// `dalston_orchestrator_jobs_in_progress`. Count them in the database: a number that follows
    /// starts and ends is wrong after a restart.
    pub fn jobs_in_progress(&self, jobs: usize) {
        let jobs = i64::try_from(jobs).unwrap_or(i64::MAX);
        self.jobs_in_progress.with(()).set(jobs);
    }

    /// The metrics of the tasks of an engine, whose counters exist at zero after the call.
    #[must_use]
    pub fn engine(&self, engine_id: &str, profile: ExecutionProfile) -> ScheduleMetrics {
        ScheduleMetrics {
            scheduled: self.tasks_scheduled.clone(),
            completed: self.tasks_completed.with([engine_id, profile.as_str()]),
            engine_id: engine_id.to_owned(),
            profile,
        }
    }

    /// The metrics of a stage, whose counter exists at zero after the call.
    #[must_use]
    pub fn stage(&self, stage: &str) -> StageMetrics {
        StageMetrics {
            timed_out: self.timed_out.with([without_channel(stage)]),
        }
    }

    /// Counts an event and the decision about it: `dalston_orchestrator_events_processed_total` and
    /// `dalston_orchestrator_event_decisions_total`.
    pub fn event(&self, event: EventType, decision: EventDecision) {
        let exemplar = Exemplar::current();
        self.events.with(event).inc_in(exemplar);
        self.decisions.with(Decided { decision, event }).inc_in(exemplar);
    }

    /// Records the duration of the planning of a job's tasks:
    /// `dalston_orchestrator_dag_build_duration_seconds`.
    pub fn dag_built(&self, time: Duration) {
        self.dag_build
            .with(())
            .observe_duration_in(time, Exemplar::current());
    }

    /// Counts a scan for stuck tasks: `dalston_orchestrator_scanner_scans_total`.
    pub fn scanned(&self, status: ScanStatus) {
        self.scans.with(status).inc();
    }
}

impl fmt::Debug for OrchestratorMetrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OrchestratorMetrics").finish_non_exhaustive()
    }
}

/// The metrics of jobs of a kind. Returned by [`OrchestratorMetrics::jobs_of`]; cheap to clone.
#[derive(Clone, Debug)]
pub struct JobMetrics {
    ended: DenseFamily<JobStatus, Counter>,
    duration: DenseFamily<(), Histogram>,
    audio_duration: DenseFamily<(), Histogram>,
}

impl JobMetrics {
    /// Records a job that has ended, with the time since its creation:
    /// `dalston_orchestrator_jobs_total` and `dalston_orchestrator_job_duration_seconds`.
    pub fn ended(&self, status: JobStatus, time: Duration) {
        let exemplar = Exemplar::current();
        self.ended.with(status).inc_in(exemplar);
        self.duration.with(()).observe_duration_in(time, exemplar);
    }

    /// Records the length of a job's audio: `dalston_orchestrator_audio_duration_seconds`.
    pub fn audio_duration(&self, length: Duration) {
        self.audio_duration.with(()).observe_duration(length);
    }
}

/// The metrics of the tasks of an engine. Returned by [`OrchestratorMetrics::engine`]; cheap to
/// clone.
#[derive(Clone, Debug)]
pub struct ScheduleMetrics {
    scheduled: BoundedFamily<3, (), Counter>,
    completed: DenseFamily<Status, Counter>,
    engine_id: String,
    profile: ExecutionProfile,
}

impl ScheduleMetrics {
    /// Counts a queued task: `dalston_orchestrator_tasks_scheduled_total`. The suffix of a channel
    /// (`transcribe_ch0`) is left out.
    pub fn task_scheduled(&self, stage: &str) {
        let labels = [&*self.engine_id, without_channel(stage), self.profile.as_str()];
        self.scheduled.with(labels).with(()).inc_in(Exemplar::current());
    }

    /// Counts a task that the engine has completed: `dalston_orchestrator_tasks_completed_total`.
    pub fn task_completed(&self, status: Status) {
        self.completed.with(status).inc_in(Exemplar::current());
    }
}

/// The metrics of a stage. Returned by [`OrchestratorMetrics::stage`]; cheap to clone.
#[derive(Clone, Debug)]
pub struct StageMetrics {
    timed_out: DenseFamily<(), Counter>,
}

impl StageMetrics {
    /// Counts a task that failed because it did not end in time:
    /// `dalston_orchestrator_tasks_timed_out_total`.
    pub fn task_timed_out(&self) {
        self.timed_out.with(()).inc_in(Exemplar::current());
    }
}

const STAGE_COUNTS: [&str; 32] = [
    "1", "2", "3", "4", "5", "6", "7", "8", "9", "10", "11", "12", "13", "14", "15", "16", "17", "18", "19",
    "20", "21", "22", "23", "24", "25", "26", "27", "28", "29", "30", "31", "32",
];

/// The stage without the suffix of a channel: `transcribe` for `transcribe_ch0`.
fn without_channel(stage: &str) -> &str {
    match stage.rsplit_once("_ch") {
        Some((stage, channel)) if !channel.is_empty() && channel.bytes().all(|c| c.is_ascii_digit()) => stage,
        _ => stage,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_with_its_tasks_changes_exactly_its_series() {
        let metrics = Metrics::new();
        let orchestrator = OrchestratorMetrics::register(&metrics);
        let engine = orchestrator.engine("asr", ExecutionProfile::Container);
        let jobs = orchestrator.jobs_of("asr", "tiny", 4);
        let stage = orchestrator.stage("transcribe_ch1");
        let before = metrics.snapshot();
        orchestrator.jobs_in_progress(3);
        orchestrator.event(EventType::of("job.created"), EventDecision::Ack);
        orchestrator.event(
            EventType::of("job.dreamt"),
            EventDecision::DeadLetter(FailureReason::UnknownEventType),
        );
        orchestrator.dag_built(Duration::from_millis(4));
        engine.task_scheduled("transcribe_ch0");
        engine.task_completed(Status::Failure);
        stage.task_timed_out();
        orchestrator.scanned(ScanStatus::SkippedNotLeader);
        jobs.audio_duration(Duration::from_secs(60));
        jobs.ended(JobStatus::Failed, Duration::from_secs(90));
        orchestrator.job_ended(JobStatus::Cancelled);

        let moved: Vec<_> = metrics
            .snapshot()
            .diff(&before)
            .iter()
            .map(|change| change.to_string().replace("dalston_orchestrator_", ""))
            .collect();
        assert_eq!(
            moved,
            [
                r#"audio_duration_seconds_count{engine_id="asr",model="tiny"}: 0 -> 1"#,
                r#"audio_duration_seconds_sum{engine_id="asr",model="tiny"}: 0 -> 60"#,
                "dag_build_duration_seconds_count: 0 -> 1",
                "dag_build_duration_seconds_sum: 0 -> 0.004",
                r#"event_decisions_total{decision="ack",event_type="job.created",failure_reason="none"}: 0 -> 1"#,
                r#"event_decisions_total{decision="dlq",event_type="__other__",failure_reason="unknown_event_type"}: 0 -> 1"#,
                r#"events_processed_total{event_type="__other__"}: 0 -> 1"#,
                r#"events_processed_total{event_type="job.created"}: 0 -> 1"#,
                r#"job_duration_seconds_count{engine_id="asr",model="tiny",stage_count="4"}: 0 -> 1"#,
                r#"job_duration_seconds_sum{engine_id="asr",model="tiny",stage_count="4"}: 0 -> 90"#,
                "jobs_in_progress: 0 -> 3",
                r#"jobs_total{status="cancelled"}: 0 -> 1"#,
                r#"jobs_total{status="failed"}: 0 -> 1"#,
                r#"scanner_scans_total{status="skipped_not_leader"}: 0 -> 1"#,
                r#"tasks_completed_total{engine_id="asr",execution_profile="container",status="failure"}: 0 -> 1"#,
                r#"tasks_scheduled_total{engine_id="asr",execution_profile="container",stage="transcribe"}: 0 -> 1"#,
                r#"tasks_timed_out_total{stage="transcribe"}: 0 -> 1"#,
            ]
        );
    }

    #[test]
    fn each_decision_about_each_event_has_its_series() {
        let reasons = [
            FailureReason::InvalidPayloadJson,
            FailureReason::InvalidEventSchema,
            FailureReason::UnknownEventType,
            FailureReason::HandlerException,
            FailureReason::DispatchError,
        ];
        assert_eq!(reasons.len(), FailureReason::CARDINALITY);
        assert_eq!(EventType::ALL.len(), EventType::CARDINALITY);
        let mut decisions = vec![(EventDecision::Ack, "ack", "none")];
        for reason in reasons {
            decisions.push((EventDecision::Retry(reason), "retry", reason.as_str()));
            decisions.push((EventDecision::DeadLetter(reason), "dlq", reason.as_str()));
        }
        let mut seen = Vec::new();
        for (decision, text, reason) in decisions {
            for event in EventType::ALL {
                assert_eq!(EventType::of(event.as_str()), event);
                let position = Decided { decision, event }.position();
                let mut labels = Vec::new();
                Decided::labels_at(position, &mut |name, value| labels.push((name, value)));
                let expected = [
                    ("decision", text),
                    ("failure_reason", reason),
                    ("event_type", event.as_str()),
                ];
                assert_eq!(labels, expected);
                seen.push(position);
            }
        }
        seen.sort_unstable();
        assert_eq!(seen, (0..Decided::CARDINALITY).collect::<Vec<_>>());
    }

    #[test]
    fn only_the_channel_suffix_is_cut_from_a_stage() {
        for (stage, registered) in [
            ("transcribe", "transcribe"),
            ("transcribe_ch12", "transcribe"),
            ("pii_detect", "pii_detect"),
            ("pii_check", "pii_check"),
            ("x_ch", "x_ch"),
        ] {
            assert_eq!(without_channel(stage), registered);
        }
    }

    #[test]
    fn unusual_numbers_of_stages_are_folded() {
        let metrics = Metrics::new();
        let orchestrator = OrchestratorMetrics::register(&metrics);
        for stages in [0, 33, usize::MAX] {
            orchestrator
                .jobs_of("asr", "tiny", stages)
                .ended(JobStatus::Completed, Duration::from_secs(1));
        }
        let labels = [("engine_id", "asr"), ("model", "tiny"), ("stage_count", OTHER)];
        let count = metrics
            .snapshot()
            .value("dalston_orchestrator_job_duration_seconds_count", &labels);
        assert_eq!(count, Some(3.0));
    }
}
