//! A live deployment on Redis: [`RedisServer`], its queue ([`RedisBroker`]) and its registry
//! ([`RedisRegistry`]).
//!
//! Section numbers in this module refer to the description of the Dalston engine protocol. From
//! [`RedisBroker`] downwards: `reader` runs the reads in the background, `read` takes tasks from a
//! stream, `claim` takes over stale entries, `message` and `lookup` read what the server sends,
//! `instance_name` reserves the name of a worker, `held` makes the calls of the holder of a task,
//! and `lua/` is what the server runs.

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
