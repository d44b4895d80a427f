//! The two text formats of Prometheus, and the choice between them.

use std::fmt::Write as _;

use super::exemplar::Measured;
use super::series::{Buckets, Head, Kind, Number, Series, Value, Visitor};

/// A text format of metrics.
///
/// ```
/// use dalston_telemetry::metrics::TextFormat;
///
/// let prometheus = "application/openmetrics-text;version=1.0.0,text/plain;q=0.5,*/*;q=0.1";
/// assert_eq!(TextFormat::negotiate([prometheus]), TextFormat::OpenMetrics);
/// assert_eq!(TextFormat::negotiate(["*/*"]), TextFormat::Prometheus);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum TextFormat {
    /// OpenMetrics 1.0, which has exemplars.
    OpenMetrics,
    /// Prometheus text 0.0.4, which all tools can read.
    Prometheus,
}

impl TextFormat {
    /// The content type. With another one, Prometheus fails the whole scrape if it has exemplars.
    #[must_use]
    pub const fn content_type(self) -> &'static str {
        match self {
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Self::Prometheus => "text/plain; version=0.0.4; charset=utf-8",
        }
    }

    /// The best format for the `Accept` headers of a request.
    ///
    /// A client gets OpenMetrics if it names it and does not prefer Prometheus text. A client that
    /// accepts neither gets Prometheus text, because a scrape is worth more than an error.
    #[must_use]
    pub fn negotiate<'a>(accept: impl IntoIterator<Item = &'a str>) -> Self {
        let (mut open_metrics, mut prometheus) = (0.0, 0.0);
        for range in accept.into_iter().flat_map(|header| header.split(',')) {
            let mut parts = range.split(';').map(str::trim);
            let name = parts.next().unwrap_or_default();
            let (mut version, mut quality) = (None, 1.0);
            for parameter in parts {
                match parameter.split_once('=') {
                    Some((name, value)) if name.eq_ignore_ascii_case("version") => {
                        version = Some(value.trim_matches('"'));
                    }
                    Some((name, value)) if name.eq_ignore_ascii_case("q") => {
                        quality = value
                            .parse::<f32>()
                            .ok()
                            .filter(|q| (0.0..=1.0).contains(q))
                            .unwrap_or(0.0);
                    }
                    _ => {}
                }
            }
            let is = |wanted: &str| name.eq_ignore_ascii_case(wanted);
            if is("application/openmetrics-text") && matches!(version, None | Some("1.0.0")) {
                open_metrics = quality.max(open_metrics);
            } else if is("text/plain") && matches!(version, None | Some("0.0.4")) {
                prometheus = quality.max(prometheus);
            }
        }
        if open_metrics > 0.0 && open_metrics >= prometheus {
            Self::OpenMetrics
        } else {
            Self::Prometheus
        }
    }
}

/// Writes the families that it visits.
pub(super) struct TextWriter {
    format: TextFormat,
    text: String,
    /// The upper bounds of the last histogram with their texts. Most histograms in a row share
    /// them.
    bounds: Vec<f64>,
    bound_texts: Vec<String>,
    /// The last family with a head.
    family: String,
}

impl TextWriter {
    pub(super) fn new(format: TextFormat, capacity: usize) -> Self {
        Self {
            format,
            text: String::with_capacity(capacity),
            bounds: Vec::new(),
            bound_texts: Vec::new(),
            family: String::new(),
        }
    }

    /// Appends a text of another writer.
    pub(super) fn raw(&mut self, text: &str) {
        self.text.push_str(text);
    }

    pub(super) fn finish(mut self) -> String {
        if self.format == TextFormat::OpenMetrics {
            self.text.push_str("# EOF\n");
        }
        self.text
    }

    /// Writes a line up to the value.
    fn sample(&mut self, name: &str, suffix: &str, series: &Series<'_>) {
        self.text.push_str(name);
        self.text.push_str(suffix);
        if series.open.is_empty() && series.closed.is_empty() {
            self.text.push(' ');
        } else {
            self.text.push('{');
            self.text.push_str(series.open);
            self.text.push_str(series.closed);
            self.text.push_str("} ");
        }
    }

