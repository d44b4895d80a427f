//! The steps of the session router, each as a span with its metrics: [`SessionRouterSteps`].

use std::fmt::Display;
use std::future::Future;
use std::time::Instant;

use tracing::{Instrument, info_span};

use super::metrics::SessionRouterMetrics;
use super::spans::span;
use crate::services::message::MessageContext;
use crate::services::names::attr;
use crate::services::step;

/// The steps of the session router. Each runs in its span, and counts in [`SessionRouterMetrics`].
/// Cheap to clone.
///
/// ```
/// use dalston_telemetry::propagate;
/// use dalston_telemetry::services::session_router::{
///     AllocatedWorker, RequestedSession, SessionRouterSteps,
/// };
///
/// # type Error = std::io::Error;
/// # async fn least_busy(model: &str) -> Result<String, Error> { Ok(model.to_owned()) }
/// async fn connect(steps: &SessionRouterSteps, session_id: &str) -> Result<http::HeaderMap, Error> {
///     let session = RequestedSession { session_id, model: "tiny", language: "en" };
///     let worker = |instance: &String| AllocatedWorker {
///         engine_id: "my-asr".to_owned(),
///         instance: instance.clone(),
///     };
///     let (instance, message) = steps.allocate(&session, least_busy("tiny"), worker).await?;
///     // The span of the session at the worker is then below that of the allocation.
///     let mut headers = http::HeaderMap::new();
///     propagate::inject_headers(&message.context(), &mut headers);
///     Ok(headers)
/// }
/// ```
#[derive(Clone, Debug)]
pub struct SessionRouterSteps {
    metrics: SessionRouterMetrics,
}

/// A session that needs a worker.
#[derive(Clone, Copy, Debug)]
pub struct RequestedSession<'a> {
    /// The session.
    pub session_id: &'a str,
    /// The requested model; empty for any.
    pub model: &'a str,
    /// The requested language; empty if it is detected.
    pub language: &'a str,
}

/// The worker that a session gets.
#[derive(Clone, Debug, Default)]
pub struct AllocatedWorker {
    /// The engine.
    pub engine_id: String,
    /// The name of the process.
    pub instance: String,
}

impl SessionRouterSteps {
    /// Steps that count in `metrics`.
    #[must_use]
    pub fn new(metrics: SessionRouterMetrics) -> Self {
        Self { metrics }
    }

    /// The metrics, for what is no step: the workers, and the ends of sessions.
    #[must_use]
    pub fn metrics(&self) -> &SessionRouterMetrics {
        &self.metrics
    }

    /// Chooses a worker, in the span `session_router.allocate`, and records the time:
    /// `dalston_session_router_allocation_duration_seconds`. `describe` tells the result.
    ///
    /// Also returns the context of that span. The request to the worker carries it.
    ///
    /// # Errors
    ///
    /// The error of `choose`, which the span records.
    pub async fn allocate<T, E: Display>(
        &self,
        session: &RequestedSession<'_>,
        choose: impl Future<Output = Result<T, E>>,
        describe: impl FnOnce(&T) -> AllocatedWorker,
    ) -> Result<(T, MessageContext), E> {
        let span = info_span!(span::ALLOCATE, otel.kind = "client");
        let texts = [
            (attr::SESSION_ID, Some(session.session_id)),
            (attr::MODEL, Some(session.model)),
            (attr::LANGUAGE, Some(session.language)),
        ];
        step::set_texts(&span, texts);
        let began = Instant::now();
        let chosen = choose.instrument(span.clone()).await;
        span.in_scope(|| {
            self.metrics.allocated(began.elapsed());
            match chosen {
                Ok(chosen) => {
                    if !span.is_disabled() {
                        let worker = describe(&chosen);
                        let texts = [
                            (attr::ENGINE_ID, Some(&*worker.engine_id)),
                            (attr::INSTANCE, Some(&*worker.instance)),
                        ];
                        step::set_texts(&span, texts);
                    }
                    Ok((chosen, MessageContext::current()))
                }
                Err(error) => {
                    step::record_error(&span, &error);
                    Err(error)
                }
            }
        })
    }
}
