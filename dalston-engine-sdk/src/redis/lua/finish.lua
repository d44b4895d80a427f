-- Reports the outcome of the task, unless the type of the event is empty, and removes the task from
-- the queue.
-- KEYS[4]: the artifacts of the job. ARGV[8..12]: the event. ARGV[13..17]: the event of the start,
-- which comes first if this claim has not reported it; its type is empty if it is not needed.
-- ARGV[18]: the ids of the artifacts as JSON. ARGV[19..]: ids and references.

local owner = ownership()
if owner ~= HELD and owner ~= UNRECORDED then return owner end
-- The order matters: a reader of the event finds the artifacts, and a task without an event is
-- still in the queue.
for i = 19, #ARGV, 2 do redis.call('HSET', KEYS[4], ARGV[i], ARGV[i + 1]) end
-- Metadata that has expired must not come back without its other fields and without an end.
if #ARGV > 18 and redis.call('EXISTS', KEYS[2]) == 1 then
  redis.call('HSET', KEYS[2], 'produced_artifact_ids_json', ARGV[18])
end
if ARGV[13] ~= '' and metadata('HGET', 'started_by') ~= claim then report(13) end
if ARGV[8] ~= '' then
  -- The time of the server, as in the ids of messages.
  local time = report(8)
  if redis.call('EXISTS', KEYS[2]) == 1 then metadata('HSET', 'ended', string.match(time, '^%d+') .. '-0') end
end
-- The platform may queue the task again. That attempt has no earlier starts. A repeated call, after
-- an answer that was lost, must not make the entry pending again.
metadata('HDEL', 'inference_starts', 'started_by')
remove_waiting_message()
if owner == HELD then redis.call('XACK', stream, group, id) end
return owner
