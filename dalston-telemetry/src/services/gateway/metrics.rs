use std::borrow::Cow;
use std::fmt;
use std::time::Duration;

use http::StatusCode;

use crate::metrics::{
    BoundedFamily, Counter, DenseFamily, Exemplar, Gauge, Histogram, Metrics, OTHER, OpenLabel, Unit, buckets,
};
use crate::services::http::{EndedRequest, HttpMethod, RequestMetrics};

/// The metrics of the gateway. Cheap to clone.
///
/// ```
/// use std::time::Duration;
/// use dalston_telemetry::metrics::Metrics;
/// use dalston_telemetry::services::gateway::{GatewayMetrics, HttpMethod};
///
/// let metrics = Metrics::new();
/// let gateway = GatewayMetrics::register(&metrics);
/// let get_job = gateway.route(HttpMethod::Get, "/v1/audio/transcriptions/{id}");
/// get_job.answered(http::StatusCode::OK, Duration::from_millis(12));
/// ```
///
/// | What | PromQL |
/// |---|---|
/// | Requests per second, by route | `sum by (method, endpoint) (rate(dalston_gateway_requests_total[5m]))` |
/// | Share of requests with a server error | `sum(rate(dalston_gateway_requests_total{status_code=~"5.."}[5m])) / sum(rate(dalston_gateway_requests_total[5m]))` |
/// | 95th percentile of the duration | `histogram_quantile(0.95, sum by (le) (rate(dalston_gateway_request_duration_seconds_bucket[5m])))` |
/// | Jobs of each tenant in an hour | `sum by (tenant_id) (increase(dalston_gateway_jobs_created_total[1h]))` |
/// | Open WebSockets | `sum(dalston_gateway_websocket_connections_active)` |
/// | Bytes uploaded per second | `sum(rate(dalston_gateway_upload_bytes_total[5m]))` |
#[derive(Clone)]
pub struct GatewayMetrics {
    requests: BoundedFamily<3, (), Counter>,
    request_duration: BoundedFamily<2, (), Histogram>,
    requests_active: DenseFamily<(), Gauge>,
    jobs_created: BoundedFamily<1, (), Counter>,
    websockets: DenseFamily<(), Gauge>,
    upload_bytes: DenseFamily<(), Counter>,
}

impl GatewayMetrics {
    /// The handles of this registry. The first call registers them.
    #[must_use]
    pub fn register(metrics: &Metrics) -> Self {
        let room = metrics.combinations();
        let endpoint = &metrics.label("endpoint");
        let tenant = &metrics.label("tenant_id");
        metrics.set(|registry| {
            let method = &OpenLabel::of::<HttpMethod>();
            let status = &OpenLabel::closed("status_code", &STATUSES);
            let mut registry = registry.with_prefix("dalston_gateway");
            let duration = || Histogram::with_exemplars(buckets::REQUEST_DURATION);
            Self {
                requests: registry.keep(
                    "requests",
                    "HTTP requests that were answered",
                    // Each route takes as many as it has statuses.
                    BoundedFamily::with_room_for(
                        room.saturating_mul(4),
                        [method, endpoint, status],
                        Counter::default,
                    ),
                ),
                request_duration: registry.keep_with_unit(
                    "request_duration",
                    "Time from the headers of an HTTP request to its answer",
                    Unit::Seconds,
                    BoundedFamily::with_room_for(room, [method, endpoint], duration),
                ),
                requests_active: registry.keep(
                    "requests_active",
                    "HTTP requests whose response has not ended",
                    DenseFamily::default(),
                ),
                jobs_created: registry.keep(
                    "jobs_created",
                    "Jobs that were accepted",
                    BoundedFamily::new([tenant], Counter::default),
                ),
                websockets: registry.keep(
                    "websocket_connections_active",
                    "Open WebSockets",
                    DenseFamily::default(),
                ),
                upload_bytes: registry.keep_with_unit(
                    "upload",
                    "Received bytes of audio",
                    Unit::Bytes,
                    DenseFamily::default(),
                ),
            }
        })
    }

    /// The metrics of a route, by its template: `/v1/jobs/{id}`.
    ///
    /// Parts that look like an id become `{id}`, so that even a raw path has no series of its own.
    /// The counters of usual statuses exist at zero after the call: 200, 201, 400, 401, 403, 404,
    /// 409, 413, 422, 429, 499, 500, 502, 503 and 504. Call it for each route at the start:
    /// `rate()` and `increase()` do not see the first increment of a counter that begins at one.
    /// Otherwise the counters of a route begin with its first request.
    #[must_use]
    pub fn route(&self, method: HttpMethod, template: &str) -> RouteMetrics {
        self.endpoint(method, endpoint_of(template).into_owned())
    }

    /// The metrics of all requests without a route.
    #[must_use]
    pub fn unmatched(&self, method: HttpMethod) -> RouteMetrics {
        self.endpoint(method, OTHER.to_owned())
    }

