//! A loaded model, and one window of audio.

use std::path::Path;

use dalston_engine_sdk::audio::{Earshot, VoiceDetector};
use dalston_engine_sdk::torch::SileroFile;
use tch::{Device, Kind, TchError, Tensor};

use crate::align::{self, Alignment};
use crate::config::Config;
use crate::decode::attempt::{self, Attempt, Running};
use crate::decode::rules::Rules;
use crate::decode::{Hypothesis, Sampling, language};
use crate::error::{Error, LoadError};
use crate::features::LogMel;
use crate::model::{Cache, Decoder, Encoder, Feed, Placement};
use crate::tokenizer::{Prompt, Vocabulary};
use crate::weights::Weights;

/// Windows that a GPU encodes in one pass. More of them only need more memory.
const WINDOWS_PER_PASS: usize = 8;

/// A Whisper model, loaded from a Hugging Face directory.
///
/// [`transcribe`](Self::transcribe) transcribes a recording, and
/// [`transcribe_batch`](Self::transcribe_batch) several at once. [`window`](Self::window) gives
/// access to single steps.
///
/// The memory of the decoder's caches is kept, so all work takes `&mut self`.
///
/// ```no_run
/// use faster_whisper::{Options, Placement, Whisper};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let mut whisper = Whisper::load("models/whisper-nano-digits".as_ref(), Placement::CPU)?;
/// let samples = vec![0.0_f32; 16_000];
/// let transcription = whisper.transcribe(&samples[..], &Options::default(), &mut ())?;
/// for segment in &transcription.segments {
///     println!("{:.2}..{:.2} {}", segment.start, segment.end, segment.text);
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Whisper {
    config: Config,
    placement: Placement,
    vocabulary: Vocabulary,
    features: LogMel,
    encoder: Encoder,
    decoder: Decoder,
    /// The caches of earlier windows.
    pub(crate) spare: Vec<Cache>,
    /// The ids of the languages, in the order of their codes.
    languages: Option<Tensor>,
    /// The detector of speech in place of [`Earshot`].
    silero: Option<SileroFile>,
}

impl Whisper {
    /// Loads the model in `dir` onto a device, in a precision.
    ///
    /// # Errors
    /// See [`LoadError`]: every message is one line that names the file and what is wrong with it.
    pub fn load(dir: &Path, placement: Placement) -> Result<Self, LoadError> {
        let _no_grad = tch::no_grad_guard();
        let config = Config::load(dir)?;
        let vocabulary = Vocabulary::load(dir, &config)?;
        let weights = Weights::open(dir, placement)?;
        let ids = vocabulary.language_ids();
        let languages = if ids.is_empty() {
            None
        } else {
            Some(Tensor::f_from_slice(&ids)?.f_to_device(placement.device)?)
        };
        Ok(Self {
            features: LogMel::new(&config.features, placement.device)?,
            encoder: Encoder::load(&weights, &config.model)?,
            decoder: Decoder::load(&weights, &config.model)?,
            spare: vec![Cache::new(&config.model, placement)?],
            languages,
            vocabulary,
            placement,
            config,
            silero: None,
        })
    }

    /// Finds speech with this detector.
    pub fn set_voice_detector(&mut self, silero: SileroFile) {
        self.silero = Some(silero);
    }

    /// A detector of speech.
    pub(crate) fn voice_detector(&self) -> Result<Box<dyn VoiceDetector + Send>, Error> {
        Ok(match &self.silero {
            Some(silero) => Box::new(silero.detector()?),
            None => Box::new(Earshot::new()),
        })
    }

    /// Checks all files of the model in `dir` without reading the values of weights, and returns a
    /// description.
    ///
    /// # Errors
    /// As [`load`](Self::load), except for errors in the values of weights.
    pub fn inspect(dir: &Path) -> Result<String, LoadError> {
        let _no_grad = tch::no_grad_guard();
        let config = Config::load(dir)?;
        let vocabulary = Vocabulary::load(dir, &config)?;
        // In float16, loading rearranges no tensor.
        let placement = Placement::new(Device::Cpu, Kind::Half);
        let weights = Weights::open(dir, placement)?.without_values();
        Encoder::load(&weights, &config.model)?;
        Decoder::load(&weights, &config.model)?;
        let (bytes, files) = weights.extent();
        let model = &config.model;
        Ok(format!(
            "{} + {} layers of width {}, {} mel bins, {} language(s), {:.1} MB of weights in {files} file(s)",
            model.encoder_layers,
            model.decoder_layers,
            model.d_model,
            model.num_mel_bins,
            vocabulary.languages().len(),
            bytes as f64 / 1e6,
        ))
    }

