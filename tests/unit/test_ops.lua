-- test_ops.lua - runs the case table of tests/support/op_cases.lua: every row of runtime/ops/ops.def, in f32 and in bf16.
--
--   ./segzero tests/unit/test_ops.lua                 checks; a row without a case fails
--   ./segzero tests/unit/test_ops.lua bench [NAME]    times the fast kernels instead: ms, and GB/s or GFLOP/s
--   device=cuda                                  after either: the kernels of that device; the plain ones stay the processor's
--   op=NAME most=N times=1                             after the first: only this op; no call with more than N elements in an input
--                                                (how many are left out is said); seconds of each op
--
-- For each call: the fast kernel against the plain one; the same bits when it runs again; inputs left alone; memory around
-- the outputs, inputs and kernel workspace left alone. For rows with a gradient rule: the gradient (fast kernels) against
-- central differences of the plain forward kernel, and against the gradient that plain kernels give.
-- Left out: refused shapes, speed limits.

package.path = "./?.lua;./lua/?.lua;./lua/?/init.lua;" .. package.path

local ffi = require "ffi"
local check = require "tests.support.check"
local core = require "segzero.core.ffi"
local op_cases = require "tests.support.op_cases"
local tensor = require "segzero.core.tensor"

local C = core.C

-- A result may differ from the expected one by relative * |expected| + scaled * (root mean square of the expected tensor).
local TOLERANCE = {
  -- A handful of f32 roundings (6e-8 each) against double, inputs of size one; `scaled` is for results of a subtraction.
  f32 = {relative = 2e-6, scaled = 2e-6},
  -- Sums of some hundred products in f32, whose error grows with the terms and not with the result.
  f32_sums = {relative = 2e-5, scaled = 2e-5},
  -- The f32 result may fall on the other side of a rounding boundary: one unit in the last of bf16's 8 bits. rmsnorm and
  -- composed gradients round twice.
  bf16 = {relative = 2 ^ -7, scaled = 2 ^ -8},
  -- Attention rounds probabilities to bf16 before they are summed, as flash attention does; logprob_backward rounds the
  -- gradient of the logits before its products.
  bf16_sums = {relative = 2 ^ -7, scaled = 2 ^ -6},
  -- Central differences of fourth order with step h: h^4 leaves 1e-6, rounding of f32 outputs 6e-8 / h = 2e-6, times the
  -- number of outputs that one input reaches.
  differences = {relative = 3e-4, scaled = 3e-4},
}
-- On another device. f32: sums in another order with other functions of the hardware; 1e-4 is what we ask for. bf16: attention's
-- backward pass rounds both the probabilities and their gradients before its products.
local ON_DEVICE = {
  f32_sums = {relative = 2e-5, scaled = 1e-4},
  bf16_sums = {relative = 2 ^ -7, scaled = 2 ^ -5},
}
-- There a whole tensor, too: the root of its summed squared differences, in parts of that of the expected one. Where bf16 is further
-- from the plain kernels', it is compared with the exact numbers, and may be off by as much more as the plain kernels in bf16 are: what is a
-- small rest of large terms (a gradient through attention over three keys) is off by 0.5 % by the rounding of those alone.
local APART = {f32 = 1e-4, bf16 = 1e-2}
local STEP = 2 ^ -5

