//! The database: one thread per process that runs all statements.
//!
//! The gateway and the orchestrator may be two processes on one file: SQLite's write-ahead log lets
//! one write while the other reads.

mod jobs;
mod schema;
mod tasks;

use std::path::Path;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use rusqlite::{Connection, Transaction, TransactionBehavior};
use tokio::sync::oneshot;

pub(crate) use self::jobs::{Filter, Job, JobStatus, Parameters, SpeakerDetection};
pub(crate) use self::schema::{remember_event, version};
pub(crate) use self::tasks::{Task, TaskStatus};

type Work = Box<dyn FnOnce(&mut Connection) + Send>;

/// The statements that may wait for the thread.
const MAX_WAITING: usize = 1_024;
/// How long a statement waits for the other process.
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);

/// The database. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Db {
    thread: mpsc::SyncSender<Work>,
}

impl Db {
    /// Opens the file, and creates it and its directory if they do not exist.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let describe = || format!("opening the database {}", path.display());
        if let Some(directory) = path.parent() {
            std::fs::create_dir_all(directory).with_context(describe)?;
        }
        let mut connection = Connection::open(path).with_context(describe)?;
        schema::create(&mut connection, BUSY_TIMEOUT).with_context(describe)?;
        let (sender, receiver) = mpsc::sync_channel::<Work>(MAX_WAITING);
        thread::Builder::new()
            .name("database".to_owned())
            .spawn(move || receiver.into_iter().for_each(|work| work(&mut connection)))?;
        Ok(Self { thread: sender })
    }

    /// Runs statements that change nothing, on one state of the database.
    pub(crate) async fn read<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Transaction<'_>) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T> {
        self.transact(TransactionBehavior::Deferred, work).await
    }

    /// Runs statements in one transaction. All of them take effect, or none.
    pub(crate) async fn write<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Transaction<'_>) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T> {
        self.transact(TransactionBehavior::Immediate, work).await
    }

    async fn transact<T: Send + 'static>(
        &self,
        behavior: TransactionBehavior,
        work: impl FnOnce(&Transaction<'_>) -> rusqlite::Result<T> + Send + 'static,
    ) -> Result<T> {
        let (sender, answer) = oneshot::channel();
        let work: Work = Box::new(move |connection| {
            let transact = || {
                let transaction = connection.transaction_with_behavior(behavior)?;
                let done = work(&transaction)?;
                transaction.commit()?;
                Ok(done)
            };
            let done: rusqlite::Result<T> = transact();
            let _ = sender.send(done);
        });
        self.thread
            .try_send(work)
            .map_err(|_| anyhow!("the database has too much work"))?;
        Ok(answer.await.context("the database has stopped")??)
    }
}

/// A state as a text of the database and of the API.
macro_rules! states {
    ($(#[$doc:meta])* $name:ident { $($(#[$about:meta])* $state:ident => $text:literal),* $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(crate) enum $name { $($(#[$about])* $state),* }

        impl $name {
            pub(crate) fn as_str(self) -> &'static str {
                match self { $(Self::$state => $text),* }
            }

            pub(crate) fn of(text: &str) -> Option<Self> {
                match text { $($text => Some(Self::$state),)* _ => None }
            }
        }

        impl rusqlite::ToSql for $name {
            fn to_sql(&self) -> rusqlite::Result<rusqlite::types::ToSqlOutput<'_>> {
                self.as_str().to_sql()
            }
        }

        impl rusqlite::types::FromSql for $name {
            fn column_result(value: rusqlite::types::ValueRef<'_>) -> rusqlite::types::FromSqlResult<Self> {
                Self::of(value.as_str()?).ok_or(rusqlite::types::FromSqlError::InvalidType)
            }
        }
    };
}
use states;
