-- tensor.lua - the Lua face of tensors: construction, reading, arithmetic, one method per row of ops.def.
--
--   local t = tensor.new({{1, 2}, {3, 4}}, {dtype = "f32"})     nested tables, or tensor.zeros({2, 2}, {...})
--   (t * 2 + 1):exp():sum():item()
--   t:requires_grad(true); loss:backward(); t:grad()
--   t:to{device = "cuda"}                  a copy on the device; item(), totable() and print read from anywhere
--
-- Methods of ops.def take the op's tensors, then its numbers, by position or by name: x:rmsnorm(w, 1e-6),
-- x:rope(cos, sin, { heads = 2, head_dim = 64 }). In-place ones keep their underscore.
-- A tensor holds one reference to its C object; free() drops it at once, the collector is only the net (it does not see
-- C memory). tensor.step(f) runs f inside a scope: what it makes is released together when f returns.
-- Leaves out: slicing and general broadcasting.

local ffi = require "ffi"
local core = require "segzero.core.ffi"

local C, check = core.C, core.check

local M = {}

local DTYPE = { f32 = C.SZ_F32, bf16 = C.SZ_BF16, i32 = C.SZ_I32, u8 = C.SZ_U8 }
local DTYPE_NAME = { [0] = "f32", "bf16", "i32", "u8" }
local DEVICE_NAME = { [0] = "cpu", "cuda:0" }
local POINTER = { [0] = "float *", "uint16_t *", "int32_t *", "uint8_t *" }
local MAX_DIMS = 6

local methods = {}
local mt = { __index = methods }

local function is_tensor(x) return getmetatable(x) == mt end
M.is_tensor = is_tensor

M.WIDTH = { f32 = 4, bf16 = 2, i32 = 4, u8 = 1 }       -- bytes of an element

-- Takes over one reference to a C tensor.
function M.wrap(ptr)
  return setmetatable({ ptr = ffi.gc(ptr, C.sz_tensor_release) }, mt)
end

-- A handle to a tensor that C lends.
function M.borrow(ptr) return M.wrap(C.sz_tensor_retain(ptr)) end

function M.dtype_code(name, level)
  local code = DTYPE[name]
  if not code then error(("unknown dtype %s (f32, bf16, i32, u8)"):format(tostring(name)), (level or 1) + 1) end
  return code
end

-- Raises when the device cannot be used here.
local function device_code(name, level)
  if name == nil or name == "cpu" then return C.SZ_CPU end
  if name ~= "cuda" and name ~= "cuda:0" then
    local hint = tostring(name):match "^cuda:%d+$" and "one device is used; CUDA_VISIBLE_DEVICES says which" or "cpu or cuda"
    error(("unknown device %s (%s)"):format(tostring(name), hint), (level or 1) + 1)
  end
  check(C.sz_device_ready(C.SZ_CUDA), (level or 1) + 1)
  return C.SZ_CUDA
end
M.device_code = device_code

local function pointer(t, level)
  if not is_tensor(t) then error(("expected a tensor, got %s"):format(type(t)), (level or 1) + 1) end
  if t.ptr == nil then error("this tensor has been freed", (level or 1) + 1) end
  return t.ptr
end

-- The name of the device that opts.device (or SEGZERO_DEVICE without one) means, for what loads models.
function M.model_device(name, level)
  return DEVICE_NAME[device_code(name or os.getenv "SEGZERO_DEVICE", (level or 1) + 1)]
end

-- The typed data pointer, valid as long as the tensor (and its step). Of tensors on the cpu only.
function M.data(t)
  local p = check(C.sz_tensor_data(pointer(t, 2)), 2)
  return ffi.cast(POINTER[C.sz_tensor_dtype(t.ptr)], p)
end

-- options of a call: a table or nothing. A dtype's name alone would be taken for no options.
local function options(opts, level)
  if opts ~= nil and type(opts) ~= "table" then error(("options are a table such as {dtype = \"bf16\"}, got %s"):format(tostring(opts)), level + 1) end
  return opts or {}
