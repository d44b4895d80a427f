//! Decoding a file to [`Audio`]: [`Decoder`].

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::clip::Audio;
use super::error::{AudioError, AudioErrorKind, one_line};
use super::format::AudioFormat;
use super::mix::Mixer;
use super::open::open;
use super::resample::Resampler;
use super::source::{Block, Source, check_shape};
use super::store::Writer;

/// Decodes a file to `format`. Audio of more than ten minutes is kept in a file in `temp_dir`.
///
/// For a limit on the duration, progress and cancellation see [`Decoder`].
///
/// # Errors
///
/// If the file can't be read, is not audio or is too damaged, or `temp_dir` is full; see
/// [`AudioErrorKind`].
pub fn decode_file(
    path: impl AsRef<Path>,
    format: AudioFormat,
    temp_dir: &Path,
) -> Result<Audio, AudioError> {
    Decoder::new(format).temp_dir(temp_dir).decode(path)
}

/// The header of a file. See [`probe`].
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct AudioInfo {
    /// For example `WAV` or `OGG`.
    pub container: String,
    /// For example `PCM, 16 bits` or `Vorbis`.
    pub codec: String,
    /// Samples per second and channel, if the header has them.
    pub sample_rate: Option<u32>,
    /// The number of channels, if the header has it.
    pub channels: Option<usize>,
    /// The duration, if the header has it. For an MP3 without it, an estimate from the first
    /// frames.
    pub duration: Option<Duration>,
}

/// Reads the header of a file, without decoding it.
///
/// # Errors
///
/// If the file can't be read, or [`decode_file`] can't decode files with its header.
pub fn probe(path: impl AsRef<Path>) -> Result<AudioInfo, AudioError> {
    let path = path.as_ref();
    let source = open(path).map_err(|kind| AudioError::new(one_line(path), kind))?;
    let header = source.header();
    let duration = header
        .frames
        .zip(header.sample_rate)
        .and_then(|(frames, rate)| Duration::try_from_secs_f64(frames as f64 / f64::from(rate)).ok());
    Ok(AudioInfo {
        container: header.container.to_owned(),
        codec: header.codec,
        sample_rate: header.sample_rate,
        channels: header.channels,
        duration,
    })
}

/// Decodes files with limits, progress and cancellation.
///
/// ```no_run
/// use std::time::Duration;
/// use dalston_engine_sdk::audio::{AudioFormat, Decoder};
///
/// let decoder = Decoder::new(AudioFormat::MONO_16K).max_duration(Duration::from_secs(2 * 3600));
/// let audio = decoder.decode_while("meeting.mp3", |done| {
///     println!("{} s", done.as_secs());
///     true
/// })?;
/// # Ok::<(), dalston_engine_sdk::audio::AudioError>(())
/// ```
#[derive(Debug, Clone)]
pub struct Decoder {
    format: AudioFormat,
    name: Option<String>,
    temp_dir: PathBuf,
    max_duration: Duration,
    in_memory: Duration,
}

impl Decoder {
    /// A decoder to `format` that accepts up to 24 hours and keeps ten minutes in memory.
    #[must_use]
    pub fn new(format: AudioFormat) -> Self {
        Self {
            format: format.clamped(),
            name: None,
            temp_dir: std::env::temp_dir(),
            max_duration: MAX_DURATION,
            in_memory: IN_MEMORY,
        }
    }

    /// Sets the name of the file in errors. Default: the path.
    #[must_use]
    pub fn name(mut self, name: impl AsRef<str>) -> Self {
        self.name = Some(one_line(Path::new(name.as_ref())));
        self
    }

    /// Sets the directory for long audio. Default: the directory of the system for temporary files.
    ///
    /// A sample takes 4 bytes, an hour at 16 kHz 230 MB. Silence takes no room on most file
    /// systems. Don't use a file system in memory, such as `tmpfs`.
    #[must_use]
    pub fn temp_dir(mut self, directory: impl Into<PathBuf>) -> Self {
        self.temp_dir = directory.into();
        self
    }

    /// Sets the longest duration. Longer files are refused. Default: 24 hours.
    #[must_use]
    pub fn max_duration(mut self, duration: Duration) -> Self {
        self.max_duration = duration;
        self
    }

    /// Sets the duration up to which audio stays in memory. Default: ten minutes, 38 MB at 16 kHz.
    #[must_use]
    pub fn in_memory(mut self, duration: Duration) -> Self {
        self.in_memory = duration;
        self
    }

    /// Decodes a file.
    ///
    /// # Errors
    ///
    /// As [`decode_file`], and if the file is longer than allowed.
    pub fn decode(&self, path: impl AsRef<Path>) -> Result<Audio, AudioError> {
        self.decode_while(path, |_| true)
    }

