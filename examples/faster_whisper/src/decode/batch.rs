//! Decodes windows of one or several recordings at once.
//!
//! Each window has its own cache, prompt and search. They share the passes of the encoder and the
//! steps of the decoder. A window whose text is complete leaves, and the next one of its recording
//! takes its place while the others go on.

use std::mem;

use dalston_engine_sdk::audio::AudioFormat;
use tch::Tensor;
use tracing::Span;

use super::attempt::{self, Running};
use super::hypothesis::Hypothesis;
use super::seek::{Seeker, Window};
use super::speech::{Source, Speech};
use super::transcription::{Observer, Recording, Samples, Transcription};
use super::windows::Place;
use crate::error::Error;
use crate::model::Cache;
use crate::options::{Clips, Options};
use crate::whisper::Whisper;

/// The largest number of caches that are kept for later recordings.
const MAX_SPARE: usize = 8;

impl Whisper {
    /// Transcribes a recording of any length.
    ///
    /// A window starts where the last complete segment of the previous window ended. The number of
    /// windows is bounded for every model and recording: a window without progress is skipped with
    /// a warning. With [`batch_size`](Options::batch_size), the windows are parts of speech, and
    /// several are decoded at once.
    ///
    /// # Errors
    /// The model can't honour an option, the samples can't be read, `observer` stopped the
    /// transcription, or libtorch failed.
    pub fn transcribe<S: Samples + ?Sized>(
        &mut self,
        samples: &S,
        options: &Options,
        observer: &mut dyn Observer,
    ) -> Result<Transcription, Error> {
        let recording = Recording {
            samples: Box::new(samples),
            options: options.clone(),
            observer: Box::new(observer),
            span: Span::current(),
        };
        let mut found = Err(Error::Stopped);
        self.transcribe_batch(vec![recording], &mut |_, result| found = result)?;
        found
    }

    /// Transcribes several recordings at once, each with its own options. Calls `done` with the
    /// index and the result of each one as soon as it is known.
    ///
    /// # Errors
    /// libtorch failed in a step of several recordings. Those without a result are not done.
    pub fn transcribe_batch(
        &mut self,
        recordings: Vec<Recording<'_>>,
        done: &mut dyn FnMut(usize, Result<Transcription, Error>),
    ) -> Result<(), Error> {
        let _no_grad = tch::no_grad_guard();
        let mut batch = Batch {
            jobs: Vec::with_capacity(recordings.len()),
            decoding: Vec::new(),
            spare: mem::take(&mut self.spare),
            done,
        };
        for (index, recording) in recordings.into_iter().enumerate() {
            let job = recording.span.clone().in_scope(|| Job::new(self, recording));
            batch
                .jobs
                .push(job.map_err(|error| (batch.done)(index, Err(error))).ok());
        }
        loop {
            while batch.admit(self)? {}
            if batch.decoding.is_empty() {
                break;
            }
            batch.step(self)?;
        }
        batch.spare.truncate(MAX_SPARE);
        self.spare = batch.spare;
        Ok(())
    }
}

/// A recording that is being transcribed.
struct Job<'a> {
    seeker: Seeker,
    source: Source<'a>,
    observer: Box<dyn Observer + 'a>,
    span: Span,
}

/// A window that is being decoded.
struct Decoding {
    /// The index of its recording.
    job: usize,
    window: Window,
    cache: Cache,
}

struct Batch<'a, 'd> {
    /// `None` for those that are done.
    jobs: Vec<Option<Job<'a>>>,
    decoding: Vec<Decoding>,
    spare: Vec<Cache>,
    done: &'d mut dyn FnMut(usize, Result<Transcription, Error>),
}

