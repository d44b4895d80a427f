-- Begins every script about a task that an instance holds.
-- KEYS[1]: the task stream. KEYS[2]: the metadata of the task. ARGV[1..5]: the consumer group, the
-- instance, the message id, the delivery count, '1' if the metadata existed when the task was
-- looked up.

local HELD, GONE, LOST, UNRECORDED = 1, 2, 3, 4
local stream = KEYS[1]
local group, instance, id, delivery_count = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4])
-- The name of this claim in the metadata: the message, the attempt, the instance.
local claim = id .. ' ' .. ARGV[4] .. ' ' .. instance

-- Sends a command about the metadata. Metadata of a wrong type counts as missing. A server that
-- takes no writes at the moment fails the script: an owner or a start would be wrong for good.
local function metadata(command, ...)
  local reply = redis.pcall(command, KEYS[2], ...)
  if type(reply) ~= 'table' or not reply.err then return reply end
  for _, refusal in ipairs({'OOM', 'MISCONF', 'NOREPLICAS', 'READONLY'}) do
    if string.find(reply.err, refusal, 1, true) then redis.call(command, KEYS[2], ...) end
  end
  return false
end

-- Deliveries under earlier messages, if this message is the copy of one that was handed back, and
-- when the first message was queued, in ms.
local function earlier_deliveries()
  local pattern = '^(%S+) (%d+) (%d+)$'
  local copy, deliveries, queued_at = string.match(metadata('HGET', 'handed_back') or '', pattern)
  if copy == id then return tonumber(deliveries), tonumber(queued_at) end
  return 0, tonumber(string.match(id, '^%d+'))
end

local function is_before(a, b)
  local a_time, a_sequence = string.match(a, '^(%d+)-(%d+)$')
  local b_time, b_sequence = string.match(b, '^(%d+)-(%d+)$')
  if a_time ~= b_time then return tonumber(a_time) < tonumber(b_time) end
  return tonumber(a_sequence) < tonumber(b_sequence)
end

-- Whether the server lost its data, the stream or the group since it delivered the entry, which is
-- not pending any more. The other reason is that a consumer acknowledged it; an engine in Python
-- leaves no other trace of that.
local function is_unrecorded()
  local groups = redis.pcall('XINFO', 'GROUPS', stream)
  if groups.err then return true end
  for _, entry in ipairs(groups) do
    local fields = {}
    for i = 1, #entry, 2 do fields[entry[i]] = entry[i + 1] end
    if fields['name'] == group then
      -- Metadata outlives its task. Without it, the group is a new one that has delivered newer
      -- messages.
      return is_before(fields['last-delivered-id'], id) or (ARGV[5] == '1' and redis.call('EXISTS', KEYS[2]) == 0)
    end
  end
  return true
end

-- Another message of the task, which the owner of the task keeps pending.
local function waiting_message()
  local message = metadata('HGET', 'waiting_message')
  local entries = message and redis.pcall('XPENDING', stream, group, message, message, 1)
  return entries and not entries.err and entries[1] and message
end

local function remove_waiting_message()
  local message = waiting_message()
  if message then redis.call('XACK', stream, group, message) end
  metadata('HDEL', 'waiting_message')
end

-- Whether this claim owns the task, and another message of it waits. The platform adds such a
-- message before it acknowledges ours. Ours replaces it, once: the platform also acknowledges the
-- messages of tasks that it has ended.
local function replaces_waiting_message()
  if metadata('HGET', 'owner') ~= claim or not metadata('HGET', 'waiting_message') then return false end
  remove_waiting_message()
  metadata('HSET', 'stream_message_id', id)
  return true
end

-- A bare XCLAIM or XACK would do as it is told, whichever instance sends it.
-- GONE: no consumer holds the entry, because it was acknowledged or deleted.
-- UNRECORDED: no consumer holds the entry, because the server does not know any more that it was
-- delivered.
local function ownership_of_entry()
  local entries = redis.pcall('XPENDING', stream, group, id, id, 1)
  if entries.err and string.find(entries.err, 'NOGROUP', 1, true) then return UNRECORDED end
  if entries.err then redis.call('XPENDING', stream, group, id, id, 1) end
  local entry = entries[1]
  if not entry and replaces_waiting_message() then
    local restored = redis.call('XCLAIM', stream, group, instance, 0, id, 'RETRYCOUNT', delivery_count, 'FORCE', 'JUSTID')
    -- Without its message, the entry can't come back.
    return #restored > 0 and HELD or UNRECORDED
  end
  if not entry then return is_unrecorded() and UNRECORDED or GONE end
  if entry[2] == instance and entry[4] == delivery_count then return HELD end
  if entry[2] == RESTORED then
    redis.call('XCLAIM', stream, group, instance, 0, id, 'RETRYCOUNT', delivery_count, 'JUSTID')
    return HELD
  end
  return LOST
end

-- The message of the claim that owns the task by its metadata, if it is another one than ours. The
-- platform queues a task again under another message when it believes it lost. A missing field says
-- nothing: engines in Python write none.
local function message_of_owner()
  local message = string.match(metadata('HGET', 'owner') or '', '^%S+')
  return message ~= id and message
end

local function ownership()
  local owner = ownership_of_entry()
  if (owner == HELD or owner == UNRECORDED) and message_of_owner() then return LOST end
  return owner
end

