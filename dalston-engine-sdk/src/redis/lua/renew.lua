-- Renews the lease: the idle time becomes zero, the delivery count stays.

local owner = ownership()
if owner == HELD and #redis.call('XCLAIM', stream, group, instance, 0, id, 'JUSTID') == 0 then return GONE end
return owner
