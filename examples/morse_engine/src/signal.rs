//! From samples to marks.

use dalston_engine_sdk::audio::Audio;
use dalston_engine_sdk::{TaskContext, TaskError};

/// The length of a piece of audio that is a part of a mark, or of a gap.
const PIECE_SECONDS: f64 = 0.01;
/// The mean square of the samples of a mark.
const LOUD: f32 = 0.01;

/// A tone, in seconds of the audio.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Mark {
    pub(crate) start: f64,
    pub(crate) end: f64,
}

/// The tones of a recording. Long recordings are read piece by piece, never as a whole.
pub(crate) fn marks(audio: &Audio, cx: &TaskContext) -> Result<Vec<Mark>, TaskError> {
    let piece = (f64::from(audio.sample_rate()) * PIECE_SECONDS) as usize;
    let length = audio.len().max(1) as f64;
    let mut marks: Vec<Mark> = Vec::new();
    let mut is_loud = false;
    for (index, samples) in audio.windows(piece).enumerate() {
        if index % 1_000 == 0 {
            cx.check_cancelled()?;
            cx.progress((index as f64 * piece as f64 / length) as f32);
        }
        let samples = samples?;
        let power = samples.iter().map(|sample| sample * sample).sum::<f32>() / samples.len() as f32;
        let start = index as f64 * PIECE_SECONDS;
        let end = start + PIECE_SECONDS;
        match (power > LOUD, is_loud, marks.last_mut()) {
            (true, true, Some(mark)) => mark.end = end,
            (true, _, _) => marks.push(Mark { start, end }),
            (false, _, _) => {}
        }
        is_loud = power > LOUD;
    }
    Ok(marks)
}
