//! Requests on their way to a collector, and what it makes of them.

use std::future::Future;

use super::queue::Batch;
use super::retry::Failure;

/// A way to a collector, for one kind of telemetry.
pub(super) trait Transport: Send + Sync + 'static {
    type Request: Send + Sync;

    /// Sends a request once. The caller bounds the time by dropping the future.
    fn send(&self, request: &Self::Request) -> impl Future<Output = Result<Accepted, Failure>> + Send;
}

/// A way for spans.
pub(super) trait SpanTransport: Transport {
    fn encode(&self, batch: &Batch<'_>) -> Self::Request;
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
    use opentelemetry_proto::tonic::collector::metrics::v1::{
        ExportMetricsServiceRequest, ExportMetricsServiceResponse,
    };
    use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceResponse;
    use opentelemetry_proto::tonic::common::v1::InstrumentationScope;
    use opentelemetry_proto::tonic::resource::v1::Resource as ProtoResource;
    use opentelemetry_sdk::Resource;
    use prost::Message;

    use super::*;
    use crate::export::encode;

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
        /// The start and the end of each `ResourceSpans`: its resource, and the resource's schema.
        resource: Vec<u8>,
        schema: Vec<u8>,
        wire: Wire,
    }

    impl SpansOtlp {
        pub(in crate::export) fn new(resource: &Resource, wire: Wire) -> Self {
            let (mut start, mut schema) = (Vec::new(), Vec::new());
            encode::bytes(1, &ProtoResource::from(resource).encode_to_vec(), &mut start);
            if let Some(url) = resource.schema_url() {
                encode::bytes(3, url.as_bytes(), &mut schema);
            }
            Self {
                resource: start,
                schema,
                wire,
            }
        }
    }

    impl SpanTransport for SpansOtlp {
        fn encode(&self, batch: &Batch<'_>) -> Self::Request {
            let scopes: Vec<_> = batch
                .scopes()
                .map(|(index, scope)| {
                    let message = InstrumentationScope::from((scope, None)).encode_to_vec();
                    let (mut start, mut schema) = (Vec::new(), Vec::new());
                    encode::bytes(1, &message, &mut start);
                    if let Some(url) = scope.schema_url() {
                        encode::bytes(3, url.as_bytes(), &mut schema);
                    }
                    let spans: usize = batch.of_scope(index).map(<[u8]>::len).sum();
                    let length = start.len() + spans + schema.len();
                    (index, start, schema, length)
                })
                .collect();
            let of_scopes = scopes.iter().map(|(.., length)| encode::size_of_bytes(*length));
            let length = self.resource.len() + of_scopes.sum::<usize>() + self.schema.len();

            let mut request = Vec::with_capacity(encode::size_of_bytes(length));
            encode::length_of_bytes(1, length, &mut request);
            request.extend_from_slice(&self.resource);
            for (index, start, schema, length) in &scopes {
                encode::length_of_bytes(2, *length, &mut request);
                request.extend_from_slice(start);
                for span in batch.of_scope(*index) {
                    request.extend_from_slice(span);
                }
                request.extend_from_slice(schema);
            }
            request.extend_from_slice(&self.schema);
            request.into()
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
    fn encode(&self, _: &Batch<'_>) {
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