impl<'a> Batch<'a, '_> {
    /// Encodes windows that can be decoded now. Returns whether there were any.
    fn admit(&mut self, whisper: &Whisper) -> Result<bool, Error> {
        let mut new = Vec::new();
        for index in 0..self.jobs.len() {
            let before = new.len();
            while new.len() < whisper.windows_per_pass()
                && let Some(Some(job)) = self.jobs.get_mut(index)
            {
                match job.next(whisper) {
                    Ok(Some((place, features))) => new.push((index, place, features)),
                    Ok(None) if job.seeker.is_over() => self.end(index, Ok(())),
                    Ok(None) => break,
                    Err(error) => {
                        new.truncate(before);
                        self.end(index, Err(error));
                    }
                }
            }
        }
        if new.is_empty() {
            return Ok(false);
        }
        let spans: Vec<Span> = new
            .iter()
            .filter_map(|(index, place, _)| Some(self.job(*index)?.encode_span(*place)))
            .collect();
        let features: Vec<&Tensor> = new.iter().map(|(_, _, features)| features).collect();
        let encoded = whisper.encode(&features)?;
        let mut caches = Vec::with_capacity(new.len());
        for row in 0..new.len() {
            let mut cache = match self.spare.pop() {
                Some(cache) => cache,
                None => whisper.new_cache()?,
            };
            whisper.set_window(&encoded.f_narrow(0, row as i64, 1)?, &mut cache)?;
            caches.push(cache);
        }
        if spans.iter().any(|span| !span.is_disabled()) {
            whisper.synchronize();
        }
        drop(spans);
        for ((index, place, features), mut cache) in new.into_iter().zip(caches) {
            let Some(Some(job)) = self.jobs.get_mut(index) else {
                self.spare.push(cache);
                continue;
            };
            match job.start(whisper, (place, &features), &mut cache) {
                Ok(window) => self.decoding.push(Decoding {
                    job: index,
                    window,
                    cache,
                }),
                Err(error) => {
                    self.spare.push(cache);
                    self.end(index, Err(error));
                }
            }
        }
        Ok(true)
    }

    /// A step of the decoder for all windows.
    fn step(&mut self, whisper: &Whisper) -> Result<(), Error> {
        let mut stopped = Vec::new();
        for decoding in &self.decoding {
            if let Some(Some(job)) = self.jobs.get_mut(decoding.job)
                && !job.observer.keep_going()
            {
                stopped.push(decoding.job);
            }
        }
        for index in stopped {
            self.end(index, Err(Error::Stopped));
        }
        let jobs = &self.jobs;
        let running = self.decoding.iter_mut().filter_map(|decoding| {
            Some(Running {
                attempt: &mut decoding.window.fallback.attempt,
                cache: &mut decoding.cache,
                rules: &jobs.get(decoding.job)?.as_ref()?.seeker.rules,
            })
        });
        let mut running: Vec<Running<'_>> = running.collect();
        if running.is_empty() {
            return Ok(());
        }
        let results = attempt::step(whisper, &mut running)?;
        drop(running);
        for (mut decoding, result) in mem::take(&mut self.decoding).into_iter().zip(results) {
            // An earlier window of this step may have ended the recording.
            let Some(Some(job)) = self.jobs.get_mut(decoding.job) else {
                self.spare.push(decoding.cache);
                continue;
            };
            let result = match result {
                Ok(None) => Ok(false),
                Ok(Some(hypothesis)) => job.judge(whisper, &mut decoding, hypothesis),
                Err(error) => Err(error),
            };
            match result {
                Ok(false) => self.decoding.push(decoding),
                Ok(true) => self.spare.push(decoding.cache),
                Err(error) => {
                    let error = job.seeker.locate(error, decoding.window.place());
                    self.spare.push(decoding.cache);
                    self.end(decoding.job, Err(error));
                }
            }
        }
        Ok(())
    }

    /// Ends a recording. Its windows leave the batch.
    fn end(&mut self, index: usize, result: Result<(), Error>) {
        let Some(job) = self.jobs.get_mut(index).and_then(Option::take) else {
            return;
        };
        let (left, others) = mem::take(&mut self.decoding)
            .into_iter()
            .partition(|decoding| decoding.job == index);
        self.decoding = others;
        let left: Vec<Decoding> = left;
        self.spare.extend(left.into_iter().map(|decoding| decoding.cache));
        (self.done)(index, result.map(|()| job.transcription()));
    }

    fn job(&self, index: usize) -> Option<&Job<'a>> {
        self.jobs.get(index)?.as_ref()
    }
}

