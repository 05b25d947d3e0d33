-- handle.lua - the Lua object of a tensor, and the checks that all of core/tensor/ share.
--
-- A handle is a C struct that holds one reference to an sz_tensor: `t.ptr`, NULL after free(). It
-- is a struct and not a Lua table because only a struct can answer `#t` and refuse `t[2] = 5`.
--
--   handle.method("relu6", 0, f)         a method f(t) without arguments
--   local p = handle.pointer(t, 2)       the sz_tensor, or an error at the caller's line
--
-- `method` wraps a method so that it leaves no frame: level 2 of error() in it is the user's line.
-- Leaves out: the methods themselves, which the other files of this folder add to `methods` and to
-- `metatable` before seal() is called.

local ffi = require "ffi"
local bit = require "bit"
local core = require "segzero.core.ffi"
local options = require "segzero.core.options"

local C = core.C
local check = core.check

ffi.cdef "typedef struct { sz_tensor *ptr; } sz_tensor_handle;"
local Handle = ffi.typeof "sz_tensor_handle"

local M = {}

M.methods = {}
M.metatable = {}
M.MAX_DIMS = 6

local DTYPE = { f32 = C.SZ_F32, bf16 = C.SZ_BF16, i32 = C.SZ_I32, u8 = C.SZ_U8 }
M.DTYPE_NAME = { [0] = "f32", "bf16", "i32", "u8" }
M.DEVICE_NAME = { [0] = "cpu", "cuda:0" }
local POINTER = { [0] = "float *", "uint16_t *", "int32_t *", "uint8_t *" }

-- error() with a format. level as for error() in the calling function; 0 for no position.
local function fail(level, format, ...)
  if level > 0 then level = level + 1 end
  error(format:format(...), level)
end
M.fail = fail

-- ---- making handles ----
-- Sets the metatable, which LuaJIT does not allow to change afterwards.
function M.seal()
  M.metatable.__gc = function(t)
    if t.ptr ~= nil then C.sz_tensor_release(t.ptr) end
  end
  ffi.metatype(Handle, M.metatable)
end

-- A handle that takes over one reference to a C tensor. The collector may drop a handle while its
-- bytes are read, so these stay until the step ends.
function M.wrap(ptr)
  C.sz_tensor_pin(ptr)
  return Handle(ptr)
end

-- A handle to a borrowed C tensor; takes a reference of its own.
function M.borrow(ptr) return M.wrap(C.sz_tensor_retain(ptr)) end

function M.is_tensor(x) return ffi.istype(Handle, x) end

M.methods.free = function(t)
  if not M.is_tensor(t) then error("free: expected a tensor, got " .. type(t), 2) end
  if t.ptr ~= nil then
    C.sz_tensor_release(t.ptr)
    t.ptr = nil
  end
end

-- ---- checks; level is as for error(): 2 blames the caller of the function that checks ----
local function pointer(t, level)
  if not ffi.istype(Handle, t) then
    error(("expected a tensor, got %s"):format(type(t)), (level or 1) + 1)
  end
  if t.ptr == nil then error("this tensor has been freed", (level or 1) + 1) end
  return t.ptr
end
M.pointer = pointer

function M.dtype_code(name, level)
  local code = DTYPE[name]
  if not code then
    error(("unknown dtype %s (f32, bf16, i32, u8)"):format(tostring(name)), (level or 1) + 1)
  end
  return code
end

-- The code of a device. A device that cannot be used on this machine is an error.
function M.device_code(name, level)
  level = (level or 1) + 1
  if name == nil or name == "cpu" then return C.SZ_CPU end
  if name == "cuda" or name == "cuda:0" then
    check(C.sz_device_ready(C.SZ_CUDA), level)
    return C.SZ_CUDA
  end
  local number = tostring(name):match "^cuda:(%d+)$"
  if number then
    local cure = "segzero uses one GPU, called cuda; choose it with CUDA_VISIBLE_DEVICES="
    fail(level, "device %s: %s%s", name, cure, number)
  end
  fail(level, "unknown device %s (cpu or cuda)", tostring(name))
