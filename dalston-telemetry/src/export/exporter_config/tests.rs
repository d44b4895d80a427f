//! The variables of exporters: values that are read, and values that are refused.

use super::*;

type Pairs<'a> = &'a [(&'a str, &'a str)];

fn read(pairs: Pairs<'_>) -> Result<ExporterConfig, EnvError> {
    ExporterConfig::read(
        Signal::Traces,
        &OtlpConfig::new(),
        &Env::from_pairs(pairs.iter().copied()),
    )
}

fn batching(pairs: Pairs<'_>) -> Result<BatchConfig, EnvError> {
    BatchConfig::read(&Env::from_pairs(pairs.iter().copied()))
}

/// A setting as a text, to compare with a literal in a table.
type Shown = fn(&ExporterConfig) -> String;

const PROTOCOL: Shown = |exporter| format!("{:?}", exporter.protocol);
const ENDPOINT: Shown = |exporter| exporter.endpoint.uri().to_string();
const TIMEOUT: Shown = |exporter| format!("{:?}", exporter.timeout);
const GZIP: Shown = |exporter| exporter.gzip.to_string();
const HEADERS: Shown = |exporter| {
    let pairs = exporter
        .headers
        .iter()
        .map(|(name, value)| format!("{name}={}", value.to_str().unwrap()));
    pairs.collect::<Vec<_>>().join(" ")
};
const CERTIFICATE: Shown = |exporter| {
    exporter
        .tls
        .certificate
        .as_ref()
        .map(|file| file.path.clone())
        .unwrap_or_default()
};
const IDENTITY: Shown = |exporter| {
    let identity = exporter.tls.identity.as_ref();
    identity
        .map(|identity| format!("{} {}", identity.certificate.path, identity.key.path))
        .unwrap_or_default()
};
const PROXY: Shown = |exporter| {
    exporter
        .proxy
        .as_ref()
        .map(|proxy| proxy.url.clone())
        .unwrap_or_default()
};

const HTTP: (&str, &str) = ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf");
const ENDPOINT_OF_ALL: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";
const ENDPOINT_OF_TRACES: &str = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT";

