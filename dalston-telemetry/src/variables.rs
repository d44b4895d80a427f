//! The environment variables that this crate reads: one table, from which the reference is made.

/// Variables that belong together, with what is said about all of them.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct VariableGroup {
    /// What they are about.
    pub title: &'static str,
    /// Who looks at them; may be empty.
    pub about: &'static str,
    /// What else there is to know; may be empty.
    pub note: &'static str,
    /// The variables.
    pub variables: &'static [Variable],
}

/// An environment variable, or several with one meaning.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Variable {
    /// Its names; of several, the text says which wins.
    pub names: &'static [&'static str],
    /// What counts where it is not set, as Markdown.
    pub default: &'static str,
    /// What it sets, as Markdown.
    pub meaning: &'static str,
}

impl VariableGroup {
    /// A group of variables.
    #[must_use]
    pub const fn new(
        title: &'static str,
        about: &'static str,
        note: &'static str,
        variables: &'static [Variable],
    ) -> Self {
        Self {
            title,
            about,
            note,
            variables,
        }
    }
}

impl Variable {
    /// A variable with these names.
    #[must_use]
    pub const fn new(names: &'static [&'static str], default: &'static str, meaning: &'static str) -> Self {
        Self {
            names,
            default,
            meaning,
        }
    }
}

