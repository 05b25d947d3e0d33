-- create.lua - tensors from Lua numbers, constants and random numbers.
--
--   tensor.new({{1, 2}, {3, 4}}, {dtype = "f32", device = "cpu"})      nested lists of numbers
--   tensor.zeros({2, 3})  tensor.ones({2, 3})  tensor.full({2, 3}, 0.5)  tensor.empty({2, 3})
--   tensor.arange(5)      {0, 1, 2, 3, 4};  tensor.arange(1, 2, 0.25)    start, stop, step
--   tensor.randn({2, 3})  tensor.rand({2, 3})  tensor.manual_seed(7)
--
-- A shape is a list of whole numbers. Each function takes {dtype =, device =} last; the default
-- dtype is f32, also for whole numbers. Numbers for i32 and u8 must be whole and in range. Random
-- numbers depend only on the seed (default 0) and on how many random tensors were made since
-- manual_seed, so a script gets the same numbers each time.
-- Leaves out: f16, i64, f64.

local ffi = require "ffi"
local core = require "segzero.core.ffi"
local handle = require "segzero.core.tensor.handle"
local options = require "segzero.core.options"

local C = core.C
local check = core.check
local fail = handle.fail

local M = {}

local OPTIONS = options.set { "dtype", "device" }

-- ---- shapes ----
-- The sizes as an int64_t array, and how many there are.
local function dims(shape, name, level)
  level = level + 1
  if type(shape) ~= "table" then
    fail(level, "%s: a shape is a list such as {2, 3}, got %s", name, tostring(shape))
  end
  if #shape > handle.MAX_DIMS then
    fail(level, "%s: a tensor has at most %d dimensions, got %d", name, handle.MAX_DIMS, #shape)
  end
  local count = 0
  for _ in pairs(shape) do count = count + 1 end
  if count ~= #shape then
    fail(level, "%s: the shape has a name or a nil in it; options are a second table", name)
  end
  local sizes = ffi.new("int64_t[?]", handle.MAX_DIMS)
  for i, n in ipairs(shape) do
    if not handle.is_whole(n) or n < 0 then
      fail(level, "%s: size %d of the shape is %s, expected a whole number from 0",
        name, i, tostring(n))
    end
    sizes[i - 1] = n
  end
  return sizes, #shape
end

-- f: sz_tensor_new or sz_tensor_zeros. Always a tail call, which leaves no frame, so level 1 blames
-- the caller of the function that ends in it.
local function make(name, f, shape, opts, level)
  level = level + 1
  local sizes, ndim = dims(shape, name, level)
  opts = handle.options(opts, level, name, OPTIONS)
  local dtype = handle.dtype_code(opts.dtype or "f32", level)
  local device = handle.device_code(opts.device, level)
  return handle.wrap(check(f(dtype, ndim, sizes, device), level))
end

function M.zeros(shape, opts) return make("zeros", C.sz_tensor_zeros, shape, opts, 1) end
function M.empty(shape, opts) return make("empty", C.sz_tensor_new, shape, opts, 1) end

-- A meta tensor: it has a shape and no memory, and is used for counting.
function M.meta(shape, dtype)
  local sizes, ndim = dims(shape, "meta", 2)
  return handle.wrap(check(C.sz_tensor_meta(handle.dtype_code(dtype or "f32", 2), ndim, sizes), 2))
end

-- ---- elements ----
local LIMITS = { i32 = { -2 ^ 31, 2 ^ 31 - 1 }, u8 = { 0, 255 } }

-- Returns a function that turns a Lua number into an element of dtype, and raises if it does not
-- fit.
local function converter(dtype)
  if dtype == "bf16" then return handle.to_bf16 end
  local limits = LIMITS[dtype]
  if not limits then return function(v) return v end end
  return function(v)
    if not (v >= limits[1] and v <= limits[2]) then          -- written so that NaN is refused
      fail(0, "%s does not fit %s (%.0f to %.0f)", tostring(v), dtype, limits[1], limits[2])
    end
    if v % 1 ~= 0 then fail(0, "%s is not a whole number, dtype is %s", tostring(v), dtype) end
    return v
  end
end

-- Makes a tensor with the elements element(i), i from 0, on the CPU, and moves it to opts.device.
local function filled(name, shape, opts, level, element)
  level = level + 1
  dims(shape, name, level)
  opts = handle.options(opts, level, name, OPTIONS)
  local dtype = opts.dtype or "f32"
  local t = make(name, C.sz_tensor_new, shape, { dtype = dtype }, level)
  local p = handle.data(t)
  local convert = converter(dtype)
  local good, why = pcall(function()
    for i = 0, tonumber(C.sz_tensor_numel(t.ptr)) - 1 do p[i] = convert(element(i)) end
  end)
  if not good then error(name .. ": " .. why, level) end
  if handle.device_code(opts.device, level) == C.SZ_CPU then return t end
  return handle.wrap(check(C.sz_tensor_to(t.ptr, C.SZ_CUDA), level))
end

-- The shape of nested lists, judged by their first elements; {1} for a number.
local function shape_of(values, level)
  local shape = {}
  if type(values) == "number" then return { 1 } end
  if type(values) ~= "table" then
    fail(level + 1, "tensor: expected a number or lists of numbers, got %s", type(values))
  end
  while type(values) == "table" and #shape <= handle.MAX_DIMS do
    if #values == 0 and next(values) ~= nil then
      error("expected lists of numbers, got a table with names", level + 1)
    end
    shape[#shape + 1] = #values
    values = values[1]
  end
  return shape
end

-- The numbers of nested lists in one list. Lists that do not have the shape are an error.
local function flattened(values, shape, level)
  local flat = {}
  local function walk(v, depth)
    if depth > #shape then
      if type(v) ~= "number" then
        fail(0, "expected a number at depth %d, got %s", depth, type(v))
      end
      flat[#flat + 1] = v
      return
    end
    if type(v) ~= "table" or #v ~= shape[depth] then
      fail(0, "ragged table: expected %d elements at depth %d", shape[depth], depth)
    end
    local count = 0
    for _ in pairs(v) do count = count + 1 end
    if count ~= #v then
      fail(0, "a list at depth %d has a nil between its numbers, or names", depth)
    end
    for k = 1, #v do walk(v[k], depth + 1) end
  end
  local good, why = pcall(walk, values, 1)
  if not good then error(why, level + 1) end
  return flat
end

-- A number, a list of numbers, or nested lists.
function M.new(values, opts)
  if handle.is_tensor(values) then
    error("tensor: this is a tensor already; clone() copies it, to{} changes dtype or device", 2)
  end
  local shape = shape_of(values, 2)
  local flat = { values }
  if type(values) == "table" then flat = flattened(values, shape, 2) end
  return filled("tensor", shape, opts, 1, function(i) return flat[i + 1] end)
end

local function expect_number(name, what, v, level)
  if type(v) ~= "number" then
    fail(level + 1, "%s: %s must be a number, got %s", name, what, tostring(v))
  end
end

function M.full(shape, value, opts)
  expect_number("full", "the value", value, 2)
  return filled("full", shape, opts, 1, function() return value end)
end

function M.ones(shape, opts)
  return filled("ones", shape, opts, 1, function() return 1 end)
end

-- arange(stop), arange(start, stop) or arange(start, stop, step), then options. Counts from start
-- in steps and stops before stop. The default dtype is f32.
function M.arange(...)
  local numbers = { ... }
  local opts = nil
  if type(numbers[#numbers]) == "table" then opts = table.remove(numbers) end
  if #numbers < 1 or #numbers > 3 then
    fail(2, "arange: takes stop, or start, stop and step, got %d numbers", #numbers)
  end
  for _, v in ipairs(numbers) do expect_number("arange", "each argument", v, 2) end
  if #numbers == 1 then table.insert(numbers, 1, 0) end
  local start = numbers[1]
  local stop = numbers[2]
  local step = numbers[3] or 1
  local count = math.ceil((stop - start) / step)
  if step == 0 or not (count >= 0 and count < math.huge) then
    fail(2, "arange: steps of %g never reach %g from %g", step, stop, start)
  end
  return filled("arange", { count }, opts, 1, function(i) return start + i * step end)
end

-- ---- random numbers ----
local seed = 0
local stream = 0                  -- random tensors made since the seed was set

function M.manual_seed(n)
  if not handle.is_whole(n) or n < 0 or n >= 2 ^ 53 then
    fail(2, "manual_seed: a whole number from 0 to 2^53 is expected, got %s", tostring(n))
  end
  seed = n
  stream = 0
end

local function next_stream()
  stream = stream + 1
  return stream
end

-- Normal numbers with mean 0 and standard deviation 1.
function M.randn(shape, opts)
  local t = make("randn", C.sz_tensor_new, shape, opts, 2)
  check(C.sz_random_normal_(t.ptr, seed, next_stream(), 0, 1), 2)
  return t
end

local UNIFORM = 0x40000000        -- separates these random bits from those of randn
local FRACTION = { f32 = 24, bf16 = 8 }    -- bits that the dtype has for numbers in [0.5, 1)

-- Uniform numbers in [0, 1).
function M.rand(shape, opts)
  dims(shape, "rand", 2)
  opts = handle.options(opts, 2, "rand", OPTIONS)
  local fraction = FRACTION[opts.dtype or "f32"]
  if not fraction then
    fail(2, "rand: dtype is %s, f32 or bf16 is expected", tostring(opts.dtype))
  end
  local row = next_stream()
  local words = ffi.new "uint32_t[4]"
  local keep = 2 ^ (32 - fraction)
  local function element(i)
    if i % 4 == 0 then C.sz_random_bits(seed, row, math.floor(i / 4), UNIFORM, words) end
    return math.floor(words[i % 4] / keep) / 2 ^ fraction
  end
  return filled("rand", shape, opts, 1, element)
end

return M
