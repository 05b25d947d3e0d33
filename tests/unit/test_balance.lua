-- test_balance.lua - which replica trains on which group: about as many tokens on each, the same on
-- every rank, and no group moves without need.
--
-- Left out: moving groups between ranks.

local balance = require "segzero.train.balance"
local check = require "tests.support.check"

local function loads_of(sizes, owners, replicas)
  local loads = {}
  for r = 1, replicas do loads[r] = 0 end
  for i, size in ipairs(sizes) do loads[owners[i] + 1] = loads[owners[i] + 1] + size end
  return loads
end

local function dealt(count, replicas)
  local owners = {}
  for i = 1, count do owners[i] = (i - 1) % replicas end
  return owners
end

check.case("known lists", function()
  check.equal(balance.owners({ 100, 10, 10, 10 }, { 0, 1, 0, 1 }, 2), { 0, 1, 1, 1 }, "one moves")
  check.equal(balance.owners({ 10, 10, 10, 10 }, { 0, 1, 0, 1 }, 2), { 0, 1, 0, 1 }, "none moves")
  check.equal(balance.owners({ 51, 50, 50, 50 }, { 0, 1, 0, 1 }, 2), { 0, 1, 0, 1 }, "nearly equal")
  check.equal(balance.owners({ 30, 10, 40, 10 }, { 0, 1, 0, 1 }, 2), { 1, 1, 0, 1 }, "the best one")
  check.equal(balance.owners({ 60, 10, 70, 40 }, { 0, 1, 0, 1 }, 2), { 1, 0, 0, 1 }, "a swap")
  check.equal(balance.owners({ 5 }, { 0 }, 4), { 0 }, "one group for four")
  check.equal(balance.owners({}, {}, 2), {}, "no group")
end)

check.case("lengths of real answers become equal to a few percent", function()
  local state = 1
  local function random(n)
    state = (state * 1103515245 + 12345) % 2 ^ 31
    return math.floor(state / 2 ^ 31 * n)
  end
  local worst = 0
  for replicas = 2, 8 do
    for _ = 1, 20 do
      local sizes = {}
      for i = 1, 8 * replicas do sizes[i] = 1500 + 8 * (50 + random(700)) end
      local before = dealt(#sizes, replicas)
      local owners = balance.owners(sizes, before, replicas)
      check.equal(balance.owners(sizes, before, replicas), owners, "twice")
      local loads = loads_of(sizes, owners, replicas)
      local sum = 0
      local most = 0
      for _, load in ipairs(loads) do
        sum = sum + load
        most = math.max(most, load)
      end
      worst = math.max(worst, most / (sum / replicas))
      check.ok(most <= math.max(unpack(loads_of(sizes, before, replicas))), "no longer than before")
    end
  end
  check.ok(worst <= 1.06, ("the fullest replica has %.3f of the mean"):format(worst))
end)

check.finish()
