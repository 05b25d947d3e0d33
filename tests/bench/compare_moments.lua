-- compare_moments.lua - whether two checkpoints of a first step had the same gradient. AdamW's
-- first moments are then the gradient times a constant, on whatever ranks the step ran.
--
--   ./segzero tests/bench/compare_moments.lua A/global_step_1 B/global_step_1
--
-- Prints {name, value} lines: the largest |a - b| / |a| over the weights, in Euclidean norms, with
-- its weight, and the same for all weights together.
-- Leaves out: moments in 8 bits.

local safetensors = require "segzero.formats.safetensors"

local function moments(dir)
  return safetensors.load(dir .. "/optimizer.safetensors")
end

local a = moments(arg[1])
local b = moments(arg[2])
local worst = 0
local worst_name
local difference = 0
local whole = 0
local count = 0
for name, first in pairs(a) do
  if name:find "^exp_avg%." then
    local other = b[name] or error("there is no " .. name .. " in the second checkpoint", 0)
    local norm = first:sum_squares():item()
    local apart = (first - other):sum_squares():item()
    difference = difference + apart
    whole = whole + norm
    count = count + 1
    local ratio = math.sqrt(apart / math.max(norm, 1e-30))
    if norm > 0 and ratio > worst then
      worst = ratio
      worst_name = name
    end
  end
end
if count == 0 then error("there are no first moments in " .. arg[1], 0) end
print(('{"name": "largest_of_a_weight", "value": %.3g, "weight": "%s", "weights": %d}'):format(worst,
  worst_name or "none", count))
print(('{"name": "all_weights", "value": %.3g}'):format(math.sqrt(difference / whole)))
