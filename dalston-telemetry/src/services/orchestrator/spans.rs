//! The names of the orchestrator's spans and of their attributes.

/// Names of spans.
pub mod span {
    use crate::services::names::names;

    names! {
        /// The handling of `job.created`. Its parent is the span of the gateway that published it.
        pub const HANDLE_JOB: &str = "orchestrator.handle_job";
        /// The handling of `task.completed`.
        pub const HANDLE_TASK_COMPLETED: &str = "orchestrator.handle_task_completed";
        /// The handling of `task.failed`.
        pub const HANDLE_TASK_FAILED: &str = "orchestrator.handle_task_failed";
        /// The handling of another event: the dot of its type becomes `_`.
        pub const HANDLE_EVENT: &str = "orchestrator.handle_{event_type}";
        /// The planning of the tasks of a job.
        pub const BUILD_DAG: &str = "orchestrator.build_dag";
        /// A task is queued. The span of the engine is below it.
        pub const SCHEDULE_TASK: &str = "orchestrator.schedule_task";
        /// A job is marked as completed.
        pub const MARK_JOB_COMPLETED: &str = "orchestrator.mark_job_completed";
        /// A job is marked as failed.
        pub const MARK_JOB_FAILED: &str = "orchestrator.mark_job_failed";
        /// A job is marked as cancelled.
        pub const MARK_JOB_CANCELLED: &str = "orchestrator.mark_job_cancelled";
    }

    /// `orchestrator.dag_build`, the name of [`BUILD_DAG`] on the live platform.
    pub const LIVE_BUILD_DAG: &str = "orchestrator.dag_build";
}

/// Names of attributes.
pub mod attr {
    use crate::services::names::names;

    names! {
        /// The type of the event.
        pub const EVENT_TYPE: &str = "dalston.event_type";
        /// The stages of a job, with commas between.
        pub const DAG_STAGES: &str = "dalston.dag.stages";
        /// The number of tasks of a job.
        pub const DAG_TASK_COUNT: &str = "dalston.dag.task_count";
        /// How often the task was queued before.
        pub const RETRY_COUNT: &str = "dalston.retry_count";
        /// The status with which a task or a job has ended.
        pub const STATUS: &str = "dalston.status";
    }
}