    fn endpoint(&self, method: HttpMethod, endpoint: String) -> RouteMetrics {
        RouteMetrics {
            requests: self.requests.clone(),
            duration: self.duration(method, &endpoint),
            method,
            endpoint,
        }
    }

    /// The durations of a route, whose counters exist after the call.
    fn duration(&self, method: HttpMethod, endpoint: &str) -> DenseFamily<(), Histogram> {
        let method = method.as_str();
        self.request_duration.with_or_create([method, endpoint], || {
            for status in USUAL_STATUSES {
                let _ = self.requests.with([method, endpoint, status]);
            }
        })
    }

    /// Counts an accepted job: `dalston_gateway_jobs_created_total`.
    pub fn job_created(&self, tenant_id: &str) {
        self.jobs_created
            .with([tenant_id])
            .with(())
            .inc_in(Exemplar::current());
    }

    /// Counts a WebSocket as open until the guard is dropped:
    /// `dalston_gateway_websocket_connections_active`.
    pub fn websocket(&self) -> WebSocketGuard {
        self.websockets.with(()).inc();
        WebSocketGuard {
            open: self.websockets.clone(),
        }
    }

    /// Counts received bytes of audio: `dalston_gateway_upload_bytes_total`.
    pub fn uploaded(&self, bytes: u64) {
        self.upload_bytes.with(()).inc_by(bytes);
    }
}

/// Counts requests by route.
impl RequestMetrics for GatewayMetrics {
    fn begun(&self) {
        self.requests_active.with(()).inc();
    }

    fn ended(&self, request: &EndedRequest<'_>) {
        self.requests_active.with(()).dec();
        let endpoint = request.route.map_or(Cow::Borrowed(OTHER), endpoint_of);
        let duration = self.duration(request.method, &endpoint);
        duration
            .with(())
            .observe_duration_in(request.time, request.exemplar);
        let labels = [request.method.as_str(), &endpoint, status_of(request.status)];
        self.requests.with(labels).with(()).inc_in(request.exemplar);
        if request.uploaded > 0 {
            self.uploaded(request.uploaded);
        }
    }

    fn websocket_opened(&self) {
        self.websockets.with(()).inc();
    }

    fn websocket_closed(&self) {
        self.websockets.with(()).dec();
    }
}

impl fmt::Debug for GatewayMetrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("GatewayMetrics").finish_non_exhaustive()
    }
}

/// The metrics of one route. Returned by [`GatewayMetrics::route`]; cheap to clone.
#[derive(Clone, Debug)]
pub struct RouteMetrics {
    requests: BoundedFamily<3, (), Counter>,
    duration: DenseFamily<(), Histogram>,
    method: HttpMethod,
    endpoint: String,
}

impl RouteMetrics {
    /// Records an answered request with the time since its headers:
    /// `dalston_gateway_requests_total` and `dalston_gateway_request_duration_seconds`. A status
    /// without a name counts as the first of its class.
    pub fn answered(&self, status: StatusCode, time: Duration) {
        let exemplar = Exemplar::current();
        let labels = [self.method.as_str(), &self.endpoint, status_of(status)];
        self.requests.with(labels).with(()).inc_in(exemplar);
        self.duration.with(()).observe_duration_in(time, exemplar);
    }
}

/// Counts as an open WebSocket. Returned by [`GatewayMetrics::websocket`].
#[derive(Debug)]
#[must_use = "the WebSocket counts as closed as soon as the guard is dropped"]
pub struct WebSocketGuard {
    open: DenseFamily<(), Gauge>,
}

impl Drop for WebSocketGuard {
    fn drop(&mut self) {
        self.open.with(()).dec();
    }
}

/// Statuses whose counters exist from the start: those that services of the platform answer, and
/// the proxies before them. All statuses for each route would be four times as many series.
const USUAL_STATUSES: [&str; 15] = [
    "200", "201", "400", "401", "403", "404", "409", "413", "422", "429", "499", "500", "502", "503", "504",
];

/// Statuses with a name, and 499, which proxies use for a client that has disconnected.
const STATUSES: [&str; 63] = [
    "100", "101", "102", "103", "200", "201", "202", "203", "204", "205", "206", "207", "208", "226", "300",
    "301", "302", "303", "304", "305", "307", "308", "400", "401", "402", "403", "404", "405", "406", "407",
    "408", "409", "410", "411", "412", "413", "414", "415", "416", "417", "418", "421", "422", "423", "424",
    "425", "426", "428", "429", "431", "451", "499", "500", "501", "502", "503", "504", "505", "506", "507",
    "508", "510", "511",
];

fn status_of(status: StatusCode) -> &'static str {
    let known = |code: &str| STATUSES.iter().find(|known| **known == code);
    let first_of_hundred = || match status.as_u16() / 100 {
        1 => "100",
        2 => "200",
        3 => "300",
        4 => "400",
        _ => "500",
    };
    known(status.as_str()).copied().unwrap_or_else(first_of_hundred)
}

