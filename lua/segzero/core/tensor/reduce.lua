-- reduce.lua - sums, means, extremes, softmax and cross-entropy, over everything or over one
-- dimension.
--
--   t:sum()  t:mean()                 of all elements: [1], f32
--   t:sum(dim, keepdim)  t:mean(dim, keepdim)           f32, also of bf16
--   t:max()  t:min()                  of all elements: [1], in t's dtype
--   t:max(dim, keepdim) -> values, indices              the same for min
--   t:argmax(dim, keepdim)  t:argmin(dim, keepdim)      indices; without dim, of the flat tensor
--   t:softmax(dim)                    dim is the last dimension by default
--   logits:cross_entropy(ids, {reduction = "mean", ignore_index = -100})
--
-- Dimensions are counted from 0, as in PyTorch, and -1 is the last. keepdim = true keeps the
-- dimension with size 1. Reducing the only dimension gives [1]. Indices are counted from 0, like
-- ids everywhere in segzero, and are on the CPU, like all index tensors. Of equal elements the
-- first one is found, and only that one receives the gradient. NaN is treated as the extreme.
-- Leaves out: several dimensions at once, products, sorting.

local core = require "segzero.core.ffi"
local create = require "segzero.core.tensor.create"
local handle = require "segzero.core.tensor.handle"
local ops = require "segzero.core.tensor.ops"
local options = require "segzero.core.options"

local C = core.C
local check = core.check
local fail = handle.fail
local apply = ops.apply
local rows = ops.table
local method = handle.method

local M = {}

-- Checks dim and keepdim of a call. Returns dim counted from 0, and keepdim as 1 or 0.
local function chosen(t, name, dim, keepdim, level)
  handle.pointer(t, level + 1)
  if keepdim ~= nil and type(keepdim) ~= "boolean" then
    fail(level + 1, "%s: keepdim must be true or false, got %s", name, tostring(keepdim))
  end
  return handle.dimension(t, dim, name, level + 1), keepdim and 1 or 0
end

-- In a call that is not a tail call, level 3 blames the user's line, as 2 does in a tail call.
local function flat(t, name)
  if t:numel() == 0 then fail(3, "%s: the tensor has no elements", name) end
  local whole = apply(rows.reshape, 4, t, t:numel())
  return whole
end

-- ---- sums and means ----
method("sum", 2, function(t, dim, keepdim)
  handle.pointer(t, 2)
  if dim == nil and keepdim == nil then return apply(rows.sum, 2, t) end
  dim, keepdim = chosen(t, "sum", dim, keepdim, 2)
  return apply(rows.sum_dim, 2, t, dim, keepdim)
end)

method("mean", 2, function(t, dim, keepdim)
  handle.pointer(t, 2)
  if dim == nil and keepdim == nil then
    return apply(rows.affine, 2, apply(rows.sum, 3, t), 1 / t:numel(), 0)
  end
  dim, keepdim = chosen(t, "mean", dim, keepdim, 2)
  local sum = apply(rows.sum_dim, 3, t, dim, keepdim)
  return apply(rows.affine, 2, sum, 1 / t:shape(dim), 0)
end)

-- ---- extremes ----
-- Index tensors are always on the CPU.
local function on_cpu(indices)
  return handle.wrap(check(C.sz_tensor_to(indices.ptr, C.SZ_CPU), 2))
end

local function refuse_tensor(name, dim, level)
  if not handle.is_tensor(dim) then return end
  fail(level + 1, "%s: takes a dimension; for two tensors use a:maximum(b) or a:minimum(b)", name)
end

local function extreme(name, row, t, dim, keepdim)
  handle.pointer(t, 2)
  refuse_tensor(name, dim, 2)
  if dim == nil and keepdim == nil then
    local value = apply(row, 3, flat(t, name), 0, 0)
    return value
  end
  dim, keepdim = chosen(t, name, dim, keepdim, 2)
  local values, indices = apply(row, 3, t, dim, keepdim)
  return values, on_cpu(indices)
end

local function extreme_index(name, row, t, dim, keepdim)
  handle.pointer(t, 2)
  t = t:detach()
  if dim == nil and keepdim == nil then
    t = flat(t, name)
    dim = 0
  end
  dim, keepdim = chosen(t, name, dim, keepdim, 2)
  local _, indices = apply(row, 3, t, dim, keepdim)
  return on_cpu(indices)
end

method("max", 2, function(t, dim, keepdim) return extreme("max", rows.max_dim, t, dim, keepdim) end)
method("min", 2, function(t, dim, keepdim) return extreme("min", rows.min_dim, t, dim, keepdim) end)
method("argmax", 2, function(t, dim, keepdim)
  return extreme_index("argmax", rows.max_dim, t, dim, keepdim)
end)
method("argmin", 2, function(t, dim, keepdim)
  return extreme_index("argmin", rows.min_dim, t, dim, keepdim)
end)

-- ---- softmax ----
method("softmax", 1, function(t, dim)
  handle.pointer(t, 2)
  if dim == nil then return apply(rows.softmax, 2, t) end
  dim = handle.dimension(t, dim, "softmax", 2)
  local last = C.sz_tensor_ndim(t.ptr) - 1
  if dim == last then return apply(rows.softmax, 2, t) end
  local turned = apply(rows.transpose, 3, t, dim, last)
  return apply(rows.transpose, 2, apply(rows.softmax, 3, turned), dim, last)
end)

-- ---- cross-entropy ----
local CROSS_ENTROPY = options.set { "reduction", "ignore_index" }
local REDUCTIONS = { mean = true, sum = true, none = true }

-- How many ids are not ignored.
local function counted(ids, ignored)
  local p = handle.data(ids)
  local n = 0
  for i = 0, ids:numel() - 1 do
    if p[i] ~= ignored then n = n + 1 end
  end
  return n
end

-- logits [n, v], f32 or bf16; ids: n class indices from 0, an i32 tensor or a list. f32 [1]; [n]
-- with reduction = "none". Rows whose id is ignore_index have loss 0 and do not enter the mean.
local function cross_entropy(logits, ids, opts)
  handle.pointer(logits, 2)
  opts = handle.options(opts, 2, "cross_entropy", CROSS_ENTROPY)
  local reduction = opts.reduction or "mean"
  local ignored = opts.ignore_index or -100
  if not REDUCTIONS[reduction] then
    fail(2, "cross_entropy: reduction must be mean, sum or none, got %s", tostring(reduction))
  end
  if not handle.is_whole(ignored) then
    fail(2, "cross_entropy: ignore_index must be a whole number, got %s", tostring(ignored))
  end
  if type(ids) == "table" then ids = create.new(ids, { dtype = "i32" }) end
  handle.pointer(ids, 2)

  local losses = apply(rows.cross_entropy, 3, logits, ids, ignored)
  if reduction == "none" then return losses end
  local sum = apply(rows.sum, 3, losses)
  if reduction == "sum" then return sum end
  return apply(rows.affine, 2, sum, 1 / counted(ids, ignored), 0)
end

method("cross_entropy", 2, cross_entropy)
function M.cross_entropy(logits, ids, opts) return cross_entropy(logits, ids, opts) end

return M
