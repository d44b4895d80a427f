//! WAV files.
//!
//! The platform gives WAV files to engines, and broken recorders leave them unclosed, with a length
//! of zero, of 4 GiB, or more than they have. Symphonia's reader refuses several of these, does not
//! read RF64, and does not report the missing length.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};

use super::error::AudioErrorKind;
use super::source::{Block, Header, Source, check_shape, read_up_to};

/// The samples of a WAV file.
pub(super) struct Wav {
    file: BufReader<File>,
    format: Format,
    /// Bytes of samples that were not read yet.
    left: u64,
    frames: u64,
    /// The factor of samples that are in the lower bytes.
    scale: f32,
    warnings: Vec<String>,
    bytes: Vec<u8>,
}

/// The encoding of samples.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Encoding {
    Unsigned8,
    Signed16,
    Signed24,
    Signed32,
    Float32,
    Float64,
    ALaw,
    MuLaw,
}

impl Encoding {
    /// The bytes of a sample.
    pub(crate) fn bytes(self) -> u64 {
        match self {
            Self::Unsigned8 | Self::ALaw | Self::MuLaw => 1,
            Self::Signed16 => 2,
            Self::Signed24 => 3,
            Self::Signed32 | Self::Float32 => 4,
            Self::Float64 => 8,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Unsigned8 => "PCM, 8 bits",
            Self::Signed16 => "PCM, 16 bits",
            Self::Signed24 => "PCM, 24 bits",
            Self::Signed32 => "PCM, 32 bits",
            Self::Float32 => "PCM, 32 bits floating point",
            Self::Float64 => "PCM, 64 bits floating point",
            Self::ALaw => "A-law",
            Self::MuLaw => "µ-law",
        }
    }
}

#[derive(Debug, Clone, Copy)]
struct Format {
    encoding: Encoding,
    sample_rate: u32,
    channels: usize,
    /// Bytes of a sample that the bits of the header leave unused.
    unused: u32,
}

impl Format {
    fn frame_bytes(&self) -> u64 {
        self.encoding.bytes() * self.channels as u64
    }
}

impl Wav {
    /// Whether a file that starts like this is a WAV file, or one that was cut off in the first
    /// bytes.
    pub(super) fn is_start_of(start: &[u8]) -> bool {
        let (form, rest) = start.split_at(start.len().min(4));
        let kind = rest.get(4..).unwrap_or_default();
        matches!(form, b"RIFF" | b"RF64" | b"BW64") && b"WAVE".starts_with(kind)
    }

    /// Reads the header of a file of `length` bytes.
    pub(super) fn open(file: File, length: u64) -> Result<Self, AudioErrorKind> {
        let mut file = BufReader::with_capacity(BUFFER, file);
        let mut start = [0; 12];
        exactly(&mut file, &mut start)?;

        let mut format = None;
        let mut long_data = None;
        loop {
            let mut chunk = [0; 8];
            exactly(&mut file, &mut chunk)?;
            let [a, b, c, d, size @ ..] = chunk;
            let size = u64::from(u32::from_le_bytes(size));
            match &[a, b, c, d] {
                b"data" => {
                    let format = format.ok_or_else(|| damaged("its data comes before its format"))?;
                    let declared = if size == u64::from(u32::MAX) {
                        long_data.unwrap_or(size)
                    } else {
                        size
                    };
                    let start = file.stream_position().map_err(AudioErrorKind::Unreadable)?;
                    let present = length.saturating_sub(start);
                    let scale = scale_of(&mut file, format, declared.min(present), start)?;
                    let mut wav = Self::with_data(file, format, declared, present);
                    wav.scale = scale;
                    return Ok(wav);
                }
                b"fmt " => {
                    let mut body = vec![0; size.min(LONGEST_FORMAT) as usize];
                    exactly(&mut file, &mut body)?;
                    skip(&mut file, padded(size) - body.len() as u64, length)?;
                    format = Some(read_format(&body)?);
                }
                b"ds64" => {
                    let mut body = [0; 24];
                    let body = &mut body[..size.min(24) as usize];
                    exactly(&mut file, body)?;
                    skip(&mut file, padded(size) - body.len() as u64, length)?;
                    long_data = body
                        .get(8..16)
                        .and_then(|bytes| bytes.try_into().ok())
                        .map(u64::from_le_bytes);
                }
                _ => skip(&mut file, padded(size), length)?,
            }
        }
    }

    /// The position of the file is at `present` bytes of samples. The header declares `declared`.
    fn with_data(file: BufReader<File>, format: Format, declared: u64, present: u64) -> Self {
        let mut warnings = Vec::new();
        let frame = format.frame_bytes();
        // Recorders that stream or were not stopped write these lengths. All bytes that are present
        // count.
        let unknown = declared == 0 || declared >= UNKNOWN_LENGTH;
        let mut left = if unknown { present } else { declared.min(present) };
        if !unknown && present < declared {
            let seconds = |bytes: u64| (bytes / frame) as f64 / f64::from(format.sample_rate);
            let (have, want) = (seconds(present), seconds(declared));
            warnings.push(format!(
                "the file is cut off: it has {have:.3} s of the {want:.3} s that its header declares"
            ));
        }
        left -= left % frame;
        Self {
            file,
            format,
            left,
            frames: left / frame,
            scale: 1.0,
            warnings,
            bytes: Vec::new(),
        }
    }
}

