//! [`AuditLog`] and the thread that writes its records.

use std::fmt;
use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use thiserror::Error;
use tokio::sync::oneshot;

use super::event::{AuditAction, AuditEvent};
use super::file::RotatingFile;
use crate::env::{Env, EnvError};
use crate::logs::LogWriter;
use crate::metrics::{Counter, DenseFamily, Exemplar, Metrics, Status};
use crate::services::service_name;
use crate::setup::settings::audit::{DALSTON_AUDIT_KEEP, DALSTON_AUDIT_LOG, DALSTON_AUDIT_MAX_MB};

/// The records that may wait for the thread.
const MAX_WAITING: usize = 1_024;
/// How long [`AuditLog::record_or_fail`] waits.
const WRITE_TIMEOUT: Duration = Duration::from_secs(5);
const MEGABYTE: u64 = 1024 * 1024;

/// The destination of audit records.
#[derive(Clone, Debug)]
#[must_use]
pub struct AuditConfig {
    destination: Destination,
}

#[derive(Clone, Debug)]
enum Destination {
    File {
        path: PathBuf,
        max_bytes: u64,
        keep: usize,
    },
    Lines(LogWriter),
    Off,
}

impl AuditConfig {
    /// A file, which is rotated at 100 MiB. Ten old files are kept.
    pub fn file(path: impl Into<PathBuf>) -> Self {
        let destination = Destination::File {
            path: path.into(),
            max_bytes: 100 * MEGABYTE,
            keep: 10,
        };
        Self { destination }
    }

    /// The stream of log lines: standard output, standard error, or a writer of your own. The
    /// member `target` tells records from other lines.
    pub fn lines(writer: LogWriter) -> Self {
        let destination = Destination::Lines(writer);
        Self { destination }
    }

    /// No records.
    pub fn off() -> Self {
        let destination = Destination::Off;
        Self { destination }
    }

    /// Reads `DALSTON_AUDIT_LOG`, `DALSTON_AUDIT_MAX_MB` and `DALSTON_AUDIT_KEEP`.
    ///
    /// # Errors
    ///
    /// If a value is not accepted.
    pub fn from_env(env: &Env) -> Result<Self, EnvError> {
        let config = match DALSTON_AUDIT_LOG.read_or_default(env)?.as_str() {
            "stdout" => Self::lines(LogWriter::stdout()),
            "stderr" => Self::lines(LogWriter::stderr()),
            "off" => Self::off(),
            path => Self::file(path),
        };
        let max_mb: u64 = DALSTON_AUDIT_MAX_MB.read_or_default(env)?;
        Ok(config
            .rotate_at(max_mb.saturating_mul(MEGABYTE))
            .keep(DALSTON_AUDIT_KEEP.read_or_default(env)?))
    }

    /// Sets the size of a file at which it is rotated. Without effect for other destinations.
    pub fn rotate_at(mut self, bytes: u64) -> Self {
        if let Destination::File { max_bytes, .. } = &mut self.destination {
            *max_bytes = bytes;
        }
        self
    }

    /// Sets the number of old files that are kept. Without effect for other destinations.
    pub fn keep(mut self, files: usize) -> Self {
        if let Destination::File { keep, .. } = &mut self.destination {
            *keep = files;
        }
        self
    }
}

/// Why a record was not written.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum AuditError {
    /// The record was refused by its destination.
    #[error("writing the audit record {action}: {source}")]
    Write {
        /// The action of the record.
        action: &'static str,
        /// The error of the destination.
        source: io::Error,
    },
    /// The record is not written yet, or too many others wait: the destination does not take them.
    #[error("writing the audit record {action}: the destination does not take it")]
    Blocked {
        /// The action of the record.
        action: &'static str,
    },
}

/// The audit log of a service. Cheap to clone.
#[derive(Clone)]
pub struct AuditLog {
    service: Arc<str>,
    records: Option<SyncSender<Record>>,
    counter: DenseFamily<(AuditAction, Status), Counter>,
    progress: Arc<Progress>,
}

struct Record {
    line: Vec<u8>,
    action: AuditAction,
    exemplar: Option<Exemplar>,
    done: Option<oneshot::Sender<io::Result<()>>>,
}

/// How many records were added, and how many the thread is done with.
#[derive(Default)]
struct Progress {
    added: AtomicU64,
    done: Mutex<u64>,
    changed: Condvar,
}

impl Progress {
    fn advance(&self) {
        *self.done.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        self.changed.notify_all();
    }
}

