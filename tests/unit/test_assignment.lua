-- test_assignment.lua - lua/segzero/core/assignment.lua against every permutation of small
-- matrices, by a certificate for large ones, and its time.
--
--   ./segzero tests/unit/test_assignment.lua

local assignment = require "segzero.core.assignment"
local check = require "tests.support.check"

local seed = 1
local function below(n)
  seed = (seed * 16807) % 2147483647
  return seed % n
end

local function matrix(m, n, most)
  local cost = {}
  for i = 1, m do
    cost[i] = {}
    for j = 1, n do cost[i][j] = below(most) - 2 end
  end
  return cost
end

-- The least sum, by trying every choice. used: columns taken; left: rows that must get a column.
local function least(cost, m, n)
  local used = {}
  local function search(i, left)
    if left == 0 then return 0 end
    if i > m or left > m - i + 1 then return math.huge end
    local best = search(i + 1, left)
    for j = 1, n do
      if not used[j] then
        used[j] = true
        best = math.min(best, cost[i][j] + search(i + 1, left - 1))
        used[j] = nil
      end
    end
    return best
  end
  return search(1, math.min(m, n))
end

local function pairs_of(columns, m)
  local count = 0
  local seen = {}
  for i = 1, m do
    local j = columns[i]
    if j then
      if seen[j] then return -1 end
      seen[j] = true
      count = count + 1
    end
  end
  return count
end

check.case("the sum is least among all matchings", function()
  local tried = 0
  for m = 1, 5 do
    for n = 1, 5 do
      for _ = 1, 40 do
        local cost = matrix(m, n, ({ 3, 6, 1000 })[1 + below(3)])
        local columns, total = assignment.solve(cost, m, n)
        check.equal(total, least(cost, m, n), ("%d x %d"):format(m, n))
        check.equal(pairs_of(columns, m), math.min(m, n), "pairs")
        tried = tried + 1
      end
    end
  end
  check.equal(tried, 1000, "matrices tried")
end)

check.case("no rows or no columns", function()
  local columns, total = assignment.solve({}, 0, 0)
  check.equal(#columns, 0, "pairs of nothing")
  check.equal(total, 0, "sum of nothing")
  columns, total = assignment.solve({ {}, {} }, 2, 0)
  check.equal(next(columns), nil, "pairs without columns")
  check.equal(total, 0, "sum without columns")
end)

-- A hidden matching of cost 0 among costs of 1 to 3 is found: the worst case of a wrong greedy
-- rule.
check.case("a hidden perfect matching of 120 objects, fast", function()
  local n = 120
  local started = os.clock()
  for _ = 1, 20 do
    local cost = matrix(n, n, 3)
    local hidden = {}
    for i = 1, n do
      hidden[i] = i
      for j = 1, n do cost[i][j] = cost[i][j] + 3 end
    end
    for i = n, 2, -1 do
      local k = 1 + below(i)
      hidden[i], hidden[k] = hidden[k], hidden[i]
    end
    for i = 1, n do cost[i][hidden[i]] = 0 end
    local columns, total = assignment.solve(cost, n, n)
    check.equal(total, 0, "sum")
    check.equal(columns, hidden, "the pairs")
  end
  local seconds = os.clock() - started
  check.ok(seconds < 5, ("20 matchings of 120 x 120 took %.2f s"):format(seconds))
end)

check.finish()
