//! Files as recorders, browsers and broken transfers leave them.

use std::path::PathBuf;

use dalston_engine_sdk::audio::{Audio, AudioErrorKind, AudioFormat, decode_file, probe};

use super::containers::{aiff, caf, movie_with_opus};
use super::{WavFile, best_shift, data, decode, plain_samples, sample, samples, signal_to_noise, write};

const NONE: &[String] = &[];

/// How much the audio is like a sample of the Whisper example, in decibels, wherever it begins in
/// the first 100 ms.
fn likeness(audio: &Audio, name: &str) -> f64 {
    let original = samples(&decode(sample(name)));
    let decoded = samples(audio);
    let middle = 4_000..original.len() - 4_000;
    let shift = best_shift(&original[4_000..9_000], &decoded[4_000..12_000], 1_600);
    let start = usize::try_from(4_000 + shift).unwrap();
    signal_to_noise(&original[middle.clone()], &decoded[start..start + middle.len()])
}

fn refusal_of(bytes: &[u8]) -> String {
    let folder = tempfile::tempdir().unwrap();
    let path = write(&folder, "talk", bytes);
    let error = decode_file(path, AudioFormat::MONO_16K, folder.path()).unwrap_err();
    assert!(error.is_permanent());
    error.kind().to_string()
}

#[test]
fn opus_is_decoded_from_ogg_webm_and_m4a() {
    let folder = tempfile::tempdir().unwrap();
    let ogg = std::fs::read(data("one_opus.ogg")).unwrap();
    let movie = write(&folder, "one.m4a", &movie_with_opus(&ogg));
    for (path, name, least) in [
        (data("one_opus.ogg"), "en_one.wav", 8.0),
        (movie, "en_one.wav", 8.0),
        (data("eight_mediarecorder.webm"), "en_eight.wav", 25.0),
    ] {
        let audio = decode(&path);
        assert_eq!(audio.warnings(), NONE, "{path:?}");
        let original = decode(sample(name));
        assert!(audio.len().abs_diff(original.len()) < 400, "{path:?}: {audio:?}");
        let shift = best_shift(&samples(&original)[4_000..9_000], &samples(&audio)[4_000..], 100);
        assert!(shift.abs() <= 1, "{path:?} is shifted by {shift}");
        let ratio = likeness(&audio, name);
        assert!(ratio > least, "{path:?}: {ratio:.1} dB");
    }
    let info = probe(data("eight_mediarecorder.webm")).unwrap();
    assert_eq!((&*info.container, &*info.codec), ("Matroska", "Opus"));
}

#[test]
fn a_webm_file_that_was_cut_off_has_a_warning() {
    let folder = tempfile::tempdir().unwrap();
    let mut whole = std::fs::read(data("eight_mediarecorder.webm")).unwrap();
    // The sizes of the clusters, too, may be unknown.
    for is_live in [false, true] {
        let clusters = whole.windows(4).enumerate();
        let clusters = clusters.filter(|(_, id)| *id == [0x1f, 0x43, 0xb6, 0x75]);
        let clusters: Vec<usize> = clusters.map(|(at, _)| at + 4).collect();
        assert!(!clusters.is_empty());
        for at in clusters.into_iter().filter(|_| is_live) {
            let length = whole[at].leading_zeros() as usize + 1;
            whole[at] |= (0x80 >> (length - 1)) - 1;
            whole[at + 1..at + length].fill(0xff);
        }
        let audio = decode(write(&folder, "whole.webm", &whole));
        assert_eq!(audio.warnings(), NONE, "{is_live}");
        let audio = decode(write(&folder, "cut.webm", &whole[..whole.len() / 2]));
        assert!(audio.duration().as_secs_f64() > 1.0, "{audio:?}");
        let warning = "the file is cut off: it ends in the middle of its audio";
        assert_eq!(audio.warnings(), [warning], "{is_live}");
    }
}

