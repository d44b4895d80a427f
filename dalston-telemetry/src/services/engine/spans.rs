//! The names of an engine's spans and of their attributes.

pub use crate::services::event;

/// Names of spans.
pub mod span {
    use crate::services::names::names;

    names! {
        /// The wait of a task in the queue, until its read by a worker. By the clock of the queue
        /// if that is known, else from `enqueued_at` by the clock of the worker.
        pub const QUEUE_WAIT: &str = "engine.queue_wait";
        /// The download of `request.json` and of the inputs, and their decoding.
        pub const DOWNLOAD_INPUT: &str = "engine.download_input";
        /// The wait of a prepared task for an inference thread. Absent below 1 ms.
        pub const SLOT_WAIT: &str = "engine.slot_wait";
        /// The provision of the task's model, with its load below it if the inference thread does
        /// not have it.
        pub const MODEL_ACQUIRE: &str = "engine.model_acquire";
        /// The load of a model, if the inference thread does not have it.
        pub const MODEL_LOAD: &str = "engine.model_load";
        /// The download of a model to this machine, below the load that needs it.
        pub const MODEL_DOWNLOAD: &str = "engine.model_download";
        /// The work of the engine, with the spans of the engine below it.
        pub const PROCESS: &str = "engine.process";
        /// A call of the engine for several tasks, in a trace of its own, with links to the
        /// `engine.process` of each task and from there. The spans of the engine are below it.
        pub const BATCH: &str = "engine.batch";
        /// The upload of files and of `response.json`.
        pub const UPLOAD_OUTPUT: &str = "engine.upload_output";

        /// The upload of a recording, or its download from the URL of a request. Only for HTTP
        /// requests.
        pub const RECEIVE_INPUT: &str = "engine.receive_input";

        /// A file of the command `transcribe`, with the platform inside the process.
        pub const LOCAL_TASK: &str = "local.task";

        /// An HTTP request, around the span of its task.
        pub const HTTP_REQUEST: &str = "engine.{engine_id}.http_process";
        /// A task in an engine.
        pub const TASK: &str = "engine.{engine_id}.process";
    }

    /// The span name [`HTTP_REQUEST`] of an engine.
    #[must_use]
    pub fn http_request(engine_id: &str) -> String {
        of_engine(HTTP_REQUEST, engine_id)
    }

    /// The span name [`TASK`] of an engine.
    #[must_use]
    pub fn task(engine_id: &str) -> String {
        of_engine(TASK, engine_id)
    }

    fn of_engine(name: &str, engine_id: &str) -> String {
        let (before, rest) = name.split_once('{').unwrap_or((name, ""));
        let (_, after) = rest.split_once('}').unwrap_or_default();
        [before, engine_id, after].concat()
    }
}

/// Names of attributes: those of an engine and those of all services.
pub mod attr {
    pub use crate::services::attr::*;
    use crate::services::names::names;

    names! {
        /// The model that is acquired.
        pub const MODEL_ID: &str = "dalston.model_id";
        /// Whether the model was in memory.
        pub const IN_MEMORY: &str = "dalston.in_memory";
        /// The number of words of a transcript.
        pub const WORD_COUNT: &str = "dalston.word_count";
        /// The number of segments of a transcript.
        pub const SEGMENT_COUNT: &str = "dalston.segment_count";
        /// `dalston.realtime_factor` of the inference, under the name of the engines in Python.
        pub const RTF: &str = "dalston.rtf";
        /// `dalston.audio_duration_seconds`, under the name of the engines in Python.
        pub const AUDIO_DURATION_S: &str = "dalston.audio_duration_s";
        /// The source of a downloaded model: `s3` or `hf`. Absent if another process of the machine
        /// downloaded it.
        pub const MODEL_SOURCE: &str = "dalston.model_source";
        /// The number of downloaded bytes.
        pub const DOWNLOAD_BYTES: &str = "dalston.download_bytes";
        /// The wait in the queue, in seconds; never negative.
        pub const QUEUE_WAIT_SECONDS: &str = "dalston.queue_wait_seconds";
        /// How much longer the wait in the queue is by the clocks of producer and worker than by
        /// the clock of the queue, in seconds, if that is more than a second. Without a clock of
        /// the queue: the wait by the two clocks if it is negative.
        pub const CLOCK_SKEW_SECONDS: &str = "dalston.clock_skew_seconds";
        /// The number of the delivery of the task, from 1.
        pub const DELIVERY_COUNT: &str = "dalston.delivery_count";
        /// The time in `engine.process` divided by the length of the audio: below 1 is faster than
        /// real time.
        pub const REALTIME_FACTOR: &str = "dalston.realtime_factor";
        /// The peak of GPU memory in bytes while the task had its inference thread: of the process,
        /// or of all processes on the first GPU if the driver does not report memory by process.
        /// Absent if the driver did not answer in that time.
        pub const GPU_MEMORY_PEAK_BYTES: &str = "dalston.gpu_memory_peak_bytes";
        /// The number of tasks that the engine got at once, if there were several.
        pub const BATCH_SIZE: &str = "dalston.batch.size";
        /// The place of the task in its batch, from 0.
        pub const BATCH_INDEX: &str = "dalston.batch.index";
        /// How long an idle inference thread waited for a full batch, in seconds.
        pub const BATCH_WAIT_SECONDS: &str = "dalston.batch.wait_seconds";
        /// The transport of a task that did not come from the queue: `http`.
        pub const TRANSPORT: &str = "dalston.transport";
        /// The interruption of the machine during the span: `terminate`, `stop`, `hibernate`, or
        /// `rebalance` if an interruption is likely.
        pub const SPOT_INTERRUPTION: &str = "dalston.spot_interruption";
    }
}
