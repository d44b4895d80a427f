-- The consumer that gets the unfinished entries of a lost group. It is never registered, so every
-- engine takes it for dead.
local RESTORED = 'restored'

