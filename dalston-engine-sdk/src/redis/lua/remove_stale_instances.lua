-- Removes instances without a registry record (ARGV[1] and their name) from the sets KEYS:
-- processes that were killed leave them. Looks at no more than ARGV[2] members of the first set,
-- picked at random. Returns how many it removed.

local removed = 0
for _, instance in ipairs(redis.call('SRANDMEMBER', KEYS[1], ARGV[2])) do
  if redis.call('EXISTS', ARGV[1] .. instance) == 0 then
    for i = 1, #KEYS do redis.call('SREM', KEYS[i], instance) end
    removed = removed + 1
  end
end
return removed
