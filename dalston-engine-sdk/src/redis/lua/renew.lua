-- Renews the lease: the idle time becomes zero, the delivery count stays.
-- ARGV[6]: the consumer of released tasks, which has the waiting message of the task.

local owner = ownership()
if owner == HELD then
  if #redis.call('XCLAIM', stream, group, instance, 0, id, 'JUSTID') == 0 then return GONE end
  -- The platform fails a running task that has an idle entry of a dead consumer.
  local waiting = waiting_message()
  if waiting then redis.call('XCLAIM', stream, group, ARGV[6], 0, waiting, 'JUSTID') end
end
return owner
