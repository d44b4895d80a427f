//! The format of decoded audio: [`AudioFormat`].

/// The sample rate and the number of channels of decoded audio.
///
/// ```
/// use dalston_engine_sdk::audio::AudioFormat;
///
/// assert_eq!(AudioFormat::MONO_16K, AudioFormat::new(16_000, 1));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct AudioFormat {
    /// Samples per second and channel.
    pub sample_rate: u32,
    /// 1 for the mean of all channels. With more, a file with as many channels is left as it is,
    /// and of any other file each channel gets the mean of all.
    pub channels: u16,
}

impl AudioFormat {
    /// 16 kHz, one channel: the format of most speech models.
    pub const MONO_16K: Self = Self::new(16_000, 1);

    /// A format. Its use clamps values out of range: 1 to 768 kHz, 1 to 64 channels.
    #[must_use]
    pub const fn new(sample_rate: u32, channels: u16) -> Self {
        Self {
            sample_rate,
            channels,
        }
    }

    /// The format with clamped values.
    pub(super) fn clamped(self) -> Self {
        let channels = usize::from(self.channels).clamp(1, MAX_CHANNELS);
        Self {
            sample_rate: self.sample_rate.clamp(LOWEST_SAMPLE_RATE, HIGHEST_SAMPLE_RATE),
            channels: u16::try_from(channels).unwrap_or(1),
        }
    }
}

/// No recording of sound has a lower rate.
pub(super) const LOWEST_SAMPLE_RATE: u32 = 1_000;
/// The highest rate of converters.
pub(super) const HIGHEST_SAMPLE_RATE: u32 = 768_000;
/// Mixing desks and ambisonics have fewer.
pub(super) const MAX_CHANNELS: usize = 64;
