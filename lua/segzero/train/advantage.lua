-- advantage.lua - runs the advantage estimator on a scored batch and checks its results.
--
--   advantage.estimate("grpo", batch, options)      sets sample.advantage of every sample
--   advantage.estimate("grpo", batch, options, seen)     seen: what the estimator gets instead
--
-- Estimators are registered in algorithms/advantages.lua. A result of the wrong shape, NaN or
-- infinity is an error that names the estimator, the row and the answer.
-- Leaves out: the estimators themselves.

local advantages = require "segzero.algorithms.advantages"
local user_code = require "segzero.core.user_code"

local M = {}

local function is_finite(v) return type(v) == "number" and v == v and math.abs(v) ~= math.huge end

-- What is wrong with the value as an advantage of an answer with `length` tokens; nil if it is
-- fine.
local function problem_with(value, length)
  if type(value) ~= "table" then
    if is_finite(value) then return nil end
    return ("%s, expected a finite number or a list"):format(tostring(value))
  end
  if #value ~= length then
    return ("a list of %d numbers, the answer has %d tokens"):format(#value, length)
  end
  for i, v in ipairs(value) do
    if not is_finite(v) then return ("a list whose element %d is %s"):format(i, tostring(v)) end
  end
end

function M.estimate(name, batch, options, seen)
  local estimator = advantages:get(name)
  local what = ("the advantage estimator '%s'"):format(name)
  local all = user_code.call(what, estimator.fn, seen or batch, options)
  for g, group in ipairs(batch.groups) do
    local list = type(all) == "table" and all[g]
    if type(list) ~= "table" then
      error(("%s returned %s for group %d, expected a list"):format(what, type(list), g), 0)
    end
    for i, sample in ipairs(group.samples) do
      local problem = problem_with(list[i], #sample.ids)
      if problem then
        local row = tostring(group.row.id)
        error(("%s returned %s for answer %d of row %s"):format(what, problem, i, row), 0)
      end
      sample.advantage = list[i]
    end
  end
end

return M
