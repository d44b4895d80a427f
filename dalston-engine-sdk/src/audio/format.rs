//! The form of audio that an engine works on: [`AudioFormat`].

/// The sample rate and the number of channels that an engine works on.
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
    /// 1 for the mean of all channels. With more, a file that has as many is taken as it is; of any other file the mean of
    /// all channels is given on each.
    pub channels: u16,
}

impl AudioFormat {
    /// 16 kHz, one channel: what speech models want.
    pub const MONO_16K: Self = Self::new(16_000, 1);

    /// A format. Where it is used, values that no audio has are brought to the nearest: 1 to 768 kHz, 1 to 64 channels.
    #[must_use]
    pub const fn new(sample_rate: u32, channels: u16) -> Self {
        Self {
            sample_rate,
            channels,
        }
    }

    /// The format with values that can be worked with.
    pub(super) fn sane(self) -> Self {
        let channels = usize::from(self.channels).clamp(1, MOST_CHANNELS);
        Self {
            sample_rate: self.sample_rate.clamp(LOWEST_SAMPLE_RATE, HIGHEST_SAMPLE_RATE),
            channels: u16::try_from(channels).unwrap_or(1),
        }
    }
}

/// Below any recording of sound.
pub(super) const LOWEST_SAMPLE_RATE: u32 = 1_000;
/// The highest that converters offer.
pub(super) const HIGHEST_SAMPLE_RATE: u32 = 768_000;
/// The widest mixing desks and ambisonics stay below.
pub(super) const MOST_CHANNELS: usize = 64;