/// All of them.
pub const VARIABLES: &[VariableGroup] = &[
    VariableGroup::new(
        "Traces",
        "the meaning is OpenTelemetry's; a variable with `TRACES` in its name wins over the one without",
        "",
        &[
            Variable::new(
                &["OTEL_ENABLED"],
                "`false`",
                "Whether spans are recorded and exported",
            ),
            Variable::new(
                &["OTEL_SDK_DISABLED"],
                "`false`",
                "`true`: nothing leaves by OTLP, whatever the others say; log lines and `/metrics` stay",
            ),
            Variable::new(
                &["OTEL_TRACES_EXPORTER"],
                "`otlp`",
                "`otlp`, `console` or `none`, or several with commas between",
            ),
            Variable::new(
                &[
                    "OTEL_EXPORTER_OTLP_ENDPOINT",
                    "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
                ],
                "`http://localhost:4317`, 4318 for HTTP",
                "Where to send to; `host:port` without a scheme works, too",
            ),
            Variable::new(
                &[
                    "OTEL_EXPORTER_OTLP_PROTOCOL",
                    "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL",
                ],
                "`grpc`",
                "`grpc` or `http/protobuf`",
            ),
            Variable::new(
                &["OTEL_EXPORTER_OTLP_HEADERS", "OTEL_EXPORTER_OTLP_TRACES_HEADERS"],
                "none",
                "`name=value` pairs with commas between, percent-encoded",
            ),
            Variable::new(
                &["OTEL_EXPORTER_OTLP_TIMEOUT", "OTEL_EXPORTER_OTLP_TRACES_TIMEOUT"],
                "10000",
                "Milliseconds for one request",
            ),
            Variable::new(
                &[
                    "OTEL_EXPORTER_OTLP_COMPRESSION",
                    "OTEL_EXPORTER_OTLP_TRACES_COMPRESSION",
                ],
                "`none`",
                "`gzip` or `none`",
            ),
            Variable::new(
                &[
                    "OTEL_EXPORTER_OTLP_INSECURE",
                    "OTEL_EXPORTER_OTLP_TRACES_INSECURE",
                    "OTEL_INSECURE",
                ],
                "`true`",
                "Whether an endpoint without a scheme is plain text",
            ),
            Variable::new(
                &[
                    "OTEL_EXPORTER_OTLP_CERTIFICATE",
                    "OTEL_EXPORTER_OTLP_TRACES_CERTIFICATE",
                ],
                "the system's",
                "File with the certificates to trust",
            ),
            Variable::new(
                &[
                    "OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE",
                    "OTEL_EXPORTER_OTLP_TRACES_CLIENT_CERTIFICATE",
                ],
                "none",
                "File with our own certificate",
            ),
            Variable::new(
                &[
                    "OTEL_EXPORTER_OTLP_CLIENT_KEY",
                    "OTEL_EXPORTER_OTLP_TRACES_CLIENT_KEY",
                ],
                "none",
                "File with its key",
            ),
            Variable::new(
                &["OTEL_BSP_SCHEDULE_DELAY"],
                "5000",
                "Milliseconds that a span waits for others to go with it",
            ),
            Variable::new(
                &["OTEL_BSP_MAX_QUEUE_SIZE"],
                "2048",
                "Spans that may wait; what comes beyond is dropped and counted",
            ),
            Variable::new(&["OTEL_BSP_MAX_EXPORT_BATCH_SIZE"], "512", "Spans in one request"),
            Variable::new(
                &["OTEL_BSP_EXPORT_TIMEOUT"],
                "30000",
                "Milliseconds for one batch with all its retries",
            ),
            Variable::new(
                &["OTEL_TRACES_SAMPLER", "OTEL_TRACES_SAMPLER_ARG"],
                "`parentbased_always_on`",
                "Which traces are kept; the argument is a ratio from 0 to 1",
            ),
            Variable::new(
                &["OTEL_PROPAGATORS"],
                "`tracecontext,baggage`",
                "How context travels; `none` for not at all",
            ),
            Variable::new(&["OTEL_SERVICE_NAME"], "what the program says", "`service.name`"),
            Variable::new(
                &["OTEL_RESOURCE_ATTRIBUTES"],
                "none",
                "`key=value` pairs with commas between, percent-encoded",
            ),
            Variable::new(
                &[
                    "OTEL_ATTRIBUTE_COUNT_LIMIT",
                    "OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT",
                    "OTEL_SPAN_EVENT_COUNT_LIMIT",
                    "OTEL_SPAN_LINK_COUNT_LIMIT",
                    "OTEL_EVENT_ATTRIBUTE_COUNT_LIMIT",
                    "OTEL_LINK_ATTRIBUTE_COUNT_LIMIT",
                ],
                "128",
                "How many attributes, events and links a span may have",
            ),
            Variable::new(
                &[
                    "OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT",
                    "OTEL_SPAN_ATTRIBUTE_VALUE_LENGTH_LIMIT",
                ],
                "none",
                "Characters after which the value of an attribute is cut",
            ),
        ],
    ),
    VariableGroup::new(
        "Metrics",
        "being scraped needs none of these",
        "OTLP over HTTP also follows `http_proxy`, `https_proxy`, `all_proxy` and `no_proxy`.",
        &[
            Variable::new(
                &["DALSTON_METRICS_ENABLED", "METRICS_ENABLED"],
                "`true`",
                "Whether metrics are served and pushed; the first that is set counts",
            ),
            Variable::new(
                &["DALSTON_METRICS_LABEL_VALUES"],
                "100",
                "Tenants, routes, engines, models and workers that metrics tell apart, of each; further ones share `__other__`; at most 10000",
            ),
            Variable::new(
                &["OTEL_METRICS_EXPORTER"],
                "`none`",
                "`otlp`: metrics are also pushed, unless `OTEL_ENABLED` is set to `false`; `prometheus`: they are scraped, as always; `console` is refused: `/metrics` is text",
            ),
            Variable::new(
                &["OTEL_METRIC_EXPORT_INTERVAL"],
                "60000",
                "Milliseconds between two pushes",
            ),
            Variable::new(
                &["OTEL_METRIC_EXPORT_TIMEOUT"],
                "30000",
                "Milliseconds for one push with all its retries",
            ),
            Variable::new(
                &["OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE"],
                "`cumulative`",
                "`delta` or `lowmemory`: counters and histograms tell what was added since the collector last heard of them",
            ),
            Variable::new(
                &[
                    "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT",
                    "OTEL_EXPORTER_OTLP_METRICS_PROTOCOL",
                    "OTEL_EXPORTER_OTLP_METRICS_HEADERS",
                    "OTEL_EXPORTER_OTLP_METRICS_TIMEOUT",
                    "OTEL_EXPORTER_OTLP_METRICS_COMPRESSION",
                    "OTEL_EXPORTER_OTLP_METRICS_INSECURE",
                    "OTEL_EXPORTER_OTLP_METRICS_CERTIFICATE",
                    "OTEL_EXPORTER_OTLP_METRICS_CLIENT_CERTIFICATE",
                    "OTEL_EXPORTER_OTLP_METRICS_CLIENT_KEY",
                ],
                "those without `METRICS`",
                "As for traces",
            ),
        ],
    ),
    VariableGroup::new(
        "Log lines",
        "",
        "",
        &[
            Variable::new(
                &["RUST_LOG"],
                "none",
                "Which events become lines, by target and level: `info,dalston_engine_sdk=debug`. Never decides about spans",
            ),
            Variable::new(
                &["LOG_LEVEL", "DALSTON_LOG_LEVEL"],
                "`info`; `off` for `transcribe` and `doctor`",
                "The same where `RUST_LOG` is not set; Python's level names work, too",
            ),
            Variable::new(
                &["DALSTON_LOG_FORMAT"],
                "`auto`",
                "`json`, `console`, or `auto`: readable on a terminal, JSON elsewhere",
            ),
            Variable::new(
                &["INSTANCE_TYPE"],
                "what was detected, else `unknown`",
                "The hardware: the field `instance_type` of every line, the label of metrics, and `host.type` of spans, which is absent where it is not known",
            ),
            Variable::new(
                &["NO_COLOR"],
                "not set",
                "Set to anything: no colours on a terminal",
            ),
        ],
    ),
    VariableGroup::new(
        "Amazon's cloud",
        "the command `run`, `transcribe` with `OTEL_ENABLED=true`, and programs that call `Cloud::detect`",
        "",
        &[
            Variable::new(
                &["AWS_EC2_METADATA_DISABLED"],
                "`false`",
                "`true`: the instance metadata service is never asked",
            ),
            Variable::new(
                &["AWS_EC2_METADATA_SERVICE_ENDPOINT"],
                "`http://169.254.169.254`",
                "Where it is; asked even if the machine does not look like EC2",
            ),
            Variable::new(
                &["AWS_EC2_METADATA_SERVICE_ENDPOINT_MODE"],
                "`IPv4`",
                "`IPv6`: it is at `http://[fd00:ec2::254]`",
            ),
            Variable::new(
                &["AWS_EC2_METADATA_V1_DISABLED"],
                "`false`",
                "`true`: version 1 is not spoken even where version 2 is refused",
            ),
            Variable::new(
                &[
                    "ECS_CONTAINER_METADATA_URI_V4",
                    "AWS_EXECUTION_ENV",
                    "AWS_LAMBDA_FUNCTION_NAME",
                    "AWS_LAMBDA_FUNCTION_VERSION",
                    "AWS_REGION",
                ],
                "set by Amazon",
                "By which ECS, Fargate and Lambda are recognised; `AWS_ECS_EC2` stands for ECS on instances",
            ),
        ],
    ),
    VariableGroup::new(
        "The queue exporter",
        "`dalston-queue-exporter`; it also takes `REDIS_URL`, `DALSTON_METRICS_PORT` and the variables of telemetry",
        "",
        &[
            Variable::new(
                &["DALSTON_SCRAPE_INTERVAL"],
                "15",
                "Seconds between two looks at Redis, from 1 to 3600",
            ),
            Variable::new(
                &["DALSTON_EVENTS_DLQ_STREAM"],
                "`dalston:events:dlq`",
                "The stream of events that the orchestrator put aside",
            ),
        ],
    ),
];
