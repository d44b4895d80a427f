//! The transports of OTLP.

mod client;
#[cfg(feature = "otlp-grpc")]
mod grpc;
#[cfg(feature = "otlp-http")]
mod http;
mod tls;

use bytes::Bytes;
use prost::Message;

use super::config::OtlpProtocol;
use super::delivery::{Accepted, Failure};
use super::exporter_config::ExporterConfig;
use crate::error::InitError;

/// A connection of one exporter.
pub(super) enum Wire {
    #[cfg(feature = "otlp-grpc")]
    Grpc(grpc::Grpc),
    #[cfg(feature = "otlp-http")]
    Http(http::Http),
}

impl Wire {
    /// Sends a request that is answered with an `A`. gRPC has a `method` for each signal, HTTP an
    /// address.
    pub(super) async fn send<A: Message + Default + Into<Accepted> + 'static>(
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

/// Makes the connection; to be called in the exporter's runtime.
pub(super) type Connect = Box<dyn FnOnce() -> Wire + Send>;

/// Checks the configuration now, and connects when the result is called.
pub(super) fn connect(otlp: &ExporterConfig) -> Result<Connect, InitError> {
    match otlp.protocol {
        #[cfg(feature = "otlp-grpc")]
        OtlpProtocol::Grpc => {
            let endpoint = grpc::Grpc::prepare(otlp)?;
            Ok(Box::new(move || Wire::Grpc(endpoint.connect())))
        }
        #[cfg(feature = "otlp-http")]
        OtlpProtocol::HttpProtobuf => {
            let http = http::Http::new(otlp)?;
            Ok(Box::new(move || Wire::Http(http)))
        }
        #[cfg(not(all(feature = "otlp-grpc", feature = "otlp-http")))]
        protocol => Err(protocol.missing_feature()),
    }
}
