-- Reads the next new message for a busy consumer, if more messages wait than its peers can begin at
-- once. The messages are counted: the server's `lag` is nil after some commands.
-- KEYS[1]: the stream. KEYS[2]: the set of instances. ARGV[1]: the group. ARGV[2]: the consumer.
-- ARGV[3]: a stream that does not exist. ARGV[4]: prefix of registry records.
-- Returns the reply of XREADGROUP, or nil.

local function last_delivered()
  local groups = redis.pcall('XINFO', 'GROUPS', KEYS[1])
  if groups.err then return end
  for _, entry in ipairs(groups) do
    local fields = {}
    for i = 1, #entry, 2 do fields[entry[i]] = entry[i + 1] end
    if fields['name'] == ARGV[1] then return fields['last-delivered-id'] end
  end
end

local last = last_delivered()
-- Without a group, the read below says so.
if last then
  local function waits(count) return #redis.call('XRANGE', KEYS[1], '(' .. last, '+', 'COUNT', count) == count end
  if not waits(1) or not waits(free_capacity(KEYS[2], ARGV[4], ARGV[2]) + 1) then return false end
end
return out_of_memory(ARGV[3])
  or redis.call('XREADGROUP', 'GROUP', ARGV[1], ARGV[2], 'COUNT', 1, 'STREAMS', KEYS[1], '>')
