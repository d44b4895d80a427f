-- Lists entries of the pending list that were not renewed for a while, those first that waited
-- longest. Otherwise, where workers are killed again and again, the first messages would be claimed
-- every time, and later ones never.
-- KEYS[1]: the task stream. ARGV[1]: the consumer group. ARGV[2]: so many entries are left out.
-- ARGV[3]: idle for at least so many ms. ARGV[4]: at most so many entries. ARGV[5]: only of this
-- consumer, unless empty. ARGV[6]: prefix of registry records. ARGV[7]: looks at no more entries.
-- Returns of each entry: id, consumer, idle time, deliveries, and of the consumer's record: the ms
-- that it has left, the status, the last heartbeat, and for how many ms the process has the name, or
-- -1.

local skipped, most, limit = tonumber(ARGV[2]), tonumber(ARGV[4]), tonumber(ARGV[7])

local function find(count)
  local query = {'XPENDING', KEYS[1], ARGV[1], 'IDLE', ARGV[3], '-', '+', count}
  if ARGV[5] ~= '' then query[#query + 1] = ARGV[5] end
  return redis.call(unpack(query))
end

-- There are seldom more than a few.
local found = find(most)
if #found == most then found = find(limit) end
table.sort(found, function(a, b) return a[3] > b[3] or a[3] == b[3] and a[1] < b[1] end)

local now = now_ms()
local records, entries = {}, {}
for i = skipped + 1, math.min(skipped + most, #found) do
  local entry = found[i]
  local consumer = entry[2]
  if not records[consumer] then
    local key = ARGV[6] .. consumer
    local record = redis.pcall('HMGET', key, 'status', 'last_heartbeat', 'reserved_at_ms')
    if record.err then record = {} end
    local since = now and tonumber(record[3])
    local age = since and math.max(0, now - since) or -1
    records[consumer] = {redis.call('PTTL', key), record[1] or '', record[2] or '', age}
  end
  local record = records[consumer]
  entries[#entries + 1] = {entry[1], consumer, entry[3], entry[4], unpack(record)}
end
return entries
