-- Removes consumers of the group ARGV[1] that hold nothing, did nothing for ARGV[2] ms and have no
-- registry record (ARGV[3] and their name): every process that ever ran leaves one. A consumer that
-- still runs is made again by its next read.

local consumers = redis.pcall('XINFO', 'CONSUMERS', KEYS[1], ARGV[1])
if consumers.err then return 0 end
local removed = 0
for _, entry in ipairs(consumers) do
  local consumer = {}
  for i = 1, #entry, 2 do consumer[entry[i]] = entry[i + 1] end
  local name = consumer['name']
  if consumer['pending'] == 0 and consumer['idle'] >= tonumber(ARGV[2])
    and redis.call('EXISTS', ARGV[3] .. name) == 0 then
    redis.call('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[1], name)
    removed = removed + 1
  end
end
return removed
