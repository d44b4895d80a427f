-- Hands the task to the consumer ARGV[5], idle for ARGV[6] ms already.

local owner = ownership()
if owner == HELD then
  redis.call('XCLAIM', stream, group, ARGV[5], 0, id, 'IDLE', ARGV[6], 'JUSTID')
end
return owner
