//! Opus, decoded by the `opus-decoder` crate.

use opus_decoder::OpusMultistreamDecoder;

/// A decoder of the packets of one stream.
pub(super) struct Opus {
    decoder: OpusMultistreamDecoder,
    channels: usize,
    gain: f32,
    /// Room for the longest packet.
    room: Vec<f32>,
}

impl Opus {
    pub(super) fn new(head: &Head) -> Option<Self> {
        let decoder = OpusMultistreamDecoder::new(
            SAMPLE_RATE as u32,
            head.channels,
            head.streams,
            head.coupled,
            &head.mapping,
        );
        Some(Self {
            decoder: decoder.ok()?,
            channels: head.channels,
            gain: 10_f32.powf(f32::from(head.gain) / (20.0 * 256.0)),
            room: vec![0.0; LONGEST_PACKET * head.channels],
        })
    }

    pub(super) fn channels(&self) -> usize {
        self.channels
    }

    /// Decodes a packet. `None` if it is damaged.
    pub(super) fn decode(&mut self, packet: &[u8], samples: &mut Vec<f32>) -> Option<()> {
        let frames = self.decoder.decode_float(packet, &mut self.room, false).ok()?;
        let decoded = self.room.get(..frames * self.channels)?;
        samples.extend(decoded.iter().map(|sample| sample * self.gain));
        Some(())
    }

    pub(super) fn reset(&mut self) {
        self.decoder.reset();
    }
}

/// The sample rate of decoded Opus, in Hz. The rate in the header is only that of the input.
pub(super) const SAMPLE_RATE: u64 = 48_000;
/// 120 ms.
const LONGEST_PACKET: usize = 5_760;

/// The header of a stream (RFC 7845, section 5.1).
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) channels: usize,
    /// Frames before the recording.
    pub(super) skip: u16,
    /// 1/256 dB.
    gain: i16,
    streams: usize,
    coupled: usize,
    mapping: Vec<u8>,
}

impl Head {
    /// Reads a header. In an M4A file its numbers have the highest byte first.
    pub(super) fn read(bytes: &[u8], in_movie: bool) -> Option<Self> {
        let number = |at: usize| {
            let bytes: [u8; 2] = bytes.get(at..at + 2)?.try_into().ok()?;
            Some(if in_movie {
                u16::from_be_bytes(bytes)
            } else {
                u16::from_le_bytes(bytes)
            })
        };
        if !bytes.starts_with(b"OpusHead") {
            return None;
        }
        let channels = usize::from(*bytes.get(9)?);
        let (streams, coupled, mapping) = match *bytes.get(18)? {
            0 if channels <= 2 => (1, channels.saturating_sub(1), (0..channels as u8).collect()),
            0 => return None,
            _ => (
                usize::from(*bytes.get(19)?),
                usize::from(*bytes.get(20)?),
                bytes.get(21..21 + channels)?.to_vec(),
            ),
        };
        Some(Self {
            channels,
            skip: number(10)?,
            gain: number(16)?.cast_signed(),
            streams,
            coupled,
            mapping,
        })
    }
}
