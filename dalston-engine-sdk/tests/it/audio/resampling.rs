//! Resampling.

use std::f64::consts::TAU;

use dalston_engine_sdk::audio::{AudioFormat, decode_file};

use super::{WavFile, decode, plain_samples, sample, samples, signal_to_noise};

/// A sweep from 50 Hz to `highest`, at a moment in seconds.
fn sweep(time: f64, length: f64, highest: f64) -> f64 {
    let lowest = 50.0;
    0.5 * (TAU * (lowest * time + (highest - lowest) * time * time / (2.0 * length))).sin()
}

fn wave(rate: u32, frames: usize, at: impl Fn(f64) -> f64) -> Vec<f32> {
    (0..frames)
        .map(|frame| at(frame as f64 / f64::from(rate)) as f32)
        .collect()
}

fn resampled(from: u32, to: u32, samples: &[f32]) -> Vec<f32> {
    let folder = tempfile::tempdir().unwrap();
    let path = WavFile::float32(from, 1, samples).write(&folder);
    let audio = decode_file(&path, AudioFormat::new(to, 1), folder.path()).unwrap();
    audio.read(..).unwrap().into_owned()
}

#[test]
fn a_sweep_keeps_its_shape_and_time_from_every_usual_rate() {
    for (from, to) in [
        (8_000, 16_000),
        (11_025, 16_000),
        (22_050, 16_000),
        (24_000, 16_000),
        (32_000, 16_000),
        (44_100, 16_000),
        (48_000, 16_000),
        (96_000, 16_000),
        (16_000, 44_100),
        (47_999, 16_000),
    ] {
        let length = 2.0;
        let highest = 0.45 * f64::from(u32::min(from, to));
        let input = wave(from, (length * f64::from(from)) as usize, |time| {
            sweep(time, length, highest)
        });
        let output = resampled(from, to, &input);
        let expected = wave(to, output.len(), |time| sweep(time, length, highest));
        // The ends of the sweep are cut off abruptly, which a band-limited signal can't be.
        let inside = 500..output.len() - 500;
        let ratio = signal_to_noise(&expected[inside.clone()], &output[inside]);
        // A shift by a hundredth of a sample would miss the first limit. Rates without a common
        // divisor need one very long transform in single precision.
        let least = if from == 47_999 { 70.0 } else { 80.0 };
        assert!(ratio > least, "{from} to {to} Hz: {ratio:.1} dB");
    }
}

#[test]
fn the_length_is_kept_to_the_nearest_sample() {
    for (from, to) in [
        (44_100, 16_000),
        (8_000, 16_000),
        (48_000, 16_000),
        (44_101, 16_000),
        (16_000, 48_000),
    ] {
        for frames in [1, 2, 3, 159, 160, 441, 1000, 4096, 44_100, 100_003] {
            let output = resampled(from, to, &vec![0.25; frames]);
            let exact = frames as f64 * f64::from(to) / f64::from(from);
            assert_eq!(
                output.len(),
                exact.round().max(1.0) as usize,
                "{frames} frames from {from} to {to} Hz"
            );
        }
    }
}

#[test]
fn the_end_is_kept_and_a_click_keeps_its_time() {
    let (from, to) = (44_100, 16_000);
    for at in [0, 1, 1000, 22_050, 44_000, 44_099] {
        let mut input = vec![0.0; 44_100];
        input[at] = 1.0;
        let output = resampled(from, to, &input);
        let loudest = (0..output.len())
            .max_by(|a, b| output[*a].abs().total_cmp(&output[*b].abs()))
            .unwrap();
        // The end of the input is behind the last sample of the output.
        let expected = (at as f64 * f64::from(to) / f64::from(from)).min(15_999.0);
        assert!(
            (loudest as f64 - expected).abs() <= 0.5,
            "a click at {at} came out at {loudest}, not {expected}"
        );
    }
}

#[test]
fn sound_above_half_the_new_rate_is_removed_without_aliasing() {
    for tone in [8_500.0, 10_000.0, 15_900.0, 20_000.0] {
        let input = wave(48_000, 48_000, |time| 0.5 * (TAU * tone * time).sin());
        let output = resampled(48_000, 16_000, &input);
        let inside = &output[1_000..15_000];
        let power: f64 = inside.iter().map(|s| f64::from(*s).powi(2)).sum::<f64>() / inside.len() as f64;
        let decibels = 10.0 * (power / 0.125).log10();
        assert!(decibels < -80.0, "{tone} Hz is still there with {decibels:.1} dB");
    }
}

#[test]
fn channels_are_mixed_down_to_their_mean() {
    let folder = tempfile::tempdir().unwrap();
    let frames: [[i16; 3]; 4] = [
        [300, 0, -300],
        [32_767, 32_767, 32_767],
        [3, 3, 0],
        [-32_768, 0, 0],
    ];
    let path = WavFile::pcm16(16_000, 3, frames.as_flattened()).write(&folder);
    let expected = frames.map(|frame| frame.iter().map(|s| f64::from(*s)).sum::<f64>() / 3.0 / 32_768.0);
    let audio = samples(&decode(&path));
    for (got, expected) in audio.iter().zip(expected) {
        assert!(
            (f64::from(*got) - expected).abs() < 1e-7,
            "{got} instead of {expected}"
        );
    }
    assert_eq!(audio.len(), 4);
}

#[test]
fn a_stereo_file_at_8_khz_becomes_the_mean_at_16_khz() {
    let path = sample("en_8k_stereo.wav");
    let plain = plain_samples(&path);
    let mean: Vec<f32> = plain
        .as_chunks::<2>()
        .0
        .iter()
        .map(|[l, r]| (f32::from(*l) + f32::from(*r)) / 65_536.0)
        .collect();
    let audio = samples(&decode(&path));
    assert_eq!(audio.len(), 2 * mean.len());
    // Every second sample is one of the original.
    let even: Vec<f32> = audio.iter().step_by(2).copied().collect();
    let ratio = signal_to_noise(&mean, &even);
    assert!(ratio > 40.0, "{ratio:.1} dB");
}