    /// Decodes a file for as long as `go_on` returns `true`. It gets the duration decoded so far
    /// and is called several times for each minute of audio.
    ///
    /// # Errors
    ///
    /// As [`decode`](Self::decode), and [`AudioErrorKind::Cancelled`] if `go_on` returned `false`.
    pub fn decode_while(
        &self,
        path: impl AsRef<Path>,
        mut go_on: impl FnMut(Duration) -> bool,
    ) -> Result<Audio, AudioError> {
        let path = path.as_ref();
        let name = self.name.clone().unwrap_or_else(|| one_line(path));
        self.run(path, &name, &mut go_on)
            .map_err(|kind| AudioError::new(name.as_str(), kind))
    }

    fn run(
        &self,
        path: &Path,
        name: &str,
        go_on: &mut dyn FnMut(Duration) -> bool,
    ) -> Result<Audio, AudioErrorKind> {
        let mut source = open(path)?;
        let channels = usize::from(self.format.channels);
        let mut writer = Writer::new(self.samples_in(self.in_memory, channels), &self.temp_dir);
        let mut block = Block::default();
        let mut mixer = Mixer::default();
        let mut resampled = Vec::new();
        let mut stream: Option<Stream> = None;

        while source.next_block(&mut block)? {
            check_shape(block.sample_rate, block.channels)?;
            let stream = match &mut stream {
                Some(stream) => {
                    // Another part of a joined file, for example an advert.
                    if stream.sample_rate != block.sample_rate {
                        stream.finish(&mut resampled)?;
                        writer.push(&resampled).map_err(AudioErrorKind::Spool)?;
                        *stream = Stream::new(&block, self.format, stream.duration())?;
                    }
                    stream
                }
                None => {
                    writer.expect(self.expected_samples(&*source));
                    stream.insert(Stream::new(&block, self.format, Duration::ZERO)?)
                }
            };
            let frames = (block.samples.len() / block.channels) as u64;
            mixer.mix(&mut block, channels, stream.duration())?;
            stream.frames += frames;
            if stream.duration() > self.max_duration {
                return Err(AudioErrorKind::TooLong(self.max_duration));
            }
            match &mut stream.resampler {
                None => writer.push(&block.samples).map_err(AudioErrorKind::Spool)?,
                Some(resampler) => {
                    resampled.clear();
                    resampler.push(&block.samples, &mut resampled)?;
                    writer.push(&resampled).map_err(AudioErrorKind::Spool)?;
                }
            }
            if !go_on(stream.duration()) {
                return Err(AudioErrorKind::Cancelled);
            }
        }
        if let Some(stream) = &mut stream {
            stream.finish(&mut resampled)?;
            writer.push(&resampled).map_err(AudioErrorKind::Spool)?;
        }
        let store = writer.finish().map_err(AudioErrorKind::Spool)?;
        if store.len() == 0 {
            return Err(AudioErrorKind::NoSamples);
        }
        let mut warnings = source.warnings();
        warnings.extend(mixer.warning());
        Ok(Audio::new(name, self.format, store, warnings))
    }

    fn samples_in(&self, duration: Duration, channels: usize) -> usize {
        let samples = duration.as_secs_f64() * f64::from(self.format.sample_rate) * channels as f64;
        samples as usize
    }

    /// The number of samples by the header, up to the longest duration.
    fn expected_samples(&self, source: &dyn Source) -> u64 {
        let header = source.header();
        let Some((frames, rate)) = header.frames.zip(header.sample_rate) else {
            return 0;
        };
        let seconds = (frames as f64 / f64::from(rate)).min(self.max_duration.as_secs_f64());
        let frames = (seconds * f64::from(self.format.sample_rate)).ceil() as u64;
        frames.saturating_mul(u64::from(self.format.channels))
    }
}

/// A part of a file with one sample rate. Nearly all files have only one.
struct Stream {
    sample_rate: u32,
    resampler: Option<Resampler>,
    /// Frames of the part that have been decoded.
    frames: u64,
    /// The duration of the parts before this one.
    earlier: Duration,
}

impl Stream {
    fn new(block: &Block, format: AudioFormat, earlier: Duration) -> Result<Self, AudioErrorKind> {
        let resampler = if block.sample_rate == format.sample_rate {
            None
        } else {
            Some(Resampler::new(
                block.sample_rate,
                format.sample_rate,
                usize::from(format.channels),
            )?)
        };
        Ok(Self {
            sample_rate: block.sample_rate,
            resampler,
            frames: 0,
            earlier,
        })
    }

    /// Replaces `samples` with those that the resampler still has.
    fn finish(&mut self, samples: &mut Vec<f32>) -> Result<(), AudioErrorKind> {
        samples.clear();
        match &mut self.resampler {
            Some(resampler) => resampler.finish(samples),
            None => Ok(()),
        }
    }

    fn duration(&self) -> Duration {
        self.earlier + Duration::from_secs_f64(self.frames as f64 / f64::from(self.sample_rate))
    }
}

/// Longer than any recording of one event. A longer file is a mistake or an attack.
const MAX_DURATION: Duration = Duration::from_secs(24 * 3600);

/// Most recordings are shorter. They take up to 38 MB at 16 kHz, so the running task and two
/// prefetched ones need little more than 100 MB.
const IN_MEMORY: Duration = Duration::from_secs(600);