end

-- The name of the device that models are loaded on: the given one, else SEGZERO_DEVICE, else cpu.
function M.model_device(name, level)
  return M.DEVICE_NAME[M.device_code(name or os.getenv "SEGZERO_DEVICE", (level or 1) + 1)]
end

-- The options table of a call, {} for nil. With a set (core/options.lua) unknown fields are errors.
function M.options(opts, level, where, set)
  level = level + 1
  if opts ~= nil and type(opts) ~= "table" then
    fail(level, "options must be a table such as {dtype = \"bf16\"}, got %s", tostring(opts))
  end
  if set then return options.check(where, opts, set, level - 1) end     -- a tail call
  return opts or {}
end

function M.is_whole(x) return type(x) == "number" and x % 1 == 0 end

-- Checks a dimension of t, counted from 0, or from the end if negative. Returns it counted from 0.
function M.dimension(t, dim, name, level)
  local ndim = C.sz_tensor_ndim(t.ptr)
  if not M.is_whole(dim) then
    fail(level + 1, "%s: a dimension must be a whole number, counted from 0, got %s",
      name, tostring(dim))
  end
  if dim < -ndim or dim >= ndim then
    fail(level + 1, "%s: there is no dimension %d in a tensor of shape [%s]",
      name, dim, M.shape_text(t))
  end
  if dim < 0 then dim = dim + ndim end
  return dim
end

-- The sizes as a list, outermost first.
function M.sizes(t)
  local sizes = {}
  for i = 1, C.sz_tensor_ndim(t.ptr) do sizes[i] = tonumber(C.sz_tensor_dim(t.ptr, i - 1)) end
  return sizes
end

function M.shape_text(t) return table.concat(M.sizes(t), ", ") end

-- Defines a method with at most `most` arguments after the tensor.
function M.method(name, most, f)
  M.methods[name] = function(...)
    local given = select("#", ...) - 1
    if given > most then
      local takes = "takes no argument"
      if most == 1 then takes = "takes at most 1 argument" end
      if most > 1 then takes = ("takes at most %d arguments"):format(most) end
      fail(2, "%s: %s, got %d", name, takes, given)
    end
    return f(...)
  end
end

-- ---- bytes ----
-- The typed data pointer of a tensor on the CPU. Valid as long as the tensor and its step are.
function M.data(t)
  local p = check(C.sz_tensor_data(pointer(t, 2)), 2)
  return ffi.cast(POINTER[C.sz_tensor_dtype(t.ptr)], p)
end

local bits = ffi.new "union { float f; uint32_t u; }"
local NAN = 0 / 0

-- A Lua number as the bits of a bf16, rounded to nearest even, and back.
function M.to_bf16(x)
  bits.f = x
  local u = tonumber(bits.u)
  if x ~= x then return 0x7fc0 end
  return math.floor((u + 0x7fff + math.floor(u / 65536) % 2) / 65536) % 65536
end

-- The float with these 32 bits. LuaJIT stores the type of every other value in the bits of a NaN,
-- so a NaN from a file must not become a Lua number as it is: it would read as nil or as a pointer.
function M.from_bits(u)
  if bit.band(u, 0x7fffffff) > 0x7f800000 then return NAN end
  bits.u = u
  return tonumber(bits.f)
end

function M.from_bf16(h) return M.from_bits(h * 65536) end

-- The IEEE 754 half with these 16 bits.
function M.from_f16(h)
  local sign = bit.band(h, 0x8000) ~= 0 and -1 or 1
  local exponent = bit.band(bit.rshift(h, 10), 31)
  local fraction = bit.band(h, 1023)
  if exponent == 31 then return fraction == 0 and sign * math.huge or NAN end
  if exponent == 0 then return sign * fraction * 2 ^ -24 end
  return sign * (1024 + fraction) * 2 ^ (exponent - 25)
end

return M
