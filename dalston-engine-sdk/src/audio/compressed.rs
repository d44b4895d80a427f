//! FLAC, MP3, OGG Vorbis and M4A, decoded by Symphonia.

use std::fs::File;
use std::io::{self, Seek};
use std::panic::{AssertUnwindSafe, catch_unwind};

use symphonia::core::codecs::CodecParameters;
use symphonia::core::codecs::audio::well_known as codec;
use symphonia::core::codecs::audio::{AudioCodecId, AudioCodecParameters, AudioDecoder, AudioDecoderOptions};
use symphonia::core::errors::Error;
use symphonia::core::formats::probe::Hint;
use symphonia::core::formats::{FormatOptions, FormatReader, Track, TrackType};
use symphonia::core::io::{MediaSourceStream, MediaSourceStreamOptions};
use symphonia::core::meta::MetadataOptions;
use symphonia::core::packet::Packet;

use super::edit_list;
use super::error::AudioErrorKind;
use super::source::{Block, Header, Source, check_shape};
use super::trim::{Edges, Trim};

/// A file that Symphonia decodes.
pub(super) struct Compressed {
    reader: Box<dyn FormatReader>,
    decoder: Box<dyn AudioDecoder>,
    track: u32,
    header: Header,
    /// Whether the header has the length, and it is not a guess.
    declares_length: bool,
    trim: Trim,
    /// The shape of the last block that was decoded.
    shape: Option<(u32, usize)>,
    /// Whether the times of packets are counted in frames.
    counts_frames: bool,
    /// The time that the next packet should have.
    expected: Option<i64>,
    /// A packet behind a gap, to be decoded when the gap has been filled.
    behind_gap: Option<Packet>,
    /// Frames of silence still to be inserted for damaged parts.
    pending_silence: u64,
    damaged: u64,
    silenced: u64,
    decoded: u64,
    cut_off: bool,
    ended: bool,
}

impl Compressed {
    pub(super) fn open(mut file: File) -> Result<Self, AudioErrorKind> {
        let edits = edit_list::edits(&mut file);
        file.rewind().map_err(AudioErrorKind::Unreadable)?;
        let stream = MediaSourceStream::new(Box::new(file), MediaSourceStreamOptions::default());
        let reader = guarded(|| {
            let (hint, options) = (Hint::new(), FormatOptions::default());
            symphonia::default::get_probe().probe(&hint, stream, options, MetadataOptions::default())
        })?;
        let reader = reader.map_err(|error| match error {
            // The probe has no other reason for this error than an unknown format.
            Error::Unsupported(reason) if reason.contains("no suitable format") => AudioErrorKind::NotAudio,
            Error::Unsupported(what) => AudioErrorKind::Damaged(what.to_owned()),
            error => classify(error),
        })?;
        let Selected {
            track,
            decoder,
            counts_frames,
            mut header,
            mut edges,
        } = Selected::in_file(&*reader)?;
        let declares_length = header.container != MP3 || edges.total.is_some();
        let edit = edits
            .iter()
            .find(|edit| header.container == M4A && edit.track == track);
        if let Some((edit, rate)) = edit.zip(header.sample_rate)
            && let Some(found) = edit.edges(rate)
            // A list that leaves nothing of the track is wrong.
            && header.frames.is_none_or(|frames| found.before < frames)
        {
            let behind = |frames: u64| (frames - found.before).min(found.length.unwrap_or(u64::MAX));
            header.frames = header.frames.map(behind);
            edges = found;
        }
        Ok(Self {
            reader,
            decoder,
            track,
            header,
            declares_length,
            trim: Trim::new(edges),
            shape: None,
            counts_frames,
            expected: None,
            behind_gap: None,
            pending_silence: 0,
            damaged: 0,
            silenced: 0,
            decoded: 0,
            cut_off: false,
            ended: false,
        })
    }

    /// The next samples, before any are trimmed.
    fn next_decoded(&mut self, block: &mut Block) -> Result<bool, AudioErrorKind> {
        if self.silence(block) {
            return Ok(true);
        }
        let mut empty = 0;
        while let Some(packet) = self.next_packet()? {
            let gap = self.gap_before(&packet);
            if gap > 0 {
                self.lose(gap);
                self.behind_gap = Some(packet);
                if self.silence(block) {
                    return Ok(true);
                }
                continue;
            }
            match self.decode(&packet, block)? {
                Decoded::Samples => return Ok(true),
                Decoded::Nothing => {}
                Decoded::Damaged => {
                    // A packet holds no more than a block.
                    self.lose(packet.block_dur().get().min(LONGEST_BLOCK));
                    if self.silence(block) {
                        return Ok(true);
                    }
                }
            }
            empty += 1;
            if empty == MAX_EMPTY_PACKETS {
                return Err(nothing_decodable());
            }
        }
        if self.decoded == 0 && self.damaged > 0 {
            Err(nothing_decodable())
        } else {
            Ok(false)
        }
    }

