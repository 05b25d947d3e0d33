-- kl.lua - the registry of KL estimators: how far the policy is from the reference, for each
-- sampled token.
--
--   local function k1(logprob, reference) return logprob - reference end
--   sz.kl:register("k1", { help = "the plain difference", fn = k1 })
--
-- fn(logprob, reference) takes f32 [tokens], the first with a gradient, and returns the estimate
-- f32 [tokens]. Leaves out: the exact KL over the vocabulary.

local registry = require "segzero.core.registry"

local M = registry.new("KL estimator", { required = { "fn" }, optional = { "help" } })

M:register("low_var_kl", {
  help = "exp(d) - d - 1 with d = reference - logprob, clamped to [-10, 10] as in Seg-Zero (k3)",
  fn = function(logprob, reference)
    -- Within [-20, 20] exp is finite, so a clamped token has gradient 0 and not 0 * infinity.
    local d = (reference - logprob):clamp(-20, 20)
    return (d:exp() - d - 1):clamp(-10, 10)
  end,
})

M:register("kl", {
  help = "logprob - reference (k1)",
  fn = function(logprob, reference) return logprob - reference end,
})

M:register("abs", {
  help = "the absolute difference of the log-probabilities",
  fn = function(logprob, reference) return (logprob - reference):abs() end,
})

M:register("mse", {
  help = "half the squared difference of the log-probabilities (k2)",
  fn = function(logprob, reference)
    local d = logprob - reference
    return d * d * 0.5
  end,
})

return M
