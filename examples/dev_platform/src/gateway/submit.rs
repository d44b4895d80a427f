//! `POST /v1/audio/transcriptions`: stores the recording, inserts the job, publishes its event.

use anyhow::Result;
use axum::Json;
use axum::extract::multipart::MultipartRejection;
use axum::extract::{Multipart, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use dalston_engine_sdk::audio::{AudioInfo, probe};
use dalston_engine_sdk::protocol::{ArtifactReference, EventKind, Timestamp};
use dalston_engine_sdk::stage::AudioMedia;
use dalston_engine_sdk::store::key;
use dalston_telemetry::audit::{AuditAction, AuditEvent};
use dalston_telemetry::services::MessageContext;
use dalston_telemetry::services::gateway::JobSubmission;
use dalston_telemetry::tower::RequestIds;
use serde_json::json;
use tracing::{info, warn};
use uuid::Uuid;

use super::error::ApiError;
use super::form::Form;
use super::{Caller, Gateway, Shared, openai};
use crate::config::TENANT;
use crate::db::{Job, JobStatus};
use crate::wire::job_event;

pub(super) async fn submit(
    State(gateway): Shared,
    ids: RequestIds,
    caller: Caller,
    multipart: Result<Multipart, MultipartRejection>,
) -> Result<Response, ApiError> {
    let multipart = multipart.map_err(|error| ApiError::bad_request(error.body_text()))?;
    let form = Form::read(multipart).await?;
    let openai = form.openai;
    let answer = gateway.answer(form, &ids, &caller).await;
    answer.map_err(|error| error.in_openai_form(openai.is_some()))
}

impl Gateway {
    async fn answer(&self, form: Form, ids: &RequestIds, caller: &Caller) -> Result<Response, ApiError> {
        let path = form.recording.path().to_owned();
        let header = tokio::task::spawn_blocking(move || probe(path)).await;
        let header = header.map_err(|error| ApiError::internal(&error))?;
        let header = header.map_err(|error| ApiError::unprocessable(error.kind().to_string()))?;
        let format = form.openai;
        let job = self.create(form, &header, ids, caller).await?;
        match format {
            None => {
                let body = json!({
                    "id": job.id, "status": job.status.as_str(), "display_name": job.display_name,
                    "created_at": job.created_at,
                });
                Ok((StatusCode::CREATED, Json(body)).into_response())
            }
            Some(format) => openai::answer(self, caller, &job.id, format).await,
        }
    }

    async fn create(
        &self,
        form: Form,
        header: &AudioInfo,
        ids: &RequestIds,
        caller: &Caller,
    ) -> Result<Job, ApiError> {
        let id = Uuid::new_v4().to_string();
        let submission = JobSubmission::begin(&self.metrics, TENANT);
        let audio_key = key::source_audio(&id, &form.file_name);
        let upload = self.platform.store.put(form.recording.path(), &audio_key);
        let stored = submission.upload_to_s3(upload).await;
        let (audio_locator, _) = stored.map_err(|error| ApiError::internal(&error))?;
        let job = Job {
            media: media(&id, &audio_locator, header),
            id,
            status: JobStatus::Pending,
            display_name: form.file_name,
            parameters: form.parameters,
            audio_locator,
            created_at: Timestamp::now(),
            ended_at: None,
            request_id: Some(ids.request_id().to_owned()),
            trace_context: None,
            engine_id: None,
            error: None,
            retries: 0,
            retried_at: None,
        };
        let insert = async {
            let job = job.clone();
            self.platform.db.write(move |db| job.insert(db)).await
        };
        let (created, ()) = submission.create_job(&job.id, insert).await?;
        let record = AuditEvent::new(AuditAction::JobCreated, TENANT, &job.id)
            .audio_seconds(job.media.duration)
            .model(job.parameters.model.as_deref().unwrap_or_default());
        self.platform.audit.record(caller.sign(record));
        let publish = |message| self.announce(&job.id, message);
        if let Err(error) = created.publish_created_event(publish).await {
            // The job is accepted: the orchestrator finds it in the database.
            warn!(error = format!("{error:#}"), "job_event_not_published");
        }
        info!(job_id = job.id, "job_created");
        Ok(job)
    }

    /// Tells the orchestrator that a job is pending.
    pub(super) async fn announce(&self, job_id: &str, message: MessageContext) -> Result<()> {
        let (id, trace) = (job_id.to_owned(), message.trace_context.clone());
        let keep = self
            .platform
            .db
            .write(move |db| Job::set_trace_context(db, &id, trace.as_deref()));
        keep.await?;
        let event = job_event(EventKind::JobCreated, job_id, &message);
        Ok(self.platform.wire.publish(&event).await?)
    }
}

fn media(job_id: &str, locator: &str, header: &AudioInfo) -> AudioMedia {
    let source = ArtifactReference::source_audio(job_id, locator);
    let duration = header.duration.map_or(0.0, |duration| duration.as_secs_f64());
    let channels = header.channels.and_then(|channels| u32::try_from(channels).ok());
    AudioMedia::new(
        source.artifact_id,
        header.container.to_lowercase(),
        duration,
        // Neither may be zero; the stage `prepare` finds the true ones.
        header.sample_rate.unwrap_or(16_000).max(1),
        channels.unwrap_or(1).max(1),
    )
}
