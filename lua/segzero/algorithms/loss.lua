-- loss.lua - the terms of the GRPO loss, on tensors with one element for each answer token.
--
--   policy   max(-A ratio, -A clip(ratio, 1 - eps, 1 + eps)), ratio = exp(lp - old)
--   kl       k3: exp(d) - d - 1 with d = ref - lp, clamped to [-10, 10] as Seg-Zero does; also kl, abs, mse
--   weights  what each token counts, so that sum(weights * term) is the mean the setting asks for over ALL answers of an update:
--            splitting an update into micro-batches does not change it
--
-- Tensors are f32 [tokens]. Leaves out: advantages (advantage.lua), the model.

local tensor = require "segzero.core.tensor"

local M = {}

function M.policy(lp, old, advantages, clip_low, clip_high)
  local ratio = (lp - old):exp()
  local clipped = ratio:clamp(1 - clip_low, 1 + clip_high)
  return (ratio * advantages * -1):maximum(clipped * advantages * -1), ratio
end

M.kl = {
  low_var_kl = function(lp, ref)
    local d = ref - lp
    return (d:exp() - d - 1):clamp(-10, 10)
  end,
  kl = function(lp, ref) return lp - ref end,
  abs = function(lp, ref)
    local d = lp - ref
    return d:maximum(d * -1)
  end,
  mse = function(lp, ref)
    local d = lp - ref
    return d * d * 0.5
  end,
}

-- Weight of each token of an answer of `length`, given the update's totals.
M.token_weight = {
  token = function(_, totals) return 1 / totals.tokens end,
  seq = function(length, totals) return 1 / (length * totals.answers) end,
}

-- A list of {length, value} runs as one tensor, on device.
function M.spread(runs, device)
  local n = 0
  for _, run in ipairs(runs) do n = n + run[1] end
  local t = tensor.empty { n }
  local p, at = tensor.data(t), 0
  for _, run in ipairs(runs) do
    for i = at, at + run[1] - 1 do p[i] = run[2] end
    at = at + run[1]
  end
  return t:to { device = device or "cpu" }
end

return M
