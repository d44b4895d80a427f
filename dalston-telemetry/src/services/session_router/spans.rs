//! The names of the session router's spans.

/// Names of spans.
pub mod span {
    use crate::services::names::names;

    names! {
        /// The choice of a worker for a session. The span of the session is below it, if the
        /// request to the worker carries its context.
        pub const ALLOCATE: &str = "session_router.allocate";
    }
}
