//! The Lua scripts: what the server does in one step.
//!
//! Arguments and results are described in the files. Scripts about a held task begin with the check
//! of its ownership, so that a worker that lost a task can neither renew, finish nor release it.

use std::sync::LazyLock;

use redis::Script;

/// One script made of files.
macro_rules! script {
    ($($file:literal),+) => {
        LazyLock::new(|| Script::new(concat!($(include_str!(concat!("lua/", $file))),+)))
    };
}

/// What `ownership` in the scripts returns: the caller holds the entry, no consumer does, another
/// one does, the server lost its record of the delivery.
pub(super) const HELD: i64 = 1;
pub(super) const GONE: i64 = 2;
pub(super) const LOST: i64 = 3;
pub(super) const UNRECORDED: i64 = 4;
/// What `hand_back.lua` returns beside these: the caller keeps the task.
pub(super) const REFUSED: i64 = 5;

/// What `make_group` returns if it did not create the group from the events.
pub(super) const GROUP_EXISTS: i64 = -1;
pub(super) const GROUP_IS_NEW: i64 = -2;

// Calls about a held task.
pub(super) static LOOKUP: LazyLock<Script> =
    script!("restored.lua", "clock.lua", "ownership.lua", "lookup.lua");
pub(super) static STARTED: LazyLock<Script> =
    script!("restored.lua", "ownership.lua", "event.lua", "started.lua");
pub(super) static RENEW: LazyLock<Script> = script!("restored.lua", "ownership.lua", "renew.lua");
pub(super) static FINISH: LazyLock<Script> =
    script!("restored.lua", "ownership.lua", "event.lua", "finish.lua");
pub(super) static RELEASE: LazyLock<Script> =
    script!("restored.lua", "ownership.lua", "give_back.lua", "release.lua");
pub(super) static HAND_BACK: LazyLock<Script> =
    script!("restored.lua", "ownership.lua", "give_back.lua", "hand_back.lua");

// Reads, claims and maintenance of a stream.
pub(super) static MAKE_GROUP: LazyLock<Script> = script!("restored.lua", "make_group.lua");
pub(super) static READ: LazyLock<Script> = script!("memory.lua", "read.lua");
pub(super) static READ_AHEAD: LazyLock<Script> = script!("memory.lua", "free_capacity.lua", "read_ahead.lua");
pub(super) static IDLE_PEERS: LazyLock<Script> = script!("free_capacity.lua", "idle_peers.lua");
pub(super) static STALE_ENTRIES: LazyLock<Script> = script!("clock.lua", "stale_entries.lua");
pub(super) static CLAIM: LazyLock<Script> = script!("memory.lua", "claim.lua");
pub(super) static TRIM: LazyLock<Script> = script!("trim.lua");
pub(super) static REMOVE_IDLE_CONSUMERS: LazyLock<Script> = script!("remove_idle_consumers.lua");

// The registry.
pub(super) static HEARTBEAT: LazyLock<Script> = script!("heartbeat.lua");
#[cfg(feature = "worker")]
pub(super) static RESERVE_NAME: LazyLock<Script> = script!("clock.lua", "reserve_name.lua");
pub(super) static REMOVE_STALE_INSTANCES: LazyLock<Script> = script!("remove_stale_instances.lua");
