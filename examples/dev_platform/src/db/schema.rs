//! The tables.

use std::thread;
use std::time::{Duration, Instant};

use dalston_engine_sdk::protocol::Timestamp;
use rusqlite::types::Type;
use rusqlite::{Connection, ErrorCode, Transaction, TransactionBehavior};
use serde::de::DeserializeOwned;

/// Handled events that are remembered: as many as the stream may hold, and then some.
const MAX_EVENTS: i64 = 20_000;
/// How long to wait before the tables are asked for again.
const RETRY_INTERVAL: Duration = Duration::from_millis(10);

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
    error TEXT,
    retries INTEGER NOT NULL DEFAULT 0,
    retried_at TEXT
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

/// What tables of earlier versions lack: the columns of jobs that run again.
const RETRY_COLUMNS: &str = "
ALTER TABLE jobs ADD COLUMN retries INTEGER NOT NULL DEFAULT 0;
ALTER TABLE jobs ADD COLUMN retried_at TEXT;
";

pub(super) fn create(connection: &mut Connection, busy_timeout: Duration) -> rusqlite::Result<()> {
    connection.busy_timeout(busy_timeout)?;
    // When two processes turn to the write-ahead log at once, SQLite does not wait for the busy
    // time-out: one of them fails immediately.
    let started = Instant::now();
    loop {
        match create_once(connection) {
            Err(error)
                if error.sqlite_error_code() == Some(ErrorCode::DatabaseBusy)
                    && started.elapsed() < busy_timeout =>
            {
                thread::sleep(RETRY_INTERVAL);
            }
            done => return done,
        }
    }
}

fn create_once(connection: &mut Connection) -> rusqlite::Result<()> {
    // A commit survives the end of the process, and of the machine too.
    connection
        .execute_batch("PRAGMA journal_mode = WAL; PRAGMA synchronous = FULL; PRAGMA foreign_keys = ON;")?;
    // One process after the other adds the columns.
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    transaction.execute_batch(TABLES)?;
    let has_retries = "SELECT count(*) FROM pragma_table_info('jobs') WHERE name = 'retried_at'";
    if transaction.query_row(has_retries, [], |row| row.get::<_, i64>(0))? == 0 {
        transaction.execute_batch(RETRY_COLUMNS)?;
    }
    transaction.commit()
}

/// A value that is another one after each change of the database, by this process or another.
pub(crate) fn version(db: &Connection) -> rusqlite::Result<(i64, i64)> {
    let others = db.query_row("PRAGMA data_version", [], |row| row.get(0))?;
    Ok((
        others,
        db.query_row("SELECT total_changes()", [], |row| row.get(0))?,
    ))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn new_file_is_opened_while_another_process_creates_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("platform.db");
        let other = Connection::open(&path).unwrap();
        // What the other process holds for a moment when it turns to the write-ahead log.
        other.execute_batch("BEGIN IMMEDIATE").unwrap();
        thread::scope(|scope| {
            let opened = scope.spawn(|| {
                let mut connection = Connection::open(&path).unwrap();
                create(&mut connection, Duration::from_secs(10))
            });
            thread::sleep(Duration::from_millis(200));
            other.execute_batch("COMMIT").unwrap();
            opened.join().unwrap().unwrap();
        });
    }

    #[test]
    fn tables_of_an_earlier_version_get_the_new_columns() {
        let mut connection = Connection::open_in_memory().unwrap();
        let new = ",\n    retries INTEGER NOT NULL DEFAULT 0,\n    retried_at TEXT\n";
        let earlier = TABLES.replace(new, "\n");
        assert_ne!(earlier, TABLES);
        connection.execute_batch(&earlier).unwrap();
        let insert = "INSERT INTO jobs (id, status, display_name, parameters, audio_locator, media, created_at) \
                      VALUES ('1', 'failed', '', '{}', '', '{}', '')";
        connection.execute(insert, []).unwrap();
        for _ in 0..2 {
            create(&mut connection, Duration::ZERO).unwrap();
        }
        let retries = "SELECT retries FROM jobs WHERE retried_at IS NULL";
        let retries: i64 = connection.query_row(retries, [], |row| row.get(0)).unwrap();
        assert_eq!(retries, 0);
    }
}
