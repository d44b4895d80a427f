//! The names of a realtime worker's spans and of their attributes.

/// Names of spans.
pub mod span {
    use crate::services::names::names;

    names! {
        /// A session, from its first to its last message. Its parent is the span that the client
        /// sends.
        pub const SESSION: &str = "realtime.session";
        /// The start of a session, below its span. It shows a session whose worker was killed.
        pub const SESSION_BEGIN: &str = "realtime.session.begin";
        /// The processing of a chunk of audio: one in so many, the first one, and each that took
        /// longer than its audio.
        pub const PROCESS_AUDIO_CHUNK: &str = "process_audio_chunk";
        /// The end of an utterance was found.
        pub const VAD_ENDPOINT: &str = "vad_endpoint";
        /// The generation of a partial or final transcript, with the spans of the engine below it.
        pub const GENERATE_TRANSCRIPT: &str = "generate_transcript";
        /// The end of a session: its last transcripts and messages.
        pub const SESSION_CLOSE: &str = "session_close";
    }

    /// `realtime.chunk.inference`, the name of [`PROCESS_AUDIO_CHUNK`] on the live platform.
    pub const LIVE_PROCESS_AUDIO_CHUNK: &str = "realtime.chunk.inference";
    /// `realtime.vad.endpoint`, the name of [`VAD_ENDPOINT`] on the live platform.
    pub const LIVE_VAD_ENDPOINT: &str = "realtime.vad.endpoint";
}

/// Names of attributes.
pub mod attr {
    use crate::services::names::names;

    names! {
        /// The number of a chunk in its session, from 0.
        pub const CHUNK_INDEX: &str = "dalston.chunk_index";
        /// The time from the arrival of a chunk to the end of its processing, in seconds.
        pub const CHUNK_LATENCY_SECONDS: &str = "dalston.chunk_latency_seconds";
        /// The length of an utterance, in seconds.
        pub const VAD_SPEECH_DURATION_S: &str = "dalston.vad.speech_duration_s";
        /// The end of an utterance, in seconds of received audio.
        pub const VAD_TIMESTAMP: &str = "dalston.vad.timestamp";
        /// Whether a transcript can still change: `partial` or `final`.
        pub const TRANSCRIPT_TYPE: &str = "dalston.transcript.type";
        /// The number of words of a transcript.
        pub const TRANSCRIPT_WORDS: &str = "dalston.transcript.word_count";
        /// The number of characters of a transcript.
        pub const TRANSCRIPT_CHARACTERS: &str = "dalston.transcript.char_count";
        /// The reason for the end of a session.
        pub const END_REASON: &str = "dalston.session.end_reason";
        /// The number of chunks of a session.
        pub const TOTAL_CHUNKS: &str = "dalston.total_chunks";
        /// The audio of a session, in seconds.
        pub const TOTAL_AUDIO_S: &str = "dalston.total_audio_s";
        /// The mean time from the arrival of a chunk to the end of its processing, in milliseconds.
        pub const AVG_CHUNK_LATENCY_MS: &str = "dalston.avg_chunk_latency_ms";
    }
}
