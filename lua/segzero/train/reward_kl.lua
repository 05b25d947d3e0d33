-- reward_kl.lua - a KL term in the reward: each token of an answer pays for its distance from the
-- reference.
--
--   local seen, mean = reward_kl.apply(groups, {coef =, kl = name of a registered estimator})
--     seen   {groups = ...} for the advantage estimator: the same samples with score = score - the
--            sum of their penalties, and penalties = coef * kl for each token
--     mean   the mean of the estimate over the tokens of an answer, then over the answers
--
-- The samples themselves keep their scores, which the run reports. Leaves out: the KL term in the
-- loss (train/update.lua), weights that follow a target.

local kl_estimators = require "segzero.algorithms.kl"
local tensor = require "segzero.core.tensor"
local user_code = require "segzero.core.user_code"

local M = {}

-- The estimate for each token of a sample.
local function estimate(name, fn, sample)
  local logprob = tensor.new(sample.logprobs)
  local reference = tensor.new(sample.reference)
  local result = user_code.call("the KL estimator " .. name, fn, logprob, reference)
  local values = result:totable()
  for _, t in ipairs { logprob, reference, result } do t:free() end
  return values
end

local function with_penalties(name, fn, sample, coef)
  local list = estimate(name, fn, sample)
  local sum = 0
  for i, v in ipairs(list) do
    sum = sum + v
    list[i] = coef * v
  end
  local copy = { score = sample.score - coef * sum, penalties = list }
  return setmetatable(copy, { __index = sample }), sum / #list
end

function M.apply(groups, options)
  local fn = kl_estimators:get(options.kl).fn
  local seen = { groups = {} }
  local sum, count = 0, 0
  for g, group in ipairs(groups) do
    local samples = {}
    for i, sample in ipairs(group.samples) do
      local mean
      samples[i], mean = with_penalties(options.kl, fn, sample, options.coef)
      sum = sum + mean
      count = count + 1
    end
    seen.groups[g] = setmetatable({ samples = samples }, { __index = group })
  end
  return seen, sum / count
end

return M
