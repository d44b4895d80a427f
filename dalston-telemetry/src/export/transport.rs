//! Requests on their way to a collector, and what it makes of them.

use std::future::Future;

use opentelemetry_sdk::trace::SpanData;

use super::retry::Failure;

/// A way to a collector, for one kind of telemetry.
pub(super) trait Transport: Send + Sync + 'static {
    type Request: Send + Sync;

    /// Sends a request once. The caller bounds the time by dropping the future.
    fn send(&self, request: &Self::Request) -> impl Future<Output = Result<Accepted, Failure>> + Send;
}

/// A way for spans.
pub(super) trait SpanTransport: Transport {
    /// A span in the form of the request.
    type Record: Send;

    /// The bytes that the spans of a request may have together.
    fn room(&self) -> usize;

    /// Converts a span, and tells how many bytes of a request it takes.
    fn convert(&self, span: SpanData) -> (Self::Record, usize);

    fn request(&self, spans: Vec<Self::Record>) -> Self::Request;
}

/// The collector has taken the request.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Accepted {
    /// Spans or points of it that the collector will not keep.
    pub(super) rejected: u64,
    /// Why, or a warning.
    pub(super) message: String,
}

#[cfg(any(feature = "otlp-grpc", feature = "otlp-http"))]
pub(super) use otlp::{MetricsOtlp, SpansOtlp, Wire};

