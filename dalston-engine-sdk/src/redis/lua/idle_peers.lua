-- Returns how many tasks the peers of an engine can begin at once.
-- KEYS[1]: the set of instances. ARGV[1]: prefix of registry records. ARGV[2]: the engine.

return free_capacity(KEYS[1], ARGV[1], ARGV[2])
