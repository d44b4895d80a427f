//! Tasks.

use dalston_engine_sdk::protocol::Timestamp;
use rusqlite::{Connection, OptionalExtension, Row, params};
use serde_json::{Map, Value};

use super::schema::{json, now, time};
use super::states;

states! {
    /// The state of a task.
    TaskStatus {
        /// It waits for other tasks.
        Pending => "pending",
        /// It is queued, or about to be.
        Ready => "ready",
        Running => "running",
        Completed => "completed",
        Failed => "failed",
        Cancelled => "cancelled",
    }
}

/// A task. A job has at most one of each stage.
#[derive(Clone, Debug)]
pub(crate) struct Task {
    pub(crate) id: String,
    pub(crate) job_id: String,
    /// With the channel, if there is a task for each: `transcribe_ch0`.
    pub(crate) stage: String,
    pub(crate) engine_id: String,
    /// The stages whose answers it needs.
    pub(crate) depends_on: Vec<String>,
    pub(crate) config: Map<String, Value>,
    pub(crate) status: TaskStatus,
    pub(crate) retries: u32,
    /// The entry in the queue of this attempt, once it is there.
    pub(crate) message_id: Option<String>,
    pub(crate) ready_at: Option<Timestamp>,
    pub(crate) started_at: Option<Timestamp>,
    pub(crate) completed_at: Option<Timestamp>,
    pub(crate) deadline_at: Option<Timestamp>,
    pub(crate) error: Option<String>,
}

impl Task {
    /// Whether the job had no task of this stage.
    pub(crate) fn insert(&self, db: &Connection, position: u32) -> rusqlite::Result<bool> {
        let depends_on = Value::from(self.depends_on.clone()).to_string();
        let config = Value::Object(self.config.clone()).to_string();
        let inserted = db.execute(
            "INSERT OR IGNORE INTO tasks (id, job_id, position, stage, engine_id, depends_on, config, status) \
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
            params![
                self.id,
                self.job_id,
                position,
                self.stage,
                self.engine_id,
                depends_on,
                config,
                self.status
            ],
        )?;
        Ok(inserted == 1)
    }

    pub(crate) fn find(db: &Connection, id: &str) -> rusqlite::Result<Option<Self>> {
        db.query_row("SELECT * FROM tasks WHERE id = ?1", [id], Self::read)
            .optional()
    }

    /// The tasks of a job in the order of the plan.
    pub(crate) fn of_job(db: &Connection, job_id: &str) -> rusqlite::Result<Vec<Self>> {
        let mut rows = db.prepare("SELECT * FROM tasks WHERE job_id = ?1 ORDER BY position")?;
        rows.query_map([job_id], Self::read)?.collect()
    }

    /// The tasks that failed last, from the newest to the oldest.
    pub(crate) fn failed(db: &Connection, limit: u32) -> rusqlite::Result<Vec<Self>> {
        let mut rows =
            db.prepare("SELECT * FROM tasks WHERE status = 'failed' ORDER BY completed_at DESC LIMIT ?1")?;
        rows.query_map([limit], Self::read)?.collect()
    }

    /// The engines that have ever had a task.
    pub(crate) fn engine_ids(db: &Connection) -> rusqlite::Result<Vec<String>> {
        let mut rows = db.prepare("SELECT DISTINCT engine_id FROM tasks")?;
        rows.query_map([], |row| row.get(0))?.collect()
    }

    /// Makes it ready for its first attempt, or for the next one.
    pub(crate) fn make_ready(db: &Connection, id: &str, retries: u32) -> rusqlite::Result<()> {
        let sql = "UPDATE tasks SET status = 'ready', retries = ?2, ready_at = ?3, message_id = NULL, \
                   started_at = NULL, completed_at = NULL, deadline_at = NULL WHERE id = ?1";
        db.execute(sql, params![id, retries, now()])?;
        Ok(())
    }

    /// Keeps the entry of this attempt.
    pub(crate) fn queued(
        db: &Connection,
        id: &str,
        message_id: &str,
        deadline_at: &Timestamp,
    ) -> rusqlite::Result<()> {
        let sql = "UPDATE tasks SET message_id = ?2, deadline_at = ?3 WHERE id = ?1";
        db.execute(sql, params![id, message_id, deadline_at.to_string()])?;
        Ok(())
    }

    /// Marks it as started, unless it was before.
    pub(crate) fn start(db: &Connection, id: &str) -> rusqlite::Result<()> {
        let sql = "UPDATE tasks SET status = 'running', started_at = ?2 WHERE id = ?1 AND status = 'ready'";
        db.execute(sql, params![id, now()])?;
        Ok(())
    }

    pub(crate) fn end(
        db: &Connection,
        id: &str,
        status: TaskStatus,
        error: Option<&str>,
    ) -> rusqlite::Result<()> {
        let sql = "UPDATE tasks SET status = ?2, error = ?3, completed_at = ?4 \
                   WHERE id = ?1 AND status IN ('pending', 'ready', 'running')";
        db.execute(sql, params![id, status, error, now()])?;
        Ok(())
    }

    /// Cancels the tasks of a job that have not started, or all of them.
    pub(crate) fn cancel_waiting(db: &Connection, job_id: &str) -> rusqlite::Result<()> {
        let sql = "UPDATE tasks SET status = 'cancelled', completed_at = ?2 \
                   WHERE job_id = ?1 AND status IN ('pending', 'ready')";
        db.execute(sql, params![job_id, now()])?;
        Ok(())
    }

    fn read(row: &Row<'_>) -> rusqlite::Result<Self> {
        Ok(Self {
            id: row.get("id")?,
            job_id: row.get("job_id")?,
            stage: row.get("stage")?,
            engine_id: row.get("engine_id")?,
            depends_on: json(&row.get::<_, String>("depends_on")?)?,
            config: json(&row.get::<_, String>("config")?)?,
            status: row.get("status")?,
            retries: row.get("retries")?,
            message_id: row.get("message_id")?,
            ready_at: time(row.get("ready_at")?),
            started_at: time(row.get("started_at")?),
            completed_at: time(row.get("completed_at")?),
            deadline_at: time(row.get("deadline_at")?),
            error: row.get("error")?,
        })
    }
}