/// The template of a route, also for a raw path.
fn endpoint_of(path: &str) -> Cow<'_, str> {
    let path = path.split(['?', '#']).next().unwrap_or_default();
    if !path.split('/').any(looks_like_an_id) {
        return Cow::Borrowed(path);
    }
    let segments = path.split('/').map(|segment| match looks_like_an_id(segment) {
        true => "{id}",
        false => segment,
    });
    Cow::Owned(segments.collect::<Vec<_>>().join("/"))
}

/// Whether the part of a segment behind its prefix (`job_`, `sess_`) is a number, or longer and
/// with more digits than the name of a route.
fn looks_like_an_id(segment: &str) -> bool {
    let id = segment.rsplit_once('_').map_or(segment, |(_prefix, rest)| rest);
    let is_plain = id.chars().all(|c| c.is_ascii_alphanumeric() || c == '-');
    let digits = id.chars().filter(char::is_ascii_digit).count();
    is_plain
        && match id.len() {
            0..8 => digits > 0 && digits == id.len(),
            8..20 => digits > 2,
            _ => digits > 0,
        }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_changes_its_series_and_errors_start_at_zero() {
        let metrics = Metrics::new();
        let gateway = GatewayMetrics::register(&metrics);
        let route = gateway.route(HttpMethod::Post, "/v1/audio/transcriptions");
        let before = metrics.snapshot();
        for status in USUAL_STATUSES {
            let labels = [
                ("method", "POST"),
                ("endpoint", "/v1/audio/transcriptions"),
                ("status_code", status),
            ];
            let total = before.value("dalston_gateway_requests_total", &labels);
            assert_eq!(total, Some(0.0), "{status}");
        }

        route.answered(StatusCode::CREATED, Duration::from_millis(500));
        gateway.job_created("acme");
        gateway.uploaded(1_000);
        let open = gateway.websocket();
        let moved: Vec<_> = metrics
            .snapshot()
            .diff(&before)
            .iter()
            .map(ToString::to_string)
            .collect();
        let route = r#"endpoint="/v1/audio/transcriptions",method="POST""#;
        assert_eq!(
            moved,
            [
                r#"dalston_gateway_jobs_created_total{tenant_id="acme"}: 0 -> 1"#.to_owned(),
                format!("dalston_gateway_request_duration_seconds_count{{{route}}}: 0 -> 1"),
                format!("dalston_gateway_request_duration_seconds_sum{{{route}}}: 0 -> 0.5"),
                format!("dalston_gateway_requests_total{{{route},status_code=\"201\"}}: 0 -> 1"),
                "dalston_gateway_upload_bytes_total: 0 -> 1000".to_owned(),
                "dalston_gateway_websocket_connections_active: 0 -> 1".to_owned(),
            ]
        );
        drop(open);
        let open = metrics
            .snapshot()
            .value("dalston_gateway_websocket_connections_active", &[]);
        assert_eq!(open, Some(0.0));
    }

    #[test]
    fn a_hundred_routes_have_room_for_their_statuses() {
        let metrics = Metrics::new();
        let gateway = GatewayMetrics::register(&metrics);
        for number in 0..100 {
            for method in [HttpMethod::Get, HttpMethod::Post] {
                let _ = gateway.route(method, &format!("/route-{number}/list"));
            }
        }
        let snapshot = metrics.snapshot();
        let folded = snapshot.sum("dalston_telemetry_label_values_folded_total", &[]);
        let other = [("endpoint", OTHER), ("status_code", "200"), ("method", "GET")];
        assert_eq!(
            (folded, snapshot.value("dalston_gateway_requests_total", &other)),
            (0.0, None)
        );
    }

    #[test]
    fn ids_in_paths_are_folded() {
        for (path, endpoint) in [
            ("/v1/audio/transcriptions", "/v1/audio/transcriptions"),
            ("/v1/jobs/{job_id}/tasks", "/v1/jobs/{job_id}/tasks"),
            (
                "/v1/jobs/f81d4fae-7dec-11d0-a765-00a0c91e6bf6/tasks",
                "/v1/jobs/{id}/tasks",
            ),
            ("/v1/jobs/42?key=secret", "/v1/jobs/{id}"),
            ("/v1/sessions/sess_0123456789abcdef", "/v1/sessions/{id}"),
            ("/static/app.js", "/static/app.js"),
            ("/v1/s3-cache", "/v1/s3-cache"),
            ("/oauth2/token", "/oauth2/token"),
        ] {
            assert_eq!(endpoint_of(path), endpoint);
        }
    }

    #[test]
    fn each_status_code_has_a_label() {
        for code in 100..1000 {
            let status = StatusCode::from_u16(code).unwrap();
            let label = status_of(status);
            assert!(STATUSES.contains(&label));
            if status.canonical_reason().is_some() {
                assert_eq!(label, status.as_str());
            }
        }
        assert_eq!(status_of(StatusCode::from_u16(299).unwrap()), "200");
        assert_eq!(status_of(StatusCode::from_u16(700).unwrap()), "500");
    }
}
