//! From a batch of spans to a request, and what the collector makes of it.

use std::future::Future;

use opentelemetry_sdk::trace::SpanData;

use super::retry::Failure;

/// A way to a collector.
pub(super) trait Transport: Send + Sync + 'static {
    type Request: Send + Sync;

    fn encode(&self, batch: Vec<SpanData>) -> Self::Request;

    /// Sends a request once. The caller bounds the time by dropping the future.
    fn send(&self, request: &Self::Request) -> impl Future<Output = Result<Accepted, Failure>> + Send;
}

/// The collector has taken the request.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Accepted {
    /// Spans of it that the collector will not keep.
    pub(super) rejected: u64,
    /// Why, or a warning.
    pub(super) message: String,
}

#[cfg(any(feature = "otlp-grpc", feature = "otlp-http"))]
pub(super) use otlp::Otlp;

#[cfg(any(feature = "otlp-grpc", feature = "otlp-http"))]
mod otlp {
    use opentelemetry_proto::tonic::collector::trace::v1::{
        ExportTraceServiceRequest, ExportTraceServiceResponse,
    };
    use opentelemetry_proto::transform::common::tonic::ResourceAttributesWithSchema;
    use opentelemetry_proto::transform::trace::tonic::group_spans_by_resource_and_scope;
    use opentelemetry_sdk::Resource;

    use super::*;

    /// OTLP over one of its transports.
    pub(in crate::otlp) struct Otlp {
        resource: ResourceAttributesWithSchema,
        wire: Wire,
    }

    enum Wire {
        #[cfg(feature = "otlp-grpc")]
        Grpc(crate::otlp::grpc::Grpc),
        #[cfg(feature = "otlp-http")]
        Http(crate::otlp::http::Http),
    }

    impl Otlp {
        #[cfg(feature = "otlp-grpc")]
        pub(in crate::otlp) fn grpc(resource: &Resource, grpc: crate::otlp::grpc::Grpc) -> Self {
            Self {
                resource: resource.into(),
                wire: Wire::Grpc(grpc),
            }
        }

        #[cfg(feature = "otlp-http")]
        pub(in crate::otlp) fn http(resource: &Resource, http: crate::otlp::http::Http) -> Self {
            Self {
                resource: resource.into(),
                wire: Wire::Http(http),
            }
        }
    }

    impl Transport for Otlp {
        type Request = ExportTraceServiceRequest;

        fn encode(&self, batch: Vec<SpanData>) -> Self::Request {
            ExportTraceServiceRequest {
                resource_spans: group_spans_by_resource_and_scope(batch, &self.resource),
            }
        }

        async fn send(&self, request: &Self::Request) -> Result<Accepted, Failure> {
            match &self.wire {
                #[cfg(feature = "otlp-grpc")]
                Wire::Grpc(grpc) => grpc.send(request).await,
                #[cfg(feature = "otlp-http")]
                Wire::Http(http) => http.send(request).await,
            }
        }
    }

    impl From<ExportTraceServiceResponse> for Accepted {
        fn from(response: ExportTraceServiceResponse) -> Self {
            response
                .partial_success
                .map_or_else(Self::default, |partial| Self {
                    // Negative counts make no sense and count as none.
                    rejected: partial.rejected_spans.try_into().unwrap_or(0),
                    message: partial.error_message,
                })
        }
    }
}

/// What stands in for a transport in a build that has none.
#[cfg(not(any(feature = "otlp-grpc", feature = "otlp-http")))]
pub(super) enum Nothing {}

#[cfg(not(any(feature = "otlp-grpc", feature = "otlp-http")))]
impl Transport for Nothing {
    type Request = ();

    fn encode(&self, _: Vec<SpanData>) {
        match *self {}
    }

    async fn send(&self, (): &()) -> Result<Accepted, Failure> {
        match *self {}
    }
}
