//! The task of the decoder: [`Task`].

/// The task of the decoder.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Task {
    /// Writes the spoken words.
    #[default]
    Transcribe,
    /// Translates to English.
    Translate,
}
