use std::collections::BTreeMap;
use std::error::Error;
use std::time::Duration;

use dalston_telemetry::audit::{AuditConfig, AuditLog};
use dalston_telemetry::metrics::{FamilyDescription, Metrics, TelemetryMetrics};
use dalston_telemetry::services::audio_pipeline::AudioPipelineMetrics;
use dalston_telemetry::services::engine::{DirectMetrics, EngineLabels, EngineMetrics, GpuMetrics};
use dalston_telemetry::services::gateway::GatewayMetrics;
use dalston_telemetry::services::orchestrator::OrchestratorMetrics;
use dalston_telemetry::services::queue::QueueMetrics;
use dalston_telemetry::services::realtime::RealtimeMetrics;
use dalston_telemetry::services::session_router::SessionRouterMetrics;
use dalston_telemetry::services::webhook::WebhookMetrics;
use dalston_telemetry::{Env, Telemetry};
use serde_json::{Value, json};
use tracing_subscriber::Registry;

use crate::markdown::{codes, page as head, section, table};

const ABOUT: &str = "\
All metrics of all services, also as [metrics.json](metrics.json). A label with listed values has no other values, except \
`__other__` where noted. A label without a list is open: it takes as many values as `DALSTON_METRICS_LABEL_VALUES` allows, and then \
`__other__`. A counter is present at zero as soon as the values of its open labels are known. Histograms have `_bucket`, `_sum` and `_count`.

The documentation of each service's metrics in `dalston_telemetry::services` suggests queries.";

/// The part of the platform for each prefix of a name. The longest prefix is used.
const PARTS: [(&str, &str); 12] = [
    ("", "Audio pipeline"),
    ("dalston_build_", "Every service"),
    ("dalston_engine_", "Engines"),
    ("dalston_events_", "Queue exporter"),
    ("dalston_gateway_", "Gateway"),
    ("dalston_orchestrator_", "Orchestrator"),
    ("dalston_queue", "Queue exporter"),
    ("dalston_realtime_", "Realtime workers"),
    ("dalston_redis_", "Queue exporter"),
    ("dalston_session_router_", "Session router"),
    ("dalston_webhook_", "Webhooks"),
    ("process_", "Every service"),
];

/// All families, from a process that registers the metrics of every service.
pub(crate) fn families() -> Result<Vec<FamilyDescription>, Box<dyn Error>> {
    let (_layer, telemetry) = Telemetry::builder("reference")
        .env(Env::default())
        .into_layer::<Registry>()?;
    let metrics = telemetry.metrics();
    register(metrics);
    let mut families = metrics.families();
    families.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(families)
}

fn register(metrics: &Metrics) {
    // The values of labels do not change the families.
    let _ = AudioPipelineMetrics::register(metrics);
    // Starts no thread, because the log is off.
    let _ = AuditLog::open("", AuditConfig::off(), metrics);
    let _ = DirectMetrics::register(metrics, "");
    let _ = EngineMetrics::register(metrics, &EngineLabels::new("", ""));
    let _ = GatewayMetrics::register(metrics);
    let _ = GpuMetrics::register(metrics);
    let _ = OrchestratorMetrics::register(metrics);
    let _ = QueueMetrics::register(metrics, Duration::ZERO);
    let _ = RealtimeMetrics::register(metrics, "", "");
    let _ = SessionRouterMetrics::register(metrics);
    let _ = TelemetryMetrics::register(metrics);
    let _ = WebhookMetrics::register(metrics);
}

pub(crate) fn page(families: &[FamilyDescription]) -> String {
    let mut parts = BTreeMap::<&str, Vec<&FamilyDescription>>::new();
    for family in families {
        parts.entry(part_of(&family.name)).or_default().push(family);
    }
    let mut page = head("Metrics", ABOUT);
    for (part, families) in parts {
        section(&mut page, part, "");
        table(
            &mut page,
            ["Name", "Type", "Labels", "Meaning"],
            families.into_iter().map(row),
        );
    }
    page
}

fn part_of(name: &str) -> &'static str {
    let matching = PARTS.iter().filter(|(begin, _)| name.starts_with(begin));
    let longest = matching.max_by_key(|(begin, _)| begin.len());
    match longest {
        Some(("", _)) if name.starts_with("dalston_") => "Every service",
        Some((_, part)) => part,
        None => "Every service",
    }
}

fn row(family: &FamilyDescription) -> [String; 4] {
    let labels = family.labels.iter().map(|label| match &label.values {
        None => codes([label.name]),
        Some(values) => format!("`{}`: {}", label.name, codes(values)),
    });
    let mut meaning = format!("{}.", family.help);
    if !family.buckets.is_empty() {
        let bounds = family.buckets.iter().map(f64::to_string);
        meaning.push_str(&format!(" Up to {}", bounds.collect::<Vec<_>>().join(", ")));
        meaning.push('.');
    }
    [
        codes([&family.name]),
        family.kind.to_owned(),
        labels.collect::<Vec<_>>().join("; "),
        meaning,
    ]
}

pub(crate) fn manifest(families: &[FamilyDescription]) -> Result<String, Box<dyn Error>> {
    let families = families.iter().map(|family| {
        let labels = family
            .labels
            .iter()
            .map(|label| json!({ "name": label.name, "values": label.values }));
        let mut described = json!({
            "name": family.name,
            "part": part_of(&family.name),
            "type": family.kind,
            "unit": family.unit,
            "help": family.help,
            "labels": labels.collect::<Vec<_>>(),
        });
        if family.kind == "histogram" {
            described["buckets"] = json!(family.buckets);
        }
        described
    });
    let manifest = json!({ "metrics": families.collect::<Vec<Value>>() });
    Ok(serde_json::to_string_pretty(&manifest)? + "\n")
}
