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
    fn encode(&self, batch: Vec<SpanData>) -> Self::Request;
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
    use opentelemetry_proto::tonic::collector::metrics::v1::{
        ExportMetricsServiceRequest, ExportMetricsServiceResponse,
    };
    use opentelemetry_proto::tonic::collector::trace::v1::{
        ExportTraceServiceRequest, ExportTraceServiceResponse,
    };
    use opentelemetry_proto::transform::common::tonic::ResourceAttributesWithSchema;
    use opentelemetry_proto::transform::trace::tonic::group_spans_by_resource_and_scope;
    use opentelemetry_sdk::Resource;

    use super::*;

    /// One of the transports of OTLP.
    pub(in crate::otlp) enum Wire {
        #[cfg(feature = "otlp-grpc")]
        Grpc(crate::otlp::grpc::Grpc),
        #[cfg(feature = "otlp-http")]
        Http(crate::otlp::http::Http),
    }

    pub(in crate::otlp) struct SpansOtlp {
        resource: ResourceAttributesWithSchema,
        wire: Wire,
    }

    impl SpansOtlp {
        pub(in crate::otlp) fn new(resource: &Resource, wire: Wire) -> Self {
            Self {
                resource: resource.into(),
                wire,
            }
        }
    }

    impl SpanTransport for SpansOtlp {
        fn encode(&self, batch: Vec<SpanData>) -> Self::Request {
            ExportTraceServiceRequest {
                resource_spans: group_spans_by_resource_and_scope(batch, &self.resource),
            }
        }
    }

    impl Transport for SpansOtlp {
        type Request = ExportTraceServiceRequest;

        async fn send(&self, request: &Self::Request) -> Result<Accepted, Failure> {
            match &self.wire {
                #[cfg(feature = "otlp-grpc")]
                Wire::Grpc(grpc) => grpc.send_spans(request).await,
                #[cfg(feature = "otlp-http")]
                Wire::Http(http) => http.send::<_, ExportTraceServiceResponse>(request).await,
            }
        }
    }

    pub(in crate::otlp) struct MetricsOtlp(pub(in crate::otlp) Wire);

    impl Transport for MetricsOtlp {
        type Request = ExportMetricsServiceRequest;

        async fn send(&self, request: &Self::Request) -> Result<Accepted, Failure> {
            match &self.0 {
                #[cfg(feature = "otlp-grpc")]
                Wire::Grpc(grpc) => grpc.send_metrics(request).await,
                #[cfg(feature = "otlp-http")]
                Wire::Http(http) => http.send::<_, ExportMetricsServiceResponse>(request).await,
            }
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
    fn encode(&self, _: Vec<SpanData>) {
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
