//! What the server does in one step. It is checked first who holds the entry, so that a worker that lost a task can neither
//! renew, finish nor hand back what belongs to another one by now.
//!
//! A bare `XCLAIM` or `XACK` would do as it is told, whoever sends it.
//!
//! There is one script for everything about tasks in hand. A script call costs the server more than what a task wants of it,
//! so what several tasks want at the same time goes into one call.

use std::sync::LazyLock;

use redis::Script;

/// What a call answers about an entry that is its caller's.
pub(super) const HELD: &str = "held";
/// Nobody holds the entry: it was acknowledged or deleted.
pub(super) const GONE: &str = "gone";

/// The consumer to which a task goes that was handed back. It is never registered, so every engine, also one in Python,
/// takes it for dead and its tasks for free.
pub(super) const HANDED_BACK: &str = "handed-back";

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

/// Does what one instance wants of its tasks: any number of calls, one after the other, each checked on its own. What goes wrong
/// in one of them ends that one only.
///
/// `KEYS[1]` is the task stream, `KEYS[2]` the event stream, `KEYS[3]` the set of waiting tasks; `ARGV[1..4]` are group,
/// instance, the length of the event stream and the channel; `ARGV[5..8]` the wait markers. Then come the calls: a name,
/// message id, delivery count, and the call's own arguments. Further keys belong to the calls in their order. Returns an answer
/// for each.
pub(super) static CALLS: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r#"
local stream, event_stream, waiting = KEYS[1], KEYS[2], KEYS[3]
local group, me, longest, channel = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local next_key, next_argument = 3, 8
local function key()
  next_key = next_key + 1
  return KEYS[next_key]
end
local function argument()
  next_argument = next_argument + 1
  return ARGV[next_argument]
end

local function ownership(id, deliveries)
  local found = redis.pcall('XPENDING', stream, group, id, id, 1)
  if found.err then
    if string.find(found.err, 'NOGROUP', 1, true) then return 'gone' end
    error(found)
  end
  local entry = found[1]
  if not entry then return 'gone' end
  if entry[2] == me and entry[4] == tonumber(deliveries) then return 'held' end
  return 'lost'
end

-- The durable copy comes first.
local function report(kind, timestamp, payload, context, copy)
  if context == '' then
    redis.call('XADD', event_stream, 'MAXLEN', '~', longest, '*',
      'type', kind, 'timestamp', timestamp, 'payload', payload)
  else
    redis.call('XADD', event_stream, 'MAXLEN', '~', longest, '*',
      'type', kind, 'timestamp', timestamp, 'payload', payload, '_trace_context', context)
  end
  redis.call('PUBLISH', channel, copy)
end

-- Whether the task should be done, and then what its metadata says of it, in a fixed order.
local function look(id, deliveries, task, cancellation, hash)
  local owner = ownership(id, deliveries)
  if owner ~= 'held' then return {owner} end
  if redis.call('EXISTS', cancellation) == 1 then return {'cancelled'} end
  local said = redis.pcall('HMGET', hash, 'stage', 'enqueued_at', 'loaded_model_id', 'request_id', '_trace_context',
    'request_bindings_json', 'resolved_artifact_ids_json', 'blocked_reason', ARGV[5], ARGV[6], ARGV[7], ARGV[8])
  if said.err then return {'malformed', said.err} end
  if said[8] then return {'blocked', said[8]} end
  if not said[1] and redis.call('EXISTS', hash) == 0 then return {'missing'} end
  if said[9] or said[10] or said[11] or said[12] then
    redis.call('HDEL', hash, ARGV[5], ARGV[6], ARGV[7], ARGV[8])
    redis.call('SREM', waiting, task)
  end
  return {'task', {said[1], said[2], said[3], said[4], said[5], said[6], said[7]}}
end

local calls = {}

-- Begins the lease anew: the idle time is set to zero, the delivery count stays.
function calls.renew(id, deliveries)
  local owner = ownership(id, deliveries)
  if owner == 'held' and #redis.call('XCLAIM', stream, group, me, 0, id, 'JUSTID') == 0 then return 'gone' end
  return owner
