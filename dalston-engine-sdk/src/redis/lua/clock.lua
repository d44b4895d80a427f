-- The time of the server in ms, or nil without the right to ask for it.
local function now_ms()
  local time = redis.pcall('TIME')
  if not time.err then return time[1] * 1000 + math.floor(time[2] / 1000) end
end

