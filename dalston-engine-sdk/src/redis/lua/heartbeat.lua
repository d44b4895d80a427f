-- Renews the registry record KEYS[1], or writes all of it and its memberships KEYS[2..] if it is
-- gone or incomplete.
-- ARGV[1]: the instance. ARGV[2]: the ms that the record lives. ARGV[3]: how many of the following
-- arguments belong to the heartbeat. ARGV[4..]: names and values of the heartbeat, then names and
-- values of the whole record.
-- Returns whether the record was there.

local instance, lifetime, count = ARGV[1], ARGV[2], tonumber(ARGV[3])
local there = redis.call('HEXISTS', KEYS[1], 'capabilities')
if there == 1 then
  redis.call('HSET', KEYS[1], unpack(ARGV, 4, 3 + count))
else
  redis.call('HSET', KEYS[1], unpack(ARGV, 4 + count))
  for i = 2, #KEYS do redis.call('SADD', KEYS[i], instance) end
end
redis.call('PEXPIRE', KEYS[1], lifetime)
return there
