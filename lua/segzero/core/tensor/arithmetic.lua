-- arithmetic.lua - operators, broadcasting, powers, comparisons and choices.
--
--   a + b, a - b, a * b, a / b, -a, a ^ b        a or b may be a number
--   a:minimum(b), a:maximum(b), a:clamp(lo, hi)   b may be a number; either limit may be nil
--   a:eq(b) ne lt le gt ge                        1 where it holds, else 0, in f32; no gradient
--   tensor.where(condition, a, b)                 a where the condition is not 0, else b
--   a:where(condition, b)                         the same, like PyTorch's method
--   a:sqrt(), a:pow(b), a:abs()
--   a:broadcast_to({4, 3})
--
-- Two shapes broadcast if, counted from the last, their dimensions are equal or one of them is 1;
-- the result has the larger of each. Gradients are summed over repeated elements. The result has
-- the first tensor's dtype. Comparisons return f32 and not u8, because only floating tensors can be
-- summed and multiplied: a:eq(b):mean() is an accuracy. Lua's == and < cannot return a tensor, so a
-- == 1 and a < b are errors that name eq and lt.
-- Leaves out: u8 and i32 arithmetic (comparisons accept both).

local core = require "segzero.core.ffi"
local create = require "segzero.core.tensor.create"
local handle = require "segzero.core.tensor.handle"
local ops = require "segzero.core.tensor.ops"

local C = core.C
local fail = handle.fail
local apply = ops.apply
local quick = ops.quick
local rows = ops.table
local method = handle.method
local methods = handle.methods
local metatable = handle.metatable

local M = {}

-- ---- broadcasting ----
-- True if b has a's shape, or its trailing part, or one element: the cases that the ops themselves
-- handle.
local function fits(a, b)
  local a_dims = C.sz_tensor_ndim(a.ptr)
  local b_dims = C.sz_tensor_ndim(b.ptr)
  if b_dims > a_dims then return false end
  if C.sz_tensor_numel(b.ptr) == 1 then return true end
  local leading = true
  for i = 0, b_dims - 1 do
    local size = C.sz_tensor_dim(b.ptr, i)
    if size ~= 1 then leading = false end
    if not leading and size ~= C.sz_tensor_dim(a.ptr, a_dims - b_dims + i) then return false end
  end
  return true
end

local function same_shape(a, b)
  return C.sz_tensor_ndim(a.ptr) == C.sz_tensor_ndim(b.ptr)
    and C.sz_tensor_numel(a.ptr) == C.sz_tensor_numel(b.ptr)
    and fits(a, b)
end

