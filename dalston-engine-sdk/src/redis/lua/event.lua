-- KEYS[2]: the event stream. ARGV[5..11]: its greatest length, the type, the time, the payload and the trace context of the
-- durable copy, the channel, the published copy.

-- The durable copy comes first: the orchestrator acts on it.
local function report()
  local entry = {'XADD', KEYS[2], 'MAXLEN', '~', ARGV[5], '*', 'type', ARGV[6], 'timestamp', ARGV[7], 'payload', ARGV[8]}
  if ARGV[9] ~= '' then
    entry[#entry + 1] = '_trace_context'
    entry[#entry + 1] = ARGV[9]
  end
  redis.call(unpack(entry))
  redis.call('PUBLISH', ARGV[10], ARGV[11])
end

