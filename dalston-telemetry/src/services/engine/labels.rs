//! The labels of an engine's metrics.

crate::label! {
    /// The device of the inference.
    pub enum Device = "device" {
        Cpu => "cpu",
        Cuda => "cuda",
        /// Apple's GPUs.
        Mps => "mps",
        Unknown => "unknown",
    }
}

crate::label! {
    /// Whether the model of a task was in memory.
    pub enum InMemory = "in_memory" {
        No => "false",
        Yes => "true",
    }
}

crate::label! {
    /// Why a batch of tasks has no more tasks.
    pub enum BatchDispatch = "reason" {
        /// It has as many tasks as the engine takes.
        Full => "full",
        /// One more task would exceed the limit of padded audio.
        Cost => "cost",
        /// No more task waited.
        Waited => "waited",
    }
}

crate::label! {
    /// Why the tasks of a batch were processed again in smaller batches.
    pub enum BatchSplit = "reason" {
        /// The memory did not suffice.
        OutOfMemory => "oom",
        /// The engine panicked.
        Panic => "panic",
        /// The engine returned another error.
        Error => "error",
    }
}

crate::label! {
    /// The reason of a redelivery.
    pub enum RedeliveryReason = "reason" {
        /// The engine that had the task died.
        EngineCrash => "engine_crash",
        /// An engine released the task.
        Deferred => "deferred",
    }
}

/// The labels that all metrics of an engine have.
#[derive(Clone, Debug)]
pub struct EngineLabels {
    pub(super) engine_id: String,
    pub(super) stage: String,
    pub(super) instance_type: String,
    pub(super) execution_profile: String,
}

impl EngineLabels {
    /// The labels of an engine of a stage, such as `transcribe`, without the suffix of a channel.
    #[must_use]
    pub fn new(engine_id: impl Into<String>, stage: impl Into<String>) -> Self {
        Self {
            engine_id: engine_id.into(),
            stage: stage.into(),
            instance_type: "unknown".to_owned(),
            execution_profile: "container".to_owned(),
        }
    }

    /// Sets the instance type, such as `g5.xlarge`; the default is `unknown`.
    #[must_use]
    pub fn instance_type(mut self, instance_type: impl Into<String>) -> Self {
        self.instance_type = instance_type.into();
        self
    }

    /// Sets how the platform runs the engine: `container` (the default), `inproc` or `venv`.
    #[must_use]
    pub fn execution_profile(mut self, profile: impl Into<String>) -> Self {
        self.execution_profile = profile.into();
        self
    }
}
