-- mask_runs.lua - a mask as run lengths over its rows, which golden files have.
--
--   local runs = mask_runs.of(t)     t: u8 [height, width], freed; {pixels outside, inside, ...}

local tensor = require "segzero.core.tensor"

local M = {}

function M.of(t)
  local p = tensor.data(t)
  local runs = {}
  local inside = 0
  local count = 0
  for i = 0, t:numel() - 1 do
    if p[i] ~= inside then
      runs[#runs + 1] = count
      inside = tonumber(p[i])
      count = 0
    end
    count = count + 1
  end
  runs[#runs + 1] = count
  t:free()
  return runs
end

return M
