-- Removes acknowledged entries from the front of the stream KEYS[1], which only the group ARGV[1]
-- may read. Entries that are acknowledged behind a pending one have to wait. XDEL would remove
-- them, but then the server no longer knows how long the queue is: its `lag` becomes nil, and the
-- platform reads that as an empty queue.

local groups = redis.pcall('XINFO', 'GROUPS', KEYS[1])
if groups.err or #groups ~= 1 then return 0 end
local group = {}
for i = 1, #groups[1], 2 do group[groups[1][i]] = groups[1][i + 1] end
if group['name'] ~= ARGV[1] then return 0 end
local oldest = group['last-delivered-id']
-- A server that was a replica does not know how much its predecessor had delivered, and its lag is
-- wrong until it is told. It can be told when all was delivered.
if group['lag'] ~= 0 then
  local info, stream = redis.call('XINFO', 'STREAM', KEYS[1]), {}
  for i = 1, #info, 2 do stream[info[i]] = info[i + 1] end
  if stream['entries-added'] and stream['last-generated-id'] == oldest then
    redis.call('XGROUP', 'SETID', KEYS[1], ARGV[1], oldest, 'ENTRIESREAD', stream['entries-added'])
  end
end
local pending = redis.call('XPENDING', KEYS[1], ARGV[1])
if pending[1] > 0 then oldest = pending[2] end
return redis.call('XTRIM', KEYS[1], 'MINID', '~', oldest)
