-- advantages.lua - the registry of advantage estimators: from the scores of a batch to the
-- advantages of its answers.
--
--   sz.advantages:register("raw", { help = "the score itself", fn = f, needs = nil })
--
-- fn(batch, options) sees the whole batch and returns the batch's nesting: for each group a list
-- that has, for each sample, one number or a list with one number for each token of the answer.
--   batch     {groups = {{row =, samples = {sample, ...}}, ...}}. A sample has score, parts, length
--             (tokens), finish ("stop" or "length"), ids, logprobs and, with a reference model,
--             reference; the last three have one number for each token. See train/records.lua.
--             With a KL term in the reward (train/reward_kl.lua) score has it, and penalties has it
--             for each token
--   options   the run's numbers of this step: kl_coef, clip_low, ... (train/trainer.lua)
--   needs     {reference = true} if fn reads sample.reference: loads and runs the reference model
--             even if the loss has no KL term
--
-- An estimator must not change the batch. Leaves out: estimators with a critic.

local registry = require "segzero.core.registry"

local M = registry.new("advantage estimator",
  { required = { "fn" }, optional = { "help", "needs" } })

local EPSILON = 1e-6

local function scores_of(group)
  local scores = {}
  for i, sample in ipairs(group.samples) do scores[i] = sample.score end
  return scores
end

-- The unbiased standard deviation of two or more numbers.
local function deviation(scores)
  local n = #scores
  local mean = 0
  for _, score in ipairs(scores) do mean = mean + score / n end
  local squares = 0
  for _, score in ipairs(scores) do squares = squares + (score - mean) ^ 2 end
  return math.sqrt(squares / (n - 1))
end

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
    for g, group in ipairs(batch.groups) do all[g] = M.grpo(scores_of(group)) end
    return all
  end,
})

-- ---- the other estimators of EasyR1 without a critic ----
-- Refuses a group of one answer, which has nothing to compare with.
local function check_several(name, scores)
  if #scores > 1 then return end
  error(("algorithm.adv_estimator=%s needs worker.rollout.n=2 or more"):format(name), 0)
end

M:register("rloo", {
  help = "score minus the mean of the group's other answers (leave one out)",
  fn = function(batch)
    local all = {}
    for g, group in ipairs(batch.groups) do
      local scores = scores_of(group)
      check_several("rloo", scores)
      local sum = 0
      for _, score in ipairs(scores) do sum = sum + score end
      all[g] = {}
      for i, score in ipairs(scores) do all[g][i] = score - (sum - score) / (#scores - 1) end
    end
    return all
  end,
})

-- The place of the best score, and the two best scores.
local function two_best(scores)
  local best = 1
  local first = scores[1]
  local second = -math.huge
  for i = 2, #scores do
    if scores[i] > first then
      best, first, second = i, scores[i], first
    else
      second = math.max(second, scores[i])
    end
  end
  return best, first, second
end

M:register("grpo_passk", {
  help = "only the group's best answer counts: its lead over the second, divided by the deviation",
  fn = function(batch)
    local all = {}
    for g, group in ipairs(batch.groups) do
      local scores = scores_of(group)
      check_several("grpo_passk", scores)
      local best, first, second = two_best(scores)
      all[g] = {}
      for i = 1, #scores do all[g][i] = 0 end
      all[g][best] = (first - second) / (deviation(scores) + EPSILON)
    end
    return all
  end,
})

-- The discounted sum of rewards from each token on. The score belongs to the last token.
local function returns_of(sample, gamma)
  local n = #sample.ids
  local returns = {}
  local sum = 0
  local score = sample.score
  if sample.penalties then
    for _, penalty in ipairs(sample.penalties) do score = score + penalty end
  end
  for i = n, 1, -1 do
    local reward = 0
    if i == n then reward = score end
    if sample.penalties then reward = reward - sample.penalties[i] end
    sum = reward + gamma * sum
    returns[i] = sum
  end
  return returns
end

M:register("reinforce_plus_plus", {
  help = "REINFORCE++: discounted rewards of each token, whitened over all tokens of the step",
  fn = function(batch, options)
    local all = {}
    local count = 0
    local sum = 0
    for g, group in ipairs(batch.groups) do
      all[g] = {}
      for i, sample in ipairs(group.samples) do
        all[g][i] = returns_of(sample, options.gamma or 1)
        for _, v in ipairs(all[g][i]) do sum = sum + v end
        count = count + #all[g][i]
      end
    end

    -- Mean 0 and variance 1 over the tokens, with the unbiased variance.
    local mean = sum / count
    local squares = 0
    local function each(f)
      for _, lists in ipairs(all) do
        for _, list in ipairs(lists) do
          for k, v in ipairs(list) do list[k] = f(v) end
        end
      end
    end
    each(function(v)
      squares = squares + (v - mean) ^ 2
      return v
    end)
    local scale = 1 / math.sqrt(squares / math.max(1, count - 1) + 1e-8)
    each(function(v) return (v - mean) * scale end)
    return all
  end,
})

return M