impl AuditLog {
    /// Opens the log of a service and starts the thread that writes records. Records have the short
    /// name of the service, as log lines do. Registers `dalston_audit_records_total`.
    ///
    /// # Errors
    ///
    /// If the file can't be opened, or the thread can't be started.
    pub fn open(service: &str, config: AuditConfig, metrics: &Metrics) -> io::Result<Self> {
        let counter: DenseFamily<(AuditAction, Status), Counter> = metrics.set(|registry| {
            let mut registry = registry.with_prefix("dalston_audit");
            registry.keep(
                "records",
                "Audit records, by whether they were written",
                DenseFamily::default(),
            )
        });
        let progress = Arc::<Progress>::default();
        let writer: Option<Box<dyn Write + Send>> = match config.destination {
            Destination::Off => None,
            Destination::Lines(writer) => Some(writer.stream()),
            Destination::File {
                path,
                max_bytes,
                keep,
            } => {
                let file = RotatingFile::open(&path, max_bytes, keep).map_err(|error| {
                    let text = format!("opening the audit log {}: {error}", path.display());
                    io::Error::new(error.kind(), text)
                })?;
                Some(Box::new(file))
            }
        };
        let records = match writer {
            None => None,
            Some(writer) => {
                let (sender, records) = sync_channel(MAX_WAITING);
                let (counter, progress) = (counter.clone(), Arc::clone(&progress));
                std::thread::Builder::new()
                    .name("dalston-audit".to_owned())
                    .spawn(move || write(&records, writer, &counter, &progress))?;
                Some(sender)
            }
        };
        Ok(Self {
            service: service_name::short(service).into(),
            records,
            counter,
            progress,
        })
    }

    /// Records an event. Neither blocks nor fails: a record that can't be written is counted.
    pub fn record(&self, event: AuditEvent) {
        let _ = self.submit(event, None);
    }

    /// Records an event, and waits until it is written, for at most 5 s. For actions that must not
    /// happen without a record. Without effect if the log is off.
    ///
    /// # Errors
    ///
    /// If the record was not written in time.
    pub async fn record_or_fail(&self, event: AuditEvent) -> Result<(), AuditError> {
        if self.records.is_none() {
            return Ok(());
        }
        let action = event.action.as_str();
        let (done, written) = oneshot::channel();
        self.submit(event, Some(done))?;
        match tokio::time::timeout(WRITE_TIMEOUT, written).await {
            Ok(Ok(result)) => result.map_err(|source| AuditError::Write { action, source }),
            Ok(Err(_)) | Err(_) => Err(AuditError::Blocked { action }),
        }
    }

    /// Waits until the present records are written, for at most `timeout`, and returns whether they
    /// are. Call it before the process ends.
    pub fn flush(&self, timeout: Duration) -> bool {
        let added = self.progress.added.load(Ordering::Acquire);
        let done = self.progress.done.lock().unwrap_or_else(PoisonError::into_inner);
        let (done, _) = self
            .progress
            .changed
            .wait_timeout_while(done, timeout, |done| *done < added)
            .unwrap_or_else(PoisonError::into_inner);
        *done >= added
    }

    fn submit(
        &self,
        event: AuditEvent,
        done: Option<oneshot::Sender<io::Result<()>>>,
    ) -> Result<(), AuditError> {
        let Some(records) = &self.records else {
            return Ok(());
        };
        let action = event.action;
        let record = Record {
            action,
            line: event.line(&self.service),
            exemplar: Exemplar::current(),
            done,
        };
        self.progress.added.fetch_add(1, Ordering::AcqRel);
        records.try_send(record).map_err(|_| {
            self.progress.advance();
            self.counter.with((action, Status::Failure)).inc();
            AuditError::Blocked {
                action: action.as_str(),
            }
        })
    }
}

impl fmt::Debug for AuditLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AuditLog")
            .field("service", &self.service)
            .finish_non_exhaustive()
    }
}

/// Writes records until the last [`AuditLog`] is dropped.
fn write(
    records: &Receiver<Record>,
    mut writer: Box<dyn Write + Send>,
    counter: &DenseFamily<(AuditAction, Status), Counter>,
    progress: &Progress,
) {
    /// After a pause so long, a further failure is worth a log line.
    const REPORT_EVERY: Duration = Duration::from_secs(60);
    let mut reported: Option<Instant> = None;
    for record in records {
        let result = writer.write_all(&record.line).and_then(|()| writer.flush());
        let status = match &result {
            Ok(()) => Status::Success,
            Err(error) => {
                if reported.is_none_or(|at| at.elapsed() >= REPORT_EVERY) {
                    reported = Some(Instant::now());
                    tracing::error!(action = record.action.as_str(), %error, "audit_record_lost");
                }
                Status::Failure
            }
        };
        counter.with((record.action, status)).inc_in(record.exemplar);
        progress.advance();
        if let Some(done) = record.done {
            let _ = done.send(result);
        }
    }
}
