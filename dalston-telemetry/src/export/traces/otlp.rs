//! Spans as OTLP has them.

use bytes::Bytes;
use opentelemetry::InstrumentationScope;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceResponse;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::SpanData;
use prost::Message;
use prost::encoding::{WireType, encode_key, encode_varint, encoded_len_varint, key_len};

use crate::error::InitError;
use crate::export::delivery::{Accepted, BatchTransport, Failure, MAX_REQUEST_BYTES, Transport};
use crate::export::exporter_config::ExporterConfig;
use crate::export::transport::{self, Wire};

/// Checks the configuration now, and connects when the result is called.
pub(super) fn connect(
    otlp: &ExporterConfig,
    resource: &Resource,
) -> Result<impl FnOnce() -> SpansOtlp + Send + use<>, InitError> {
    let connect = transport::connect(otlp)?;
    let requests = Requests::new(resource);
    Ok(move || SpansOtlp {
        requests,
        wire: connect(),
    })
}

pub(super) struct SpansOtlp {
    requests: Requests,
    wire: Wire,
}

impl BatchTransport<SpanData> for SpansOtlp {
    type Record = Record;

    fn room(&self) -> usize {
        self.requests.room
    }

    fn convert(&self, span: SpanData) -> (Record, usize) {
        convert(span)
    }

    fn request(&self, records: Vec<Record>) -> Bytes {
        self.requests.encode(records)
    }
}

impl Transport for SpansOtlp {
    type Request = Bytes;

    async fn send(&self, request: &Bytes) -> Result<Accepted, Failure> {
        const METHOD: &str = "/opentelemetry.proto.collector.trace.v1.TraceService/Export";
        self.wire
            .send::<ExportTraceServiceResponse>(METHOD, request.clone())
            .await
    }
}

impl From<ExportTraceServiceResponse> for Accepted {
    fn from(response: ExportTraceServiceResponse) -> Self {
        let partial = response.partial_success.unwrap_or_default();
        Self::partly(partial.rejected_spans, partial.error_message)
    }
}

/// An encoded span, and the scope in which a request lists it.
type Record = (InstrumentationScope, Vec<u8>);

/// Converts a span. Returns the record and the bytes that it takes in a request.
fn convert(mut span: SpanData) -> (Record, usize) {
    let scope = std::mem::take(&mut span.instrumentation_scope);
    let span = Span::from(span).encode_to_vec();
    let length = field_length(SPANS, span.len());
    ((scope, span), length)
}

/// Builds requests out of spans of one resource.
///
/// Spans are encoded one by one and then framed: prost computes the length of a message again in
/// each message around it, which takes longer than all else for a request of many spans.
struct Requests {
    /// `ResourceSpans` without spans.
    resource: Vec<u8>,
    /// The bytes that the spans of a request may take.
    room: usize,
}

/// `ExportTraceServiceRequest::resource_spans`
const RESOURCE_SPANS: u32 = 1;
/// `ResourceSpans::scope_spans`
const SCOPE_SPANS: u32 = 2;
/// `ScopeSpans::spans`
const SPANS: u32 = 2;

impl Requests {
    fn new(resource: &Resource) -> Self {
        /// For the scopes of a request, and for the lengths of its parts.
        const SCOPES: usize = 16 * 1024;
        let resource = ResourceSpans {
            resource: Some(resource.into()),
            scope_spans: Vec::new(),
            schema_url: resource.schema_url().unwrap_or_default().to_owned(),
        };
        let resource = resource.encode_to_vec();
        Self {
            room: MAX_REQUEST_BYTES.saturating_sub(SCOPES + resource.len()),
            resource,
        }
    }

    fn encode(&self, records: Vec<Record>) -> Bytes {
        let mut scopes: Vec<Scope> = Vec::new();
        for (scope, span) in records {
            match scopes.iter_mut().find(|known| known.scope == scope) {
                Some(known) => known.add(span),
                None => {
                    let mut scope = Scope::new(scope);
                    scope.add(span);
                    scopes.push(scope);
                }
            }
        }
        let lengths = scopes.iter().map(|scope| field_length(SCOPE_SPANS, scope.length));
        let length = self.resource.len() + lengths.sum::<usize>();
        let mut request = Vec::with_capacity(field_length(RESOURCE_SPANS, length));
        begin_field(RESOURCE_SPANS, length, &mut request);
        request.extend_from_slice(&self.resource);
        for scope in scopes {
            begin_field(SCOPE_SPANS, scope.length, &mut request);
            request.extend_from_slice(&scope.head);
            for span in scope.spans {
                begin_field(SPANS, span.len(), &mut request);
                request.extend_from_slice(&span);
            }
        }
        request.into()
    }
}

/// The spans of a scope.
struct Scope {
    scope: InstrumentationScope,
    /// `ScopeSpans` without spans.
    head: Vec<u8>,
    spans: Vec<Vec<u8>>,
    /// The bytes of `ScopeSpans`.
    length: usize,
}

