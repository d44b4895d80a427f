-- Begins every script about a task that an instance holds.
-- KEYS[1]: the task stream. ARGV[1..4]: the consumer group, the instance, the message id, the delivery count.

local HELD, GONE, LOST = 1, 2, 3
local stream = KEYS[1]
local group, instance, id, delivery_count = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4])

-- A bare XCLAIM or XACK would do as it is told, whichever instance sends it.
-- GONE: no consumer holds the entry, because it was acknowledged or deleted.
local function ownership()
  local entry = redis.call('XPENDING', stream, group, id, id, 1)[1]
  if not entry then return GONE end
  if entry[2] == instance and entry[4] == delivery_count then return HELD end
  return LOST
end

