//! Models that transcribe audio while it comes: [`TranscriptStream`].

use std::any::Any;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};

use crate::context::TaskContext;
use crate::error::TaskError;
use crate::stage::Transcript;

/// The state of a realtime session with a model that transcribes audio while it comes. Made by
/// [`Engine::stream`](crate::Engine::stream).
///
/// The worker finds the utterances. It calls [`push`](Self::push) with their audio as it comes, a
/// tenth of a second or more at a time, and [`finish`](Self::finish) at their end. Then the next
/// utterance begins. Silence between them is not pushed.
///
/// Each call runs on an inference thread, between other tasks. It need not be the same one each
/// time, so the state must not refer to the model: it gets one with each call, which has the same
/// id but may have been loaded again. After an error or a panic the state is dropped, and a new one
/// gets the whole utterance once more.
pub trait TranscriptStream<M>: Send {
    /// Takes the next samples of the utterance, in the format of the engine. Returns the text of
    /// the utterance so far, or `None` if it has not changed.
    ///
    /// # Errors
    ///
    /// An error ends the partial transcripts of this utterance, and nothing else.
    fn push(
        &mut self,
        model: &mut M,
        samples: &[f32],
        cx: &TaskContext,
    ) -> Result<Option<Hypothesis>, TaskError>;

    /// The utterance has ended. Returns its transcript, with times from its first sample.
    ///
    /// # Errors
    ///
    /// An error loses the transcript of this utterance. The client is told, and the session goes
    /// on.
    fn finish(&mut self, model: &mut M, cx: &TaskContext) -> Result<Transcript, TaskError>;
}

/// The text of an utterance that has not ended.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Hypothesis {
    /// The text so far.
    pub text: String,
    /// How many characters at the start of the text will not change any more.
    pub stable: usize,
}

impl Hypothesis {
    /// A text of which everything may change.
    #[must_use]
    pub fn new(text: impl Into<String>) -> Self {
        Self {
            text: text.into(),
            stable: 0,
        }
    }

    /// Sets how many characters at the start will not change any more.
    #[must_use]
    pub fn stable(mut self, characters: usize) -> Self {
        self.stable = characters;
        self
    }
}

/// A call of the stream of a session, for an inference thread.
#[derive(Debug)]
pub(crate) struct StreamStep {
    pub(crate) state: StreamState,
    /// Whether the utterance ends with these samples.
    pub(crate) ends: bool,
}

/// A stream between two calls. Clones share it.
#[derive(Clone, Default)]
pub(crate) struct StreamState(Arc<Mutex<Option<Box<dyn Any + Send>>>>);

impl StreamState {
    /// Takes the stream out. `None` before the first call, and after a call that failed.
    pub(crate) fn take<M: 'static>(&self) -> Option<Box<dyn TranscriptStream<M>>> {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.take()?.downcast().ok().map(|stream| *stream)
    }

    pub(crate) fn keep<M: 'static>(&self, stream: Box<dyn TranscriptStream<M>>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(Box::new(stream));
    }
}

impl fmt::Debug for StreamState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StreamState").finish_non_exhaustive()
    }
}
