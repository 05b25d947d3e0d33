-- mask_runs.lua - a mask as a message between ranks: the lengths of runs of equal pixels.
--
--   mask_runs.pack(mask) -> message        mask: u8 [height, width] of 0 and 1, which is freed
--   mask_runs.unpack(message) -> mask
--   nil stays nil
--
-- message: {shape =, runs = lengths row by row, zeros first}. COCO's run lengths (rle.lua) go
-- column by column. Leaves out: files.

local tensor = require "segzero.core.tensor"

local M = {}

function M.pack(mask)
  if not mask then return nil end
  local data = tensor.data(mask)
  local runs = {}
  local value = 0
  local length = 0
  for i = 0, mask:numel() - 1 do
    if data[i] ~= value then
      runs[#runs + 1] = length
      value = data[i]
      length = 0
    end
    length = length + 1
  end
  runs[#runs + 1] = length
  local message = { shape = mask:shape(), runs = runs }
  mask:free()
  return message
end

function M.unpack(message)
  if not message then return nil end
  local mask = tensor.zeros(message.shape, { dtype = "u8" })
  local data = tensor.data(mask)
  local first = 0
  for k, length in ipairs(message.runs) do
    if k % 2 == 0 then
      for i = first, first + length - 1 do data[i] = 1 end
    end
    first = first + length
  end
  return mask
end

return M
