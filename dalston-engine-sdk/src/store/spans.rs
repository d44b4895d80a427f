//! Client spans for the requests to S3, if the deployment asks for them.

use async_trait::async_trait;
use dalston_telemetry::client::ClientRequest;
use object_store::ClientOptions;
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpResponse, HttpService,
    ReqwestConnector,
};
use tracing::{Instrument, Span};
use url::Url;

/// Connects as `object_store` does, and opens a span for each request.
#[derive(Debug, Default)]
pub(super) struct TracedConnector {
    inner: ReqwestConnector,
}

impl HttpConnector for TracedConnector {
    fn connect(&self, options: &ClientOptions) -> object_store::Result<HttpClient> {
        let client = self.inner.connect(options)?;
        Ok(HttpClient::new(TracedService { client }))
    }
}

#[derive(Debug)]
struct TracedService {
    client: HttpClient,
}

#[async_trait]
impl HttpService for TracedService {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        // Requests outside of a task, such as probes, would be traces of their own.
        let url = match Span::current().is_disabled() {
            true => None,
            false => Url::parse(&request.uri().to_string()).ok(),
        };
        let Some(url) = url else {
            return self.client.execute(request).await;
        };
        let sending = ClientRequest::begin(request.method(), &url);
        let span = sending.span().clone();
        let result = self.client.execute(request).instrument(span).await;
        match &result {
            Ok(response) => sending.answered(response.status()),
            Err(error) => {
                let kind = match error.kind() {
                    HttpErrorKind::Connect => "connect",
                    HttpErrorKind::Timeout => "timeout",
                    _ => "request",
                };
                sending.failed(kind, error);
            }
        }
        result
    }
}