    fn end_of_line(&mut self, exemplar: Option<Measured>) {
        if let Some(exemplar) = exemplar
            && self.format == TextFormat::OpenMetrics
        {
            // An exemplar is far below the 128 characters that OpenMetrics allows.
            let Measured {
                trace_id,
                span_id,
                value,
                at,
            } = exemplar;
            let _ = write!(self.text, " # {{trace_id=\"{trace_id}\",span_id=\"{span_id}\"}} ");
            push_number(&mut self.text, Number::Real(value));
            let _ = write!(self.text, " {}.{:06}", at / 1_000_000, at % 1_000_000);
        }
        self.text.push('\n');
    }

    fn histogram(&mut self, name: &str, series: &Series<'_>, buckets: &dyn Buckets) {
        if self.bounds != buckets.bounds() || self.bound_texts.is_empty() {
            self.bounds.clear();
            self.bounds.extend_from_slice(buckets.bounds());
            let bounds = self.bounds.iter().copied().chain([f64::INFINITY]);
            self.bound_texts.clear();
            self.bound_texts.extend(bounds.map(|bound| {
                let mut text = String::from("le=\"");
                push_number(&mut text, Number::Real(bound));
                text.push_str("\"} ");
                text
            }));
        }
        let start = self.text.len();
        for part in [name, "_bucket{", series.open, series.closed] {
            self.text.push_str(part);
        }
        if !series.open.is_empty() || !series.closed.is_empty() {
            self.text.push(',');
        }
        // All buckets begin like the first.
        let beginning = start..self.text.len();
        let mut count = 0;
        for bucket in 0..self.bound_texts.len() {
            if bucket > 0 {
                self.text.extend_from_within(beginning.clone());
            }
            // The sum of the buckets that were written, so that the last bucket equals the count.
            count += buckets.count(bucket);
            self.text.push_str(&self.bound_texts[bucket]);
            push_number(&mut self.text, Number::Whole(count));
            self.end_of_line(buckets.exemplar(bucket));
        }
        self.sample(name, "_sum", series);
        push_number(&mut self.text, Number::Real(buckets.sum()));
        self.end_of_line(None);
        self.sample(name, "_count", series);
        push_number(&mut self.text, Number::Whole(count));
        self.end_of_line(None);
    }
}

impl Visitor for TextWriter {
    fn family(&mut self, head: &Head<'_>) {
        if self.family == head.name {
            return;
        }
        head.name.clone_into(&mut self.family);
        let open_metrics = self.format == TextFormat::OpenMetrics;
        // In Prometheus text, a family has the name of its samples.
        let (suffix, kind) = match (head.kind, open_metrics) {
            (Kind::Counter, true) => ("", "counter"),
            (Kind::Counter, false) => ("_total", "counter"),
            (Kind::Gauge, _) => ("", "gauge"),
            (Kind::Histogram, _) => ("", "histogram"),
            (Kind::Info, true) => ("", "info"),
            (Kind::Info, false) => ("_info", "gauge"),
            (Kind::Unknown, true) => ("", "unknown"),
            (Kind::Unknown, false) => ("", "untyped"),
        };
        let name = head.name;
        let text = &mut self.text;
        if !head.help.is_empty() {
            for part in ["# HELP ", name, suffix, " "] {
                text.push_str(part);
            }
            for character in head.help.chars() {
                match character {
                    '\\' => text.push_str("\\\\"),
                    '\n' => text.push_str("\\n"),
                    '"' if open_metrics => text.push_str("\\\""),
                    other => text.push(other),
                }
            }
            text.push_str(".\n");
        }
        for part in ["# TYPE ", name, suffix, " ", kind, "\n"] {
            text.push_str(part);
        }
        if open_metrics && !head.unit.is_empty() {
            for part in ["# UNIT ", name, " ", head.unit, "\n"] {
                text.push_str(part);
            }
        }
    }

