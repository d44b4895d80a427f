-- KEYS[3]: the event stream. ARGV[6]: its greatest length. ARGV[7]: the channel.

-- Reports the event in ARGV[first..first+4], and returns its id. These are the type, the time, the
-- payload and the trace context of the durable copy, and the published copy.
-- The durable copy comes first: the orchestrator acts on it. The published copy is best effort, as
-- on the platform: since Redis 7, a new user has no rights on channels.
local function report(first)
  local entry = {'XADD', KEYS[3], 'MAXLEN', '~', ARGV[6], '*'}
  for i, name in ipairs({'type', 'timestamp', 'payload', '_trace_context'}) do
    local value = ARGV[first + i - 1]
    if value ~= '' then
      entry[#entry + 1] = name
      entry[#entry + 1] = value
    end
  end
  local event = redis.call(unpack(entry))
  redis.pcall('PUBLISH', ARGV[7], ARGV[first + 4])
  return event
end