-- The broadcast shape of both, or an error.
local function common_shape(name, a, b, level)
  local x = handle.sizes(a)
  local y = handle.sizes(b)
  local shape = {}
  local ndim = math.max(#x, #y)
  for i = 0, ndim - 1 do
    local p = x[#x - i] or 1
    local q = y[#y - i] or 1
    if p ~= q and p ~= 1 and q ~= 1 then
      local format = "%s: shapes [%s] and [%s] do not broadcast: sizes must be equal or one 1"
      fail(level + 1, format, name, handle.shape_text(a), handle.shape_text(b))
    end
    shape[ndim - i] = p
    if p == 1 then shape[ndim - i] = q end
  end
  return shape
end

local function has_shape(t, shape)
  if C.sz_tensor_ndim(t.ptr) ~= #shape then return false end
  for i, size in ipairs(shape) do
    if C.sz_tensor_dim(t.ptr, i - 1) ~= size then return false end
  end
  return true
end

local function broadcast(t, shape, level)
  if has_shape(t, shape) then return t end
  return apply(rows.broadcast_to, level + 1, t, #shape, unpack(shape))
end

method("broadcast_to", 1, function(t, shape)
  handle.pointer(t, 2)
  if type(shape) ~= "table" then
    fail(2, "broadcast_to: a shape is a list such as {2, 3}, got %s", tostring(shape))
  end
  return broadcast(t, shape, 1)
end)

-- ---- two tensors, or a tensor and a number ----
local function kind_of(x)
  if handle.is_tensor(x) then return "tensor" end
  return type(x)
end

local function refuse(name, x, level)
  fail(level + 1, "%s: expected a tensor or a number, got %s", name, type(x))
end

-- Runs an op on two tensors after broadcasting. Reached by tail calls, so level 2 is the user's
-- line.
local function pair(row, a, b)
  handle.pointer(a, 2)
  if kind_of(b) ~= "tensor" then refuse(row.name, b, 2) end
  handle.pointer(b, 2)
  if not fits(a, b) then
    local shape = common_shape(row.name, a, b, 2)
    a = broadcast(a, shape, 2)
    b = broadcast(b, shape, 2)
  end
  return quick(row, 2, a, b)
end

-- The same for ops that need equal shapes (or one element as the second tensor).
local function equal_pair(name, row, a, b, number)
  handle.pointer(a, 2)
  if kind_of(b) ~= "tensor" then refuse(name, b, 2) end
  handle.pointer(b, 2)
  if not same_shape(a, b) then
    local shape = common_shape(name, a, b, 2)
    a = broadcast(a, shape, 2)
    b = broadcast(b, shape, 2)
  end
  return quick(row, 2, a, b, nil, number)
end

local function affine(x, scale, shift) return quick(rows.affine, 2, x, nil, nil, scale, shift) end

local function add(a, b)
  if type(b) == "number" then return affine(a, 1, b) end
  if type(a) == "number" then return affine(b, 1, a) end
  return pair(rows.add, a, b)
end

local function sub(a, b)
  if type(b) == "number" then return affine(a, 1, -b) end
  if type(a) == "number" then return affine(b, -1, a) end
  return pair(rows.sub, a, b)
end

local function mul(a, b)
  if type(b) == "number" then return affine(a, b, 0) end
  if type(a) == "number" then return affine(b, a, 0) end
  return pair(rows.mul, a, b)
end

-- A number as a tensor of one element, for an op with t.
local function constant(t, number, dtype)
  return create.new({ number }, { dtype = dtype or "f32", device = t:device() })
end

local function div(a, b)
  if type(b) == "number" then return affine(a, 1 / b, 0) end
  if type(a) == "number" then
    handle.pointer(b, 2)
    return apply(rows.div, 2, methods.expand(constant(b, a), b:detach()), b)
  end
  return pair(rows.div, a, b)
end

metatable.__add = add
metatable.__sub = sub
metatable.__mul = mul
metatable.__div = div
function metatable.__unm(a) return affine(a, -1, 0) end
method("add", 1, add)
method("sub", 1, sub)
method("mul", 1, mul)
method("div", 1, div)

-- If b is a number, clamp computes the result without another tensor.
method("minimum", 1, function(a, b)
  if type(b) == "number" then return apply(rows.clamp, 2, a, -math.huge, b) end
  return equal_pair("minimum", rows.minimum, a, b)
end)
method("maximum", 1, function(a, b)
  if type(b) == "number" then return apply(rows.clamp, 2, a, b, math.huge) end
  return equal_pair("maximum", rows.maximum, a, b)
end)

method("clamp", 2, function(t, lo, hi)
  if lo == nil and hi == nil then
    error("clamp: takes a lower and an upper limit; one of them may be nil", 2)
  end
  for _, limit in pairs { lo, hi } do
    if type(limit) ~= "number" then
      fail(2, "clamp: a limit is a number, got %s", tostring(limit))
    end
  end
  return apply(rows.clamp, 2, t, lo or -math.huge, hi or math.huge)
end)

-- Exact, because one of the two terms is 0. The gradient at 0 is 0.
method("abs", 0, function(t)
  local positive = apply(rows.relu, 3, t)
  local negative = apply(rows.relu, 3, apply(rows.affine, 3, t, -1, 0))
  return apply(rows.add, 2, positive, negative)
end)

-- ---- powers ----
-- Exponents that need no logarithm are computed without one, as in PyTorch.
local function power(a, b)
  if type(a) == "number" then
    handle.pointer(b, 2)
    local base = methods.broadcast_to(constant(b, a, b:dtype()), b:shape())
    return apply(rows.pow, 2, base, b)
  end
  handle.pointer(a, 2)
  if kind_of(b) == "tensor" then return equal_pair("pow", rows.pow, a, b) end
  if b == 1 then return affine(a, 1, 0) end
  if b == 2 then return apply(rows.mul, 2, a, a) end
  if b == 0.5 then return apply(rows.sqrt, 2, a) end
  if type(b) ~= "number" then refuse("pow", b, 2) end
  return apply(rows.pow, 2, a, constant(a, b))
end
metatable.__pow = power
method("pow", 1, power)

-- ---- comparisons ----
-- A comparison has no gradient, so nothing is recorded past this point, as in PyTorch.
local function compare(name, kind, a, b)
  handle.pointer(a, 2)
  if type(b) == "number" then
    local dtype = "f32"
    if a:dtype() == "i32" then dtype = "i32" end
    if dtype == "i32" and not handle.is_whole(b) then
      fail(2, "an i32 tensor is compared with whole numbers, got %s", tostring(b))
    end
    b = constant(a, b, dtype)
  end
  if kind_of(b) ~= "tensor" then refuse(name, b, 2) end
  handle.pointer(b, 2)
  return equal_pair(name, rows.compare, a:detach(), b:detach(), kind)
end

for kind, name in pairs { [0] = "eq", "ne", "lt", "le", "gt", "ge" } do
  method(name, 1, function(a, b) return compare(name, kind, a, b) end)
end

-- Lua code compares with nil to test whether there is a tensor. Two handles are equal if they are
-- the same object.
function metatable.__eq(a, b)
  if type(a) == "number" or type(b) == "number" then
    error("a tensor is never == a number: use t:eq(number), or t:item() == number", 2)
  end
  return rawequal(a, b)
end

local function unordered()
  error("tensors are not ordered: use a:lt(b), le, gt or ge, or compare t:item() with a number", 2)
end
metatable.__lt = unordered
metatable.__le = unordered

-- ---- where ----
-- a or b may be a number.
local function where(condition, a, b)
  handle.pointer(condition, 2)
  local example = a
  if kind_of(a) ~= "tensor" then example = b end
  if kind_of(example) ~= "tensor" then
    error("where: a or b must be a tensor, got two numbers", 2)
  end
  handle.pointer(example, 2)
  if type(a) == "number" then a = constant(example, a, example:dtype()) end
  if type(b) == "number" then b = constant(example, b, example:dtype()) end
  if kind_of(a) ~= "tensor" then refuse("where", a, 2) end
  if kind_of(b) ~= "tensor" then refuse("where", b, 2) end

  -- Broadcast all three to one shape.
  local shape = common_shape("where", a, b, 2)
  if not has_shape(condition, shape) then
    local whole = broadcast(a, shape, 2)
    shape = common_shape("where", condition, whole, 2)
  end
  condition = broadcast(condition, shape, 2)
  return quick(rows.choose, 2, condition, broadcast(a, shape, 2), broadcast(b, shape, 2))
end

function M.where(condition, a, b) return where(condition, a, b) end
method("where", 2, function(t, condition, other) return where(condition, t, other) end)

return M