#[test]
fn every_variable_does_what_it_says() {
    let table: &[(Shown, Pairs<'_>, &str)] = &[
        // No variable.
        (PROTOCOL, &[], "Grpc"),
        (ENDPOINT, &[], "http://localhost:4317/"),
        (ENDPOINT, &[HTTP], "http://localhost:4318/v1/traces"),
        (TIMEOUT, &[], "10s"),
        (GZIP, &[], "false"),
        (HEADERS, &[], ""),
        (CERTIFICATE, &[], ""),
        (IDENTITY, &[], ""),
        // Protocol.
        (PROTOCOL, &[HTTP], "HttpProtobuf"),
        (PROTOCOL, &[("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")], "Grpc"),
        (
            PROTOCOL,
            &[HTTP, ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "grpc")],
            "Grpc",
        ),
        // Endpoint: over HTTP, the path of the signal is appended to the general one only.
        (
            ENDPOINT,
            &[(ENDPOINT_OF_ALL, "http://otel:4317")],
            "http://otel:4317/",
        ),
        (
            ENDPOINT,
            &[HTTP, (ENDPOINT_OF_ALL, "http://otel:4318")],
            "http://otel:4318/v1/traces",
        ),
        (
            ENDPOINT,
            &[HTTP, (ENDPOINT_OF_ALL, "http://otel:4318/")],
            "http://otel:4318/v1/traces",
        ),
        (
            ENDPOINT,
            &[HTTP, (ENDPOINT_OF_ALL, "https://otel/base/")],
            "https://otel/base/v1/traces",
        ),
        (
            ENDPOINT,
            &[HTTP, (ENDPOINT_OF_ALL, "http://otel/in?key=k")],
            "http://otel/in/v1/traces?key=k",
        ),
        (
            ENDPOINT,
            &[HTTP, (ENDPOINT_OF_TRACES, "http://otel:4318")],
            "http://otel:4318/",
        ),
        (
            ENDPOINT,
            &[HTTP, (ENDPOINT_OF_TRACES, "http://otel/own")],
            "http://otel/own",
        ),
        (
            ENDPOINT,
            &[
                (ENDPOINT_OF_ALL, "http://all:1"),
                (ENDPOINT_OF_TRACES, "http://traces:2"),
            ],
            "http://traces:2/",
        ),
        // Without a scheme.
        (
            ENDPOINT,
            &[(ENDPOINT_OF_ALL, "otel-collector:4317")],
            "http://otel-collector:4317/",
        ),
        (
            ENDPOINT,
            &[(ENDPOINT_OF_ALL, "localhost:4317")],
            "http://localhost:4317/",
        ),
        (
            ENDPOINT,
            &[(ENDPOINT_OF_ALL, "10.0.0.7:4317")],
            "http://10.0.0.7:4317/",
        ),
        (ENDPOINT, &[(ENDPOINT_OF_ALL, "[::1]:4317")], "http://[::1]:4317/"),
        (
            ENDPOINT,
            &[HTTP, (ENDPOINT_OF_ALL, "otel:4318")],
            "http://otel:4318/v1/traces",
        ),
        // Plain or encrypted: only without a scheme.
        (
            ENDPOINT,
            &[(ENDPOINT_OF_ALL, "otel:1"), ("OTEL_INSECURE", "false")],
            "https://otel:1/",
        ),
        (
            ENDPOINT,
            &[(ENDPOINT_OF_ALL, "otel:1"), ("OTEL_INSECURE", "true")],
            "http://otel:1/",
        ),
        (
            ENDPOINT,
            &[
                (ENDPOINT_OF_ALL, "otel:1"),
                ("OTEL_EXPORTER_OTLP_INSECURE", "FALSE"),
            ],
            "https://otel:1/",
        ),
        (
            ENDPOINT,
            &[
                (ENDPOINT_OF_ALL, "otel:1"),
                ("OTEL_EXPORTER_OTLP_INSECURE", "false"),
                ("OTEL_EXPORTER_OTLP_TRACES_INSECURE", "true"),
            ],
            "http://otel:1/",
        ),
        (
            ENDPOINT,
            &[
                (ENDPOINT_OF_ALL, "otel:1"),
                ("OTEL_INSECURE", "false"),
                ("OTEL_EXPORTER_OTLP_INSECURE", "true"),
            ],
            "http://otel:1/",
        ),
        (
            ENDPOINT,
            &[(ENDPOINT_OF_ALL, "http://otel:1"), ("OTEL_INSECURE", "false")],
            "http://otel:1/",
        ),
        (
            ENDPOINT,
            &[(ENDPOINT_OF_ALL, "https://otel:1"), ("OTEL_INSECURE", "true")],
            "https://otel:1/",
        ),
        // Timeout, in milliseconds; 0 for none.
        (TIMEOUT, &[("OTEL_EXPORTER_OTLP_TIMEOUT", "2500")], "2.5s"),
        (
            TIMEOUT,
            &[
                ("OTEL_EXPORTER_OTLP_TIMEOUT", "1"),
                ("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "2"),
            ],
            "2ms",
        ),
        (TIMEOUT, &[("OTEL_EXPORTER_OTLP_TIMEOUT", "0")], "86400s"),
        // Compression.
        (GZIP, &[("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip")], "true"),
        (GZIP, &[("OTEL_EXPORTER_OTLP_COMPRESSION", "none")], "false"),
        (
            GZIP,
            &[
                ("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip"),
                ("OTEL_EXPORTER_OTLP_TRACES_COMPRESSION", "none"),
            ],
            "false",
        ),
        // Headers: percent-decoded, and those for traces instead of the general ones.
        (
            HEADERS,
            &[("OTEL_EXPORTER_OTLP_HEADERS", "X-Key=a%2Cb , x-b=1=2,")],
            "x-key=a,b x-b=1=2",
        ),
        (
            HEADERS,
            &[
                ("OTEL_EXPORTER_OTLP_HEADERS", "a=1"),
                ("OTEL_EXPORTER_OTLP_TRACES_HEADERS", "b=2"),
            ],
            "b=2",
        ),
        // Files.
        (
            CERTIFICATE,
            &[("OTEL_EXPORTER_OTLP_CERTIFICATE", "/ca.pem")],
            "/ca.pem",
        ),
        (
            CERTIFICATE,
            &[
                ("OTEL_EXPORTER_OTLP_CERTIFICATE", "/ca.pem"),
                ("OTEL_EXPORTER_OTLP_TRACES_CERTIFICATE", "/own.pem"),
            ],
            "/own.pem",
        ),
        (
            IDENTITY,
            &[
                ("OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE", "/c.pem"),
                ("OTEL_EXPORTER_OTLP_CLIENT_KEY", "/k.pem"),
            ],
            "/c.pem /k.pem",
        ),
        (
            IDENTITY,
            &[
                ("OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE", "/c.pem"),
                ("OTEL_EXPORTER_OTLP_CLIENT_KEY", "/k.pem"),
                ("OTEL_EXPORTER_OTLP_TRACES_CLIENT_CERTIFICATE", "/tc.pem"),
                ("OTEL_EXPORTER_OTLP_TRACES_CLIENT_KEY", "/tk.pem"),
            ],
            "/tc.pem /tk.pem",
        ),
        // The proxy is not used for this machine.
        (
            PROXY,
            &[
                HTTP,
                (ENDPOINT_OF_ALL, "https://otel"),
                ("HTTPS_PROXY", "http://proxy:3128"),
            ],
            "http://proxy:3128",
        ),
        (
            PROXY,
            &[
                HTTP,
                (ENDPOINT_OF_ALL, "http://otel"),
                ("HTTP_PROXY", "http://proxy:3128"),
            ],
            "",
        ),
        (
            PROXY,
            &[
                HTTP,
                (ENDPOINT_OF_ALL, "http://otel"),
                ("http_proxy", "http://proxy:3128"),
            ],
            "http://proxy:3128",
        ),
        (
            PROXY,
            &[
                HTTP,
                (ENDPOINT_OF_ALL, "http://127.0.0.1:1"),
                ("http_proxy", "http://proxy:3128"),
            ],
            "",
        ),
        (
            PROXY,
            &[
                HTTP,
                (ENDPOINT_OF_ALL, "http://[::1]:1"),
                ("all_proxy", "http://proxy:3128"),
            ],
            "",
        ),
    ];
    for (shown, pairs, expected) in table {
        let exporter = read(pairs).unwrap_or_else(|error| panic!("{pairs:?}: {error}"));
        assert_eq!(shown(&exporter), *expected, "{pairs:?}");
    }
}

#[test]
fn error_names_variable_value_and_accepted_values() {
    let table: &[(Pairs<'_>, &str)] = &[
        (
            &[("OTEL_EXPORTER_OTLP_PROTOCOL", "http/xml")],
            r#"OTEL_EXPORTER_OTLP_PROTOCOL is "http/xml": expected grpc or http/protobuf"#,
        ),
        (
            &[("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "GRPC2")],
            r#"OTEL_EXPORTER_OTLP_TRACES_PROTOCOL is "GRPC2": expected grpc or http/protobuf"#,
        ),
        (
            &[("OTEL_EXPORTER_OTLP_TIMEOUT", "10s")],
            r#"OTEL_EXPORTER_OTLP_TIMEOUT is "10s": expected a whole number of milliseconds"#,
        ),
        (
            &[("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "-1")],
            r#"OTEL_EXPORTER_OTLP_TRACES_TIMEOUT is "-1": expected a whole number of milliseconds"#,
        ),
        (
            &[("OTEL_EXPORTER_OTLP_COMPRESSION", "gzipped")],
            r#"OTEL_EXPORTER_OTLP_COMPRESSION is "gzipped": expected gzip or none"#,
        ),
        (
            &[("OTEL_EXPORTER_OTLP_INSECURE", "2")],
            r#"OTEL_EXPORTER_OTLP_INSECURE is "2": expected true or false"#,
        ),
        (
            &[("OTEL_INSECURE", "maybe")],
            r#"OTEL_INSECURE is "maybe": expected true or false"#,
        ),
        (
            &[("OTEL_EXPORTER_OTLP_CLIENT_KEY", "/k.pem")],
            r#"OTEL_EXPORTER_OTLP_CLIENT_KEY is "/k.pem": expected OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE to be set beside it"#,
        ),
        (
            &[("OTEL_EXPORTER_OTLP_TRACES_CLIENT_CERTIFICATE", "/c.pem")],
            r#"OTEL_EXPORTER_OTLP_TRACES_CLIENT_CERTIFICATE is "/c.pem": expected OTEL_EXPORTER_OTLP_CLIENT_KEY to be set beside it"#,
        ),
    ];
    for (pairs, expected) in table {
        assert_eq!(read(pairs).unwrap_err().to_string(), *expected);
    }
    for endpoint in [
        "ftp://otel:4317",
        "http://",
        "otel:port",
        "http://otel:99999",
        "unix:///run/otel.sock",
        "unix:/run/otel.sock",
        "UNIX:otel.sock",
        "a b",
    ] {
        let error = read(&[(ENDPOINT_OF_ALL, endpoint)]).unwrap_err();
        assert_eq!(
            (error.variable(), error.value()),
            (ENDPOINT_OF_ALL, Some(endpoint))
        );
        assert_eq!(error.accepted(), super::ENDPOINT.accepted());
    }
}

#[test]
fn secrets_are_not_in_errors_or_debug_output() {
    let wrong: &[Pairs<'_>] = &[
        &[(ENDPOINT_OF_ALL, "http://user:hunter2@otel:4317")],
        &[(ENDPOINT_OF_TRACES, "http://otel:99999/?key=hunter2")],
        &[("OTEL_EXPORTER_OTLP_HEADERS", "hunter2")],
        &[("OTEL_EXPORTER_OTLP_HEADERS", "bad name=hunter2")],
        &[("OTEL_EXPORTER_OTLP_HEADERS", "key=hunter2%0a")],
        &[("OTEL_EXPORTER_OTLP_HEADERS", "content-length=hunter2")],
        &[("OTEL_EXPORTER_OTLP_TRACES_HEADERS", "grpc-timeout=hunter2")],
    ];
    for pairs in wrong {
        let error = read(pairs).unwrap_err();
        assert_eq!(error.variable(), pairs[0].0);
        for text in [error.to_string(), format!("{error:?}")] {
            assert!(!text.contains("hunter2"), "{text}");
        }
    }
    let config = OtlpConfig::new()
        .header("x-key", "hunter2")
        .endpoint("http://otel/?key=hunter2");
    let exporter = ExporterConfig::read(Signal::Traces, &config, &Env::default()).unwrap();
    for text in [
        format!("{config:?}"),
        format!("{exporter:?}"),
        exporter.endpoint.to_string(),
    ] {
        assert!(!text.contains("hunter2"), "{text}");
    }
}

#[test]
fn explicit_calls_win_over_every_variable() {
    let env = Env::from_pairs([
        ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "nonsense"),
        ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "nonsense://"),
        ("OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "nonsense"),
        ("OTEL_EXPORTER_OTLP_TRACES_COMPRESSION", "nonsense"),
        ("OTEL_EXPORTER_OTLP_TRACES_INSECURE", "nonsense"),
        ("OTEL_EXPORTER_OTLP_TRACES_CERTIFICATE", "/env.pem"),
        ("OTEL_EXPORTER_OTLP_TRACES_CLIENT_KEY", "/env.key"),
        ("OTEL_EXPORTER_OTLP_TRACES_HEADERS", "a=env,b=env"),
    ]);
    let config = OtlpConfig::new()
        .protocol(OtlpProtocol::HttpProtobuf)
        .endpoint("otel:1/own")
        .timeout(Duration::from_millis(7))
        .compression(OtlpCompression::Gzip)
        .insecure(false)
        .certificate("/call.pem")
        .client_identity("/call-client.pem", "/call.key")
        .header("a", "call");
    let exporter = ExporterConfig::read(Signal::Traces, &config, &env).unwrap();
    let shown =
        [PROTOCOL, ENDPOINT, TIMEOUT, GZIP, CERTIFICATE, IDENTITY, HEADERS].map(|shown| shown(&exporter));
    assert_eq!(
        shown,
        [
            "HttpProtobuf",
            "https://otel:1/own",
            "7ms",
            "true",
            "/call.pem",
            "/call-client.pem /call.key",
            "a=call b=env"
        ]
    );
}

#[test]
fn batch_variables_are_read_and_fit_together() {
    let defaults = BatchConfig {
        schedule_delay: Duration::from_secs(5),
        max_queue_size: 2048,
        max_batch_size: 512,
        export_timeout: Duration::from_secs(30),
    };
    assert_eq!(batching(&[]), Ok(defaults.clone()));
    let all: Pairs<'_> = &[
        ("OTEL_BSP_SCHEDULE_DELAY", "100"),
        ("OTEL_BSP_MAX_QUEUE_SIZE", "20"),
        ("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "10"),
        ("OTEL_BSP_EXPORT_TIMEOUT", "700"),
    ];
    let expected = BatchConfig {
        schedule_delay: Duration::from_millis(100),
        max_queue_size: 20,
        max_batch_size: 10,
        export_timeout: Duration::from_millis(700),
    };
    assert_eq!(batching(all), Ok(expected));
    // A small queue reduces the default batch. An explicit batch must fit.
    assert_eq!(
        batching(&[("OTEL_BSP_MAX_QUEUE_SIZE", "100")])
            .unwrap()
            .max_batch_size,
        100
    );
    let errors: &[(Pairs<'_>, &str)] = &[
        (
            &[("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "4096")],
            r#"OTEL_BSP_MAX_EXPORT_BATCH_SIZE is "4096": expected at most OTEL_BSP_MAX_QUEUE_SIZE, which is 2048"#,
        ),
        (
            &[("OTEL_BSP_MAX_QUEUE_SIZE", "0")],
            r#"OTEL_BSP_MAX_QUEUE_SIZE is "0": expected a whole number from 1"#,
        ),
        (
            &[("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "many")],
            r#"OTEL_BSP_MAX_EXPORT_BATCH_SIZE is "many": expected a whole number from 1"#,
        ),
        (
            &[("OTEL_BSP_SCHEDULE_DELAY", "5s")],
            r#"OTEL_BSP_SCHEDULE_DELAY is "5s": expected a whole number of milliseconds"#,
        ),
        (
            &[("OTEL_BSP_EXPORT_TIMEOUT", "1.5")],
            r#"OTEL_BSP_EXPORT_TIMEOUT is "1.5": expected a whole number of milliseconds"#,
        ),
    ];
    for (pairs, expected) in errors {
        assert_eq!(batching(pairs).unwrap_err().to_string(), *expected);
    }
}

#[test]
fn exporters_are_a_list() {
    let read = |list| TraceExporters::read(&Env::from_pairs([("OTEL_TRACES_EXPORTER", list)]));
    let exporters = |otlp, console| Ok(TraceExporters { otlp, console });
    assert_eq!(read(""), exporters(true, false));
    assert_eq!(read("otlp"), exporters(true, false));
    assert_eq!(read("console"), exporters(false, true));
    assert_eq!(read("otlp, console"), exporters(true, true));
    assert_eq!(read("none"), exporters(false, false));
    assert_eq!(read("console,jaeger"), exporters(false, true));
    assert_eq!(read("jaeger"), exporters(true, false), "as if it were not set");
    let error = read("zipkin,collector").unwrap_err().to_string();
    assert_eq!(
        error,
        r#"OTEL_TRACES_EXPORTER is "zipkin,collector": expected otlp, console or none"#
    );
    assert!(read("none,otlp").is_err());
}

#[test]
fn names_in_variables_may_be_written_in_upper_case() {
    let exporter = read(&[
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "HTTP/Protobuf"),
        ("OTEL_EXPORTER_OTLP_COMPRESSION", "GZIP"),
    ])
    .unwrap();
    assert_eq!(exporter.protocol, OtlpProtocol::HttpProtobuf);
    assert!(exporter.gzip);
    let exporters = TraceExporters::read(&Env::from_pairs([("OTEL_TRACES_EXPORTER", "OTLP, Console")]));
    let both = TraceExporters {
        otlp: true,
        console: true,
    };
    assert_eq!(exporters, Ok(both));
}

#[test]
fn timeout_in_code_works_like_the_variable() {
    for (given, expected) in [
        (Duration::ZERO, NO_LIMIT),
        (Duration::MAX, NO_LIMIT),
        (Duration::from_secs(3), Duration::from_secs(3)),
    ] {
        let config = OtlpConfig::new().timeout(given);
        let exporter = ExporterConfig::read(Signal::Traces, &config, &Env::default()).unwrap();
        assert_eq!(exporter.timeout, expected);
    }
}

#[test]
fn variables_for_metrics_win_over_general_ones() {
    let read = |pairs: Pairs<'_>| {
        let env = Env::from_pairs(pairs.iter().copied());
        ExporterConfig::read(Signal::Metrics, &OtlpConfig::new(), &env).unwrap()
    };
    let general = [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://all:1"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf"),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "1000"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "key=all"),
        ("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip"),
        ("OTEL_EXPORTER_OTLP_CERTIFICATE", "/all"),
        ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://traces:1"),
    ];
    let own = [
        ("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", "http://own:2"),
        ("OTEL_EXPORTER_OTLP_METRICS_PROTOCOL", "grpc"),
        ("OTEL_EXPORTER_OTLP_METRICS_TIMEOUT", "2000"),
        ("OTEL_EXPORTER_OTLP_METRICS_HEADERS", "key=own"),
        ("OTEL_EXPORTER_OTLP_METRICS_COMPRESSION", "none"),
        ("OTEL_EXPORTER_OTLP_METRICS_CERTIFICATE", "/own"),
    ];
    let shown = |exporter: &ExporterConfig| {
        [PROTOCOL, ENDPOINT, TIMEOUT, HEADERS, GZIP, CERTIFICATE].map(|show| show(exporter))
    };
    assert_eq!(
        shown(&read(&general)),
        [
            "HttpProtobuf",
            "http://all:1/v1/metrics",
            "1s",
            "key=all",
            "true",
            "/all"
        ]
    );
    assert_eq!(
        shown(&read(&[&general[..], &own[..]].concat())),
        ["Grpc", "http://own:2/", "2s", "key=own", "false", "/own"]
    );
}

#[test]
fn export_interval_of_metrics_is_read_or_refused() {
    let read = |pairs: Pairs<'_>| PushConfig::read(&Env::from_pairs(pairs.iter().copied()));
    let default = PushConfig {
        interval: Duration::from_secs(60),
        export_timeout: Duration::from_secs(30),
        delta: false,
    };
    assert_eq!(read(&[]), Ok(default));
    let set = read(&[
        ("OTEL_METRIC_EXPORT_INTERVAL", "15000"),
        ("OTEL_METRIC_EXPORT_TIMEOUT", "5000"),
        ("OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE", "LowMemory"),
    ]);
    let expected = PushConfig {
        interval: Duration::from_secs(15),
        export_timeout: Duration::from_secs(5),
        delta: true,
    };
    assert_eq!(set, Ok(expected));
    for (name, value) in [
        ("OTEL_METRIC_EXPORT_INTERVAL", "0"),
        ("OTEL_METRIC_EXPORT_INTERVAL", "1m"),
        ("OTEL_METRIC_EXPORT_TIMEOUT", "-1"),
        ("OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE", "monthly"),
    ] {
        let error = read(&[(name, value)]).unwrap_err();
        assert_eq!((error.variable(), error.value()), (name, Some(value)));
    }
}

#[test]
fn metrics_are_pushed_when_the_list_of_exporters_says_so() {
    let read = |list| PushConfig::are_wanted(&Env::from_pairs([("OTEL_METRICS_EXPORTER", list)]));
    for (list, expected) in [
        ("", false),
        ("none", false),
        ("prometheus", false),
        ("OTLP", true),
        ("prometheus, otlp", true),
        ("console", false),
        ("console, otlp", true),
    ] {
        assert_eq!(read(list), Ok(expected), "{list}");
    }
    for list in ["none,otlp", "stdout", "otlp,"] {
        assert_eq!(read(list).unwrap_err().value(), Some(list));
    }
}
