use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use dalston_telemetry::metrics::{Metrics, Status};
use dalston_telemetry::services::audio_pipeline::AudioPipelineMetrics;
use dalston_telemetry::services::engine::{
    Device, DirectEndpoint, DirectMetrics, DirectStatus, EngineLabels, EngineMetrics, RedeliveryReason,
};
use dalston_telemetry::services::gateway::{GatewayMetrics, HttpMethod};
use dalston_telemetry::services::orchestrator::{
    EventDecision, EventType, ExecutionProfile, FailureReason, JobStatus, OrchestratorMetrics, ScanStatus,
};
use dalston_telemetry::services::queue::{QueueMetrics, QueueSample, QueueSamples};
use dalston_telemetry::services::realtime::{RealtimeMetrics, TranscriptType};
use dalston_telemetry::services::session_router::{SessionRouterMetrics, SessionStatus};
use dalston_telemetry::services::webhook::{DeliveryStatus, WebhookMetrics};
use dalston_telemetry::{Env, Telemetry};
use http::StatusCode;

/// Label values from outside, for a process with the metrics of every service.
struct Outside<'a> {
    tenant: &'a str,
    route: &'a str,
    engine: &'a str,
    model: &'a str,
    worker: &'a str,
    stage: &'a str,
    profile: &'a str,
    instance_type: &'a str,
    number: u32,
}

/// The services of which a process has one.
struct Services {
    gateway: GatewayMetrics,
    orchestrator: OrchestratorMetrics,
    webhooks: WebhookMetrics,
    router: SessionRouterMetrics,
    pipeline: AudioPipelineMetrics,
}

impl Services {
    fn register(metrics: &Metrics) -> Self {
        Self {
            gateway: GatewayMetrics::register(metrics),
            orchestrator: OrchestratorMetrics::register(metrics),
            webhooks: WebhookMetrics::register(metrics),
            router: SessionRouterMetrics::register(metrics),
            pipeline: AudioPipelineMetrics::register(metrics),
        }
    }
}

/// Moves every family of every service.
pub(crate) fn everything(metrics: &Metrics) {
    move_all(metrics, &Services::register(metrics), &ORDINARY);
    let queue = QueueSample {
        engine_id: "my-asr".into(),
        depth: 2,
        pending: 1,
        oldest: None,
    };
    QueueMetrics::register(metrics, Duration::from_secs(3600)).update(QueueSamples {
        queues: vec![queue],
        ..QueueSamples::default()
    });
}

