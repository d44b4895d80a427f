-- Lists entries of the pending list that were not renewed for a while.
-- KEYS[1]: the task stream. ARGV[1]: the consumer group. ARGV[2]: the range begins here. ARGV[3]:
-- idle for at least so many ms. ARGV[4]: at most so many entries. ARGV[5]: only of this consumer,
-- unless empty. ARGV[6]: prefix of registry records.
-- Returns of each entry: id, consumer, idle time, deliveries, and of the consumer's record: the ms
-- that it has left, the status, the last heartbeat.

local query = {'XPENDING', KEYS[1], ARGV[1], 'IDLE', ARGV[3], ARGV[2], '+', ARGV[4]}
if ARGV[5] ~= '' then query[#query + 1] = ARGV[5] end
local records, entries = {}, {}
for _, entry in ipairs(redis.call(unpack(query))) do
  local consumer = entry[2]
  if not records[consumer] then
    local key = ARGV[6] .. consumer
    local record = redis.pcall('HMGET', key, 'status', 'last_heartbeat')
    if record.err then record = {} end
    records[consumer] = {redis.call('PTTL', key), record[1] or '', record[2] or ''}
  end
  local record = records[consumer]
  entries[#entries + 1] = {entry[1], consumer, entry[3], entry[4], record[1], record[2], record[3]}
end
return entries
