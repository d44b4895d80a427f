-- Finds out what is known about the task, makes this claim its owner, and removes the marks of a
-- task that waited for an engine.
-- KEYS[3]: the cancellation of the job. KEYS[4]: the set of waiting tasks. ARGV[6]: the task.
-- ARGV[7..10]: the wait markers. ARGV[11]: the lease in ms. ARGV[12]: the consumer of released
-- tasks. ARGV[13]: prefix of registry records.
-- Returns 'task', eight fields of the metadata, the number of earlier deliveries, the ages of the
-- task and of this message in ms, or another word and the reason.

local owner = ownership_of_entry()
if owner ~= HELD and owner ~= UNRECORDED then return {'lost'} end

-- How an engine that is alive holds this message: 'renewed' within the lease, or 'alive'.
local function holder(message)
  local entries = redis.pcall('XPENDING', stream, group, message, message, 1)
  local entry = not entries.err and entries[1]
  if not entry or entry[2] == ARGV[12] or entry[2] == RESTORED then return false end
  if entry[3] < tonumber(ARGV[11]) then return 'renewed' end
  -- An engine in Python does not renew.
  local record = ARGV[13] .. entry[2]
  local status = redis.pcall('HGET', record, 'status')
  return type(status) == 'string' and status ~= 'offline' and redis.call('PTTL', record) > 0 and 'alive'
end

-- A message that was queued before the reported end of its task, or while its task is in hand under
-- another message, would have the task done twice.
local ended, other = metadata('HGET', 'ended'), message_of_owner()
local is_ended = ended and is_before(id, ended)
local other_holder = not is_ended and other and holder(other)
if is_ended or other_holder then
  if owner == HELD then
    -- The platform may acknowledge the other message, and its holder may die. So this one waits. An
    -- engine in Python would neither renew nor acknowledge it, and does not expect a second one.
    if other_holder == 'renewed' and (waiting_message() or id) == id then
      redis.call('XCLAIM', stream, group, ARGV[12], 0, id, 'JUSTID')
      metadata('HSET', 'waiting_message', id)
    else
      redis.call('XACK', stream, group, id)
    end
  end
  -- The platform would queue a task again whose message is not pending.
  if not is_ended then metadata('HSET', 'stream_message_id', other) end
  return {'duplicate', is_ended and 'the task had ended' or metadata('HGET', 'owner')}
end
if metadata('HGET', 'waiting_message') == id then metadata('HDEL', 'waiting_message') end
if redis.call('EXISTS', KEYS[2]) == 1 then metadata('HSET', 'owner', claim) end
if redis.call('EXISTS', KEYS[3]) == 1 then
  local is_running = earlier_deliveries() > 0 or metadata('HGET', 'inference_starts')
  return {'cancelled', is_running and '1' or ''}
end
local fields = redis.pcall('HMGET', KEYS[2], ARGV[7], 'blocked_reason', 'stage', 'enqueued_at', 'loaded_model_id',
  'request_id', '_trace_context', 'request_bindings_json', 'resolved_artifact_ids_json',
  'inference_starts')
if fields.err then return {'malformed', fields.err} end
if fields[2] then return {'blocked', fields[2]} end
if not fields[3] and redis.call('EXISTS', KEYS[2]) == 0 then
  return {owner == UNRECORDED and 'unrecorded' or 'missing'}
end
if fields[1] then
  redis.call('HDEL', KEYS[2], ARGV[7], ARGV[8], ARGV[9], ARGV[10])
  redis.call('SREM', KEYS[4], ARGV[6])
end
local deliveries, queued_at = earlier_deliveries()
fields[11] = tostring(deliveries)
-- By the clock that gave the messages their ids. Without it there are no ages.
local now = now_ms()
if now then
  fields[12] = string.format('%d', now - queued_at)
  fields[13] = string.format('%d', now - string.match(id, '^%d+'))
end
return {'task', unpack(fields, 3, 13)}
