//! A loaded model, and one window of audio.

use std::path::Path;

use tch::{Device, Kind, TchError, Tensor};

use crate::config::Config;
use crate::decode::greedy::{self, Hypothesis, Sampling};
use crate::decode::language;
use crate::decode::rules::Rules;
use crate::error::{Error, LoadError};
use crate::features::LogMel;
use crate::model::{Cache, Decoder, Encoder, Placement};
use crate::tokenizer::{Prompt, Vocabulary};
use crate::weights::Weights;

/// A Whisper model, loaded from a Hugging Face directory.
///
/// [`transcribe`](Self::transcribe) transcribes a recording. [`window`](Self::window) gives access
/// to single steps.
///
/// The decoder's cache is allocated once, so all work takes `&mut self`.
///
/// ```no_run
/// use faster_whisper::{TranscribeConfig, Placement, Whisper};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let mut whisper = Whisper::load("models/whisper-nano-digits".as_ref(), Placement::CPU)?;
/// let samples = vec![0.0_f32; 16_000];
/// let transcription = whisper.transcribe(&samples[..], &TranscribeConfig::default(), &mut ())?;
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
    cache: Cache,
    /// The ids of the languages, in the order of their codes.
    languages: Option<Tensor>,
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
            cache: Cache::new(&config.model, placement, 1)?,
            languages,
            vocabulary,
            placement,
            config,
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
        let placement = Placement {
            device: Device::Cpu,
            kind: Kind::Half,
        };
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
        let encoded = self.encode(features)?;
        Ok(Window {
            whisper: self,
            encoded,
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
        self.encoded = self.whisper.encode(features)?;
        Ok(())
    }

    /// The logits at every position of `ids`, unfiltered: `ids.len()` × vocabulary, float32.
    ///
    /// # Errors
    /// More ids than the decoder has positions, or libtorch failed.
    pub fn logits(&mut self, ids: &[i64]) -> Result<Tensor, Error> {
        let _no_grad = tch::no_grad_guard();
        let hidden = self.feed(ids)?;
        Ok(self.whisper.decoder.logits(&hidden)?.f_squeeze_dim(0)?)
    }

    /// The probability of each language of the model, most likely first. Empty for an English-only
    /// model.
    ///
    /// # Errors
    /// libtorch failed.
    pub fn languages(&mut self) -> Result<Vec<LanguageProbability>, Error> {
        let _no_grad = tch::no_grad_guard();
        let Some(ids) = self.whisper.languages.as_ref().map(Tensor::shallow_clone) else {
            return Ok(Vec::new());
        };
        let row = self.logits(&[self.whisper.vocabulary.start_of_transcript()])?;
        language::probabilities(&row, &ids, self.whisper.vocabulary.languages())
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

    /// Samples tokens after `prompt` until the end of text, `max_tokens` tokens, or the end of the
    /// decoder's positions.
    ///
    /// Calls `keep_going` every few tokens.
    ///
    /// # Errors
    /// [`Error::Stopped`] if `keep_going` returns false, [`Error::NotANumber`], or libtorch failed.
    pub fn decode(
        &mut self,
        prompt: &Prompt,
        rules: &Rules,
        sampling: Sampling,
        keep_going: &mut dyn FnMut() -> bool,
    ) -> Result<Hypothesis, Error> {
        let _no_grad = tch::no_grad_guard();
        // One pass over the prompt. Only two of its positions need the projection onto the
        // vocabulary.
        let hidden = self.feed(&prompt.ids)?;
        let last = prompt.ids.len() as i64 - 1;
        let rows = hidden.f_select(0, 0)?;
        let at_start = self
            .whisper
            .decoder
            .logits(&rows.f_narrow(0, prompt.start as i64, 1)?)?;
        let silence = no_speech(&at_start, &self.whisper.vocabulary)?;
        let first = self.whisper.decoder.logits(&rows.f_narrow(0, last, 1)?)?;

        let whisper = &mut *self.whisper;
        let room = whisper.config.model.max_target_positions as usize - prompt.ids.len();
        let max_tokens = sampling.max_tokens.min(room);
        let (decoder, cache) = (&whisper.decoder, &mut whisper.cache);
        let mut step = |token: &Tensor| {
            let hidden = decoder.forward(&token.f_view([1, 1])?, cache)?;
            decoder.logits(&hidden.f_select(0, 0)?)
        };
        let sampled = greedy::sample(
            first,
            rules,
            max_tokens,
            sampling.temperature,
            &mut step,
            keep_going,
        )?;
        let no_speech_prob = silence.map_or(Ok(0.0), |p| p.f_double_value(&[0]))?;
        Hypothesis::new(sampled, no_speech_prob, sampling.temperature, &whisper.vocabulary)
    }

    /// The loaded model.
    #[must_use]
    pub fn whisper(&self) -> &Whisper {
        self.whisper
    }

    /// Feeds `ids` into an empty cache.
    fn feed(&mut self, ids: &[i64]) -> Result<Tensor, TchError> {
        let whisper = &mut *self.whisper;
        let positions = whisper.config.model.max_target_positions;
        if ids.is_empty() || ids.len() as i64 > positions {
            return Err(TchError::Shape(format!(
                "{} tokens: expected 1 to {positions}",
                ids.len()
            )));
        }
        // On a GPU an id beyond the embedding fails an assertion in a kernel, and the device is
        // lost.
        if let Some(id) = ids.iter().find(|id| !(0..whisper.vocabulary.size()).contains(id)) {
            return Err(TchError::Shape(format!("token {id} is outside the vocabulary")));
        }
        let tokens = Tensor::f_from_slice(ids)?
            .f_to_device(whisper.placement.device)?
            .f_unsqueeze(0)?;
        whisper.cache.clear();
        whisper.decoder.forward(&tokens, &mut whisper.cache)
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
fn no_speech(row: &Tensor, vocabulary: &Vocabulary) -> Result<Option<Tensor>, TchError> {
    let Some(id) = vocabulary.no_speech() else {
        return Ok(None);
    };
    Ok(Some(row.f_softmax(-1, Kind::Double)?.f_select(-1, id)?))
}

impl Whisper {
    fn encode(&mut self, features: &Tensor) -> Result<Tensor, TchError> {
        let expected = [
            1,
            self.config.model.num_mel_bins,
            self.config.features.window_frames() as i64,
        ];
        if features.size() != expected {
            let problem = format!("features have shape {:?}, expected {expected:?}", features.size());
            return Err(TchError::Shape(problem));
        }
        let encoded = self.encoder.forward(features)?;
        self.decoder.set_window(&encoded, &mut self.cache)?;
        Ok(encoded)
    }

    /// Waits for the device, so that the current span includes the work of the GPU.
    pub(crate) fn synchronize(&self) {
        if let Device::Cuda(index) = self.placement.device {
            tch::Cuda::synchronize(index as i64);
        }
    }
}
