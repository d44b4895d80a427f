-- Creates the consumer group ARGV[1] of the stream KEYS[1], unless it exists.
-- A new group begins with the first message, because tasks may be queued before the first engine
-- starts. A group that was removed without its stream would so deliver finished tasks again. The
-- events in KEYS[2] show what it had delivered: an event about a task that is not older than a
-- message of the task follows the delivery of that message. Unfinished entries go to a consumer
-- that does not exist: their holders take them back, and the others are claimed when their lease
-- ends. In doubt, an entry is unfinished.
-- ARGV[2]: prefix of the metadata of tasks. ARGV[3]: looks at no more entries than this before the
-- first delivered one, and again behind it.
-- Returns -1 if the group exists, -2 if it begins with the first message, or else the number of
-- unfinished entries.

local stream, group, limit = KEYS[1], ARGV[1], tonumber(ARGV[3])

-- The field of a message or an event, or an empty text.
local function field(fields, name)
  for i = 1, #fields, 2 do
    if fields[i] == name then return fields[i + 1] end
  end
  return ''
end

-- Ids of several streams are compared by their time.
local function time_of(id) return tonumber(string.match(id, '^%d+')) end

local groups = redis.pcall('XINFO', 'GROUPS', stream)
if not groups.err then
  for _, entry in ipairs(groups) do
    if field(entry, 'name') == group then return -1 end
  end
end

-- When the last event of each task was reported, and when the last end of it.
local reported, ended = {}, {}
local first = not groups.err and redis.call('XRANGE', stream, '-', '+', 'COUNT', 1)[1]
local events = first and redis.pcall('XRANGE', KEYS[2], string.format('%.0f', time_of(first[1])), '+') or {}
for _, event in ipairs(events) do
  local kind, time = field(event[2], 'type'), time_of(event[1])
  local task = string.match(field(event[2], 'payload'), '"task_id"%s*:%s*"([^"]+)"')
  local ends = kind == 'task.completed' or kind == 'task.failed'
  if task and ends then ended[task] = time end
  if task and (ends or kind == 'task.started') then reported[task] = time end
end

-- From the newest message to the oldest.
local last_delivered, waiting, looked, unfinished = nil, 0, 0, {}
local from = '+'
while next(reported) and looked < limit do
  local page = redis.call('XREVRANGE', stream, from, '-', 'COUNT', 500)
  if #page == 0 then break end
  for _, message in ipairs(page) do
    local task, time = field(message[2], 'task_id'), time_of(message[1])
    local delivered = reported[task] and reported[task] >= time
    if delivered and not last_delivered then
      last_delivered, waiting, looked = message[1], looked, 0
    end
    looked = looked + 1
    -- Messages are delivered in their order, so those before were delivered, too. The events of old
    -- ones are gone.
    if last_delivered and not (ended[task] and ended[task] > time)
      and (delivered or redis.call('EXISTS', ARGV[2] .. task) == 1) then
      unfinished[#unfinished + 1] = message[1]
    end
  end
  from = '(' .. page[#page][1]
end
if not last_delivered then
  redis.call('XGROUP', 'CREATE', stream, group, '0', 'MKSTREAM')
  return -2
end

-- Without the number of delivered messages, a server of version 7 would not know how many wait.
local added = field(redis.call('XINFO', 'STREAM', stream), 'entries-added')
if added == '' then
  redis.call('XGROUP', 'CREATE', stream, group, last_delivered)
else
  redis.call('XGROUP', 'CREATE', stream, group, last_delivered, 'ENTRIESREAD', added - waiting)
end
for i = #unfinished, 1, -1 do
  redis.call('XCLAIM', stream, group, RESTORED, 0, unfinished[i], 'FORCE', 'JUSTID')
end
return #unfinished
