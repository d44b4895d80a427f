//! OTLP over gRPC.

use std::error::Error;
use std::marker::PhantomData;
use std::time::Duration;

use bytes::{BufMut, Bytes};
use http::uri::PathAndQuery;
use prost::Message;
use tonic::codec::{Codec, CompressionEncoding, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::metadata::MetadataMap;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tonic::{Code, Extensions, Request, Response, Status};

use super::client::{MAX_RESPONSE_BYTES, USER_AGENT, chain};
use super::tls::TlsMaterial;
use crate::error::InitError;
use crate::export::delivery::{Accepted, Failure, Retry};
use crate::export::exporter_config::ExporterConfig;

pub(crate) struct Grpc {
    channel: Channel,
    gzip: bool,
    headers: MetadataMap,
}

impl Grpc {
    /// Checks the configuration. Opens no connection and needs no runtime.
    pub(super) fn prepare(config: &ExporterConfig) -> Result<GrpcEndpoint, InitError> {
        let wrong = |error: tonic::transport::Error| InitError::Exporter {
            endpoint: config.endpoint.to_string(),
            reason: chain(&error),
            source: Some(Box::new(error)),
        };
        let mut endpoint = Endpoint::from(config.endpoint.uri().clone())
            .user_agent(USER_AGENT)
            .map_err(wrong)?
            .connect_timeout(config.timeout)
            // Detects a peer that has vanished while a request waits for its answer.
            .http2_keep_alive_interval(Duration::from_secs(20))
            .keep_alive_timeout(Duration::from_secs(10));
        if config.endpoint.is_https() {
            let material = TlsMaterial::read(&config.tls)?;
            // Checked here, because the errors of tonic say less.
            material.client_config(&config.endpoint)?;
            let mut tls = ClientTlsConfig::new();
            tls = match material.certificate {
                Some(pem) => tls.ca_certificate(Certificate::from_pem(pem)),
                None => tls.with_native_roots(),
            };
            if let Some((certificate, key)) = material.identity {
                tls = tls.identity(Identity::from_pem(certificate, key));
            }
            endpoint = endpoint.tls_config(tls).map_err(wrong)?;
        }
        Ok(GrpcEndpoint {
            endpoint,
            gzip: config.gzip,
            headers: MetadataMap::from_headers(config.headers.clone()),
        })
    }

    /// Sends an encoded request to a method that answers with an `A`.
    pub(super) async fn send<A: Message + Default + Into<Accepted> + 'static>(
        &self,
        method: &'static str,
        request: Bytes,
    ) -> Result<Accepted, Failure> {
        let mut client = tonic::client::Grpc::new(self.channel.clone());
        client = client.max_decoding_message_size(MAX_RESPONSE_BYTES);
        if self.gzip {
            client = client.send_compressed(CompressionEncoding::Gzip);
        }
        if let Err(error) = client.ready().await {
            return Err(Failure {
                retry: Retry::Backoff,
                detail: format!("no connection: {}", chain(&error)),
            });
        }
        let request = Request::from_parts(self.headers.clone(), Extensions::new(), request);
        let method = PathAndQuery::from_static(method);
        answer(client.unary(request, method, Encoded::<A>(PhantomData)).await)
    }
}

/// A codec for encoded requests and answers of type `A`.
struct Encoded<A>(PhantomData<fn() -> A>);

impl<A: Message + Default + 'static> Codec for Encoded<A> {
    type Encode = Bytes;
    type Decode = A;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self(PhantomData)
    }

    fn decoder(&mut self) -> Self {
        Self(PhantomData)
    }
}

impl<A> Encoder for Encoded<A> {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, request: Bytes, to: &mut EncodeBuf<'_>) -> Result<(), Status> {
        to.reserve(request.len());
        to.put(request);
        Ok(())
    }
}

impl<A: Message + Default> Decoder for Encoded<A> {
    type Item = A;
    type Error = Status;

    fn decode(&mut self, from: &mut DecodeBuf<'_>) -> Result<Option<A>, Status> {
        let answer = A::decode(from).map_err(|error| Status::internal(error.to_string()))?;
        Ok(Some(answer))
    }
}

/// Settings that are checked.
pub(super) struct GrpcEndpoint {
    endpoint: Endpoint,
    gzip: bool,
    headers: MetadataMap,
}

impl GrpcEndpoint {
    /// Binds the channel to the current runtime. The first request opens the connection.
    pub(super) fn connect(self) -> Grpc {
        Grpc {
            channel: self.endpoint.connect_lazy(),
            gzip: self.gzip,
            headers: self.headers,
        }
    }
}

