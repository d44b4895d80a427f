//! What the server does in one step. Each script checks first who holds the entry, so that a worker that lost a task can
//! neither renew, finish nor hand back what belongs to another one by now.
//!
//! A bare `XCLAIM` or `XACK` would do as it is told, whoever sends it.

use std::sync::LazyLock;

use redis::Script;

/// What [`held`](OWNERSHIP) answers, and what every script returns first.
pub(super) const HELD: &str = "held";
/// Nobody holds the entry: it was acknowledged or deleted.
pub(super) const GONE: &str = "gone";

/// The consumer to which a task goes that was handed back. It is never registered, so every engine, also one in Python,
/// takes it for dead and its tasks for free.
pub(super) const HANDED_BACK: &str = "handed-back";

/// `KEYS[1]` is the stream; `ARGV[1..4]` are group, message id, consumer and delivery count of the claim.
const OWNERSHIP: &str = r"
local stream, group, id, me = KEYS[1], ARGV[1], ARGV[2], ARGV[3]
local function ownership()
  local found = redis.pcall('XPENDING', stream, group, id, id, 1)
  if found.err then
    if string.find(found.err, 'NOGROUP', 1, true) then return 'gone' end
    error(found.err)
  end
  local entry = found[1]
  if not entry then return 'gone' end
  if entry[2] == me and entry[4] == tonumber(ARGV[4]) then return 'held' end
  return 'lost'
end
local owner = ownership()
";

/// `KEYS[2]` is the event stream; `ARGV[first..]` are its length, the channel, type, timestamp, payload, trace context
/// (empty for none) and the published copy. The durable copy comes first.
const EVENT: &str = r"
local function event(first)
  local fields = {'type', ARGV[first + 2], 'timestamp', ARGV[first + 3], 'payload', ARGV[first + 4]}
  if ARGV[first + 5] ~= '' then
    fields[#fields + 1] = '_trace_context'
    fields[#fields + 1] = ARGV[first + 5]
  end
  redis.call('XADD', KEYS[2], 'MAXLEN', '~', ARGV[first], '*', unpack(fields))
  redis.call('PUBLISH', ARGV[first + 1], ARGV[first + 6])
end
";

/// Looks at up to `ARGV[4]` entries that are idle for `ARGV[3]` ms, after the id `ARGV[2]`; `ARGV[5]` restricts it to one
/// consumer. Returns of each: id, consumer, idle time, deliveries, and of the consumer's record: milliseconds it has left,
/// status and last heartbeat.
pub(super) static STALE: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r"
local query = {'XPENDING', KEYS[1], ARGV[1], 'IDLE', ARGV[3], ARGV[2], '+', ARGV[4]}
if ARGV[5] ~= '' then query[#query + 1] = ARGV[5] end
local records, answer = {}, {}
for _, entry in ipairs(redis.call(unpack(query))) do
  local consumer = entry[2]
  if not records[consumer] then
    local key = ARGV[6] .. consumer
    local record = redis.pcall('HMGET', key, 'status', 'last_heartbeat')
    if record.err then record = {} end
    records[consumer] = {redis.call('PTTL', key), record[1] or '', record[2] or ''}
  end
  local record = records[consumer]
  answer[#answer + 1] = {entry[1], consumer, entry[3], entry[4], record[1], record[2], record[3]}
end
return answer
",
    )
});

/// Takes the entry `ARGV[2]` over from `ARGV[5]`, if that one still holds it in the same delivery and is still silent for
/// `ARGV[6]` ms. Returns the fields of the message, an empty list if it was deleted, nil if it can't be had.
pub(super) static CLAIM: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r"
local stream, group, id, me = KEYS[1], ARGV[1], ARGV[2], ARGV[3]
local entry = redis.call('XPENDING', stream, group, id, id, 1)[1]
if not entry or entry[2] ~= ARGV[5] or entry[4] ~= tonumber(ARGV[4]) or entry[3] < tonumber(ARGV[6]) then
  return false
end
local claimed = redis.call('XCLAIM', stream, group, me, 0, id)[1]
if not claimed or not claimed[2] then
  redis.call('XACK', stream, group, id)
  return {}
end
return claimed[2]
",
    )
});

/// Begins the lease anew: the idle time is set to zero, the delivery count stays.
pub(super) static RENEW: LazyLock<Script> = LazyLock::new(|| {
    script(&[
        OWNERSHIP,
        r"
if owner == 'held' and #redis.call('XCLAIM', stream, group, me, 0, id, 'JUSTID') == 0 then return 'gone' end
return owner
",
    ])
});

/// Hands the entry to nobody, idle for `ARGV[5]` ms already.
pub(super) static RELEASE: LazyLock<Script> = LazyLock::new(|| {
    script(&[
        OWNERSHIP,
        r"
if owner == 'held' then redis.call('XCLAIM', stream, group, ARGV[6], 0, id, 'IDLE', ARGV[5], 'JUSTID') end
return owner
",
    ])
});

