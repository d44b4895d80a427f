//! Malformed and unsupported files: an error of one line each, never a panic.

use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use dalston_engine_sdk::audio::{AudioFormat, Decoder, decode_file, probe};

use super::{WavFile, data, sample, write};

const CODECS: &str = "which can't be decoded: expected PCM, FLAC, MP3, Vorbis, Opus, ALAC, or AAC-LC and HE-AAC with \
                      up to 2 channels; convert it, for example with ffmpeg -i INPUT -ac 1 OUTPUT.flac";

fn refusal(path: &Path) -> String {
    let error = Decoder::new(AudioFormat::MONO_16K)
        .name("talk.wav")
        .decode(path)
        .unwrap_err();
    let message = error.to_string();
    assert!(!message.contains('\n'), "{message}");
    message
}

fn refusal_of(bytes: &[u8]) -> String {
    let folder = tempfile::tempdir().unwrap();
    refusal(&write(&folder, "talk.wav", bytes))
}

#[test]
fn a_file_without_audio_is_refused_in_one_line() {
    let known = "expected WAV, AIFF, CAF, FLAC, MP3, Ogg, M4A, WebM or Matroska";
    let not_audio = format!("talk.wav is not an audio file of a known format: {known}");
    assert_eq!(refusal_of(b""), "talk.wav is empty");
    assert_eq!(
        refusal_of("Dear colleagues,\nplease find attached\n".repeat(200).as_bytes()),
        not_audio
    );
    assert_eq!(refusal_of(b"x"), not_audio);
    assert_eq!(refusal_of(&[0; 5000]), not_audio);
}

#[test]
fn missing_files_and_directories_have_different_errors() {
    let folder = tempfile::tempdir().unwrap();
    assert_eq!(
        refusal(folder.path()),
        "talk.wav is a directory: expected an audio file"
    );
    let missing = refusal(&folder.path().join("no.wav"));
    assert_eq!(
        missing,
        "talk.wav can't be read: No such file or directory (os error 2)"
    );
    // Not a regular file, and one without an end.
    assert_eq!(
        refusal(Path::new("/dev/zero")),
        "talk.wav can't be read: it is not a regular file"
    );
}

#[test]
fn the_name_in_an_error_is_the_given_path_on_one_line() {
    let error = decode_file("no/such\nfile.wav", AudioFormat::MONO_16K, &std::env::temp_dir()).unwrap_err();
    assert!(
        error
            .to_string()
            .starts_with("no/such\\nfile.wav can't be read: "),
        "{error}"
    );
    assert_eq!(error.code(), "unreadable_audio");
    assert!(error.is_permanent());
}

#[test]
fn an_impossible_wav_header_is_explained() {
    let good = WavFile::pcm16(16_000, 1, &[1; 1000]);
    let changed = |change: fn(&mut WavFile)| {
        let mut file = good.clone();
        change(&mut file);
        refusal_of(&file.bytes())
    };
    assert_eq!(
        changed(|f| f.channels = 0),
        "talk.wav has 0 channels: expected 1 to 64"
    );
    assert_eq!(
        changed(|f| f.channels = 65_535),
        "talk.wav has 65535 channels: expected 1 to 64"
    );
    let rate = "expected 1000 to 768000";
    assert_eq!(
        changed(|f| f.sample_rate = 0),
        format!("talk.wav has a sample rate of 0 Hz: {rate}")
    );
    assert_eq!(
        changed(|f| f.sample_rate = 4_000_000_000),
        format!("talk.wav has a sample rate of 4000000000 Hz: {rate}")
    );
    assert_eq!(
        changed(|f| f.bits = 0),
        format!("talk.wav holds samples of 0 bits, {CODECS}")
    );
    assert_eq!(
        changed(|f| f.bits = 65_535),
        format!("talk.wav holds samples of 65535 bits, {CODECS}")
    );
    assert_eq!(
        changed(|f| f.tag = 0x55),
        format!("talk.wav holds MP3 (0x0055), {CODECS}")
    );
    assert_eq!(
        changed(|f| f.tag = 0x1234),
        format!("talk.wav holds audio of the unknown kind 0x1234, {CODECS}")
    );
    assert_eq!(changed(|f| f.data.clear()), "talk.wav has no audio in it");
    assert_eq!(changed(|f| f.data.truncate(1)), "talk.wav has no audio in it");
}

