//! The span processors of a process.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use opentelemetry::Context;
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{Span, SpanData, SpanProcessor};

use super::{limits, monotonic};

/// The program's processors and the exporter's, which all see spans without secrets and within the
/// limits. Clones share them.
///
/// `Telemetry` shuts these down rather than the SDK's provider, because spans of a provider that is
/// shut down have no ids. Log lines and outgoing requests need ids for as long as the subscriber
/// lives, and the exporter counts spans that end too late.
#[derive(Clone, Debug)]
pub(crate) struct Processors {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    of_program: Vec<Box<dyn SpanProcessor>>,
    exporter: Option<Box<dyn SpanProcessor>>,
    value_length: Option<usize>,
    is_shut_down: AtomicBool,
}

impl Processors {
    pub(crate) fn new(
        mut of_program: Vec<Box<dyn SpanProcessor>>,
        exporter: Option<Box<dyn SpanProcessor>>,
        value_length: Option<usize>,
        resource: &Resource,
    ) -> Self {
        for processor in &mut of_program {
            processor.set_resource(resource);
        }
        Self {
            shared: Arc::new(Shared {
                of_program,
                exporter,
                value_length,
                is_shut_down: AtomicBool::new(false),
            }),
        }
    }

    /// The program's processors, until they are shut down.
    fn of_program(&self) -> &[Box<dyn SpanProcessor>] {
        match self.shared.is_shut_down.load(Ordering::Acquire) {
            true => &[],
            false => &self.shared.of_program,
        }
    }

    fn all(&self) -> impl Iterator<Item = &dyn SpanProcessor> {
        let all = self.shared.of_program.iter().chain(&self.shared.exporter);
        all.map(|processor| &**processor)
    }
}

impl SpanProcessor for Processors {
    fn on_start(&self, span: &mut Span, cx: &Context) {
        for processor in self.of_program() {
            processor.on_start(span, cx);
        }
    }

    fn on_end(&self, mut span: SpanData) {
        monotonic::correct(&mut span);
        limits::clean(&mut span, self.shared.value_length);
        let mut processors = self.of_program().iter().chain(&self.shared.exporter).peekable();
        while let Some(processor) = processors.next() {
            if processors.peek().is_none() {
                return processor.on_end(span);
            }
            processor.on_end(span.clone());
        }
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.all()
            .map(SpanProcessor::force_flush)
            .fold(Ok(()), OTelSdkResult::and)
    }

    /// Shuts down one processor after the other; `timeout` is for all of them together.
    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        if self.shared.is_shut_down.swap(true, Ordering::AcqRel) {
            return Ok(());
        }
        let started = Instant::now();
        self.all()
            .map(|processor| processor.shutdown_with_timeout(timeout.saturating_sub(started.elapsed())))
            .fold(Ok(()), OTelSdkResult::and)
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use opentelemetry::trace::{Span as _, Tracer, TracerProvider};
    use opentelemetry_sdk::trace::SdkTracerProvider;

    use super::*;
    use crate::SpanCollector;

    #[test]
    fn span_does_not_end_before_its_start_when_clock_is_set_back() {
        let collected = SpanCollector::new();
        let of_program: Vec<Box<dyn SpanProcessor>> = vec![Box::new(collected.clone())];
        let resource = Resource::builder_empty().build();
        let processors = Processors::new(of_program, None, None, &resource);
        let provider = SdkTracerProvider::builder().with_span_processor(processors);
        let provider = provider.build();
        let tracer = provider.tracer("test");
        let start = SystemTime::now() + Duration::from_secs(3600);
        let builder = || tracer.span_builder("work").with_start_time(start);
        let mut span = builder().start(&tracer);
        span.add_event("while the clock was set back", Vec::new());
        monotonic::ending(Duration::from_secs(2), || span.end());
        // A span whose duration is not known, such as one with times of its own.
        builder()
            .start(&tracer)
            .end_with_timestamp(start + Duration::from_secs(7));
        let spans = collected.spans();
        let ends = spans.iter().map(|span| span.end);
        assert!(ends.eq([2, 7].map(|seconds| start + Duration::from_secs(seconds))));
        assert_eq!(spans[0].events[0].timestamp, start);
    }

    #[test]
    fn exporter_alone_sees_spans_after_shutdown() {
        let (program, exporter) = (SpanCollector::new(), SpanCollector::new());
        let resource = Resource::builder_empty().build();
        let of_program: Vec<Box<dyn SpanProcessor>> = vec![Box::new(program.clone())];
        let processors = Processors::new(of_program, Some(Box::new(exporter.clone())), None, &resource);
        let provider = SdkTracerProvider::builder()
            .with_span_processor(processors.clone())
            .build();
        let tracer = provider.tracer("test");
        tracer.in_span("before", |_| {});
        processors.shutdown_with_timeout(Duration::ZERO).unwrap();
        tracer.in_span("after", |_| {});
        assert_eq!((program.spans().len(), exporter.spans().len()), (1, 2));
    }
}
