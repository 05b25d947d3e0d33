-- compare_moments.lua - whether two checkpoints of a first step had the same gradient. AdamW's
-- first moments are then the gradient times a constant, on whatever ranks the step ran.
--
--   ./segzero tests/bench/compare_moments.lua A/global_step_1 B/global_step_1
--
-- Prints {name, value} lines: the largest |a - b| / |a| over the weights, in Euclidean norms, with
-- its weight, and the same for all weights together. Checkpoints of other weights, moments in 8
-- bits and moments that are not finite are errors.

local safetensors = require "segzero.formats.safetensors"

if #arg ~= 2 then error("two folders of checkpoints are expected", 0) end

-- The first moments of a checkpoint, and how many there are.
local function moments(dir)
  local list = {}
  local count = 0
  for name, t in pairs(safetensors.load(dir .. "/optimizer.safetensors")) do
    if name:find "^exp_avg%." then
      if t:dtype() == "u8" then error(dir .. ": the moments have 8 bits", 0) end
      list[name] = t:to { dtype = "f32" }
      count = count + 1
    end
  end
  if count == 0 then error("there are no first moments in " .. dir, 0) end
  return list, count
end

local a, count = moments(arg[1])
local b, count_b = moments(arg[2])
if count ~= count_b then
  error(("%d weights have moments in %s, %d in %s"):format(count, arg[1], count_b, arg[2]), 0)
end
local worst = 0
local worst_name
local difference = 0
local whole = 0
for name, first in pairs(a) do
  local other = b[name] or error("there is no " .. name .. " in the second checkpoint", 0)
  local norm = first:sum_squares():item()
  local apart = (first - other):sum_squares():item()
  if not (norm + apart < math.huge) then error(name .. " is not finite", 0) end
  difference = difference + apart
  whole = whole + norm
  local ratio = 0
  if apart > 0 then ratio = math.sqrt(apart / norm) end
  if ratio > worst then
    worst = ratio
    worst_name = name
  end
end
print(('{"name": "largest_of_a_weight", "value": %.3g, "weight": "%s", "weights": %d}')
  :format(worst, worst_name or "none", count))
print(('{"name": "all_weights", "value": %.3g}'):format(math.sqrt(difference / whole)))
