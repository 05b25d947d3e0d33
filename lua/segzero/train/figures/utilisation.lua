-- utilisation.lua - model FLOPs utilisation (MFU) of a step's update.
--
--   utilisation.of(t, groups, seconds) -> MFU, 0 to about 1; nil where there is nothing to go by
--     t        a trainer; groups: those of this rank's replica; seconds: of the update's forward,
--              backward and optimizer
--
-- MFU = counted operations / (seconds * rate). Counted is what a model needs once (PaLM, appendix
-- B): three times the forward pass over a group's prompt and answers, each prompt once, without
-- recomputation. A frozen tower does not run in an update, and frozen weights under adapters spare
-- a third. Norms and other elementwise work are left out, as usual. The rate is measured once in a
-- run, by a square product in the policy's dtype on its device, because a CPU has no figure in a
-- data sheet. The measurement takes about 2 % of the update's operations. Updates too small for one
-- have no MFU, and neither have families of a user's own, whose operations nobody counts.
-- Leaves out: adapters' products, the reference, sampling.

local core = require "segzero.core.ffi"
local flops = require "segzero.models.qwen_vl.flops"
local tensor = require "segzero.core.tensor"

local C = core.C

local M = {}

-- A product below the smallest side says nothing about the machine; the largest is enough for it.
local SMALLEST_SIDE = 256
local LARGEST_SIDE = { cpu = 1024, cuda = 4096 }

local function of_group(counts, group, passes, tower_passes)
  local prompt = #group.input.input_ids
  local tokens = prompt
  local pairs_seen = flops.causal_pairs(prompt, 0)
  local rows = 0
  for _, sample in ipairs(group.samples) do
    local fed = #sample.ids - 1
    tokens = tokens + fed
    pairs_seen = pairs_seen + flops.causal_pairs(fed, prompt)
    rows = rows + #sample.ids
  end
  local sum = passes * counts.text(tokens, pairs_seen, rows)
  for _, grid in ipairs(group.input.image_grid_thw or {}) do
    sum = sum + tower_passes * counts.vision(grid[2], grid[3])
  end
  return sum
end

-- The operations of an update over these groups.
function M.count(t, groups)
  local counts = flops.counts(t.policy)
  local passes = 3
  if t.policy.lora then passes = 2 end
  local tower_passes = passes
  if t.options.forward.frozen_vision then tower_passes = 0 end
  local sum = 0
  for _, group in ipairs(groups) do sum = sum + of_group(counts, group, passes, tower_passes) end
  return sum
end

local function best_of(n, f)
  local least = math.huge
  for _ = 1, n do
    local start = C.sz_seconds()
    f()
    core.check(C.sz_device_synchronise())
    least = math.min(least, C.sz_seconds() - start)
  end
  return least
end

-- Operations per second of a product with about this many operations; nil: too few to tell.
local function measured_rate(policy, operations)
  local side = math.floor((operations / 2) ^ (1 / 3) / 64) * 64
  if side < SMALLEST_SIDE then return nil end
  side = math.min(side, LARGEST_SIDE[policy.device] or LARGEST_SIDE.cuda)
  local options = { dtype = policy.dtype, device = policy.device }
  local a = tensor.zeros({ side, side }, options)
  local seconds = best_of(3, function() tensor.step(function() a:linear(a) end) end)
  a:free()
  return 2 * side ^ 3 / seconds
end

function M.of(t, groups, seconds)
  if not t.policy.config then return nil end
  local operations = M.count(t, groups) / t.parallel.shards
  t.product_rate = t.product_rate or measured_rate(t.policy, operations / 150)
  if not t.product_rate or seconds <= 0 then return nil end
  return operations / seconds / t.product_rate
end

return M
