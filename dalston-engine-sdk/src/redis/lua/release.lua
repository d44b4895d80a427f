-- Hands the task to the consumer ARGV[6], idle for ARGV[7] ms already.

local owner = ownership()
if owner == HELD then
  uncount_start()
  redis.call('XCLAIM', stream, group, ARGV[6], 0, id, 'IDLE', ARGV[7], 'JUSTID')
end
return owner
