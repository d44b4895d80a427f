//! The steps of a request that submits a job: [`JobSubmission`].

use std::fmt::Display;
use std::future::Future;

use opentelemetry::trace::TraceContextExt;
use tracing::{Span, info_span};
use tracing_opentelemetry::OpenTelemetrySpanExt;

use super::metrics::GatewayMetrics;
use super::spans::span;
use crate::services::message::MessageContext;
use crate::services::names::attr;
use crate::services::step;

/// The steps of a request that submits a job, each as a span below the span of the request.
///
/// ```
/// use dalston_telemetry::services::gateway::{GatewayMetrics, JobSubmission};
/// use dalston_telemetry::services::MessageContext;
///
/// # type Error = std::io::Error;
/// # async fn store(audio: Vec<u8>) -> Result<(), Error> { Ok(()) }
/// # async fn insert(job_id: &str) -> Result<(), Error> { Ok(()) }
/// # async fn publish(job_id: &str, message: MessageContext) -> Result<(), Error> { Ok(()) }
/// async fn submit(metrics: &GatewayMetrics, job_id: &str, audio: Vec<u8>) -> Result<(), Error> {
///     let submission = JobSubmission::begin(metrics, "acme");
///     submission.upload_to_s3(store(audio)).await?;
///     let (job, ()) = submission.create_job(job_id, insert(job_id)).await?;
///     job.publish_created_event(|message| publish(job_id, message)).await
/// }
/// ```
#[derive(Debug)]
pub struct JobSubmission {
    metrics: GatewayMetrics,
    tenant_id: String,
    request: Span,
}

impl JobSubmission {
    /// Call it in the handler of the request: the current span is that of the request.
    #[must_use]
    pub fn begin(metrics: &GatewayMetrics, tenant_id: impl Into<String>) -> Self {
        Self {
            metrics: metrics.clone(),
            tenant_id: tenant_id.into(),
            request: Span::current(),
        }
    }

    /// Stores the recording, in the span `gateway.upload_to_s3`.
    ///
    /// # Errors
    ///
    /// The error of `store`, which the span records.
    pub async fn upload_to_s3<T, E: Display>(
        &self,
        store: impl Future<Output = Result<T, E>>,
    ) -> Result<T, E> {
        step::run(info_span!(span::UPLOAD_TO_S3), store).await
    }

    /// Creates the job, in the span `gateway.create_job`.
    ///
    /// The span of the request gets `dalston.job_id` as soon as the job exists, so that a search
    /// for the job finds the trace, and `dalston_gateway_jobs_created_total` counts it.
    ///
    /// # Errors
    ///
    /// The error of `insert`, which the span records.
    pub async fn create_job<T, E: Display>(
        self,
        job_id: &str,
        insert: impl Future<Output = Result<T, E>>,
    ) -> Result<(CreatedJob, T), E> {
        let span = info_span!(span::CREATE_JOB);
        span.set_attribute(attr::JOB_ID, job_id.to_owned());
        let created = step::run(span, insert).await?;
        self.request.set_attribute(attr::JOB_ID, job_id.to_owned());
        self.metrics.job_created(&self.tenant_id);
        let job = CreatedJob {
            job_id: job_id.to_owned(),
        };
        Ok((job, created))
    }
}

/// A job that exists. Made by [`JobSubmission::create_job`], or by [`CreatedJob::again`].
#[derive(Debug)]
#[must_use = "the orchestrator does not know the job before its event is published"]
pub struct CreatedJob {
    job_id: String,
}

impl CreatedJob {
    /// A job that has failed or was cancelled, and that runs again. Call it in the handler of the
    /// request: the current span is that of the request.
    ///
    /// The new run is a trace of its own. The span of the request gets `dalston.job_id` and a link
    /// to the trace of the run before, which `before` carries.
    pub fn again(job_id: &str, before: &MessageContext) -> Self {
        let request = Span::current();
        request.set_attribute(attr::JOB_ID, job_id.to_owned());
        let earlier = before.context().span().span_context().clone();
        if earlier.is_valid() {
            request.add_link(earlier);
        }
        Self {
            job_id: job_id.to_owned(),
        }
    }

    /// Publishes `job.created`, in the span `gateway.publish_job_created_event`. The event gets the
    /// context of that span, so the spans of the orchestrator are below it.
    ///
    /// # Errors
    ///
    /// The error of `publish`, which the span records.
    pub async fn publish_created_event<T, E: Display, F: Future<Output = Result<T, E>>>(
        self,
        publish: impl FnOnce(MessageContext) -> F,
    ) -> Result<T, E> {
        let span = info_span!(span::PUBLISH_JOB_CREATED_EVENT, otel.kind = "producer");
        span.set_attribute(attr::JOB_ID, self.job_id);
        let publishing = span.in_scope(|| publish(MessageContext::current()));
        step::run(span, publishing).await
    }
}
