//! The slot of a task's main input: [`input_slot`].

use super::name::Stage;

/// The slot of the main input: `audio` for the stages with audio, else `input`.
#[must_use]
pub fn input_slot(stage: &Stage) -> &'static str {
    match stage {
        Stage::PiiDetect | Stage::Other(_) => "input",
        _ => "audio",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_stages_with_audio_have_an_audio_slot() {
        assert_eq!(input_slot(&Stage::Transcribe), "audio");
        assert_eq!(input_slot(&"count".parse().unwrap()), "input");
    }
}
