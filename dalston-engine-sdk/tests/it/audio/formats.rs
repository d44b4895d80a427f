//! The supported formats.

use std::time::Duration;

use dalston_engine_sdk::audio::{AudioFormat, decode_file, probe};

use super::{best_shift, data, decode, plain_samples, sample, samples, signal_to_noise};

#[test]
fn sixteen_bit_mono_at_16_khz_is_bit_exact() {
    for name in [
        "en_one.wav",
        "en_eight.wav",
        "de_seven.wav",
        "noise_only_6s.wav",
        "en_long_75s.wav",
    ] {
        let path = sample(name);
        let expected: Vec<f32> = plain_samples(&path)
            .into_iter()
            .map(|s| f32::from(s) / 32_768.0)
            .collect();
        let audio = decode(&path);
        assert_eq!(samples(&audio), expected, "{name}");
        assert!(audio.warnings().is_empty());
    }
}

#[test]
fn every_shipped_sample_lasts_as_long_as_its_manifest_says() {
    let manifest = std::fs::read(sample("manifest.json")).unwrap();
    let manifest: serde_json::Value = serde_json::from_slice(&manifest).unwrap();
    let manifest = manifest.as_array().unwrap();
    assert_eq!(manifest.len(), 11);
    for entry in manifest {
        let name = entry["file"].as_str().unwrap();
        let duration = entry["duration"].as_f64().unwrap();
        let audio = decode(sample(name));
        assert!(
            (audio.duration().as_secs_f64() - duration).abs() < 0.005,
            "{name}: {audio:?}"
        );
        let info = probe(sample(name)).unwrap();
        assert_eq!(
            info.sample_rate,
            entry["sample_rate"].as_u64().map(|rate| rate as u32)
        );
        assert_eq!(
            info.channels,
            entry["channels"].as_u64().map(|count| count as usize)
        );
        assert!(info.duration.unwrap().abs_diff(audio.duration()) < Duration::from_millis(1));
        assert_eq!(
            (info.container.as_str(), info.codec.as_str()),
            ("WAV", "PCM, 16 bits")
        );
    }
}

#[test]
fn lossless_formats_give_the_same_samples() {
    let expected = samples(&decode(sample("en_one.wav")));
    for name in ["one.flac", "one_alac.m4a"] {
        let audio = decode(data(name));
        assert_eq!(samples(&audio), expected, "{name}");
        assert_eq!(audio.warnings(), &[] as &[String]);
    }
}

#[test]
fn lossy_formats_give_the_same_sound_at_the_same_time() {
    let original = samples(&decode(sample("en_one.wav")));
    for (name, least) in [
        ("one.ogg", 15.0),
        ("one_44k_stereo.mp3", 15.0),
        ("one_44k.m4a", 15.0),
    ] {
        let audio = decode(data(name));
        assert_eq!(audio.warnings(), &[] as &[String], "{name}");
        let decoded = samples(&audio);
        // Some formats do not mark the padding of the encoder at the end: at most one packet.
        let extra = decoded.len() as i64 - original.len() as i64;
        assert!(
            (-16..=400).contains(&extra),
            "{name} has {extra} samples more than the original"
        );
        assert_eq!(best_shift(&original, &decoded, 1000), 0, "{name} is shifted");
        let length = original.len().min(decoded.len());
        let ratio = signal_to_noise(&original[..length], &decoded[..length]);
        assert!(ratio > least, "{name}: {ratio:.1} dB");
    }
}

#[test]
fn telephone_codecs_in_wav_sound_like_the_original() {
    let original = samples(&decode(sample("en_one.wav")));
    for name in ["one_alaw.wav", "one_mulaw.wav"] {
        let decoded = samples(&decode(data(name)));
        let ratio = signal_to_noise(&original, &decoded);
        assert!(ratio > 30.0, "{name}: {ratio:.1} dB");
    }
}

#[test]
fn the_format_follows_from_the_content_of_a_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("talk.wav");
    std::fs::copy(data("one.ogg"), &path).unwrap();
    assert_eq!(samples(&decode(&path)), samples(&decode(data("one.ogg"))));
}

