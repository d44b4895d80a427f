-- Claims an entry for the instance ARGV[3], if its consumer ARGV[5] still holds it in the same
-- delivery ARGV[4], and has not renewed it for ARGV[6] ms. Not while the server is out of memory.
-- KEYS[1]: the task stream. ARGV[1]: the consumer group. ARGV[2]: the message id. ARGV[7]: a
-- stream that does not exist.
-- Returns the fields of the message, an empty list if the message was deleted, nil if the entry
-- can't be had.

local full = out_of_memory(ARGV[7])
if full then return full end
local stream, group, id = KEYS[1], ARGV[1], ARGV[2]
local entry = redis.call('XPENDING', stream, group, id, id, 1)[1]
if not entry or entry[2] ~= ARGV[5] or entry[4] ~= tonumber(ARGV[4]) or entry[3] < tonumber(ARGV[6]) then
  return false
end
local claimed = redis.call('XCLAIM', stream, group, ARGV[3], 0, id)[1]
if not claimed or not claimed[2] then
  redis.call('XACK', stream, group, id)
  return {}
end
return claimed[2]
