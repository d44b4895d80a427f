//! The declaration of names of spans, attributes and events, and the names that all services share.
//!
//! The names of one service are in its `spans.rs`, the names of metrics in its `metrics.rs`.

/// The names of the spans of a service.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SpanNames {
    /// The names of the guides: `orchestrator.handle_job`, `process_audio_chunk`.
    #[default]
    Guide,
    /// The names of the live platform: `orchestrator.handle_job.created`,
    /// `realtime.chunk.inference`.
    Live,
}

/// A name with its meaning.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Name {
    /// The name. `{engine_id}` stands for the id of the engine.
    pub name: &'static str,
    /// The meaning, in Markdown.
    pub meaning: &'static str,
}

/// Declares names, and lists them with their documentation for `docs/reference`.
macro_rules! names {
    ($($(#[doc = $meaning:literal])+ pub const $constant:ident: &str = $name:literal;)+) => {
        $($(#[doc = $meaning])+ pub const $constant: &str = $name;)+

        /// All names of this module.
        pub const ALL: &[$crate::services::Name] = &[$($crate::services::Name {
            name: $name,
            meaning: concat!($($meaning),+),
        }),+];
    };
}

pub(crate) use names;

/// Names of attributes that spans of all services can have.
pub mod attr {
    names! {
        /// The id of the task.
        pub const TASK_ID: &str = "dalston.task_id";
        /// The id of the task's job.
        pub const JOB_ID: &str = "dalston.job_id";
        /// The id of the engine.
        pub const ENGINE_ID: &str = "dalston.engine_id";
        /// The worker: the name of its process.
        pub const INSTANCE: &str = "dalston.instance";
        /// The length of the audio, in seconds.
        pub const AUDIO_DURATION_SECONDS: &str = "dalston.audio_duration_seconds";
        /// The stage, with the suffix of a channel if the task has one.
        pub const STAGE: &str = "dalston.stage";
        /// The model; empty if the task names none.
        pub const MODEL: &str = "dalston.model";
        /// The id of the request at the gateway.
        pub const REQUEST_ID: &str = "dalston.request_id";
        /// The language of the result, otherwise the requested language.
        pub const LANGUAGE: &str = "dalston.language";
        /// The method of an HTTP request.
        pub const HTTP_REQUEST_METHOD: &str = "http.request.method";
        /// The route of an HTTP request.
        pub const HTTP_ROUTE: &str = "http.route";
        /// The status of an HTTP response.
        pub const HTTP_RESPONSE_STATUS_CODE: &str = "http.response.status_code";
        /// The method of an HTTP request, if it has no name of its own in `http.request.method`.
        pub const HTTP_REQUEST_METHOD_ORIGINAL: &str = "http.request.method_original";
        /// Received bytes of the body of an HTTP request.
        pub const HTTP_REQUEST_BODY_SIZE: &str = "http.request.body.size";
        /// Sent bytes of the body of an HTTP response.
        pub const HTTP_RESPONSE_BODY_SIZE: &str = "http.response.body.size";
        /// `http.request.method` by its earlier name, with
        /// `OTEL_SEMCONV_STABILITY_OPT_IN=http/dup`.
        pub const HTTP_METHOD: &str = "http.method";
        /// `http.response.status_code` by its earlier name, with
        /// `OTEL_SEMCONV_STABILITY_OPT_IN=http/dup`.
        pub const HTTP_STATUS_CODE: &str = "http.status_code";
        /// The scheme of an HTTP request.
        pub const URL_SCHEME: &str = "url.scheme";
        /// The path of an HTTP request.
        pub const URL_PATH: &str = "url.path";
        /// The query of an HTTP request, with its secrets masked.
        pub const URL_QUERY: &str = "url.query";
        /// The URL of a request to another service, with its secrets masked.
        pub const URL_FULL: &str = "url.full";
        /// The host that an HTTP request names.
        pub const SERVER_ADDRESS: &str = "server.address";
        /// The port that an HTTP request names.
        pub const SERVER_PORT: &str = "server.port";
        /// The program that sent an HTTP request.
        pub const USER_AGENT_ORIGINAL: &str = "user_agent.original";
        /// The version of HTTP.
        pub const NETWORK_PROTOCOL_VERSION: &str = "network.protocol.version";
        /// The id of a realtime session.
        pub const SESSION_ID: &str = "dalston.session_id";
        /// Received messages of a WebSocket.
        pub const WEBSOCKET_MESSAGES_RECEIVED: &str = "dalston.websocket.messages_received";
        /// Sent messages of a WebSocket.
        pub const WEBSOCKET_MESSAGES_SENT: &str = "dalston.websocket.messages_sent";
        /// The code with which a WebSocket was closed.
        pub const WEBSOCKET_CLOSE_CODE: &str = "dalston.websocket.close_code";
        /// The kind of a database.
        pub const DB_SYSTEM_NAME: &str = "db.system.name";
        /// The command of a request to a database.
        pub const DB_OPERATION_NAME: &str = "db.operation.name";
        /// The kind of the failure: a short static code.
        pub const ERROR_TYPE: &str = "error.type";
        /// The kind of the failure, on the event `exception`.
        pub const EXCEPTION_TYPE: &str = "exception.type";
        /// The error message.
        pub const EXCEPTION_MESSAGE: &str = "exception.message";
        /// The kind of the queue: `redis` or `memory`.
        pub const MESSAGING_SYSTEM: &str = "messaging.system";
        /// The name of the queue.
        pub const MESSAGING_DESTINATION_NAME: &str = "messaging.destination.name";
        /// The operation on the message, by the types of OpenTelemetry.
        pub const MESSAGING_OPERATION_TYPE: &str = "messaging.operation.type";
        /// The operation on the message, by its name in the queue.
        pub const MESSAGING_OPERATION_NAME: &str = "messaging.operation.name";
        /// The id of the message, which is the id of the task.
        pub const MESSAGING_MESSAGE_ID: &str = "messaging.message.id";
        /// The id of the conversation, which is the id of the job.
        pub const MESSAGING_CONVERSATION_ID: &str = "messaging.message.conversation_id";
    }
}

/// Names of events on spans.
pub mod event {
    names! {
        /// An error.
        pub const EXCEPTION: &str = "exception";
        /// The first bytes of the body of an HTTP response were sent.
        pub const FIRST_BYTE: &str = "http.response.first_byte";
    }
}
