//! The configuration of AAC. Symphonia decodes AAC-LC with one or two channels.

/// The part of a configuration that Symphonia can decode, or the reason against it.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Aac {
    /// AAC-LC, which needs no change.
    Plain,
    /// HE-AAC: the AAC-LC inside, which has half the sample rate, and its configuration.
    Core { sample_rate: u32, config: [u8; 2] },
    /// What it is instead.
    Unsupported(String),
}

impl Aac {
    /// Reads the configuration in the header of a file.
    pub(super) fn read(config: &[u8]) -> Self {
        let mut bits = Bits(config, 0);
        Self::inside(&mut bits).unwrap_or_else(|| Self::Unsupported("AAC with a malformed header".to_owned()))
    }

    fn inside(bits: &mut Bits<'_>) -> Option<Self> {
        let kind = bits.object_type()?;
        let rate = bits.sample_rate()?;
        let channels = bits.take(4)?;
        let is_efficient = kind == SBR || kind == PS;
        let core = if is_efficient {
            bits.sample_rate()?;
            bits.object_type()?
        } else {
            kind
        };
        if core != LC {
            return Some(Self::Unsupported(name(kind)));
        }
        match channels {
            0 => return Some(Self::Unsupported("AAC with channels of its own order".to_owned())),
            1 | 2 => {}
            7 => return Some(Self::Unsupported("AAC with 8 channels".to_owned())),
            count => return Some(Self::Unsupported(format!("AAC with {count} channels"))),
        }
        if bits.take(1)? == 1 {
            return Some(Self::Unsupported("AAC with 960 samples in a frame".to_owned()));
        }
        // Bits behind the configuration announce HE-AAC to decoders that know it.
        if !is_efficient && bits.0.len() <= 2 {
            return Some(Self::Plain);
        }
        let index = RATES.iter().position(|known| *known == rate)? as u8;
        let config = [
            ((LC as u8) << 3) | (index >> 1),
            (index << 7) | ((channels as u8) << 3),
        ];
        Some(Self::Core {
            sample_rate: rate,
            config,
        })
    }
}

const LC: u32 = 2;
const SBR: u32 = 5;
const PS: u32 = 29;

fn name(object_type: u32) -> String {
    match object_type {
        1 => "AAC Main".to_owned(),
        3 => "AAC SSR".to_owned(),
        4 => "AAC LTP".to_owned(),
        SBR | PS => "HE-AAC of an unknown kind".to_owned(),
        23 => "AAC-LD".to_owned(),
        39 => "AAC-ELD".to_owned(),
        42 => "xHE-AAC (USAC)".to_owned(),
        other => format!("MPEG-4 audio of the kind {other}"),
    }
}

const RATES: [u32; 13] = [
    96_000, 88_200, 64_000, 48_000, 44_100, 32_000, 24_000, 22_050, 16_000, 12_000, 11_025, 8_000, 7_350,
];

/// Bits, the highest first.
struct Bits<'a>(&'a [u8], usize);

impl Bits<'_> {
    fn take(&mut self, count: usize) -> Option<u32> {
        (0..count).try_fold(0, |value, _| {
            let byte = *self.0.get(self.1 / 8)?;
            let bit = (byte >> (7 - self.1 % 8)) & 1;
            self.1 += 1;
            Some((value << 1) | u32::from(bit))
        })
    }

    fn object_type(&mut self) -> Option<u32> {
        match self.take(5)? {
            31 => Some(32 + self.take(6)?),
            kind => Some(kind),
        }
    }

    fn sample_rate(&mut self) -> Option<u32> {
        match self.take(4)? {
            15 => self.take(24),
            index => RATES.get(index as usize).copied(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bits of a configuration, as `value:count`.
    fn config(fields: &[(u32, usize)]) -> Vec<u8> {
        let bits: Vec<u8> = fields
            .iter()
            .flat_map(|(value, count)| (0..*count).rev().map(move |bit| (value >> bit) as u8 & 1))
            .collect();
        bits.chunks(8)
            .map(|byte| {
                byte.iter()
                    .enumerate()
                    .fold(0, |sum, (at, bit)| sum | (bit << (7 - at)))
            })
            .collect()
    }

    #[test]
    fn aac_lc_needs_no_change() {
        assert_eq!(Aac::read(&config(&[(2, 5), (4, 4), (2, 4), (0, 3)])), Aac::Plain);
    }

    #[test]
    fn the_core_of_he_aac_is_aac_lc() {
        // 22.05 kHz below 44.1 kHz, without and with a parametric stereo channel.
        for kind in [5, 29] {
            let whole = config(&[(kind, 5), (7, 4), (1, 4), (4, 4), (2, 5), (0, 3)]);
            let expected = Aac::Core {
                sample_rate: 22_050,
                config: [0x13, 0x88],
            };
            assert_eq!(Aac::read(&whole), expected);
            assert_eq!(Aac::read(&[0x13, 0x88]), Aac::Plain);
        }
        // Announced behind the configuration.
        let behind = config(&[
            (2, 5),
            (7, 4),
            (1, 4),
            (0, 3),
            (0x2b7, 11),
            (5, 5),
            (1, 1),
            (4, 4),
        ]);
        assert!(matches!(
            Aac::read(&behind),
            Aac::Core {
                sample_rate: 22_050,
                ..
            }
        ));
    }

    #[test]
    fn what_can_not_be_decoded_is_named() {
        let name = |fields: &[(u32, usize)]| match Aac::read(&config(fields)) {
            Aac::Unsupported(name) => name,
            other => panic!("{other:?}"),
        };
        assert_eq!(name(&[(2, 5), (3, 4), (6, 4), (0, 3)]), "AAC with 6 channels");
        assert_eq!(name(&[(2, 5), (3, 4), (7, 4), (0, 3)]), "AAC with 8 channels");
        assert_eq!(
            name(&[(31, 5), (10, 6), (3, 4), (2, 4), (0, 3)]),
            "xHE-AAC (USAC)"
        );
        assert_eq!(name(&[(31, 5), (7, 6), (3, 4), (2, 4), (0, 3)]), "AAC-ELD");
        assert_eq!(name(&[(2, 5)]), "AAC with a malformed header");
    }
}
