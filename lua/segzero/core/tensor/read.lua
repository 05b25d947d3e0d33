-- read.lua - reads tensors: shape, elements, copies.
--
--   t:shape() -> {2, 3}     t:shape(-1) -> 3     #t -> 2, the first dimension
--   t:dtype()  t:device()  t:numel()
--   t:item()                the number in a tensor of one element
--   t:totable()             nested lists, indices from 1 as in all of Lua
--   t[i], t[{i, j}]         a number, or the tensor without those dimensions
--   for i, row in ipairs(t)  t[1], t[2], ...
--
-- Elements are counted from 1, as in t:totable(); dimensions are counted from 0, as in PyTorch.
-- Negative numbers count from the end in both. A row t[i] of a matrix is a view of the same bytes,
-- and gradients flow through it; a number has no gradient.
-- Leaves out: assignment to elements, ranges (t:slice).

local ffi = require "ffi"
local core = require "segzero.core.ffi"
local handle = require "segzero.core.tensor.handle"
local options = require "segzero.core.options"

local C = core.C
local check = core.check
local fail = handle.fail
local method = handle.method
local methods = handle.methods
local metatable = handle.metatable
local pointer = handle.pointer

local M = {}

-- ---- shape and dtype ----
method("shape", 1, function(t, dim)
  pointer(t, 2)
  local sizes = handle.sizes(t)
  if dim == nil then return sizes end
  return sizes[handle.dimension(t, dim, "shape", 2) + 1]
end)
method("dtype", 0, function(t) return handle.DTYPE_NAME[C.sz_tensor_dtype(pointer(t, 2))] end)
method("device", 0, function(t) return handle.DEVICE_NAME[C.sz_tensor_device(pointer(t, 2))] end)
method("numel", 0, function(t) return tonumber(C.sz_tensor_numel(pointer(t, 2))) end)

function metatable.__len(t)
  if C.sz_tensor_ndim(pointer(t, 2)) == 0 then error("#t: this tensor has no dimensions", 2) end
  return tonumber(C.sz_tensor_dim(t.ptr, 0))
end

-- ---- elements ----
-- Returns a function that reads element i, from 0, of a tensor on the CPU.
local function reader(t)
  local p = handle.data(t)
  if C.sz_tensor_dtype(t.ptr) == C.SZ_BF16 then
    return function(i) return handle.from_bf16(p[i]) end
  end
  if C.sz_tensor_dtype(t.ptr) == C.SZ_F32 then
    local words = ffi.cast("uint32_t *", p)
    return function(i) return handle.from_bits(words[i]) end
  end
  return function(i) return tonumber(p[i]) end
end

-- Calls f(at, n) for a tensor on any device: at(i) reads element i, from 0, of n. The reader holds
-- no tensor, because compiled traces keep alive what closures hold.
function M.reading(t, f, level)
  level = (level or 1) + 1
  if C.sz_tensor_device(pointer(t, level)) == C.SZ_CPU then
    check(C.sz_tensor_data(t.ptr), level)
    return f(reader(t), t:numel())
  end
  local plain = handle.wrap(check(C.sz_tensor_detach(t.ptr), level))
  local copy = handle.wrap(check(C.sz_tensor_to(plain.ptr, C.SZ_CPU), level))
  plain:free()
  local result = f(reader(copy), t:numel())
  copy:free()
  return result
end
local reading = M.reading

local function first(at) return at(0) end

method("item", 0, function(t)
  pointer(t, 2)
  if t:numel() ~= 1 then
    fail(2, "item: needs a tensor of one element, this one has %d", t:numel())
  end
  return reading(t, first)
end)

method("totable", 0, function(t)
  pointer(t, 2)
  local shape = handle.sizes(t)
  if #shape == 0 then return reading(t, first) end
  return reading(t, function(at)
    local i = 0
    local function build(depth)
      local out = {}
      for k = 1, shape[depth] do
        if depth == #shape then
          out[k] = at(i)
          i = i + 1
        else
          out[k] = build(depth + 1)
        end
      end
      return out
    end
    return build(1)
  end)
end)

-- ---- indexing ----
-- Turns index i of a dimension, from 1 or from the end, into an offset from 0.
local function offset_of(i, size, place, level)
  if not handle.is_whole(i) then
    fail(level + 1, "index %d is %s, expected a whole number", place, tostring(i))
  end
  if i == 0 then
    error("elements are counted from 1 (dimensions from 0), got index 0", level + 1)
  end
  if i > size or i < -size then
    fail(level + 1, "index %d is %d, out of range for %d elements (1 to %d, or -%d to -1)",
      place, i, size, size, size)
  end
  if i < 0 then return size + i end
  return i - 1
end

-- The element of a tensor with all its indices given.
local function element(t, offset, level)
  if C.sz_tensor_device(t.ptr) == C.SZ_CPU then
    check(C.sz_tensor_data(t.ptr), level + 1)
    return reader(t)(offset)
  end
  local flat = methods.reshape(t:detach(), t:numel())
  return reading(methods.narrow(flat, offset, 1), first, level)
end

