-- advantages.lua - the registry of advantage estimators: from the scores of a batch to the
-- advantages of its answers.
--
--   sz.advantages:register("raw", { help = "the score itself", fn = f, needs = nil })
--
-- fn(batch, options) sees the whole batch and returns the batch's nesting: for each group a list
-- that has, for each sample, one number or a list with one number for each token of the answer.
--   batch     {groups = {{row =, samples = {sample, ...}}, ...}}. A sample has score, parts, length
--             (tokens), finish ("stop" or "length"), ids, logprobs and, with a reference model,
--             reference; the last three have one number for each token. See train/records.lua
--   options   the run's numbers of this step: kl_coef, clip_low, ... (train/trainer.lua)
--   needs     {reference = true} if fn reads sample.reference: loads and runs the reference model
--             even if the loss has no KL term
--
-- An estimator must not change the batch. Leaves out: estimators with a critic.

local registry = require "segzero.core.registry"

local M = registry.new("advantage estimator",
  { required = { "fn" }, optional = { "help", "needs" } })

local EPSILON = 1e-6

-- The advantages of one group from its scores: {5, 3, 3, 1} -> {1.2247, 0, 0, -1.2247}. Computes
-- (score - mean) / (std + 1e-6) with the unbiased standard deviation, as Seg-Zero does. A single
-- answer keeps its score.
function M.grpo(scores)
  local n = #scores
  if n == 1 then return { scores[1] / (1 + EPSILON) } end
  local mean = 0
  for _, score in ipairs(scores) do mean = mean + score / n end
  local squares = 0
  for _, score in ipairs(scores) do squares = squares + (score - mean) ^ 2 end
  local std = math.sqrt(squares / (n - 1))
  local advantages = {}
  for i, score in ipairs(scores) do advantages[i] = (score - mean) / (std + EPSILON) end
  return advantages
end

M:register("grpo", {
  help = "score minus the group's mean, divided by the group's standard deviation",
  fn = function(batch)
    local all = {}
    for g, group in ipairs(batch.groups) do
      local scores = {}
      for i, sample in ipairs(group.samples) do scores[i] = sample.score end
      all[g] = M.grpo(scores)
    end
    return all
  end,
})

return M
