//! The state of a session, without its socket and its inference: [`Session`].

use std::collections::VecDeque;
use std::time::Duration;

use dalston_telemetry::services::realtime::Utterance;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::endpoint::{Clip, Endpointer, Found};
use super::input::{Input, Resampled};
use super::messages::{self, AudioChange, Command, ConfigChange, ErrorCode, Final};
use super::parameters::Parameters;
use super::partials::{Heard, Partials};
use super::segments::{Segment, Segments};
use super::storage::{AudioOf, Recording, Stored};
use super::streaming::Streaming;
use super::vad::AtRate;
use crate::audio::{AudioErrorKind, VoiceDetector};
use crate::error::TaskError;
use crate::stage::Transcript;
use crate::stream::{Hypothesis, StreamStep};

/// The state of a session: audio and commands go in, messages and work come out.
pub(super) struct Session {
    parameters: Parameters,
    /// The time of the first sample: that of the session that this one continues, else 0.
    origin: Duration,
    rate: u32,
    input: Input,
    endpointer: Endpointer,
    partials: Option<Partials>,
    /// Of an engine that streams natively. It has no `partials`.
    streaming: Option<Streaming>,
    samples: Vec<f32>,
    found: Vec<Found>,
    jobs: VecDeque<Job>,
    messages: VecDeque<Value>,
    /// The positions at which the jobs began to wait, also of the one that is transcribed.
    waiting: VecDeque<Duration>,
    speech: Duration,
    segments: Segments,
    recording: Option<Recording>,
    /// The last invalid audio that the client was told of.
    complained: Option<Instant>,
}

/// A final transcript that is to be made.
#[derive(Debug)]
pub(super) struct Job {
    /// `None` answers a flush without audio.
    pub(super) clip: Option<Clip>,
    pub(super) start: Duration,
    pub(super) end: Duration,
    from_flush: bool,
    /// The position of the session when the job was made.
    position: Duration,
    queued: Instant,
}

impl Job {
    pub(super) fn utterance(&self) -> Utterance {
        Utterance {
            start: self.start,
            end: self.end,
        }
    }

    /// The time since the end of the speech.
    pub(super) fn latency(&self, now: Instant) -> Duration {
        (now - self.queued) + self.position.saturating_sub(self.end)
    }
}

/// A partial transcript that is to be made.
#[derive(Debug)]
pub(super) struct PartialJob {
    /// The utterance: the position of its first sample.
    pub(super) of: u64,
    /// The position of the first sample, and the audio.
    pub(super) from: u64,
    pub(super) samples: Vec<f32>,
    pub(super) utterance: Utterance,
    pub(super) queued: Instant,
}

/// A client is told of invalid audio once in this time.
const COMPLAINT_INTERVAL: Duration = Duration::from_secs(1);

impl Session {
    /// A session for an engine with this rate. `detector` is asked for unless the client finds its
    /// utterances itself.
    pub(super) fn new(
        parameters: Parameters,
        rate: u32,
        origin: Duration,
        detector: impl FnOnce() -> Box<dyn VoiceDetector + Send>,
    ) -> Result<Self, AudioErrorKind> {
        let input = Input::new(
            parameters.encoding,
            parameters.channels,
            parameters.client_rate,
            rate,
            parameters.quality,
        )?;
        let vad = parameters.vad.then(|| AtRate::wrap(detector(), rate));
        let mut session = Self {
            endpointer: Endpointer::new(vad, parameters.endpoint, rate, 0),
            parameters,
            origin,
            rate,
            input,
            partials: None,
            streaming: None,
            samples: Vec::new(),
            found: Vec::new(),
            jobs: VecDeque::new(),
            messages: VecDeque::new(),
            waiting: VecDeque::new(),
            speech: Duration::ZERO,
            segments: Segments::default(),
            recording: None,
            complained: None,
        };
        session.follow_utterance();
        Ok(session)
    }

    pub(super) fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    /// `session.begin`.
    pub(super) fn begin(&self, resumed_from: Option<&str>) -> Value {
        let Parameters {
            session_id,
            encoding_name,
            sample_rate,
            channels,
            language,
            model,
            ..
        } = &self.parameters;
        let mut message = json!({
            "type": "session.begin",
            "session_id": session_id,
            "config": {
                "sample_rate": sample_rate,
                "encoding": encoding_name,
                "channels": channels,
                "language": language.as_deref().unwrap_or("auto"),
                "model": model,
            },
        });
        if let Some(resumed_from) = resumed_from {
            message["resumed_from"] = resumed_from.into();
        }
        message
    }

