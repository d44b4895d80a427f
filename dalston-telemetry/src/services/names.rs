//! The declaration of names of spans, attributes and events, and the names that all services share.
//!
//! The names of one service are in its `spans.rs`, the names of metrics in its `metrics.rs`.

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
    }
}
