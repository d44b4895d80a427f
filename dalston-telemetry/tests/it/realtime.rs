//! The steps of the session router and of a realtime worker: one trace, and their metrics.

use std::time::Duration;

use dalston_telemetry::services::realtime::{
    GeneratedTranscript, RealtimeMetrics, RealtimeSteps, SessionEnd, StartedSession, TranscriptType,
    Utterance,
};
use dalston_telemetry::services::session_router::{
    AllocatedWorker, RequestedSession, SessionRouterMetrics, SessionRouterSteps,
};
use dalston_telemetry::services::{MessageContext, SpanNames};
use dalston_telemetry::testing::TestTelemetry;
use dalston_telemetry::{Env, opentelemetry};
use serde_json::json;
use tracing::info;

use dalston_telemetry::context::WithLogContext;

const CHUNK: Duration = Duration::from_millis(100);
const FAST: Duration = Duration::from_millis(2);

fn traced() -> TestTelemetry {
    TestTelemetry::with(|builder| builder.env(Env::from_pairs([("OTEL_ENABLED", "true")])))
}

fn steps(telemetry: &TestTelemetry) -> RealtimeSteps {
    let metrics = RealtimeMetrics::register(telemetry.metrics(), "asr", "asr-rt-1");
    RealtimeSteps::new(telemetry.handle(), metrics)
}

fn session(parent: opentelemetry::Context) -> StartedSession<'static> {
    StartedSession {
        session_id: "sess_1",
        model: "tiny",
        language: "en",
        parent,
    }
}

fn utterance(from: u64, to: u64) -> Utterance {
    Utterance {
        start: Duration::from_millis(from),
        end: Duration::from_millis(to),
    }
}

async fn allocate(telemetry: &TestTelemetry) -> MessageContext {
    let router = SessionRouterSteps::new(SessionRouterMetrics::register(telemetry.metrics()));
    let requested = RequestedSession {
        session_id: "sess_1",
        model: "tiny",
        language: "",
    };
    let worker = |instance: &&str| AllocatedWorker {
        engine_id: "asr".to_owned(),
        instance: (*instance).to_owned(),
    };
    let none = async { Err::<&str, _>("no worker for tiny") };
    assert!(router.allocate(&requested, none, worker).await.is_err());
    let choose = async { Ok::<_, &str>("asr-rt-1") };
    let (instance, message) = router.allocate(&requested, choose, worker).await.unwrap();
    assert_eq!(instance, "asr-rt-1");
    message
}

#[tokio::test]
async fn session_is_one_trace_from_its_allocation_to_its_end() {
    let telemetry = traced();
    let steps = steps(&telemetry);
    let work = async {
        let message = allocate(&telemetry).await;
        let mut session = steps.begin(&session(message.context()));
        let log = session.log_context();
        async { info!("session_began") }.with_log_context(log).await;
        for _ in 0..3 {
            let chunk = session.chunk();
            session.chunk_done(chunk, CHUNK, FAST);
        }
        let said = utterance(50, 250);
        session.vad_endpoint(said);
        let transcribe = async { Ok::<_, &str>("eins zwei") };
        let facts = |text: &&str| Some(GeneratedTranscript::of(text));
        let transcripts = session.transcripts();
        transcripts
            .generate(TranscriptType::Final, said, transcribe, facts)
            .await
            .unwrap();
        let silence = async { Ok::<_, &str>("") };
        transcripts
            .generate(TranscriptType::Partial, said, silence, |_| None)
            .await
            .unwrap();
        let fails = async { Err::<&str, _>("out of memory") };
        let failed = transcripts.generate(TranscriptType::Final, said, fails, |_| None);
        assert!(failed.await.is_err());
        session
            .close(SessionEnd::Completed, async { info!("closing") })
            .await;
    };
    telemetry.attach(work).await;
    telemetry.tree().assert_eq(
        "
        session_router.allocate {dalston.session_id=sess_1} ! \"no worker for tiny\"
        session_router.allocate {dalston.session_id=sess_1, dalston.model=tiny, dalston.engine_id=asr, \
            dalston.instance=asr-rt-1}
          realtime.session {dalston.session_id=sess_1, dalston.engine_id=asr, dalston.instance=asr-rt-1, \
              dalston.model=tiny, dalston.language=en, dalston.total_chunks=3, dalston.total_audio_s=0.3, \
              dalston.avg_chunk_latency_ms=2, dalston.session.end_reason=completed}
            realtime.session.begin {dalston.session_id=sess_1}
            process_audio_chunk {dalston.chunk_index=0, dalston.audio_duration_seconds=0.1, \
                dalston.chunk_latency_seconds=0.002}
            vad_endpoint {dalston.vad.speech_duration_s=0.2, dalston.vad.timestamp=0.25}
            generate_transcript {dalston.transcript.type=final, dalston.audio_duration_seconds=0.2, \
                dalston.transcript.word_count=2, dalston.transcript.char_count=9}
            generate_transcript {dalston.transcript.type=partial}
            generate_transcript {dalston.transcript.type=final} ! \"out of memory\"
            session_close {dalston.session.end_reason=completed}
        ",
    );
    let moved: Vec<_> = telemetry.moved().iter().map(ToString::to_string).collect();
    for line in [
        "dalston_session_router_allocation_duration_seconds_count: 0 -> 2",
        r#"dalston_realtime_audio_processed_seconds_total{engine_id="asr",model="tiny",worker_id="asr-rt-1"}: 0 -> 0.3"#,
        r#"dalston_realtime_chunk_latency_seconds_count{model="tiny"}: 0 -> 3"#,
        r#"dalston_realtime_session_duration_seconds_count{engine_id="asr",model="tiny"}: 0 -> 1"#,
        r#"dalston_realtime_session_ends_total{reason="completed"}: 0 -> 1"#,
        r#"dalston_realtime_transcripts_total{engine_id="asr",model="tiny",type="final"}: 0 -> 1"#,
    ] {
        assert!(
            moved.iter().any(|moved| moved == line),
            "{line} is missing in {moved:#?}"
        );
    }
    assert!(
        !moved.iter().any(|line| line.contains("type=\"partial\"")),
        "{moved:#?}"
    );
    let line = &telemetry.logs()[0];
    assert_eq!(line.field("session_id"), Some(&json!("sess_1")));
    let trace_id = telemetry.span("realtime.session").trace_id.to_string();
    assert_eq!(line.field("trace_id"), Some(&json!(trace_id)));
}

