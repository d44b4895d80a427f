//! Jobs.

use dalston_engine_sdk::protocol::{ArtifactReference, Timestamp};
use dalston_engine_sdk::stage::AudioMedia;
use dalston_telemetry::services::MessageContext;
use rusqlite::{Connection, OptionalExtension, Row, params};
use serde::{Deserialize, Serialize};

use super::schema::{json, now, time};
use super::states;

states! {
    /// The state of a job.
    JobStatus {
        Pending => "pending",
        Running => "running",
        Completed => "completed",
        Failed => "failed",
        Cancelling => "cancelling",
        Cancelled => "cancelled",
    }
}

impl JobStatus {
    pub(crate) fn is_terminal(self) -> bool {
        matches!(self, Self::Completed | Self::Failed | Self::Cancelled)
    }

    /// Whether a job has ended without a result, so that it can run again.
    pub(crate) fn is_retryable(self) -> bool {
        matches!(self, Self::Failed | Self::Cancelled)
    }
}

/// What the client asked for.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Parameters {
    /// An engine id or a model id; `None` lets the platform choose.
    pub(crate) model: Option<String>,
    /// `None` has the engine detect it.
    pub(crate) language: Option<String>,
    pub(crate) prompt: Option<String>,
    #[serde(default)]
    pub(crate) vocabulary: Vec<String>,
    pub(crate) temperature: Option<f64>,
    #[serde(default)]
    pub(crate) speaker_detection: SpeakerDetection,
    /// Whether words have times in the result.
    #[serde(default)]
    pub(crate) word_timestamps: bool,
}

/// How speakers are told apart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum SpeakerDetection {
    #[default]
    None,
    /// Each channel of the recording is one speaker.
    PerChannel,
}

/// A job.
#[derive(Clone, Debug)]
pub(crate) struct Job {
    pub(crate) id: String,
    pub(crate) status: JobStatus,
    pub(crate) display_name: String,
    pub(crate) parameters: Parameters,
    pub(crate) audio_locator: String,
    /// The recording as its header describes it.
    pub(crate) media: AudioMedia,
    pub(crate) created_at: Timestamp,
    pub(crate) ended_at: Option<Timestamp>,
    pub(crate) request_id: Option<String>,
    /// The context of the event `job.created`.
    pub(crate) trace_context: Option<String>,
    /// The engine that transcribes.
    pub(crate) engine_id: Option<String>,
    pub(crate) error: Option<String>,
    /// How often it was run again after its end.
    pub(crate) retries: u32,
    /// When its last run was asked for, if it is not the first one.
    pub(crate) retried_at: Option<Timestamp>,
}

/// Which jobs a list has.
#[derive(Clone, Debug)]
pub(crate) struct Filter {
    pub(crate) status: Option<JobStatus>,
    /// A part of the id or of the trace id; empty for all.
    pub(crate) id_part: String,
    pub(crate) limit: u32,
    pub(crate) offset: u32,
}

impl Job {
    /// When its last run began.
    pub(crate) fn run_at(&self) -> Timestamp {
        self.retried_at.unwrap_or(self.created_at)
    }

    /// What messages about it carry for telemetry.
    pub(crate) fn message(&self) -> MessageContext {
        MessageContext::new(self.trace_context.as_deref(), self.request_id.as_deref())
    }

    /// The recording among the artifacts.
    pub(crate) fn source(&self) -> ArtifactReference {
        ArtifactReference::source_audio(&self.id, &*self.audio_locator)
    }

    pub(crate) fn insert(&self, db: &Connection) -> rusqlite::Result<()> {
        db.execute(
            "INSERT INTO jobs (id, status, display_name, parameters, audio_locator, media, created_at, request_id) \
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
            params![
                self.id,
                self.status,
                self.display_name,
                to_json(&self.parameters),
                self.audio_locator,
                to_json(&self.media),
                self.created_at.to_string(),
                self.request_id,
            ],
        )?;
        Ok(())
    }

    pub(crate) fn find(db: &Connection, id: &str) -> rusqlite::Result<Option<Self>> {
        db.query_row("SELECT * FROM jobs WHERE id = ?1", [id], Self::read)
            .optional()
    }

    /// Jobs from the newest to the oldest, and how many there are without the limit.
    pub(crate) fn list(db: &Connection, filter: &Filter) -> rusqlite::Result<(Vec<Self>, i64)> {
        let status = filter.status.map(JobStatus::as_str);
        let part = filter.id_part.as_str();
        let matching = "FROM jobs WHERE (?1 IS NULL OR status = ?1) \
                        AND (instr(id, ?2) > 0 OR instr(coalesce(trace_context, ''), ?2) > 0)";
        let mut rows = db.prepare(&format!(
            "SELECT * {matching} ORDER BY created_at DESC, id LIMIT ?3 OFFSET ?4"
        ))?;
        let jobs = rows.query_map(params![status, part, filter.limit, filter.offset], Self::read)?;
        let jobs = jobs.collect::<rusqlite::Result<_>>()?;
        let count = format!("SELECT count(*) {matching}");
        Ok((
            jobs,
            db.query_row(&count, params![status, part], |row| row.get(0))?,
        ))
    }

