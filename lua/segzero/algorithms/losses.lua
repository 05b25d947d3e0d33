-- losses.lua - the registry of policy losses: from the tokens of a micro-batch to a loss for each
-- token.
--
--   local function reinforce(t) return t.logprob * t.advantage * -1 end
--   sz.losses:register("reinforce", { help = "-A log p", fn = reinforce })
--
-- fn(t, options) returns the loss of each token, f32 [tokens] with a gradient, and optionally a
-- table of metrics: name -> number, or tensor [tokens]. Metrics are averaged over the update with
-- the weights that the loss has.
--   t.logprob            log-probability by the policy, with a gradient
--   t.old                by the policy that sampled
--   t.reference          by the reference; nil without one
--   t.entropy            of the policy's distribution, with a gradient
--   t.advantage          of each token
--   t:sequence_mean(x)   the mean of x [tokens] over each answer, at each of its tokens; has a
--                        gradient
--   options              the run's numbers of this step: clip_low, clip_high, kl_coef, ...
-- All tensors are f32 [tokens] on the policy's device.
--
-- A micro-batch always has whole answers, so a loss that couples the tokens of one answer does not
-- depend on how the update is split. The tokens of an answer need not be neighbours. The KL term,
-- the entropy term and the weighting of tokens are added by train/update.lua; they have registries
-- of their own (kl.lua, aggregations.lua). Leaves out: losses that couple answers (a whole group
-- may not fit into one micro-batch).

local registry = require "segzero.core.registry"
local tensor = require "segzero.core.tensor"

local M = registry.new("loss", { required = { "fn" }, optional = { "help" } })

-- max(-A ratio, -A clip(ratio, 1 - clip_low, 1 + clip_high)) with ratio = exp(logprob - old);
-- returns the loss and ratio.
function M.clipped(logprob, old, advantage, clip_low, clip_high)
  local ratio = (logprob - old):exp()
  local clipped = ratio:clamp(1 - clip_low, 1 + clip_high)
  return (ratio * advantage * -1):maximum(clipped * advantage * -1), ratio
end

-- 1 where the ratio is outside the clipping range, else 0: a number for each token.
local function is_clipped(ratio, clip_low, clip_high)
  local host = ratio:values()
  local values = tensor.data(host)
  local flags = tensor.empty { host:numel() }
  local out = tensor.data(flags)
  for i = 0, host:numel() - 1 do
    local outside = values[i] < 1 - clip_low or values[i] > 1 + clip_high
    out[i] = outside and 1 or 0
  end
  return flags
end

M:register("ppo_clip", {
  help = "the clipped policy gradient of PPO; clip_low and clip_high bound the ratio",
  fn = function(t, options)
    local loss, ratio = M.clipped(t.logprob, t.old, t.advantage, options.clip_low,
      options.clip_high)
    return loss, { clipped = is_clipped(ratio, options.clip_low, options.clip_high) }
  end,
})

return M
