//! Realtime sessions in Redis, as the live platform keeps them: section 10 of the protocol.
//!
//! A session has a hash that lives for 300 s unless its gateway renews it, and it is a member of
//! two sets: of all sessions, and of those of its worker. What a gateway that was killed leaves
//! behind in the sets is removed by the next look at them.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use dalston_engine_sdk::protocol::keys;
use redis::{RedisResult, Script, pipe};

use super::Wire;

/// How long a token lives.
pub(crate) const TOKEN_SECONDS: u64 = 60;
/// How long a session lives that its gateway does not renew.
const LIFETIME_SECONDS: i64 = 300;
/// The most sessions that are listed.
const MAX_LISTED: usize = 500;
/// The set of all sessions.
const ACTIVE: &str = "dalston:realtime:sessions:active";
/// The set of the workers that have had sessions.
const INSTANCES: &str = "dalston:realtime:instances";
/// Before the id in the key of a session.
const SESSION: &str = "dalston:realtime:session:";
/// Before the token in its key. The live platform has no such keys.
const TOKEN: &str = "dalston:realtime:token:";

/// The places of a worker, for the scripts below. Removes sessions that have expired.
///
/// A session that is not in the count of the worker's last heartbeat began after it. So the count
/// is right although heartbeats are seconds old, and although a gateway that was killed leaves
/// sessions behind.
const USED: &str = "
local function used(all, own, prefix, active, heartbeat)
  local count, recent = 0, 0
  for _, id in ipairs(redis.call('SMEMBERS', own)) do
    local since = redis.call('HGET', prefix .. id, 'started_at')
    if since then
      count = count + 1
      if since > heartbeat then recent = recent + 1 end
    else
      redis.call('SREM', own, id)
      redis.call('SREM', all, id)
    end
  end
  return math.min(count, active + recent)
end
";

/// Gives a session the worker with the most free places, of those with the lowest rank.
static ALLOCATE: LazyLock<Script> = LazyLock::new(|| {
    Script::new(&format!(
        "{USED}
-- KEYS: all sessions, all workers, the session, then hash and sessions of each worker.
-- ARGV: the id of the session, the prefix of such keys, its lifetime in s, the number of words of
-- the hash, these words, then name, rank, capacity, sessions and heartbeat of each worker.
local words = tonumber(ARGV[4])
local best, best_rank, best_free = 0, 0, 0
for worker = 1, (#KEYS - 3) / 2 do
  local hash, own = KEYS[2 + 2 * worker], KEYS[3 + 2 * worker]
  local at = 4 + words + 5 * (worker - 1)
  local rank, heartbeat = tonumber(ARGV[at + 2]), ARGV[at + 5]
  local taken = used(KEYS[1], own, ARGV[2], tonumber(ARGV[at + 4]), heartbeat)
  local free = tonumber(ARGV[at + 3]) - taken
  local is_lost = redis.call('HGET', hash, 'lost_heartbeat') == heartbeat
  local is_better = best == 0 or rank < best_rank or (rank == best_rank and free > best_free)
  if free > 0 and not is_lost and is_better then
    best, best_rank, best_free = worker, rank, free
  end
end
if best > 0 then
  local hash, own = KEYS[2 + 2 * best], KEYS[3 + 2 * best]
  local name = ARGV[4 + words + 5 * (best - 1) + 1]
  redis.call('HSET', KEYS[3], 'instance', name, unpack(ARGV, 5, 4 + words))
  redis.call('EXPIRE', KEYS[3], ARGV[3])
  redis.call('SADD', KEYS[1], ARGV[1])
  redis.call('SADD', KEYS[2], name)
  redis.call('SADD', own, ARGV[1])
  redis.call('HSET', hash, 'active_sessions', redis.call('SCARD', own))
end
return best
"
    ))
});

/// Removes a session.
static RELEASE: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        "
-- KEYS: all sessions, the session, hash and sessions of its worker. ARGV: the id of the session.
redis.call('SREM', KEYS[1], ARGV[1])
redis.call('DEL', KEYS[2])
redis.call('SREM', KEYS[4], ARGV[1])
redis.call('HSET', KEYS[3], 'active_sessions', redis.call('SCARD', KEYS[4]))
",
    )
});