impl Source for Wav {
    fn next_block(&mut self, block: &mut Block) -> Result<bool, AudioErrorKind> {
        let frame = self.format.frame_bytes();
        let wanted = self.left.min(BLOCK_FRAMES * frame);
        self.bytes.resize(wanted as usize, 0);
        let read = read_up_to(&mut self.file, &mut self.bytes).map_err(AudioErrorKind::Unreadable)? as u64;
        // The file is shorter than when it was opened: another process writes to it.
        self.left = if read < wanted { 0 } else { self.left - read };
        let whole = read - read % frame;
        block.sample_rate = self.format.sample_rate;
        block.channels = self.format.channels;
        block.bounded = !matches!(self.format.encoding, Encoding::Float32 | Encoding::Float64);
        block.samples.clear();
        convert(
            self.format.encoding,
            &self.bytes[..whole as usize],
            &mut block.samples,
        );
        if self.scale != 1.0 {
            block.samples.iter_mut().for_each(|sample| *sample *= self.scale);
        }
        Ok(whole > 0)
    }

    fn header(&self) -> Header {
        Header {
            container: "WAV",
            codec: self.format.encoding.name().to_owned(),
            sample_rate: Some(self.format.sample_rate),
            channels: Some(self.format.channels),
            frames: Some(self.frames),
        }
    }

    fn warnings(&self) -> Vec<String> {
        self.warnings.clone()
    }
}

const BUFFER: usize = 64 * 1024;
const BLOCK_FRAMES: u64 = 16 * 1024;
/// The longest form of the chunk has 40 bytes. The rest is ignored.
const LONGEST_FORMAT: u64 = 64;
/// Programs that write to a pipe don't know the length and write one near 2 or 4 GiB.
const UNKNOWN_LENGTH: u64 = 0x7fff_0000;

fn read_format(body: &[u8]) -> Result<Format, AudioErrorKind> {
    let word = |at: usize| {
        body.get(at..at + 2)
            .and_then(|b| b.try_into().ok())
            .map(u16::from_le_bytes)
    };
    let (Some(mut tag), Some(channels), Some(rate), Some(bits)) = (
        word(0),
        word(2),
        body.get(4..8)
            .and_then(|b| b.try_into().ok())
            .map(u32::from_le_bytes),
        word(14),
    ) else {
        return Err(damaged("its format chunk has less than 16 bytes"));
    };
    if tag == EXTENSIBLE {
        // The first two bytes of the sub-format are the tag of the plain form.
        tag = word(24).ok_or_else(|| damaged("its extended format chunk has less than 40 bytes"))?;
    }
    check_shape(rate, usize::from(channels))?;
    // Bits that do not fill their bytes are the upper ones.
    let filled = u32::from(bits).next_multiple_of(8);
    let block = u32::from(word(12).unwrap_or(0));
    let width = match block.checked_div(u32::from(channels)).map(|bytes| bytes * 8) {
        Some(width) if tag == PCM && width > filled && width <= 32 && filled > 0 => width,
        _ => filled,
    };
    let encoding = match (tag, width) {
        (PCM, 8) => Encoding::Unsigned8,
        (PCM, 16) => Encoding::Signed16,
        (PCM, 24) => Encoding::Signed24,
        (PCM, 32) => Encoding::Signed32,
        (FLOAT, 32) => Encoding::Float32,
        (FLOAT, 64) => Encoding::Float64,
        (A_LAW, 8) => Encoding::ALaw,
        (MU_LAW, 8) => Encoding::MuLaw,
        (PCM | FLOAT | A_LAW | MU_LAW, _) => {
            let kind = if tag == FLOAT {
                "floating point samples"
            } else {
                "samples"
            };
            return Err(AudioErrorKind::UnsupportedCodec(format!("{kind} of {bits} bits")));
        }
        _ => return Err(AudioErrorKind::UnsupportedCodec(codec_name(tag))),
    };
    if block != 0 && u64::from(block) != encoding.bytes() * u64::from(channels) {
        return Err(AudioErrorKind::Damaged(format!(
            "its blocks of {block} bytes don't fit {channels} channels of {bits} bits"
        )));
    }
    Ok(Format {
        encoding,
        sample_rate: rate,
        channels: usize::from(channels),
        unused: (width - filled) / 8,
    })
}

