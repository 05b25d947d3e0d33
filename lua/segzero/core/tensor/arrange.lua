-- arrange.lua - changes the shape or order of elements, and joins tensors.
--
--   t:reshape(2, -1)  t:reshape({2, -1})       a view; one size may be -1 and is computed
--   t:unsqueeze(dim)  t:squeeze(dim)  t:flatten()
--   t:transpose(dim0, dim1)  t:t()             a copy; transpose() changes the last two
--   t:permute(2, 0, 1)                         a copy
--   t:slice(dim, start, length)                a copy of some indices of a dimension, from 0
--   tensor.cat({a, b}, dim)  tensor.stack({a, b}, dim)
--
-- Dimensions and start are counted from 0, as in PyTorch; -1 is the last dimension. All of these
-- have gradients. t:narrow(start, length), an op of ops.def, is a view of the outermost dimension.
-- Leaves out: views that are not contiguous.

local core = require "segzero.core.ffi"
local handle = require "segzero.core.tensor.handle"
local ops = require "segzero.core.tensor.ops"

local C = core.C
local fail = handle.fail
local apply = ops.apply
local rows = ops.table
local method = handle.method
local methods = handle.methods

local M = {}

-- ---- views ----
local MOST = 4                    -- dimensions that the op reshape takes

-- Replaces a size of -1 by the one that makes `numel` elements.
local function completed(sizes, numel, level)
  local known = 1
  local open = nil
  for i, n in ipairs(sizes) do
    if n == -1 and not open then
      open = i
    elseif not handle.is_whole(n) or n < 1 then
      fail(level + 1, "reshape: size %d is %s, expected a whole number from 1 (one size may be -1)",
        i, tostring(n))
    else
      known = known * n
    end
  end
  if open then
    sizes[open] = numel / known
    known = known * sizes[open]
  end
  if known ~= numel or (open and sizes[open] % 1 ~= 0) then
    local shape = table.concat(sizes, ", ")
    fail(level + 1, "reshape: %d elements do not fill the shape [%s]", numel, shape)
  end
  return sizes
end

-- The op itself takes four numbers, of which trailing zeros mean no dimension.
local function without_zeros(sizes)
  if #sizes ~= MOST then return sizes end
  while #sizes > 1 and sizes[#sizes] == 0 do sizes[#sizes] = nil end
  return sizes
end

