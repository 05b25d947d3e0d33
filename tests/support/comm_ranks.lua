-- comm_ranks.lua - one rank of tests/system/test_ranks.lua: every collective, each element checked.
--
-- The values are whole numbers that every dtype holds exactly, so the results are known exactly;
-- one case sums numbers whose f32 sum depends on the order. Prints "ok N" with the number of
-- elements that were compared, and fails at the first wrong one.

local ranks = require "segzero.core.ranks"
local tensor = require "segzero.core.tensor"

local device = arg[1] or "cpu"
local world = ranks.world()
local compared = 0

-- Element i of rank r's tensor; small enough that sums over 8 ranks fit u8 and bf16.
local function value(r, i) return (i * 7 + r * 3) % 13 end

local function fill(count, dtype, r, first)
  local list = {}
  for i = 1, count do list[i] = value(r, i + (first or 0)) end
  return tensor.new(list, { dtype = dtype, device = device })
end

local function expect(t, what, want)
  local got = t:totable()
  for i = 1, t:numel() do
    compared = compared + 1
    if got[i] ~= want(i) then
      error(("rank %d: %s, element %d is %s, expected %s"):format(world:rank(), what, i,
        tostring(got[i]), tostring(want(i))), 0)
    end
  end
end

local function each_rank(group, f)
  local sum = 0
  for r = 0, group.size - 1 do sum = sum + f(group.members[r + 1]) end
  return sum
end

local function sums(comm, group, n, dtype)
  local t = fill(n, dtype, world:rank())
  comm:all_reduce(t)
  expect(t, "all_reduce " .. dtype, function(i)
    return each_rank(group, function(r) return value(r, i) end)
  end)
  local whole = fill(n * group.size, dtype, world:rank())
  local part = fill(n, dtype, 0)
  comm:reduce_scatter(whole, part)
  expect(part, "reduce_scatter " .. dtype, function(i)
    return each_rank(group, function(r) return value(r, i + n * comm:rank()) end)
  end)
end

local function moves(comm, group, n, dtype)
  for root = 0, group.size - 1 do
    local t = fill(n, dtype, world:rank())
    comm:broadcast(t, root)
    expect(t, "broadcast " .. dtype, function(i) return value(group.members[root + 1], i) end)
  end
  local whole = fill(n * group.size, dtype, 0)
  comm:all_gather(fill(n, dtype, world:rank()), whole)
  expect(whole, "all_gather " .. dtype, function(i)
    local r = math.floor((i - 1) / n)
    return value(group.members[r + 1], i - n * r)
  end)
end

local function values(comm, group)
  local mine = { rank = world:rank(), text = ("x"):rep(world:rank() * 1000), third = 1 / 3 }
  for i, v in ipairs(comm:gather(mine)) do
    assert(v.rank == group.members[i] and #v.text == v.rank * 1000 and v.third == 1 / 3)
    compared = compared + 1
  end
  for root = 0, group.size - 1 do
    assert(comm:share({ world:rank() }, root)[1] == group.members[root + 1])
    compared = compared + 1
  end
  local total = comm:sum { 0.5, world:rank() }
  assert(total[1] == 0.5 * group.size)
  assert(total[2] == each_rank(group, function(r) return r end))
  comm:barrier()
end

-- f32 sums in the order of the ranks: 1e8 - 1e8 + 1 + 1 ...; in another order ones are lost.
local function order(comm, group)
  if group.size == 1 then return end
  local mine = ({ [0] = 1e8, -1e8 })[comm:rank()] or 1
  local t = tensor.new({ mine, mine, mine }, { device = device })
  comm:all_reduce(t)
  expect(t, "the order of a sum", function() return group.size - 2 end)
end

local function all(comm, members)
  local group = { members = members, size = comm:size() }
  assert(#members == comm:size())
  for _, n in ipairs { 1, 2, 3, 17, 1000, 65537 } do
    for _, dtype in ipairs { "f32", "bf16", "i32" } do sums(comm, group, n, dtype) end
    for _, dtype in ipairs { "f32", "bf16", "i32", "u8" } do moves(comm, group, n, dtype) end
  end
  values(comm, group)
  order(comm, group)
end

-- A sum that is longer than a piece (16 MiB).
local function long()
  local n = 5000001
  local t = tensor.full({ n }, world:rank() + 1, { device = device })
  world:all_reduce(t)
  local want = world:size() * (world:size() + 1) / 2
  assert((t - want):abs():sum():item() == 0, "a long all_reduce")
end

local everybody = {}
for r = 0, world:size() - 1 do everybody[r + 1] = r end
all(world, everybody)
long()

-- Groups: odd and even ranks, and each rank alone.
local mine = {}
for r = world:rank() % 2, world:size() - 1, 2 do mine[#mine + 1] = r end
all(world:split(world:rank() % 2), mine)
all(world:split(world:rank()), { world:rank() })
print(("ok %d"):format(compared))
