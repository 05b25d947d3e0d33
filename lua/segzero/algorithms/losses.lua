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
--   options              the run's numbers of this step: clip_low, clip_high, kl_coef, ...;
--                        clip_dual is nil without a dual clip
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

-- exp(log_ratio). Within the limit it is finite, so a clipped token has gradient 0 and not
-- 0 * infinity. EasyR1's limit.
local LOG_RATIO_LIMIT = 20

local function ratio_of(log_ratio)
  return log_ratio:clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT):exp()
end

-- max(-A ratio, -A clip(ratio, 1 - clip_low, 1 + clip_high)); returns the loss and ratio.
local function clipped_loss(log_ratio, advantage, clip_low, clip_high)
  local ratio = ratio_of(log_ratio)
  local clipped = ratio:clamp(1 - clip_low, 1 + clip_high)
  return (ratio * advantage * -1):maximum(clipped * advantage * -1), ratio
end

-- The same with ratio = exp(logprob - old).
function M.clipped(logprob, old, advantage, clip_low, clip_high)
  return clipped_loss(logprob - old, advantage, clip_low, clip_high)
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

local HUGE = 3e38               -- more than any loss, and finite in f32

-- A tensor with f(advantage) for each token, without a gradient.
local function of_advantage(t, f)
  local host = t.advantage:values()
  local values = tensor.data(host)
  local list = {}
  for i = 0, host:numel() - 1 do list[i + 1] = f(values[i]) end
  return tensor.new(list, { device = t.advantage:device() })
end

-- The dual clip: where the advantage is negative, the loss is at most -A * clip_dual.
local function with_dual_clip(t, loss, clip_dual)
  if not clip_dual then return loss end
  return loss:minimum(of_advantage(t, function(advantage)
    if advantage < 0 then return -advantage * clip_dual end
    return HUGE
  end))
end

-- The clipped policy gradient with the ratio exp(log_ratio), and the dual clip.
local function clipped_by(t, log_ratio, options)
  local low = options.clip_low
  local high = options.clip_high
  local loss, ratio = clipped_loss(log_ratio, t.advantage, low, high)
  return with_dual_clip(t, loss, options.clip_dual), { clipped = is_clipped(ratio, low, high) }
end

M:register("ppo_clip", {
  help = "the clipped policy gradient of PPO; clip_low and clip_high bound the ratio",
  fn = function(t, options) return clipped_by(t, t.logprob - t.old, options) end,
})

-- ---- the other losses of EasyR1 ----
M:register("gspo", {
  help = "GSPO: ppo_clip with the ratio of the whole answer, exp of the mean of its logarithms",
  fn = function(t, options) return clipped_by(t, t:sequence_mean(t.logprob - t.old), options) end,
})

M:register("gspo_token", {
  help = "GSPO with each token's own gradient: the ratio's value is that of the whole answer",
  fn = function(t, options)
    local mean = t:sequence_mean(t.logprob - t.old):detach()
    return clipped_by(t, mean + (t.logprob - t.logprob:detach()), options)
  end,
})

M:register("cispo", {
  help = "CISPO: -A log p, weighted with the clipped ratio, which has no gradient",
  fn = function(t, options)
    local low = options.clip_low
    local high = options.clip_high
    local ratio = ratio_of((t.logprob - t.old):detach())
    local weight = ratio:clamp(1 - low, 1 + high)
    return t.logprob * (t.advantage * weight) * -1, { clipped = is_clipped(ratio, low, high) }
  end,
})

M:register("sapo", {
  help = "SAPO: a smooth gate instead of the clip; tau_positive and tau_negative are its slopes",
  fn = function(t, options)
    local ratio = ratio_of(t.logprob - t.old)
    -- tau of each token's advantage, and the weight -A * 4 / tau.
    local function tau(advantage)
      if advantage < 0 then return options.tau_negative end
      return options.tau_positive
    end
    local slope = of_advantage(t, tau)
    local weight = of_advantage(t, function(advantage) return -advantage * 4 / tau(advantage) end)
    local gate = ((ratio - 1) * slope):sigmoid()
    return gate * weight, { clipped = is_clipped(ratio, options.clip_low, options.clip_high) }
  end,
})

return M