/// Counts the sessions of a worker.
static COUNT: LazyLock<Script> = LazyLock::new(|| {
    Script::new(&format!(
        "{USED}
-- KEYS: all sessions, hash and sessions of the worker. ARGV: the prefix of sessions.
local count = used(KEYS[1], KEYS[3], ARGV[1], math.huge, '')
redis.call('HSET', KEYS[2], 'active_sessions', count)
return count
"
    ))
});

/// Remembers the last heartbeat of a worker that could not be reached.
static LOST: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        "
-- KEYS: the record of the worker in the registry, its hash.
local heartbeat = redis.call('HGET', KEYS[1], 'last_heartbeat')
if heartbeat then redis.call('HSET', KEYS[2], 'lost_heartbeat', heartbeat) end
",
    )
});

/// Marks a worker as offline, unless there was a heartbeat since.
static OFFLINE: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        "
-- KEYS: the record of the worker in the registry. ARGV: its last heartbeat.
if redis.call('HGET', KEYS[1], 'last_heartbeat') ~= ARGV[1] then return 0 end
redis.call('HSET', KEYS[1], 'status', 'offline')
return 1
",
    )
});

/// Forgets a worker and its sessions.
static FORGET: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        "
-- KEYS: all sessions, all workers, hash and sessions of the worker.
-- ARGV: the worker, the prefix of sessions.
for _, id in ipairs(redis.call('SMEMBERS', KEYS[4])) do
  redis.call('DEL', ARGV[2] .. id)
  redis.call('SREM', KEYS[1], id)
end
redis.call('DEL', KEYS[3], KEYS[4])
redis.call('SREM', KEYS[2], ARGV[1])
",
    )
});

/// A worker that could take a session.
#[derive(Clone, Debug)]
pub(crate) struct Candidate {
    pub(crate) instance: String,
    /// The lower, the better.
    pub(crate) rank: u8,
    pub(crate) capacity: u64,
    /// Its sessions at its last heartbeat.
    pub(crate) active: u64,
    pub(crate) last_heartbeat: String,
}

/// A session that a gateway proxies.
#[derive(Clone, Debug)]
pub(crate) struct LiveSession {
    pub(crate) id: String,
    fields: BTreeMap<String, String>,
}

impl LiveSession {
    pub(crate) fn text(&self, name: &str) -> &str {
        self.fields.get(name).map_or("", String::as_str)
    }
}

