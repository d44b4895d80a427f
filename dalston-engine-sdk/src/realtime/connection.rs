//! A session from its first to its last message: [`serve`].

use std::future::{Future, pending};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use dalston_telemetry::services::realtime::{
    GeneratedTranscript, SessionEnd, SessionSteps, TranscriptSteps, TranscriptType, Utterance,
};
use serde_json::Value;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tracing::{info, warn};

use super::lag::{Lag, LagAction};
use super::messages::{self, Command, ErrorCode, Termination, close};
use super::peer::{Gone, Peer, Received};
use super::session::{Job, PartialJob, Session};
use super::storage::Storage;
use crate::config::RealtimeConfig;
use crate::error::TaskError;
use crate::model_id::ModelId;
use crate::runner::{Class, Live, LiveTask};
use crate::stage::Transcript;
use crate::stream::{Hypothesis, StreamStep};

/// The length of the audio that is processed at once.
const CHUNK: Duration = Duration::from_millis(100);
/// How often limits are checked.
const TICK: Duration = Duration::from_millis(250);
/// When a silent client is asked for a sign of life, and how long it has for the answer.
const PING_INTERVAL: Duration = Duration::from_secs(20);
const PONG_TIMEOUT: Duration = Duration::from_secs(20);
/// So many final transcripts wait at most. A flush takes no audio, so its number needs a bound,
/// too.
const MOST_WAITING: usize = 64;

/// What a session needs of its worker.
pub(super) struct Parts<'a> {
    pub(super) live: &'a Live,
    pub(super) config: &'a RealtimeConfig,
    /// Whether the engine gives times of words.
    pub(super) has_words: bool,
    pub(super) storage: &'a Storage,
}

/// The end of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ended {
    pub(super) reason: SessionEnd,
    /// The end of the last final transcript.
    pub(super) last_transcript: Duration,
}

type Work<T> = Option<Pin<Box<dyn Future<Output = T> + Send>>>;

/// Serves a session until its end. `session.begin` was sent.
pub(super) async fn serve<P: Peer>(
    peer: &mut P,
    mut session: Session,
    mut steps: SessionSteps,
    parts: Parts<'_>,
) -> Ended {
    let mut connection = Connection {
        lag: Lag::new(session.parameters().lag, Instant::now()),
        began: Instant::now(),
        active: Instant::now(),
        heard: Instant::now(),
        pinged: None,
        inbox: Bytes::new(),
        arrived: Instant::now(),
        ending: None,
        lost: None,
        number: 0,
    };
    let reason = connection.run(peer, &mut session, &mut steps, &parts).await;
    let last_transcript = connection.lost.unwrap_or_else(|| session.last_transcript());
    let session_id = session.parameters().session_id.clone();
    let (recording, document) = (session.take_recording(), session.document());
    let storing = parts.storage.finish(&session_id, recording, document);
    let audio_seconds = messages::seconds(session.received());
    info!(reason = reason.as_str(), audio_seconds, "session_ended");
    let last_words = async {
        if matches!(reason, SessionEnd::Disconnected | SessionEnd::ClientClosed) {
            storing.await;
            return Err(Gone);
        }
        while let Some(message) = session.next_message() {
            peer.send(&message).await?;
        }
        let stored = storing.await;
        let (code, why) = match reason {
            SessionEnd::Lag | SessionEnd::Shutdown => {
                let why = match reason {
                    SessionEnd::Lag => Termination::Lag,
                    _ => Termination::Shutdown,
                };
                peer.send(&messages::terminated(&session_id, why, last_transcript))
                    .await?;
                match why {
                    Termination::Lag => (close::LAG_EXCEEDED, "lag exceeded"),
                    Termination::Shutdown => (close::SERVICE_RESTART, "worker shutdown"),
                }
            }
            SessionEnd::Invalid => {
                peer.send(&session.end_message(stored)).await?;
                (close::TOO_BIG, "message too big")
            }
            _ => {
                peer.send(&session.end_message(stored)).await?;
                (close::NORMAL, "session ended")
            }
        };
        peer.close(code, why).await;
        Ok(())
    };
    let _: Result<(), Gone> = steps.close(reason, last_words).await;
    Ended {
        reason,
        last_transcript,
    }
}

