-- op_compare.lua - how close the results of two kernels must be: tolerances with their reasons, and
-- the comparisons that tests/unit/test_ops.lua makes. Tensors are compared as flat lists of Lua
-- numbers.
--
--   local compare = require "tests.support.op_compare"("cpu")      the device of the fast kernels
--   compare.difference(got, want, tolerance)     nil, or where and by how much got is off
--
-- Leaves out: what is compared with what.

local ffi = require "ffi"
local tensor = require "segzero.core.tensor"

-- A result may differ from the expected one by relative * |expected| + scaled * (root mean square
-- of the expected tensor).
local TOLERANCE = {
  -- A few f32 roundings (6e-8 each) against double, inputs of size one; `scaled` is for results of
  -- a subtraction.
  f32 = { relative = 2e-6, scaled = 2e-6 },
  -- Sums of some hundred products in f32: the error grows with the terms and not with the result.
  f32_sums = { relative = 2e-5, scaled = 2e-5 },
  -- The f32 result may be on the other side of a rounding boundary: one unit in the last of bf16's
  -- 8 bits. rmsnorm and composed gradients round twice.
  bf16 = { relative = 2 ^ -7, scaled = 2 ^ -8 },
  -- Attention rounds probabilities to bf16 before they are summed, as flash attention does, so a
  -- row that sees few keys is off by 2^-9 of values of size one, and the tensor's root mean square
  -- is less (`terms` below); logprob_backward rounds the gradient of the logits before its
  -- products.
  bf16_sums = { relative = 2 ^ -7, scaled = 2 ^ -6 },
  -- Central differences of fourth order with step h: h^4 leaves 1e-6, rounding of f32 outputs 6e-8
  -- / h = 2e-6, times the number of outputs that one input reaches.
  differences = { relative = 3e-4, scaled = 3e-4 },
}

-- On another device. f32: sums in another order, with other functions of the hardware; 1e-4 is what
-- we ask for. bf16: attention's backward pass rounds both the probabilities and their gradients
-- before its products.
local ON_DEVICE = {
  f32_sums = { relative = 2e-5, scaled = 1e-4 },
  bf16_sums = { relative = 2 ^ -7, scaled = 2 ^ -5 },
}

local EXACT = { relative = 0, scaled = 0 }
-- A code that is rounded at random flips to its neighbour where the draw falls between the two
-- kernels' last bits.
local CODES = { relative = 0, scaled = 0, absolute = 1 }

-- On a device a whole tensor is judged as well: the root of its summed squared differences, in
-- parts of the root of the expected one's summed squares. Where bf16 is further from the reference
-- kernels than this, it is compared with the exact numbers, and may be off by half as much again as
-- the reference kernels in bf16 are, as in less_exact(): a small remainder of large terms (a
-- gradient through attention over nine keys) is off by 5 % by the rounding of those terms alone.
local APART = { f32 = 1e-4, bf16 = 1e-2 }

local TINY = 1e-37          -- below it nothing counts
local HUGE = 1e30           -- from there on a number does not count towards a tensor's size

local bits = ffi.new("union { float f; uint32_t u; }")

local M = {}

-- Elements as Lua numbers, 1..n; bf16 is widened here, not by the kernels under test.
function M.numbers(t)
  t = t:to { device = "cpu" }
  local p = tensor.data(t)
  local is_bf16 = t:dtype() == "bf16"
  local out = {}
  for i = 1, t:numel() do
    if is_bf16 then
      bits.u = p[i - 1] * 65536
      out[i] = tonumber(bits.f)
    else
      out[i] = tonumber(p[i - 1])
    end
  end
  return out
end

function M.bytes(t)
  t = t:to { device = "cpu" }
  return ffi.string(ffi.cast("char *", tensor.data(t)), t:numel() * tensor.WIDTH[t:dtype()])
end

local function is_ordinary(x) return x == x and math.abs(x) < HUGE end

local function root_mean_square(list)
  local squares, count = 0, 0
  for i = 1, #list do
    if is_ordinary(list[i]) then
      squares = squares + list[i] ^ 2
      count = count + 1
    end
  end
  return math.sqrt(squares / math.max(count, 1))
end

local function is_close(a, b, allowed)
  if a == b then return true end
  if a ~= a and b ~= b then return true end
  return math.abs(a - b) <= allowed
end

