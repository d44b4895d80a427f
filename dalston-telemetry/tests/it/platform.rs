//! The steps of the gateway and of the orchestrator: one trace, one request id, and their metrics.

use std::cell::RefCell;
use std::time::Duration;

use dalston_telemetry::Env;
use dalston_telemetry::context::{LogContext, WithLogContext};
use dalston_telemetry::metrics::Status;
use dalston_telemetry::services::gateway::{CreatedJob, GatewayMetrics, JobSubmission};
use dalston_telemetry::services::orchestrator::{
    EndedJob, EndedTask, EventType, ExecutionProfile, JobStatus, OrchestratorMetrics, OrchestratorSteps,
    PlannedJob, ReceivedEvent, ScheduledTask,
};
use dalston_telemetry::services::{MessageContext, SpanNames};
use dalston_telemetry::testing::TestTelemetry;
use serde_json::json;
use tracing::instrument::WithSubscriber;
use tracing::{Instrument, info, info_span};

use crate::service::Service;

fn traced() -> TestTelemetry {
    TestTelemetry::with(|builder| builder.env(Env::from_pairs([("OTEL_ENABLED", "true")])))
}

fn steps(telemetry: &TestTelemetry) -> OrchestratorSteps {
    OrchestratorSteps::new(OrchestratorMetrics::register(telemetry.metrics()))
}

/// Submits a job as the gateway does, and returns what its event carries.
async fn submit(telemetry: &TestTelemetry) -> Result<MessageContext, &'static str> {
    let metrics = GatewayMetrics::register(telemetry.metrics());
    let work = async {
        let submission = JobSubmission::begin(&metrics, "acme");
        submission.upload_to_s3(async { Ok::<_, &str>(()) }).await?;
        let (job, ()) = submission.create_job("j-1", async { Ok::<_, &str>(()) }).await?;
        let publish = |message: MessageContext| async move { Ok(message) };
        job.publish_created_event(publish).await
    };
    let request = info_span!("POST /v1/audio/transcriptions");
    let log = LogContext::new().request_id("req_1");
    work.instrument(request).with_log_context(log).await
}

fn event(kind: EventType, message: &MessageContext) -> ReceivedEvent<'static> {
    ReceivedEvent {
        kind,
        job_id: "j-1",
        task_id: (kind != EventType::JobCreated).then_some("t-1"),
        message: message.clone(),
    }
}

/// Handles `job.created`, and returns what the task carries.
async fn start_job(steps: &OrchestratorSteps, message: &MessageContext) -> MessageContext {
    let handling = async {
        info!("job_started");
        let plan = || Ok::<_, &str>(vec!["prepare".to_owned(), "transcribe".to_owned()]);
        let stages = steps.build_dag("j-1", plan, |stages| PlannedJob {
            stages: stages.clone(),
            engine_id: "asr".to_owned(),
            model: String::new(),
        })?;
        let task = ScheduledTask {
            task_id: "t-1",
            job_id: "j-1",
            stage: &stages[1],
            engine_id: "asr",
            profile: ExecutionProfile::Container,
            retry_count: 0,
        };
        let queue = |message: MessageContext| async move { Ok::<_, &str>(message) };
        steps.schedule_task(&task, queue).await
    };
    let created = event(EventType::JobCreated, message);
    steps.handle(&created, handling).await.unwrap()
}

async fn end_job(steps: &OrchestratorSteps, message: &MessageContext, status: JobStatus) {
    let handling = async {
        let job = EndedJob {
            job_id: "j-1",
            status,
            engine_id: Some("asr"),
            model: "tiny",
            stage_count: 2,
            time: Duration::from_secs(4),
            audio: Some(Duration::from_secs(60)),
        };
        steps.mark_job_ended(&job, async { Ok::<_, &str>(()) }).await
    };
    let completed = event(EventType::TaskCompleted, message);
    let task = EndedTask {
        engine_id: "asr",
        profile: ExecutionProfile::Container,
        status: Status::Success,
    };
    steps.handle_task_ended(&completed, task, handling).await.unwrap();
}

fn moved(telemetry: &TestTelemetry) -> Vec<String> {
    let moved = telemetry.moved();
    let lines = moved.iter().map(ToString::to_string);
    let is_stable =
        |line: &String| !line.contains("_dag_build_duration_seconds_sum") && !line.contains("_log_messages_");
    lines.filter(is_stable).collect()
}