/// The factor of samples with unused bytes. These are the lower ones, but some writers use the
/// lower ones and extend the sign to the upper ones.
fn scale_of(
    file: &mut BufReader<File>,
    format: Format,
    length: u64,
    start: u64,
) -> Result<f32, AudioErrorKind> {
    let (width, unused) = (format.encoding.bytes() as usize, format.unused as usize);
    if unused == 0 {
        return Ok(1.0);
    }
    let mut bytes = vec![0; length.min(LOOKED_AT) as usize];
    let read = read_up_to(file, &mut bytes).map_err(AudioErrorKind::Unreadable)?;
    file.seek(SeekFrom::Start(start))
        .map_err(AudioErrorKind::Unreadable)?;
    let samples = || bytes[..read].chunks_exact(width);
    let lower_are_used = samples().any(|sample| sample[..unused].iter().any(|byte| *byte != 0));
    let upper_are_sign = samples().all(|sample| {
        let (value, sign) = sample.split_at(width - unused);
        let negative = value.last().is_some_and(|byte| byte & 0x80 != 0);
        sign.iter().all(|byte| *byte == if negative { 0xff } else { 0 })
    });
    Ok(if lower_are_used && upper_are_sign {
        256_f32.powi(format.unused as i32)
    } else {
        1.0
    })
}

/// Several seconds.
const LOOKED_AT: u64 = 1024 * 1024;

const PCM: u16 = 0x0001;
const FLOAT: u16 = 0x0003;
const A_LAW: u16 = 0x0006;
const MU_LAW: u16 = 0x0007;
const EXTENSIBLE: u16 = 0xfffe;

/// The names of common formats, by their registered numbers.
fn codec_name(tag: u16) -> String {
    let name = match tag {
        0x0002 => "Microsoft ADPCM",
        0x0011 => "IMA ADPCM",
        0x0031 => "GSM 6.10",
        0x0050 => "MPEG layer 2",
        0x0055 => "MP3",
        0x0161 | 0x0162 => "Windows Media Audio",
        _ => return format!("audio of the unknown kind 0x{tag:04x}"),
    };
    format!("{name} (0x{tag:04x})")
}

/// Appends the samples of these bytes.
pub(crate) fn convert(encoding: Encoding, bytes: &[u8], samples: &mut Vec<f32>) {
    match encoding {
        Encoding::Unsigned8 => samples.extend(bytes.iter().map(|&b| (f32::from(b) - 128.0) / 128.0)),
        Encoding::Signed16 => each(bytes, samples, |b| f32::from(i16::from_le_bytes(b)) / 32_768.0),
        // The three bytes as the upper ones of four.
        Encoding::Signed24 => each(bytes, samples, |[a, b, c]| {
            scale(i32::from_le_bytes([0, a, b, c]))
        }),
        Encoding::Signed32 => each(bytes, samples, |b| scale(i32::from_le_bytes(b))),
        Encoding::Float32 => each(bytes, samples, f32::from_le_bytes),
        Encoding::Float64 => each(bytes, samples, |b| f64::from_le_bytes(b) as f32),
        Encoding::ALaw => samples.extend(bytes.iter().map(|&b| f32::from(a_law(b)) / 32_768.0)),
        Encoding::MuLaw => samples.extend(bytes.iter().map(|&b| f32::from(mu_law(b)) / 32_768.0)),
    }
}

fn each<const N: usize>(bytes: &[u8], samples: &mut Vec<f32>, sample: impl Fn([u8; N]) -> f32) {
    samples.extend(bytes.as_chunks::<N>().0.iter().map(|&bytes| sample(bytes)));
}

fn scale(sample: i32) -> f32 {
    (f64::from(sample) / 2_147_483_648.0) as f32
}

/// ITU-T G.711: sign, three bits of exponent, four of mantissa, every other bit inverted.
fn a_law(code: u8) -> i16 {
    let code = code ^ 0x55;
    let mantissa = i16::from(code & 0x0f) << 4;
    let magnitude = match (code >> 4) & 0x07 {
        0 => mantissa + 8,
        exponent => (mantissa + 0x108) << (exponent - 1),
    };
    if code & 0x80 == 0 { -magnitude } else { magnitude }
}

/// ITU-T G.711: the same with all bits inverted and a bias of 33 before the logarithm.
fn mu_law(code: u8) -> i16 {
    const BIAS: i16 = 33 << 2;
    let code = !code;
    let magnitude = ((i16::from(code & 0x0f) << 3) + BIAS) << ((code >> 4) & 0x07);
    if code & 0x80 == 0 {
        magnitude - BIAS
    } else {
        BIAS - magnitude
    }
}

fn damaged(what: &str) -> AudioErrorKind {
    AudioErrorKind::Damaged(what.to_owned())
}

fn exactly(file: &mut impl Read, buffer: &mut [u8]) -> Result<(), AudioErrorKind> {
    file.read_exact(buffer).map_err(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof => AudioErrorKind::TruncatedHeader,
        _ => AudioErrorKind::Unreadable(error),
    })
}

/// Chunks begin at even positions.
fn padded(size: u64) -> u64 {
    size + size % 2
}

fn skip(file: &mut BufReader<File>, count: u64, length: u64) -> Result<(), AudioErrorKind> {
    let position = file.stream_position().map_err(AudioErrorKind::Unreadable)?;
    if count > length.saturating_sub(position) {
        return Err(AudioErrorKind::TruncatedHeader);
    }
    // Less than the length of a file, and therefore less than `i64::MAX`.
    file.seek_relative(count as i64)
        .map_err(AudioErrorKind::Unreadable)
}
