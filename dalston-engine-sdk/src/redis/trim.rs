//! What a stream keeps for ever unless a worker removes it: acknowledged messages, and consumers of
//! ended processes.

use std::time::Duration;

use redis::ScriptInvocation;
use tracing::{debug, warn};

use super::held::milliseconds;
use super::scripts;
use super::server::RedisServer;
use crate::protocol::keys;

/// After how many leases without activity a consumer is removed.
const IDLE_CONSUMER_LEASES: u32 = 10;

/// Removes acknowledged messages from the front of the stream.
pub(super) async fn trim(server: &RedisServer, stream: &str) {
    let mut script = scripts::TRIM.key(stream);
    script.arg(keys::TASK_GROUP);
    match count(server, script).await {
        Ok(0) => {}
        Ok(removed) => debug!(stream, removed, "acknowledged_tasks_trimmed"),
        Err(error) => warn!(stream, address = server.address(), %error, "acknowledged_tasks_not_trimmed"),
    }
}

/// Removes consumers that hold nothing, are not registered and did nothing for some leases.
pub(super) async fn remove_idle_consumers(server: &RedisServer, stream: &str, lease: Duration) {
    let mut script = scripts::REMOVE_IDLE_CONSUMERS.key(stream);
    script
        .arg(keys::TASK_GROUP)
        .arg(milliseconds(lease * IDLE_CONSUMER_LEASES))
        .arg(keys::instance(""));
    match count(server, script).await {
        Ok(0) => {}
        Ok(removed) => debug!(stream, removed, "consumers_forgotten"),
        Err(error) => warn!(stream, address = server.address(), %error, "consumers_not_forgotten"),
    }
}

async fn count(server: &RedisServer, script: ScriptInvocation<'_>) -> redis::RedisResult<u64> {
    script.invoke_async(&mut server.shared()).await
}
