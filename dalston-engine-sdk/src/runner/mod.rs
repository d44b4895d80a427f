//! The runner: it takes tasks from a broker and has an engine process them.
//!
//! # The way of a task
//!
//! ```text
//!            control loop (asynchronous)                        inference thread (one per slot)
//!  ┌──────────────────────────────────────────────────┐
//!  │ read: a turn is free, the broker gives a task    │
//!  │   └─ look up, open the spans, report the start   │
//!  │ download: request.json, inputs, decoded audio    │
//!  │ wait for a free inference thread                 │ ───▶ load the model, if it is not here
//!  │                                                  │      process
//!  │ upload: files, then response.json                │ ◀─── check the answer
//!  │ finish: the event and the acknowledgement        │
//!  └──────────────────────────────────────────────────┘
//!  beside it, for as long as it takes: renew the lease, ask whether the job was cancelled, watch the deadline
//! ```
//!
//! Every task is a future of its own, so these stages overlap between tasks: while one is on the inference thread, the next
//! one's input is already here and the previous one's output is on its way. Two things bound that. A *turn*, of which there
//! are two per slot, is held from reading a task until its inference has ended: one task runs, one waits, and no task is
//! taken that a peer could have begun sooner. And a bounded number of uploads: a store that is slower than the engine
//! slows the engine down, rather than letting results pile up.
//!
//! Nothing that an engine does can stop the control loop. It runs on threads of its own, its panics are caught there, and a
//! call that does not return when its task is over is left to itself: the task is reported, another thread takes the
//! place, and when too many are lost like this the runner ends with an error, because only a new process helps.

mod attempt;
mod builder;
mod control_loop;
#[cfg(feature = "audio")]
mod decode;
mod direct;
mod files;
mod inference;
mod lease;
mod models;
mod pool;
mod prepare;
mod report;
mod retry;
mod run_queue;
mod slot;
mod status;
mod sweep;
mod task;
mod worker;

pub use self::builder::RunnerBuilder;
pub use self::control_loop::Runner;
#[cfg(feature = "worker")]
pub(crate) use self::direct::JOB as DIRECT_JOB;
pub use self::direct::{Direct, DirectError, DirectTask};
pub use self::status::{RunnerPhase, RunnerStatus, TaskPhase, TaskStatus};