end
M.options = options

local function dims(shape)
  local a = ffi.new("int64_t[?]", MAX_DIMS)
  for i, n in ipairs(shape) do a[i - 1] = n end
  return a, #shape
end

local function make(f, shape, opts, level)
  opts = options(opts, level + 1)
  if #shape > MAX_DIMS then error("a tensor has at most " .. MAX_DIMS .. " dimensions", level + 1) end
  local a, n = dims(shape)
  return M.wrap(check(f(M.dtype_code(opts.dtype or "f32", level + 1), n, a, device_code(opts.device, level + 1)), level + 1))
end

function M.zeros(shape, opts) return make(C.sz_tensor_zeros, shape, opts, 2) end
function M.empty(shape, opts) return make(C.sz_tensor_new, shape, opts, 2) end

-- Without memory behind it: for counting.
function M.meta(shape, dtype)
  local a, n = dims(shape)
  return M.wrap(check(C.sz_tensor_meta(M.dtype_code(dtype or "f32", 2), n, a), 2))
end

local bits = ffi.new("union { float f; uint32_t u; }")

local function to_bf16(x)
  bits.f = x
  local u = tonumber(bits.u)
  if x ~= x then return 0x7fc0 end
  return math.floor((u + 0x7fff + math.floor(u / 65536) % 2) / 65536) % 65536
end

local function from_bf16(h)
  bits.u = h * 65536
  return tonumber(bits.f)
end

-- What the whole types hold; beyond it, and for NaN, C's conversion would make up a number.
local WHOLE = { i32 = { -2 ^ 31, 2 ^ 31 - 1 }, u8 = { 0, 255 } }