    /// `session.end`.
    pub(super) fn end_message(&self, stored: Stored) -> Value {
        let mut message = json!({
            "type": "session.end",
            "session_id": self.parameters.session_id,
            "total_audio_seconds": messages::seconds(self.input.received()),
            "total_speech_duration": messages::seconds(self.speech),
            "transcript": self.segments.text(),
            "segments": self.segments.messages(),
        });
        for (key, uri) in [("audio_uri", stored.audio), ("transcript_uri", stored.transcript)] {
            if let Some(uri) = uri {
                message[key] = uri.into();
            }
        }
        message
    }

    /// The format of the audio as it arrives.
    pub(super) fn audio_format(&self) -> AudioOf {
        let Parameters {
            encoding,
            channels,
            client_rate,
            ..
        } = self.parameters;
        AudioOf {
            encoding,
            channels,
            rate: client_rate,
        }
    }

    /// Has the audio transcribed while it comes.
    pub(super) fn stream_natively(&mut self) {
        self.streaming = Some(Streaming::new(self.rate));
        self.endpointer.cuts_at_end = true;
        self.partials = None;
    }

    pub(super) fn streams_natively(&self) -> bool {
        self.streaming.is_some()
    }

    /// Takes the audio of a job for the engine, and the call of the stream.
    pub(super) fn take_audio(&mut self, job: &mut Job) -> Option<(Vec<f32>, Option<StreamStep>)> {
        let clip = job.clip.as_mut()?;
        Some(match &mut self.streaming {
            Some(streaming) => (streaming.rest(clip), Some(streaming.step(true))),
            None => (std::mem::take(&mut clip.samples), None),
        })
    }

    /// The call of the stream for a partial job.
    pub(super) fn partial_step(&self) -> Option<StreamStep> {
        self.streaming.as_ref().map(|streaming| streaming.step(false))
    }

    /// Stores the audio from now on.
    pub(super) fn record(&mut self, recording: Recording) {
        self.recording = Some(recording);
    }

    /// Ends the recording, if there is one.
    pub(super) fn take_recording(&mut self) -> Option<Recording> {
        self.recording.take()
    }

    /// The stored transcript, unless there is no audio or the client wants none.
    pub(super) fn document(&self) -> Option<Value> {
        let Parameters {
            session_id,
            language,
            store_transcript,
            ..
        } = &self.parameters;
        let received = self.received();
        (*store_transcript && received > Duration::ZERO)
            .then(|| self.segments.document(session_id, language.as_deref(), received))
    }

    /// The bytes of this much audio of the client.
    pub(super) fn bytes(&self, length: Duration) -> usize {
        self.input.bytes(length)
    }

    /// The length of the received audio.
    pub(super) fn received(&self) -> Duration {
        self.input.received()
    }

    /// Everything before is transcribed, or belongs to an utterance that has not ended.
    pub(super) fn done(&self) -> Duration {
        self.waiting.front().copied().unwrap_or_else(|| self.received())
    }

    /// The received audio behind the oldest utterance that is not transcribed.
    pub(super) fn backlog(&self) -> Duration {
        self.received().saturating_sub(self.done())
    }

    /// The end of the last final transcript.
    pub(super) fn last_transcript(&self) -> Duration {
        self.segments.end().unwrap_or(self.origin)
    }

    /// How many final transcripts are waited for.
    pub(super) fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// The resampling since the last call.
    pub(super) fn take_resampled(&mut self) -> Option<Resampled> {
        self.input.take_resampled()
    }

    pub(super) fn next_message(&mut self) -> Option<Value> {
        self.messages.pop_front()
    }

    pub(super) fn next_job(&mut self) -> Option<Job> {
        self.jobs.pop_front()
    }

    /// Takes audio in the encoding of the client.
    pub(super) fn audio(&mut self, bytes: &[u8]) -> Result<(), AudioErrorKind> {
        if let Some(recording) = &mut self.recording {
            recording.push(bytes);
        }
        self.samples.clear();
        let is_valid = self.input.push(bytes, &mut self.samples)?;
        if !is_valid
            && self
                .complained
                .is_none_or(|last| last.elapsed() >= COMPLAINT_INTERVAL)
        {
            self.complained = Some(Instant::now());
            let text = "the audio contains samples that are no numbers: they were taken for silence";
            self.tell(messages::error(ErrorCode::InvalidAudio, text, true));
        }
        self.endpointer.push(&self.samples, &mut self.found);
        self.take_found(false);
        Ok(())
    }