    fn series(&mut self, head: &Head<'_>, series: &Series<'_>) {
        match &series.value {
            Value::Counter(count, exemplar) => {
                self.sample(head.name, "_total", series);
                push_number(&mut self.text, *count);
                self.end_of_line(*exemplar);
            }
            Value::Gauge(value) => {
                let suffix = if head.kind == Kind::Info { "_info" } else { "" };
                self.sample(head.name, suffix, series);
                push_number(&mut self.text, *value);
                self.end_of_line(None);
            }
            Value::Histogram(buckets) => self.histogram(head.name, series, *buckets),
        }
    }
}

pub(super) fn push_number(text: &mut String, number: Number) {
    match number {
        Number::Whole(number) => text.push_str(itoa::Buffer::new().format(number)),
        Number::Signed(number) => text.push_str(itoa::Buffer::new().format(number)),
        Number::Real(number) if number.is_finite() => {
            // With a point, as other clients write the bounds of buckets: `1.0`.
            let _ = write!(text, "{number:?}");
        }
        Number::Real(number) if number.is_nan() => text.push_str("NaN"),
        Number::Real(number) => text.push_str(if number > 0.0 { "+Inf" } else { "-Inf" }),
    }
}

#[cfg(test)]
mod tests {
    use opentelemetry::Context;
    use opentelemetry::trace::{SpanContext, SpanId, TraceContextExt, TraceFlags, TraceId, TraceState};

    use super::super::{Counter, DenseFamily, Exemplar, Gauge, Histogram, Metrics, Status, Unit};
    use super::*;

    fn some_of_each() -> Metrics {
        let metrics = Metrics::new();
        let tasks = DenseFamily::<Status, Counter>::default();
        let waiting = DenseFamily::<(), Gauge>::default();
        let load = DenseFamily::<Status, Histogram>::new(|| Histogram::with_exemplars(&[0.5, 1.0]));
        metrics.register(|registry| {
            registry.register("tasks", "Tasks, by \"status\"", tasks.clone());
            registry.register("waiting", "Waiting", waiting.clone());
            registry.register_with_unit("load", "Time to load", Unit::Seconds, load.clone());
        });
        super::super::register_build_info(&metrics, "engine-x", "1.2.3");
        let span = SpanContext::new(
            TraceId::from(0xabc),
            SpanId::from(0xdef),
            TraceFlags::SAMPLED,
            true,
            TraceState::default(),
        );
        let _entered = Context::new().with_remote_span_context(span).attach();
        tasks.with(Status::Success).inc_in(Exemplar::current());
        waiting.with(()).set(-3);
        load.with(Status::Success).observe_in(0.75, Exemplar::current());
        load.with(Status::Success).observe(20.0);
        metrics
    }

    /// Cuts the times from exemplars.
    fn without_times(text: &str) -> String {
        let lines = text.lines().map(|line| match line.split_once(" # ") {
            Some((_, exemplar)) => line.trim_end_matches(exemplar.rsplit(' ').next().unwrap_or_default()),
            None => line,
        });
        lines.map(|line| format!("{line}\n")).collect()
    }

    #[test]
    fn open_metrics_has_units_and_exemplars() {
        let text = some_of_each().encode_as(TextFormat::OpenMetrics);
        let span = "# {trace_id=\"00000000000000000000000000000abc\",span_id=\"0000000000000def\"}";
        assert_eq!(
            without_times(&text),
            format!(
                "# HELP tasks Tasks, by \\\"status\\\".\n\
                 # TYPE tasks counter\n\
                 tasks_total{{status=\"success\"}} 1 {span} 1.0 \n\
                 tasks_total{{status=\"failure\"}} 0\n\
                 # HELP waiting Waiting.\n\
                 # TYPE waiting gauge\n\
                 waiting -3\n\
                 # HELP load_seconds Time to load.\n\
                 # TYPE load_seconds histogram\n\
                 # UNIT load_seconds seconds\n\
                 load_seconds_bucket{{status=\"success\",le=\"0.5\"}} 0\n\
                 load_seconds_bucket{{status=\"success\",le=\"1.0\"}} 1 {span} 0.75 \n\
                 load_seconds_bucket{{status=\"success\",le=\"+Inf\"}} 2\n\
                 load_seconds_sum{{status=\"success\"}} 20.75\n\
                 load_seconds_count{{status=\"success\"}} 2\n\
                 load_seconds_bucket{{status=\"failure\",le=\"0.5\"}} 0\n\
                 load_seconds_bucket{{status=\"failure\",le=\"1.0\"}} 0\n\
                 load_seconds_bucket{{status=\"failure\",le=\"+Inf\"}} 0\n\
                 load_seconds_sum{{status=\"failure\"}} 0.0\n\
                 load_seconds_count{{status=\"failure\"}} 0\n\
                 # HELP dalston_build The service and its version.\n\
                 # TYPE dalston_build info\n\
                 dalston_build_info{{service=\"engine-x\",version=\"1.2.3\"}} 1\n\
                 # EOF\n"
            )
        );
    }

