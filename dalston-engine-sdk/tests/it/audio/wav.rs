//! WAV files as recorders, telephones and pipes write them.

use dalston_engine_sdk::audio::probe;

use super::{WavFile, decode, samples, write};

const SAMPLES: [i16; 6] = [0, 1, -1, 12_345, i16::MAX, i16::MIN];

fn expected() -> Vec<f32> {
    SAMPLES
        .iter()
        .map(|sample| f32::from(*sample) / 32_768.0)
        .collect()
}

fn decoded(file: &WavFile) -> Vec<f32> {
    let folder = tempfile::tempdir().unwrap();
    samples(&decode(file.write(&folder)))
}

#[test]
fn every_width_of_sample_has_the_same_scale() {
    let plain = WavFile::pcm16(16_000, 1, &SAMPLES);
    assert_eq!(decoded(&plain), expected());

    let mut wider = plain.clone();
    wider.bits = 24;
    wider.data = SAMPLES
        .iter()
        .flat_map(|s| (i32::from(*s) << 8).to_le_bytes()[..3].to_vec())
        .collect();
    assert_eq!(decoded(&wider), expected());

    wider.bits = 32;
    wider.data = SAMPLES
        .iter()
        .flat_map(|s| (i32::from(*s) << 16).to_le_bytes())
        .collect();
    assert_eq!(decoded(&wider), expected());

    wider.tag = 3;
    wider.data = expected().iter().flat_map(|s| s.to_le_bytes()).collect();
    assert_eq!(decoded(&wider), expected());

    wider.bits = 64;
    wider.data = expected()
        .iter()
        .flat_map(|s| f64::from(*s).to_le_bytes())
        .collect();
    assert_eq!(decoded(&wider), expected());

    let mut narrow = plain;
    narrow.bits = 8;
    narrow.data = vec![0, 64, 128, 192, 255];
    assert_eq!(decoded(&narrow), [-1.0, -0.5, 0.0, 0.5, 127.0 / 128.0]);
}

#[test]
fn unknown_chunks_are_skipped() {
    let mut file = WavFile::pcm16(16_000, 1, &SAMPLES);
    // An odd length, and therefore a byte of padding.
    file.between = [
        b"LIST".as_slice(),
        &5_u32.to_le_bytes(),
        b"INFOx\0",
        b"bext",
        &0_u32.to_le_bytes(),
    ]
    .concat();
    assert_eq!(decoded(&file), expected());
    file.data.extend(b"LIST\x04\0\0\0INFO");
    file.declared = Some(12);
    assert_eq!(decoded(&file), expected());
}

#[test]
fn an_unclosed_recording_is_read_to_its_end() {
    for declared in [0, u32::MAX, u32::MAX - 36, 0x7fff_ffff, 0x8000_0000] {
        let folder = tempfile::tempdir().unwrap();
        let mut file = WavFile::pcm16(16_000, 1, &SAMPLES);
        file.declared = Some(declared);
        let path = file.write(&folder);
        let audio = decode(&path);
        assert_eq!(samples(&audio), expected(), "{declared}");
        assert!(audio.warnings().is_empty(), "{:?}", audio.warnings());
        assert_eq!(probe(&path).unwrap().duration, Some(audio.duration()));
    }
}

#[test]
fn a_truncated_wav_file_is_decoded_with_a_warning() {
    let folder = tempfile::tempdir().unwrap();
    let second = vec![100_i16; 16_000];
    let mut file = WavFile::pcm16(16_000, 1, &second);
    file.declared = Some(64_000);
    // Half of the last sample is missing.
    file.data.pop();
    let audio = decode(file.write(&folder));
    assert_eq!(audio.len(), 15_999);
    let warning = "the file is cut off: it has 1.000 s of the 2.000 s that its header declares";
    assert_eq!(audio.warnings(), [warning]);
}

#[test]
fn extended_and_rf64_headers_are_read() {
    let plain = WavFile::pcm16(16_000, 1, &SAMPLES).bytes();
    let folder = tempfile::tempdir().unwrap();

    let sub_format = [1, 0, 0, 0, 0, 0, 0x10, 0, 0x80, 0, 0, 0xaa, 0, 0x38, 0x9b, 0x71];
    let extended = [
        &plain[..16],
        &40_u32.to_le_bytes(),
        &0xfffe_u16.to_le_bytes(),
        &plain[22..36],
        &[22, 0, 16, 0, 4, 0, 0, 0],
        &sub_format,
        &plain[36..],
    ];
    let path = write(&folder, "extended.wav", &extended.concat());
    assert_eq!(samples(&decode(path)), expected());

    let sizes = [100_u64.to_le_bytes(), 12_u64.to_le_bytes(), 6_u64.to_le_bytes()].concat();
    let long = [
        b"RF64\xff\xff\xff\xffWAVEds64",
        &28_u32.to_le_bytes()[..],
        &sizes,
        &[0; 4],
        &plain[12..40],
        &[0xff; 4],
        &plain[44..],
        // Not a part of the samples.
        b"LIST\x04\0\0\0INFO",
    ];
    let path = write(&folder, "long.wav", &long.concat());
    assert_eq!(samples(&decode(path)), expected());
}