-- Nested tables of numbers (or one number, or a flat table) to a tensor.
function M.new(values, opts)
  opts = options(opts, 2)
  local shape, level = {}, values
  if is_tensor(values) then error("this is a tensor already; clone() copies it, to{} changes dtype or device", 2) end
  while type(level) == "table" and #shape <= MAX_DIMS do
    if #level == 0 and next(level) ~= nil then error("expected lists of numbers, got a table with names", 2) end
    shape[#shape + 1] = #level
    level = level[1]
  end
  if type(values) == "number" then shape = { 1 } end
  local t = make(C.sz_tensor_new, shape, { dtype = opts.dtype }, 2)
  local p, i, bf16, range = M.data(t), 0, opts.dtype == "bf16", WHOLE[opts.dtype]
  local function fill(v, depth)
    if depth > #shape or type(values) == "number" then
      if type(v) ~= "number" then error(("expected a number at depth %d, got %s"):format(depth, type(v)), 0) end
      if range and not (v >= range[1] and v <= range[2]) then
        error(("%s does not fit %s (%.0f to %.0f)"):format(tostring(v), opts.dtype, range[1], range[2]), 0)
      end
      p[i] = bf16 and to_bf16(v) or v
      i = i + 1
      return
    end
    if type(v) ~= "table" or #v ~= shape[depth] then
      error(("ragged table: expected %d elements at depth %d"):format(shape[depth], depth), 0)
    end
    for k = 1, #v do fill(v[k], depth + 1) end
  end
  local ok, message = pcall(fill, values, 1)
  if not ok then error(message, 2) end
  return t:to { device = opts.device or "cpu" }
end

-- ---- reading ----
function methods:shape()
  local p, s = pointer(self, 2), {}
  for i = 1, C.sz_tensor_ndim(p) do s[i] = tonumber(C.sz_tensor_dim(p, i - 1)) end
  return s
end
function methods:dtype() return DTYPE_NAME[C.sz_tensor_dtype(pointer(self, 2))] end
function methods:device() return DEVICE_NAME[C.sz_tensor_device(pointer(self, 2))] end
function methods:numel() return tonumber(C.sz_tensor_numel(pointer(self, 2))) end

-- f(at, n): at(i) gives element i of n, from 0; for tensors of any device. The reader holds no tensor: compiled traces keep what
-- closures hold.
local function reading(t, f)
  local copy
  if C.sz_tensor_device(pointer(t, 3)) == C.SZ_CPU then
    check(C.sz_tensor_data(t.ptr), 3)
  else
    local plain = M.wrap(check(C.sz_tensor_detach(t.ptr), 3))
    copy = M.wrap(check(C.sz_tensor_to(plain.ptr, C.SZ_CPU), 3))
    plain:free()
  end
  local p = M.data(copy or t)
  local at = C.sz_tensor_dtype(t.ptr) == C.SZ_BF16 and function(i) return from_bf16(p[i]) end or function(i) return tonumber(p[i]) end
  local result = f(at, t:numel())
  if copy then copy:free() end
  return result
end

local function first(at) return at(0) end

function methods:item()
  pointer(self, 2)
  if self:numel() ~= 1 then error(("item() wants one element, this tensor has %d"):format(self:numel()), 2) end
  return reading(self, first)
end

function methods:totable()
  pointer(self, 2)
  local shape = self:shape()
  if #shape == 0 then return reading(self, first) end
  return reading(self, function(at)
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
end

function methods:free()
  if self.ptr ~= nil then
    C.sz_tensor_release(ffi.gc(self.ptr, nil))
    self.ptr = nil
  end
end

function methods:clone() return M.wrap(check(C.sz_tensor_clone(pointer(self, 2)), 2)) end
function methods:detach() return M.wrap(check(C.sz_tensor_detach(pointer(self, 2)), 2)) end
function methods:copy_(src)
  check(C.sz_tensor_copy(pointer(self, 2), pointer(src, 2)), 2)
  return self
end

-- The tensor in opts.dtype and on opts.device; itself where nothing changes. A change of device has no gradient.
function methods:to(opts)
  pointer(self, 2)
  opts = options(opts, 2)
  local device = opts.device and device_code(opts.device, 2)
  local t = self
  if opts.dtype and opts.dtype ~= self:dtype() then t = self:cast(M.dtype_code(opts.dtype, 2)) end
  if not device or device == C.sz_tensor_device(pointer(t, 2)) then return t end
  return M.wrap(check(C.sz_tensor_to(t.ptr, device), 2))
end

-- A copy where data() can be taken, f32 also of bf16; the tensor itself when it is such. Without history.
function methods:values()
  pointer(self, 2)
  local t = self
  if t:dtype() == "bf16" then
    t = M.no_grad(function() return self:cast(C.SZ_F32) end)
  end
  return C.sz_tensor_device(t.ptr) == C.SZ_CPU and t or M.wrap(check(C.sz_tensor_to(t:detach().ptr, C.SZ_CPU), 2))
end

-- ---- gradients ----
-- With an argument sets, and returns the tensor; without one tells.
function methods:requires_grad(on)
  if on == nil then return C.sz_tensor_requires_grad(pointer(self, 2)) == 1 end
  check(C.sz_tensor_set_requires_grad(pointer(self, 2), on and 1 or 0), 2)
  return self
end
-- from: what tensor.recorded() said before the loss's own work, to leave what came before it for a later backward(); see sz.h.
function methods:backward(from) check(C.sz_backward(pointer(self, 2), from or 0), 2) end
function M.recorded() return C.sz_tape_length() end
function methods:grad()
  local g = C.sz_tensor_grad(pointer(self, 2))
  return g ~= nil and M.borrow(g) or nil
end
function methods:zero_grad() C.sz_tensor_zero_grad(pointer(self, 2)) end

-- For xpcall: the message with its traceback, of scopes within scopes the innermost. A message that names no place in the
-- code is meant for the user as it is.
local function traced(e)
  if type(e) ~= "string" or e:find("\nstack traceback:", 1, true) or not e:find "^[^\n]-:%d+:" then return e end
  return debug.traceback(e, 2)
end

-- Runs f with recording off and returns what it returns.
function M.no_grad(f, ...)
  local before = C.sz_set_grad_enabled(0)
  local function finish(ok, ...)
    C.sz_set_grad_enabled(before)
    if not ok then error((...), 0) end
    return ...
  end
  return finish(xpcall(f, traced, ...))
end

-- Runs f in a scope: every tensor made inside is released when it returns. Results that must outlive it are cloned.
function M.step(f, ...)
  local depth = C.sz_scope_push()
  local function finish(ok, ...)
    while C.sz_scope_depth() >= depth do C.sz_scope_pop() end
    if not ok then error((...), 0) end
    return ...
  end
  return finish(xpcall(f, traced, ...))
end

-- ---- ops ----
-- M.ops[name] = { id, name, inputs, outputs, args, gradient, numbers }: a row of ops.def. args is how many numbers the op
-- takes; numbers is a list of { name, default }, default nil where the number must be given.
M.ops = {}

local MAX_IN, MAX_ARGS, MAX_OUT = 8, 8, 3
local op_in = ffi.new("sz_tensor *[?]", MAX_IN)
local op_args = ffi.new("double[?]", MAX_ARGS)
local op_out = ffi.new("sz_tensor *[?]", MAX_OUT)

-- "heads sign=1" -> { { name = "heads" }, { name = "sign", default = 1 } }
local function parse_numbers(text)
  local list = {}
  for word in text:gmatch "%S+" do
    local name, default = word:match "^([^=]+)=(.+)$"
    list[#list + 1] = { name = name or word, default = tonumber(default) }
  end
  return list
end

local function number_names(op)
  local names = {}
  for i, number in ipairs(op.numbers) do names[i] = number.name end
  return names
end

-- Writes number i of a call. value may be a boolean, or nil where there is a default. Errors blame the
-- caller of the op's method.
local function put_number(op, i, value)
  local number = op.numbers[i]
  if value == nil then value = number.default end
  if type(value) == "boolean" then value = value and 1 or 0 end
  local n = tonumber(value)
  if not n then
    local names = table.concat(number_names(op), ", ")
    if value == nil then
      error(("%s: %s is missing; its numbers are %s"):format(op.name, number.name, names), 4)
    end
    error(("%s: %s is %s, it must be a number"):format(op.name, number.name, tostring(value)), 4)
  end
  op_args[i - 1] = n
end

-- The numbers of a call as one table of names.
local function put_named(op, named)
  for key in pairs(named) do
    local known = false
    for i = 1, op.args do known = known or op.numbers[i].name == key end
    if not known then
      local names = number_names(op)
      if #names == 0 then error(("%s takes no numbers, got %s"):format(op.name, tostring(key)), 3) end
      local near = require "segzero.core.nearest"(tostring(key), names)
      error(("%s has no number called %s; did you mean %s?"):format(op.name, tostring(key), near), 3)
    end
  end
  for i = 1, op.args do put_number(op, i, named[op.numbers[i].name]) end
end

local function is_named(x) return type(x) == "table" and not is_tensor(x) end

local function surplus_message(op, value)
  local tensors = op.inputs == 1 and "1 tensor" or op.inputs .. " tensors"
  local numbers = table.concat(number_names(op), ", ")
  if numbers == "" then numbers = "no numbers" end
  return ("%s takes %s and %s; %s is one argument too many"):format(op.name, tensors, numbers, tostring(value))
end

-- Fills op_in and op_args from a call's arguments: the tensors (nil where the op allows it), then the
-- numbers, by position or as one table of names.
local function put_arguments(op, ...)
  local given = select("#", ...)
  for i = 1, op.inputs do op_in[i - 1] = nil end
  for i = 1, op.inputs do
    local t = select(i, ...)
    if is_named(t) and i == given then return put_named(op, t) end
    op_in[i - 1] = t ~= nil and pointer(t, 3) or nil
  end
  local named = select(op.inputs + 1, ...)
  if is_named(named) and given == op.inputs + 1 then return put_named(op, named) end
  for i = 1, op.args do put_number(op, i, (select(op.inputs + i, ...))) end
  for i = op.inputs + op.args + 1, given do
    local surplus = select(i, ...)
    if surplus ~= nil then error(surplus_message(op, surplus), 3) end
  end
end

-- Called as a tail call by an op's method: an error blames the method's caller.
local function run(op)
  check(C.sz_op_apply(op.id, op_in, op_args, op_out), 2)
  if op.outputs == 1 then return M.wrap(op_out[0]) end
  if op.outputs == 2 then return M.wrap(op_out[0]), M.wrap(op_out[1]) end
  return M.wrap(op_out[0]), M.wrap(op_out[1]), M.wrap(op_out[2])
end

local function method_of_any(op)
  return function(...)
    put_arguments(op, ...)
    return run(op)
  end
end

local function pointer_or_nil(t) return t ~= nil and pointer(t, 3) or nil end

-- Of up to three tensors and no numbers. Without a loop, so that LuaJIT compiles it into the caller's loop.
local function method_of_tensors(op)
  return function(a, b, c, d)
    local surplus = d
    if op.inputs < 3 then surplus = c or surplus end
    if op.inputs < 2 then surplus = b or surplus end
    if surplus ~= nil then put_arguments(op, a, b, c, d) end
    op_in[0] = pointer_or_nil(a)
    op_in[1] = pointer_or_nil(b)
    op_in[2] = pointer_or_nil(c)
    return run(op)
  end
end

for id = 0, C.sz_op_count() - 1 do
  local op = {
    id = id,
    name = ffi.string(C.sz_op_name(id)),
    inputs = C.sz_op_inputs(id),
    outputs = C.sz_op_outputs(id),
    args = C.sz_op_args(id),
    gradient = C.sz_op_has_grad(id) == 1,
    numbers = parse_numbers(ffi.string(C.sz_op_number_names(id))),
  }
  M.ops[op.name] = op
  methods[op.name] = op.args == 0 and op.inputs <= 3 and method_of_tensors(op) or method_of_any(op)
end

function methods:mean()
  pointer(self, 2)
  return self:sum():affine(1 / self:numel(), 0)
end

function mt.__add(a, b)
  if type(a) == "number" then return b:affine(1, a) end
  if type(b) == "number" then return a:affine(1, b) end
  return methods.add(a, b)
end
function mt.__sub(a, b)
  if type(a) == "number" then return b:affine(-1, a) end
  if type(b) == "number" then return a:affine(1, -b) end
  return methods.sub(a, b)
end
function mt.__mul(a, b)
  if type(a) == "number" then return b:affine(a, 0) end
  if type(b) == "number" then return a:affine(b, 0) end
  return methods.mul(a, b)
end
function mt.__div(a, b)
  if type(b) == "number" then return a:affine(1 / b, 0) end
  if type(a) == "number" then return M.new({ a }, { device = b:device() }):expand(b:detach()):div(b) end
  return methods.div(a, b)
end
function mt.__unm(a) return a:affine(-1, 0) end

function mt.__tostring(t)
  if t.ptr == nil then return "tensor (freed)" end
  local shape = t:shape()
  local head = ("tensor %s [%s]"):format(t:dtype(), table.concat(shape, ", "))
  if t:device() ~= "cpu" then head = head .. " on " .. t:device() end
  if C.sz_tensor_alive(t.ptr) ~= 0 then return head .. " (its step has ended)" end
  return reading(t, function(at, n)
    local parts = {}
    for i = 0, math.min(n, 8) - 1 do parts[#parts + 1] = ("%.6g"):format(at(i)) end
    return ("%s {%s%s}"):format(head, table.concat(parts, ", "), n > 8 and ", ..." or "")
  end)
end

return M