impl Wire {
    /// Gives a session with these fields one of these workers, if one of them has a place.
    pub(crate) async fn allocate(
        &self,
        id: &str,
        fields: &[(&'static str, String)],
        candidates: &[Candidate],
    ) -> RedisResult<Option<usize>> {
        let mut call = ALLOCATE.prepare_invoke();
        call.key(&[ACTIVE, INSTANCES, &session(id)]);
        call.arg(&[id, SESSION])
            .arg(LIFETIME_SECONDS)
            .arg(fields.len() * 2);
        for (name, value) in fields {
            call.arg(name).arg(value);
        }
        for worker in candidates {
            call.key(&[hash(&worker.instance), sessions(&worker.instance)]);
            call.arg(&worker.instance)
                .arg(worker.rank)
                .arg(worker.capacity)
                .arg(worker.active)
                .arg(&worker.last_heartbeat);
        }
        let chosen: usize = call.invoke_async(&mut self.connection()).await?;
        Ok(chosen.checked_sub(1))
    }

    /// Renews a session of a worker, with these fields. It may be gone with the data of Redis.
    pub(crate) async fn renew(
        &self,
        id: &str,
        instance: &str,
        fields: &[(&'static str, String)],
    ) -> RedisResult<()> {
        pipe()
            .atomic()
            .hset(session(id), "instance", instance)
            .ignore()
            .hset_multiple(session(id), fields)
            .ignore()
            .expire(session(id), LIFETIME_SECONDS)
            .ignore()
            .sadd(ACTIVE, id)
            .ignore()
            .sadd(INSTANCES, instance)
            .ignore()
            .sadd(sessions(instance), id)
            .ignore()
            .query_async(&mut self.connection())
            .await
    }

    /// Gives the place of a session back.
    pub(crate) async fn release(&self, id: &str, instance: &str) -> RedisResult<()> {
        let mut call = RELEASE.prepare_invoke();
        call.key(&[ACTIVE, &session(id), &hash(instance), &sessions(instance)]);
        call.arg(id).invoke_async(&mut self.connection()).await
    }

    /// Keeps sessions from a worker until its next heartbeat.
    pub(crate) async fn lost(&self, instance: &str) -> RedisResult<()> {
        let mut call = LOST.prepare_invoke();
        call.key(&[keys::instance(instance), hash(instance)]);
        call.invoke_async(&mut self.connection()).await
    }

    /// Marks a worker as offline whose last heartbeat is this one. Returns whether that is so.
    pub(crate) async fn mark_offline(&self, instance: &str, heartbeat: &str) -> RedisResult<bool> {
        let mut call = OFFLINE.prepare_invoke();
        call.key(keys::instance(instance)).arg(heartbeat);
        call.invoke_async(&mut self.connection()).await
    }

    /// The number of a worker's sessions.
    pub(crate) async fn sessions_of(&self, instance: &str) -> RedisResult<usize> {
        let mut call = COUNT.prepare_invoke();
        call.key(&[ACTIVE, &hash(instance), &sessions(instance)]);
        call.arg(SESSION).invoke_async(&mut self.connection()).await
    }

    /// The workers that have had sessions.
    pub(crate) async fn workers_with_sessions(&self) -> RedisResult<Vec<String>> {
        let mut read = redis::cmd("SMEMBERS");
        read.arg(INSTANCES).query_async(&mut self.connection()).await
    }

    /// Forgets a worker that is gone, and frees its sessions.
    pub(crate) async fn forget_worker(&self, instance: &str) -> RedisResult<()> {
        let mut call = FORGET.prepare_invoke();
        call.key(&[ACTIVE, INSTANCES, &hash(instance), &sessions(instance)]);
        call.arg(&[instance, SESSION])
            .invoke_async(&mut self.connection())
            .await
    }

    /// Keeps a token that opens one session.
    pub(crate) async fn keep_token(&self, token: &str) -> RedisResult<()> {
        redis::cmd("SET")
            .arg(&[&format!("{TOKEN}{token}"), "1", "EX"])
            .arg(TOKEN_SECONDS)
            .query_async(&mut self.connection())
            .await
    }

    /// Takes a token, if there is one of this name.
    pub(crate) async fn take_token(&self, token: &str) -> RedisResult<bool> {
        let taken: Option<String> = redis::cmd("GETDEL")
            .arg(format!("{TOKEN}{token}"))
            .query_async(&mut self.connection())
            .await?;
        Ok(taken.is_some())
    }

    /// The sessions, from the oldest to the newest, and how many there are.
    pub(crate) async fn live_sessions(&self) -> RedisResult<(Vec<LiveSession>, usize)> {
        let mut ids: Vec<String> = redis::cmd("SMEMBERS")
            .arg(ACTIVE)
            .query_async(&mut self.connection())
            .await?;
        let total = ids.len();
        ids.truncate(MAX_LISTED);
        if ids.is_empty() {
            return Ok((Vec::new(), 0));
        }
        let mut read = pipe();
        for id in &ids {
            read.hgetall(session(id));
        }
        let fields: Vec<BTreeMap<String, String>> = read.query_async(&mut self.connection()).await?;
        let sessions = ids
            .into_iter()
            .zip(fields)
            .map(|(id, fields)| LiveSession { id, fields });
        let mut sessions: Vec<_> = sessions.filter(|session| !session.fields.is_empty()).collect();
        sessions.sort_by(|a, b| (a.text("started_at"), &a.id).cmp(&(b.text("started_at"), &b.id)));
        Ok((sessions, total))
    }
}

fn session(id: &str) -> String {
    format!("{SESSION}{id}")
}

fn hash(instance: &str) -> String {
    format!("dalston:realtime:instance:{instance}")
}

fn sessions(instance: &str) -> String {
    format!("dalston:realtime:instance:{instance}:sessions")
}
