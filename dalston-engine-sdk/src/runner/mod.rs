//! The runner: it takes tasks from a broker and has an engine process them.
//!
//! # The lifecycle of a task
//!
//! ```text
//!            control loop (asynchronous)                        inference thread (one per slot)
//!  ┌──────────────────────────────────────────────────┐
//!  │ read: a permit is free, the broker gives a task  │
//!  │   └─ look up, open the spans, report the start   │
//!  │ download: request.json, inputs, decoded audio    │
//!  │ wait in the run queue for an inference thread    │
//!  │ admit: is the task still wanted?                 │ ───▶ load the model, unless it is loaded
//!  │                                                  │      process
//!  │ upload: files, then response.json                │ ◀─── check the answer
//!  │ finish: the event and the acknowledgement        │
//!  └──────────────────────────────────────────────────┘
//!  meanwhile: renew the lease, ask whether the job was cancelled, watch the deadline
//! ```
//!
//! Every task is a future of its own, so these steps overlap between tasks: while one task is on
//! the inference thread, the input of the next one is already local and the output of the previous
//! one is being uploaded. Two things bound that:
//!
//! - A *permit*, of which there are two per slot, is held from the read of a task to the end of its
//!   inference. One task runs, one waits, and the worker takes no task that a peer could have begun
//!   sooner.
//! - The number of uploads is bounded. A store that is slower than the engine slows the engine
//!   down, and results do not pile up.
//!
//! An engine can't stop the control loop. It runs on threads of its own, and its panics are caught
//! there. A call that does not return after the end of its task is abandoned: the task is reported,
//! and another thread takes the place. When too many threads are lost like this, the runner ends
//! with an error, because only a new process gets their memory back.
//!
//! # Where things are
//!
//! | File | Content |
//! |---|---|
//! | `builder`, `worker` | configuration, and the state that tasks share |
//! | `control_loop` | reads tasks, drains |
//! | `breaker` | stops the reads while a dependency of the worker is broken |
//! | `task` | the steps of one task in order; `attempt` holds its state |
//! | `prepare`, `files`, `decode` | request, inputs, audio, results |
//! | `inference` | waits for a thread, admits the task, takes the answer |
//! | `run_queue`, `pool`, `slot`, `models` | inference threads and their models |
//! | `forming`, `slot/batch` | several tasks at once |
//! | `report`, `retry` | outcomes |
//! | `lease`, `stop` | the lease, and reasons to stop early |
//! | `run_lock` | lets a task that killed a worker run alone |
//! | `direct` | tasks that do not come from the queue |
//! | `live` | the audio of realtime sessions |
//! | `status` | what the registry and the health check show |
//! | `sweep` | directories that killed processes left |

mod attempt;
mod breaker;
mod builder;
mod class;
mod control_loop;
#[cfg(feature = "audio")]
mod decode;
mod detector;
mod direct;
mod files;
mod forming;
mod inference;
mod lease;
#[cfg(feature = "realtime")]
mod live;
mod models;
mod pool;
mod prepare;
mod report;
mod retry;
mod run_lock;
mod run_queue;
mod slot;
mod status;
mod stop;
mod sweep;
mod task;
mod worker;

pub use self::builder::RunnerBuilder;
#[cfg(feature = "worker")]
pub(crate) use self::builder::instance_name;
#[cfg(feature = "realtime")]
pub(crate) use self::class::Class;
pub use self::control_loop::Runner;
#[cfg(feature = "worker")]
pub(crate) use self::direct::JOB as DIRECT_JOB;
pub use self::direct::{Direct, DirectError, DirectTask};
#[cfg(feature = "realtime")]
pub(crate) use self::live::{Live, LiveTask};
pub use self::status::{RunnerPhase, RunnerStatus, TaskFailure, TaskPhase, TaskStatus};
