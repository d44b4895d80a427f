-- Loading and draining engines have free capacity by their record, and begin no task.
local TAKES_TASKS = {idle = true, processing = true, ready = true, busy = true}

-- How many tasks the live engines in the set `instances` can begin at once, except the engine
-- `own`. Their records begin with `prefix`.
local function free_capacity(instances, prefix, own)
  local free = 0
  for _, instance in ipairs(redis.call('SMEMBERS', instances)) do
    local record = redis.pcall('HMGET', prefix .. instance, 'status', 'capacity', 'active_batch', 'active_realtime')
    if instance ~= own and not record.err and TAKES_TASKS[record[1]] and redis.call('PTTL', prefix .. instance) > 0 then
      local capacity, batch, realtime = tonumber(record[2]), tonumber(record[3]), tonumber(record[4])
      free = free + math.max(0, (capacity or 1) - (batch or 0) - (realtime or 0))
    end
  end
  return free
end

