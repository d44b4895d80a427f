//! The waterfall of a trace: a tree of spans, each with its bar.
//!
//! The server draws all of it. The script of the page folds, zooms and selects, and shows the
//! details that each row carries.

mod critical;
mod details;
#[cfg(test)]
mod samples;
mod tree;

use std::collections::{BTreeSet, HashMap};
use std::time::{Duration, SystemTime};

use dalston_telemetry::CollectedSpan;
use dalston_telemetry::opentelemetry::TraceId;
use maud::{Markup, html};

use self::critical::{Section, critical_path};
use self::tree::{Node, tree};
use super::layout::duration;

/// The most spans that are drawn.
const MAX_ROWS: usize = 1_000;
/// The width of the bars in their own units.
const WIDTH: f64 = 100_000.0;
/// The number of colours for services, and of steps to the right, in the style sheet.
const COLOURS: usize = 8;
const STEPS: usize = 24;
/// The attribute with the service of a span.
const SERVICE: &str = "service.name";

/// The section of a page about a trace; `None` if the job has no trace.
pub(super) fn section(trace_id: Option<TraceId>, spans: &[CollectedSpan]) -> Markup {
    html! {
        h2 { "Trace" }
        @match trace_id {
            None => p.none {
                "The job has no trace: tracing is off in the gateway (OTEL_ENABLED)."
            }
            Some(_) if spans.is_empty() => p.none {
                "No spans have arrived yet. A process sends its spans to this platform if OTEL_ENABLED is true and \
                 OTEL_EXPORTER_OTLP_ENDPOINT names it; only the newest traces are kept, and only sampled ones arrive."
            }
            Some(trace_id) => { (waterfall(trace_id, spans)) }
        }
    }
}

fn waterfall(trace_id: TraceId, spans: &[CollectedSpan]) -> Markup {
    let nodes = tree(spans);
    let path = critical_path(&nodes);
    let chart = Chart::new(&nodes, &path);
    let download = |format| format!("v1/traces/{trace_id}?format={format}");
    html! {
        div.tools {
            span { (spans.len()) " spans in " (duration(chart.whole)) }
            @for (service, colour) in &chart.services {
                span { i class={ "dot c" (colour) } {} (service) }
            }
            span { i.dot.critical {} "critical path" }
            button data-trace="reset" { "Reset zoom" }
            button data-trace="expand" { "Expand all" }
            button data-trace="help" { "Keys (?)" }
            a href=(download("otlp")) download={ (trace_id) ".otlp.json" } { "OTLP JSON" }
            a href=(download("jaeger")) download={ (trace_id) ".jaeger.json" } { "Jaeger JSON" }
        }
        div.axis data-seconds=(chart.whole.as_secs_f64()) aria-hidden="true" {
            @for quarter in 0..4 { span { (duration(chart.whole * quarter / 4)) } }
        }
        div.rows role="tree" aria-label="Spans" {
            @for (place, node) in nodes.iter().enumerate().take(MAX_ROWS) { (chart.row(place, node)) }
        }
        @if nodes.len() > MAX_ROWS {
            p.none { "The first " (MAX_ROWS) " spans are shown. The downloads have all of them." }
        }
    }
}

/// The keys of the waterfall, outside of the part that is replaced.
pub(super) fn help() -> Markup {
    html! {
        dialog #help {
            h3 { "Keys of the waterfall" }
            dl.facts {
                dt { "↑ ↓" } dd { "the span before, the span after" }
                dt { "→" } dd { "expand, or go to the first child" }
                dt { "←" } dd { "collapse, or go to the parent" }
                dt { "Enter" } dd { "show attributes, events and links" }
                dt { "Esc" } dd { "close them" }
                dt { "drag" } dd { "zoom into the time between" }
                dt { "0" } dd { "reset the zoom" }
            }
            form method="dialog" { button { "Close" } }
        }
    }
}

/// What all rows need.
struct Chart<'a> {
    nodes: &'a [Node<'a>],
    start: SystemTime,
    whole: Duration,
    /// The services and the numbers of their colours.
    services: Vec<(String, usize)>,
    /// The critical path by node.
    path: HashMap<usize, Vec<&'a Section>>,
}

