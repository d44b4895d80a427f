-- Gives the task back as release.lua does, and counts that in the field ARGV[10] of its metadata.
-- Not more than ARGV[11] times, and not without metadata: nothing else outlives the workers that a
-- task passes through.

local REFUSED = 5
local owner = ownership()
if owner ~= HELD then return owner end
local count = redis.pcall('HGET', KEYS[2], ARGV[10])
if type(count) == 'table' then return REFUSED end
if (tonumber(count or 0) or 0) >= tonumber(ARGV[11]) or redis.call('EXISTS', KEYS[2]) == 0 then return REFUSED end
redis.call('HINCRBY', KEYS[2], ARGV[10], 1)
give_back()
return owner
