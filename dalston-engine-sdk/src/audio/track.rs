//! The audio track of a file, and its decoder.

use symphonia::core::codecs::CodecParameters;
use symphonia::core::codecs::audio::well_known as codec;
use symphonia::core::codecs::audio::{
    AudioCodecId, AudioCodecParameters, AudioDecoder, AudioDecoderOptions, CODEC_ID_NULL_AUDIO,
};
use symphonia::core::errors::Error;
use symphonia::core::formats::{FormatReader, Track, TrackFlags};
use symphonia::core::packet::Packet;

use super::aac::Aac;
use super::detect::Container;
use super::error::AudioErrorKind;
use super::opus::{self, Opus};
use super::source::{Header, check_shape};
use super::symphonia_error::{classify, guarded};
use super::trim::Edges;

/// The track that is decoded.
pub(super) struct Selected {
    pub(super) track: u32,
    pub(super) decoder: Decoder,
    pub(super) params: AudioCodecParameters,
    pub(super) header: Header,
    /// Seconds from one time of a packet to the next, as a fraction.
    pub(super) tick: Option<(u32, u32)>,
    pub(super) edges: Edges,
}

impl Selected {
    /// The first of the tracks that the file plays by default, in a file of which `enabled` are to
    /// be played.
    pub(super) fn in_file(
        reader: &dyn FormatReader,
        container: Container,
        enabled: &[u32],
    ) -> Result<Self, AudioErrorKind> {
        let (track, params) = choose(reader.tracks(), enabled).ok_or(AudioErrorKind::NoTrack)?;
        let mut params = params.clone();
        let mut header = Header {
            container: container.name(),
            codec: codec_name(&params),
            sample_rate: params.sample_rate,
            channels: params.channels.as_ref().map(|channels| channels.count()),
            frames: track
                .num_frames
                .or_else(|| frames_of_file(reader, params.sample_rate?)),
        };
        let mut edges = Edges::default();
        let decoder = match params.codec {
            codec::CODEC_ID_OPUS => {
                let head = params.extra_data.as_deref();
                let head = head.and_then(|head| opus::Head::read(head, container == Container::Movie));
                let opus = head.as_ref().and_then(Opus::new);
                let Some((head, opus)) = head.zip(opus) else {
                    return Err(AudioErrorKind::Damaged("the header of its Opus audio".to_owned()));
                };
                header.sample_rate = Some(opus::SAMPLE_RATE as u32);
                header.channels = Some(head.channels);
                header.frames = header
                    .frames
                    .map(|frames| frames.saturating_sub(head.skip.into()));
                edges.before = head.skip.into();
                Decoder::Opus(opus)
            }
            codec::CODEC_ID_AAC => {
                if let Some(config) = &params.extra_data {
                    match Aac::read(config) {
                        Aac::Plain => {}
                        Aac::Core { sample_rate, config } => {
                            params.with_extra_data(config.into());
                            params.with_sample_rate(sample_rate);
                            header.frames = match header.sample_rate {
                                Some(rate) => header
                                    .frames
                                    .map(|frames| frames * u64::from(sample_rate) / u64::from(rate.max(1))),
                                None => None,
                            };
                            header.sample_rate = Some(sample_rate);
                        }
                        Aac::Unsupported(name) => return Err(AudioErrorKind::UnsupportedCodec(name)),
                    }
                }
                make_decoder(&params, &header)?
            }
            codec::CODEC_ID_MP3 => {
                edges = mp3_edges(track);
                make_decoder(&params, &header)?
            }
            _ => make_decoder(&params, &header)?,
        };
        if let Some(rate) = header.sample_rate {
            check_shape(rate, header.channels.unwrap_or(1))?;
        }
        let tick = track.time_base;
        Ok(Self {
            track: track.id,
            decoder,
            params,
            header,
            tick: tick.map(|base| (base.numer.get(), base.denom.get())),
            edges,
        })
    }
}

/// The length of a file of which the tracks have none, as in Matroska.
fn frames_of_file(reader: &dyn FormatReader, rate: u32) -> Option<u64> {
    let info = reader.media_info();
    let (duration, base) = info.duration.zip(info.time_base)?;
    let ticks = u128::from(duration.get()) * u128::from(base.numer.get()) * u128::from(rate);
    u64::try_from(ticks / u128::from(base.denom.get())).ok()
}

fn choose<'a>(tracks: &'a [Track], enabled: &[u32]) -> Option<(&'a Track, &'a AudioCodecParameters)> {
    let audio = |track: &'a Track| match &track.codec_params {
        Some(CodecParameters::Audio(params)) => Some((track, params)),
        _ => None,
    };
    let audio = || tracks.iter().filter_map(audio);
    let known = || audio().filter(|(_, params)| params.codec != CODEC_ID_NULL_AUDIO);
    known()
        .find(|(track, _)| enabled.contains(&track.id))
        .or_else(|| known().find(|(track, _)| track.flags.contains(TrackFlags::DEFAULT)))
        .or_else(|| known().next())
        .or_else(|| audio().next())
}