    /// The JSON files of the model.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The model's tokens.
    #[must_use]
    pub fn vocabulary(&self) -> &Vocabulary {
        &self.vocabulary
    }

    /// Device and precision of the model.
    #[must_use]
    pub fn placement(&self) -> Placement {
        self.placement
    }

    /// Log-mel features of one window: 1 × bins × frames, float32. Samples beyond the window are
    /// ignored.
    ///
    /// # Errors
    /// libtorch failed, for example because memory is exhausted.
    pub fn features(&self, samples: &[f32]) -> Result<Tensor, Error> {
        let _no_grad = tch::no_grad_guard();
        Ok(self.features.compute(samples)?)
    }

    /// Encodes the features of one window and prepares the decoder for it.
    ///
    /// # Errors
    /// The features have another shape than the model's, or libtorch failed.
    pub fn window(&mut self, features: &Tensor) -> Result<Window<'_>, Error> {
        let _no_grad = tch::no_grad_guard();
        let mut cache = self.new_cache()?;
        let encoded = self.encode(&[features])?;
        self.set_window(&encoded, &mut cache)?;
        Ok(Window {
            whisper: self,
            encoded,
            cache,
        })
    }

    /// Maximum number of tokens of earlier text in a prompt: half the decoder's positions, less one
    /// for the token that introduces them.
    #[must_use]
    pub fn max_previous_tokens(&self) -> usize {
        (self.config.model.max_target_positions / 2 - 1) as usize
    }

    /// Maximum number of tokens that are sampled for one window: half the decoder's positions.
    #[must_use]
    pub fn max_sampled_tokens(&self) -> usize {
        (self.config.model.max_target_positions / 2) as usize
    }
}

/// An encoded window of audio.
#[derive(Debug)]
pub struct Window<'a> {
    whisper: &'a mut Whisper,
    encoded: Tensor,
    cache: Cache,
}

impl Window<'_> {
    /// The encoder's output: 1 × positions × width.
    pub fn encoded(&self) -> &Tensor {
        &self.encoded
    }

    /// Encodes other features into this window.
    ///
    /// # Errors
    /// The features have another shape than the model's, or libtorch failed.
    pub fn replace(&mut self, features: &Tensor) -> Result<(), Error> {
        let _no_grad = tch::no_grad_guard();
        self.encoded = self.whisper.encode(&[features])?;
        Ok(self.whisper.set_window(&self.encoded, &mut self.cache)?)
    }

    /// The logits at every position of `ids`, unfiltered: `ids.len()` × vocabulary, float32.
    ///
    /// # Errors
    /// More ids than the decoder has positions, or libtorch failed.
    pub fn logits(&mut self, ids: &[i64]) -> Result<Tensor, Error> {
        let _no_grad = tch::no_grad_guard();
        Ok(self.whisper.logits(ids, &mut self.cache)?)
    }

    /// The probability of each language of the model, most likely first. Empty for an English-only
    /// model.
    ///
    /// # Errors
    /// libtorch failed.
    pub fn languages(&mut self) -> Result<Vec<LanguageProbability>, Error> {
        let _no_grad = tch::no_grad_guard();
        self.whisper.languages(&mut self.cache)
    }

    /// The probability that the window contains no speech, from the model's own token; 0 for a
    /// model without one.
    ///
    /// # Errors
    /// libtorch failed.
    pub fn no_speech_probability(&mut self) -> Result<f64, Error> {
        let _no_grad = tch::no_grad_guard();
        let row = self.logits(&[self.whisper.vocabulary.start_of_transcript()])?;
        Ok(no_speech(&row, &self.whisper.vocabulary)?.map_or(Ok(0.0), |p| p.f_double_value(&[0]))?)
    }

    /// Decodes the text after `prompt` until the end of text, `max_tokens` tokens, or the end of
    /// the decoder's positions.
    ///
    /// Calls `keep_going` before every step.
    ///
    /// # Errors
    /// [`Error::Stopped`] if `keep_going` returns false, [`Error::NotANumber`], or libtorch failed.
    pub fn decode(
        &mut self,
        prompt: &Prompt,
        rules: &Rules,
        how: Sampling,
        keep_going: &mut dyn FnMut() -> bool,
    ) -> Result<Hypothesis, Error> {
        let _no_grad = tch::no_grad_guard();
        self.cache.clear();
        let mut attempt = Attempt::new(self.whisper, prompt, how)?;
        loop {
            if !keep_going() {
                return Err(Error::Stopped);
            }
            let running = Running {
                attempt: &mut attempt,
                cache: &mut self.cache,
                rules,
            };
            for result in attempt::step(self.whisper, &mut [running])? {
                if let Some(hypothesis) = result? {
                    return Ok(hypothesis);
                }
            }
        }
    }

    /// Aligns the tokens of a text with the first `frames` frames of the window. `prompt` is that
    /// of the text, without timestamps.
    ///
    /// # Errors
    /// [`Error::NotANumber`], more tokens than the decoder has positions, or libtorch failed.
    pub fn align(&mut self, prompt: &Prompt, text: &[i64], frames: usize) -> Result<Alignment, Error> {
        let _no_grad = tch::no_grad_guard();
        self.whisper.align(prompt, text, frames, &mut self.cache)
    }

    /// The loaded model.
    #[must_use]
    pub fn whisper(&self) -> &Whisper {
        self.whisper
    }
}