    /// Frames that are missing before a packet. Symphonia skips damaged frames and pages without an
    /// error.
    fn gap_before(&mut self, packet: &Packet) -> u64 {
        let time = packet.pts.get();
        let expected = self.expected.unwrap_or(time);
        self.expected = Some(time.saturating_add_unsigned(packet.block_dur().get()));
        let gap = u64::try_from(time.saturating_sub(expected)).unwrap_or(0);
        let longest = self
            .shape
            .map_or(0, |(rate, _)| u64::from(rate) * LONGEST_GAP_SECONDS);
        if self.counts_frames && gap <= longest {
            gap
        } else {
            0
        }
    }

    fn lose(&mut self, frames: u64) {
        self.damaged += 1;
        self.pending_silence += frames;
    }

    /// The next packet of the track. `None` at the end.
    fn next_packet(&mut self) -> Result<Option<Packet>, AudioErrorKind> {
        if let Some(packet) = self.behind_gap.take() {
            return Ok(Some(packet));
        }
        loop {
            match guarded(|| self.reader.next_packet())? {
                Ok(Some(packet)) if packet.track_id == self.track => return Ok(Some(packet)),
                Ok(Some(_)) => {}
                Ok(None) => return Ok(None),
                // Some broadcasters write one stream after the other into one file.
                Err(Error::ResetRequired) => {
                    let next = Selected::in_file(&*self.reader)?;
                    (self.track, self.decoder, self.expected) = (next.track, next.decoder, None);
                }
                Err(Error::IoError(error)) if error.kind() == io::ErrorKind::UnexpectedEof => {
                    self.cut_off = true;
                    return Ok(None);
                }
                // The time of everything behind an unreadable place is unknown.
                Err(Error::DecodeError(_) | Error::LimitError(_)) if self.decoded > 0 => {
                    self.cut_off = true;
                    return Ok(None);
                }
                Err(error) => return Err(classify(error)),
            }
        }
    }

    fn decode(&mut self, packet: &Packet, block: &mut Block) -> Result<Decoded, AudioErrorKind> {
        let decoder = &mut self.decoder;
        let samples = &mut block.samples;
        let shape = guarded(|| {
            let decoded = decoder.decode(packet)?;
            let (rate, channels) = (decoded.spec().rate(), decoded.spec().channels().count());
            decoded.copy_to_vec_interleaved(samples);
            Ok((rate, channels))
        })?;
        match shape {
            Ok(_) if samples.is_empty() => Ok(Decoded::Nothing),
            Ok((rate, channels)) => {
                check_shape(rate, channels)?;
                (block.sample_rate, block.channels) = (rate, channels);
                self.decoded += (samples.len() / channels) as u64;
                if self.shape.is_none() {
                    // Silence for damaged packets at the begin had to wait until the shape was
                    // known.
                    self.silenced = self.pending_silence.min(LONGEST_BLOCK);
                    self.pending_silence = 0;
                    let missing = self.silenced as usize * channels;
                    samples.splice(..0, std::iter::repeat_n(0.0, missing));
                }
                self.shape = Some((rate, channels));
                Ok(Decoded::Samples)
            }
            // In the middle of a file this is damage, too.
            Err(Error::Unsupported(_)) if self.decoded > 0 => Ok(Decoded::Damaged),
            Err(Error::DecodeError(_) | Error::LimitError(_)) => Ok(Decoded::Damaged),
            Err(Error::IoError(error)) if !is_system_error(&error) => Ok(Decoded::Damaged),
            Err(Error::ResetRequired) => {
                self.decoder.reset();
                Ok(Decoded::Damaged)
            }
            Err(error) => Err(classify(error)),
        }
    }

    /// Fills `block` with silence that replaces damaged packets. Returns `false` if there is none.
    fn silence(&mut self, block: &mut Block) -> bool {
        let Some((rate, channels)) = self.shape.filter(|_| self.pending_silence > 0) else {
            return false;
        };
        let frames = self.pending_silence.min(LONGEST_BLOCK);
        self.pending_silence -= frames;
        self.silenced += frames;
        (block.sample_rate, block.channels) = (rate, channels);
        block.samples.clear();
        block.samples.resize(frames as usize * channels, 0.0);
        true
    }
}

