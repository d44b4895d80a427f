//! The audio and the transcript of a session in the storage: [`Storage`] and [`Recording`].
//!
//! Audio is stored as it arrived, behind the head of a WAV file. It is sent in parts while the
//! session lasts; the first part, which has the head, is kept until the end. A short session is
//! sent in one piece. A failure ends the storage of the file, and never the session.

use std::fmt::Display;
use std::future::Future;
use std::time::Duration;

use bytes::Bytes;
use dalston_telemetry::services::realtime::{RealtimeMetrics, SessionFile};
use serde_json::Value;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::task::TaskTracker;
use tracing::instrument::WithSubscriber;
use tracing::{Instrument, warn};

use super::wav;
use crate::audio::Encoding;
use crate::runner::Live;
use crate::store::{GrowingFile, PART_BYTES, Store, StoreError, key};

/// How long the end of a session waits for its files. The gateway waits 10 s for `session.end`.
const END_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the files may take after it.
const LONGEST: Duration = Duration::from_secs(60);
/// So many parts wait while one is sent: memory is bounded if the storage is slow.
const WAITING_PARTS: usize = 2;
/// The last bytes are kept for the end, because an incomplete frame is left out. 8 bytes are the
/// longest frame.
const KEPT: usize = 8;

/// Where the files of sessions go. Cheap to clone.
#[derive(Clone)]
pub(super) struct Storage {
    store: Store,
    live: Live,
    removals: TaskTracker,
    metrics: RealtimeMetrics,
}

/// The format of stored audio.
#[derive(Debug, Clone, Copy)]
pub(super) struct AudioOf {
    pub(super) encoding: Encoding,
    pub(super) channels: u16,
    pub(super) rate: u32,
}

/// The locators of the files of a session that were stored.
#[derive(Debug, Default)]
pub(super) struct Stored {
    pub(super) audio: Option<String>,
    pub(super) transcript: Option<String>,
}

impl Storage {
    pub(super) fn new(live: &Live, metrics: RealtimeMetrics) -> Self {
        Self {
            store: live.store().clone(),
            live: live.clone(),
            removals: live.removals().clone(),
            metrics,
        }
    }

    /// Begins to store the audio of a session.
    pub(super) fn record(&self, session_id: &str, format: AudioOf) -> Recording {
        Recording {
            key: key::session_audio(session_id),
            storage: self.clone(),
            format,
            first_room: first_room(format),
            first: Vec::new(),
            next: Vec::new(),
            bytes: 0,
            sending: None,
            failed: false,
        }
    }

    /// Stores what a session leaves, and waits for it for some seconds. Afterwards it goes on in
    /// the background.
    pub(super) async fn finish(
        &self,
        session_id: &str,
        recording: Option<Recording>,
        transcript: Option<Value>,
    ) -> Stored {
        let audio = recording
            .and_then(Recording::finish)
            .map(|audio| self.background(SessionFile::Audio, audio));
        let transcript = transcript.map(|transcript| {
            let (store, key) = (self.store.clone(), key::session_transcript(session_id));
            let writing = async move { store.write(&key, transcript.to_string()).await };
            self.background(SessionFile::Transcript, writing)
        });
        let wait = async |task: Option<JoinHandle<Option<String>>>| match task {
            Some(task) => timeout(END_TIMEOUT, task).await.ok()?.ok().flatten(),
            None => None,
        };
        let (audio, transcript) = tokio::join!(wait(audio), wait(transcript));
        Stored { audio, transcript }
    }

    /// Runs `work` on a task of its own, which the drain waits for. Returns the locator.
    fn background(
        &self,
        file: SessionFile,
        work: impl Future<Output = Result<String, StoreError>> + Send + 'static,
    ) -> JoinHandle<Option<String>> {
        let (storage, token) = (self.clone(), self.live.track());
        let work = async move {
            let _token = token;
            match timeout(LONGEST, work).await {
                Ok(Ok(locator)) => Some(locator),
                Ok(Err(error)) => {
                    storage.failed(file, &error);
                    None
                }
                Err(_) => {
                    let seconds = LONGEST.as_secs();
                    storage.failed(file, &format_args!("the storage took longer than {seconds} s"));
                    None
                }
            }
        };
        tokio::spawn(work.in_current_span().with_current_subscriber())
    }

    fn failed(&self, file: SessionFile, error: &dyn Display) {
        self.metrics.file_not_stored(file);
        warn!(%error, file = file.as_str(), "session_file_not_stored");
    }
}

/// The audio of a session on its way into the storage.
pub(super) struct Recording {
    key: String,
    storage: Storage,
    format: AudioOf,
    /// The bytes of audio in the first part.
    first_room: usize,
    first: Vec<u8>,
    /// What follows the parts that were sent.
    next: Vec<u8>,
    /// All bytes so far.
    bytes: u64,
    sending: Option<Sending>,
    failed: bool,
}

