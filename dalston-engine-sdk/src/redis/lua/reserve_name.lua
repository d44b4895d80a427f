-- Reserves the registry record KEYS[1] for a process that starts, unless another process has it.
-- ARGV[1]: the start nonce of the process. ARGV[2]: its host. ARGV[3]: the time. ARGV[4]: the ms
-- that the record lives without a heartbeat. ARGV[5], ARGV[6]: start nonce and heartbeat of a dead
-- process, which is replaced if its record still has them.
-- Returns nothing, or start nonce, last heartbeat and host of the other process and the ms that its
-- record has left.

local record = redis.call('HMGET', KEYS[1], 'start_nonce', 'last_heartbeat', 'hostname')
local nonce, heartbeat, host = record[1] or '', record[2] or '', record[3] or ''
local is_dead = #ARGV == 6 and nonce == ARGV[5] and heartbeat == ARGV[6]
if redis.call('EXISTS', KEYS[1]) == 1 and nonce ~= ARGV[1] and not is_dead then
  return {nonce, heartbeat, host, redis.call('PTTL', KEYS[1])}
end
-- Without an engine id, a status and capabilities: the platform ignores it, and the first heartbeat
-- writes the whole record.
redis.call('DEL', KEYS[1])
redis.call('HSET', KEYS[1], 'start_nonce', ARGV[1], 'hostname', ARGV[2], 'last_heartbeat', ARGV[3])
-- By the clock that measures how long entries are idle. An entry that was idle before is one of an
-- earlier process.
local now = now_ms()
if now then redis.call('HSET', KEYS[1], 'reserved_at_ms', now) end
redis.call('PEXPIRE', KEYS[1], ARGV[4])
return false