impl<'a> Chart<'a> {
    fn new(nodes: &'a [Node<'a>], path: &'a [Section]) -> Self {
        let start = nodes.iter().map(|node| node.span.start).min();
        let start = start.unwrap_or(SystemTime::UNIX_EPOCH);
        let end = nodes.iter().map(|node| node.span.end).max().unwrap_or(start);
        let services: BTreeSet<String> = nodes.iter().map(|node| service(node.span)).collect();
        let mut by_node: HashMap<usize, Vec<&Section>> = HashMap::new();
        for section in path {
            by_node.entry(section.node).or_default().push(section);
        }
        Self {
            nodes,
            start,
            whole: end
                .duration_since(start)
                .unwrap_or_default()
                .max(Duration::from_micros(1)),
            services: services.into_iter().zip((0..COLOURS).cycle()).collect(),
            path: by_node,
        }
    }

    fn row(&self, place: usize, node: &Node<'_>) -> Markup {
        let span = node.span;
        let path = self.path.get(&place).map_or(&[][..], Vec::as_slice);
        let service = service(span);
        let colour = self
            .services
            .iter()
            .find(|(name, _)| *name == service)
            .map_or(0, |(_, colour)| *colour);
        let notes = node.notes(self.nodes);
        let expanded = (!node.children.is_empty()).then_some("true");
        let (x, width) = self.bar(span.start, span.end);
        let (took, after) = (duration(span.duration()), duration(self.after(span.start)));
        let hover = format!("{service}: {}, took {took}, starts after {after}", span.name);
        html! {
            div.row.error[span.is_error()] role="treeitem" id={ "span-" (span.span_id) } tabindex="-1"
                aria-level=(node.depth + 1) aria-expanded=[expanded] title=(hover) {
                span class={ "name d" (node.depth.min(STEPS)) } {
                    span.toggle { @if expanded.is_some() { "▾" } }
                    i class={ "dot c" (colour) } {}
                    span.title { (span.name) }
                    @if span.is_error() { span.bad title="error" { " ✖" } }
                    @if !notes.is_empty() { span.note title=(notes.join(" ")) { " ⚠" } }
                }
                svg.bar viewBox={ "0 0 " (WIDTH) " 20" } preserveAspectRatio="none" aria-hidden="true" {
                    rect class={ "c" (colour) } x=(x) y="4" width=(width) height="12" {}
                    @for section in path {
                        @let (x, width) = self.bar(section.from, section.to);
                        rect.critical x=(x) y="16" width=(width) height="3" {}
                    }
                }
                span.took { (took) }
                template { (details::details(span, &service, self.start, path, &notes)) }
            }
        }
    }

    /// The time from the start of the trace.
    fn after(&self, time: SystemTime) -> Duration {
        time.duration_since(self.start).unwrap_or_default()
    }

    /// Where a bar begins, and how long it is.
    fn bar(&self, from: SystemTime, to: SystemTime) -> (String, String) {
        let place = |time| self.after(time).as_secs_f64() / self.whole.as_secs_f64() * WIDTH;
        let (from, to) = (place(from), place(to));
        (format!("{from:.1}"), format!("{:.1}", (to - from).max(0.0)))
    }
}

fn service(span: &CollectedSpan) -> String {
    span.attribute(SERVICE)
        .map_or_else(|| "unknown".to_owned(), |name| name.as_str().into_owned())
}

#[cfg(test)]
mod tests {
    use super::samples::spans;
    use super::*;

    #[test]
    fn waterfall_has_bars_marks_and_no_foreign_markup() {
        let spans = spans(&[("<i>root", None, 0, 100), ("early", Some("<i>root"), 0, 50)]);
        let text = section(Some(TraceId::from(1)), &spans).into_string();
        assert!(text.contains("2 spans in 100 ms"), "{text}");
        assert!(
            text.contains("&lt;i&gt;root") && text.contains("service of &lt;b&gt;"),
            "{text}"
        );
        assert!(!text.contains("<i>root") && !text.contains("<b>"), "{text}");
        assert!(!text.contains("style="), "{text}");
        assert!(
            text.contains("early, took 50.0 ms, starts after 0 ms\""),
            "{text}"
        );
        // The second half of the root is on the critical path.
        assert!(
            text.contains(r#"<rect class="critical" x="50000.0" y="16" width="50000.0""#),
            "{text}"
        );
    }

    #[test]
    fn long_trace_is_cut_and_says_so() {
        let names: Vec<String> = (0..1_100).map(|n| n.to_string()).collect();
        let samples: Vec<_> = names.iter().map(|name| (&**name, None, 0, 1)).collect();
        let text = section(Some(TraceId::from(1)), &spans(&samples)).into_string();
        assert_eq!(text.matches("role=\"treeitem\"").count(), 1_000);
        assert!(text.contains("The first 1000 spans are shown."));
    }

    #[test]
    fn trace_without_spans_says_why() {
        let shown = |id| section(id, &[]).into_string();
        assert!(shown(None).contains("tracing is off"));
        assert!(shown(Some(TraceId::from(1))).contains("No spans have arrived yet"));
    }
}
