-- losses.lua - the registry of policy losses: from the tokens of a micro-batch to a loss for each
-- token.
--
--   local function reinforce(t) return t.logprob * t.advantage * -1 end
--   sz.losses:register("reinforce", { help = "-A log p", fn = reinforce })
--
-- fn(t, options) returns the loss of each token, f32 [tokens] with a gradient, and optionally a
-- table of metrics: name -> number, or tensor [tokens]. Metrics are averaged over the update with
-- the weights of the loss.
--   t.logprob            log-probability under the policy, with a gradient
--   t.old                log-probability under the policy that sampled
--   t.reference          log-probability under the reference; nil without one
--   t.entropy            entropy of the policy's distribution, with a gradient
--   t.advantage          the advantage of each token
--   t:sequence_mean(x)   the mean of x [tokens] over each answer, at each of its tokens; has a
--                        gradient
--   options              the run's numbers of this step: clip_low, clip_high, kl_coef, ...
-- All tensors are f32 [tokens] on the policy's device.
--
-- A micro-batch holds whole answers, so a loss that couples the tokens of one answer does not
-- depend on how the update is split. The tokens of an answer need not be next to each other.
-- train/update.lua adds the KL term (kl.lua), the entropy term and the weights of the tokens
-- (aggregations.lua).
-- Leaves out: losses that couple answers (a whole group may not fit into one micro-batch).

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

-- For each token 1 if its ratio is outside the clipping range, else 0.
local function is_clipped(ratio, clip_low, clip_high)
  local host = ratio:values()
  local values = tensor.data(host)
  local flags = tensor.empty { host:numel() }
  local out = tensor.data(flags)
  for i = 0, host:numel() - 1 do
    out[i] = 0
    if values[i] < 1 - clip_low or values[i] > 1 + clip_high then out[i] = 1 end
  end
  return flags
end

M:register("ppo_clip", {
  help = "the clipped policy gradient of PPO; clip_low and clip_high bound the ratio",
  fn = function(t, options)
    local low = options.clip_low
    local high = options.clip_high
    local loss, ratio = M.clipped(t.logprob, t.old, t.advantage, low, high)
    return loss, { clipped = is_clipped(ratio, low, high) }
  end,
})

return M