fn answer<A: Into<Accepted>>(answer: Result<Response<A>, Status>) -> Result<Accepted, Failure> {
    answer
        .map(|response| response.into_inner().into())
        .map_err(|status| failure(&status))
}

/// Classifies a status by the table of the OTLP specification.
fn failure(status: &Status) -> Failure {
    // A status with a source comes from the client: there was no answer.
    if let Some(source) = status.source() {
        let detail = format!("no connection: {}", chain(source));
        return Failure {
            retry: Retry::Backoff,
            detail,
        };
    }
    let retry_after = retry_after(status.details());
    let retry = match (status.code(), retry_after) {
        (Code::Unavailable | Code::ResourceExhausted, Some(delay)) => Retry::After(delay),
        // Without a delay, the request is too large or a quota is used up.
        (Code::ResourceExhausted, None) => Retry::Never,
        (
            Code::Cancelled
            | Code::DeadlineExceeded
            | Code::Aborted
            | Code::OutOfRange
            | Code::Unavailable
            | Code::DataLoss,
            _,
        ) => Retry::Backoff,
        _ => Retry::Never,
    };
    Failure {
        retry,
        detail: format!("gRPC status {:?}: {}", status.code(), status.message()),
    }
}

/// The delay that `google.rpc.RetryInfo` asks for, in the details of a status.
fn retry_after(details: &[u8]) -> Option<Duration> {
    let status = RpcStatus::decode(details).ok()?;
    let info = status
        .details
        .iter()
        .find(|any| any.type_url.ends_with("/google.rpc.RetryInfo"))?;
    let delay = RetryInfo::decode(info.value.as_slice()).ok()?.retry_delay?;
    Some(Duration::new(
        delay.seconds.try_into().ok()?,
        delay.nanos.try_into().ok()?,
    ))
}

// The messages of `google.rpc` that carry the delay.

#[derive(Clone, PartialEq, Message)]
struct RpcStatus {
    #[prost(int32, tag = "1")]
    code: i32,
    #[prost(string, tag = "2")]
    message: String,
    #[prost(message, repeated, tag = "3")]
    details: Vec<Any>,
}

#[derive(Clone, PartialEq, Message)]
struct Any {
    #[prost(string, tag = "1")]
    type_url: String,
    #[prost(bytes = "vec", tag = "2")]
    value: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
struct RetryInfo {
    #[prost(message, optional, tag = "1")]
    retry_delay: Option<Delay>,
}

#[derive(Clone, PartialEq, Message)]
struct Delay {
    #[prost(int64, tag = "1")]
    seconds: i64,
    #[prost(int32, tag = "2")]
    nanos: i32,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn details(delay: Delay) -> Vec<u8> {
        let info = RetryInfo {
            retry_delay: Some(delay),
        }
        .encode_to_vec();
        let any = Any {
            type_url: "type.googleapis.com/google.rpc.RetryInfo".into(),
            value: info,
        };
        RpcStatus {
            code: 14,
            message: "busy".into(),
            details: vec![any],
        }
        .encode_to_vec()
    }

    #[test]
    fn statuses_are_classified_by_the_specification() {
        let passing = [
            Code::Cancelled,
            Code::DeadlineExceeded,
            Code::Aborted,
            Code::OutOfRange,
            Code::Unavailable,
            Code::DataLoss,
        ];
        for code in 1..=16 {
            let code = Code::from(code);
            let expected = if passing.contains(&code) {
                Retry::Backoff
            } else {
                Retry::Never
            };
            assert_eq!(failure(&Status::new(code, "")).retry, expected, "{code:?}");
        }
    }

    #[test]
    fn retry_info_makes_exhausted_resource_retryable() {
        let hint = details(Delay {
            seconds: 2,
            nanos: 500_000_000,
        });
        for code in [Code::Unavailable, Code::ResourceExhausted] {
            let failure = failure(&Status::with_details(code, "", hint.clone().into()));
            assert_eq!(failure.retry, Retry::After(Duration::from_millis(2500)));
        }
    }

    #[test]
    fn invalid_retry_info_is_ignored() {
        assert_eq!(retry_after(b"\xff\xff\xff"), None);
        assert_eq!(
            retry_after(&details(Delay {
                seconds: -1,
                nanos: 0
            })),
            None
        );
        assert_eq!(retry_after(&[]), None);
    }
}
