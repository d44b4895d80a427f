//! The head of a WAV file: [`head`].

use crate::audio::Encoding;

/// The head of a WAV file with audio of this format, whose samples have this many bytes. Above
/// 4 GiB it is that of an RF64 file.
pub(super) fn head(encoding: Encoding, channels: u16, rate: u32, bytes: u64) -> Vec<u8> {
    let sample = encoding.bytes();
    let frame = sample * u64::from(channels);
    let tag: u16 = match encoding {
        Encoding::Float32 | Encoding::Float64 => 3,
        Encoding::ALaw => 6,
        Encoding::MuLaw => 7,
        _ => 1,
    };
    // Each format but PCM has the length of its extension, and the number of frames.
    let (format_len, fact_len): (u32, u64) = if tag == 1 { (16, 0) } else { (18, 12) };
    // The form, two heads of chunks, and the byte that makes the length even.
    let rest = |ds64: u64| 4 + ds64 + 8 + u64::from(format_len) + fact_len + 8 + bytes + bytes % 2;
    let small = u32::try_from(rest(0)).ok();
    let mut head = Vec::with_capacity(94);
    head.extend(if small.is_some() { b"RIFF" } else { b"RF64" });
    head.extend(small.unwrap_or(u32::MAX).to_le_bytes());
    head.extend(b"WAVE");
    if small.is_none() {
        head.extend(b"ds64");
        head.extend(28_u32.to_le_bytes());
        for length in [rest(36), bytes, bytes / frame] {
            head.extend(length.to_le_bytes());
        }
        head.extend(0_u32.to_le_bytes());
    }
    head.extend(b"fmt ");
    head.extend(format_len.to_le_bytes());
    head.extend(tag.to_le_bytes());
    head.extend(channels.to_le_bytes());
    head.extend(rate.to_le_bytes());
    // At most 48 kHz with two channels of 8 bytes.
    head.extend((rate * frame as u32).to_le_bytes());
    head.extend((frame as u16).to_le_bytes());
    head.extend((sample as u16 * 8).to_le_bytes());
    if tag != 1 {
        head.extend(0_u16.to_le_bytes());
        head.extend(b"fact");
        head.extend(4_u32.to_le_bytes());
        head.extend(u32::try_from(bytes / frame).unwrap_or(u32::MAX).to_le_bytes());
    }
    head.extend(b"data");
    let data = small.and_then(|_| u32::try_from(bytes).ok());
    head.extend(data.unwrap_or(u32::MAX).to_le_bytes());
    head
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn head_says_the_length_of_each_format() {
        let number = |head: &[u8], at: usize| u32::from_le_bytes(head[at..at + 4].try_into().unwrap());
        let pcm = head(Encoding::Signed16, 2, 24_000, 1_000);
        assert_eq!(pcm.len(), 44);
        assert_eq!((number(&pcm, 4), number(&pcm, 40)), (1_036, 1_000));
        assert_eq!(number(&pcm, 28), 96_000);
        // An odd number of bytes is followed by another one.
        let mu_law = head(Encoding::MuLaw, 1, 8_000, 1_001);
        assert_eq!(mu_law.len(), 58);
        assert_eq!((number(&mu_law, 4), number(&mu_law, 54)), (1_052, 1_001));
        assert_eq!(number(&mu_law, 46), 1_001);
    }

    #[test]
    fn head_of_more_than_four_gibibytes_is_that_of_rf64() {
        let bytes = 5 << 30;
        let head = head(Encoding::Float32, 2, 48_000, bytes);
        assert_eq!((&head[..4], &head[12..16]), (&b"RF64"[..], &b"ds64"[..]));
        let number = |at: usize| u64::from_le_bytes(head[at..at + 8].try_into().unwrap());
        assert_eq!(
            [number(20), number(28), number(36)],
            [bytes + head.len() as u64 - 8, bytes, bytes / 8]
        );
    }
}
