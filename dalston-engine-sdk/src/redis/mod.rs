//! A live deployment on Redis: [`RedisServer`], its queue ([`RedisBroker`]) and its registry ([`RedisRegistry`]).
//!
//! Section numbers in this module refer to the description of the Dalston engine protocol.

mod answers;
mod broker;
mod calls;
mod reader;
mod registry;
mod scripts;
mod server;

pub use self::broker::RedisBroker;
pub use self::registry::RedisRegistry;
pub use self::server::{InvalidRedisUrl, RedisServer};