impl Scope {
    fn new(scope: InstrumentationScope) -> Self {
        let head = ScopeSpans {
            scope: Some((&scope, None).into()),
            spans: Vec::new(),
            schema_url: scope.schema_url().unwrap_or_default().to_owned(),
        };
        let head = head.encode_to_vec();
        Self {
            scope,
            length: head.len(),
            head,
            spans: Vec::new(),
        }
    }

    fn add(&mut self, span: Vec<u8>) {
        self.length += field_length(SPANS, span.len());
        self.spans.push(span);
    }
}

/// The bytes of a field that is a message of this length.
fn field_length(tag: u32, length: usize) -> usize {
    key_len(tag) + encoded_len_varint(length as u64) + length
}

/// Writes what precedes a message of this length.
fn begin_field(tag: u32, length: usize, request: &mut Vec<u8>) {
    encode_key(tag, WireType::LengthDelimited, request);
    encode_varint(length as u64, request);
}

#[cfg(test)]
mod tests {
    use opentelemetry::trace::{Span as _, Tracer, TracerProvider};
    use opentelemetry::{Context, KeyValue};
    use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
    use opentelemetry_sdk::error::OTelSdkResult;
    use opentelemetry_sdk::trace::{SdkTracerProvider, SpanProcessor};
    use std::sync::{Arc, Mutex};
    use std::time::Duration;

    use super::*;

    /// Keeps the spans of a provider.
    #[derive(Clone, Debug, Default)]
    struct Kept(Arc<Mutex<Vec<SpanData>>>);

    impl SpanProcessor for Kept {
        fn on_start(&self, _: &mut opentelemetry_sdk::trace::Span, _: &Context) {}

        fn on_end(&self, span: SpanData) {
            self.0.lock().unwrap().push(span);
        }

        fn force_flush(&self) -> OTelSdkResult {
            Ok(())
        }

        fn shutdown_with_timeout(&self, _: Duration) -> OTelSdkResult {
            Ok(())
        }
    }

    fn provider() -> (SdkTracerProvider, Kept) {
        let kept = Kept::default();
        let provider = SdkTracerProvider::builder().with_span_processor(kept.clone());
        (provider.build(), kept)
    }

    fn decoded(request: Bytes) -> ExportTraceServiceRequest {
        ExportTraceServiceRequest::decode(request).unwrap()
    }

    #[test]
    fn spans_of_a_scope_are_listed_together() {
        let (provider, kept) = provider();
        let scope = |version| {
            let scope = InstrumentationScope::builder("engine").with_version(version);
            provider.tracer_with_scope(scope.with_schema_url("https://schema").build())
        };
        let (first, second) = (scope("1"), scope("2"));
        for (tracer, name) in [(&first, "a"), (&second, "b"), (&first, "c")] {
            tracer.start(name).end();
        }
        let records = std::mem::take(&mut *kept.0.lock().unwrap());
        let records = records.into_iter().map(|span| convert(span).0).collect();
        let attribute = KeyValue::new("service.name", "engine-test");
        let resource = Resource::builder_empty()
            .with_schema_url([attribute], "https://resource")
            .build();
        let request = decoded(Requests::new(&resource).encode(records));
        let [resource_spans] = &request.resource_spans[..] else {
            panic!("{request:?}");
        };
        assert_eq!(resource_spans.schema_url, "https://resource");
        let resource = resource_spans.resource.as_ref().unwrap();
        assert_eq!(resource.attributes[0].key, "service.name");
        let listed: Vec<_> = resource_spans
            .scope_spans
            .iter()
            .map(|scope| {
                assert_eq!(scope.schema_url, "https://schema");
                let names: Vec<_> = scope.spans.iter().map(|span| span.name.as_str()).collect();
                (scope.scope.as_ref().unwrap().version.as_str(), names)
            })
            .collect();
        assert_eq!(listed, [("1", vec!["a", "c"]), ("2", vec!["b"])]);
    }

    #[test]
    fn full_request_is_not_larger_than_collectors_accept() {
        let (provider, kept) = provider();
        let tracer = provider.tracer("test");
        let requests = Requests::new(&Resource::builder().build());
        let (mut records, mut length) = (Vec::new(), 0);
        for size in (0..).map(|number| number % 3000) {
            let mut span = tracer.start("work");
            span.set_attribute(KeyValue::new("text", "x".repeat(size)));
            span.end();
            let (record, bytes) = convert(kept.0.lock().unwrap().pop().unwrap());
            if length + bytes > requests.room {
                break;
            }
            length += bytes;
            records.push(record);
        }
        let request = requests.encode(records).len();
        assert!(request <= MAX_REQUEST_BYTES, "{request}");
        assert!(request > MAX_REQUEST_BYTES - 100_000, "{request}");
    }
}
