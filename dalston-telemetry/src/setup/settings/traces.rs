use std::time::Duration;

use super::{Milliseconds, Number, OneOf, OtelSwitch, Switch, Text, Variable, WholeNumber};

variables! {
    /// While traces are off, only `OTEL_PROPAGATORS` and the names of the service count, and
    /// neither stops the program.
    pub group TRACES = "Traces";

    /// Whether spans are recorded and exported.
    pub static OTEL_ENABLED: Variable<bool> = Variable::new(&["OTEL_ENABLED"], &Switch).default("false");

    /// `true`: nothing leaves by OTLP, also if other variables ask for it. Log lines and `/metrics`
    /// stay.
    pub(crate) static OTEL_SDK_DISABLED: Variable<bool> =
        Variable::new(&["OTEL_SDK_DISABLED"], &OtelSwitch)
            .default("false")
            .unsupported(OtelSwitch::WORDS);

    /// Where spans go: one of these, or several with commas between. `console` is JSON on standard
    /// output, or on standard error if log lines go there. With `none`, spans have ids and are not
    /// exported.
    pub(crate) static OTEL_TRACES_EXPORTER: Variable<String> =
        Variable::new(&["OTEL_TRACES_EXPORTER"], &Text("otlp, console or none"))
            .default("otlp")
            .unsupported(&[
                ("zipkin", ""),
                ("jaeger", ""),
                ("prometheus", ""),
                ("logging", ""),
                ("logging-otlp", ""),
                ("otlp/stdout", ""),
                ("experimental-otlp/stdout", ""),
            ]);

    /// Milliseconds that a span waits for others to go with it.
    pub(crate) static OTEL_BSP_SCHEDULE_DELAY: Variable<Duration> =
        Variable::new(&["OTEL_BSP_SCHEDULE_DELAY"], &Milliseconds(0)).default("5000");

    /// Spans that may wait, of 64 MiB at most. Further ones are dropped and counted.
    pub(crate) static OTEL_BSP_MAX_QUEUE_SIZE: Variable<usize> =
        Variable::new(&["OTEL_BSP_MAX_QUEUE_SIZE"], &WholeNumber(1, u64::MAX)).default("2048");

    /// Spans in one request, of 4 MiB at most.
    pub(crate) static OTEL_BSP_MAX_EXPORT_BATCH_SIZE: Variable<usize> =
        Variable::new(&["OTEL_BSP_MAX_EXPORT_BATCH_SIZE"], &WholeNumber(1, u64::MAX)).default("512");

    /// Milliseconds for one batch with all its retries. 0: a day.
    pub(crate) static OTEL_BSP_EXPORT_TIMEOUT: Variable<Duration> =
        Variable::new(&["OTEL_BSP_EXPORT_TIMEOUT"], &Milliseconds(0)).default("30000");

    /// Which traces are kept.
    pub(crate) static OTEL_TRACES_SAMPLER: Variable<SamplerKind> = Variable::new(
        &["OTEL_TRACES_SAMPLER"],
        &OneOf(&[
            ("always_on", SamplerKind::AlwaysOn),
            ("always_off", SamplerKind::AlwaysOff),
            ("traceidratio", SamplerKind::Ratio),
            ("parentbased_always_on", SamplerKind::ParentBasedAlwaysOn),
            ("parentbased_always_off", SamplerKind::ParentBasedAlwaysOff),
            ("parentbased_traceidratio", SamplerKind::ParentBasedRatio),
        ]),
    )
    .default("parentbased_always_on")
    .unsupported(&[
        ("jaeger_remote", ""),
        ("parentbased_jaeger_remote", ""),
        ("xray", ""),
        ("parentbased_xray", ""),
        // Common slips.
        ("traceratio", "traceidratio"),
        ("parentbased_traceratio", "parentbased_traceidratio"),
    ]);

    /// The ratio of traces that `traceidratio` and `parentbased_traceidratio` keep.
    pub(crate) static OTEL_TRACES_SAMPLER_ARG: Variable<f64> = Variable::new(
        &["OTEL_TRACES_SAMPLER_ARG"],
        &Number { what: "a number", least: 0.0, most: 1.0 },
    )
    .default("1");

    /// The formats in which context travels between services. Counts also while traces are off.
    pub(crate) static OTEL_PROPAGATORS: Variable<String> =
        Variable::new(&["OTEL_PROPAGATORS"], &Text("a list of tracecontext and baggage, or none"))
            .default("tracecontext,baggage")
            .unsupported(&[
                ("b3", ""),
                ("b3multi", ""),
                ("jaeger", ""),
                ("xray", ""),
                ("xray-lambda", ""),
                ("ottrace", ""),
            ]);

    /// `http/dup` adds the attributes `http.method` and `http.status_code` of earlier conventions
    /// to the spans of HTTP requests, in engines, the gateway, and services that make their layer
    /// with `HttpLayer::of`. Other words, such as `http`, change nothing.
    pub(crate) static OTEL_SEMCONV_STABILITY_OPT_IN: Variable<String> =
        Variable::new(&["OTEL_SEMCONV_STABILITY_OPT_IN"], &Text("a list of words such as http/dup"));

    /// `service.name`. Wins over the name that the program gives.
    pub(crate) static OTEL_SERVICE_NAME: Variable<String> =
        Variable::new(&["OTEL_SERVICE_NAME"], &Text("a name")).default_described("the program's");

    /// Attributes of the resource of spans and metrics.
    pub(crate) static OTEL_RESOURCE_ATTRIBUTES: Variable<String> = Variable::new(
        &["OTEL_RESOURCE_ATTRIBUTES"],
        &Text("key=value pairs with commas between, percent-encoded in UTF-8"),
    );

    /// Attributes of one span, event or link, where the three variables for these are not set.
    pub(crate) static OTEL_ATTRIBUTE_COUNT_LIMIT: Variable<u32> =
        Variable::new(&["OTEL_ATTRIBUTE_COUNT_LIMIT"], &WholeNumber(0, u64::MAX)).default("128");

    /// Attributes of one span.
    pub(crate) static OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT: Variable<u32> =
        Variable::new(&["OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT"], &WholeNumber(0, u64::MAX)).default_described(GENERAL_LIMIT);

    /// Events of one span.
    pub(crate) static OTEL_SPAN_EVENT_COUNT_LIMIT: Variable<u32> =
        Variable::new(&["OTEL_SPAN_EVENT_COUNT_LIMIT"], &WholeNumber(0, u64::MAX)).default("128");

    /// Links of one span.
    pub(crate) static OTEL_SPAN_LINK_COUNT_LIMIT: Variable<u32> =
        Variable::new(&["OTEL_SPAN_LINK_COUNT_LIMIT"], &WholeNumber(0, u64::MAX)).default("128");

    /// Attributes of one event.
    pub(crate) static OTEL_EVENT_ATTRIBUTE_COUNT_LIMIT: Variable<u32> =
        Variable::new(&["OTEL_EVENT_ATTRIBUTE_COUNT_LIMIT"], &WholeNumber(0, u64::MAX)).default_described(GENERAL_LIMIT);

    /// Attributes of one link.
    pub(crate) static OTEL_LINK_ATTRIBUTE_COUNT_LIMIT: Variable<u32> =
        Variable::new(&["OTEL_LINK_ATTRIBUTE_COUNT_LIMIT"], &WholeNumber(0, u64::MAX)).default_described(GENERAL_LIMIT);

    /// Characters after which the text of an attribute of a span is cut.
    pub(crate) static OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT: Variable<usize> = Variable::new(
        &["OTEL_SPAN_ATTRIBUTE_VALUE_LENGTH_LIMIT", "OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT"],
        &WholeNumber(0, u64::MAX),
    );
}

const GENERAL_LIMIT: &str = "`OTEL_ATTRIBUTE_COUNT_LIMIT`";

/// The values of [`OTEL_TRACES_SAMPLER`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SamplerKind {
    AlwaysOn,
    AlwaysOff,
    Ratio,
    ParentBasedAlwaysOn,
    ParentBasedAlwaysOff,
    ParentBasedRatio,
}
