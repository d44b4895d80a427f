-- Reads the next new message, unless the server is out of memory.
-- KEYS[1]: the stream. ARGV[1]: the group. ARGV[2]: the consumer.
-- Returns the reply of XREADGROUP.

return out_of_memory()
  or redis.call('XREADGROUP', 'GROUP', ARGV[1], ARGV[2], 'COUNT', 1, 'STREAMS', KEYS[1], '>')