-- t[{i, j, ...}]: indexes the first #indices dimensions. Like element() and reading() it is reached
-- by tail calls only, so level 1 blames the user's line.
local function pick(t, indices, level)
  pointer(t, level + 1)
  local sizes = handle.sizes(t)
  if #indices == 0 or #indices > #sizes then
    fail(level + 1, "%d indices, and the tensor's shape is [%s]", #indices, handle.shape_text(t))
  end
  local offset = 0
  local chosen = 1
  for k, i in ipairs(indices) do
    offset = offset * sizes[k] + offset_of(i, sizes[k], k, level + 1)
    chosen = chosen * sizes[k]
  end
  if #indices == #sizes then return element(t, offset, level) end

  local rest = {}
  for k = #indices + 1, #sizes do rest[#rest + 1] = sizes[k] end
  local rows = methods.reshape(t, { chosen, unpack(rest) })
  return methods.reshape(methods.narrow(rows, offset, 1), rest)
end

local function unknown(name, level)
  local instead = require("segzero.core.tensor.torch_names")[name]
  if instead then
    fail(level + 1, "a tensor has no field or method '%s': write %s", name, instead)
  end
  local nearest = require "segzero.core.nearest"
  local names = {}
  for known in pairs(methods) do names[#names + 1] = known end
  table.sort(names)
  fail(level + 1, "a tensor has no field or method '%s'%s", name, nearest.question(name, names))
end

function metatable.__index(t, key)
  local found = methods[key]
  if found then return found end
  if type(key) == "number" then return pick(t, { key }, 1) end
  if type(key) == "table" then return pick(t, key, 1) end
  if handle.is_tensor(key) then
    error("a tensor is no index: t:gather_rows(ids) takes rows, "
      .. "tensor.where(condition, a, b) chooses elements", 2)
  end
  unknown(tostring(key), 2)
end

function metatable.__newindex(_, key)
  if type(key) == "string" then
    fail(2, "a tensor has no field '%s' to set", key)
  end
  error("elements of a tensor cannot be assigned: t:copy_(x) replaces all of them, "
    .. "t:index_copy(ids, rows) replaces rows of a copy, tensor.where(condition, a, b) chooses", 2)
end

-- for i, row in ipairs(t): the numbers or views t[1], t[2], ...
function metatable.__ipairs(t)
  local count = #t
  local function following(_, i)
    if i < count then return i + 1, t[i + 1] end
  end
  return following, t, 0
end

-- Whether ops are recorded.
local function autograd_is_on()
  local on = C.sz_set_grad_enabled(1)
  C.sz_set_grad_enabled(on)
  return on == 1
end

-- ---- copies ----
-- A copy that outlives tensor.step. Gradients go through it, as in PyTorch.
method("clone", 0, function(t) return handle.wrap(check(C.sz_tensor_clone(pointer(t, 2)), 2)) end)
method("detach", 0, function(t) return handle.wrap(check(C.sz_tensor_detach(pointer(t, 2)), 2)) end)
method("copy_", 1, function(t, src)
  if C.sz_tensor_requires_grad(pointer(src, 2)) == 1 and autograd_is_on() then
    error("copy_ has no gradient, and the source requires one (detach it, or use no_grad)", 2)
  end
  check(C.sz_tensor_copy(pointer(t, 2), pointer(src, 2)), 2)
  return t
end)

local TO = options.set { "dtype", "device" }

-- The tensor in opts.dtype and on opts.device; the tensor itself if nothing changes. A change of
-- device has no gradient.
method("to", 1, function(t, opts)
  pointer(t, 2)
  opts = handle.options(opts, 2, "to", TO)
  local dtype = opts.dtype and handle.dtype_code(opts.dtype, 2)
  local device = opts.device and handle.device_code(opts.device, 2)
  if dtype and dtype ~= C.sz_tensor_dtype(t.ptr) then t = methods.cast(t, dtype) end
  if not device or device == C.sz_tensor_device(pointer(t, 2)) then return t end
  return handle.wrap(check(C.sz_tensor_to(t.ptr, device), 2))
end)

-- The tensor on the CPU, as f32 if it is bf16, without history: for data(). Returns the tensor
-- itself if nothing changes. A NaN gets the bits that LuaJIT can read: results may have others, and
-- in a dry run (tools/plan_count.lua) nothing has been computed. So what Lua reads element by
-- element comes from here.
local function readable(t)
  if C.sz_tensor_dtype(t.ptr) == C.SZ_F32 then check(C.sz_tensor_plain_nans(t.ptr)) end
  return t
end

method("values", 0, function(t)
  pointer(t, 2)
  if t:dtype() == "bf16" then
    local recording = C.sz_set_grad_enabled(0)
    local good, wide = pcall(methods.cast, t, C.SZ_F32)
    C.sz_set_grad_enabled(recording)
    if not good then error(wide, 2) end
    t = wide
  end
  if C.sz_tensor_device(t.ptr) ~= C.SZ_CPU then
    t = handle.wrap(check(C.sz_tensor_to(t:detach().ptr, C.SZ_CPU), 2))
  end
  return readable(t)
end)

return M
