-- sample.lua - set:sample(k, seed): a few rows of a data set, the same ones for the same seed.
--
--   local few = set:sample(10)            ten rows, in the order of the set; seed 0
--   local others = set:sample(10, 1)
--   sample.give(set)                      gives the set this method, unless it has one of that name
--   sample.rows(set, k, seed) -> set      for a set without the method
--
-- A sample is a data set itself: few:count(), few:row(i), few:sample(3). Its rows keep their ids.
-- It depends on the number of rows, on k and on the seed, not on the machine. For less than all
-- rows, k + 1 rows include the k rows of the same seed.
-- Leaves out: weights, drawing a row twice.

local permutation = require "segzero.data.permutation"
local subset = require "segzero.data.checks.subset"

local M = {}

local function is_count(v) return type(v) == "number" and v >= 1 and v % 1 == 0 end

local function is_seed(v) return type(v) == "number" and v % 1 == 0 and math.abs(v) <= 2 ^ 53 end

-- Level as for error().
local function check(set, k, seed, level)
  if not is_count(k) then
    error(("sample: the number of rows is %s, expected a whole number from 1"):format(tostring(k)),
      level + 1)
  end
  if not is_seed(seed) then
    error(("sample: the seed is %s, expected a whole number"):format(tostring(seed)), level + 1)
  end
  if k > set:count() then
    error(("sample: %d rows of a data set that has %d"):format(k, set:count()), level + 1)
  end
end

local function sampled(set, k, seed)
  local order = permutation.of(set:count(), seed, 0)
  local chosen = {}
  for i = 1, k do chosen[order[i]] = true end
  local few = subset.new(set, function(i) return not chosen[i] end)
  return M.give(few)
end

function M.rows(set, k, seed)
  check(set, k, seed or 0, 2)
  return sampled(set, k, seed or 0)
end

local function method(set, k, seed)
  check(set, k, seed or 0, 2)
  return sampled(set, k, seed or 0)
end

function M.give(set)
  set.sample = set.sample or method
  return set
end

return M
