-- Reports that inference begins, and counts that in the metadata until its end is known: a worker
-- that dies in between leaves the count. A repeated call does nothing.
-- ARGV[8..12]: the event.

local owner = ownership()
if owner ~= HELD and owner ~= UNRECORDED then return owner end
if metadata('HGET', 'started_by') ~= claim then
  report(8)
  -- Metadata that has expired must not come back without its other fields and without an end.
  if redis.call('EXISTS', KEYS[2]) == 1 then
    metadata('HINCRBY', 'inference_starts', 1)
    metadata('HSET', 'started_by', claim)
  end
end
return owner
