//! Files that Symphonia reads: FLAC, MP3, AAC, Ogg, M4A, Matroska, AIFF and CAF.

use std::collections::VecDeque;
use std::fs::File;
use std::io;

use symphonia::core::codecs::audio::AudioCodecParameters;
use symphonia::core::codecs::audio::well_known::CODEC_ID_MP3;
use symphonia::core::errors::Error;
use symphonia::core::formats::FormatReader;
use symphonia::core::packet::Packet;

use super::detect::Container;
use super::error::AudioErrorKind;
use super::matroska;
use super::movie;
use super::mpeg::FrameHeader;
use super::reader;
use super::source::{Block, Header, Source, check_shape};
use super::symphonia_error::{classify, guarded, is_system_error};
use super::track::{Decoder, Selected, make_decoder};
use super::trim::{Edges, Trim};

/// A file that Symphonia reads.
pub(super) struct Compressed {
    reader: Box<dyn FormatReader>,
    file: File,
    length: u64,
    container: Container,
    decoder: Decoder,
    params: AudioCodecParameters,
    track: u32,
    header: Header,
    /// Whether the header has the length, and it is not a guess.
    declares_length: bool,
    trim: Trim,
    /// The block behind frames that were held back.
    behind_held: Option<Block>,
    /// The shape of the last block that was decoded.
    shape: Option<(u32, usize)>,
    /// The frames of the last block that was decoded.
    last_frames: u64,
    /// Seconds from one time of a packet to the next, as a fraction.
    tick: Option<(u32, u32)>,
    /// The time that the next packet should have.
    expected: Option<i64>,
    /// Packets that were looked at, to be decoded later.
    waiting: VecDeque<Packet>,
    /// Whether the next packet is behind a gap that has been filled.
    gap_is_filled: bool,
    /// Whether nothing was decoded since a gap.
    behind_gap: bool,
    /// Frames of silence still to be inserted for damaged parts.
    pending_silence: u64,
    damaged: u64,
    /// Whether anything was decoded.
    has_sound: bool,
    /// Seconds that were given, and those of silence for damaged parts.
    present: f64,
    silenced: f64,
    cut_off: bool,
    ended: bool,
}

