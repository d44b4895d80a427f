-- Gives the entry back, also one that was not looked up.

local owner = ownership_of_entry()
if owner == HELD then give_back() end
return owner
