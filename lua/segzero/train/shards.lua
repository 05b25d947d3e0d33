-- shards.lua - which replica keeps the optimizer's state of which part of each parameter, and the
-- collectives of an update: sums of gradients, the gathering of weights (ZeRO, stage 2).
--
--   local bounds = shards.divide({n, ...}, ranks)   n: elements of each parameter. Rank r (from 0)
--                                                   has elements bounds[i][r + 1] to
--                                                   bounds[i][r + 2] - 1 of parameter i, from 0
--   local s = shards.new(list, p)    list: {{name =, tensor =}, ...}; p: parallel.lua's object
--   s.bounds                         as above
--   s.first, s.count                 C arrays: this rank's part of each parameter
--   s:sum_gradients()                this rank's parts of the gradients become sums over its group
--   s:gather()                       the parts of all ranks of the group go to all of it
--   shards.sum_gradients(list, p)    without parts: whole gradients become sums over the replicas
--   shards.counts(list, p) -> C array    u8: 1 for the parameters that this shard counts in a norm
--
-- Every parameter is cut at multiples of 512 elements, so that blocks of 8-bit moments and random
-- numbers of rounding are those of the whole. Each rank gets as many blocks of a parameter as the
-- others; the blocks that are left go to the ranks with the fewest elements so far, so that all
-- have the same number but for a block or two.
-- The group is p.replica_group: the ranks with the same shard of the model, so that each adds up
-- its own slices. An entry of a split model has copies (how many shards hold the same), copy (which
-- of them this is, from 0) and adds: true where the gradient is a part on each copy, because other
-- heads or images go through it (models/weights.lua). Leaves out: the update (optim.lua), how
-- ranks agree.

local ffi = require "ffi"

local M = {}

local methods = {}
local mt = { __index = methods }

local BLOCK = 512

-- The ranks (from 1), those with the fewest elements first.
local function least_loaded(loads)
  local order = {}
  for r = 1, #loads do order[r] = r end
  table.sort(order, function(a, b)
    if loads[a] ~= loads[b] then return loads[a] < loads[b] end
    return a < b
  end)
  return order
end

function M.divide(sizes, ranks)
  local loads = {}
  for r = 1, ranks do loads[r] = 0 end
  local list = {}
  for i, size in ipairs(sizes) do
    -- How many blocks each rank gets.
    local blocks = math.ceil(size / BLOCK)
    local each = math.floor(blocks / ranks)
    local counts = {}
    for r = 1, ranks do counts[r] = each end
    local order = least_loaded(loads)
    for k = 1, blocks - each * ranks do counts[order[k]] = each + 1 end

    -- Their places, in the order of the ranks.
    local bounds = { 0 }
    for r = 1, ranks do
      bounds[r + 1] = math.min(bounds[r] + counts[r] * BLOCK, size)
      loads[r] = loads[r] + bounds[r + 1] - bounds[r]
    end
    list[i] = bounds
  end
  return list
end

function M.new(list, p)
  local sizes = {}
  for i, one in ipairs(list) do sizes[i] = one.tensor:numel() end
  local bounds = M.divide(sizes, p.replicas)
  local first = ffi.new("int64_t[?]", #list + 1)
  local count = ffi.new("int64_t[?]", #list + 1)
  for i, of_ranks in ipairs(bounds) do
    first[i - 1] = of_ranks[p.replica + 1]
    count[i - 1] = of_ranks[p.replica + 2] - of_ranks[p.replica + 1]
  end
  return setmetatable({ list = list, parallel = p, bounds = bounds, first = first, count = count },
    mt)
end

-- The arguments of a collective on some of the parameters, by their numbers.
local function arguments(self, numbers)
  local width = self.parallel.replicas + 1
  local pointers = ffi.new("sz_tensor *[?]", #numbers + 1)
  local flat = ffi.new("int64_t[?]", #numbers * width + 1)
  for k, i in ipairs(numbers) do
    pointers[k - 1] = self.list[i].tensor.ptr
    for r = 1, width do flat[(k - 1) * width + r - 1] = self.bounds[i][r] end
  end
  return pointers, #numbers, flat
end

-- ---- sums of gradients ----
-- A parameter takes part if it has a gradient on some rank: a rank without answers has none.
local function with_gradients(list, p)
  local has = {}
  for i, one in ipairs(list) do has[i] = one.tensor:grad() and 1 or 0 end
  local numbers = {}
  for i, count in ipairs(p:collective("sum", has)) do
    if count > 0 then numbers[#numbers + 1] = i end
  end
  return numbers
end

-- The shards that hold the same slice as this one, for parameters of which each copy's gradient is
-- a part. They are neighbours.
local groups_of = setmetatable({}, { __mode = "k" })

local function copies_group(p, copies)
  if copies == p.shards then return p.shard_group end
  local groups = groups_of[p] or {}
  groups_of[p] = groups
  if not groups[copies] then
    groups[copies] = p:collective_of(p.shard_group, "split", math.floor(p.shard / copies))
  end
  return groups[copies]
end

-- The parameters that take part, with their copies' gradients added up.
local function begin_sums(list, p)
  local numbers = with_gradients(list, p)
  if p.shards == 1 then return numbers end
  for _, i in ipairs(numbers) do
    local one = list[i]
    if one.adds then p:collective_of(copies_group(p, one.copies), "sum_gradient", one.tensor) end
  end
  return numbers
end

function M.sum_gradients(list, p)
  for _, i in ipairs(begin_sums(list, p)) do
    if p.replicas > 1 then p:collective_of(p.replica_group, "sum_gradient", list[i].tensor) end
  end
end

function methods:sum_gradients()
  local p = self.parallel
  local numbers = begin_sums(self.list, p)
  p:collective_of(p.replica_group, "sum_gradient_parts", arguments(self, numbers))
end

function methods:gather()
  local all = {}
  for i = 1, #self.list do all[i] = i end
  local p = self.parallel
  p:collective_of(p.replica_group, "gather_parts", arguments(self, all))
end

function M.counts(list, p)
  local counts = ffi.new("uint8_t[?]", #list + 1)
  for i, one in ipairs(list) do
    local is_first_copy = (one.copy or p.shard) == 0
    counts[i - 1] = is_first_copy and 1 or 0
  end
  return counts
end

return M
