-- Reads the next new message, unless the server is out of memory.
-- KEYS[1]: the stream. ARGV[1]: the group. ARGV[2]: the consumer. ARGV[3]: a stream that does not
-- exist.
-- Returns the reply of XREADGROUP.

return out_of_memory(ARGV[3])
  or redis.call('XREADGROUP', 'GROUP', ARGV[1], ARGV[2], 'COUNT', 1, 'STREAMS', KEYS[1], '>')