#[test]
fn a_truncated_wav_header_is_explained() {
    let file = WavFile::pcm16(16_000, 1, &[1; 1000]).bytes();
    for length in [4, 11, 12, 20, 35, 40, 43] {
        assert_eq!(
            refusal_of(&file[..length]),
            "talk.wav ends inside its header",
            "{length} bytes"
        );
    }
    assert_eq!(refusal_of(&file[..44]), "talk.wav has no audio in it");
    // A chunk before the samples that claims 4 GiB.
    let mut huge = file.clone();
    huge.splice(36..36, [b"LIST".as_slice(), &u32::MAX.to_le_bytes()].concat());
    assert_eq!(refusal_of(&huge), "talk.wav ends inside its header");
    let mut swapped = file[..12].to_vec();
    swapped.extend(b"data\x04\0\0\0\0\0\0\0");
    assert_eq!(
        refusal_of(&swapped),
        "talk.wav is damaged: its data comes before its format"
    );
}

#[test]
fn unknown_codecs_are_named() {
    assert_eq!(
        refusal(&data("one_adpcm.wav")),
        format!("talk.wav holds IMA ADPCM (0x0011), {CODECS}")
    );
}

#[test]
fn impossible_samples_are_refused_with_their_time() {
    for (value, shown) in [
        (f32::NAN, "NaN"),
        (f32::INFINITY, "inf"),
        (-1e30, "-1000000000000000000000000000000"),
    ] {
        for rate in [16_000, 44_100] {
            let mut samples = vec![0.1; rate as usize * 2];
            samples[rate as usize / 2] = value;
            let message = refusal_of(&WavFile::float32(rate, 1, &samples).bytes());
            assert_eq!(
                message,
                format!("talk.wav has a sample of {shown} at 0.500 s: expected numbers from -1 to 1")
            );
        }
    }
}

#[test]
fn a_file_longer_than_allowed_is_refused() {
    let decoder = Decoder::new(AudioFormat::MONO_16K)
        .max_duration(Duration::from_secs(2))
        .name("talk.wav");
    let message = decoder.decode(sample("en_eight.wav")).unwrap_err().to_string();
    assert_eq!(message, "talk.wav is longer than the allowed 2 seconds");
    let day = Decoder::new(AudioFormat::MONO_16K).max_duration(Duration::from_secs(7200));
    assert!(day.decode(sample("en_eight.wav")).is_ok());
}

#[test]
fn decoding_stops_on_cancellation() {
    let mut asked = 0;
    let result = Decoder::new(AudioFormat::MONO_16K).decode_while(sample("en_long_75s.wav"), |done| {
        asked += 1;
        done < Duration::from_secs(10)
    });
    assert_eq!(result.unwrap_err().code(), "cancelled");
    assert!(asked > 5, "asked only {asked} times");
}

#[test]
fn a_missing_temporary_directory_is_named() {
    let decoder = Decoder::new(AudioFormat::MONO_16K)
        .temp_dir("/no/such/directory")
        .in_memory(Duration::ZERO);
    let error = decoder.name("talk.wav").decode(sample("en_one.wav")).unwrap_err();
    assert_eq!(error.code(), "audio_spool");
    let message = error.to_string();
    assert!(
        message.starts_with("talk.wav can't be decoded to a temporary file: No such file"),
        "{message}"
    );
}

#[test]
fn a_truncated_compressed_file_is_decoded_with_a_warning() {
    let folder = tempfile::tempdir().unwrap();
    for name in [
        "one.flac",
        "one_44k_stereo.mp3",
        "one.ogg",
        "one_44k.m4a",
        "one_alac.m4a",
    ] {
        let whole = std::fs::read(data(name)).unwrap();
        let path = write(&folder, name, &whole[..whole.len() * 3 / 4]);
        match decode_file(&path, AudioFormat::MONO_16K, folder.path()) {
            Ok(audio) => {
                assert!(audio.len() > 4_000 && audio.len() < 15_360, "{name}: {audio:?}");
                assert!(!audio.warnings().is_empty(), "{name} has no warning");
            }
            // The table of an M4A file is at its end.
            Err(error) => {
                assert!(name.ends_with("m4a"), "{error}");
                assert_eq!(error.code(), "unreadable_audio", "{error}");
            }
        }
    }
}

