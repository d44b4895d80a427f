//! The names of an engine's spans, and of their attributes.

pub use crate::services::event;

/// Names of spans.
pub mod span {
    use crate::services::names::names;

    names! {
        /// The time from a task's `enqueued_at` until a worker read it.
        pub const QUEUE_WAIT: &str = "engine.queue_wait";
        /// `request.json` and the inputs come to the worker and are decoded.
        pub const DOWNLOAD_INPUT: &str = "engine.download_input";
        /// A model is loaded. Only for tasks that met a cold inference thread.
        pub const MODEL_LOAD: &str = "engine.model_load";
        /// A model comes to this machine. Below the load that needs it.
        pub const MODEL_DOWNLOAD: &str = "engine.model_download";
        /// The engine works. Spans of its own are below this one.
        pub const PROCESS: &str = "engine.process";
        /// Files and `response.json` go to the store.
        pub const UPLOAD_OUTPUT: &str = "engine.upload_output";

        /// An upload comes in, or a recording is fetched from where a request says. Only for requests over HTTP.
        pub const RECEIVE_INPUT: &str = "engine.receive_input";

        /// All of one file that `transcribe` was given, from the platform inside the process.
        pub const LOCAL_TASK: &str = "local.task";

        /// All of one request over HTTP, around the span of its task.
        pub const HTTP_REQUEST: &str = "engine.{engine_id}.http_process";
        /// All of one task, in one engine.
        pub const TASK: &str = "engine.{engine_id}.process";
    }

    /// [`HTTP_REQUEST`] of this engine.
    #[must_use]
    pub fn http_request(engine_id: &str) -> String {
        of_engine(HTTP_REQUEST, engine_id)
    }

    /// [`TASK`] of this engine.
    #[must_use]
    pub fn task(engine_id: &str) -> String {
        of_engine(TASK, engine_id)
    }

    /// For each task and each request, so without a search for more than a character.
    fn of_engine(name: &str, engine_id: &str) -> String {
        let (before, rest) = name.split_once('{').unwrap_or((name, ""));
        let (_, after) = rest.split_once('}').unwrap_or_default();
        [before, engine_id, after].concat()
    }
}

/// Names of attributes: those of an engine, and those of all services.
pub mod attr {
    pub use crate::services::attr::*;
    use crate::services::names::names;

    names! {
        /// Where a model was downloaded from: `s3` or `hf`. Absent if another process of the machine did that.
        pub const MODEL_SOURCE: &str = "dalston.model_source";
        /// Bytes that were downloaded.
        pub const DOWNLOAD_BYTES: &str = "dalston.download_bytes";
        /// The process that worked on it.
        pub const INSTANCE: &str = "dalston.instance";
        /// Seconds of input audio.
        pub const AUDIO_DURATION_SECONDS: &str = "dalston.audio_duration_seconds";
        /// Seconds in the queue, never negative.
        pub const QUEUE_WAIT_SECONDS: &str = "dalston.queue_wait_seconds";
        /// The negative number of seconds that was measured where the clocks of two machines differ.
        pub const CLOCK_SKEW_SECONDS: &str = "dalston.clock_skew_seconds";
        /// Which delivery of the task this is, from 1.
        pub const DELIVERY_COUNT: &str = "dalston.delivery_count";
        /// Seconds of processing per second of audio: below 1 is faster than real time.
        pub const REALTIME_FACTOR: &str = "dalston.realtime_factor";
        /// The most GPU memory, in bytes, that was seen in use while the task had its inference thread: by the whole process where
        /// the driver tells it apart from others, else by all processes on the first GPU. Absent if nobody could look in that time.
        pub const GPU_MEMORY_PEAK_BYTES: &str = "dalston.gpu_memory_peak_bytes";
        /// How a task came to the engine, if not by its queue: `http`.
        pub const TRANSPORT: &str = "dalston.transport";
        /// What happens to the machine while the span is open: `terminate`, `stop`, `hibernate`, or `rebalance` when only that is likely.
        pub const SPOT_INTERRUPTION: &str = "dalston.spot_interruption";
    }
}