    /// Does what a client asks for, except for `end`.
    pub(super) fn command(&mut self, command: Command) -> Result<(), AudioErrorKind> {
        match command {
            Command::Flush => self.flush(true),
            Command::Clear => {
                self.drain_input()?;
                self.endpointer.clear(&mut self.found);
                self.take_found(false);
                Ok(())
            }
            Command::Config(change) => {
                self.configure(change);
                Ok(())
            }
            Command::Keepalive | Command::End => Ok(()),
        }
    }

    /// Ends the current utterance. A client that asked for it gets an answer in any case.
    pub(super) fn flush(&mut self, is_asked: bool) -> Result<(), AudioErrorKind> {
        self.drain_input()?;
        self.endpointer.flush(&mut self.found);
        let is_empty = !self
            .found
            .iter()
            .any(|found| matches!(found, Found::Utterance(_)));
        self.take_found(is_asked);
        if is_asked && is_empty {
            let now = self.time(self.endpointer.end());
            self.queue(None, now, now, true);
        }
        Ok(())
    }

    fn drain_input(&mut self) -> Result<(), AudioErrorKind> {
        self.samples.clear();
        self.input.flush(&mut self.samples)?;
        self.endpointer.push(&self.samples, &mut self.found);
        Ok(())
    }

    fn configure(&mut self, change: ConfigChange) {
        let ConfigChange {
            language,
            vad_threshold,
            min_silence_duration_ms,
            prefix_padding_ms,
            prompt,
            model,
            ..
        } = change;
        let parameters = &mut self.parameters;
        if let Some(language) = language {
            parameters.language =
                Some(language).filter(|language| !language.is_empty() && language != "auto");
        }
        if let Some(prompt) = prompt {
            parameters.prompt = Some(prompt).filter(|prompt| !prompt.is_empty());
        }
        if let Some(model) = model {
            parameters.model = Some(model).filter(|model| !model.is_empty());
        }
        let settings = &mut self.endpointer.settings;
        if let Some(threshold) = vad_threshold {
            settings.threshold = threshold;
        }
        if let Some(silence) = min_silence_duration_ms {
            settings.min_silence = Duration::from_millis(silence);
        }
        if let Some(prefix) = prefix_padding_ms {
            settings.prefix = Duration::from_millis(prefix);
        }
    }

    /// Changes anything about the session.
    pub(super) fn reconfigure(
        &mut self,
        change: ConfigChange,
        detector: impl FnOnce() -> Box<dyn VoiceDetector + Send>,
    ) -> Result<(), AudioErrorKind> {
        if let Some(AudioChange { encoding, rate }) = change.audio {
            let parameters = &mut self.parameters;
            (parameters.encoding, parameters.client_rate) = (encoding, rate);
            self.input = Input::new(encoding, parameters.channels, rate, self.rate, parameters.quality)?;
            let format = self.audio_format();
            if let Some(recording) = &mut self.recording {
                recording.begin_with(format);
            }
        }
        if let Some(vad) = change.vad
            && vad != self.parameters.vad
        {
            self.flush(false)?;
            self.parameters.vad = vad;
            self.endpointer
                .detect(vad.then(|| AtRate::wrap(detector(), self.rate)));
            self.follow_utterance();
        }
        self.configure(change);
        Ok(())
    }

    fn take_found(&mut self, from_flush: bool) {
        for found in std::mem::take(&mut self.found) {
            match found {
                Found::SpeechStart(at) => self.tell(messages::speech_start(self.time(at))),
                Found::SpeechEnd(at) => self.tell(messages::speech_end(self.time(at))),
                Found::Utterance(clip) => {
                    let (start, end) = (self.time(clip.start), self.time(clip.end));
                    self.speech += end - start;
                    self.queue(Some(clip), start, end, from_flush);
                }
            }
        }
        self.follow_utterance();
    }

    fn queue(&mut self, clip: Option<Clip>, start: Duration, end: Duration, from_flush: bool) {
        let position = self.received();
        self.waiting.push_back(position);
        self.jobs.push_back(Job {
            clip,
            start,
            end,
            from_flush,
            position: self.origin + position,
            queued: Instant::now(),
        });
    }

    fn follow_utterance(&mut self) {
        let current = self.endpointer.current().map(|(from, ..)| from);
        if current != self.partials.as_ref().map(Partials::from) {
            self.partials = current
                .filter(|_| self.parameters.partials && self.streaming.is_none())
                .map(|from| Partials::new(from, self.rate));
        }
    }

