//! The container of a file, by its first bytes.
//!
//! Symphonia's own probe searches the first megabyte for two bytes that may begin a frame of MP3 or
//! AAC, and so takes a film or a recording in a format that it does not know for one of them. Here
//! a known signature at the start decides, and only a chain of frames is searched for.

use std::fs::File;
use std::io::{Seek, SeekFrom};

use super::error::AudioErrorKind;
use super::mpeg::{self, Stream};
use super::source::read_up_to;
use super::wav::Wav;

/// What a file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Found {
    Wav,
    /// A container and the position of its first byte, which may be behind tags.
    Container(Container, u64),
}

/// A container that Symphonia reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Container {
    Aiff,
    Caf,
    Flac,
    Ogg,
    Movie,
    Matroska,
    Mpeg,
    Adts,
}

/// What a file of `length` bytes is.
///
/// # Errors
///
/// If it can't be read, or not decoded.
pub(super) fn detect(file: &mut File, length: u64) -> Result<Found, AudioErrorKind> {
    let start = behind_tags(file, length)?;
    if start >= length {
        return Err(AudioErrorKind::TruncatedHeader);
    }
    file.seek(SeekFrom::Start(start))
        .map_err(AudioErrorKind::Unreadable)?;
    let mut bytes = vec![0; (length - start).min(mpeg::SEEN as u64) as usize];
    let read = read_up_to(file, &mut bytes).map_err(AudioErrorKind::Unreadable)?;
    bytes.truncate(read);
    if start == 0 && Wav::is_start_of(&bytes[..bytes.len().min(12)]) {
        return Ok(Found::Wav);
    }
    if let Some(container) = by_signature(&bytes) {
        return Ok(Found::Container(container, start));
    }
    if let Some(name) = foreign(&bytes) {
        return Err(AudioErrorKind::UnsupportedFormat(name));
    }
    if let Some(name) = no_media(&bytes) {
        return Err(AudioErrorKind::NoMedia(name));
    }
    let is_whole = start + read as u64 >= length;
    let (at, stream) = mpeg::find(&bytes, is_whole).ok_or(AudioErrorKind::NotAudio)?;
    let container = match stream {
        Stream::Mpeg => Container::Mpeg,
        Stream::Adts => Container::Adts,
    };
    Ok(Found::Container(container, start + at as u64))
}

/// The position behind all ID3v2 tags at the start. Their pictures have megabytes.
fn behind_tags(file: &mut File, length: u64) -> Result<u64, AudioErrorKind> {
    let mut start = 0;
    for _ in 0..MAX_TAGS {
        file.seek(SeekFrom::Start(start))
            .map_err(AudioErrorKind::Unreadable)?;
        let mut header = [0; 10];
        let read = read_up_to(file, &mut header).map_err(AudioErrorKind::Unreadable)?;
        let &[b'I', b'D', b'3', _, _, flags, ref size @ ..] = &header[..read] else {
            break;
        };
        if size.len() < 4 || size.iter().any(|byte| byte & 0x80 != 0) {
            break;
        }
        let size = size.iter().fold(0, |size, byte| (size << 7) | u64::from(*byte));
        let footer = if flags & 0x10 == 0 { 0 } else { 10 };
        start += 10 + size + footer;
        if start >= length {
            break;
        }
    }
    Ok(start)
}

/// More tags are a malformed file.
const MAX_TAGS: u32 = 16;

fn by_signature(bytes: &[u8]) -> Option<Container> {
    let first = bytes.first_chunk::<4>()?;
    let form = bytes.get(8..).unwrap_or_default();
    match first {
        b"FORM" if form.starts_with(b"AIFF") || form.starts_with(b"AIFC") => Some(Container::Aiff),
        b"caff" => Some(Container::Caf),
        b"fLaC" => Some(Container::Flac),
        b"OggS" => Some(Container::Ogg),
        b"\x1a\x45\xdf\xa3" => Some(Container::Matroska),
        _ => match bytes.get(4..8)? {
            b"ftyp" | b"moov" | b"mdat" | b"wide" | b"pnot" => Some(Container::Movie),
            _ => None,
        },
    }
}

/// The name of a format with sound that can't be read.
fn foreign(bytes: &[u8]) -> Option<&'static str> {
    let form = bytes.get(8..12).unwrap_or_default();
    let signature = FOREIGN.iter().find(|(start, _)| bytes.starts_with(start));
    signature
        .map(|(_, name)| *name)
        .or((bytes.starts_with(b"RIFF") && form == b"AVI ").then_some("an AVI film"))
        .or(is_transport_stream(bytes).then_some("an MPEG transport stream"))
}

const FOREIGN: [(&[u8], &str); 22] = [
    (b"#!AMR", "an AMR recording"),
    (b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", "a Windows Media file"),
    (b"FLV\x01", "a Flash video"),
    (b".snd", "an AU file"),
    (b"wvpk", "a WavPack file"),
    (b"MAC ", "a Monkey's Audio file"),
    (b"TTA1", "a True Audio file"),
    (b"TTA2", "a True Audio file"),
    (b"MPCK", "a Musepack file"),
    (b"MP+", "a Musepack file"),
    (b"DSD ", "a DSD file"),
    (b"FRM8", "a DSD file"),
    (b"ADIF", "an AAC file in the ADIF form"),
    (b"\x0b\x77", "an AC-3 stream"),
    (b"\x7f\xfe\x80\x01", "a DTS stream"),
    (b".RMF", "a RealMedia file"),
    (b"MThd", "a MIDI file"),
    (b"\x00\x00\x01\xba", "an MPEG program stream"),
    (b"\x00\x00\x01\xb3", "an MPEG video stream"),
    (b"\x00\x00\x00\x01", "a video stream"),
    (b"SILK_V3", "a SILK recording"),
    (b"\x02#!SILK_V3", "a SILK recording"),
];

/// Packets of 188 bytes that begin with the same byte, in Blu-ray and broadcast files with 4 or 16
/// bytes between them.
fn is_transport_stream(bytes: &[u8]) -> bool {
    [188, 192, 204].into_iter().any(|packet| {
        (0..packet).any(|at| {
            let starts = bytes.get(at..).unwrap_or_default().iter().step_by(packet);
            let found = starts.take(TRANSPORT_PACKETS).take_while(|byte| **byte == 0x47);
            found.count() == TRANSPORT_PACKETS
        })
    })
}

/// Not found by chance.
const TRANSPORT_PACKETS: usize = 6;

/// The name of a file without sound that is often given by mistake.
fn no_media(bytes: &[u8]) -> Option<&'static str> {
    let start: String = bytes
        .iter()
        .take(256)
        .map(|byte| char::from(byte.to_ascii_lowercase()))
        .collect();
    let text = start.trim_start_matches(|c: char| !c.is_ascii_graphic());
    [
        (
            "version https://git-lfs",
            "a Git LFS pointer, whose content was not fetched",
        ),
        ("<!doctype html", "a web page"),
        ("<html", "a web page"),
        ("<?xml", "an XML document"),
        ("%pdf-", "a PDF document"),
        ("pk\u{3}\u{4}", "a ZIP archive"),
        ("\u{1f}\u{8b}", "a gzip archive"),
        ("\u{89}png", "a picture"),
        ("\u{ff}\u{d8}\u{ff}", "a picture"),
        ("gif8", "a picture"),
    ]
    .into_iter()
    .find(|(signature, _)| start.starts_with(signature) || text.starts_with(signature))
    .map(|(_, name)| name)
}