#[test]
fn joined_mp3s_of_different_shapes_are_decoded_to_the_end() {
    let folder = tempfile::tempdir().unwrap();
    let parts = ["one_44k_stereo.mp3", "vbr_no_header.mp3"];
    for order in [[0, 1], [1, 0]] {
        let bytes = order
            .map(|part| std::fs::read(data(parts[part])).unwrap())
            .concat();
        let audio = decode(write(&folder, "joined.mp3", &bytes));
        assert_eq!(audio.warnings(), NONE);
        let [first, second] = order.map(|part| samples(&decode(data(parts[part]))));
        let joined = samples(&audio);
        // The padding of the encoders is between the two.
        let padding = joined.len() - first.len() - second.len();
        assert!(padding < 2_000, "{order:?}: {padding}");
        let length = first.len() - 2_000;
        assert!(signal_to_noise(&first[..length], &joined[..length]) > 40.0);
        let second = &second[2_000..second.len() - 2_000];
        let rest = &joined[first.len()..];
        let shift = usize::try_from(best_shift(&second[..5_000], rest, 4_000)).unwrap();
        let ratio = signal_to_noise(second, &rest[shift..shift + second.len()]);
        // The second part begins at any fraction of a sample.
        assert!(ratio > 8.0, "{order:?}: {ratio:.1} dB");
    }
}

#[test]
fn a_damaged_mp3_frame_becomes_silence_of_its_own_length() {
    let folder = tempfile::tempdir().unwrap();
    let whole = std::fs::read(data("one_44k_stereo.mp3")).unwrap();
    let once = decode(data("one_44k_stereo.mp3"));
    let join = whole.len();
    let mut bytes = [whole.clone(), whole].concat();
    // The header of a frame far behind the length in the first header becomes one of a mono file.
    let is_header = |at: &usize| bytes[*at..].starts_with(&[0xff, 0xfb]);
    let frame = (join + 4_000..bytes.len()).find(is_header).unwrap();
    bytes[frame + 3] |= 0xc0;
    let audio = decode(write(&folder, "joined.mp3", &bytes));
    assert_eq!(
        audio.warnings(),
        ["1 damaged part was replaced by silence, 0.026 s in total"]
    );
    let surplus = audio.len() - 2 * once.len();
    assert!(surplus < 1_200, "{surplus}");
}

#[test]
fn a_tag_with_megabytes_before_an_mp3_is_skipped() {
    let folder = tempfile::tempdir().unwrap();
    let plain = std::fs::read(data("vbr_no_header.mp3")).unwrap();
    let expected = samples(&decode(data("vbr_no_header.mp3")));
    let size: u32 = 1_200_000;
    let parts = [21, 14, 7, 0].map(|shift| ((size >> shift) & 0x7f) as u8);
    let tag = [b"ID3\x03\0\0".as_slice(), &parts, &vec![0xff; size as usize]].concat();
    for tags in [tag.clone(), [tag.clone(), tag.clone()].concat()] {
        let audio = decode(write(&folder, "tagged.mp3", &[tags, plain.clone()].concat()));
        assert_eq!(samples(&audio), expected);
    }
    assert_eq!(refusal_of(&tag[..1_000_000]), "ends inside its header");
    assert_eq!(refusal_of(&tag), "ends inside its header");
}

#[test]
fn aiff_and_caf_give_the_samples_of_the_wav() {
    let folder = tempfile::tempdir().unwrap();
    let original = plain_samples(&sample("en_one.wav"));
    let expected = samples(&decode(sample("en_one.wav")));
    for (bytes, container) in [(aiff(&original), "AIFF"), (caf(&original), "CAF")] {
        let path = write(&folder, "one", &bytes);
        let audio = decode(&path);
        assert_eq!(samples(&audio), expected, "{container}");
        assert_eq!(audio.warnings(), NONE, "{container}");
        assert_eq!(probe(&path).unwrap().container, container);
    }
}

