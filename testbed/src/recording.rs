//! Recordings for tests.

/// A stereo WAV file of 8 kHz with a tone on each channel.
#[must_use]
pub fn stereo_recording(seconds: u32) -> Vec<u8> {
    const RATE: u32 = 8_000;
    let frames = RATE * seconds;
    let tone = |frame: u32, hertz: f32| {
        let phase = frame as f32 / RATE as f32 * hertz * std::f32::consts::TAU;
        (phase.sin() * 8_000.0) as i16
    };
    let samples = (0..frames).flat_map(|frame| [tone(frame, 440.0), tone(frame, 220.0)]);
    let data: Vec<u8> = samples.flat_map(i16::to_le_bytes).collect();
    let mut file = Vec::new();
    file.extend_from_slice(b"RIFF");
    file.extend_from_slice(&(36 + data.len() as u32).to_le_bytes());
    file.extend_from_slice(b"WAVEfmt \x10\0\0\0\x01\0\x02\0");
    file.extend_from_slice(&RATE.to_le_bytes());
    file.extend_from_slice(&(RATE * 4).to_le_bytes());
    file.extend_from_slice(b"\x04\0\x10\0data");
    file.extend_from_slice(&(data.len() as u32).to_le_bytes());
    file.extend_from_slice(&data);
    file
}