    /// How many jobs have each state.
    pub(crate) fn counts(db: &Connection) -> rusqlite::Result<Vec<(JobStatus, i64)>> {
        let mut rows = db.prepare("SELECT status, count(*) FROM jobs GROUP BY status")?;
        rows.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?
            .collect()
    }

    /// All jobs that have not ended, from the oldest to the newest.
    pub(crate) fn open(db: &Connection) -> rusqlite::Result<Vec<Self>> {
        let mut rows = db.prepare(
            "SELECT * FROM jobs WHERE status IN ('pending', 'running', 'cancelling') ORDER BY created_at",
        )?;
        rows.query_map([], Self::read)?.collect()
    }

    /// Keeps the context of the event that announces the job, for the case that it gets lost.
    pub(crate) fn set_trace_context(db: &Connection, id: &str, trace: Option<&str>) -> rusqlite::Result<()> {
        db.execute(
            "UPDATE jobs SET trace_context = ?2 WHERE id = ?1",
            params![id, trace],
        )?;
        Ok(())
    }

    /// Whether it was `pending`.
    pub(crate) fn start(db: &Connection, id: &str, engine_id: &str) -> rusqlite::Result<bool> {
        let sql = "UPDATE jobs SET status = 'running', engine_id = ?2 WHERE id = ?1 AND status = 'pending'";
        Ok(db.execute(sql, [id, engine_id])? == 1)
    }

    /// Whether it could still be cancelled.
    pub(crate) fn request_cancel(db: &Connection, id: &str) -> rusqlite::Result<bool> {
        let sql = "UPDATE jobs SET status = 'cancelling' WHERE id = ?1 AND status IN ('pending', 'running')";
        Ok(db.execute(sql, [id])? == 1)
    }

    /// Whether it had not ended before.
    pub(crate) fn end(
        db: &Connection,
        id: &str,
        status: JobStatus,
        error: Option<&str>,
    ) -> rusqlite::Result<bool> {
        let sql = "UPDATE jobs SET status = ?2, error = ?3, ended_at = ?4 \
                   WHERE id = ?1 AND status IN ('pending', 'running', 'cancelling')";
        Ok(db.execute(sql, params![id, status, error, now()])? == 1)
    }

    /// Begins a job again that has ended without a result: it is planned anew. Completed tasks
    /// stay, so their stages do not run again. Others are forgotten: the new plan has new ones, and
    /// what engines still report about the old ones has no effect. Returns whether it was such a
    /// job.
    pub(crate) fn retry(db: &Connection, id: &str, request_id: &str) -> rusqlite::Result<bool> {
        let sql = "UPDATE jobs SET status = 'pending', error = NULL, ended_at = NULL, engine_id = NULL, \
                   request_id = ?2, retried_at = ?3, retries = retries + 1 \
                   WHERE id = ?1 AND status IN ('failed', 'cancelled')";
        if db.execute(sql, params![id, request_id, now()])? == 0 {
            return Ok(false);
        }
        let sql = "DELETE FROM tasks WHERE job_id = ?1 AND status <> 'completed'";
        db.execute(sql, [id])?;
        Ok(true)
    }

    pub(crate) fn delete(db: &Connection, id: &str) -> rusqlite::Result<()> {
        db.execute("DELETE FROM jobs WHERE id = ?1", [id])?;
        Ok(())
    }

    fn read(row: &Row<'_>) -> rusqlite::Result<Self> {
        let created_at: String = row.get("created_at")?;
        Ok(Self {
            id: row.get("id")?,
            status: row.get("status")?,
            display_name: row.get("display_name")?,
            parameters: json(&row.get::<_, String>("parameters")?)?,
            audio_locator: row.get("audio_locator")?,
            media: json(&row.get::<_, String>("media")?)?,
            created_at: time(Some(created_at)).unwrap_or_else(Timestamp::now),
            ended_at: time(row.get("ended_at")?),
            request_id: row.get("request_id")?,
            trace_context: row.get("trace_context")?,
            engine_id: row.get("engine_id")?,
            error: row.get("error")?,
            retries: row.get("retries")?,
            retried_at: time(row.get("retried_at")?),
        })
    }
}

fn to_json(value: &impl Serialize) -> String {
    serde_json::to_string(value).expect("the keys are strings and no field fails to serialize")
}
