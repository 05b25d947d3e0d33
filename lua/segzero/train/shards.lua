-- shards.lua - which rank keeps the optimizer's state of which part of each parameter, and the
-- collectives of an update that is divided so (ZeRO, stage 2).
--
--   local bounds = shards.divide({n, ...}, ranks)   n: elements of each parameter. Rank r (from 0)
--                                                   has elements bounds[i][r + 1] to
--                                                   bounds[i][r + 2] - 1 of parameter i, from 0
--   local s = shards.new(list, p)    list: {{name =, tensor =}, ...}; p: parallel.lua's object
--   s.bounds                         as above
--   s.first, s.count                 C arrays: this rank's part of each parameter
--   s:sum_gradients()                this rank's parts of the gradients become sums over all ranks
--   s:gather()                       the parts of all ranks go to all
--
-- Every parameter is cut at multiples of 512 elements, so that blocks of 8-bit moments and random
-- numbers of rounding are those of the whole. Each rank gets as many blocks of a parameter as the
-- others; the blocks that are left go to the ranks with the fewest elements so far, so that all
-- have the same number but for a block or two. Leaves out: the update (optim.lua), how ranks agree.

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
  local bounds = M.divide(sizes, p.size)
  local first = ffi.new("int64_t[?]", #list + 1)
  local count = ffi.new("int64_t[?]", #list + 1)
  for i, of_ranks in ipairs(bounds) do
    first[i - 1] = of_ranks[p.rank + 1]
    count[i - 1] = of_ranks[p.rank + 2] - of_ranks[p.rank + 1]
  end
  return setmetatable({ list = list, parallel = p, bounds = bounds, first = first, count = count },
    mt)
end

-- The arguments of a collective on some of the parameters, by their numbers.
local function arguments(self, numbers)
  local width = self.parallel.size + 1
  local pointers = ffi.new("sz_tensor *[?]", #numbers + 1)
  local flat = ffi.new("int64_t[?]", #numbers * width + 1)
  for k, i in ipairs(numbers) do
    pointers[k - 1] = self.list[i].tensor.ptr
    for r = 1, width do flat[(k - 1) * width + r - 1] = self.bounds[i][r] end
  end
  return pointers, #numbers, flat
end

function methods:sum_gradients()
  local numbers = self.parallel:with_gradients(self.list)
  self.parallel:collective("sum_gradient_parts", arguments(self, numbers))
end

function methods:gather()
  local all = {}
  for i = 1, #self.list do all[i] = i end
  self.parallel:collective("gather_parts", arguments(self, all))
end

return M