/// The connection of a session.
struct Connection {
    lag: Lag,
    began: Instant,
    /// The last message that keeps the session alive.
    active: Instant,
    /// The last sign of life.
    heard: Instant,
    pinged: Option<Instant>,
    /// Audio of the last message that is not processed yet, and when it could be.
    inbox: Bytes,
    arrived: Instant,
    /// The session ends when its transcripts are sent.
    ending: Option<SessionEnd>,
    /// The end of the last transcript that was sent before the client was gone. The others are made
    /// for the storage.
    lost: Option<Duration>,
    /// The number of the last task.
    number: u64,
}

impl Connection {
    async fn run<P: Peer>(
        &mut self,
        peer: &mut P,
        session: &mut Session,
        steps: &mut SessionSteps,
        parts: &Parts<'_>,
    ) -> SessionEnd {
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut job: Work<(Job, Result<Transcript, TaskError>)> = None;
        let mut partial: Work<(PartialJob, Result<PartialAnswer, TaskError>)> = None;
        // The calls of a stream come one after the other, and none is dropped.
        let streams = session.streams_natively();
        let mut partial_of = None;
        loop {
            while let Some(message) = session.next_message() {
                if self.lost.is_none()
                    && peer.send(&message).await.is_err()
                    && let Some(end) = self.lose(session, SessionEnd::Disconnected)
                {
                    return end;
                }
            }
            if job.is_none()
                && (partial.is_none() || !streams)
                && let Some(next) = session.next_job()
            {
                job = Some(Box::pin(self.transcribe(session, steps, parts, next)));
            }
            // A partial of an utterance that has ended is of no use.
            if !streams && partial_of != session.partials_of() {
                partial = None;
            }
            if partial.is_none()
                && self.ending.is_none()
                && (session.waiting() == 0 || !streams)
                && let Some(next) = session.next_partial()
            {
                partial_of = Some(next.of);
                partial = Some(Box::pin(self.transcribe_partial(session, steps, parts, next)));
            }
            if let Some(reason) = self.ending
                && job.is_none()
                && session.waiting() == 0
            {
                return reason;
            }
            let has_room = session.backlog() < parts.config.input && session.waiting() < MOST_WAITING;
            let has_inbox = !self.inbox.is_empty();
            let reads = self.ending.is_none() && has_room && !has_inbox;
            tokio::select! {
                biased;
                () = parts.live.drained().cancelled() => return SessionEnd::Shutdown,
                (done, answer) = finished(&mut job) => {
                    job = None;
                    steps.metrics().final_latency(done.latency(Instant::now()));
                    if let Err(error) = &answer {
                        warn!(%error, "utterance_not_transcribed");
                    }
                    session.job_done(&done, answer);
                }
                (done, answer) = finished(&mut partial) => {
                    partial = None;
                    let is_sent = match answer {
                        Ok(PartialAnswer::Transcript(answer)) => session.partial_done(&done, &answer),
                        Ok(PartialAnswer::Hypothesis(answer)) => {
                            let is_sent = session.pushed(&done, answer);
                            if is_sent {
                                steps.metrics().transcript(TranscriptType::Partial);
                            }
                            is_sent
                        }
                        Err(error) => {
                            warn!(%error, "partial_not_transcribed");
                            session.partial_failed(&done);
                            false
                        }
                    };
                    if is_sent {
                        steps.metrics().partial_latency(done.queued.elapsed());
                    }
                }
                _ = ticks.tick() => {
                    if let Some(end) = self.check(peer, session, steps, parts, reads).await {
                        return end;
                    }
                }
                received = peer.receive(), if reads => {
                    if let Some(end) = self.received(session, parts, received) {
                        return end;
                    }
                }
                () = tokio::task::yield_now(), if has_inbox && has_room => {
                    if let Some(end) = self.process_chunk(session, steps) {
                        return end;
                    }
                }
            }
        }
    }

