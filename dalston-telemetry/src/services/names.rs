//! How names of spans, attributes and events are declared, and the names that all services share.
//!
//! Names that one service has stand in its own `spans.rs`; names of metrics stand with the metrics.

/// A name, and what it stands for.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Name {
    /// As it is written; `{engine_id}` stands for the engine's id.
    pub name: &'static str,
    /// What it stands for, as Markdown.
    pub meaning: &'static str,
}

/// Declares names, and lists them with their documentation for the reference.
macro_rules! names {
    ($($(#[doc = $meaning:literal])+ pub const $constant:ident: &str = $name:literal;)+) => {
        $($(#[doc = $meaning])+ pub const $constant: &str = $name;)+

        /// All of them.
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
        /// The task.
        pub const TASK_ID: &str = "dalston.task_id";
        /// The job that the task is a part of.
        pub const JOB_ID: &str = "dalston.job_id";
        /// The kind of engine.
        pub const ENGINE_ID: &str = "dalston.engine_id";
        /// The stage, with a channel suffix if the task has one.
        pub const STAGE: &str = "dalston.stage";
        /// The model; empty if none is named.
        pub const MODEL: &str = "dalston.model";
        /// The id of the request at the gateway.
        pub const REQUEST_ID: &str = "dalston.request_id";
        /// The language of the result, else the language that was asked for.
        pub const LANGUAGE: &str = "dalston.language";
        /// The method of a request over HTTP.
        pub const HTTP_REQUEST_METHOD: &str = "http.request.method";
        /// The route of a request over HTTP.
        pub const HTTP_ROUTE: &str = "http.route";
        /// The status of the answer over HTTP.
        pub const HTTP_RESPONSE_STATUS_CODE: &str = "http.response.status_code";
        /// The kind of failure: a short static code.
        pub const ERROR_TYPE: &str = "error.type";
        /// The kind of failure, on the event that records it.
        pub const EXCEPTION_TYPE: &str = "exception.type";
        /// What went wrong, for people.
        pub const EXCEPTION_MESSAGE: &str = "exception.message";
        /// The kind of queue: `redis` or `memory`.
        pub const MESSAGING_SYSTEM: &str = "messaging.system";
        /// The queue.
        pub const MESSAGING_DESTINATION_NAME: &str = "messaging.destination.name";
        /// What is done with the message, of the kinds that OpenTelemetry knows.
        pub const MESSAGING_OPERATION_TYPE: &str = "messaging.operation.type";
        /// What is done with the message, in the words of the queue.
        pub const MESSAGING_OPERATION_NAME: &str = "messaging.operation.name";
        /// The message: the task's id.
        pub const MESSAGING_MESSAGE_ID: &str = "messaging.message.id";
        /// What the message belongs to: the job's id.
        pub const MESSAGING_CONVERSATION_ID: &str = "messaging.message.conversation_id";
    }
}

/// Names of events on spans.
pub mod event {
    names! {
        /// Something went wrong.
        pub const EXCEPTION: &str = "exception";
    }
}