/// The probability of one language.
#[derive(Debug, Clone, PartialEq)]
pub struct LanguageProbability {
    /// Language code, as `en`.
    pub code: String,
    /// 0 to 1. The probabilities of all languages add up to 1.
    pub probability: f64,
}

/// Softmax over the unfiltered vocabulary at `<|startoftranscript|>`: one element, on the device.
pub(crate) fn no_speech(row: &Tensor, vocabulary: &Vocabulary) -> Result<Option<Tensor>, TchError> {
    let Some(id) = vocabulary.no_speech() else {
        return Ok(None);
    };
    Ok(Some(row.f_softmax(-1, Kind::Double)?.f_select(-1, id)?))
}

impl Whisper {
    /// The heads of the cross-attention that align text with speech: those of the model's files, or
    /// all in the upper half of the decoder.
    fn alignment_heads(&self) -> Vec<(i64, i64)> {
        let known = self.config.generation.alignment_heads.as_ref();
        if let Some(heads) = known.filter(|heads| !heads.is_empty()) {
            return heads.clone();
        }
        let model = &self.config.model;
        let upper = model.decoder_layers / 2..model.decoder_layers;
        let heads = |layer| (0..model.decoder_attention_heads).map(move |head| (layer, head));
        upper.flat_map(heads).collect()
    }

    /// See [`Window::align`].
    pub(crate) fn align(
        &self,
        prompt: &Prompt,
        text: &[i64],
        frames: usize,
        cache: &mut Cache,
    ) -> Result<Alignment, Error> {
        let end_of_text = self.vocabulary.end_of_text();
        let ids = [prompt.ids.as_slice(), text, &[end_of_text]].concat();
        self.check_ids(&ids)?;
        let heads = self.alignment_heads();
        cache.clear();
        let feed = Feed {
            cache,
            ids: &ids,
            rows: 1,
        };
        let (hidden, scores) = self.decoder.forward_with_scores(feed, &heads)?;

        // A token is chosen at the position before it.
        let (before, count) = (prompt.ids.len() as i64 - 1, text.len() as i64);
        let logits = self
            .decoder
            .logits(&hidden.f_select(0, 0)?.f_narrow(0, before, count)?)?;
        let of_text = logits.f_narrow(-1, 0, end_of_text)?.f_softmax(-1, Kind::Double)?;
        let chosen = Tensor::f_from_slice(text)?
            .f_to_device(self.placement.device)?
            .f_unsqueeze(1)?;
        let probabilities = of_text.f_gather(-1, &chosen, false)?.f_flatten(0, -1)?;

        // One position is two frames.
        let most = self.config.model.max_source_positions;
        let positions = (frames as i64 / 2).clamp(1, most);
        let weights = align::weights(&scores, positions)?
            .ok_or_else(|| TchError::Shape("the decoder has no heads".to_owned()))?;
        let rows = weights.f_narrow(0, before, count + 1)?;
        Ok(Alignment {
            starts: align::starts(&rows)?,
            probabilities: Vec::<f64>::try_from(&probabilities)?,
        })
    }

