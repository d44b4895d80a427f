//! The names of the gateway's spans.
//!
//! The span of a request has the name `METHOD route`, see `tower` (feature `tower`).

/// Names of spans.
pub mod span {
    use crate::services::names::names;

    names! {
        /// The upload of a recording to the storage.
        pub const UPLOAD_TO_S3: &str = "gateway.upload_to_s3";
        /// The creation of a job in the database.
        pub const CREATE_JOB: &str = "gateway.create_job";
        /// The event that hands a job to the orchestrator. The spans of the orchestrator are below
        /// it.
        pub const PUBLISH_JOB_CREATED_EVENT: &str = "gateway.publish_job_created_event";
    }
}