fn move_all(metrics: &Metrics, services: &Services, outside: &Outside<'_>) {
    let Services {
        gateway,
        orchestrator,
        webhooks,
        router,
        pipeline,
    } = services;
    let millisecond = Duration::from_millis(1);

    let status = StatusCode::from_u16(100 + u16::try_from(outside.number % 900).unwrap()).unwrap();
    gateway
        .route(HttpMethod::Get, outside.route)
        .answered(status, millisecond);
    gateway
        .unmatched(HttpMethod::Unknown)
        .answered(StatusCode::NOT_FOUND, millisecond);
    gateway.job_created(outside.tenant);
    gateway.uploaded(1);
    drop(gateway.websocket());

    let jobs = orchestrator.jobs_of(outside.engine, outside.model, outside.number as usize);
    jobs.ended(JobStatus::Completed, millisecond);
    jobs.audio_duration(millisecond);
    orchestrator.job_ended(JobStatus::Cancelled);
    orchestrator.jobs_in_progress(1);
    let engine = orchestrator.engine(outside.engine, ExecutionProfile::Container);
    engine.task_scheduled(outside.stage);
    engine.task_completed(Status::Success);
    orchestrator.stage(outside.stage).task_timed_out();
    let decision = EventDecision::Retry(FailureReason::HandlerException);
    orchestrator.event(EventType::of(outside.stage), decision);
    orchestrator.dag_built(millisecond);
    orchestrator.scanned(ScanStatus::Success);

    webhooks.attempted(DeliveryStatus::Success, millisecond);

    router.workers(2, 1);
    router.worker(outside.worker).set(1);
    router.session_ended(SessionStatus::Completed);
    router.allocated(millisecond);

    let realtime = RealtimeMetrics::register(metrics, outside.engine, outside.worker);
    let model = realtime.model(outside.model);
    drop(model.session());
    model.audio_processed(millisecond);
    model.transcript(TranscriptType::Final);
    model.chunk_latency(millisecond);
    let rate = [8_000, 12_345, 16_000, 44_100][outside.number as usize % 4];
    realtime.resampled(rate, 16_000, millisecond);

    let labels = EngineLabels::new(outside.engine, outside.stage)
        .execution_profile(outside.profile)
        .instance_type(outside.instance_type);
    let engine = EngineMetrics::register(metrics, &labels);
    engine.queue_wait(millisecond);
    engine.slot_wait(millisecond);
    engine.s3_download(millisecond);
    engine.s3_upload(millisecond);
    engine.audio_duration(millisecond);
    engine.task_redelivery(RedeliveryReason::Deferred);
    engine.task_skipped_cancelled();
    drop(engine.slot(outside.number as usize).busy());
    let model = engine.model(outside.model);
    model.task_processed(Status::Success);
    model.task_duration(millisecond);
    model.model_load(millisecond);
    model.model_cache_hit();
    model.realtime_factor(Device::Cpu, millisecond, millisecond);

    let direct = DirectMetrics::register(metrics, outside.engine);
    direct.request(DirectEndpoint::Transcribe, DirectStatus::Ok, millisecond);

    pipeline.chunk_processed(millisecond);
    pipeline.quality(0.5);
    pipeline.wake_detection(millisecond);
    pipeline.end_to_end(millisecond);
    pipeline.encoded(millisecond);
    pipeline.requested();
    pipeline.latency(millisecond);
    pipeline.transcribed(outside.model, Status::Failure, millisecond);
}

const ORDINARY: Outside<'static> = Outside {
    tenant: "acme",
    route: "/v1/audio/transcriptions",
    engine: "my-asr",
    model: "a \"tiny\" one\\",
    worker: "my-asr-1",
    stage: "transcribe",
    profile: "container",
    instance_type: "g5.xlarge",
    number: 200,
};

/// Label values: `known` of eight are one of four known values, the others are new. Every
/// combination of known and new values occurs.
fn flood(metrics: &Metrics, known: u32, rounds: std::ops::Range<u32>) {
    let services = Services::register(metrics);
    for round in rounds {
        // Three bits of a hash for each kind.
        let scattered = round.wrapping_mul(0x9E37_79B1);
        let value = |kind: u32| match (scattered >> (3 * kind)) & 7 {
            eighth if eighth < known => format!("{kind}-{}", (eighth + round / 8) % 4),
            _ => format!("{kind}-{round}"),
        };
        let outside = Outside {
            tenant: &value(0),
            route: &format!("/v1/{}", letters(&value(1))),
            engine: &value(2),
            model: &value(3),
            worker: &value(4),
            stage: &value(5),
            profile: &value(6),
            instance_type: &value(7),
            number: round,
        };
        move_all(metrics, &services, &outside);
    }
}

/// Without digits, so that it isn't taken for an id.
fn letters(value: &str) -> String {
    let letter = |c: char| c.to_digit(10).map_or(c, |digit| char::from(b'a' + digit as u8));
    value.chars().map(letter).collect()
}

fn series(metrics: &Metrics) -> BTreeSet<String> {
    let snapshot = metrics.snapshot();
    snapshot.iter().map(|(series, _)| series.to_owned()).collect()
}