impl Compressed {
    /// Opens a file of `length` bytes whose container begins at `start`.
    pub(super) fn open(
        mut file: File,
        container: Container,
        start: u64,
        length: u64,
    ) -> Result<Self, AudioErrorKind> {
        let tracks = match container {
            Container::Movie => movie::tracks(&mut file),
            _ => movie::Tracks::default(),
        };
        let opened = reader::open(&file, container, start, length)?;
        let Selected {
            track,
            decoder,
            params,
            mut header,
            tick,
            mut edges,
        } = Selected::in_file(&*opened.reader, container, &tracks.enabled).map_err(|error| {
            match opened.begin_is_damaged {
                true => AudioErrorKind::Damaged(reader::HEADER_PAGE.to_owned()),
                false => error,
            }
        })?;
        let declares_length = container != Container::Mpeg || edges.total.is_some();
        let edit = tracks.edits.iter().find(|edit| edit.track == track);
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
            reader: opened.reader,
            file,
            length,
            container,
            decoder,
            params,
            track,
            header,
            declares_length,
            trim: Trim::new(edges),
            behind_held: None,
            shape: None,
            last_frames: 0,
            tick,
            // What is missing at the begin of a file is a gap only if it was damaged. A recorded
            // broadcast begins at any time.
            expected: opened.begin_is_damaged.then_some(0),
            waiting: VecDeque::new(),
            gap_is_filled: false,
            behind_gap: false,
            pending_silence: 0,
            damaged: 0,
            has_sound: false,
            present: 0.0,
            silenced: 0.0,
            cut_off: false,
            ended: false,
        })
    }

    /// The next samples of the recording.
    fn next_trimmed(&mut self, block: &mut Block) -> Result<bool, AudioErrorKind> {
        if let Some(behind) = self.behind_held.take() {
            *block = behind;
            return Ok(true);
        }
        while !self.ended {
            if !self.next_decoded(block)? {
                self.ended = true;
                self.trim.finish(block);
                return Ok(!block.samples.is_empty());
            }
            if let Some(held) = self.trim.before_another_shape(block)
                && !held.samples.is_empty()
            {
                self.behind_held = Some(std::mem::replace(block, held));
                return Ok(true);
            }
            self.trim.apply(block);
            self.ended = self.trim.is_over();
            if !block.samples.is_empty() {
                return Ok(true);
            }
        }
        Ok(false)
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
                self.waiting.push_front(packet);
                (self.gap_is_filled, self.behind_gap) = (true, true);
                if self.silence(block) {
                    return Ok(true);
                }
                continue;
            }
            let decoded = if self.is_odd_one_out(&packet)? {
                Decoded::Damaged
            } else {
                self.decode(&packet, block)?
            };
            match decoded {
                Decoded::Samples => {
                    self.behind_gap = false;
                    return Ok(true);
                }
                // It needs the lost packet before it.
                Decoded::Nothing if self.behind_gap => {
                    self.pending_silence += self.frames_of(&packet);
                    if self.silence(block) {
                        return Ok(true);
                    }
                }
                Decoded::Nothing => {}
                Decoded::Damaged => {
                    self.lose(self.frames_of(&packet));
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
        if !self.has_sound && self.damaged > 0 {
            Err(nothing_decodable())
        } else {
            Ok(false)
        }
    }

    /// Frames that are missing before a packet. Symphonia skips damaged frames and pages without an
    /// error.
    fn gap_before(&mut self, packet: &Packet) -> u64 {
        let Some((numerator, denominator)) = self.tick else {
            return 0;
        };
        let time = packet.pts.get();
        let expected = self.expected.unwrap_or(time);
        let gap = u64::try_from(time.saturating_sub(expected)).unwrap_or(0);
        let rate = self.rate();
        let counts_frames = (numerator, denominator) == (1, rate);
        self.expected = if counts_frames {
            Some(time.saturating_add_unsigned(packet.block_dur().get()))
        } else {
            // Set when the packet was decoded, since its own duration is often missing.
            None
        };
        if std::mem::take(&mut self.gap_is_filled) {
            return 0;
        }
        let frames = self.ticks_to_frames(gap);
        let longest = u64::from(rate) * LONGEST_GAP_SECONDS;
        // Rounded times make short gaps that are none.
        let shortest = if counts_frames { 1 } else { u64::from(rate) / 10 };
        if (shortest..=longest).contains(&frames) {
            frames
        } else {
            0
        }
    }

    fn rate(&self) -> u32 {
        let rate = self.shape.map(|(rate, _)| rate);
        rate.or(self.header.sample_rate).unwrap_or(0)
    }

    fn ticks_to_frames(&self, ticks: u64) -> u64 {
        let Some((numerator, denominator)) = self.tick else {
            return 0;
        };
        let frames = u128::from(ticks) * u128::from(numerator) * u128::from(self.rate());
        u64::try_from(frames / u128::from(denominator.max(1))).unwrap_or(u64::MAX)
    }

    fn frames_to_ticks(&self, frames: u64) -> i64 {
        let Some((numerator, denominator)) = self.tick else {
            return 0;
        };
        let ticks = u128::from(frames) * u128::from(denominator)
            / (u128::from(numerator) * u128::from(self.rate())).max(1);
        i64::try_from(ticks).unwrap_or(i64::MAX)
    }

    /// The frames of a damaged packet.
    fn frames_of(&self, packet: &Packet) -> u64 {
        if let Some(header) = self.frame_header(packet) {
            return header.frames;
        }
        // A packet holds no more than a block.
        match self.ticks_to_frames(packet.block_dur().get()) {
            0 => self.last_frames,
            frames => frames.min(LONGEST_BLOCK),
        }
    }

    fn frame_header(&self, packet: &Packet) -> Option<FrameHeader> {
        let is_mp3 = self.params.codec == CODEC_ID_MP3;
        is_mp3.then(|| FrameHeader::read(&packet.data)).flatten()
    }

    /// Whether an MP3 frame of another shape stands alone, and so has a damaged header. Two of them
    /// begin another part of a joined file, for example an advert, which gets a decoder of its own.
    fn is_odd_one_out(&mut self, packet: &Packet) -> Result<bool, AudioErrorKind> {
        let Some((shape, last)) = self.frame_header(packet).map(|h| h.shape()).zip(self.shape) else {
            return Ok(false);
        };
        if shape == last {
            return Ok(false);
        }
        if self.waiting.is_empty()
            && let Some(next) = self.read_packet()?
        {
            self.waiting.push_back(next);
        }
        let next = self.waiting.front().and_then(|next| self.frame_header(next));
        if next.is_none_or(|next| next.shape() != shape) {
            return Ok(true);
        }
        self.decoder = make_decoder(&self.params, &self.header)?;
        Ok(false)
    }

    fn lose(&mut self, frames: u64) {
        self.damaged += 1;
        self.pending_silence += frames;
    }

    /// The next packet of the track. `None` at the end.
    fn next_packet(&mut self) -> Result<Option<Packet>, AudioErrorKind> {
        match self.waiting.pop_front() {
            Some(packet) => Ok(Some(packet)),
            None => self.read_packet(),
        }
    }

    fn read_packet(&mut self) -> Result<Option<Packet>, AudioErrorKind> {
        loop {
            match guarded(|| self.reader.next_packet())? {
                Ok(Some(packet)) if packet.track_id == self.track => return Ok(Some(packet)),
                Ok(Some(_)) => {}
                Ok(None) => return Ok(None),
                // Some broadcasters write one stream after the other into one file.
                Err(Error::ResetRequired) => {
                    let next = Selected::in_file(&*self.reader, self.container, &[])?;
                    (self.track, self.decoder, self.params) = (next.track, next.decoder, next.params);
                    (self.tick, self.expected) = (next.tick, None);
                    if next.edges != Edges::default() {
                        self.trim = Trim::new(next.edges);
                    }
                }
                Err(Error::IoError(error)) if error.kind() == io::ErrorKind::UnexpectedEof => {
                    self.cut_off = match self.container {
                        Container::Matroska => !matroska::is_complete(&self.file, self.length)
                            .map_err(AudioErrorKind::Unreadable)?,
                        _ => true,
                    };
                    return Ok(None);
                }
                // The time of everything behind an unreadable place is unknown.
                Err(Error::DecodeError(_) | Error::LimitError(_)) if self.has_sound => {
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
        let shape = guarded(|| decoder.decode(packet, samples))?;
        match shape {
            Ok(_) if samples.is_empty() => Ok(Decoded::Nothing),
            Ok((rate, channels)) => {
                check_shape(rate, channels)?;
                (block.sample_rate, block.channels) = (rate, channels);
                self.last_frames = (samples.len() / channels) as u64;
                self.shape = Some((rate, channels));
                let duration = self.frames_to_ticks(self.last_frames);
                let behind = packet.pts.get().saturating_add(duration);
                self.expected.get_or_insert(behind);
                if !std::mem::replace(&mut self.has_sound, true) {
                    // Silence for damaged packets at the begin had to wait until the shape was
                    // known.
                    let most = u64::from(rate) * LONGEST_GAP_SECONDS;
                    let missing = std::mem::take(&mut self.pending_silence).min(most) as usize;
                    let missing = (missing * channels).min(MOST_FIRST_SILENCE);
                    self.silenced += self.seconds((missing / channels) as u64);
                    block.samples.splice(..0, std::iter::repeat_n(0.0, missing));
                }
                Ok(Decoded::Samples)
            }
            // In the middle of a file this is damage, too.
            Err(Error::Unsupported(_)) if self.has_sound => Ok(Decoded::Damaged),
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
        self.silenced += self.seconds(frames);
        (block.sample_rate, block.channels) = (rate, channels);
        block.samples.clear();
        block.samples.resize(frames as usize * channels, 0.0);
        true
    }

    fn seconds(&self, frames: u64) -> f64 {
        frames as f64 / f64::from(self.rate().max(1))
    }
}

impl Source for Compressed {
    fn next_block(&mut self, block: &mut Block) -> Result<bool, AudioErrorKind> {
        let found = self.next_trimmed(block)?;
        if found {
            self.present += self.seconds((block.samples.len() / block.channels) as u64);
        }
        Ok(found)
    }

    fn header(&self) -> Header {
        self.header.clone()
    }

    fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        let declared = self.header.frames.zip(self.header.sample_rate);
        let declared = declared.map_or(0.0, |(frames, rate)| frames as f64 / f64::from(rate.max(1)));
        let missing = declared - self.present;
        // Some files end early without an error. Only the length in the header shows it.
        let is_short = self.declares_length && missing > SHORT_SECONDS;
        if is_short || (self.cut_off && missing > 0.0) {
            let what = format!(
                "it has {:.3} s of the {declared:.3} s that its header declares",
                self.present
            );
            warnings.push(format!("the file is cut off: {what}"));
        } else if self.cut_off {
            warnings.push("the file is cut off: it ends in the middle of its audio".to_owned());
        }
        if self.damaged > 0 {
            let (count, length) = (self.damaged, self.silenced);
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

/// A file that is shorter than its header says by no more than this was only rounded.
const SHORT_SECONDS: f64 = 0.1;

/// Samples. Memory for the silence before the first sound, 60 s with 5 channels.
const MOST_FIRST_SILENCE: usize = 16 * 1024 * 1024;

/// A file of a gigabyte has fewer packets without samples.
const MAX_EMPTY_PACKETS: u32 = 100_000;

fn nothing_decodable() -> AudioErrorKind {
    AudioErrorKind::Damaged("nothing in it can be decoded".to_owned())
}