    /// Takes a message. Returns the end of the session if it ends at once.
    fn received(
        &mut self,
        session: &mut Session,
        parts: &Parts<'_>,
        received: Received,
    ) -> Option<SessionEnd> {
        let now = Instant::now();
        (self.heard, self.pinged) = (now, None);
        match received {
            Received::Audio(audio) => {
                self.active = now;
                (self.inbox, self.arrived) = (audio, now);
            }
            Received::Text(text) => {
                self.active = now;
                match Command::parse(&text) {
                    Ok(Command::End) => self.end(session, SessionEnd::Completed),
                    Ok(command) => {
                        if let Err(error) = session.command(command) {
                            self.fail(session, &error);
                        }
                    }
                    Err(problem) => {
                        session.tell(messages::error(ErrorCode::InvalidMessage, &problem, true));
                    }
                }
            }
            Received::Config(change) => {
                self.active = now;
                if let Err(error) = session.reconfigure(*change, || parts.live.voice_detector()) {
                    self.fail(session, &error);
                }
            }
            Received::Reply(reply) => {
                self.active = now;
                session.tell(reply);
            }
            Received::Pong => {}
            Received::Closed => return self.lose(session, SessionEnd::ClientClosed),
            Received::Lost => return self.lose(session, SessionEnd::Disconnected),
            Received::TooBig => {
                let text = "a message is longer than 1 MiB: send audio in pieces of 20 to 200 ms";
                session.tell(messages::error(ErrorCode::InvalidMessage, text, false));
                return Some(SessionEnd::Invalid);
            }
        }
        None
    }

    fn process_chunk(&mut self, session: &mut Session, steps: &mut SessionSteps) -> Option<SessionEnd> {
        let size = session.bytes(CHUNK).max(1).min(self.inbox.len());
        let audio = self.inbox.split_to(size);
        let before = session.received();
        let chunk = steps.chunk();
        let processed = chunk.span().in_scope(|| session.audio(&audio));
        steps.chunk_done(chunk, session.received() - before, self.arrived.elapsed());
        if let Some(resampled) = session.take_resampled() {
            steps.resampled(resampled.from, resampled.to, resampled.time);
        }
        self.arrived = Instant::now();
        match processed {
            Ok(()) => None,
            Err(error) => {
                self.fail(session, &error);
                Some(SessionEnd::Error)
            }
        }
    }

    /// Checks the limits. Returns the end of the session if it ends at once.
    async fn check<P: Peer>(
        &mut self,
        peer: &mut P,
        session: &mut Session,
        steps: &SessionSteps,
        parts: &Parts<'_>,
        reads: bool,
    ) -> Option<SessionEnd> {
        let now = Instant::now();
        if self.ending.is_some() {
            return None;
        }
        let lag = self.lag.at(now, session.received(), session.done());
        steps.metrics().lag(lag);
        match self.lag.check(now, lag) {
            LagAction::None => {}
            LagAction::Warn => session.tell(self.lag_warning(lag)),
            LagAction::Terminate => {
                let text = format!("the worker is {:.1} s of audio behind", lag.as_secs_f64());
                session.tell(messages::error(ErrorCode::LagExceeded, &text, false));
                return Some(SessionEnd::Lag);
            }
        }
        if !reads {
            // Signs of life are not seen while nothing is read.
            (self.active, self.heard) = (now, now);
        }
        let (idle, longest) = (parts.config.idle_timeout, parts.config.max_session);
        if now - self.active >= idle {
            let text = format!("neither audio nor keepalive for {} s", idle.as_secs());
            session.tell(messages::error(ErrorCode::SessionTimeout, &text, false));
            self.end(session, SessionEnd::Idle);
        } else if now - self.began >= longest {
            let text = format!("a session ends after {} s", longest.as_secs());
            session.tell(messages::error(ErrorCode::SessionTimeout, &text, false));
            self.end(session, SessionEnd::TooLong);
        }
        match self.pinged {
            Some(pinged) if now - pinged >= PONG_TIMEOUT => return Some(SessionEnd::Disconnected),
            None if now - self.heard >= PING_INTERVAL => {
                self.pinged = Some(now);
                if peer.ping().await.is_err() {
                    return Some(SessionEnd::Disconnected);
                }
            }
            _ => {}
        }
        None
    }

    /// Ends the session as soon as its transcripts are sent.
    fn end(&mut self, session: &mut Session, reason: SessionEnd) {
        self.ending = Some(reason);
        if let Err(error) = session.flush(false) {
            self.fail(session, &error);
        }
    }

    /// The client is gone. Returns the end of the session, unless transcripts are to be stored that
    /// are not made yet.
    fn lose(&mut self, session: &mut Session, reason: SessionEnd) -> Option<SessionEnd> {
        if !session.parameters().store_transcript {
            return Some(reason);
        }
        self.lost = Some(session.last_transcript());
        self.end(session, reason);
        None
    }