local options, words = {}, {}
for _, word in ipairs(arg or {}) do
  local key, value = word:match "^(%w+)=(.+)$"
  if key then options[key] = value else words[#words + 1] = word end
end
local DEVICE = options.device or "cpu"
if DEVICE ~= "cpu" then
  for k, v in pairs(ON_DEVICE) do TOLERANCE[k] = v end
end
local DIFFERENCED_PER_INPUT = 6          -- elements of an input whose derivative is taken, drawn at random

local bits = ffi.new("union { float f; uint32_t u; }")

-- Elements as Lua numbers, 1..n; bf16 is widened here, not by the kernels under test.
local function numbers(t)
  t = t:to {device = "cpu"}
  local p, out, bf16 = tensor.data(t), {}, t:dtype() == "bf16"
  for i = 1, t:numel() do
    if bf16 then
      bits.u = p[i - 1] * 65536
      out[i] = tonumber(bits.f)
    else
      out[i] = tonumber(p[i - 1])
    end
  end
  return out
end

local function bytes(t)
  t = t:to {device = "cpu"}
  return ffi.string(ffi.cast("char *", tensor.data(t)), t:numel() * tensor.WIDTH[t:dtype()])
end

-- nil when got, in bf16, is about as near to the exact numbers as `plain` is, what plain kernels make in bf16: half as far again on the average, twice
-- as far as their worst, and a rounding of the result itself. Else what is wrong.
local function less_exact(got, plain, exact)
  local n, size, theirs, ours, worst = #exact, 0, 0, 0, 0
  if #got ~= n or #plain ~= n then return ("%d elements, expected %d"):format(#got, n) end
  for i = 1, n do
    size, theirs, ours = size + exact[i] ^ 2, theirs + (plain[i] - exact[i]) ^ 2, ours + (got[i] - exact[i]) ^ 2
    worst = math.max(worst, math.abs(plain[i] - exact[i]))
  end
  local rms = math.sqrt(size / math.max(n, 1))
  if not (math.sqrt(ours / math.max(n, 1)) <= 1.5 * math.sqrt(theirs / math.max(n, 1)) + 2 ^ -9 * rms + 1e-37) then
    return ("off by %.3g on the average, plain kernels in bf16 by %.3g"):format(math.sqrt(ours / n), math.sqrt(theirs / n))
  end
  for i = 1, n do
    local allowed = 2 * worst + 2 ^ -8 * math.abs(exact[i]) + 2 ^ -9 * rms + 1e-37
    if not (math.abs(got[i] - exact[i]) <= allowed) then
      return ("element %d of %d: got %.9g, exact %.9g, allowed %.3g"):format(i, n, got[i], exact[i], allowed)
    end
  end
end

-- How far got is from want, in parts of want's size (root of the sum of squares); what is not finite is left to difference(). With a name
-- the worst of a dtype is kept.
local worst_apart = {}
local function apart(got, want, name, dtype)
  local size, off = 0, 0
  for i = 1, #want do
    local w, g = want[i], got[i] or 0
    if w == w and g == g and math.abs(w) < 1e30 and math.abs(g) < 1e30 then size, off = size + w * w, off + (g - w) ^ 2 end
  end
  local part = size > 0 and math.sqrt(off / size) or off > 0 and math.huge or 0
  if name and part > (worst_apart[dtype] or {part = -1}).part then worst_apart[dtype] = {part = part, name = name} end
  return part
end

-- nil when got is close to want, else where and by how much it is not. terms: the size of what was added up, where the sum may
-- come out much smaller than its terms.
local function difference(got, want, tolerance, terms)
  local squares, finite = 0, 0
  for i = 1, #want do
    local w = want[i]
    if w == w and math.abs(w) < 1e30 then
      squares = squares + w * w
      finite = finite + 1
    end
  end
  local floor = tolerance.scaled * (math.sqrt(squares / math.max(finite, 1)) + (terms or 0)) + 1e-37 + (tolerance.absolute or 0)
  for i = 1, #want do
    local a, b = got[i], want[i]
    local same = a == b or (a ~= a and b ~= b) or math.abs(a - b) <= tolerance.relative * math.abs(b) + floor
    if not same then
      return ("element %d of %d: got %.9g, expected %.9g within %.3g"):format(i, #want, a, b, tolerance.relative * math.abs(b) + floor)
    end
  end
  if #got ~= #want then return ("%d elements, expected %d"):format(#got, #want) end
  return nil
end

local function tolerance_of(call, dtype)
  -- A code rounded at random flips to its neighbour where the two kernels' last bits lie on either side of the draw.
  if dtype == "u8" and call.codes then return {relative = 0, scaled = 0, absolute = 1} end
  if dtype == "i32" or dtype == "u8" then return {relative = 0, scaled = 0} end
  return TOLERANCE[call.sums and dtype .. "_sums" or dtype]
end

local function includes(list, i)
  for _, v in ipairs(list or {}) do
    if v == i then return true end
  end
  return false
end

-- ---- running a call ----
-- Runs op on the call's inputs, those that it updates replaced by copies. Returns {outputs}, {copies by input index}.
local function apply(op, call, replaced)
  local all, copies = {}, {}
  for i = 1, op.inputs do
    all[i] = replaced and replaced[i] or call.inputs[i]
    if all[i] and includes(call.updates, i) then
      copies[i] = all[i]:clone()
      all[i] = copies[i]
    end
  end
  for i = 1, op.args do all[op.inputs + i] = call.args and call.args[i] or 0 end
  return {op.call(unpack(all, 1, op.inputs + op.args))}, copies
end

local function with_reference(on, f, ...)
  C.sz_use_reference(on and 1 or 0)
  local results = {pcall(f, ...)}
  C.sz_use_reference(0)
  if not results[1] then error(results[2], 0) end
  return unpack(results, 2, 4)
end

local function free_all(...)
  for _, list in ipairs {...} do
    for i = 1, 8 do
      if list[i] then list[i]:free() end
    end
  end
end

-- The call with its inputs on the device under test. Index tensors stay where they are, but for ops that take any dtype.
local ANY_DTYPE = {cast = true, reshape = true, narrow = true}
local function on_device(op, call)
  if DEVICE == "cpu" then return call end
  local moved = {inputs = {}}
  for k, v in pairs(call) do
    if k ~= "inputs" then moved[k] = v end
  end
  for i = 1, 8 do
    local t = call.inputs[i]
    if t then moved.inputs[i] = (t:dtype() ~= "i32" or ANY_DTYPE[op.name]) and t:to {device = DEVICE} or t end
  end
  return moved
end

local function moved_only(there, call)
  local list = {}
  for i = 1, 8 do
    if there.inputs[i] ~= call.inputs[i] then list[i] = there.inputs[i] end
  end
  return list
end

-- What a call leaves: its outputs, and the inputs that it updates. (Output 1 of an in-place op is input 1.)
local function results(op, outputs, copies)
  local list = {}
  for i = 1, op.outputs do list[#list + 1] = outputs[i] end
  for i = 1, 8 do list[#list + 1] = copies[i] end
  return list
end

-- The same numbers in f32: f(call, widen) with a copy of the call whose bf16 tensors are widened; widen(t) does so for another tensor.
local function in_f32(call, f)
  local wide, made = {}, {}
  local function widen(t)
    if t:dtype() ~= "bf16" then return t end
    made[#made + 1] = t:cast(C.SZ_F32)
    return made[#made]
  end
  for k, v in pairs(call) do wide[k] = v end
  wide.inputs = {}
  for i, t in pairs(call.inputs) do wide.inputs[i] = widen(t) end
  local result = f(wide, widen)
  free_all(made)
  return result
end

-- What plain kernels leave in f32, as numbers.
local function exact_results(op, call)
  return in_f32(call, function(wide)
    local outputs, copies = with_reference(true, apply, op, wide)
    local list = results(op, outputs, copies)
    for i = 1, #list do list[i] = numbers(list[i]) end
    free_all(outputs, copies)
    return list
  end)
end

-- On another device a whole tensor is judged, too: APART. exact() makes the exact numbers where they are asked for.
local function check_apart(op, dtype, got, plain, exact, label)
  local off, allowed = apart(got, plain, op.name, dtype), APART[dtype] or APART.f32
  if off > allowed and dtype == "bf16" then
    exact = exact()
    off, allowed = apart(got, exact), allowed + apart(plain, exact)
  end
  check.ok(off <= allowed, ("%s is %.3g of its size apart, allowed %.3g"):format(label, off, allowed))
end

local function check_values(op, call, label)
  local before, there = {}, on_device(op, call)
  for i = 1, op.inputs do before[i] = call.inputs[i] and bytes(call.inputs[i]) or false end
  local fast, fast_copies = apply(op, there)
  local again, again_copies = apply(op, there)
  local plain, plain_copies = with_reference(true, apply, op, call)
  local got, repeated, want = results(op, fast, fast_copies), results(op, again, again_copies), results(op, plain, plain_copies)
  for i = 1, #want do
    local rounds = call.rounds_inside and call.inputs[1]:dtype() == "bf16"
    local tolerance = rounds and TOLERANCE.bf16_sums or tolerance_of(call, want[i]:dtype())
    local message = difference(numbers(got[i]), numbers(want[i]), tolerance, tolerance == ON_DEVICE.bf16_sums and 0.1 or 0)
    check.ok(not message, ("%s: result %d: %s"):format(label, i, message or ""))
    if DEVICE ~= "cpu" and want[i]:dtype():find "f" then
      check_apart(op, call.inputs[1]:dtype(), numbers(got[i]), numbers(want[i]), function() return exact_results(op, call)[i] end,
                  ("%s: result %d"):format(label, i))
    end
    check.ok(bytes(got[i]) == bytes(repeated[i]), ("%s: result %d differs when run again"):format(label, i))
  end
  for i = 1, op.inputs do
    if before[i] then check.ok(bytes(there.inputs[i]) == before[i], ("%s: input %d was changed"):format(label, i)) end
  end
  free_all(fast, fast_copies, again, again_copies, plain, plain_copies)
  if there ~= call then free_all(moved_only(there, call)) end
end

-- ---- gradients: of the loss sum over outputs o of sum(weights[o] * o) ----
local function tape_gradients(op, call, weights)
  local leaves, gradients = {}, {}
  for _, i in ipairs(call.grad) do leaves[i] = call.inputs[i]:clone():requires_grad(true) end
  local outputs, copies = apply(op, call, leaves)
  local loss, parts = nil, {}
  for _, o in ipairs(call.losses or {1}) do
    local weighted = outputs[o]:mul(weights[o])
    local part = weighted:sum()
    parts[#parts + 1], parts[#parts + 2] = weighted, part
    loss = loss and loss:add(part) or part
  end
  loss:backward()
  for _, i in ipairs(call.grad) do
    local g = leaves[i]:grad()
    gradients[i] = g and numbers(g) or {}
    if g then g:free() end
  end
  loss:free()
  free_all(leaves, outputs, copies, parts)
  return gradients
end

local function plain_loss(op, call, replaced, weights)
  local outputs, copies = apply(op, call, replaced)
  local total = 0
  for _, o in ipairs(call.losses or {1}) do
    local y, w = numbers(outputs[o]), numbers(weights[o])
    for i = 1, #y do total = total + y[i] * w[i] end
  end
  free_all(outputs, copies)
  return total
end

-- Derivative of the plain loss by element at (from 0) of input i.
local function derivative(op, call, i, at, weights)
  local moved = call.inputs[i]:clone()
  local p = tensor.data(moved)
  local x = p[at]
  local function loss(offset)
    p[at] = x + offset
    return plain_loss(op, call, {[i] = moved}, weights)
  end
  local d = (8 * (loss(STEP) - loss(-STEP)) - (loss(2 * STEP) - loss(-2 * STEP))) / (12 * STEP)
  moved:free()
  return d
end

local function check_gradients(op, call, label)
  local outputs, copies = apply(op, call)
  local weights = {}
  for _, o in ipairs(call.losses or {1}) do
    weights[o] = outputs[o]:clone()
    local w = tensor.empty(outputs[o]:shape())
    local p = tensor.data(w)
    for i = 0, w:numel() - 1 do p[i] = math.random() + 0.5 end
    weights[o]:copy_(w)
    w:free()
  end
  free_all(outputs, copies)

  local there, there_weights = on_device(op, call), {}
  for o, w in pairs(weights) do there_weights[o] = w:to {device = DEVICE} end
  local fast = tape_gradients(op, there, there_weights)
  if there ~= call then free_all(moved_only(there, call), there_weights) end
  local plain = with_reference(true, tape_gradients, op, call, weights)
  local exact
  for _, i in ipairs(call.grad) do
    local tolerance = call.inputs[1]:dtype() == "f32" and TOLERANCE.f32_sums or TOLERANCE.bf16_sums
    -- A gradient is a sum of terms of size one that may cancel: a hundredth of them is the least that is compared with.
    -- On a device bf16 rounds the terms themselves, so the error goes with them and a tenth is; and where the plain kernels' own error is as large, what
    -- counts is the distance from the exact numbers.
    local on_device = DEVICE ~= "cpu" and call.inputs[1]:dtype() == "bf16"
    local message = difference(fast[i], plain[i], tolerance, on_device and 0.1 or 0.01)
    local function exact_one()
      exact = exact or in_f32(call, function(wide, widen)
        local wide_weights = {}
        for o, w in pairs(weights) do wide_weights[o] = widen(w) end
        return with_reference(true, tape_gradients, op, wide, wide_weights)
      end)
      return exact[i]
    end
    if message and on_device then message = less_exact(fast[i], plain[i], exact_one()) and message end
    if DEVICE ~= "cpu" then check_apart(op, call.inputs[1]:dtype(), fast[i], plain[i], exact_one, ("%s: gradient of input %d"):format(label, i)) end
    check.ok(not message and #fast[i] == call.inputs[i]:numel(), ("%s: gradient of input %d: %s"):format(label, i, message or "missing"))
  end

  for _, i in ipairs(call.grad) do
    local numel = call.inputs[i]:numel()
    local f32 = call.inputs[1]:dtype() == "f32" and call.inputs[i]:dtype() == "f32"
    if f32 and call.smooth ~= false and numel <= 4000 then
      local got, want, squares = {}, {}, 0
      for _ = 1, math.min(DIFFERENCED_PER_INPUT, numel) do
        local at = math.random(0, numel - 1)
        got[#got + 1] = fast[i][at + 1]
        want[#want + 1] = with_reference(true, derivative, op, call, i, at, weights)
      end
      -- The scale is the whole gradient's, not that of the few elements drawn.
      for _, v in ipairs(fast[i]) do squares = squares + v * v end
      local t = TOLERANCE.differences
      for k = 1, #got do
        local allowed = t.relative * math.abs(want[k]) + t.scaled * (math.sqrt(squares / numel) + 0.01)
        check.ok(math.abs(got[k] - want[k]) <= allowed,
                 ("%s: gradient of input %d: got %.7g, central difference %.7g"):format(label, i, got[k], want[k]))
      end
    end
  end
  free_all(weights)
end

-- ---- the sweep ----
local function each_op(f)
  for id = 0, C.sz_op_count() - 1 do f(tensor.ops[ffi.string(C.sz_op_name(id))]) end
end

local function describe(call)
  local parts = {}
  for i = 1, 8 do
    local t = call.inputs[i]
    if t then parts[#parts + 1] = t:dtype() .. "[" .. table.concat(t:shape(), ",") .. "]" end
  end
  return table.concat(parts, " ") .. (call.name and " (" .. call.name .. ")" or "")
end

local left_out = 0
local function too_large(call)
  for i = 1, 8 do
    if options.most and call.inputs[i] and call.inputs[i]:numel() > tonumber(options.most) then return true end
  end
  return false
end

local function check_call(op, call, label)
  local gradient = op.gradient and call.grad
  if op.name:sub(-1) == "_" then call.updates = call.updates or {1} end
  local ok, message = pcall(function()
    check_values(op, call, label)
    if gradient then check_gradients(op, call, label) end
  end)
  check.ok(ok, label .. ": " .. tostring(message))
  collectgarbage()                         -- what an error left behind
  local broken = tonumber(C.sz_debug_guards(1))
  check.ok(broken == 0, ("%s: wrote past the end of %d blocks"):format(label, broken))
  return ok and gradient
end

local function sweep_op(op, dtype)
  local case = op_cases.cases[op.name]
  local g = op_cases.generator(dtype)
  math.randomseed(check.seed * 1000 + op.id)
  local calls = case.calls(g)
  local gradient_seen = false
  C.sz_debug_guards(1)
  for _, call in ipairs(calls) do
    if too_large(call) then
      left_out = left_out + 1
    elseif check_call(op, call, op.name .. " " .. dtype .. ": " .. describe(call)) then
      gradient_seen = true
    end
  end
  check.ok(gradient_seen or not op.gradient, op.name .. " has a gradient rule and no case that checks it")
  g.free()
  check.ok(C.sz_debug_guards(0) == 0, op.name .. " " .. dtype .. ": wrote past the end of an input")
end

local function sweep()
  C.sz_set_threads(2)                      -- two, so that parallel paths run on any machine
  each_op(function(op)
    if options.op and op.name ~= options.op then return end
    if not check.ok(op_cases.cases[op.name], "ops.def has a row without a case: " .. op.name) then return end
    local start = os.clock()
    for _, dtype in ipairs {"f32", "bf16"} do sweep_op(op, dtype) end
    if options.times then print(("%-24s %6.2f s"):format(op.name, os.clock() - start)) end
  end)
  if left_out > 0 then print(left_out .. " calls with larger inputs were left out (most=" .. options.most .. ")") end
  for _, dtype in ipairs {"f32", "bf16"} do
    local w = worst_apart[dtype]
    if w then print(("%s: tensors are apart by %.2g of their size at most (%s)"):format(dtype, w.part, w.name)) end
  end
  for name in pairs(op_cases.cases) do check.ok(tensor.ops[name], "a case without a row in ops.def: " .. name) end
  check.finish()
end

-- ---- bench ----
local function time(f)
  local best, spent = math.huge, 0
  repeat
    local start = C.sz_seconds()
    f()
    local t = C.sz_seconds() - start
    best, spent = math.min(best, t), spent + t
  until spent > 0.3
  return best
end

local function bench(only)
  print(("%s, threads %d; best of 0.3 s"):format(DEVICE, C.sz_threads()))
  each_op(function(op)
    local case = op_cases.cases[op.name]
    if not (case and case.bench) or (only and op.name ~= only) then return end
    for _, dtype in ipairs {"f32", "bf16"} do
      local g = op_cases.generator(dtype)
      math.randomseed(check.seed)
      local call = on_device(tensor.ops[op.name], case.bench(g))
      call.updates = nil                   -- no copies: in-place ops go on from where they are
      local moved
      local best = time(function()
        C.sz_scope_push()                  -- outputs in the arena, as in training: no page faults after the first run
        local outputs = apply(op, call)
        moved = moved or op_cases.bytes(call, outputs)
        for _, t in ipairs(outputs) do t:free() end
        C.sz_device_synchronise()
        C.sz_scope_pop()
      end)
      local rate = call.flops and ("%8.1f GFLOP/s"):format(call.flops / best / 1e9) or ("%8.2f GB/s"):format(moved / best / 1e9)
      print(("%-20s %-4s %10.3f ms %s"):format(op.name, dtype, best * 1e3, rate))
      g.free()
    end
  end)
end

if words[1] == "bench" then bench(words[2]) else sweep() end