impl<'a> Job<'a> {
    fn new(whisper: &Whisper, recording: Recording<'a>) -> Result<Self, Error> {
        let Recording {
            samples,
            options,
            mut observer,
            span,
        } = recording;
        let rate = whisper.config().features.sampling_rate;
        // As in faster-whisper, the parts that a task names are all speech.
        let has_parts = options.clip_timestamps != Clips::default();
        let finds_speech =
            options.vad_filter && !has_parts && rate == i64::from(AudioFormat::MONO_16K.sample_rate);
        let (source, lens) = if finds_speech {
            let speech = find_speech(whisper, samples, &options, &mut *observer)?;
            let lens = speech.lens();
            (Source::Speech(speech), Some(lens))
        } else {
            (Source::Whole(samples), None)
        };
        let is_ignored = options.vad_filter && !finds_speech && options.batch_size.is_none();
        let mut seeker = Seeker::new(whisper, options, source.len(), lens.as_deref())?;
        if is_ignored {
            let why = "vad_filter has no effect: the task names the parts of the recording";
            seeker.warnings.push(why.to_owned());
        }
        Ok(Self {
            seeker,
            source,
            observer,
            span,
        })
    }

    /// A window that can be decoded now, and its features.
    fn next(&mut self, whisper: &Whisper) -> Result<Option<(Place, Tensor)>, Error> {
        let Self {
            seeker,
            source,
            observer,
            span,
        } = self;
        span.in_scope(|| seeker.next(whisper, source, &mut **observer))
    }

    fn encode_span(&self, place: Place) -> Span {
        let offset = self.seeker.seconds(place.start);
        self.span
            .in_scope(|| tracing::info_span!("whisper.encode", "whisper.window_offset_seconds" = offset))
    }

    fn start(
        &mut self,
        whisper: &Whisper,
        (place, features): (Place, &Tensor),
        cache: &mut Cache,
    ) -> Result<Window, Error> {
        let Self {
            seeker, source, span, ..
        } = self;
        span.in_scope(|| seeker.start(whisper, source, (place, features), cache))
            .map_err(|error| seeker.locate(error, place))
    }

    /// Takes the text of a window. Returns whether the window is done; otherwise it is decoded
    /// again.
    fn judge(
        &mut self,
        whisper: &Whisper,
        decoding: &mut Decoding,
        hypothesis: Hypothesis,
    ) -> Result<bool, Error> {
        let Decoding { window, cache, .. } = decoding;
        let Self {
            seeker,
            observer,
            span,
            ..
        } = self;
        span.in_scope(|| {
            let options = &seeker.options;
            let Some(hypothesis) = window.fallback.judge(hypothesis, whisper, options, cache)? else {
                return Ok(false);
            };
            seeker.end(whisper, window, hypothesis, cache)?;
            observer.advanced(seeker.fraction());
            Ok(true)
        })
    }

    fn transcription(self) -> Transcription {
        let mut transcription = self.seeker.transcription(self.source.len());
        if let Source::Speech(speech) = &self.source {
            let rate = f64::from(AudioFormat::MONO_16K.sample_rate);
            speech.restore(&mut transcription, rate);
            transcription.duration = speech.recording_len() as f64 / rate;
            transcription.speech = Some(speech.parts(rate));
        }
        transcription
    }
}

fn find_speech<'a>(
    whisper: &Whisper,
    samples: Box<dyn Samples + 'a>,
    options: &Options,
    observer: &mut dyn Observer,
) -> Result<Speech<'a>, Error> {
    let span = tracing::info_span!("engine.vad", "whisper.speech_parts" = tracing::field::Empty);
    let _entered = span.enter();
    let mut vad = options.vad_parameters;
    if options.batch_size.is_some() {
        // A part of speech is never longer than a window.
        let window = options.chunk_length.unwrap_or(usize::MAX) as f64;
        vad.max_speech_duration_s = Some(window.min(whisper.config().features.chunk_length as f64));
    }
    let speech = Speech::find(samples, &mut *whisper.voice_detector()?, vad, observer)?;
    span.record("whisper.speech_parts", speech.lens().len());
    Ok(speech)
}