    /// The utterance that partial transcripts are of.
    pub(super) fn partials_of(&self) -> Option<u64> {
        self.partials.as_ref().map(Partials::from)
    }

    /// The partial transcript that is due, if any.
    pub(super) fn next_partial(&mut self) -> Option<PartialJob> {
        let (of, start, samples) = self.endpointer.current()?;
        let (from, end) = match (&mut self.streaming, &mut self.partials) {
            (Some(streaming), _) => {
                let end = self.endpointer.heard();
                (streaming.next(of, end)?, end)
            }
            // The final transcript of an utterance that ends would wait for it.
            (None, Some(_)) if self.endpointer.is_in_pause() => return None,
            (None, Some(partials)) => {
                let end = self.endpointer.end();
                (partials.next(end)?, end)
            }
            (None, None) => return None,
        };
        let offset = |at: u64| usize::try_from(at.saturating_sub(of)).ok();
        Some(PartialJob {
            of,
            from,
            samples: samples.get(offset(from)?..offset(end)?)?.to_vec(),
            utterance: Utterance {
                start: self.time(start),
                end: self.time(end),
            },
            queued: Instant::now(),
        })
    }

    /// Takes the answer to a partial job. Returns whether there is a message.
    pub(super) fn partial_done(&mut self, job: &PartialJob, answer: &Transcript) -> bool {
        let offset = job.from as f64 / f64::from(self.rate);
        let end = job.from + job.samples.len() as u64;
        let Some(partials) = self
            .partials
            .as_mut()
            .filter(|partials| partials.from() == job.of)
        else {
            return false;
        };
        let partial = partials.take(Heard::all(answer, offset), end);
        if partial.text.is_empty() {
            return false;
        }
        let Utterance { start, end } = job.utterance;
        self.tell(messages::partial(&partial.text, partial.stable, start, end));
        true
    }

    /// Takes the answer to a partial job of an engine that streams natively. Returns whether there
    /// is a message.
    pub(super) fn pushed(&mut self, job: &PartialJob, answer: Option<Hypothesis>) -> bool {
        let is_current = self.endpointer.current().is_some_and(|(of, ..)| of == job.of);
        let Some(Hypothesis { text, stable }) = answer.filter(|_| is_current && self.parameters.partials)
        else {
            return false;
        };
        let text = text.trim_end();
        let Utterance { start, end } = job.utterance;
        let stable = stable.min(text.chars().count());
        self.tell(messages::partial(text, stable, start, end));
        true
    }

    /// A partial job has failed. The final transcript may fail, too, and then the client is told.
    pub(super) fn partial_failed(&mut self, job: &PartialJob) {
        if let Some(streaming) = &mut self.streaming {
            streaming.fail(job.of);
        }
    }

    /// Takes the answer to a job.
    pub(super) fn job_done(&mut self, job: &Job, answer: Result<Transcript, TaskError>) {
        self.waiting.pop_front();
        let answer = match answer {
            Ok(answer) => answer,
            Err(error) => {
                let text = format!("an utterance was not transcribed: {}", error.code());
                let failed = messages::failed(&text, job.start, job.end, job.from_flush);
                self.tell(failed);
                return;
            }
        };
        let text = answer.text.trim().to_owned();
        if text.is_empty() && !job.from_flush {
            return;
        }
        let from = job.clip.as_ref().map_or(0, |clip| clip.from);
        let offset = self.time(from).as_secs_f64();
        let words: Option<Vec<Value>> = self.parameters.words.then(|| {
            let words = answer
                .segments
                .iter()
                .flat_map(|segment| segment.words.iter().flatten());
            words.map(|word| messages::word(word, offset)).collect()
        });
        let stored_words = match self.parameters.store_transcript {
            true => words.clone().unwrap_or_default(),
            false => Vec::new(),
        };
        self.tell(messages::final_transcript(&Final {
            text: text.clone(),
            start: job.start,
            end: job.end,
            confidence: if text.is_empty() {
                0.0
            } else {
                messages::confidence(&answer)
            },
            words,
            from_flush: job.from_flush,
        }));
        if !text.is_empty() {
            let segment = Segment {
                start: job.start,
                end: job.end,
                text,
                words: stored_words,
            };
            self.segments.push(segment, &answer.language);
        }
    }

    pub(super) fn tell(&mut self, message: Value) {
        self.messages.push_back(message);
    }

    /// The time of a sample.
    fn time(&self, sample: u64) -> Duration {
        self.origin + Duration::from_secs_f64(sample as f64 / f64::from(self.rate))
    }
}