methods.reshape = function(t, ...)
  handle.pointer(t, 2)
  local sizes = { ... }
  if select("#", ...) == 1 and type(sizes[1]) == "table" then
    sizes = { unpack(sizes[1]) }
  else
    sizes = without_zeros(sizes)
  end
  if #sizes == 0 or #sizes > MOST then
    fail(2, "reshape: takes 1 to %d sizes, got %d", MOST, #sizes)
  end
  return apply(rows.reshape, 2, t, unpack(completed(sizes, t:numel(), 2)))
end

method("flatten", 0, function(t)
  handle.pointer(t, 2)
  return apply(rows.reshape, 2, t, t:numel())
end)

-- A new dimension of size 1 before dimension dim; -1 stands for the end.
method("unsqueeze", 1, function(t, dim)
  handle.pointer(t, 2)
  local sizes = handle.sizes(t)
  if not handle.is_whole(dim) or dim < -#sizes - 1 or dim > #sizes then
    fail(2, "unsqueeze: a dimension from %d to %d is expected, got %s",
      -#sizes - 1, #sizes, tostring(dim))
  end
  if dim < 0 then dim = dim + #sizes + 1 end
  table.insert(sizes, dim + 1, 1)
  return methods.reshape(t, sizes)
end)

-- Removes a dimension of size 1; without an argument, all of them.
method("squeeze", 1, function(t, dim)
  handle.pointer(t, 2)
  local sizes = handle.sizes(t)
  if dim ~= nil then dim = handle.dimension(t, dim, "squeeze", 2) end
  if dim and sizes[dim + 1] ~= 1 then
    fail(2, "squeeze: dimension %d of shape [%s] is not 1", dim, handle.shape_text(t))
  end
  local left = {}
  for i, n in ipairs(sizes) do
    local goes = n == 1 and (dim == nil or dim == i - 1)
    if not goes then left[#left + 1] = n end
  end
  if #left == 0 then left = { 1 } end
  return methods.reshape(t, left)
end)

-- ---- copies in another order ----
method("transpose", 2, function(t, dim0, dim1)
  handle.pointer(t, 2)
  if dim0 == nil and dim1 == nil then
    dim0 = -2
    dim1 = -1
  end
  dim0 = handle.dimension(t, dim0, "transpose", 2)
  dim1 = handle.dimension(t, dim1, "transpose", 2)
  return apply(rows.transpose, 2, t, dim0, dim1)
end)

method("t", 0, function(t)
  handle.pointer(t, 2)
  if #t:shape() ~= 2 then
    fail(2, "t: takes a matrix, this tensor's shape is [%s]; see transpose", handle.shape_text(t))
  end
  return apply(rows.transpose, 2, t, 0, 1)
end)

-- Takes the new order of all dimensions. Done as swaps of two dimensions, each of which is a copy.
methods.permute = function(t, ...)
  handle.pointer(t, 2)
  local order = { ... }
  if type(order[1]) == "table" then order = order[1] end
  local ndim = C.sz_tensor_ndim(t.ptr)
  local seen = {}
  for i = 1, #order do
    local dim = handle.dimension(t, order[i], "permute", 2)
    if seen[dim] then fail(2, "permute: dimension %d is named twice", dim) end
    seen[dim] = true
  end
  if #order ~= ndim then fail(2, "permute: takes all %d dimensions, got %d", ndim, #order) end

  -- place[i] is the original dimension that is now at i.
  local place = {}
  for i = 1, ndim do place[i] = i - 1 end
  local result = t
  for i = 1, ndim do
    local wanted = handle.dimension(t, order[i], "permute", 2)
    local j = i
    while place[j] ~= wanted do j = j + 1 end
    if j ~= i then
      result = apply(rows.transpose, 3, result, i - 1, j - 1)
      place[i], place[j] = place[j], place[i]
    end
  end
  return result
end

method("slice", 3, function(t, dim, start, length)
  handle.pointer(t, 2)
  if not handle.is_whole(start) or not handle.is_whole(length) then
    fail(2, "slice: start and length are whole numbers, got %s and %s",
      tostring(start), tostring(length))
  end
  return apply(rows.slice, 2, t, handle.dimension(t, dim, "slice", 2), start, length)
end)

-- ---- joining ----
local MOST_TOGETHER = 8           -- inputs of the op cat

local function check_list(name, list, level)
  if type(list) ~= "table" or #list == 0 then
    fail(level + 1, "%s: a list of tensors is expected, got %s", name, type(list))
  end
  for i = 1, #list do
    if not handle.is_tensor(list[i]) then
      fail(level + 1, "%s: element %d is not a tensor but %s", name, i, type(list[i]))
    end
    handle.pointer(list[i], level + 1)
  end
end

-- Joins groups of eight until one tensor is left.
local function joined(list, dim, level)
  repeat
    local groups = {}
    for first = 1, #list, MOST_TOGETHER do
      local group = {}
      for i = 1, MOST_TOGETHER do group[i] = list[first + i - 1] end
      group[MOST_TOGETHER + 1] = dim
      groups[#groups + 1] = apply(rows.cat, level + 1, unpack(group, 1, MOST_TOGETHER + 1))
    end
    list = groups
  until #list == 1
  return list[1]
end

-- Joins tensors along dimension dim (default 0). All other sizes, dtypes and devices must be equal.
function M.cat(list, dim)
  check_list("cat", list, 2)
  dim = handle.dimension(list[1], dim or 0, "cat", 2)
  return joined(list, dim, 2)
end

-- Joins tensors of one shape along a new dimension dim.
function M.stack(list, dim)
  check_list("stack", list, 2)
  local parts = {}
  for i, t in ipairs(list) do
    local good, part = pcall(methods.unsqueeze, t, dim or 0)
    if not good then error((part:gsub("^.-unsqueeze:", "stack:")), 2) end
    parts[i] = part
  end
  dim = handle.dimension(parts[1], dim or 0, "stack", 2)
  return joined(parts, dim, 2)
end

-- The op's own method would take eight tensors before its number.
methods.cat = function() error("cat is a function: tensor.cat({a, b}, dim)", 2) end

return M