/// A decoder of Symphonia or of Opus, which Symphonia has not.
pub(super) enum Decoder {
    Symphonia(Box<dyn AudioDecoder>),
    Opus(Opus),
}

impl Decoder {
    /// Replaces `samples` with those of a packet, and returns their rate and channels.
    pub(super) fn decode(&mut self, packet: &Packet, samples: &mut Vec<f32>) -> Result<(u32, usize), Error> {
        samples.clear();
        match self {
            Self::Symphonia(decoder) => {
                let decoded = decoder.decode(packet)?;
                let shape = (decoded.spec().rate(), decoded.spec().channels().count());
                decoded.copy_to_vec_interleaved(samples);
                Ok(shape)
            }
            Self::Opus(opus) => {
                let decoded = opus.decode(&packet.data, samples);
                decoded.ok_or(Error::DecodeError("opus: invalid packet"))?;
                let behind = packet.trim_end.get() as usize * opus.channels();
                samples.truncate(samples.len().saturating_sub(behind));
                Ok((opus::SAMPLE_RATE as u32, opus.channels()))
            }
        }
    }

    pub(super) fn reset(&mut self) {
        match self {
            Self::Symphonia(decoder) => decoder.reset(),
            Self::Opus(opus) => opus.reset(),
        }
    }
}

/// A decoder of Symphonia.
pub(super) fn make_decoder(
    params: &AudioCodecParameters,
    header: &Header,
) -> Result<Decoder, AudioErrorKind> {
    let options = AudioDecoderOptions::default().gapless(params.codec != codec::CODEC_ID_MP3);
    let decoder = guarded(|| symphonia::default::get_codecs().make_audio_decoder(params, &options))?;
    decoder.map(Decoder::Symphonia).map_err(|error| match error {
        Error::Unsupported(_) => {
            let channels = header.channels.filter(|count| *count > 2);
            let channels = channels.map_or(String::new(), |count| format!(" with {count} channels"));
            AudioErrorKind::UnsupportedCodec(format!("{}{channels}", header.codec))
        }
        error => classify(error),
    })
}

/// The padding of an MP3.
///
/// Symphonia cuts an MP3 off at the length in its header. In a file without such a header that is a
/// guess from the first frames, and in a joined file that of the first part: speech at the end
/// would be lost. So its trimming is off for MP3, and only certain padding is removed from the end.
fn mp3_edges(track: &Track) -> Edges {
    let (before, after) = (
        u64::from(track.delay.unwrap_or(0)),
        u64::from(track.padding.unwrap_or(0)),
    );
    let total = track
        .num_frames
        .map(|frames| frames.saturating_add(before + after));
    Edges {
        before,
        after,
        total: total.filter(|_| track.delay.is_some()),
        length: None,
    }
}

impl Container {
    fn name(self) -> &'static str {
        match self {
            Self::Aiff => "AIFF",
            Self::Caf => "CAF",
            Self::Flac => "FLAC",
            Self::Ogg => "OGG",
            Self::Movie => "M4A",
            Self::Matroska => "Matroska",
            Self::Mpeg => "MP3",
            Self::Adts => "AAC",
        }
    }
}

fn codec_name(params: &AudioCodecParameters) -> String {
    let name = match params.codec {
        codec::CODEC_ID_FLAC => "FLAC",
        codec::CODEC_ID_MP1 => "MPEG layer 1",
        codec::CODEC_ID_MP2 => "MPEG layer 2",
        codec::CODEC_ID_MP3 => "MP3",
        codec::CODEC_ID_VORBIS => "Vorbis",
        codec::CODEC_ID_OPUS => "Opus",
        codec::CODEC_ID_SPEEX => "Speex",
        codec::CODEC_ID_AAC => "AAC",
        codec::CODEC_ID_ALAC => "ALAC",
        codec::CODEC_ID_AC3 => "AC-3",
        codec::CODEC_ID_EAC3 => "E-AC-3",
        codec::CODEC_ID_TRUEHD => "TrueHD",
        codec::CODEC_ID_DCA => "DTS",
        id => return unknown_codec(id),
    };
    name.to_owned()
}

fn unknown_codec(id: AudioCodecId) -> String {
    let registered = symphonia::default::get_codecs().get_audio_decoder(id);
    let unknown = || "audio of an unknown kind".to_owned();
    registered.map_or_else(unknown, |codec| codec.codec.info.long_name.to_owned())
}
