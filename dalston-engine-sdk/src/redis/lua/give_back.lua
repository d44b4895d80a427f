-- Gives the entry back to the queue.
-- ARGV[6]: the consumer of released tasks. ARGV[7]: its entries are idle for so many ms. ARGV[8]:
-- '1' if the platform may take the task for a running one. ARGV[9]: how many deliveries the task
-- had under this message.

local function give_back()
  -- The worker survived the inference that it began. A server without memory takes a count only
  -- after a removal, and then all writes of the script.
  if metadata('HGET', 'started_by') == claim then
    metadata('HDEL', 'started_by')
    metadata('HINCRBY', 'inference_starts', -1)
  end
  local is_running = ARGV[8] == '1' or earlier_deliveries() > 0 or metadata('HGET', 'inference_starts')
  if message_of_owner() then
    -- Another claim owns the task, so the next consumer of this entry removes it. It must not look
    -- idle to the platform, which would fail the task.
    redis.call('XCLAIM', stream, group, ARGV[6], 0, id, 'JUSTID')
    return
  end
  remove_waiting_message()
  if not is_running then
    redis.call('XCLAIM', stream, group, ARGV[6], 0, id, 'IDLE', ARGV[7], 'JUSTID')
    return
  end
  -- Engines in Python claim an entry that is idle for 600 s. At the same time the platform fails
  -- it, if its task is running. So it is queued again.
  local message = redis.call('XRANGE', stream, id, id)[1]
  if message then
    local copy = redis.call('XADD', stream, '*', unpack(message[2]))
    if redis.call('EXISTS', KEYS[2]) == 1 then
      local deliveries, queued_at = earlier_deliveries()
      deliveries = deliveries + tonumber(ARGV[9])
      local handed_back = string.format('%s %d %d', copy, deliveries, queued_at)
      metadata('HSET', 'stream_message_id', copy, 'handed_back', handed_back)
      metadata('HSET', 'owner', copy .. ' 0 ' .. ARGV[6])
    end
  end
  redis.call('XACK', stream, group, id)
end