end

-- Hands the entry to nobody, idle for some milliseconds already.
function calls.release(id, deliveries)
  local nobody, idle = argument(), argument()
  local owner = ownership(id, deliveries)
  if owner == 'held' then redis.call('XCLAIM', stream, group, nobody, 0, id, 'IDLE', idle, 'JUSTID') end
  return owner
end

function calls.cancelled()
  return redis.call('EXISTS', key())
end

function calls.lookup(id, deliveries)
  return look(id, deliveries, argument(), key(), key())
end

-- The lookup, and the report of the start with what the metadata adds to it: only where that is so plain that it can be
-- put into JSON as it is. Otherwise the caller has to.
function calls.begin(id, deliveries)
  local task, kind, timestamp, payload, copy = argument(), argument(), argument(), argument(), argument()
  local found = look(id, deliveries, task, key(), key())
  if found[1] ~= 'task' then return found end
  local request_id, context = found[2][4] or '', found[2][5] or ''
  if request_id ~= '' then
    if string.find(request_id, '[^%w%._%-]') then return found end
    local more = string.format(',"request_id":"%s"}', request_id)
    payload, copy = string.sub(payload, 1, -2) .. more, string.sub(copy, 1, -2) .. more
  end
  if context ~= '' then
    if not string.find(context, '^{"traceparent": ?"00%-%x+%-%x+%-%x%x"}$') then return found end
    copy = string.format('%s,"_trace_context":%s}', string.sub(copy, 1, -2), context)
  end
  report(kind, timestamp, payload, context, copy)
  found[3] = 'reported'
  return found
end

function calls.started(id, deliveries)
  local kind, timestamp, payload, context, copy = argument(), argument(), argument(), argument(), argument()
  local owner = ownership(id, deliveries)
  if owner == 'held' then report(kind, timestamp, payload, context, copy) end
  return owner
end

-- Artifacts, event, acknowledgement, in this order: whoever sees the event finds the artifacts, and a task without an event
-- is still in the queue.
function calls.finish(id, deliveries)
  local kind, timestamp, payload, context, copy = argument(), argument(), argument(), argument(), argument()
  local artifacts, ids = tonumber(argument()), nil
  local index, hash, first = nil, nil, next_argument + 1
  if artifacts > 0 then
    index, hash, ids, first = key(), key(), argument(), first + 1
    next_argument = next_argument + 2 * artifacts
  end
  local owner = ownership(id, deliveries)
  if owner ~= 'held' then return owner end
  for i = first, first + 2 * artifacts - 2, 2 do redis.call('HSET', index, ARGV[i], ARGV[i + 1]) end
  if artifacts > 0 and redis.call('EXISTS', hash) == 1 then
    redis.call('HSET', hash, 'produced_artifact_ids_json', ids)
  end
  if kind ~= '' then report(kind, timestamp, payload, context, copy) end
  redis.call('XACK', stream, group, id)
  return owner
end

local answers = {}
while next_argument < #ARGV do
  local name, id, deliveries = argument(), argument(), argument()
  local done, answer = pcall(calls[name], id, deliveries)
  if not done then answer = {'error', type(answer) == 'table' and answer.err or tostring(answer)} end
  answers[#answers + 1] = answer
end
return answers
"#,
    )
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

/// Removes instances from the sets `KEYS` that have no record (`ARGV[1]` and their name), which processes leave that were killed.
/// Looks at no more than `ARGV[2]` of the first set, picked at random. Returns how many it removed.
pub(crate) static BURY: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r"
local removed = 0
for _, instance in ipairs(redis.call('SRANDMEMBER', KEYS[1], ARGV[2])) do
  if redis.call('EXISTS', ARGV[1] .. instance) == 0 then
    for i = 1, #KEYS do redis.call('SREM', KEYS[i], instance) end
    removed = removed + 1
  end
end
return removed
",
    )
});