#[test]
fn a_format_that_is_not_read_is_named() {
    let stream: Vec<u8> = (0..3_000)
        .map(|at| if at % 188 == 0 { 0x47 } else { 0xff })
        .collect();
    // The frames of AAC in a transport stream must not be taken for a file of AAC.
    let advice = "which can't be decoded: convert it, for example with ffmpeg -i INPUT OUTPUT.flac";
    for (bytes, name) in [
        (&stream[..], "an MPEG transport stream"),
        (&stream[100..], "an MPEG transport stream"),
        (b"#!AMR\n\x3c\x08\x50", "an AMR recording"),
        (
            b"\x30\x26\xb2\x75\x8e\x66\xcf\x11\xa6\xd9",
            "a Windows Media file",
        ),
        (b"RIFF\x24\0\0\0AVI LIST", "an AVI film"),
        (b"FLV\x01\x05\0\0\0\x09", "a Flash video"),
        (b".snd\0\0\0\x18", "an AU file"),
    ] {
        assert_eq!(refusal_of(bytes), format!("is {name}, {advice}"));
    }
    for (bytes, name) in [
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0".as_slice(),
            "a Git LFS pointer, whose content was not fetched",
        ),
        (b"\n<!DOCTYPE html><title>404</title>", "a web page"),
        (b"PK\x03\x04\x14\0", "a ZIP archive"),
        (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "a picture"),
    ] {
        let expected = "expected WAV, AIFF, CAF, FLAC, MP3, Ogg, M4A, WebM or Matroska";
        assert_eq!(
            refusal_of(bytes),
            format!("is {name}, not an audio file: {expected}")
        );
    }
}

#[test]
fn frames_of_mp3_inside_of_another_file_are_not_read() {
    let folder = tempfile::tempdir().unwrap();
    let frames = std::fs::read(data("vbr_no_header.mp3")).unwrap();
    // Some frames at a time, as a film has them.
    let mixed: Vec<u8> = frames
        .chunks(700)
        .flat_map(|part| [b"01wb\0\0\0\0", part].concat())
        .collect();
    let path = write(&folder, "film", &[&[0; 5_000], &mixed[..]].concat());
    let error = decode_file(path, AudioFormat::MONO_16K, folder.path()).unwrap_err();
    assert!(matches!(error.kind(), AudioErrorKind::NotAudio), "{error}");
    // A recorded broadcast begins inside of a frame.
    let path = write(&folder, "broadcast", &frames[100..]);
    assert!(decode(path).duration().as_secs_f64() > 1.7);
}

#[test]
fn the_core_of_he_aac_is_decoded() {
    let audio = decode(data("eight_he_aac.m4a"));
    assert_eq!(audio.warnings(), NONE);
    assert!((audio.duration().as_secs_f64() - 3.41).abs() < 0.15, "{audio:?}");
    assert!(likeness(&audio, "en_eight.wav") > 9.0);
    let info = probe(data("eight_he_aac.m4a")).unwrap();
    assert_eq!(info.sample_rate, Some(22_050));
}

#[test]
fn the_begin_of_an_m4a_that_was_cut_off_is_decoded() {
    let audio = decode(data("eight_truncated.m4a"));
    let length = audio.len();
    assert!((30_000..32_000).contains(&length), "{audio:?}");
    let expected = "the file is cut off: it has 1.984 s of the 3.410 s that its header declares";
    assert_eq!(audio.warnings(), [expected]);
    let original = samples(&decode(sample("en_eight.wav")));
    assert!(signal_to_noise(&original[..length - 1_024], &samples(&audio)[..length - 1_024]) > 15.0);

    // The table of contents of this one is at its end.
    let whole = std::fs::read(data("one_44k.m4a")).unwrap();
    let cut = refusal_of(&whole[..whole.len() / 2]);
    assert!(
        cut.starts_with("is damaged: it ends before its table of contents"),
        "{cut}"
    );
}

#[test]
fn the_track_that_a_movie_plays_by_default_is_decoded() {
    let audio = decode(data("eight_second_of_two_tracks.m4a"));
    assert!(likeness(&audio, "en_eight.wav") > 25.0);
}