-- nil when got is close to want, else where and by how much it is off. terms: the size of the terms
-- of a sum that may come out much smaller than they are.
function M.difference(got, want, tolerance, terms)
  local absolute = tolerance.absolute or 0
  local floor = tolerance.scaled * (root_mean_square(want) + (terms or 0)) + TINY + absolute
  for i = 1, #want do
    local allowed = tolerance.relative * math.abs(want[i]) + floor
    if not is_close(got[i], want[i], allowed) then
      local text = "element %d of %d: got %.9g, expected %.9g within %.3g"
      return text:format(i, #want, got[i], want[i], allowed)
    end
  end
  if #got ~= #want then return ("%d elements, expected %d"):format(#got, #want) end
  return nil
end

-- Few numbers may all be small remainders of terms of size one: then a hundredth is the least that
-- each is compared with. Where the terms were rounded to bf16, fewer than MANY are compared with
-- what the caller says: a gradient of 34 such numbers on a device was off by 0.06.
local FEW = 16
local REMAINDER = 0.01
local MANY = 1000

-- How far got is from want, in parts of want's size (root of the sum of squares). Numbers that are
-- not finite are left to difference(). least: for terms that were rounded.
function M.apart(got, want, least)
  local size, off = 0, 0
  for i = 1, #want do
    local g = got[i] or 0
    if is_ordinary(want[i]) and is_ordinary(g) then
      size = size + want[i] ^ 2
      off = off + (g - want[i]) ^ 2
    end
  end
  if #want < FEW then size = math.max(size, #want * REMAINDER ^ 2) end
  if least and #want < MANY then size = math.max(size, #want * least ^ 2) end
  if size > 0 then return math.sqrt(off / size) end
  if off > 0 then return math.huge end
  return 0
end

local function root_mean_square_error(list, exact)
  local squares = 0
  for i = 1, #exact do squares = squares + (list[i] - exact[i]) ^ 2 end
  return math.sqrt(squares / math.max(#exact, 1))
end

-- nil when got, in bf16, is about as close to the exact numbers as `plain` is, the reference
-- kernels' result in bf16: half as far again on average, twice as far as their worst element, and a
-- rounding of the result itself. Else what is wrong.
function M.less_exact(got, plain, exact)
  local n = #exact
  if #got ~= n or #plain ~= n then return ("%d elements, expected %d"):format(#got, n) end
  local rounding = 2 ^ -9 * root_mean_square(exact) + TINY
  local ours, theirs = root_mean_square_error(got, exact), root_mean_square_error(plain, exact)
  if not (ours <= 1.5 * theirs + rounding) then
    return ("off by %.3g on average, the reference kernels in bf16 by %.3g"):format(ours, theirs)
  end
  local worst = 0
  for i = 1, n do worst = math.max(worst, math.abs(plain[i] - exact[i])) end
  for i = 1, n do
    local allowed = 2 * worst + 2 ^ -8 * math.abs(exact[i]) + rounding
    if not (math.abs(got[i] - exact[i]) <= allowed) then
      local text = "element %d of %d: got %.9g, exact %.9g, allowed %.3g"
      return text:format(i, n, got[i], exact[i], allowed)
    end
  end
  return nil
end

return function(device)
  local tolerances = {}
  for name, t in pairs(TOLERANCE) do tolerances[name] = t end
  if device ~= "cpu" then
    for name, t in pairs(ON_DEVICE) do tolerances[name] = t end
  end

  local compare = { APART = APART, differences = tolerances.differences }
  for name, f in pairs(M) do compare[name] = f end

  -- The tolerance of sums, for inputs of that dtype.
  function compare.sums(dtype) return tolerances[dtype .. "_sums"] end

  -- The tolerance of a result of that dtype, and the size of the terms that its sums may cancel.
  function compare.tolerance(call, dtype)
    if dtype == "u8" and call.codes then return CODES, 0 end
    if dtype == "i32" or dtype == "u8" then return EXACT, 0 end
    local name = dtype
    if call.sums then name = dtype .. "_sums" end
    if call.rounds_inside and call.inputs[1]:dtype() == "bf16" then name = "bf16_sums" end
    local terms = { bf16_sums = 0.1, f32_sums = 0.01 }
    local rounds = name == "bf16_sums" and (call.rounded_terms or call.rounds_inside)
    if device == "cpu" and not rounds then return tolerances[name], 0 end
    return tolerances[name], terms[name] or 0
  end

  return compare
end
