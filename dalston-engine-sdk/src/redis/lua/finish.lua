-- Reports the outcome of the task, unless the type of the event is empty, and removes the task from
-- the queue.
-- KEYS[4]: the artifacts of the job. ARGV[13]: the ids of the artifacts as JSON. ARGV[14..]: ids
-- and references.

local owner = ownership()
if owner ~= HELD and owner ~= FORGOTTEN then return owner end
-- The order matters: a reader of the event finds the artifacts, and a task without an event is
-- still in the queue.
for i = 14, #ARGV, 2 do redis.call('HSET', KEYS[4], ARGV[i], ARGV[i + 1]) end
-- Metadata that has expired must not come back without its other fields and without an end.
if #ARGV > 13 and redis.call('EXISTS', KEYS[2]) == 1 then
  redis.call('HSET', KEYS[2], 'produced_artifact_ids_json', ARGV[13])
end
if ARGV[7] ~= '' then report() end
if owner == HELD then redis.call('XACK', stream, group, id) end
return owner
