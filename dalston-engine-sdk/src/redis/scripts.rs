//! What the server does in one step. It is checked first who holds the entry, so that a worker that lost a task can neither
//! renew, finish nor hand back what belongs to another one by now.
//!
//! A bare `XCLAIM` or `XACK` would do as it is told, whoever sends it.
//!
//! There is one script for everything about tasks in hand. A script call costs the server more than what a task wants of it,
//! so what several tasks want at the same time goes into one call.

use std::sync::LazyLock;

use redis::Script;

/// What a call answers about an entry that is its caller's, of one that nobody holds because it was acknowledged or deleted, and
/// of one that somebody else holds.
pub(super) const HELD: i64 = 1;
pub(super) const GONE: i64 = 2;
pub(super) const LOST: i64 = 3;

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
/// `KEYS[1]` is the task stream, `KEYS[2]` the event stream, `KEYS[3]` the set of waiting tasks. `ARGV[1..5]` are group,
/// instance, the length of the event stream, the channel, and the time of all events; `ARGV[6..9]` the wait markers. `ARGV[10]` is the
/// number of lookups: the keys of their cancellations follow the first three, and then those of their metadata. `ARGV[11..13]`
/// are the smallest and the largest message id of the calls, and how many entries between them we look at in one go. Then come
/// the calls: a name, message id, delivery count, and the call's own arguments. Further keys belong to the other calls in their
/// order. Returns an answer for each, all of them packed into one text: that costs the server less than to write them out, and the
/// worker far less to read.
///
/// A command costs more here than what it does, and a text costs by its length: Lua hashes it. So what can be asked or told
/// about all tasks at once is one command, and what is the same in two texts comes once.
pub(super) static CALLS: LazyLock<Script> = LazyLock::new(|| {
    Script::new(&format!(
        "local HELD, GONE, LOST = {HELD}, {GONE}, {LOST}\n{}",
        r#"
local call, try = redis.call, redis.pcall
local stream, event_stream, waiting = KEYS[1], KEYS[2], KEYS[3]
local group, me, longest, channel, timestamp = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[5]
local lookups, first, last, most = tonumber(ARGV[10]), ARGV[11], ARGV[12], ARGV[13]
-- The numbers of the lookup, of the key and of the argument that come next.
local next_lookup, next_key, next_argument = 1, 4 + 2 * lookups, 14

-- Deliveries of the entries that are ours, by id: of most, so that few have to be looked for one by one.
local ours = {}
if most ~= '0' then
  local found = try('XPENDING', stream, group, first, last, most, me)
  for i = 1, #found do ours[found[i][1]] = found[i][4] end
end
-- What a call of this script ended is to be acknowledged together in the end.
local ended, ended_ids, ended_by = {}, {}, {}

local function ownership(id, deliveries)
  if ended[id] then return GONE end
  if ours[id] then return ours[id] == tonumber(deliveries) and HELD or LOST end
  local found = try('XPENDING', stream, group, id, id, 1)
  if found.err then
    if string.find(found.err, 'NOGROUP', 1, true) then return GONE end
    error(found)
  end
  local entry = found[1]
  if not entry then return GONE end
  if entry[2] == me and entry[4] == tonumber(deliveries) then return HELD end
  return LOST
end

-- Both copies of an event; the durable one comes first. `fields` is the text of the payload without the brace that opens it.
local reported = false
local function report(kind, fields, context)
  if context == '' then
    call('XADD', event_stream, '*', 'type', kind, 'timestamp', timestamp, 'payload', '{' .. fields)
  else
    call('XADD', event_stream, '*', 'type', kind, 'timestamp', timestamp, 'payload', '{' .. fields,
      '_trace_context', context)
    fields = string.sub(fields, 1, -2) .. ',"_trace_context":' .. context .. '}'
  end
  reported = true
  call('PUBLISH', channel, '{"type":"' .. kind .. '","timestamp":"' .. timestamp .. '",' .. fields)
end

local any_cancelled = lookups > 0 and try('EXISTS', unpack(KEYS, 4, 3 + lookups)) ~= 0

local calls = {}

-- Begins the lease anew: the idle time is set to zero, the delivery count stays.
function calls.renew(id, deliveries)
  local owner = ownership(id, deliveries)
  if owner == HELD and #call('XCLAIM', stream, group, me, 0, id, 'JUSTID') == 0 then return GONE end
  return owner
end

-- Hands the entry to nobody, idle for some milliseconds already.
function calls.release(id, deliveries, at)
  next_argument = at + 2
  local owner = ownership(id, deliveries)
  if owner == HELD then
    call('XCLAIM', stream, group, ARGV[at], 0, id, 'IDLE', ARGV[at + 1], 'JUSTID')
    ours[id] = nil
  end
  return owner
end

function calls.cancelled()
  next_key = next_key + 1
  return call('EXISTS', KEYS[next_key - 1])
end

-- Whether a task that is ours should be done: what its metadata says of it, in a fixed order after a zero, or why not.
function calls.lookup(id, deliveries, at)
  local cancellation, hash, task = KEYS[3 + next_lookup], KEYS[3 + lookups + next_lookup], ARGV[at]
  next_lookup, next_argument = next_lookup + 1, at + 1
  if ownership(id, deliveries) ~= HELD then return {'lost'} end
  if any_cancelled and call('EXISTS', cancellation) == 1 then return {'cancelled'} end
  local said = try('HMGET', hash, 'blocked_reason', 'stage', 'enqueued_at', 'loaded_model_id', 'request_id',
    '_trace_context', 'request_bindings_json', 'resolved_artifact_ids_json', ARGV[6])
  if said.err then return {'malformed', said.err} end
  if said[1] then return {'blocked', said[1]} end
  if not said[2] and call('EXISTS', hash) == 0 then return {'missing'} end
  if said[9] then
    call('HDEL', hash, ARGV[6], ARGV[7], ARGV[8], ARGV[9])
    call('SREM', waiting, task)
  end
  said[1], said[9] = 0, nil
  return said
end

function calls.started(id, deliveries, at)
  next_argument = at + 3
  local owner = ownership(id, deliveries)
  if owner == HELD then report(ARGV[at], ARGV[at + 1], ARGV[at + 2]) end
  return owner
end

-- Artifacts, event, acknowledgement, in this order: whoever sees the event finds the artifacts, and a task without an event
-- is still in the queue.
function calls.finish(id, deliveries, at, place)
  local kind, artifacts = ARGV[at], tonumber(ARGV[at + 3])
  next_argument = at + 4
  local index, hash = nil, nil
  if artifacts > 0 then
    index, hash = KEYS[next_key], KEYS[next_key + 1]
    next_key, next_argument = next_key + 2, at + 5 + 2 * artifacts
  end
  local owner = ownership(id, deliveries)
  if owner ~= HELD then return owner end
  for i = at + 5, next_argument - 2, 2 do call('HSET', index, ARGV[i], ARGV[i + 1]) end
  if artifacts > 0 and call('EXISTS', hash) == 1 then
    call('HSET', hash, 'produced_artifact_ids_json', ARGV[at + 4])
  end
  if kind ~= '' then report(kind, ARGV[at + 1], ARGV[at + 2]) end
  ended[id] = true
  ended_ids[#ended_ids + 1] = id
  ended_by[#ended_by + 1] = place
  return owner
end

local answers = {}
while next_argument <= #ARGV do
  local at, place = next_argument, #answers + 1
  next_argument = at + 3
  local done, answer = pcall(calls[ARGV[at]], ARGV[at + 1], ARGV[at + 2], at + 3, place)
  if not done then answer = {'error', type(answer) == 'table' and answer.err or tostring(answer)} end
  answers[place] = answer
end
if #ended_ids > 0 then
  local acknowledged = try('XACK', stream, group, unpack(ended_ids))
  if type(acknowledged) == 'table' and acknowledged.err then
    for _, place in ipairs(ended_by) do answers[place] = {'error', acknowledged.err} end
  end
end
if reported then try('XTRIM', event_stream, 'MAXLEN', '~', longest) end
return cmsgpack.pack(answers)
"#,
    ))
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
pub(super) static HEARTBEAT: LazyLock<Script> = LazyLock::new(|| {
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
pub(super) static REMOVE_STALE_INSTANCES: LazyLock<Script> = LazyLock::new(|| {
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