    fn fail(&mut self, session: &mut Session, error: &dyn std::fmt::Display) {
        warn!(%error, "session_audio_failed");
        let text = format!("the audio could not be processed: {error}");
        session.tell(messages::error(ErrorCode::InternalError, &text, false));
        self.ending = Some(SessionEnd::Error);
    }

    fn lag_warning(&self, lag: Duration) -> Value {
        let limits = self.lag.limits();
        serde_json::json!({
            "type": "warning",
            "code": "processing_lag",
            "message": "the worker is behind the audio",
            "lag_seconds": messages::seconds(lag),
            "warning_threshold_seconds": messages::seconds(limits.warning),
            "hard_threshold_seconds": messages::seconds(limits.hard),
        })
    }

    fn task(
        &mut self,
        session: &Session,
        class: Class,
        with_words: bool,
        samples: Vec<f32>,
        step: Option<StreamStep>,
    ) -> LiveTask {
        self.number += 1;
        let parameters = session.parameters();
        LiveTask {
            session_id: Arc::from(&*parameters.session_id),
            number: self.number,
            class,
            model: parameters.model.as_deref().map(ModelId::from),
            config: parameters.task_config(with_words),
            samples,
            step,
        }
    }

    fn transcribe(
        &mut self,
        session: &mut Session,
        steps: &SessionSteps,
        parts: &Parts<'_>,
        mut job: Job,
    ) -> impl Future<Output = (Job, Result<Transcript, TaskError>)> + Send + use<> {
        if job.clip.is_some() && session.parameters().vad {
            steps.vad_endpoint(job.utterance());
        }
        let audio = session.take_audio(&mut job);
        let with_words = session.parameters().words;
        let task = audio.map(|(samples, step)| self.task(session, Class::Final, with_words, samples, step));
        let (steps, live) = (steps.transcripts(), parts.live.clone());
        async move {
            let answer = match task {
                Some(task) => generate(&steps, &live, TranscriptType::Final, job.utterance(), task).await,
                None => Ok(Transcript::new("", [])),
            };
            (job, answer)
        }
    }

    fn transcribe_partial(
        &mut self,
        session: &Session,
        steps: &SessionSteps,
        parts: &Parts<'_>,
        job: PartialJob,
    ) -> impl Future<Output = (PartialJob, Result<PartialAnswer, TaskError>)> + Send + use<> {
        let step = session.partial_step();
        let is_push = step.is_some();
        let samples = job.samples.clone();
        let task = self.task(session, Class::Partial, parts.has_words, samples, step);
        let (steps, live) = (steps.transcripts(), parts.live.clone());
        async move {
            let answer = if is_push {
                let pushed = live.transcribe(task).await;
                pushed.and_then(|data| Ok(PartialAnswer::Hypothesis(serde_json::from_value(data)?)))
            } else {
                let kind = TranscriptType::Partial;
                let generated = generate(&steps, &live, kind, job.utterance, task).await;
                generated.map(|transcript| PartialAnswer::Transcript(Box::new(transcript)))
            };
            (job, answer)
        }
    }
}

/// The answer to a partial job.
enum PartialAnswer {
    Transcript(Box<Transcript>),
    /// Of an engine that streams natively. `None` if nothing has changed.
    Hypothesis(Option<Hypothesis>),
}

async fn generate(
    steps: &TranscriptSteps,
    live: &Live,
    kind: TranscriptType,
    utterance: Utterance,
    task: LiveTask,
) -> Result<Transcript, TaskError> {
    let work = async {
        let data = live.transcribe(task).await?;
        serde_json::from_value(data)
            .map_err(|error| TaskError::permanent("invalid_output", error).context("the engine's answer"))
    };
    let facts = |transcript: &Transcript| {
        let text = transcript.text.trim();
        (!text.is_empty()).then(|| GeneratedTranscript::of(text))
    };
    steps.generate(kind, utterance, work, facts).await
}

/// Waits for the end of the work, or forever if there is none.
async fn finished<T>(work: &mut Work<T>) -> T {
    match work {
        Some(work) => work.await,
        None => pending().await,
    }
}