#[cfg(any(feature = "otlp-grpc", feature = "otlp-http"))]
mod otlp {
    use bytes::Bytes;
    use opentelemetry::InstrumentationScope;
    use opentelemetry_proto::tonic::collector::metrics::v1::{
        ExportMetricsServiceRequest, ExportMetricsServiceResponse,
    };
    use opentelemetry_proto::tonic::collector::trace::v1::{
        ExportTraceServiceRequest, ExportTraceServiceResponse,
    };
    use opentelemetry_proto::tonic::resource::v1::Resource as ProtoResource;
    use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span};
    use opentelemetry_sdk::Resource;
    use prost::Message;

    use super::*;
    use crate::export::queue::MAX_REQUEST_BYTES;

    /// One of the transports of OTLP.
    pub(in crate::export) enum Wire {
        #[cfg(feature = "otlp-grpc")]
        Grpc(crate::export::grpc::Grpc),
        #[cfg(feature = "otlp-http")]
        Http(crate::export::http::Http),
    }

    impl Wire {
        /// `method` is for gRPC; the address of HTTP says what it takes.
        async fn send<A: Message + Default + Into<Accepted> + 'static>(
            &self,
            method: &'static str,
            request: Bytes,
        ) -> Result<Accepted, Failure> {
            match self {
                #[cfg(feature = "otlp-grpc")]
                Self::Grpc(grpc) => grpc.send::<A>(method, request).await,
                #[cfg(feature = "otlp-http")]
                Self::Http(http) => {
                    let _ = method;
                    http.send::<A>(request).await
                }
            }
        }
    }

    pub(in crate::export) struct SpansOtlp {
        resource: ProtoResource,
        schema_url: String,
        room: usize,
        wire: Wire,
    }

    impl SpansOtlp {
        pub(in crate::export) fn new(resource: &Resource, wire: Wire) -> Self {
            /// For the scopes of the spans, and for the lengths of what a request is made of.
            const SCOPES: usize = 16 * 1024;
            let schema_url = resource.schema_url().unwrap_or_default().to_owned();
            let resource = ProtoResource::from(resource);
            let overhead = SCOPES + resource.encoded_len() + schema_url.len();
            Self {
                room: MAX_REQUEST_BYTES.saturating_sub(overhead),
                resource,
                schema_url,
                wire,
            }
        }
    }

    impl SpanTransport for SpansOtlp {
        type Record = (InstrumentationScope, Span);

        fn room(&self) -> usize {
            self.room
        }

        fn convert(&self, mut span: SpanData) -> (Self::Record, usize) {
            /// The key and the length before a span.
            const PREFIX: usize = 6;
            let scope = std::mem::take(&mut span.instrumentation_scope);
            let span = Span::from(span);
            let length = PREFIX + span.encoded_len();
            ((scope, span), length)
        }

        fn request(&self, spans: Vec<Self::Record>) -> Self::Request {
            let mut scopes: Vec<(InstrumentationScope, Vec<Span>)> = Vec::new();
            for (scope, span) in spans {
                match scopes.iter_mut().find(|(known, _)| *known == scope) {
                    Some((_, spans)) => spans.push(span),
                    None => scopes.push((scope, vec![span])),
                }
            }
            let scope_spans = scopes.into_iter().map(|(scope, spans)| ScopeSpans {
                scope: Some((&scope, None).into()),
                spans,
                schema_url: scope.schema_url().unwrap_or_default().to_owned(),
            });
            let request = ExportTraceServiceRequest {
                resource_spans: vec![ResourceSpans {
                    resource: Some(self.resource.clone()),
                    scope_spans: scope_spans.collect(),
                    schema_url: self.schema_url.clone(),
                }],
            };
            request.encode_to_vec().into()
        }
    }

    impl Transport for SpansOtlp {
        type Request = Bytes;

        async fn send(&self, request: &Self::Request) -> Result<Accepted, Failure> {
            const METHOD: &str = "/opentelemetry.proto.collector.trace.v1.TraceService/Export";
            self.wire
                .send::<ExportTraceServiceResponse>(METHOD, request.clone())
                .await
        }
    }

    pub(in crate::export) struct MetricsOtlp(pub(in crate::export) Wire);

    impl Transport for MetricsOtlp {
        type Request = ExportMetricsServiceRequest;

        async fn send(&self, request: &Self::Request) -> Result<Accepted, Failure> {
            const METHOD: &str = "/opentelemetry.proto.collector.metrics.v1.MetricsService/Export";
            let request = request.encode_to_vec().into();
            self.0.send::<ExportMetricsServiceResponse>(METHOD, request).await
        }
    }

    impl From<ExportTraceServiceResponse> for Accepted {
        fn from(response: ExportTraceServiceResponse) -> Self {
            let partial = response.partial_success.unwrap_or_default();
            Self::partly(partial.rejected_spans, partial.error_message)
        }
    }

    impl From<ExportMetricsServiceResponse> for Accepted {
        fn from(response: ExportMetricsServiceResponse) -> Self {
            let partial = response.partial_success.unwrap_or_default();
            Self::partly(partial.rejected_data_points, partial.error_message)
        }
    }

    impl Accepted {
        fn partly(rejected: i64, message: String) -> Self {
            Self {
                // Negative counts make no sense and count as none.
                rejected: rejected.try_into().unwrap_or(0),
                message,
            }
        }
    }
}

/// What stands in for a transport in a build that has none.
#[cfg(not(any(feature = "otlp-grpc", feature = "otlp-http")))]
pub(super) enum Nothing {}

#[cfg(not(any(feature = "otlp-grpc", feature = "otlp-http")))]
pub(super) use Nothing as SpansOtlp;

#[cfg(not(any(feature = "otlp-grpc", feature = "otlp-http")))]
impl Nothing {
    pub(super) fn new(_: &opentelemetry_sdk::Resource, nothing: Self) -> Self {
        nothing
    }
}

#[cfg(not(any(feature = "otlp-grpc", feature = "otlp-http")))]
impl SpanTransport for Nothing {
    type Record = Self;

    fn room(&self) -> usize {
        match *self {}
    }

    fn convert(&self, _: SpanData) -> (Self, usize) {
        match *self {}
    }

    fn request(&self, _: Vec<Self>) {
        match *self {}
    }
}

#[cfg(not(any(feature = "otlp-grpc", feature = "otlp-http")))]
impl Transport for Nothing {
    type Request = ();

    async fn send(&self, (): &()) -> Result<Accepted, Failure> {
        match *self {}
    }
}
