-- Finds out what is known about the task, and removes the marks of a task that waited for an
-- engine.
-- KEYS[3]: the cancellation of the job. KEYS[4]: the set of waiting tasks. ARGV[6]: the task.
-- ARGV[7..10]: the wait markers.
-- Returns 'task' and eight fields of the metadata, or another word and the reason.

local owner = ownership()
if owner ~= HELD and owner ~= FORGOTTEN then return {'lost'} end
if redis.call('EXISTS', KEYS[3]) == 1 then return {'cancelled'} end
local fields = redis.pcall('HMGET', KEYS[2], ARGV[7], 'blocked_reason', 'stage', 'enqueued_at', 'loaded_model_id',
  'request_id', '_trace_context', 'request_bindings_json', 'resolved_artifact_ids_json',
  'inference_starts')
if fields.err then return {'malformed', fields.err} end
if fields[2] then return {'blocked', fields[2]} end
if not fields[3] and redis.call('EXISTS', KEYS[2]) == 0 then
  return {owner == FORGOTTEN and 'forgotten' or 'missing'}
end
if fields[1] then
  redis.call('HDEL', KEYS[2], ARGV[7], ARGV[8], ARGV[9], ARGV[10])
  redis.call('SREM', KEYS[4], ARGV[6])
end
return {'task', unpack(fields, 3, 10)}
