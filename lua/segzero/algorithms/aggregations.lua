-- aggregations.lua - the registry of loss averages: the weight of each token in the loss of an
-- update.
--
--   local function sum(length, totals) return 1 end
--   sz.aggregations:register("sum", { help = "no average", fn = sum })
--
-- fn(length, totals) returns the weight of each token of an answer that has `length` tokens; the
-- update's loss is the sum of weight * loss over all tokens. totals = {tokens =, answers =} counts
-- the whole update, so the split into micro-batches does not change the loss.
-- Leaves out: weights that depend on the answer's content (an advantage can express those).

local registry = require "segzero.core.registry"

local M = registry.new("loss average", { required = { "fn" }, optional = { "help" } })

M:register("token", {
  help = "the mean over all tokens of the update",
  fn = function(_, totals) return 1 / totals.tokens end,
})

M:register("seq", {
  help = "the mean over each answer's tokens, then over the answers",
  fn = function(length, totals) return 1 / (length * totals.answers) end,
})

return M
