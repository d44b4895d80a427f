use std::fmt;
use std::time::Duration;

use crate::metrics::{
    BoundedFamily, Counter, DenseFamily, Exemplar, Histogram, Metrics, OpenLabel, Unit, buckets,
};
use crate::services::http::{EndedRequest, RequestMetrics};

crate::label! {
    /// A route of an engine.
    pub enum DirectEndpoint = "endpoint" {
        /// The route of the platform.
        Transcribe => "/v1/transcribe",
        /// The route of OpenAI's API.
        OpenAi => "/v1/audio/transcriptions",
        /// The route of OpenAI's API for translations into English.
        OpenAiTranslations => "/v1/audio/translations",
    }
}

crate::label! {
    /// The status of an answer.
    pub enum DirectStatus = "status_code" {
        Ok => "200",
        BadRequest => "400",
        NotFound => "404",
        RequestTimeout => "408",
        PayloadTooLarge => "413",
        UnsupportedMediaType => "415",
        /// The client has disconnected before the answer. Proxies use the same number.
        ClientGone => "499",
        InternalServerError => "500",
        ServiceUnavailable => "503",
        GatewayTimeout => "504",
    }
}

impl DirectStatus {
    /// The status of this number; 500 for a number that no engine uses.
    #[must_use]
    pub fn of(code: u16) -> Self {
        match code {
            200 => Self::Ok,
            400 => Self::BadRequest,
            404 => Self::NotFound,
            408 => Self::RequestTimeout,
            413 => Self::PayloadTooLarge,
            415 => Self::UnsupportedMediaType,
            499 => Self::ClientGone,
            503 => Self::ServiceUnavailable,
            504 => Self::GatewayTimeout,
            _ => Self::InternalServerError,
        }
    }
}

/// The metrics of HTTP requests to an engine, which bypass its queue.
///
/// `dalston_engine_direct_requests_total` and `dalston_engine_direct_request_seconds`. Cheap to
/// clone.
#[derive(Clone)]
pub struct DirectMetrics {
    requests: DenseFamily<(DirectEndpoint, DirectStatus), Counter>,
    seconds: BoundedFamily<2, DirectEndpoint, Histogram>,
    engine_id: String,
}

impl DirectMetrics {
    /// The handles of this engine. The first call for a registry registers the families.
    #[must_use]
    pub fn register(metrics: &Metrics, engine_id: impl Into<String>) -> Self {
        let engine_id = engine_id.into();
        let engine = metrics.label("engine_id");
        let (requests, seconds) = metrics.set(|registry| {
            let status = OpenLabel::of::<DirectStatus>();
            let requests: BoundedFamily<1, (DirectEndpoint, DirectStatus), Counter> =
                BoundedFamily::new([&engine], Counter::default);
            let duration = || Histogram::with_exemplars(buckets::TASK_DURATION);
            let seconds: BoundedFamily<2, DirectEndpoint, Histogram> =
                BoundedFamily::new([&engine, &status], duration);
            let mut registry = registry.with_prefix("dalston_engine");
            registry.register(
                "direct_requests",
                "HTTP requests for a transcript",
                requests.clone(),
            );
            registry.register_with_unit(
                "direct_request",
                "Time from the headers of an HTTP request for a transcript to its answer",
                Unit::Seconds,
                seconds.clone(),
            );
            (requests, seconds)
        });
        Self {
            requests: requests.with([&*engine_id]),
            seconds,
            engine_id,
        }
    }

    /// Records a request that was answered or whose client has disconnected.
    pub fn request(&self, endpoint: DirectEndpoint, status: DirectStatus, time: Duration) {
        self.request_in(endpoint, status, time, Exemplar::current());
    }

    fn request_in(
        &self,
        endpoint: DirectEndpoint,
        status: DirectStatus,
        time: Duration,
        exemplar: Option<Exemplar>,
    ) {
        self.requests.with((endpoint, status)).inc_in(exemplar);
        self.seconds
            .with([&*self.engine_id, status.as_str()])
            .with(endpoint)
            .observe_duration_in(time, exemplar);
    }
}

/// Counts the requests to the routes of [`DirectEndpoint`].
impl RequestMetrics for DirectMetrics {
    fn ended(&self, request: &EndedRequest<'_>) {
        let routes = [
            DirectEndpoint::Transcribe,
            DirectEndpoint::OpenAi,
            DirectEndpoint::OpenAiTranslations,
        ];
        let endpoint = routes
            .into_iter()
            .find(|route| Some(route.as_str()) == request.route);
        if let Some(endpoint) = endpoint {
            let status = DirectStatus::of(request.status.as_u16());
            self.request_in(endpoint, status, request.time, request.exemplar);
        }
    }
}

impl fmt::Debug for DirectMetrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DirectMetrics")
            .field("engine_id", &self.engine_id)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_changes_exactly_its_series() {
        let metrics = Metrics::new();
        let direct = DirectMetrics::register(&metrics, "asr");
        let labels = |status| {
            [
                ("endpoint", "/v1/transcribe"),
                ("engine_id", "asr"),
                ("status_code", status),
            ]
        };
        let total = "dalston_engine_direct_requests_total";
        assert_eq!(metrics.snapshot().value(total, &labels("503")), Some(0.0));
        direct.request(
            DirectEndpoint::Transcribe,
            DirectStatus::of(200),
            Duration::from_millis(700),
        );
        let after = metrics.snapshot();
        assert_eq!(after.value(total, &labels("200")), Some(1.0));
        assert_eq!(after.sum(total, &[]), 1.0);
        let took = after.value("dalston_engine_direct_request_seconds_sum", &labels("200"));
        assert_eq!(took, Some(0.7));
        assert_eq!(after.sum("dalston_engine_direct_request_seconds_count", &[]), 1.0);
    }

    #[test]
    fn each_status_has_its_number() {
        for code in [200, 400, 404, 408, 413, 415, 499, 500, 503, 504] {
            assert_eq!(DirectStatus::of(code).as_str(), code.to_string());
        }
        assert_eq!(DirectStatus::of(418), DirectStatus::InternalServerError);
    }
}
