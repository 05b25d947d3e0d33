-- ratios.lua - how far the policy of an update is from the one that sampled, over the tokens of a
-- micro-batch.
--
--   ratios.add(stats, t, weights, clip)    adds to the update's statistics:
--     mismatch       the largest distance of a token's log-probability from the sampler's
--     sampler_kl     the mean of old - logprob
--     clip_low       share of tokens that the clip stops at its lower bound: ratio < 1 - low and a
--                    negative advantage
--     clip_high      the same at the upper bound: ratio > 1 + high and a positive advantage
--     clip_active    both together
--   t        train/tokens.lua; weights: f32 [tokens], those of the loss; all but mismatch are
--            averaged with them
--   clip     {low =, high =}, or nil for a loss that does not clip so: then no shares
--
-- Values are copied from the device once. Leaves out: the loss's own metrics (train/update.lua).

local tensor = require "segzero.core.tensor"

local M = {}

local function add(stats, name, v) stats[name] = (stats[name] or 0) + v end

-- Shares of tokens that the clip stops: at the lower bound, at the upper bound.
local function clip_shares(n, a, b, w, advantages, clip)
  local below = math.log(1 - clip.low)
  if clip.low >= 1 then below = -math.huge end
  local above = math.log(1 + clip.high)
  local low = 0
  local high = 0
  for i = 0, n - 1 do
    local log_ratio = a[i] - b[i]
    if log_ratio < below and advantages[i] < 0 then low = low + w[i] end
    if log_ratio > above and advantages[i] > 0 then high = high + w[i] end
  end
  return low, high
end

function M.add(stats, t, weights, clip)
  -- The tensors stay in local variables: the pointers do not keep them alive.
  local logprob = t.logprob:values()
  local old = t.old:values()
  local weight = weights:values()
  local a = tensor.data(logprob)
  local b = tensor.data(old)
  local w = tensor.data(weight)
  local n = logprob:numel()

  local largest = stats.mismatch or 0
  local kl = 0
  for i = 0, n - 1 do
    local difference = b[i] - a[i]
    largest = math.max(largest, math.abs(difference))
    kl = kl + w[i] * difference
  end
  stats.mismatch = largest
  add(stats, "sampler_kl", kl)
  if not clip then return end

  local advantage = t.advantage:values()
  local low, high = clip_shares(n, a, b, w, tensor.data(advantage), clip)
  add(stats, "clip_low", low)
  add(stats, "clip_high", high)
  add(stats, "clip_active", low + high)
end

return M