#[test]
fn a_damaged_first_page_of_ogg_becomes_silence() {
    let folder = tempfile::tempdir().unwrap();
    let whole = std::fs::read(data("one.ogg")).unwrap();
    let pages: Vec<usize> = (0..whole.len())
        .filter(|at| whole[*at..].starts_with(b"OggS"))
        .collect();
    let original = samples(&decode(data("one.ogg")));
    let mut bytes = whole.clone();
    bytes[pages[3] - 1] ^= 0x10;
    let audio = decode(write(&folder, "hurt.ogg", &bytes));
    let decoded = samples(&audio);
    assert_eq!(decoded.len(), original.len());
    assert_eq!(
        audio.warnings(),
        ["1 damaged part was replaced by silence, 0.120 s in total"]
    );
    let silence = 1_920;
    assert!(decoded[..silence].iter().all(|sample| *sample == 0.0));
    // The first packet behind it overlaps the lost one.
    let differ = (silence + 1_024..original.len()).find(|at| decoded[*at] != original[*at]);
    assert_eq!(differ, None);

    let mut bytes = whole;
    bytes[pages[1] + 400] ^= 0x10;
    assert_eq!(refusal_of(&bytes), "is damaged: a page of its header");
}

#[test]
fn channels_of_opposite_phase_are_not_silent() {
    let folder = tempfile::tempdir().unwrap();
    let mono = plain_samples(&sample("en_eight.wav"));
    let stereo: Vec<i16> = mono.iter().flat_map(|s| [*s / 2, s.saturating_neg()]).collect();
    let audio = decode(WavFile::pcm16(16_000, 2, &stereo).write(&folder));
    let decoded = samples(&audio);
    assert!(
        audio.warnings()[0].starts_with("its channels cancel each other (opposite phase): for 3.4"),
        "{audio:?}"
    );
    let original: Vec<f32> = mono.iter().map(|s| -f32::from(*s) / 32_768.0).collect();
    assert!(signal_to_noise(&original, &decoded) > 60.0);
    // One channel alone, and the same in both, are mixed.
    for right in [0, 1] {
        let stereo: Vec<i16> = mono.iter().flat_map(|s| [*s, *s * right]).collect();
        let audio = decode(WavFile::pcm16(16_000, 2, &stereo).write(&folder));
        assert_eq!(audio.warnings(), NONE);
        let factor = f32::from(1 + right) / 2.0;
        let expected: Vec<f32> = mono.iter().map(|s| f32::from(*s) / 32_768.0 * factor).collect();
        assert_eq!(samples(&audio), expected);
    }
}

#[test]
fn samples_in_wider_blocks_are_read_from_either_end() {
    let folder = tempfile::tempdir().unwrap();
    let original = plain_samples(&sample("en_one.wav"));
    let expected = samples(&decode(sample("en_one.wav")));
    let wide = |bytes: fn(i16) -> [u8; 4], block: u16| -> PathBuf {
        let mut file = WavFile::pcm16(16_000, 1, &[]);
        file.data = original.iter().flat_map(|s| bytes(*s)).collect();
        file.bits = 24;
        let mut bytes = file.bytes();
        bytes[32..34].copy_from_slice(&block.to_le_bytes());
        write(&folder, "wide.wav", &bytes)
    };
    let upper = decode(wide(|s| (i32::from(s) << 16).to_le_bytes(), 4));
    assert_eq!(samples(&upper), expected);
    // The lowest bit shows that the lower bytes are used.
    let lower = decode(wide(|s| ((i32::from(s) << 8) | 1).to_le_bytes(), 4));
    assert!(signal_to_noise(&expected, &samples(&lower)) > 60.0);
    let path = wide(|s| (i32::from(s) << 16).to_le_bytes(), 2);
    let error = decode_file(path, AudioFormat::MONO_16K, folder.path()).unwrap_err();
    assert_eq!(
        error.kind().to_string(),
        "is damaged: its blocks of 2 bytes don't fit 1 channels of 24 bits"
    );
}
