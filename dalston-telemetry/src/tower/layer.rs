//! [`HttpLayer`] and its service.

use std::fmt;
use std::sync::Arc;
use std::task::{Context, Poll};

use http::request::Parts;
use http::{Request, Response};
use tower_layer::Layer;
use tower_service::Service;
use tracing::Instrument;

use super::body::{RequestBody, ResponseBody};
use super::exchange::Exchange;
use super::future::ResponseFuture;
use super::head::{self, Head, Route};
use super::ids::RequestIds;
use super::websocket::UpgradeSpan;
use crate::TelemetryHandle;
use crate::logs::context::{LogContext, WithLogContext};
use crate::services::http::RequestMetrics;
use bytes::Bytes;
use http_body::Body;

type FindRoute = dyn Fn(&Parts) -> Option<String> + Send + Sync;

/// A [`tower_layer::Layer`] that instruments an HTTP server. See the [module](super) for an example
/// and for what it does.
///
/// With axum, give it to [`Router::layer`](axum::Router::layer): the route of a request is known
/// there, also with `nest` and `fallback`.
#[derive(Clone, Default)]
#[must_use]
pub struct HttpLayer {
    settings: Arc<Settings>,
}

#[derive(Clone, Default)]
pub(super) struct Settings {
    metrics: Option<Arc<dyn RequestMetrics>>,
    excluded: Vec<String>,
    route: Option<Arc<FindRoute>>,
    links_callers: bool,
    duplicates: bool,
}

impl HttpLayer {
    /// A layer that makes spans and ids. Add [`metrics`](Self::metrics).
    pub fn new() -> Self {
        Self::default()
    }

    /// A layer with the settings of telemetry: `OTEL_SEMCONV_STABILITY_OPT_IN`.
    pub fn of(telemetry: &TelemetryHandle) -> Self {
        Self::new().set(|settings| settings.duplicates = telemetry.duplicates_http())
    }

    /// Counts the requests, for example in
    /// [`GatewayMetrics`](crate::services::gateway::GatewayMetrics).
    pub fn metrics(self, metrics: impl RequestMetrics + 'static) -> Self {
        self.set(|settings| settings.metrics = Some(Arc::new(metrics)))
    }

    /// Leaves out requests to these paths: they have no span, no id and no metric. A path that ends
    /// with `/*` stands for all paths below it.
    pub fn exclude<P: Into<String>>(self, paths: impl IntoIterator<Item = P>) -> Self {
        self.set(|settings| settings.excluded.extend(paths.into_iter().map(Into::into)))
    }

    /// Links to the span of the caller instead of continuing its trace, for callers that are not
    /// trusted: they would otherwise choose the trace id and the sampling.
    pub fn link_callers(self) -> Self {
        self.set(|settings| settings.links_callers = true)
    }

    /// Finds the route of a request: a template such as `/v1/jobs/{id}`, never a raw path. Without
    /// it, the route is axum's [`MatchedPath`](axum::extract::MatchedPath) (feature `axum`).
    pub fn route(self, find: impl Fn(&Parts) -> Option<String> + Send + Sync + 'static) -> Self {
        self.set(|settings| settings.route = Some(Arc::new(find)))
    }

    fn set(mut self, change: impl FnOnce(&mut Settings)) -> Self {
        change(Arc::make_mut(&mut self.settings));
        self
    }
}

impl Settings {
    fn excludes(&self, path: &str) -> bool {
        self.excluded.iter().any(|excluded| {
            path == excluded
                || excluded
                    .strip_suffix('*')
                    .is_some_and(|folder| folder.ends_with('/') && path.starts_with(folder))
        })
    }

    fn route(&self, parts: &Parts) -> Option<Route> {
        match &self.route {
            Some(find) => find(parts).map(Route::Found),
            None => matched_path(parts),
        }
    }
}

#[cfg(feature = "axum")]
fn matched_path(parts: &Parts) -> Option<Route> {
    parts.extensions.get().cloned().map(Route::Matched)
}

#[cfg(not(feature = "axum"))]
fn matched_path(_: &Parts) -> Option<Route> {
    None
}

impl<S> Layer<S> for HttpLayer {
    type Service = HttpService<S>;

    fn layer(&self, inner: S) -> HttpService<S> {
        HttpService {
            inner,
            settings: Arc::clone(&self.settings),
        }
    }
}

impl fmt::Debug for HttpLayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HttpLayer").finish_non_exhaustive()
    }
}

/// A service whose requests are observed. Made by [`HttpLayer`].
#[derive(Clone)]
pub struct HttpService<S> {
    inner: S,
    settings: Arc<Settings>,
}

impl<S, B, R> Service<Request<B>> for HttpService<S>
where
    S: Service<Request<RequestBody<B>>, Response = Response<R>>,
    B: Body<Data = Bytes>,
    R: Body<Data = Bytes>,
{
    type Response = Response<ResponseBody<R>>;
    type Error = S::Error;
    type Future = ResponseFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let settings = &self.settings;
        let (mut parts, body) = request.into_parts();
        if settings.excludes(parts.uri.path()) {
            let request = Request::from_parts(parts, RequestBody::new(body, None));
            return ResponseFuture::unobserved(self.inner.call(request));
        }
        let head = Head::open(&parts, settings.route(&parts), !settings.links_callers);
        let trace = head.trace();
        let ids = RequestIds::new(&parts.headers, &trace);
        if !head.span.is_disabled() {
            head.set_attributes(&parts, ids.shared_request_id(), settings.duplicates);
        }
        let log = LogContext::new()
            .request_id(ids.request_id())
            .carrier(head.carried);
        let upgrade = head::status_of_upgrade(&parts).map(|status| (UpgradeSpan::default(), status));
        let exchange = Exchange::begin(
            head.span.clone(),
            &trace,
            (head.method, head.route),
            settings.metrics.clone(),
            // Most requests have no body.
            (upgrade.is_some() || !body.is_end_stream()).then(Arc::default),
            head::is_upload(&parts.headers),
            settings.duplicates,
        );
        parts.extensions.insert(ids.clone());
        if let Some((upgrade, _)) = &upgrade {
            parts.extensions.insert(upgrade.clone());
        }
        let has_body = parts.method != http::Method::HEAD;
        let received = exchange.received().cloned();
        let request = Request::from_parts(parts, RequestBody::new(body, received));
        let handling = {
            let _log = log.enter();
            head.span.in_scope(|| self.inner.call(request))
        };
        let handling = handling.instrument(head.span).with_log_context(log.clone());
        ResponseFuture::observed(handling, exchange, ids, log, upgrade, has_body)
    }
}

impl<S> fmt::Debug for HttpService<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HttpService").finish_non_exhaustive()
    }
}