    #[test]
    fn prometheus_text_has_the_same_series() {
        let metrics = some_of_each();
        let text = metrics.encode_as(TextFormat::Prometheus);
        let samples = |text: &str| -> Vec<String> {
            let lines = text.lines().filter(|line| !line.starts_with('#'));
            let lines = lines.map(|line| line.split(" # ").next().unwrap_or_default());
            lines.map(str::to_owned).collect()
        };
        assert_eq!(samples(&text), samples(&metrics.encode()));
        let heads: Vec<_> = text.lines().filter(|line| line.starts_with('#')).collect();
        assert_eq!(
            heads,
            [
                "# HELP tasks_total Tasks, by \"status\".",
                "# TYPE tasks_total counter",
                "# HELP waiting Waiting.",
                "# TYPE waiting gauge",
                "# HELP load_seconds Time to load.",
                "# TYPE load_seconds histogram",
                "# HELP dalston_build_info The service and its version.",
                "# TYPE dalston_build_info gauge",
            ]
        );
    }

    #[test]
    fn numbers_have_the_form_of_prometheus() {
        let mut text = String::new();
        for number in [
            1.0,
            0.1,
            -2.5,
            1e300,
            1e-7,
            f64::NAN,
            f64::INFINITY,
            f64::NEG_INFINITY,
        ] {
            push_number(&mut text, Number::Real(number));
            text.push(' ');
        }
        assert_eq!(text, "1.0 0.1 -2.5 1e300 1e-7 NaN +Inf -Inf ");
    }

    #[test]
    fn the_accept_header_selects_the_format() {
        use TextFormat::{OpenMetrics, Prometheus};
        let cases = [
            // Prometheus 2, then 3.
            (
                "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,\
                 text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
                OpenMetrics,
            ),
            (
                "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,\
                 application/openmetrics-text;version=0.0.1;q=0.5,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,\
                 text/plain;version=0.0.4;q=0.3,*/*;q=0.2",
                OpenMetrics,
            ),
            (
                "application/openmetrics-text; version=\"1.0.0\"; charset=utf-8",
                OpenMetrics,
            ),
            ("Application/OpenMetrics-Text", OpenMetrics),
            ("text/plain;q=0.9, application/openmetrics-text;q=0.5", Prometheus),
            ("application/openmetrics-text;q=0, text/plain", Prometheus),
            ("application/openmetrics-text;version=0.0.1", Prometheus),
            ("application/openmetrics-text;q=nonsense", Prometheus),
            ("text/html,application/xhtml+xml,*/*;q=0.8", Prometheus),
            ("*/*", Prometheus),
            ("application/json", Prometheus),
            ("", Prometheus),
        ];
        for (accept, expected) in cases {
            assert_eq!(TextFormat::negotiate([accept]), expected, "{accept}");
        }
        assert_eq!(TextFormat::negotiate([]), Prometheus);
        assert_eq!(
            TextFormat::negotiate(["text/plain;q=0.1", "application/openmetrics-text"]),
            OpenMetrics,
            "several headers are one list"
        );
    }
}
