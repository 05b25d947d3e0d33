-- loss.lua - sz.loss of segzero 0.1: old names for functions that are now in registries.
--
--   sz.loss.policy(logprob, old, advantage, clip_low, clip_high) -> loss, ratio     (losses.lua)
--   sz.loss.kl.low_var_kl(logprob, reference)                                       (kl.lua)
--   sz.loss.token_weight.token(length, totals)                               (aggregations.lua)
--
-- New code uses sz.losses, sz.kl and sz.aggregations. Leaves out: assigning to these tables changes
-- no training run; register a function instead.

local function functions_of(registry)
  return setmetatable({}, { __index = function(_, name)
    if registry:has(name) then return registry:get(name).fn end
  end })
end

return {
  policy = require("segzero.algorithms.losses").clipped,
  kl = functions_of(require "segzero.algorithms.kl"),
  token_weight = functions_of(require "segzero.algorithms.aggregations"),
}
