-- Reports the outcome of the task, unless the type of the event is empty, and removes the task from the queue.
-- KEYS[3]: the artifacts of the job. KEYS[4]: the metadata of the task. ARGV[12]: the ids of the artifacts as JSON.
-- ARGV[13..]: ids and references.

local owner = ownership()
if owner ~= HELD then return owner end
-- The order matters: a reader of the event finds the artifacts, and a task without an event is still in the queue.
for i = 13, #ARGV, 2 do redis.call('HSET', KEYS[3], ARGV[i], ARGV[i + 1]) end
-- Metadata that has expired must not come back without its other fields and without an end.
if #ARGV > 12 and redis.call('EXISTS', KEYS[4]) == 1 then
  redis.call('HSET', KEYS[4], 'produced_artifact_ids_json', ARGV[12])
end
if ARGV[6] ~= '' then report() end
redis.call('XACK', stream, group, id)
return owner