/// `KEYS[2]` the job's cancellation, `KEYS[3]` the task's metadata, `KEYS[4]` the set of waiting tasks; `ARGV[5]` the task,
/// `ARGV[6..]` the wait markers. Returns what to do and, for a task, its metadata as a flat list.
pub(super) static LOOKUP: LazyLock<Script> = LazyLock::new(|| {
    script(&[
        OWNERSHIP,
        r"
if owner ~= 'held' then return {owner} end
if redis.call('EXISTS', KEYS[2]) == 1 then return {'cancelled'} end
local metadata = redis.pcall('HGETALL', KEYS[3])
if metadata.err then return {'malformed', metadata.err} end
if #metadata == 0 then return {'missing'} end
local blocked = redis.call('HGET', KEYS[3], 'blocked_reason')
if blocked then return {'blocked', blocked} end
redis.call('HDEL', KEYS[3], unpack(ARGV, 6))
redis.call('SREM', KEYS[4], ARGV[5])
return {'task', metadata}
",
    ])
});

/// Adds an event.
pub(super) static STARTED: LazyLock<Script> = LazyLock::new(|| {
    script(&[
        OWNERSHIP,
        EVENT,
        r"
if owner == 'held' then event(5) end
return owner
",
    ])
});

/// Artifacts, event, acknowledgement, in this order: whoever sees the event finds the artifacts, and a task without an
/// event is still in the queue. `ARGV[5]` says whether there is an event (`ARGV[6..12]`); `KEYS[3]` is the job's artifact
/// index, `KEYS[4]` the task's metadata; `ARGV[13]` the list of artifact ids (empty for none), `ARGV[14..]` ids and references.
pub(super) static FINISH: LazyLock<Script> = LazyLock::new(|| {
    script(&[
        OWNERSHIP,
        EVENT,
        r"
if owner ~= 'held' then return owner end
for i = 14, #ARGV, 2 do redis.call('HSET', KEYS[3], ARGV[i], ARGV[i + 1]) end
if ARGV[13] ~= '' and redis.call('EXISTS', KEYS[4]) == 1 then
  redis.call('HSET', KEYS[4], 'produced_artifact_ids_json', ARGV[13])
end
if ARGV[5] == '1' then event(6) end
redis.call('XACK', stream, group, id)
return owner
",
    ])
});

/// Removes what is acknowledged from the front of the stream. Entries that are acknowledged behind one that is not have to
/// wait: `XDEL` would remove them, but then the server no longer knows how long the queue is (its `lag` becomes nil),
/// and the platform reads that as an empty queue.
///
/// A server that was a replica does not know either how much its predecessor had delivered, and is wrong about the lag until
/// it is told. It can be told when all was delivered.
pub(super) static TRIM: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r"
local groups = redis.pcall('XINFO', 'GROUPS', KEYS[1])
if groups.err or #groups ~= 1 then return 0 end
local group = {}
for i = 1, #groups[1], 2 do group[groups[1][i]] = groups[1][i + 1] end
if group['name'] ~= ARGV[1] then return 0 end
local oldest = group['last-delivered-id']
if group['lag'] ~= 0 then
  local info, stream = redis.call('XINFO', 'STREAM', KEYS[1]), {}
  for i = 1, #info, 2 do stream[info[i]] = info[i + 1] end
  if stream['entries-added'] and stream['last-generated-id'] == oldest then
    redis.call('XGROUP', 'SETID', KEYS[1], ARGV[1], oldest, 'ENTRIESREAD', stream['entries-added'])
  end
end
local pending = redis.call('XPENDING', KEYS[1], ARGV[1])
if pending[1] > 0 then oldest = pending[2] end
return redis.call('XTRIM', KEYS[1], 'MINID', '~', oldest)
",
    )
});

/// Removes consumers of the group `ARGV[1]` that hold nothing, did nothing for `ARGV[2]` ms and have no record (`ARGV[3]` and
/// their name): every process that ever ran leaves one. One that lives after all is made anew by its next read.
pub(super) static FORGET: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r"
local consumers = redis.pcall('XINFO', 'CONSUMERS', KEYS[1], ARGV[1])
if consumers.err then return 0 end
local removed = 0
for _, entry in ipairs(consumers) do
  local consumer = {}
  for i = 1, #entry, 2 do consumer[entry[i]] = entry[i + 1] end
  local name = consumer['name']
  if consumer['pending'] == 0 and consumer['idle'] >= tonumber(ARGV[2])
    and redis.call('EXISTS', ARGV[3] .. name) == 0 then
    redis.call('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[1], name)
    removed = removed + 1
  end
end
return removed
",
    )
});

/// Writes a heartbeat, or the whole record with its memberships `KEYS[2..]` if the record `KEYS[1]` is gone or was cut short.
/// `ARGV` is the instance, the milliseconds that the record lives, how many of the other arguments are the heartbeat's names and
/// values, these, and those of the whole record. Returns whether the record was there.
pub(crate) static HEARTBEAT: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r"
local instance, lifetime, fields = ARGV[1], ARGV[2], tonumber(ARGV[3])
local there = redis.call('HEXISTS', KEYS[1], 'capabilities')
if there == 1 then
  redis.call('HSET', KEYS[1], unpack(ARGV, 4, 3 + fields))
else
  redis.call('HSET', KEYS[1], unpack(ARGV, 4 + fields))
  for i = 2, #KEYS do redis.call('SADD', KEYS[i], instance) end
end
redis.call('PEXPIRE', KEYS[1], lifetime)
return there
",
    )
});

fn script(parts: &[&str]) -> Script {
    Script::new(&parts.concat())
}