#[test]
fn first_chunk_and_slow_ones_have_spans_beside_the_sampled() {
    let telemetry = traced();
    let steps = steps(&telemetry).one_span_in(4);
    telemetry.in_scope(|| {
        let mut session = steps.begin(&session(opentelemetry::Context::new()));
        for index in 0..10 {
            let chunk = session.chunk();
            assert_eq!(chunk.span().is_disabled(), index % 4 != 0, "chunk {index}");
            let latency = if index == 6 { CHUNK + FAST } else { CHUNK };
            session.chunk_done(chunk, CHUNK, latency);
        }
    });
    let mut spans: Vec<_> = telemetry
        .spans()
        .into_iter()
        .filter(|span| span.name == "process_audio_chunk")
        .map(|span| (span.attribute("dalston.chunk_index").unwrap().to_string(), span))
        .collect();
    spans.sort_by(|a, b| a.0.cmp(&b.0));
    let indices: Vec<_> = spans.iter().map(|(index, _)| &**index).collect();
    assert_eq!(indices, ["0", "4", "6", "8"]);
    let slow = &spans[2].1;
    let length = slow.end.duration_since(slow.start).unwrap();
    assert!(length >= CHUNK + FAST, "{length:?}");
    let session = telemetry.span("realtime.session");
    assert_eq!(slow.parent_span_id, Some(session.span_id));
}

#[test]
fn dropped_session_ends_as_aborted() {
    let telemetry = traced();
    let steps = steps(&telemetry);
    telemetry.in_scope(|| drop(steps.begin(&session(opentelemetry::Context::new()))));
    telemetry.tree().assert_eq(
        "
        realtime.session {dalston.session.end_reason=aborted, dalston.total_chunks=0}
          realtime.session.begin
        ",
    );
    let aborted = [("reason", "aborted")];
    let ends = "dalston_realtime_session_ends_total";
    assert_eq!(telemetry.metrics().snapshot().value(ends, &aborted), Some(1.0));
}

#[test]
fn live_names_can_be_selected() {
    let telemetry = traced();
    let steps = steps(&telemetry).one_span_in(2).names(SpanNames::Live);
    telemetry.in_scope(|| {
        let mut session = steps.begin(&session(opentelemetry::Context::new()));
        for latency in [FAST, CHUNK + FAST] {
            let chunk = session.chunk();
            session.chunk_done(chunk, CHUNK, latency);
        }
        session.vad_endpoint(utterance(0, 100));
    });
    let tree = telemetry.tree();
    let mut names = tree.names();
    names.sort_unstable();
    assert_eq!(
        names,
        [
            "realtime.chunk.inference",
            "realtime.chunk.inference",
            "realtime.session",
            "realtime.session.begin",
            "realtime.vad.endpoint",
        ]
    );
}

#[test]
fn steps_without_tracing_still_count() {
    let telemetry = TestTelemetry::with(|builder| builder.enabled(false));
    let steps = steps(&telemetry);
    telemetry.in_scope(|| {
        let mut session = steps.begin(&session(opentelemetry::Context::new()));
        let chunk = session.chunk();
        session.chunk_done(chunk, CHUNK, CHUNK + FAST);
    });
    let chunks = "dalston_realtime_chunk_latency_seconds_count";
    assert_eq!(telemetry.metrics().snapshot().sum(chunks, &[]), 1.0);
}
