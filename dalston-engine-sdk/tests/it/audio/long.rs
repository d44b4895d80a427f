//! Recordings of hours.

use std::io::Write;
use std::time::Duration;

use dalston_engine_sdk::audio::{AudioFormat, Decoder};

use super::{WavFile, sample, samples};

#[test]
fn long_audio_reads_back_from_its_temporary_file_exactly() {
    let folder = tempfile::tempdir().unwrap();
    let path = sample("en_long_75s.wav");
    let decoder = Decoder::new(AudioFormat::MONO_16K).temp_dir(folder.path());
    let kept = decoder.decode(&path).unwrap();
    let spooled = decoder.in_memory(Duration::from_secs(10)).decode(&path).unwrap();
    assert!(kept.in_memory().is_some() && spooled.in_memory().is_none());
    assert_eq!(spooled.len(), kept.len());
    let all = samples(&kept);
    assert_eq!(samples(&spooled), all);
    assert_eq!(&*spooled.read(700_001..700_003).unwrap(), &all[700_001..700_003]);
    assert_eq!(spooled.read(1_199_999..9_999_999).unwrap().len(), 1);

    let other = spooled.clone();
    let reader = std::thread::spawn(move || other.read(0..480_000).unwrap().into_owned());
    let here = spooled.read(480_000..960_000).unwrap().into_owned();
    assert_eq!([reader.join().unwrap(), here].concat(), all[..960_000]);

    assert_eq!(
        std::fs::read_dir(folder.path()).unwrap().count(),
        0,
        "the temporary file has no name to be left behind"
    );
}

#[test]
fn silence_between_sounds_survives_the_temporary_file() {
    let folder = tempfile::tempdir().unwrap();
    let mut wave = vec![0_i16; 16_000 * 20];
    for at in [0, 99_999, 200_000] {
        wave[at] = 1000;
    }
    let path = WavFile::pcm16(16_000, 1, &wave).write(&folder);
    let audio = Decoder::new(AudioFormat::MONO_16K)
        .in_memory(Duration::from_secs(1))
        .decode(path)
        .unwrap();
    let expected: Vec<f32> = wave.iter().map(|sample| f32::from(*sample) / 32_768.0).collect();
    assert_eq!(samples(&audio), expected);
}

/// Ten hours of silence take no room on the disk: 290 MB of WAV and 580 MB of samples. At 4 kHz the
/// test takes seconds even without optimisation.
#[cfg(target_os = "linux")]
#[test]
fn ten_hours_of_silence_need_little_memory_and_disk() {
    const RATE: u32 = 4_000;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("night.wav");
    let frames = 10 * 3600 * RATE;
    let mut wav = WavFile::pcm16(RATE, 1, &[]);
    wav.declared = Some(frames * 2);
    let mut file = std::fs::File::create(&path).unwrap();
    file.write_all(&wav.header()).unwrap();
    file.set_len(44 + u64::from(frames) * 2).unwrap();

    let before = resident_bytes();
    let mut most = before;
    let decoder = Decoder::new(AudioFormat::new(RATE, 1)).temp_dir(folder.path());
    let audio = decoder
        .decode_while(&path, |_| {
            most = most.max(resident_bytes());
            true
        })
        .unwrap();
    assert_eq!(audio.duration(), Duration::from_secs(36_000));
    let last = audio.read(audio.len() - 4_000..).unwrap();
    assert!(last.iter().all(|sample| *sample == 0.0));
    // Ten minutes stay in memory before the file is used: 10 MB. Other tests run in the same
    // process.
    let grown = most.saturating_sub(before);
    assert!(grown < 200 << 20, "{} MiB more than before", grown >> 20);
}

#[cfg(target_os = "linux")]
fn resident_bytes() -> u64 {
    let pages = std::fs::read_to_string("/proc/self/statm").unwrap();
    pages.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * 4096
}
