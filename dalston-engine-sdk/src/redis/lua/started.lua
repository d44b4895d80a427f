-- Reports that work on the task begins.

local owner = ownership()
if owner == HELD then report() end
return owner