    /// The logits at every position of `ids`, which are all tokens in the cache then.
    fn logits(&self, ids: &[i64], cache: &mut Cache) -> Result<Tensor, TchError> {
        self.check_ids(ids)?;
        cache.clear();
        let feed = Feed { cache, ids, rows: 1 };
        self.project(&self.read(&mut [feed])?)
    }

    /// See [`Window::languages`].
    pub(crate) fn languages(&self, cache: &mut Cache) -> Result<Vec<LanguageProbability>, Error> {
        let Some(ids) = &self.languages else {
            return Ok(Vec::new());
        };
        let row = self.logits(&[self.vocabulary.start_of_transcript()], cache)?;
        language::probabilities(&row, ids, self.vocabulary.languages())
    }

    /// Fails unless the decoder can read these tokens at once.
    pub(crate) fn check_ids(&self, ids: &[i64]) -> Result<(), TchError> {
        let positions = self.config.model.max_target_positions;
        if ids.is_empty() || ids.len() as i64 > positions {
            return Err(TchError::Shape(format!(
                "{} tokens: expected 1 to {positions}",
                ids.len()
            )));
        }
        // On a GPU an id beyond the embedding fails an assertion in a kernel, and the device is
        // lost.
        if let Some(id) = ids.iter().find(|id| !(0..self.vocabulary.size()).contains(id)) {
            return Err(TchError::Shape(format!("token {id} is outside the vocabulary")));
        }
        Ok(())
    }

    /// Reads the tokens of all feeds: tokens × width, in their order.
    pub(crate) fn read(&self, feeds: &mut [Feed<'_>]) -> Result<Tensor, TchError> {
        self.decoder.forward(feeds)?.f_select(0, 0)
    }

    /// The logits of rows of the decoder's output, in float32.
    pub(crate) fn project(&self, hidden: &Tensor) -> Result<Tensor, TchError> {
        self.decoder.logits(hidden)
    }

    /// The largest number of windows that are encoded in one pass.
    pub(crate) fn windows_per_pass(&self) -> usize {
        match self.placement.device {
            // Every window costs as much as alone, and between passes a task can be cancelled.
            Device::Cpu => 1,
            _ => WINDOWS_PER_PASS,
        }
    }

    /// Encodes the features of several windows in one pass: windows × positions × width.
    pub(crate) fn encode(&self, features: &[&Tensor]) -> Result<Tensor, TchError> {
        let expected = [
            1,
            self.config.model.num_mel_bins,
            self.config.features.window_frames() as i64,
        ];
        if let Some(other) = features.iter().find(|features| features.size() != expected) {
            let problem = format!("features have shape {:?}, expected {expected:?}", other.size());
            return Err(TchError::Shape(problem));
        }
        match features {
            [only] => self.encoder.forward(only),
            several => self.encoder.forward(&Tensor::f_cat(several, 0)?),
        }
    }

    /// A cache without a window.
    pub(crate) fn new_cache(&self) -> Result<Cache, TchError> {
        Cache::new(&self.config.model, self.placement)
    }

    /// Puts an encoded window (1 × positions × width) into a cache.
    pub(crate) fn set_window(&self, encoded: &Tensor, cache: &mut Cache) -> Result<(), TchError> {
        self.decoder.set_window(encoded, cache)
    }

    /// Waits for the device, so that the current span includes the work of the GPU.
    pub(crate) fn synchronize(&self) {
        if let Device::Cuda(index) = self.placement.device {
            tch::Cuda::synchronize(index as i64);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_of_one_pass_are_encoded_as_alone() {
        let dir = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/models/whisper-nano-digits"));
        let whisper = Whisper::load(dir, Placement::CPU).unwrap();
        let _no_grad = tch::no_grad_guard();
        let sine = |step: f32| -> Vec<f32> { (0..32_000).map(|n| (n as f32 * step).sin() * 0.1).collect() };
        let features = [0.02, 0.3].map(|step| whisper.features(&sine(step)).unwrap());
        let both = whisper.encode(&[&features[0], &features[1]]).unwrap();
        for (row, features) in features.iter().enumerate() {
            let alone = whisper.encode(&[features]).unwrap();
            let off = (both.narrow(0, row as i64, 1) - alone).abs().max();
            assert!(off.double_value(&[]) < 1e-4, "{off:?}");
        }
    }
}
