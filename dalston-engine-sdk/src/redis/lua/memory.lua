-- Begins every script that takes a task.

-- Returns the error OOM while the server is out of memory. Such a server still lets a group read,
-- but refuses the events: a whole backlog would be taken, and no result of it could be reported. So
-- this asks for a write that needs memory and changes nothing: the stream does not exist and is not
-- made. A user with narrow rights may be refused this write.
local function out_of_memory(unused)
  local written = redis.pcall('XADD', unused, 'NOMKSTREAM', '*', 'type', 'none')
  if written and written.err and string.find(written.err, 'OOM', 1, true) then return written end
end

