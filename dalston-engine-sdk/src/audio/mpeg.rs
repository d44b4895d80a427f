//! The frame headers of MP3 and of raw AAC: where a file of them begins, and the shape of a frame.
//!
//! Both formats have no header for the file, only a short pattern before each frame, which is also
//! found by chance in any other file. Only a chain of frames, each as long as its header says, is
//! taken for audio.

/// The kind of a raw stream of frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stream {
    /// MPEG audio, layers 1 to 3.
    Mpeg,
    /// AAC in ADTS frames.
    Adts,
}

/// The header of an MPEG audio frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct FrameHeader {
    /// Version and layer, as in the header.
    kind: u8,
    pub(super) sample_rate: u32,
    pub(super) channels: usize,
    /// Frames of sound.
    pub(super) frames: u64,
    /// With the header. `None` if the bit rate is not in the header.
    bytes: Option<usize>,
}

impl FrameHeader {
    /// The header at the start of `bytes`, if there is one.
    pub(super) fn read(bytes: &[u8]) -> Option<Self> {
        let &[0xff, second, third, fourth, ..] = bytes else {
            return None;
        };
        if second & 0xe0 != 0xe0 {
            return None;
        }
        let (version, layer) = ((second >> 3) & 3, (second >> 1) & 3);
        // Versions 2.5, (reserved), 2, 1, as factors of the sample rate and of the frames.
        let low = match version {
            0 => 4,
            2 => 2,
            3 => 1,
            _ => return None,
        };
        let sample_rate = [44_100, 48_000, 32_000].get(usize::from((third >> 2) & 3))? / low;
        // Kilobits per second, and frames of sound.
        let (rates, frames) = match (layer, low) {
            (3, 1) => (&RATES_V1_L1, 384),
            (2, 1) => (&RATES_V1_L2, 1152),
            (1, 1) => (&RATES_V1_L3, 1152),
            (3, _) => (&RATES_V2_L1, 384),
            (2, _) => (&RATES_V2_L23, 1152),
            (1, _) => (&RATES_V2_L23, 576),
            _ => return None,
        };
        let bit_rate = u64::from(*rates.get(usize::from(third >> 4))?) * 1000;
        let padding = u64::from((third >> 1) & 1) * if layer == 3 { 4 } else { 1 };
        let unit = if layer == 3 { 32 } else { 8 };
        let bytes = frames / unit * bit_rate / u64::from(sample_rate) * if layer == 3 { 4 } else { 1 };
        Some(Self {
            kind: second & 0x1e,
            sample_rate,
            channels: if fourth >> 6 == 3 { 1 } else { 2 },
            frames,
            bytes: usize::try_from(bytes + padding).ok().filter(|_| bit_rate > 0),
        })
    }

    /// Rate and number of channels.
    pub(super) fn shape(&self) -> (u32, usize) {
        (self.sample_rate, self.channels)
    }
}

/// Where the first chain of frames in `bytes` begins. `bytes` are the start of a file, and all of
/// it if `is_whole`.
pub(super) fn find(bytes: &[u8], is_whole: bool) -> Option<(usize, Stream)> {
    (0..bytes.len().min(SEARCHED)).find_map(|at| {
        [Stream::Mpeg, Stream::Adts]
            .into_iter()
            .find(|stream| is_chain(&bytes[at..], *stream, at == 0, is_whole))
            .map(|stream| (at, stream))
    })
}

/// Whether a chain of frames begins `bytes`. At the start of a file three frames are enough, or two
/// that end it. Behind other bytes, which may be any format, it must be longer.
fn is_chain(bytes: &[u8], stream: Stream, at_start: bool, is_whole: bool) -> bool {
    let least = if at_start { 3 } else { CHAIN };
    let mut rest = bytes;
    let mut first = None;
    for count in 1..=least {
        let found = match stream {
            Stream::Mpeg => FrameHeader::read(rest).and_then(|header| {
                Some((header.bytes?, (u32::from(header.kind) << 24) | header.sample_rate))
            }),
            Stream::Adts => adts_frame(rest),
        };
        let Some((length, _)) = found.filter(|(_, shape)| *first.get_or_insert(*shape) == *shape) else {
            return false;
        };
        match rest.get(length..).filter(|rest| !rest.is_empty()) {
            Some(following) => rest = following,
            None => return at_start && is_whole && count > 1,
        }
    }
    true
}

/// The length of an ADTS frame, and what all frames of a file have in common.
fn adts_frame(bytes: &[u8]) -> Option<(usize, u32)> {
    let &[0xff, second, third, fourth, fifth, sixth, ..] = bytes else {
        return None;
    };
    let is_frame = second & 0xf6 == 0xf0 && third & 0x3c < 0x34;
    let length = (usize::from(fourth & 3) << 11) | (usize::from(fifth) << 3) | usize::from(sixth >> 5);
    let shape = u32::from_be_bytes([0, second, third & 0xfd, fourth & 0xc0]);
    (is_frame && length > 7).then_some((length, shape))
}

/// The bytes before the first frame: tags with a wrong length, and the rest of a frame in a
/// recorded broadcast.
pub(super) const SEARCHED: usize = 128 * 1024;

/// Frames in a row that no film has: it puts frames of pictures between fewer.
const CHAIN: usize = 32;

/// What [`find`] has to see of a file.
pub(super) const SEEN: usize = SEARCHED + CHAIN * LONGEST_FRAME;

/// An ADTS frame has up to 8 KiB, an MPEG frame less than 3.
const LONGEST_FRAME: usize = 8 * 1024;

const RATES_V1_L1: [u16; 15] = [
    0, 32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448,
];
const RATES_V1_L2: [u16; 15] = [0, 32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384];
const RATES_V1_L3: [u16; 15] = [0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320];
const RATES_V2_L1: [u16; 15] = [0, 32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256];
const RATES_V2_L23: [u16; 15] = [0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160];