impl Source for Compressed {
    fn next_block(&mut self, block: &mut Block) -> Result<bool, AudioErrorKind> {
        while !self.ended {
            if !self.next_decoded(block)? {
                self.ended = true;
                self.trim.finish(block);
                return Ok(!block.samples.is_empty());
            }
            self.trim.apply(block);
            self.ended = self.trim.is_over();
            if !block.samples.is_empty() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn header(&self) -> Header {
        self.header.clone()
    }

    fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        let rate = self.shape.map_or(0, |(rate, _)| rate);
        let declared = self
            .header
            .frames
            .filter(|_| self.header.sample_rate == Some(rate) && rate > 0);
        let present = self.decoded + self.silenced;
        let missing = declared.map_or(0, |declared| declared.saturating_sub(present));
        // Some files end early without an error. Only the length in the header shows it.
        let is_short = self.declares_length && missing > u64::from(rate) / 10;
        let seconds = |frames: u64| frames as f64 / f64::from(rate.max(1));
        if missing > 0 && (self.cut_off || is_short) {
            let (have, want) = (seconds(present), seconds(present + missing));
            let what = format!("it has {have:.3} s of the {want:.3} s that its header declares");
            warnings.push(format!("the file is cut off: {what}"));
        } else if self.cut_off {
            warnings.push("the file is cut off: it ends in the middle of its audio".to_owned());
        }
        if self.damaged > 0 {
            let (count, length) = (self.damaged, seconds(self.silenced));
            let parts = if count == 1 { "part was" } else { "parts were" };
            warnings.push(format!(
                "{count} damaged {parts} replaced by silence, {length:.3} s in total"
            ));
        }
        warnings
    }
}

enum Decoded {
    Samples,
    Nothing,
    Damaged,
}

/// The longest block of all formats.
const LONGEST_BLOCK: u64 = 65_536;

/// A longer gap is more likely a wrong timestamp.
const LONGEST_GAP_SECONDS: u64 = 60;

/// A file of a gigabyte has fewer packets without samples.
const MAX_EMPTY_PACKETS: u32 = 100_000;

/// The track that is decoded.
struct Selected {
    track: u32,
    decoder: Box<dyn AudioDecoder>,
    counts_frames: bool,
    header: Header,
    edges: Edges,
}

impl Selected {
    fn in_file(reader: &dyn FormatReader) -> Result<Self, AudioErrorKind> {
        let track = reader
            .default_track(TrackType::Audio)
            .or_else(|| reader.first_track(TrackType::Audio));
        let track = track.ok_or(AudioErrorKind::NoTrack)?;
        let Some(CodecParameters::Audio(params)) = &track.codec_params else {
            return Err(AudioErrorKind::NoTrack);
        };
        let channels = params.channels.as_ref().map(|channels| channels.count());
        if let Some(rate) = params.sample_rate {
            check_shape(rate, channels.unwrap_or(1))?;
        }
        let header = Header {
            container: container_name(reader.format_info().short_name),
            codec: codec_name(params),
            sample_rate: params.sample_rate,
            channels,
            frames: track.num_frames,
        };
        let counts_frames = track
            .time_base
            .zip(params.sample_rate)
            .is_some_and(|(base, rate)| (base.numer.get(), base.denom.get()) == (1, rate));
        let is_mp3 = params.codec == codec::CODEC_ID_MP3;
        let options = AudioDecoderOptions::default().gapless(!is_mp3);
        let decoder = guarded(|| symphonia::default::get_codecs().make_audio_decoder(params, &options))?;
        let decoder = decoder.map_err(|error| match error {
            Error::Unsupported(_) => AudioErrorKind::UnsupportedCodec(header.codec.clone()),
            error => classify(error),
        })?;
        let edges = if is_mp3 {
            mp3_edges(track)
        } else {
            Edges::default()
        };
        Ok(Self {
            track: track.id,
            decoder,
            counts_frames,
            header,
            edges,
        })
    }
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

const M4A: &str = "M4A";
const MP3: &str = "MP3";

fn container_name(short_name: &'static str) -> &'static str {
    match short_name {
        "isomp4" => M4A,
        "ogg" => "OGG",
        "flac" => "FLAC",
        "mp3" => MP3,
        "aac" => "AAC",
        other => other,
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
        id => return unknown_codec(id),
    };
    name.to_owned()
}

fn unknown_codec(id: AudioCodecId) -> String {
    let registered = symphonia::default::get_codecs().get_audio_decoder(id);
    let unknown = || "audio of an unknown kind".to_owned();
    registered.map_or_else(unknown, |codec| codec.codec.info.long_name.to_owned())
}

fn classify(error: Error) -> AudioErrorKind {
    match error {
        Error::IoError(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
            AudioErrorKind::TruncatedHeader
        }
        Error::IoError(error) if is_system_error(&error) => AudioErrorKind::Unreadable(error),
        Error::IoError(error) => AudioErrorKind::Damaged(error.to_string()),
        Error::Unsupported(what) => {
            AudioErrorKind::UnsupportedCodec(format!("something unsupported ({what})"))
        }
        Error::DecodeError(what) | Error::LimitError(what) => AudioErrorKind::Damaged(what.to_owned()),
        error => AudioErrorKind::Damaged(error.to_string()),
    }
}

/// Whether the read failed, and not the parser: Symphonia has one kind of error for both.
fn is_system_error(error: &io::Error) -> bool {
    error.raw_os_error().is_some()
}

fn nothing_decodable() -> AudioErrorKind {
    AudioErrorKind::Damaged("nothing in it can be decoded".to_owned())
}

/// Turns a panic of a decoder over a malformed file into an error.
fn guarded<T>(work: impl FnOnce() -> T) -> Result<T, AudioErrorKind> {
    // The state after a panic belongs to the file, and is not used after the error.
    catch_unwind(AssertUnwindSafe(work))
        .map_err(|_| AudioErrorKind::Damaged("its decoder panicked".to_owned()))
}
