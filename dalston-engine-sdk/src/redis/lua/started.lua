-- Reports that work on the task begins.

local owner = ownership()
if owner == HELD or owner == FORGOTTEN then report() end
return owner
