-- KEYS[3]: the event stream. ARGV[6..12]: its greatest length, the type, the time, the payload and
-- the trace context of the durable copy, the channel, the published copy.

-- The durable copy comes first: the orchestrator acts on it. The published copy is best effort, as
-- on the platform: since Redis 7, a new user has no rights on channels.
local function report()
  local entry = {'XADD', KEYS[3], 'MAXLEN', '~', ARGV[6], '*', 'type', ARGV[7], 'timestamp', ARGV[8], 'payload', ARGV[9]}
  if ARGV[10] ~= '' then
    entry[#entry + 1] = '_trace_context'
    entry[#entry + 1] = ARGV[10]
  end
  redis.call(unpack(entry))
  redis.pcall('PUBLISH', ARGV[11], ARGV[12])
end