#[tokio::test]
async fn retried_job_is_a_trace_with_a_link_to_the_one_before() {
    let telemetry = traced();
    let before = MessageContext::new(
        Some(r#"{"traceparent":"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"}"#),
        Some("req_1"),
    );
    let retry = async {
        let job = CreatedJob::again("j-1", &before);
        let publish = |message: MessageContext| async move { Ok::<_, &str>(message) };
        job.publish_created_event(publish).await.unwrap()
    };
    let log = LogContext::new().request_id("req_2");
    let request = async {
        let request = info_span!("POST /v1/audio/transcriptions/{id}/retry");
        retry.instrument(request).with_log_context(log).await
    };
    let message = telemetry.attach(request).await;
    assert_eq!(message.request_id.as_deref(), Some("req_2"));
    telemetry.tree().assert_eq(
        "
        \"POST /v1/audio/transcriptions/{id}/retry\" {dalston.job_id=j-1}
          gateway.publish_job_created_event {dalston.job_id=j-1}
        ",
    );
    let spans = telemetry.spans();
    let request = spans.iter().find(|span| span.name.starts_with("POST")).unwrap();
    let linked = &request.links[0].span_context;
    assert_eq!(linked.trace_id().to_string(), "4bf92f3577b34da6a3ce929d0e0e4736");
    assert_ne!(request.trace_id, linked.trace_id());
    // It counts no new job.
    assert!(!moved(&telemetry).iter().any(|line| line.contains("jobs_created")));
}

#[tokio::test]
async fn job_is_one_trace_from_the_request_to_its_end() {
    let telemetry = traced();
    let steps = steps(&telemetry);
    let work = async {
        let message = submit(&telemetry).await.unwrap();
        let task = start_job(&steps, &message).await;
        assert_eq!(task.request_id.as_deref(), Some("req_1"));
        // The engine hands on what the task carries.
        end_job(&steps, &task, JobStatus::Completed).await;
    };
    telemetry.attach(work).await;
    telemetry.tree().assert_eq(
        "
        POST /v1/audio/transcriptions {dalston.job_id=j-1}
          gateway.upload_to_s3
          gateway.create_job {dalston.job_id=j-1}
          gateway.publish_job_created_event {dalston.job_id=j-1}
            orchestrator.handle_job {dalston.event_type=job.created, dalston.job_id=j-1, dalston.request_id=req_1}
              orchestrator.build_dag {dalston.job_id=j-1, dalston.engine_id=asr, \
                dalston.dag.stages=\"prepare,transcribe\", dalston.dag.task_count=2}
              orchestrator.schedule_task {dalston.job_id=j-1, dalston.task_id=t-1, dalston.stage=transcribe, \
                dalston.engine_id=asr}
                orchestrator.handle_task_completed {dalston.event_type=task.completed, dalston.job_id=j-1, \
                    dalston.task_id=t-1, dalston.engine_id=asr}
                  orchestrator.mark_job_completed {dalston.job_id=j-1, dalston.status=completed}
        ",
    );
    let profile = "execution_profile=\"container\"";
    let labels = "engine_id=\"asr\",model=\"tiny\"";
    assert_eq!(
        moved(&telemetry),
        [
            "dalston_gateway_jobs_created_total{tenant_id=\"acme\"}: 0 -> 1".to_owned(),
            format!("dalston_orchestrator_audio_duration_seconds_count{{{labels}}}: 0 -> 1"),
            format!("dalston_orchestrator_audio_duration_seconds_sum{{{labels}}}: 0 -> 60"),
            "dalston_orchestrator_dag_build_duration_seconds_count: 0 -> 1".to_owned(),
            "dalston_orchestrator_event_decisions_total{decision=\"ack\",event_type=\"job.created\",\
             failure_reason=\"none\"}: 0 -> 1"
                .to_owned(),
            "dalston_orchestrator_event_decisions_total{decision=\"ack\",event_type=\"task.completed\",\
             failure_reason=\"none\"}: 0 -> 1"
                .to_owned(),
            "dalston_orchestrator_events_processed_total{event_type=\"job.created\"}: 0 -> 1".to_owned(),
            "dalston_orchestrator_events_processed_total{event_type=\"task.completed\"}: 0 -> 1".to_owned(),
            format!("dalston_orchestrator_job_duration_seconds_count{{{labels},stage_count=\"2\"}}: 0 -> 1"),
            format!("dalston_orchestrator_job_duration_seconds_sum{{{labels},stage_count=\"2\"}}: 0 -> 4"),
            "dalston_orchestrator_jobs_total{status=\"completed\"}: 0 -> 1".to_owned(),
            format!(
                "dalston_orchestrator_tasks_completed_total{{engine_id=\"asr\",{profile},status=\"success\"}}: 0 -> 1"
            ),
            format!(
                "dalston_orchestrator_tasks_scheduled_total{{engine_id=\"asr\",{profile},stage=\"transcribe\"}}: 0 -> 1"
            ),
        ]
    );
    let line = &telemetry.logs()[0];
    assert_eq!(line.event(), "job_started");
    for (field, value) in [("request_id", "req_1"), ("job_id", "j-1")] {
        assert_eq!(line.field(field), Some(&json!(value)), "{field}");
    }
    let trace_id = telemetry.spans()[0].trace_id.to_string();
    assert_eq!(line.field("trace_id"), Some(&json!(trace_id)));
}

#[tokio::test]
async fn request_id_and_caller_travel_while_tracing_is_off() {
    const CALLER: &str = r#"{"traceparent":"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}"#;
    let telemetry = TestTelemetry::new();
    let steps = steps(&telemetry);
    let off = Service::start(Vec::new());
    let carried = MessageContext::new(Some(CALLER), Some("req_1"));
    let working = start_job(&steps, &carried);
    let task = working.with_subscriber(off.dispatch.clone()).await;
    assert_eq!(task.request_id.as_deref(), Some("req_1"));
    let json = task.trace_context.unwrap();
    assert!(
        json.contains("0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331"),
        "{json}"
    );
}

#[tokio::test]
async fn failed_step_is_recorded_and_not_counted_as_done() {
    let telemetry = traced();
    let steps = steps(&telemetry);
    let message = MessageContext::default();
    let work = async {
        let created = event(EventType::JobCreated, &message);
        let task = ScheduledTask {
            task_id: "t-1",
            job_id: "j-1",
            stage: "transcribe_ch1",
            engine_id: "asr",
            profile: ExecutionProfile::Venv,
            retry_count: 2,
        };
        let queue = |_| async { Err::<(), _>("redis://:hunter2@host is full") };
        let result = steps.handle(&created, steps.schedule_task(&task, queue)).await;
        assert!(result.is_err());
        let refuse = || Err::<(), _>("no engine for xx");
        assert!(
            steps
                .build_dag("j-1", refuse, |()| PlannedJob::default())
                .is_err()
        );
    };
    telemetry.attach(work).await;
    telemetry.tree().assert_eq(
        "
        orchestrator.handle_job ! \"redis://***@host is full\"
          orchestrator.schedule_task {dalston.retry_count=2, dalston.stage=transcribe_ch1} ! \"redis://***@host is full\"
        orchestrator.build_dag ! \"no engine for xx\"
        ",
    );
    let moved = moved(&telemetry);
    let retry = "dalston_orchestrator_event_decisions_total{decision=\"retry\",event_type=\"job.created\",\
                 failure_reason=\"handler_exception\"}: 0 -> 1";
    assert!(moved.contains(&retry.to_owned()), "{moved:?}");
    assert!(
        !moved.iter().any(|line| line.contains("tasks_scheduled")),
        "{moved:?}"
    );
}

#[tokio::test]
async fn names_of_the_live_platform_can_be_selected() {
    let telemetry = traced();
    let steps = steps(&telemetry).names(SpanNames::Live);
    let seen = RefCell::new(Vec::new());
    let work = async {
        for kind in [EventType::JobCreated, EventType::TaskFailed] {
            let note = async {
                seen.borrow_mut().push(kind);
                Ok::<_, &str>(())
            };
            steps
                .handle(&event(kind, &MessageContext::default()), note)
                .await
                .unwrap();
        }
        let plan = || Ok::<_, &str>(());
        steps.build_dag("j-1", plan, |()| PlannedJob::default()).unwrap();
    };
    telemetry.attach(work).await;
    assert_eq!(
        telemetry.tree().names(),
        [
            "orchestrator.handle_job.created",
            "orchestrator.handle_task.failed",
            "orchestrator.dag_build",
        ]
    );
}
