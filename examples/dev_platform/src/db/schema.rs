//! The tables.

use std::time::Duration;

use dalston_engine_sdk::protocol::Timestamp;
use rusqlite::types::Type;
use rusqlite::{Connection, Transaction};
use serde::de::DeserializeOwned;

/// Handled events that are remembered: as many as the stream may hold, and then some.
const MAX_EVENTS: i64 = 20_000;

const TABLES: &str = "
CREATE TABLE IF NOT EXISTS jobs (
    id TEXT PRIMARY KEY,
    status TEXT NOT NULL,
    display_name TEXT NOT NULL,
    parameters TEXT NOT NULL,
    audio_locator TEXT NOT NULL,
    media TEXT NOT NULL,
    created_at TEXT NOT NULL,
    ended_at TEXT,
    request_id TEXT,
    trace_context TEXT,
    engine_id TEXT,
    error TEXT
) STRICT;
CREATE INDEX IF NOT EXISTS jobs_by_status ON jobs (status, created_at);
CREATE TABLE IF NOT EXISTS tasks (
    id TEXT PRIMARY KEY,
    job_id TEXT NOT NULL REFERENCES jobs (id) ON DELETE CASCADE,
    position INTEGER NOT NULL,
    stage TEXT NOT NULL,
    engine_id TEXT NOT NULL,
    depends_on TEXT NOT NULL,
    config TEXT NOT NULL,
    status TEXT NOT NULL,
    retries INTEGER NOT NULL DEFAULT 0,
    message_id TEXT,
    ready_at TEXT,
    started_at TEXT,
    completed_at TEXT,
    deadline_at TEXT,
    error TEXT,
    UNIQUE (job_id, stage)
) STRICT;
CREATE TABLE IF NOT EXISTS events (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE
) STRICT;
";

pub(super) fn create(connection: &mut Connection, busy_timeout: Duration) -> rusqlite::Result<()> {
    connection.busy_timeout(busy_timeout)?;
    // A commit survives the end of the process, and of the machine too.
    connection
        .execute_batch("PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA foreign_keys = ON;")?;
    connection.execute_batch(TABLES)
}

/// Whether an event is handled for the first time. Belongs into the transaction of its effects.
pub(crate) fn remember_event(db: &Transaction<'_>, id: &str) -> rusqlite::Result<bool> {
    let is_new = db.execute("INSERT OR IGNORE INTO events (id) VALUES (?1)", [id])? == 1;
    if is_new {
        let oldest = db.last_insert_rowid() - MAX_EVENTS;
        db.execute("DELETE FROM events WHERE number < ?1", [oldest])?;
    }
    Ok(is_new)
}

/// The present time as a text of the database.
pub(super) fn now() -> String {
    Timestamp::now().to_string()
}

/// A JSON text as a value.
pub(super) fn json<T: DeserializeOwned>(text: &str) -> rusqlite::Result<T> {
    let wrong = |error| rusqlite::Error::FromSqlConversionFailure(0, Type::Text, Box::new(error));
    serde_json::from_str(text).map_err(wrong)
}

/// A time of the database.
pub(super) fn time(text: Option<String>) -> Option<Timestamp> {
    text.and_then(|text| text.parse().ok())
}