struct Sending {
    parts: mpsc::Sender<Bytes>,
    /// The file with all parts but the first and the last one.
    file: JoinHandle<Result<GrowingFile, StoreError>>,
}

/// The bytes of audio in the first part.
fn first_room(format: AudioOf) -> usize {
    PART_BYTES - wav::head(format.encoding, format.channels, format.rate, 0).len()
}

impl Recording {
    /// Changes the format before there is any audio.
    pub(super) fn begin_with(&mut self, format: AudioOf) {
        (self.format, self.first_room) = (format, first_room(format));
    }

    /// Adds audio as it arrived.
    pub(super) fn push(&mut self, audio: &[u8]) {
        if self.failed {
            return;
        }
        self.bytes += audio.len() as u64;
        let room = (self.first_room - self.first.len()).min(audio.len());
        let (first, rest) = audio.split_at(room);
        self.first.extend_from_slice(first);
        self.next.extend_from_slice(rest);
        if self.next.len() >= PART_BYTES + KEPT {
            let rest = self.next.split_off(PART_BYTES);
            let part = std::mem::replace(&mut self.next, rest);
            self.send(part.into());
        }
    }

    fn send(&mut self, part: Bytes) {
        let sent = self.sending().map(|sending| sending.parts.try_send(part));
        match sent {
            Ok(Ok(())) => return,
            Ok(Err(mpsc::error::TrySendError::Full(_))) => {
                let waiting = WAITING_PARTS;
                let error = format_args!("{waiting} parts wait for the storage already");
                self.storage.failed(SessionFile::Audio, &error);
            }
            // The upload has failed.
            Ok(Err(mpsc::error::TrySendError::Closed(_))) => {
                let sending = self.sending.take();
                self.give_up();
                if let Some(sending) = sending {
                    self.storage.background(SessionFile::Audio, sending.error());
                }
                return;
            }
            Err(error) => self.storage.failed(SessionFile::Audio, &error),
        }
        self.give_up();
    }

    /// Forgets all audio. The parts that were sent are removed.
    fn give_up(&mut self) {
        (self.first, self.next, self.failed) = (Vec::new(), Vec::new(), true);
        self.sending = None;
    }

    fn sending(&mut self) -> Result<&mut Sending, StoreError> {
        if self.sending.is_none() {
            let mut file = self.storage.store.grow(&self.key, &self.storage.removals)?;
            let (parts, mut next) = mpsc::channel::<Bytes>(WAITING_PARTS);
            let upload = async move {
                while let Some(part) = next.recv().await {
                    file.send(part).await?;
                }
                Ok(file)
            };
            let upload = tokio::spawn(upload.in_current_span().with_current_subscriber());
            self.sending = Some(Sending { parts, file: upload });
        }
        let gone = || StoreError::locator(&self.key, "its upload has ended");
        self.sending.as_mut().ok_or_else(gone)
    }

    /// Ends the file. `None` if there is nothing to store.
    fn finish(mut self) -> Option<impl Future<Output = Result<String, StoreError>> + Send + 'static> {
        let AudioOf {
            encoding,
            channels,
            rate,
        } = self.format;
        let frame = encoding.bytes() * u64::from(channels);
        let bytes = self.bytes - self.bytes % frame;
        if self.failed || bytes == 0 {
            return None;
        }
        // The incomplete frame is at the end of what was not sent.
        for _ in bytes..self.bytes {
            if self.next.pop().is_none() {
                self.first.pop();
            }
        }
        if bytes % 2 == 1 {
            let last = if self.next.is_empty() {
                &mut self.first
            } else {
                &mut self.next
            };
            last.push(0);
        }
        let mut first = wav::head(encoding, channels, rate, bytes);
        first.append(&mut self.first);
        let last = std::mem::take(&mut self.next);
        let (sending, storage, key) = (self.sending.take(), self.storage.clone(), self.key.clone());
        Some(async move {
            let mut file = match sending {
                Some(sending) => sending.file().await?,
                None => storage.store.grow(&key, &storage.removals)?,
            };
            if !last.is_empty() {
                file.send(last.into()).await?;
            }
            file.finish(first.into()).await
        })
    }
}

impl Sending {
    /// Waits until all parts are sent.
    async fn file(self) -> Result<GrowingFile, StoreError> {
        drop(self.parts);
        match self.file.await {
            Ok(file) => file,
            Err(_) => Err(StoreError::locator(
                "the audio of a session",
                "its upload has stopped",
            )),
        }
    }

    /// The error of an upload that has failed.
    async fn error(self) -> Result<String, StoreError> {
        self.file().await.map(|_| String::new())
    }
}
