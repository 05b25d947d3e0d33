-- comm_ranks.lua - one rank of tests/system/test_ranks.lua: every collective, each element checked;
-- also the ops tp_copy, tp_sum and tp_gather, with their gradients.
--
--   mpirun -n 3 ./segzero tests/support/comm_ranks.lua [DEVICE]     where floating tensors are
--
-- The values are whole numbers that every dtype holds exactly, so the results are known exactly;
-- one case sums numbers whose f32 sum depends on the order. Prints "ok N" with the number of
-- elements that were compared, and fails at the first wrong one.

local core = require "segzero.core.ffi"
local ranks = require "segzero.core.ranks"
local tensor = require "segzero.core.tensor"

local DEVICE = (arg or {})[1] or "cpu"
local world = ranks.world()
local compared = 0

-- Element i of rank r's tensor; small enough that sums over 8 ranks fit u8 and bf16.
local function value(r, i) return (i * 7 + r * 3) % 13 end

local function fill(count, dtype, r, first)
  local list = {}
  for i = 1, count do list[i] = value(r, i + (first or 0)) end
  local t = tensor.new(list, { dtype = dtype })
  if DEVICE == "cpu" or dtype == "i32" then return t end
  local moved = t:to { device = DEVICE }
  t:free()
  return moved
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
  local t = tensor.new({ mine, mine, mine }, { device = DEVICE })
  comm:all_reduce(t)
  expect(t, "the order of a sum", function() return group.size - 2 end)
end

-- ---- ops of a split model ----
-- rows of a matrix of `cols` columns on each rank; their numbers differ if `uneven`.
local function share_of(members, r, count, uneven)
  if not uneven then return count end
  return (count + 2 * members[r + 1]) % 5
end

-- The gradient of the loss sum(y * dy) that reaches the leaf x of y = f(x).
local function gradient(x, f, dy)
  x:requires_grad(true)
  local y = f(x)
  ;(y * dy):sum():backward()
  return y, x:grad()
end

local function split_ops(comm, group, rows, cols, dtype)
  local handle = core.C.sz_comm_handle(comm.pointer)
  local function matrix(r, first) return fill(rows * cols, dtype, r, first):reshape(rows, cols) end
  local function flat(t) return t:reshape(t:numel()) end

  -- Forward nothing, backward the sum; then the other way round.
  local y, dx = gradient(matrix(world:rank()), function(x) return x:tp_copy(handle) end,
    matrix(world:rank(), 5))
  expect(flat(y), "tp_copy " .. dtype, function(i) return value(world:rank(), i) end)
  expect(flat(dx), "tp_copy's gradient " .. dtype, function(i)
    return each_rank(group, function(r) return value(r, i + 5) end)
  end)
  for _, name in ipairs { "tp_sum", "tp_sum_" } do
    y, dx = gradient(matrix(world:rank()), function(x)
      local y = x:affine(1)
      return y[name](y, handle)
    end, matrix(0, 5))
    expect(flat(y), name .. " " .. dtype, function(i)
      return each_rank(group, function(r) return value(r, i) end)
    end)
    expect(flat(dx), name .. "'s gradient " .. dtype, function(i) return value(0, i + 5) end)
  end
end

