//! Settings of other programs in the same environment, and the log lines about settings.

use dalston_telemetry::{
    Env, InitError, LogFormat, LogWriter, OtlpConfig, OtlpProtocol, SpanCollector, Telemetry,
};
use serde_json::{Value, json};
use tracing::dispatcher::{Dispatch, with_default};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::registry::Registry;

type Variables<'a> = &'a [(&'a str, &'a str)];

const ON: (&str, &str) = ("OTEL_ENABLED", "true");
const PUSHED: (&str, &str) = ("OTEL_METRICS_EXPORTER", "otlp");

fn start(variables: Variables<'_>) -> Result<Vec<Value>, InitError> {
    start_with(variables, |builder| builder)
}

/// The log lines about settings, without the fields that every line has.
fn start_with(
    variables: Variables<'_>,
    configure: impl FnOnce(dalston_telemetry::TelemetryBuilder) -> dalston_telemetry::TelemetryBuilder,
) -> Result<Vec<Value>, InitError> {
    let (writer, lines) = LogWriter::buffer();
    let builder = Telemetry::builder("engine-test")
        .env(Env::from_pairs(variables.iter().copied()))
        .log_format(LogFormat::Json)
        .log_writer(writer)
        .shutdown_timeout(std::time::Duration::ZERO);
    let (layer, telemetry) = configure(builder).into_layer()?;
    let subscriber = Registry::default().with(layer);
    with_default(&Dispatch::new(subscriber), || telemetry.log_settings());
    let _ = telemetry.shutdown_blocking();
    let lines = lines.lines();
    let lines = lines.iter().map(|line| {
        let mut line: Value = serde_json::from_str(line).unwrap();
        for field in ["timestamp", "service", "instance_type", "target"] {
            line.as_object_mut().unwrap().remove(field);
        }
        line
    });
    Ok(lines.collect())
}

/// The ignored values: variable, value, and the value that is used.
fn ignored(variables: Variables<'_>) -> Vec<[String; 3]> {
    let lines = start(variables).unwrap_or_else(|error| panic!("{variables:?}: {error}"));
    let warnings = lines
        .iter()
        .filter(|line| line["event"] == "setting_not_supported");
    warnings
        .map(|line| ["variable", "value", "used"].map(|field| line[field].as_str().unwrap().to_owned()))
        .collect()
}