#[test]
fn a_million_label_values_make_a_few_thousand_series() {
    const FILL: u32 = 20_000;
    const THREADS: u32 = 4;
    const EACH: u32 = 36_000;
    // So few that all that can be taken is taken before the count begins.
    let metrics = Metrics::with_label_values(4);
    flood(&metrics, 8, 0..8);
    flood(&metrics, 4, 8..FILL);
    let (before, text_before) = (series(&metrics), metrics.encode());
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let metrics = &metrics;
            let rounds = FILL + thread * EACH..FILL + (thread + 1) * EACH;
            scope.spawn(move || flood(metrics, 1, rounds));
        }
    });
    let after = series(&metrics);
    let new: Vec<_> = after.difference(&before).take(10).collect();
    assert!(new.is_empty(), "{new:?}");
    assert_eq!(metrics.encode().lines().count(), text_before.lines().count());
    // Only the numbers have grown.
    assert!(metrics.encode().len() < text_before.len() * 3 / 2);

    let snapshot = metrics.snapshot();
    let rounds = f64::from(FILL + THREADS * EACH);
    for counter in [
        "dalston_gateway_jobs_created_total",
        "dalston_orchestrator_tasks_scheduled_total",
        "dalston_orchestrator_tasks_timed_out_total",
        "dalston_realtime_transcripts_total",
        "dalston_engine_tasks_processed_total",
        "dalston_engine_direct_requests_total",
        "stt_transcriptions_total",
        "dalston_orchestrator_job_duration_seconds_count",
        "dalston_realtime_resample_duration_seconds_count",
    ] {
        assert_eq!(snapshot.sum(counter, &[]), rounds, "{counter} has lost some");
    }
    for label in [
        "tenant_id",
        "endpoint",
        "engine_id",
        "model",
        "worker_id",
        "stage",
    ] {
        let folded = "dalston_telemetry_label_values_folded_total";
        assert!(snapshot.sum(folded, &[("label", label)]) > 10_000.0, "{label}");
    }
}

#[test]
fn the_largest_exposition_is_bounded_by_the_caps() {
    let metrics = Metrics::new();
    flood(&metrics, 4, 0..20_000);
    let mut families = BTreeMap::new();
    for series in series(&metrics) {
        let family = series.split('{').next().unwrap_or_default();
        *families.entry(family.to_owned()).or_insert(0) += 1;
    }
    for (family, count) in families {
        // A thousand combinations, those of the closed labels beyond them, and the buckets of each.
        assert!(count < 2_000 * 20, "{family}: {count}");
    }
}

#[test]
fn services_can_be_registered_twice_and_together() {
    let metrics = Metrics::new();
    everything(&metrics);
    let once = metrics.snapshot();
    everything(&metrics);
    let other = Outside {
        engine: "your-asr",
        ..ORDINARY
    };
    move_all(&metrics, &Services::register(&metrics), &other);
    let snapshot = metrics.snapshot();
    for (name, factor) in [
        ("dalston_gateway_jobs_created_total", 3.0),
        ("dalston_orchestrator_jobs_total", 3.0),
        ("dalston_webhook_deliveries_total", 3.0),
        ("dalston_session_router_sessions_total", 3.0),
        ("dalston_realtime_transcripts_total", 3.0),
        ("dalston_engine_tasks_processed_total", 3.0),
        ("dalston_engine_direct_requests_total", 3.0),
        ("audio_chunks_processed_total", 3.0),
    ] {
        assert_eq!(snapshot.sum(name, &[]), once.sum(name, &[]) * factor, "{name}");
    }
    let text = metrics.encode();
    let types: Vec<_> = text.lines().filter(|line| line.starts_with("# TYPE")).collect();
    assert_eq!(types.len(), types.iter().collect::<BTreeSet<_>>().len());
}

#[test]
fn the_cap_of_labels_is_from_the_environment() {
    let (_layer, telemetry) = Telemetry::builder("dalston-gateway")
        .env(Env::from_pairs([("DALSTON_METRICS_LABEL_VALUES", "3")]))
        .into_layer::<tracing_subscriber::Registry>()
        .unwrap();
    let gateway = GatewayMetrics::register(telemetry.metrics());
    for tenant in 0..10 {
        gateway.job_created(&format!("tenant-{tenant}"));
    }
    let tenants = series(telemetry.metrics())
        .iter()
        .filter(|series| series.starts_with("dalston_gateway_jobs_created_total"))
        .count();
    assert_eq!(tenants, 4);

    for (value, shown) in [("0", "\"0\""), ("many", "\"many\""), ("10001", "\"10001\"")] {
        let error =
            Metrics::from_env(&Env::from_pairs([("DALSTON_METRICS_LABEL_VALUES", value)])).unwrap_err();
        assert_eq!(
            error.to_string(),
            format!("DALSTON_METRICS_LABEL_VALUES is {shown}: expected a whole number from 1 to 10000")
        );
    }
}
