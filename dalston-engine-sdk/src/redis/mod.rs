//! A live deployment on Redis: [`RedisServer`], its queue ([`RedisBroker`]) and its registry
//! ([`RedisRegistry`]).
//!
//! Section numbers in this module refer to the description of the Dalston engine protocol. From
//! [`RedisBroker`] downwards: `reader` runs the reads in the background, `read` takes tasks from a
//! stream, `claim` takes over stale entries, `message` and `lookup` read what the server sends,
//! `instance_name` reserves the name of a worker, `held` makes the calls of the holder of a task,
//! and `lua/` is what the server runs.
//!
//! # Ownership of a task
//!
//! A bare `XACK` or `XCLAIM` obeys every sender. So the scripts first compare the owner of the
//! entry: a worker that lost a task can neither renew, finish nor release it. An entry that is not
//! pending was finished by a peer, or the server lost its data, the stream or the group. The group
//! and the metadata of the task tell the two apart. In the second case no peer has the task, so the
//! worker goes on and reports its result.
//!
//! The platform queues a task again when it believes that it was lost. The hash field `owner` names
//! the message, the delivery and the instance that looked the task up last, and a claim under
//! another message has lost the task. A message is acknowledged without work if it was queued
//! before the reported end of the task (field `ended`). A missing field says nothing, because
//! engines in Python write none.
//!
//! A message whose task is in hand under another one waits (field `waiting_message`): the owner of
//! the task renews it, and acknowledges it at the end. So the task comes back if the platform
//! acknowledges the message of the owner, which it does after it has queued the task again, and the
//! owner dies. An owner that lives makes its own entry pending again instead, once.
//!
//! A cancelled task is completed without a response, because the platform would queue a failure
//! again. No task is read while the server answers `OOM`: its result could not be reported.

mod broker;
mod claim;
mod held;
#[cfg(feature = "worker")]
mod instance_name;
mod lookup;
mod message;
mod read;
mod reader;
mod registry;
mod scripts;
mod server;
mod trim;

pub use self::broker::RedisBroker;
#[cfg(feature = "worker")]
pub(crate) use self::instance_name::{Starting, random_suffix};
pub use self::registry::RedisRegistry;
pub use self::server::RedisServer;
#[cfg(feature = "worker")]
pub(crate) use self::server::parse as parse_url;