#[test]
fn known_unsupported_value_is_one_warning() {
    let cases: &[(Variables<'_>, [&str; 3])] = &[
        (
            &[("OTEL_PROPAGATORS", "tracecontext,baggage,b3")],
            ["OTEL_PROPAGATORS", "b3", "tracecontext,baggage"],
        ),
        (
            &[("OTEL_PROPAGATORS", "B3multi, jaeger,xray,ottrace, baggage")],
            ["OTEL_PROPAGATORS", "B3multi,jaeger,xray,ottrace", "baggage"],
        ),
        (
            &[("OTEL_PROPAGATORS", "b3")],
            ["OTEL_PROPAGATORS", "b3", "tracecontext,baggage"],
        ),
        (
            &[("OTEL_METRICS_EXPORTER", "console")],
            ["OTEL_METRICS_EXPORTER", "console", "none"],
        ),
        (
            &[("OTEL_METRICS_EXPORTER", "prometheus,console")],
            ["OTEL_METRICS_EXPORTER", "console", "prometheus"],
        ),
        (
            &[("RUST_LOG", "info,[span]=debug")],
            ["RUST_LOG", "[span]=debug", "info"],
        ),
        (
            &[ON, ("OTEL_SDK_DISABLED", "1")],
            ["OTEL_SDK_DISABLED", "1", "true"],
        ),
        (
            &[ON, ("OTEL_SDK_DISABLED", "off")],
            ["OTEL_SDK_DISABLED", "off", "false"],
        ),
        (
            &[ON, ("OTEL_TRACES_EXPORTER", "zipkin")],
            ["OTEL_TRACES_EXPORTER", "zipkin", "otlp"],
        ),
        (
            &[ON, ("OTEL_TRACES_SAMPLER", "parentbased_traceratio")],
            [
                "OTEL_TRACES_SAMPLER",
                "parentbased_traceratio",
                "parentbased_traceidratio",
            ],
        ),
        (
            &[ON, ("OTEL_TRACES_SAMPLER", "xray")],
            ["OTEL_TRACES_SAMPLER", "xray", "parentbased_always_on"],
        ),
        (
            &[
                ON,
                ("OTEL_TRACES_SAMPLER", "jaeger_remote"),
                ("OTEL_TRACES_SAMPLER_ARG", "a=b"),
            ],
            ["OTEL_TRACES_SAMPLER", "jaeger_remote", "parentbased_always_on"],
        ),
        // The variable of two signals.
        (
            &[ON, PUSHED, ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json")],
            ["OTEL_EXPORTER_OTLP_PROTOCOL", "http/json", "http/protobuf"],
        ),
        (
            &[ON, ("OTEL_EXPORTER_OTLP_TRACES_COMPRESSION", "zstd")],
            ["OTEL_EXPORTER_OTLP_TRACES_COMPRESSION", "zstd", "none"],
        ),
        (
            &[ON, ("OTEL_EXPORTER_OTLP_INSECURE", "1")],
            ["OTEL_EXPORTER_OTLP_INSECURE", "1", "true"],
        ),
    ];
    for (variables, warning) in cases {
        assert_eq!(ignored(variables), [*warning], "{variables:?}");
    }
}

#[test]
fn general_value_counts_beside_unsupported_one() {
    let variables = [
        ON,
        ("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip"),
        ("OTEL_EXPORTER_OTLP_TRACES_COMPRESSION", "zstd"),
    ];
    let [[_, _, used]] = &ignored(&variables)[..] else {
        panic!("not one warning")
    };
    assert_eq!(used, "gzip");
}

#[test]
fn unknown_value_is_an_error_that_names_the_variable() {
    let cases: &[Variables<'_>] = &[
        &[("OTEL_PROPAGATORS", "tracecontext,b4"), ON],
        &[("OTEL_METRICS_EXPORTER", "consle")],
        &[("OTEL_SDK_DISABLED", "perhaps"), ON],
        &[("OTEL_SDK_DISABLED", "perhaps"), PUSHED],
        &[("OTEL_TRACES_EXPORTER", "zipkin,otpl"), ON],
        &[("OTEL_TRACES_SAMPLER", "parentbased_ratio"), ON],
        &[("OTEL_EXPORTER_OTLP_PROTOCOL", "http"), ON],
        &[("OTEL_EXPORTER_OTLP_METRICS_PROTOCOL", "http"), PUSHED],
        &[("RUST_LOG", "info,[span]=loud")],
    ];
    for variables in cases {
        let (name, value) = variables[0];
        let error = start(variables).unwrap_err().to_string();
        assert!(error.starts_with(&format!("{name} is {value:?}: ")), "{error}");
    }
}

#[test]
fn variables_of_signals_that_are_off_stop_nothing() {
    const WRONG: [(&str, &str); 12] = [
        ("OTEL_PROPAGATORS", "nonsense"),
        ("OTEL_SDK_DISABLED", "nonsense"),
        ("OTEL_TRACES_EXPORTER", "nonsense"),
        ("OTEL_TRACES_SAMPLER", "nonsense"),
        ("OTEL_SERVICE_NAME", "\u{1}"),
        ("OTEL_RESOURCE_ATTRIBUTES", "nonsense"),
        ("OTEL_BSP_MAX_QUEUE_SIZE", "nonsense"),
        ("OTEL_SPAN_EVENT_COUNT_LIMIT", "nonsense"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "nonsense://"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "nonsense"),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "nonsense"),
        ("OTEL_METRIC_EXPORT_INTERVAL", "nonsense"),
    ];
    const WRONG_METRICS: [(&str, &str); 2] = [
        ("OTEL_METRICS_EXPORTER", "nonsense"),
        ("DALSTON_METRICS_LABEL_VALUES", "nonsense"),
    ];
    let off: &[Variables<'_>] = &[
        &[],
        &[("OTEL_ENABLED", "false"), WRONG_METRICS[0]],
        &[
            ("DALSTON_METRICS_ENABLED", "false"),
            WRONG_METRICS[0],
            WRONG_METRICS[1],
        ],
    ];
    for off in off {
        let variables = [&WRONG[..], off].concat();
        // Propagation works while traces are off, so its variable is read.
        assert_eq!(
            ignored(&variables),
            [["OTEL_PROPAGATORS", "nonsense", "tracecontext,baggage"]]
        );
    }
    // A disabled SDK exports neither signal.
    let mut disabled = [&WRONG[..], &[ON, WRONG_METRICS[0]]].concat();
    disabled[1].1 = "true";
    assert_eq!(ignored(&disabled).len(), 1);
}

#[test]
fn one_line_says_where_each_signal_goes() {
    let line = |variables| {
        let lines = start(variables).unwrap();
        let [line] = <[_; 1]>::try_from(lines).unwrap();
        line
    };
    let advice = "metrics are pushed if OTEL_METRICS_EXPORTER is otlp";
    assert_eq!(
        line(&[]),
        json!({"level": "info", "event": "telemetry_configured",
            "traces": "off", "metrics": "scrape", "logs": "json"})
    );
    assert_eq!(
        line(&[ON, ("OTEL_EXPORTER_OTLP_ENDPOINT", "collector:4317")]),
        json!({"level": "info", "event": "telemetry_configured", "traces": "grpc http://collector:4317",
            "metrics": "scrape", "logs": "json", "advice": advice})
    );
    let http = [
        ON,
        PUSHED,
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "https://collector/in?key=secret"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "authorization=secret"),
        ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://127.0.0.1:9/traces"),
    ];
    assert_eq!(
        line(&http),
        json!({"level": "info", "event": "telemetry_configured",
            "traces": "http/protobuf http://127.0.0.1:9/traces",
            "metrics": "scrape, http/protobuf https://collector/in/v1/metrics", "logs": "json"})
    );
    let off = [ON, ("OTEL_SDK_DISABLED", "true"), ("METRICS_ENABLED", "false")];
    assert_eq!(
        line(&off),
        json!({"level": "info", "event": "telemetry_configured",
            "traces": "off", "metrics": "off", "logs": "json"})
    );
}

#[test]
fn calls_of_the_program_count_in_the_line_about_signals() {
    let collected = start_with(&[], |builder| builder.span_collector(SpanCollector::new()));
    assert_eq!(collected.unwrap()[0]["traces"], "process");
    let config = OtlpConfig::new()
        .protocol(OtlpProtocol::Grpc)
        .endpoint("http://127.0.0.1:9");
    let variables = [("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json")];
    let lines = start_with(&variables, |builder| builder.enabled(true).otlp(config)).unwrap();
    let [line] = &lines[..] else { panic!("{lines:?}") };
    assert_eq!(line["traces"], "grpc http://127.0.0.1:9");
}