#[test]
fn the_header_gives_format_rate_and_duration() {
    for (name, container, codec, rate, channels) in [
        ("one.flac", "FLAC", "FLAC", 16_000, 1),
        ("one_44k_stereo.mp3", "MP3", "MP3", 44_100, 2),
        ("one.ogg", "OGG", "Vorbis", 16_000, 1),
        ("one_44k.m4a", "M4A", "AAC", 44_100, 1),
        ("one_alac.m4a", "M4A", "ALAC", 16_000, 1),
        ("one_alaw.wav", "WAV", "A-law", 16_000, 1),
    ] {
        let info = probe(data(name)).unwrap();
        assert_eq!(
            (info.container.as_str(), info.codec.as_str()),
            (container, codec),
            "{name}"
        );
        assert_eq!(
            (info.sample_rate, info.channels.unwrap_or(channels)),
            (Some(rate), channels),
            "{name}"
        );
        let duration = info.duration.unwrap_or_else(|| panic!("{name} has no duration"));
        assert!(
            (duration.as_secs_f64() - 0.96).abs() < 0.05,
            "{name}: {duration:?}"
        );
    }
}

#[test]
fn other_rates_and_more_channels_can_be_requested() {
    let format = AudioFormat::new(8_000, 2);
    let path = sample("en_8k_stereo.wav");
    let audio = decode_file(&path, format, &std::env::temp_dir()).unwrap();
    let expected: Vec<f32> = plain_samples(&path)
        .into_iter()
        .map(|s| f32::from(s) / 32_768.0)
        .collect();
    assert_eq!(
        samples(&audio),
        expected,
        "as many channels as asked for are left alone"
    );
    assert_eq!(audio.len() * 2, expected.len());

    let twice = decode_file(
        sample("en_one.wav"),
        AudioFormat::new(16_000, 2),
        &std::env::temp_dir(),
    )
    .unwrap();
    let once = samples(&decode(sample("en_one.wav")));
    let doubled: Vec<f32> = once.iter().flat_map(|sample| [*sample, *sample]).collect();
    assert_eq!(samples(&twice), doubled);
}

#[test]
fn any_part_can_be_read_up_to_the_end() {
    let audio = decode(sample("en_one.wav"));
    let all = samples(&audio);
    assert_eq!(&*audio.read(100..200).unwrap(), &all[100..200]);
    assert_eq!(&*audio.read(15_000..=99_999).unwrap(), &all[15_000..]);
    assert_eq!(audio.read(99_999..).unwrap().len(), 0);
    #[allow(clippy::reversed_empty_ranges)]
    let backwards = 200..100;
    assert_eq!(audio.read(backwards).unwrap().len(), 0);
    let pieces: Vec<f32> = audio
        .windows(1000)
        .flat_map(|piece| piece.unwrap().into_owned())
        .collect();
    assert_eq!(pieces, all);
    assert_eq!(audio.windows(1000).count(), all.len().div_ceil(1000));
}

/// A file once, and the same file twice, one after the other.
fn once_and_twice(name: &str, sample_rate: u32) -> (Vec<f32>, Vec<f32>) {
    let folder = tempfile::tempdir().unwrap();
    let bytes = std::fs::read(data(name)).unwrap();
    let twice = super::write(&folder, name, &[bytes.clone(), bytes].concat());
    let decoded = [data(name), twice].map(|path| {
        let audio = decode_file(path, AudioFormat::new(sample_rate, 1), folder.path()).unwrap();
        assert_eq!(audio.warnings(), &[] as &[String], "{name}");
        samples(&audio)
    });
    decoded.into()
}

#[test]
fn joined_files_are_decoded_to_the_end_of_the_last_one() {
    let (once, twice) = once_and_twice("one.ogg", 16_000);
    assert_eq!(twice, [once.clone(), once].concat());

    let (once, twice) = once_and_twice("one_44k_stereo.mp3", 44_100);
    // The padding of the encoder at both ends is between the two.
    let padding = twice.len() - 2 * once.len();
    assert!((1_000..3_000).contains(&padding), "{padding}");
    let second = &twice[twice.len() - once.len() - 2_000..];
    let shift = usize::try_from(best_shift(&once, second, 2_000)).unwrap();
    let second = &second[shift..];
    assert!(signal_to_noise(&once[2_000..40_000], &second[2_000..40_000]) > 40.0);
}

#[test]
fn an_mp3_without_a_length_keeps_its_end() {
    let audio = decode(data("vbr_no_header.mp3"));
    // Noise makes the first frames large, so the estimate of the length is too short: 1.656 s.
    assert!(audio.duration() >= Duration::from_millis(1_760), "{audio:?}");
    assert_eq!(audio.warnings(), &[] as &[String]);
    let original = samples(&decode(sample("en_one.wav")));
    let decoded = samples(&audio);
    let energy = |part: &[f32]| part.iter().map(|s| s * s).sum::<f32>();
    // The word ends 0.71 s after the 0.8 s of noise.
    let word = 12_800 + 11_360 - 1_600..12_800 + 11_360 + 1_200;
    let expected = energy(&original[word.start - 12_800..word.end - 12_800]);
    assert!(energy(&decoded[word]) > 0.5 * expected);
}