-- Columns (dim 1) or rows (dim 0) of a matrix, as many on each rank or not.
local function gathers(comm, group, rows, cols, dim, uneven, dtype)
  local handle = core.C.sz_comm_handle(comm.pointer)
  local sizes = {}
  local starts = {}
  local total = 0
  for r = 0, group.size - 1 do
    starts[r] = total
    sizes[r + 1] = share_of(group.members, r, dim == 0 and rows or cols, uneven)
    total = total + sizes[r + 1]
  end
  local own = sizes[comm:rank() + 1]
  local whole_rows = rows
  local whole_cols = total
  local own_rows = rows
  local own_cols = own
  if dim == 0 then
    whole_rows = total
    whole_cols = cols
    own_rows = own
    own_cols = cols
  end
  local what = ("tp_gather %s, dimension %d, %d"):format(dtype, dim, total)

  -- Element (row, col) of the whole comes from a rank's part.
  local function from(i)
    local row = math.floor((i - 1) / whole_cols)
    local col = (i - 1) % whole_cols
    local place = dim == 0 and row or col
    local r = group.size - 1
    while starts[r] > place or sizes[r + 1] == 0 do r = r - 1 end
    if dim == 0 then row = row - starts[r] else col = col - starts[r] end
    local width = dim == 0 and cols or sizes[r + 1]
    return group.members[r + 1], row * width + col + 1
  end

  -- Where fill() would put it: all ranks' parts must be on one kind of device.
  local home = DEVICE
  if dtype == "i32" then home = "cpu" end
  local x = tensor.empty({ own_rows, own_cols }, { dtype = dtype, device = home })
  if own_rows * own_cols > 0 then
    x = fill(own_rows * own_cols, dtype, world:rank()):reshape(own_rows, own_cols)
  end
  local counts = uneven and tensor.new(sizes, { dtype = "i32" }) or nil
  if dtype:find "f" and own_rows * own_cols > 0 and total > 0 then x:requires_grad(true) end
  local y = x:tp_gather(counts, handle, group.size, dim)
  assert(y:shape()[1] == whole_rows and y:shape()[2] == whole_cols, what)
  if y:numel() == 0 then return end
  expect(y:reshape(y:numel()), what, function(i) return value(from(i)) end)
  if not dtype:find "f" or x:numel() == 0 then return end
  local dy = fill(whole_rows * whole_cols, dtype, 0, 5):reshape(whole_rows, whole_cols)
  ;(y * dy):sum():backward()
  local dx = x:grad()
  expect(dx:reshape(dx:numel()), what .. ", gradient", function(i)
    local row = math.floor((i - 1) / own_cols)
    local col = (i - 1) % own_cols
    if dim == 0 then row = row + starts[comm:rank()] else col = col + starts[comm:rank()] end
    return value(0, row * whole_cols + col + 6)
  end)
end

local function ops(comm, group)
  for _, shape in ipairs { { 1, 1 }, { 3, 5 }, { 7, 33 }, { 19, 65 } } do
    for _, dtype in ipairs { "f32", "bf16" } do
      split_ops(comm, group, shape[1], shape[2], dtype)
    end
    for _, dtype in ipairs { "f32", "bf16", "i32", "u8" } do
      for dim = 0, 1 do
        gathers(comm, group, shape[1], shape[2], dim, false, dtype)
        gathers(comm, group, shape[1], shape[2], dim, true, dtype)
      end
    end
  end
end

-- What the ops refuse before any message is sent.
local function refusals(comm)
  local x = fill(3, "f32", world:rank())
  local handle = core.C.sz_comm_handle(comm.pointer)
  local function refused(want, ...)
    local ok, why = pcall(...)
    assert(not ok and tostring(why):find(want, 1, true), tostring(why))
    compared = compared + 1
  end
  for _, other in ipairs { comm:size() + 1, comm:size() + 2 } do
    local counts = tensor.full({ other }, 3, { dtype = "i32" })
    for _, sizes in ipairs { false, counts } do
      refused("parts is not the number of ranks in the group", x.tp_gather, x, sizes or nil, handle,
        other, 0)
    end
  end
  if comm:size() > 1 then
    local counts = tensor.full({ 1 }, 3, { dtype = "i32" })
    refused("parts is not the number of ranks", x.tp_gather, x, counts, handle, 1, 0)
  end
  for _, name in ipairs { "tp_copy", "tp_sum", "tp_sum_" } do
    for _, group in ipairs { 64, 2 ^ 40 } do
      refused("0 or the handle of a group of ranks", x[name], x, group)
    end
  end
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
  ops(comm, group)
  refusals(comm)
end

-- A sum that is longer than a piece (16 MiB).
local function long()
  local n = 5000001
  local t = tensor.full({ n }, world:rank() + 1, { device = DEVICE })
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
