-- parts.lua - parts of whole tensors: the slice of a weight that a shard of a split model has, and
-- of that slice the range of elements whose optimizer state a rank keeps.
--
--   parts.shape(full, slice)          the slice's shape
--   parts.place(full, slice, skip)    where its elements are in the whole tensor: an sz_place
--   parts.copy(into, whole, slice, skip)      into = its elements of `whole`
--   parts.new{shape =, dtype =, slice =, part =, skip =, elsewhere =}
--       a whole tensor of which this rank has a part (or none: part is nil), for files that several
--       ranks write. It answers shape(), dtype() and numel() as the whole tensor would; place()
--       says where the part is. elsewhere: true if another rank has the same part and writes it
--
-- full: the whole tensor's shape. slice: {dim = 1 | 2, first = from 0, count =}, the range of one
-- dimension; nil: all of it. skip: how many elements of the slice come before the part (default 0).
-- Leaves out: slices of other dimensions; files (safetensors.lua, safetensors_write.lua).

local ffi = require "ffi"
local core = require "segzero.core.ffi"

local C = core.C

local M = {}

local function product(list, from)
  local n = 1
  for i = from or 1, #list do n = n * list[i] end
  return n
end

function M.shape(full, slice)
  local shape = { unpack(full) }
  if slice then shape[slice.dim] = slice.count end
  return shape
end

function M.place(full, slice, skip)
  if not slice then return ffi.new("sz_place", { 0, 1, 1, skip or 0 }) end
  -- Elements of one index of the divided dimension.
  local each = product(full, slice.dim + 1)
  local first = slice.first * each
  if slice.dim == 1 then return ffi.new("sz_place", { first, 1, 1, skip or 0 }) end
  return ffi.new("sz_place", { first, slice.count * each, full[2] * each, skip or 0 })
end

function M.copy(into, whole, slice, skip)
  core.call(C.sz_part_copy(into.ptr, M.place(whole:shape(), slice, skip), whole.ptr))
end

-- ---- a whole tensor of which this rank has a part ----
local Whole = {}
Whole.__index = Whole

function Whole:shape() return self.sizes end

function Whole:dtype() return self.type end

function Whole:numel() return product(self.sizes) end

function Whole:place() return M.place(self.sizes, self.slice, self.skip) end

function M.new(t)
  return setmetatable({ sizes = t.shape, type = t.dtype, slice = t.slice, part = t.part,
    skip = t.skip or 0, elsewhere = t.elsewhere }, Whole)
end

function M.is_part(t) return getmetatable(t) == Whole end

return M