/// A small generator of pseudo-random numbers (xorshift), so that failures are reproducible.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % limit as u64) as usize
    }
}

#[test]
fn a_corrupted_file_is_decoded_or_refused_in_time() {
    let folder = tempfile::tempdir().unwrap();
    let mut files = vec![WavFile::float32(16_000, 2, &[0.5; 2000]).bytes()];
    for name in [
        "one.flac",
        "one_44k_stereo.mp3",
        "one.ogg",
        "one_44k.m4a",
        "one_alac.m4a",
        "one_opus.ogg",
        "one_alaw.wav",
    ] {
        files.push(std::fs::read(data(name)).unwrap());
    }
    let mut random = Random(0x5eed_0fa1_1000);
    for (index, original) in files.iter().enumerate() {
        for round in 0..60 {
            let mut bytes = original.clone();
            match round % 4 {
                0 => bytes.truncate(random.below(original.len())),
                1 => {
                    // Mostly in the header, which has lengths and tables.
                    for _ in 0..4 {
                        let at = random.below(bytes.len().min(600));
                        bytes[at] = [0, 0xff, 0x7f, random.below(256) as u8][random.below(4)];
                    }
                }
                2 => {
                    for _ in 0..30 {
                        let at = random.below(bytes.len());
                        bytes[at] ^= 1 << random.below(8);
                    }
                }
                _ => {
                    let start = random.below(bytes.len());
                    let end = (start + random.below(2000)).min(bytes.len());
                    bytes.drain(start..end);
                }
            }
            let path = folder.path().join("mutated");
            std::fs::File::create(&path).unwrap().write_all(&bytes).unwrap();
            let begun = Instant::now();
            match decode_file(&path, AudioFormat::MONO_16K, folder.path()) {
                Ok(audio) => {
                    let samples = audio.read(..).unwrap();
                    assert!(
                        samples.iter().all(|sample| sample.is_finite()),
                        "file {index}, round {round}"
                    );
                    assert!(
                        audio.duration() < Duration::from_secs(60),
                        "file {index}, round {round}: {audio:?}"
                    );
                }
                Err(error) => assert!(!error.to_string().contains('\n')),
            }
            let _ = probe(&path);
            assert!(
                begun.elapsed() < Duration::from_secs(60),
                "file {index}, round {round}: {:?}",
                begun.elapsed()
            );
        }
    }
}

#[test]
fn a_damaged_part_becomes_silence_of_the_same_length() {
    let folder = tempfile::tempdir().unwrap();
    // Symphonia skips the first two without an error, and the decoder refuses the last. After a
    // lost page of an OGG file, times are right again from the next page on.
    for (name, rate, at, silence) in [
        ("one.flac", 16_000, 9_000, 1_152),
        ("one.ogg", 16_000, 3_635, 1_792),
        ("one_44k.m4a", 44_100, 2_000, 1_024),
    ] {
        let format = AudioFormat::new(rate, 1);
        let whole = decode_file(data(name), format, folder.path()).unwrap();
        let whole = whole.read(..).unwrap();
        let mut bytes = std::fs::read(data(name)).unwrap();
        bytes[at..at + 60].fill(0x55);
        let hurt = decode_file(write(&folder, name, &bytes), format, folder.path()).unwrap();
        let seconds = f64::from(silence) / f64::from(rate);
        let warning = format!("1 damaged part was replaced by silence, {seconds:.3} s in total");
        assert_eq!(hurt.warnings(), [warning], "{name}");
        let hurt = hurt.read(..).unwrap();
        assert_eq!(hurt.len(), whole.len(), "{name}");
        let differ: Vec<usize> = (0..whole.len()).filter(|at| whole[*at] != hurt[*at]).collect();
        let (first, last) = (differ[0], differ[differ.len() - 1]);
        assert!(
            last - first < 2 * silence as usize + 512,
            "{name}: {first} to {last}"
        );
        assert_eq!(hurt[last + 1..], whole[last + 1..], "{name}");
    }
}
